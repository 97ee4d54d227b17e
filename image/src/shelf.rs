//! Packages that are unpacked already: what LZMA took seconds for is read back at once by the next build that needs the
//! package, whatever its recipe.
//!
//! ```text
//! CACHE/unpacked/FORMAT/HASH   contents one after the other; the index (JSON, zstd); its SHA-256; its length (8 bytes)
//! ```
//!
//! HASH is the `.deb`'s, or that of a packed kernel module, which lies here unpacked once an image has used it. An index that is damaged is as absent; each content is checked against its SHA-256 when it is
//! read. Beyond [`MOST`] bytes the packages that were not used for longest go.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::{stat::futimens, time::TimeSpec};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{
    contents::{Entry, Type},
    data::{Data, LARGE, hashed},
    deb::{self, BadPackage, Unpacked},
    tree::{Kind, Node},
};

/// Changes with the layout of these files, and with which paths of packages are never kept.
const FORMAT: &str = "1";

/// Bytes that the shelf holds at most.
const MOST: u64 = 6 << 30;

/// Below this (bytes) packing gains nothing.
const SMALL: usize = 256;

/// The quickest: the disk is read faster for it, and not much time is lost when a package is unpacked first.
const LEVEL: i32 = 1;

/// What is packed already.
const PACKED: [&str; 6] = [".xz", ".zst", ".gz", ".png", ".jpg", ".bz2"];

/// The index lies at the end, behind it a SHA-256 and a length.
const TAIL: usize = 40;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    control: BTreeMap<String, String>,
    nodes: Vec<(Entry, u64, usize, bool)>,
}

/// A directory of unpacked packages.
pub struct Shelf {
    directory: PathBuf,
}

impl Shelf {
    /// The shelf in a directory, which is made.
    pub fn open(directory: &Path) -> io::Result<Shelf> {
        let directory = directory.join(FORMAT);
        fs::create_dir_all(&directory)?;
        Ok(Shelf { directory })
    }

    /// Whether a package is here.
    pub fn has(&self, sha256: &str) -> bool {
        self.directory.join(sha256).is_file()
    }

