//! `.deb` archives (deb(5)): an `ar` of `control.tar` and `data.tar`.
//!
//! Packages are verified before they come here, yet nothing of theirs is trusted further than needed: a path that
//! leaves the root, a device node or a strange entry is refused. Maintainer scripts are read, never run.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use liblzma::stream::{IGNORE_CHECK, MtStreamBuilder, Stream};

use crate::{
    data::Data,
    tree::{CAPABILITY, Kind, Node},
};

/// Where contents of files go: it gets their paths and sizes, and reads their bytes.
pub type Sink<'a> = &'a mut dyn FnMut(&str, u64, &mut dyn Read) -> io::Result<Data>;

/// Why a package's content was refused.
#[derive(Debug, thiserror::Error)]
pub enum BadPackage {
    /// The outer archive or a member can't be read.
    #[error("it can't be read: {0}")]
    Unreadable(#[from] io::Error),
    /// A member is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A path leads out of the root.
    #[error("it has the path \"{0}\", which leads out of the root; this is not a package of Debian's")]
    Escape(String),
    /// A device node, a FIFO or the like.
    #[error("it has \"{path}\" of kind {kind}; only files, directories and links are taken")]
    Special {
        /// Path.
        path: String,
        /// Kind of tar entry.
        kind: String,
    },
    /// A hard link to nothing.
    #[error("it links \"{path}\" to \"{target}\", which it does not have")]
    DanglingLink {
        /// Path.
        path: String,
        /// Target.
        target: String,
    },
    /// More than can be meant.
    #[error("it unpacks to more than {0} MiB")]
    TooLarge(u64),
}

/// An unpacked package.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Paths and nodes, in the archive's order.
    pub nodes: Vec<(String, Node)>,
    /// Files of `control.tar` by name (`postinst`, `triggers`).
    pub control: BTreeMap<String, String>,
}

/// A sink that keeps contents in memory.
pub fn in_memory(_path: &str, size: u64, from: &mut dyn Read) -> io::Result<Data> {
    whole(size, from).map(Data::new)
}

/// All bytes of a content of this size.
pub(crate) fn whole(size: u64, from: &mut dyn Read) -> io::Result<Vec<u8>> {
    // A size that is only said to be large must not take memory.
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(64 << 20));
    from.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A package unpacks to at most so much.
const LIMIT: u64 = 2 << 30;

/// Unpacks a package. Paths for which `keep` is false are passed over (directories never are); content goes to
/// `sink`.
pub fn unpack(
    package_file: impl Read,
    package: &str,
    keep: &dyn Fn(&str) -> bool,
    sink: Sink<'_>,
) -> Result<Unpacked, BadPackage> {
    let mut archive = ar::Archive::new(package_file);
    let mut unpacked = Unpacked::default();
    let (mut control, mut data) = (false, false);
    while let Some(entry) = archive.next_entry() {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(entry.header().identifier()).trim_end_matches('/').to_owned();
        if let Some(suffix) = name.strip_prefix("control.tar") {
            read_control(decompress(&mut entry, suffix)?, &mut unpacked.control)?;
            control = true;
        } else if let Some(suffix) = name.strip_prefix("data.tar") {
            unpacked.nodes = read_data(decompress(&mut entry, suffix)?, package, keep, sink)?;
            // dpkg knows no extended attributes: scripts alone set them.
            unpacked.nodes.iter_mut().for_each(|(_, node)| node.capability = None);
            data = true;
        }
    }
    match (control, data) {
        (false, _) => Err(BadPackage::Missing("control.tar")),
        (_, false) => Err(BadPackage::Missing("data.tar")),
        _ => Ok(unpacked),
    }
}

fn decompress<'r>(member: &'r mut dyn Read, suffix: &str) -> Result<Box<dyn Read + 'r>, BadPackage> {
    let reader: Box<dyn Read + 'r> = match suffix {
        "" => Box::new(member),
        ".xz" => Box::new(Xz::new(member)?),
        ".zst" => Box::new(zstd::Decoder::new(member)?),
        ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
        other => {
            return Err(io::Error::other(format!("compression \"{other}\" is not known")).into());
        }
    };
    Ok(Box::new(Limited { inner: reader, left: LIMIT }))
}

/// Large members are made of blocks that can be decoded side by side, which takes memory: one package at a time does so.
static SIDE_BY_SIDE: AtomicBool = AtomicBool::new(false);

/// A decoder of xz; the first one that is at work has several threads.
struct Xz<R: Read> {
    decoder: liblzma::read::XzDecoder<R>,
    holds: bool,
}

