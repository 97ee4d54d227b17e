//! Device nodes that bring their module when somebody opens them: tun, vhost, fuse and the like. Document: depmod's `modules.devname`, of which
//! each line is a module, a path below `/dev`, and a kind with numbers (`tun net/tun c10:200`).

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    sys::stat::{Mode, SFlag, makedev, mknod},
};

/// One node of a character device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    /// Below `/dev`.
    path: String,
    major: u64,
    minor: u64,
}

/// The character devices of a `modules.devname`. Lines that make no sense are skipped.
fn parse(text: &str) -> Vec<Node> {
    let node = |line: &str| {
        let mut words = line.split_whitespace();
        let (_module, path, numbers) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = numbers.strip_prefix('c')?.split_once(':')?;
        let is_below = path.split('/').all(|part| !part.is_empty() && part != "..");
        is_below.then_some(())?;
        Some(Node { path: path.to_owned(), major: major.parse().ok()?, minor: minor.parse().ok()? })
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(node).collect()
}

/// Makes the nodes that an image's module directory names. Only root may open them. A node that is there stays.
pub fn make(dev: &Path, modules: &Path) -> io::Result<()> {
    let text = match fs::read_to_string(modules.join("modules.devname")) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    for node in parse(&text) {
        let path = dev.join(&node.path);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mode = Mode::from_bits_truncate(0o600);
        match mknod(&path, SFlag::S_IFCHR, mode, makedev(node.major, node.minor)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_known_by_name_and_number() {
        let text = "# Device nodes to trigger on-demand module loading.\ntun net/tun c10:200\nvhost_net vhost-net c10:238\n\
            loop loop-control b7:0\nevil ../etc/x c1:1\nevil /x c1:1\nshort x\nodd y c1\nodd y c1:z\n\n";
        let node = |path: &str, minor| Node { path: path.into(), major: 10, minor };
        assert_eq!(parse(text), [node("net/tun", 200), node("vhost-net", 238)]);
    }

    #[test]
    fn an_image_without_the_list_has_no_nodes() {
        assert!(make(Path::new("/nonexistent"), Path::new("/nonexistent")).is_ok());
    }
}