    /// A package by its hash, if it is here whole.
    pub fn get(&self, sha256: &str) -> Option<Unpacked> {
        let path = self.directory.join(sha256);
        let file = File::open(&path).ok()?;
        let unpacked = read(&file, path.into())?;
        // Its last use decides what goes.
        let _ = futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW);
        Some(unpacked)
    }

    /// Unpacks a package and keeps it. Paths for which `keep` is false are not kept.
    pub fn unpack(
        &self,
        package_file: impl Read,
        (package, sha256): (&str, &str),
        keep: &dyn Fn(&str) -> bool,
    ) -> Result<Unpacked, BadPackage> {
        self.keep(sha256, |sink| {
            let mut unpacked = deb::unpack(package_file, package, keep, sink)?;
            unpacked.control.retain(|name, _| name != "md5sums");
            Ok(unpacked)
        })
    }

    /// Keeps what `unpack` makes, whose contents go into its sink.
    pub fn keep<E: From<io::Error>>(
        &self,
        sha256: &str,
        unpack: impl FnOnce(deb::Sink<'_>) -> Result<Unpacked, E>,
    ) -> Result<Unpacked, E> {
        let mut fresh = tempfile::NamedTempFile::new_in(&self.directory)?;
        let (mut out, mut at) = (BufWriter::with_capacity(1 << 20, fresh.as_file_mut()), 0);
        let place: Arc<Path> = self.directory.join(sha256).into();
        let mut sink = |path: &str, size: u64, from: &mut dyn Read| {
            if size > LARGE {
                // As it is: it can be read piece by piece from any byte on.
                let known = hashed(size, from, |piece| out.write_all(piece))?;
                let lies = (at, usize::try_from(size).map_err(io::Error::other)?, false);
                at += size;
                return Ok(Data::stored(known, place.clone(), lies));
            }
            let bytes = deb::whole(size, from)?;
            let known = (bytes.len() as u64, Sha256::digest(&bytes).into(), Sha1::digest(&bytes).into());
            let mut packed = vec![];
            if bytes.len() > SMALL && !PACKED.iter().any(|p| path.ends_with(p)) {
                packed = zstd::bulk::compress(&bytes, LEVEL)?;
            }
            let is_packed = !packed.is_empty() && packed.len() < bytes.len();
            let bytes = if is_packed { &packed } else { &bytes };
            out.write_all(bytes)?;
            let lies = (at, bytes.len(), is_packed);
            at += bytes.len() as u64;
            Ok(Data::stored(known, place.clone(), lies))
        };
        let unpacked = unpack(&mut sink)?;
        let index = Index {
            control: unpacked.control.clone(),
            nodes: unpacked
                .nodes
                .iter()
                .map(|(path, node)| {
                    let (at, length, packed) = match &node.kind {
                        Kind::File(data) => data.lies().unwrap_or_default(),
                        _ => Default::default(),
                    };
                    (Entry::of(path, node), at, length, packed)
                })
                .collect(),
        };
        let index = serde_json::to_vec(&index).map_err(io::Error::other)?;
        let index = zstd::bulk::compress(&index, LEVEL)?;
        out.write_all(&index)?;
        out.write_all(&Sha256::digest(&index))?;
        out.write_all(&(index.len() as u64).to_le_bytes())?;
        out.flush()?;
        drop(out);
        fresh.persist(&place).map_err(|e| e.error)?;
        Ok(unpacked)
    }

    /// Removes what was not used for longest, and what dead builds left.
    pub fn forget(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let mut files: Vec<_> = entries
            .flatten()
            .filter_map(|e| e.metadata().and_then(|m| Ok((m.modified()?, m.len(), e.path()))).ok())
            .collect();
        files.sort();
        let mut total = 0;
        for (_, size, path) in files.into_iter().rev() {
            total += size;
            if total > MOST {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn read(file: &File, path: Arc<Path>) -> Option<Unpacked> {
    let end = file.metadata().ok()?.len().checked_sub(TAIL as u64)?;
    let mut tail = [0; TAIL];
    file.read_exact_at(&mut tail, end).ok()?;
    let length = u64::from_le_bytes(tail[32..].try_into().ok()?);
    let start = end.checked_sub(length)?;
    let mut index = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut index, start).ok()?;
    if Sha256::digest(&index)[..] != tail[..32] {
        return None;
    }
    let index: Index = serde_json::from_slice(&zstd::decode_all(&index[..]).ok()?).ok()?;
    let mut unpacked = Unpacked { nodes: vec![], control: index.control };
    let mut origin: Arc<str> = "".into();
    for (entry, at, length, packed) in index.nodes {
        if *origin != *entry.origin {
            origin = entry.origin.as_str().into();
        }
        let kind = match entry.kind {
            Type::File => {
                let sha256 = hex::decode(&entry.sha256).ok()?.try_into().ok()?;
                let sha1 = hex::decode(&entry.sha1).ok()?.try_into().ok()?;
                Kind::File(Data::stored((entry.size, sha256, sha1), path.clone(), (at, length, packed)))
            }
            Type::Directory => Kind::Directory,
            Type::Link => Kind::Link(entry.target),
        };
        let mode = u32::from_str_radix(&entry.mode, 8).ok()?;
        let node = Node { uid: entry.uid, gid: entry.gid, origin: origin.clone(), ..Node::made(kind, mode) };
        unpacked.nodes.push((entry.path, node));
    }
    Some(unpacked)
}

#[cfg(test)]
mod tests {
    use tar::EntryType::{Directory, Link, Regular, Symlink};

    use super::*;
    use crate::deb::tests::executable_package;

    #[test]
    fn what_was_unpacked_comes_back() {
        let text = "many words ".repeat(1000);
        let large = text.repeat(LARGE as usize / text.len() + 1);
        let deb = executable_package(
            &[],
            &[
                ("./usr", Directory, ""),
                ("./usr/a", Regular, &text),
                ("./usr/b", Symlink, "a"),
                ("./usr/c", Link, "./usr/a"),
                ("./usr/d.xz", Regular, &text),
                ("./usr/large", Regular, &large),
                ("./usr/share/doc/x", Regular, "x"),
            ],
            &|text| text.as_bytes().to_vec(),
        );
        let place = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(place.path()).unwrap();
        assert!(shelf.get("aa").is_none());
        let keep = |path: &str| !path.contains("/doc/");
        let first = shelf.unpack(&deb[..], ("p", "aa"), &keep).unwrap();
        let again = shelf.get("aa").unwrap();
        assert_eq!(first.nodes, again.nodes);
        assert_eq!(first.control, again.control);
        for unpacked in [first, again] {
            let file = |path: &str| unpacked.nodes.iter().find(|(p, _)| p == path).map(|(_, n)| n.clone());
            for path in ["usr/a", "usr/c", "usr/d.xz"] {
                let Some(Node { kind: Kind::File(data), .. }) = file(path) else { panic!("no {path}") };
                assert_eq!(data.bytes().unwrap()[..], *text.as_bytes(), "{path}");
            }
            assert!(file("usr/share/doc/x").is_none());
            let Some(Node { kind: Kind::File(data), .. }) = file("usr/large") else {
                panic!("no large file")
            };
            let mut copy = vec![];
            data.copy_to(&mut copy).unwrap();
            assert!(data.place().unwrap().is_some() && copy == large.as_bytes());
        }
    }

    #[test]
    fn damage_is_found() {
        let content = "0123456789".repeat(100);
        let deb = executable_package(&[], &[("./usr/a.xz", Regular, &content)], &|t| t.as_bytes().to_vec());
        let place = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(place.path()).unwrap();
        shelf.unpack(&deb[..], ("p", "aa"), &|_| true).unwrap();
        let path = place.path().join(FORMAT).join("aa");
        let whole = fs::read(&path).unwrap();
        for flip in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flip] ^= 1;
            fs::write(&path, bytes).unwrap();
            let Some(unpacked) = shelf.get("aa") else { continue };
            let Kind::File(data) = &unpacked.nodes.last().unwrap().1.kind else { panic!("no file") };
            let error = data.bytes().unwrap_err().to_string();
            assert!(flip < content.len() && error.contains("is damaged"), "{flip}: {error}");
        }
        for cut in [0, 10, TAIL, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(shelf.get("aa").is_none());
        }
        // Large content is checked piece by piece.
        let large = "0".repeat(LARGE as usize + 1);
        let deb = executable_package(&[], &[("./usr/a", Regular, &large)], &|t| t.as_bytes().to_vec());
        let unpacked = shelf.unpack(&deb[..], ("p", "bb"), &|_| true).unwrap();
        let Kind::File(data) = &unpacked.nodes.last().unwrap().1.kind else { panic!("no file") };
        let file = fs::OpenOptions::new().write(true).open(place.path().join(FORMAT).join("bb")).unwrap();
        file.write_all_at(b"1", LARGE).unwrap();
        let error = data.copy_to(&mut io::sink()).unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
        // It is unpacked again in place of the damaged one.
        shelf.unpack(&deb[..], ("p", "aa"), &|_| true).unwrap();
        assert!(shelf.get("aa").is_some());
    }
}
