//! Packages made here, honest and hostile.

use std::io::Write;

use super::*;

/// A tar of `(path, kind, link target or content)`.
pub(crate) fn tarball(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    tarball_of(entries, 0o644, &|text| text.as_bytes().to_vec())
}

fn tarball_of(
    entries: &[(&str, tar::EntryType, &str)],
    mode: u32,
    content_of: &dyn Fn(&str) -> Vec<u8>,
) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (path, kind, text) in entries {
        let mut header = tar::Header::new_gnu();
        // Set by hand: the library refuses the very paths that are tested here.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { mode });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(9);
        let content = if kind.is_file() { content_of(text) } else { vec![] };
        if kind.is_symlink() || kind.is_hard_link() {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, &content[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A package of executable files, each with the content that `content_of` makes of its text; its control files likewise.
pub(crate) fn executable_package(
    control: &[(&str, tar::EntryType, &str)],
    entries: &[(&str, tar::EntryType, &str)],
    content_of: &dyn Fn(&str) -> Vec<u8>,
) -> Vec<u8> {
    wrap(tarball_of(control, 0o755, content_of), tarball_of(entries, 0o755, content_of), "")
}

/// A package with these entries, its members compressed by `compress`.
pub(crate) fn package(entries: &[(&str, tar::EntryType, &str)], suffix: &str) -> Vec<u8> {
    let compress = |bytes: Vec<u8>| match suffix {
        ".xz" => {
            let mut encoder = liblzma::write::XzEncoder::new(vec![], 1);
            encoder.write_all(&bytes).unwrap();
            encoder.finish().unwrap()
        }
        ".zst" => zstd::encode_all(&bytes[..], 1).unwrap(),
        ".gz" => {
            let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
            encoder.write_all(&bytes).unwrap();
            encoder.finish().unwrap()
        }
        _ => bytes,
    };
    let control = compress(tarball(&[("./postinst", Regular, "#!/bin/sh\n")]));
    wrap(control, compress(tarball(entries)), suffix)
}

fn wrap(control: Vec<u8>, data: Vec<u8>, suffix: &str) -> Vec<u8> {
    let mut archive = ar::Builder::new(vec![]);
    for (name, bytes) in [
        ("debian-binary".to_owned(), b"2.0\n".to_vec()),
        (format!("control.tar{suffix}"), control),
        (format!("data.tar{suffix}"), data),
    ] {
        archive.append(&ar::Header::new(name.into_bytes(), bytes.len() as u64), &bytes[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn reads_every_compression() {
    for suffix in ["", ".xz", ".zst", ".gz"] {
        let bytes = package(
            &[
                ("./", Directory, ""),
                ("./usr/", Directory, ""),
                ("./usr/a", Regular, "hello"),
                ("./usr/b", Link, "./usr/a"),
                ("./usr/c", Symlink, "a"),
                ("./usr/share/doc/x", Regular, "no"),
            ],
            suffix,
        );
        let unpacked =
            unpack(&bytes[..], "p", &|path| !path.starts_with("usr/share/doc"), &mut in_memory).unwrap();
        let paths: Vec<_> = unpacked.nodes.iter().map(|(p, _)| p.as_str()).collect();
        assert_eq!(paths, ["usr", "usr/a", "usr/b", "usr/c"], "{suffix}");
        assert_eq!(unpacked.nodes[2].1.kind, Kind::File(Data::new(*b"hello")));
        assert_eq!(unpacked.control["postinst"], "#!/bin/sh\n");
    }
}

#[test]
fn refuses_what_leaves_the_root_or_is_no_file() {
    let cases = [
        ("../etc/passwd", Regular, "x"),
        ("/etc/passwd", Regular, "x"),
        ("./usr/../../etc/passwd", Regular, "x"),
        ("./usr/up", Symlink, "../../../etc"),
        ("./usr/hard", Link, "../../etc/passwd"),
        ("./usr/hard", Link, "./usr/absent"),
        ("./dev/sda", Block, ""),
        ("./dev/null", Char, ""),
        ("./run/fifo", Fifo, ""),
    ];
    for (path, kind, text) in cases {
        let bytes = package(&[(path, kind, text)], ".gz");
        assert!(unpack(&bytes[..], "p", &|_| true, &mut in_memory).is_err(), "{path} -> {text}");
    }
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let seed = package(&[("./usr/a", Regular, "hello"), ("./usr/c", Symlink, "a")], ".gz");
    let mut state = 0x9e37_79b9_u32;
    for _ in 0..2000 {
        let mut bytes = seed.clone();
        for _ in 0..4 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = state as usize % bytes.len();
            bytes[at] = (state >> 24) as u8;
        }
        bytes.truncate(bytes.len() - (state as usize % 7) * 50);
        let _ = unpack(&bytes[..], "p", &|_| true, &mut in_memory);
    }
}

#[test]
fn a_truncated_package_is_an_error() {
    let content = "some words, and others; ".repeat(200);
    for suffix in [".xz", ".zst", ".gz"] {
        let bytes = package(&[("./usr/a", Regular, &content), ("./usr/b", Regular, "b")], suffix);
        for cut in (0..bytes.len() * 6 / 10).step_by(5) {
            assert!(unpack(&bytes[..cut], "p", &|_| true, &mut in_memory).is_err(), "{suffix}, {cut} bytes");
        }
    }
}
