//! The initramfs archive: cpio in the `newc` form that the kernel unpacks (Documentation/driver-api/
//! early-userspace/buffer-format.rst). All owned by root, all times zero, inode numbers counted up.

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    made: std::collections::BTreeSet<String>,
}

impl Archive {
    /// A regular file with the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parents(path);
        self.entry(path, 0o100_000 | mode, content, (0, 0));
    }

    /// A directory with those above it.
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        if self.made.insert(path.to_owned()) {
            self.entry(path, 0o040_755, &[], (0, 0));
        }
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, 0o120_777, target.as_bytes(), (0, 0));
    }

    /// A character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, 0o020_600, &[], (major, minor));
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = u32::MAX;
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (i, _) in path.match_indices('/') {
            if self.made.insert(path[..i].to_owned()) {
                self.entry(&path[..i], 0o040_755, &[], (0, 0));
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.inode = self.inode.wrapping_add(1);
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // The archive of an initramfs stays far below 4 GiB: the field's own limit.
        let size = content.len() as u32;
        let name = path.len() as u32 + 1;
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes() {
        let mut archive = Archive::default();
        archive.file("a/b", 0o644, b"hi");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(bytes.len() % 512, 0);
        // inode, mode, owner, group, links, time, size, device (2), special device (2), name's size, check
        let header =
            |fields: [u32; 13]| fields.iter().fold("070701".to_owned(), |h, f| h + &format!("{f:08x}"));
        let directory = header([1, 0o040_755, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2, 0]) + "a\0";
        let file = header([2, 0o100_644, 0, 0, 1, 0, 2, 0, 0, 0, 0, 4, 0]) + "a/b\0";
        assert!(text.starts_with(&directory));
        assert!(text.contains(&(file + "\0\0hi\0\0")), "{text}");
        assert!(text.contains("TRAILER!!!\0"));
    }

    #[test]
    fn directories_come_once() {
        let mut archive = Archive::default();
        archive.file("d/a", 0o644, b"");
        archive.file("d/b", 0o644, b"");
        archive.directory("d");
        let bytes = archive.finish();
        assert_eq!(bytes.windows(6).filter(|w| w == b"070701").count(), 4);
    }
}
