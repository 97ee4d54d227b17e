//! Unified kernel images (uapi-group.org, "UKI"): systemd's stub with kernel, initramfs and command line as
//! further PE sections.

/// Why no UKI could be made of a stub.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the stub is not usable: {0}")]
pub struct BadStub(&'static str);

/// A section: name, content.
pub type Section<'a> = (&'static str, &'a [u8]);

const SECTION_HEADER: usize = 40;
/// Initialised data, readable.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// Appends `sections` to a PE stub.
pub fn assemble(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, BadStub> {
    let mut image = stub.to_vec();
    let pe = u32_at(stub, 0x3c).ok_or(BadStub("it is too short"))? as usize;
    if stub.get(..2) != Some(b"MZ") || stub.get(pe..pe + 4) != Some(b"PE\0\0") {
        return Err(BadStub("it is no PE file"));
    }
    let count = u16_at(stub, pe + 6).ok_or(BadStub("it is cut off"))? as usize;
    let optional = pe + 24;
    let optional_size = u16_at(stub, pe + 20).ok_or(BadStub("it is cut off"))? as usize;
    if u16_at(stub, optional) != Some(0x20b) {
        return Err(BadStub("it is not for a 64-bit machine"));
    }
    let field = |at: usize| u32_at(stub, optional + at).ok_or(BadStub("it is cut off"));
    let (section_alignment, file_alignment, headers) = (field(32)?, field(36)?, field(60)? as usize);
    if !section_alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
        return Err(BadStub("its alignment is no power of two"));
    }
    let table = optional + optional_size;
    let end = table + (count + sections.len()) * SECTION_HEADER;
    let first_data = (0..count)
        .filter_map(|i| u32_at(stub, table + i * SECTION_HEADER + 20))
        .filter(|at| *at > 0)
        .min()
        .unwrap_or(0) as usize;
    if end > headers.min(first_data).min(stub.len()) {
        return Err(BadStub("it has no room for more section headers"));
    }
    let mut address = 0;
    for i in 0..count {
        let header = table + i * SECTION_HEADER;
        let size = u32_at(stub, header + 8).ok_or(BadStub("it is cut off"))?;
        let start = u32_at(stub, header + 12).ok_or(BadStub("it is cut off"))?;
        address = address.max(start.saturating_add(size));
    }
    for (i, (name, content)) in sections.iter().enumerate() {
        address = address.next_multiple_of(section_alignment);
        image.resize(image.len().next_multiple_of(file_alignment as usize), 0);
        let offset = u32::try_from(image.len()).map_err(|_| BadStub("the image would pass 4 GiB"))?;
        let size = u32::try_from(content.len()).map_err(|_| BadStub("a section would pass 4 GiB"))?;
        image.extend(*content);
        image.resize(image.len().next_multiple_of(file_alignment as usize), 0);
        let raw = image.len() as u32 - offset;
        let header = table + (count + i) * SECTION_HEADER;
        image[header..header + SECTION_HEADER].fill(0);
        image[header..header + name.len().min(8)].copy_from_slice(&name.as_bytes()[..name.len().min(8)]);
        for (at, value) in [(8, size), (12, address), (16, raw), (20, offset), (36, CHARACTERISTICS)] {
            image[header + at..header + at + 4].copy_from_slice(&value.to_le_bytes());
        }
        address = address.checked_add(size).ok_or(BadStub("the image would pass 4 GiB"))?;
    }
    let total = (count + sections.len()) as u16;
    image[pe + 6..pe + 8].copy_from_slice(&total.to_le_bytes());
    let size_of_image = address.next_multiple_of(section_alignment);
    image[optional + 56..optional + 60].copy_from_slice(&size_of_image.to_le_bytes());
    // The checksum is not looked at by firmware; zero says that there is none.
    image[optional + 64..optional + 68].fill(0);
    Ok(image)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A PE with one section at 0x1000 and headers up to 0x400.
    pub(crate) fn stub() -> Vec<u8> {
        let mut bytes = vec![0; 0x600];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        let mut set = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        // x86-64, one section.
        set(0x44, 0x0001_8664);
        set(0x54, 0xf0);
        let optional = 0x58;
        set(optional, 0x20b);
        set(optional + 32, 0x1000);
        set(optional + 36, 0x200);
        set(optional + 56, 0x2000);
        set(optional + 60, 0x400);
        // Entries of the directory.
        set(optional + 108, 16);
        let table = optional + 0xf0;
        for (at, value) in [(8, 0x123), (12, 0x1000), (16, 0x200), (20, 0x400)] {
            set(table + at, value);
        }
        bytes
    }

    #[test]
    fn sections_are_aligned_and_found_again() {
        let image = assemble(&stub(), &[(".cmdline", b"quiet"), (".linux", &[9; 5000])]).unwrap();
        let table = 0x58 + 0xf0;
        let header = |i: usize, at: usize| u32_at(&image, table + i * SECTION_HEADER + at).unwrap();
        assert_eq!(u16_at(&image, 0x46), Some(3));
        assert_eq!((header(1, 12), header(2, 12)), (0x2000, 0x3000));
        assert_eq!((header(1, 8), header(2, 8)), (5, 5000));
        let offset = header(2, 20) as usize;
        assert_eq!(offset % 0x200, 0);
        assert_eq!(&image[offset..offset + 5000], &[9; 5000]);
        assert_eq!(u32_at(&image, 0x58 + 56), Some(0x5000));
    }

    #[test]
    fn refuses_strange_stubs() {
        assert_eq!(assemble(b"MZ", &[]), Err(BadStub("it is too short")));
        let many: Vec<Section<'_>> = vec![(".x", b""); 30];
        assert_eq!(assemble(&stub(), &many), Err(BadStub("it has no room for more section headers")));
        for cut in 0..0x200 {
            let _ = assemble(&stub()[..cut], &[(".x", b"x")]);
        }
    }
}