impl<R: Read> Xz<R> {
    fn new(member: R) -> io::Result<Xz<R>> {
        let holds = !SIDE_BY_SIDE.swap(true, Ordering::AcqRel);
        let stream = if holds {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4) as u32;
            let mut builder = MtStreamBuilder::new();
            // Past this memory (bytes) it goes on with one thread; it never fails for that reason.
            builder.threads(threads).memlimit_threading(192 << 20).memlimit_stop(u64::MAX).decoder()
        } else {
            // The whole package's SHA-256 is known to be right: its inner check sums say nothing more.
            Stream::new_stream_decoder(u64::MAX, IGNORE_CHECK)
        };
        let stream = stream.map_err(io::Error::other)?;
        Ok(Xz { decoder: liblzma::read::XzDecoder::new_stream(member, stream), holds })
    }
}

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer)
    }
}

impl<R: Read> Drop for Xz<R> {
    fn drop(&mut self) {
        if self.holds {
            SIDE_BY_SIDE.store(false, Ordering::Release);
        }
    }
}

/// Ends with an error after its limit.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(format!("it unpacks to more than {} MiB", LIMIT >> 20)))?;
        Ok(count)
    }
}

fn read_control(reader: impl Read, into: &mut BTreeMap<String, String>) -> Result<(), BadPackage> {
    for entry in tar::Archive::new(reader).entries()? {
        let mut entry = entry?;
        let path = clean(&entry.path_bytes())?;
        if entry.header().entry_type().is_file() {
            let mut bytes = vec![];
            entry.read_to_end(&mut bytes)?;
            into.insert(path, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(())
}

/// Reads a tar stream of files as packages have them.
pub(crate) fn read_data(
    reader: impl Read,
    package: &str,
    keep: &dyn Fn(&str) -> bool,
    sink: Sink<'_>,
) -> Result<Vec<(String, Node)>, BadPackage> {
    let origin: Arc<str> = package.into();
    let mut nodes: Vec<(String, Node)> = vec![];
    // Content of files by path, for hard links.
    let mut contents: BTreeMap<String, Data> = BTreeMap::new();
    for entry in tar::Archive::new(reader).entries()? {
        let mut entry = entry?;
        let path = clean(&entry.path_bytes())?;
        let kind = entry.header().entry_type();
        if path.is_empty() || (!kind.is_dir() && !keep(&path)) {
            continue;
        }
        let capability = capability_of(&mut entry)?;
        let target = entry.link_name_bytes().map(|t| String::from_utf8_lossy(&t).into_owned());
        let node_kind = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_file() {
            let data = sink(&path, entry.size(), &mut entry)?;
            contents.insert(path.clone(), data.clone());
            Kind::File(data)
        } else if kind.is_symlink() {
            let target = target.unwrap_or_default();
            if leaves_root(&path, &target) {
                return Err(BadPackage::Escape(format!("{path} -> {target}")));
            }
            Kind::Link(target)
        } else if kind.is_hard_link() {
            let target = clean(target.unwrap_or_default().as_bytes())?;
            match contents.get(&target) {
                Some(data) => Kind::File(data.clone()),
                None if !keep(&target) => continue,
                None => return Err(BadPackage::DanglingLink { path, target }),
            }
        } else {
            return Err(BadPackage::Special { path, kind: format!("{kind:?}") });
        };
        let header = entry.header();
        let number = |n: io::Result<u64>| n.map(|n| u32::try_from(n).unwrap_or(0));
        let capability = capability.filter(|_| matches!(node_kind, Kind::File(_)));
        let node = Node {
            capability,
            kind: node_kind,
            mode: header.mode()? & 0o7777,
            uid: number(header.uid())?,
            gid: number(header.gid())?,
            origin: origin.clone(),
        };
        nodes.push((path, node));
    }
    Ok(nodes)
}

/// A file's capabilities, where tar noted them.
fn capability_of(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Option<Arc<[u8]>>> {
    for attribute in entry.pax_extensions()?.into_iter().flatten() {
        let attribute = attribute?;
        if attribute.key_bytes() == CAPABILITY.as_bytes() {
            return Ok(Some(attribute.value_bytes().into()));
        }
    }
    Ok(None)
}

/// A path without its leading `./` and trailing `/`.
fn clean(raw: &[u8]) -> Result<String, BadPackage> {
    let text = String::from_utf8_lossy(raw);
    let path = text.strip_prefix("./").unwrap_or(&text).trim_end_matches('/');
    if path == "." {
        return Ok(String::new());
    }
    if text.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(BadPackage::Escape(text.into_owned()));
    }
    Ok(path.to_owned())
}

/// A relative link that climbs higher than its own depth.
fn leaves_root(path: &str, target: &str) -> bool {
    if target.starts_with('/') {
        return false;
    }
    let mut depth = path.matches('/').count() as i64;
    for part in target.split('/') {
        match part {
            ".." => depth -= 1,
            "" | "." => {}
            _ => depth += 1,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

#[cfg(test)]
#[path = "deb_tests.rs"]
pub(crate) mod tests;
