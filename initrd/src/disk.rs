//! The local disk that a recipe names: which one it is, and what it holds.
//!
//! ```text
//! ┌ header: root hash ┬ hash tree ┬ blocks of the root, each at its place ┬ swap, encrypted ┐
//! └──────────────── cache, under labshift.policy=disk ────────────────────┴─────────────────┘
//! ```
//!
//! The cache outlives the boot and holds nothing but public blocks of the image, in clear: it is as little believed as the network, and every
//! block that comes from it is verified before it is used. What a program writes reaches the disk as swap only, under a random key that no
//! one has but the kernel: it dies with the boot.
//!
//! A disk answers some time after its driver: one that spins up, or hangs on USB, may be seconds late. A boot that wants its blocks waits for it,
//! for a time that it says; swap comes whenever the disk does.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use labshift_model::manifest::LocalDisk;

use crate::{
    blocks::CHUNK,
    hardware,
    journal::JOURNAL,
    sys,
    verity::{BLOCK, Shape},
};

/// Bytes of the header, and the boundary on which the parts begin.
const HEADER: u64 = CHUNK;
/// Less than this is not worth being swap, in bytes.
const LEAST_SWAP: u64 = 64 << 20;
/// Name of the encrypted device.
const MAPPING: &str = "labshift-swap";
/// Bytes of a page.
const PAGE: usize = 4096;
/// How long a boot waits for a disk whose blocks it wants.
pub const CACHE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a disk for swap is looked for while the boot goes on.
pub const SWAP_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Why the disk is not used. The boot goes on without.
#[derive(Debug, thiserror::Error)]
pub enum NoDisk {
    /// Nothing fits.
    #[error("no disk of this machine is {0}")]
    None(String),
    /// More than one fits.
    #[error("{0} disks of this machine are {1}: which one is meant?")]
    Several(usize, String),
    /// It is a whole disk that holds something.
    #[error("{0} has partitions: it is left alone; name one of them in the recipe, or clear the disk")]
    Partitions(PathBuf),
    /// It is too small.
    #[error("{} has {} MiB, the image needs {} MiB there", .0.display(), .1 >> 20, .2 >> 20)]
    Small(PathBuf, u64, u64),
    /// It can't be used.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
}

/// A disk or partition that was recognised.
#[derive(Debug)]
pub struct Found {
    path: PathBuf,
    /// Bytes.
    size: u64,
}

/// Finds the one that the recipe means, when it comes within this time. `look` is called between two looks: a disk that comes late may want
/// its driver first.
pub fn wait_for(
    sysroot: &Path,
    rule: &LocalDisk,
    patience: Duration,
    mut look: impl FnMut(),
) -> Result<Found, NoDisk> {
    let begin = Instant::now();
    let mut told = false;
    loop {
        match find(sysroot, rule) {
            Err(NoDisk::None(meant)) if begin.elapsed() < patience => {
                if !std::mem::replace(&mut told, true) {
                    let seconds = patience.as_secs();
                    JOURNAL.say("disk", &format!("no disk is {meant}; looking on for up to {seconds} s"));
                }
                look();
                std::thread::sleep(LOOK);
            }
            found => return found,
        }
    }
}

/// Finds the one that the recipe means.
pub fn find(sysroot: &Path, rule: &LocalDisk) -> Result<Found, NoDisk> {
    let meant = match (&rule.partition, &rule.serial) {
        (Some(name), _) => format!("partition {name:?}"),
        (None, serial) => format!("the one with serial number {:?}", serial.as_deref().unwrap_or_default()),
    };
    let fits = |device: &Path| match (&rule.partition, &rule.serial) {
        (Some(name), _) => {
            let line = format!("PARTNAME={name}");
            fs::read_to_string(device.join("uevent")).is_ok_and(|t| t.lines().any(|l| l == line))
        }
        (None, Some(serial)) => hardware::serial_of(device) == *serial,
        (None, None) => false,
    };
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(sysroot.join("sys/class/block"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .filter(|(_, device)| fits(device))
        .collect();
    found.sort();
    let [(name, device)] = &found[..] else {
        return Err(if found.is_empty() { NoDisk::None(meant) } else { NoDisk::Several(found.len(), meant) });
    };
    let path = sysroot.join("dev").join(name);
    let is_disk = !device.join("partition").exists();
    let has_parts = fs::read_dir(device)
        .into_iter()
        .flatten()
        .flatten()
        .any(|part| part.path().join("partition").exists());
    // A disk that has just come is there a moment before its partitions are.
    if is_disk && (has_parts || has_partition_table(&path)) {
        return Err(NoDisk::Partitions(path));
    }
    let sectors = fs::read_to_string(device.join("size")).ok().and_then(|t| t.trim().parse::<u64>().ok());
    Ok(Found { path, size: sectors.unwrap_or_default().saturating_mul(512) })
}

/// An MBR, which every GPT has, too.
fn has_partition_table(disk: &Path) -> bool {
    let mut sector = [0; 512];
    let read = File::open(disk).and_then(|disk| disk.read_exact_at(&mut sector, 0));
    read.is_ok() && sector.ends_with(&[0x55, 0xaa])
}

/// Bytes of a cache for this root, header and tree included; whole chunks.
fn cache_size(shape: &Shape) -> u64 {
    (HEADER + shape.tree_size().next_multiple_of(CHUNK) + shape.data_size()).next_multiple_of(CHUNK)
}

impl Found {
    /// How people call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the cache at its beginning.
    pub fn cache(&self, shape: &Shape) -> Result<Cache, NoDisk> {
        let needed = cache_size(shape);
        if self.size < needed {
            return Err(NoDisk::Small(self.path.clone(), self.size, needed));
        }
        let file = File::options().read(true).write(true).open(&self.path);
        file.and_then(|file| Cache::open(file, shape)).map_err(|e| NoDisk::Io(self.path.clone(), e))
    }

    /// Makes encrypted swap of what the cache leaves; returns its bytes, 0 when it is too little.
    pub fn swap(&self, dev: &Path, cache: Option<&Shape>) -> Result<u64, NoDisk> {
        let from = cache.map_or(HEADER, cache_size);
        let size = self.size.saturating_sub(from) / PAGE as u64 * PAGE as u64;
        if size < LEAST_SWAP {
            return Ok(0);
        }
        self.encrypted_swap(dev, from, size).map_err(|e| NoDisk::Io(self.path.clone(), e))?;
        Ok(size)
    }

    fn encrypted_swap(&self, dev: &Path, from: u64, size: u64) -> io::Result<()> {
        let mut key = [0; 64];
        File::open(dev.join("urandom"))?.read_exact(&mut key)?;
        let mut table =
            format!("aes-xts-plain64 {} 0 {} {}", hex::encode(key), self.path.display(), from / 512)
                .into_bytes();
        key.fill(0);
        let text = std::str::from_utf8(&table).unwrap_or_default();
        let mapped = sys::create_mapping(dev, MAPPING, "crypt", size / 512, text, sys::Access::Write);
        // The kernel has the key now, nobody else needs it.
        table.fill(0);
        let mapped = mapped?;
        let device = File::options().write(true).open(&mapped)?;
        device.write_all_at(&swap_header(size), 0)?;
        device.sync_all()?;
        sys::swap_on(&mapped)
    }
}

/// The first page of a swap area (`union swap_header` of the kernel's `linux/swap.h`).
fn swap_header(size: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let last = u32::try_from(size / PAGE as u64 - 1).unwrap_or(u32::MAX);
    page[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last.to_ne_bytes());
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    page
}

/// Blocks of one root on a disk. Whatever it gives must be verified.
#[derive(Debug)]
pub struct Cache {
    file: File,
    data_from: u64,
    /// It was written for this root: anything may be there.
    warm: bool,
    /// Chunks that this boot has written.
    written: Mutex<HashSet<u64>>,
    /// It failed once: nothing more is asked of it.
    broken: AtomicBool,
}

impl Cache {
    /// Opens a cache; one of another root becomes an empty one of this root.
    pub fn open(file: File, shape: &Shape) -> io::Result<Cache> {
        let mut wanted = format!("labshift cache 1\n{}\n", shape.identity()).into_bytes();
        wanted.resize(BLOCK, 0);
        let mut found = vec![0; BLOCK];
        file.read_exact_at(&mut found, 0)?;
        let warm = found == wanted;
        if !warm {
            file.write_all_at(&wanted, 0)?;
        }
        let data_from = HEADER + shape.tree_size().next_multiple_of(CHUNK);
        Ok(Cache { file, data_from, warm, written: Mutex::default(), broken: AtomicBool::new(false) })
    }

    /// True when an earlier boot of the same root has used it.
    pub fn is_warm(&self) -> bool {
        self.warm
    }

    /// Bytes that may be a chunk of the root.
    pub fn read(&self, chunk: u64, length: usize) -> Option<Vec<u8>> {
        let known = || self.written.lock().unwrap_or_else(PoisonError::into_inner).contains(&chunk);
        (self.warm || known()).then(|| self.read_at(self.data_from + chunk * CHUNK, length)).flatten()
    }

    /// Keeps a chunk of the root that was verified.
    pub fn write(&self, chunk: u64, bytes: &[u8]) {
        if self.write_at(self.data_from + chunk * CHUNK, bytes) {
            self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(chunk);
        }
    }

    /// Chunks that this boot has written.
    pub fn written(&self) -> Vec<u64> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Waits until what was written is on the disk.
    pub fn sync(&self) {
        self.works(File::sync_data);
    }

    /// Bytes that may be the hash tree.
    pub fn read_tree(&self, length: usize) -> Option<Vec<u8>> {
        self.warm.then(|| self.read_at(HEADER, length)).flatten()
    }

    /// Keeps the hash tree.
    pub fn write_tree(&self, bytes: &[u8]) {
        self.write_at(HEADER, bytes);
    }

    fn read_at(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.works(|file| file.read_exact_at(&mut bytes, at)).then_some(bytes)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> bool {
        self.works(|file| file.write_all_at(bytes, at))
    }

    fn works(&self, act: impl FnOnce(&File) -> io::Result<()>) -> bool {
        if self.broken.load(Ordering::Relaxed) {
            return false;
        }
        let Err(why) = act(&self.file) else { return true };
        if !self.broken.swap(true, Ordering::Relaxed) {
            JOURNAL.say("disk", &format!("the cache fails, and is used no more: {why}"));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysroot(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("labshift-disk-{name}-{}", std::process::id()));
        for (file, text) in files {
            let path = dir.join("sys/class/block").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn rule(partition: Option<&str>, serial: Option<&str>) -> LocalDisk {
        LocalDisk { partition: partition.map(str::to_owned), serial: serial.map(str::to_owned) }
    }

    #[test]
    fn only_the_disk_that_is_meant_is_taken() {
        let dir = sysroot(
            "find",
            &[
                ("vda/serial", "LAB-1\n"),
                ("vda/size", "2048\n"),
                ("sda/device/vpd_pg80", "\0\u{1}\0\u{5}  WD-7 "),
                ("sda/size", "8\n"),
                ("sda/sda1/partition", "1\n"),
                ("sda1/partition", "1\n"),
                ("sda1/uevent", "DEVNAME=sda1\nPARTNAME=labshift\n"),
                ("sda1/size", "4096\n"),
                ("nvme0n1/device/serial", "TWIN \n"),
                ("nvme1n1/device/serial", "TWIN\n"),
            ],
        );
        let found = find(&dir, &rule(None, Some("LAB-1"))).unwrap();
        assert_eq!((found.path(), found.size), (&*dir.join("dev/vda"), 1 << 20));
        let found = find(&dir, &rule(Some("labshift"), None)).unwrap();
        assert_eq!((found.path(), found.size), (&*dir.join("dev/sda1"), 2 << 20));
        let said = |rule| find(&dir, &rule).unwrap_err().to_string();
        assert!(said(rule(None, Some("WD-7"))).contains("has partitions: it is left alone"));
        assert!(said(rule(None, Some("TWIN"))).contains("2 disks"));
        assert!(
            said(rule(Some("labshif"), None)).contains("no disk of this machine is partition \"labshif\"")
        );
        assert!(said(rule(None, None)).contains("no disk"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_disk_that_comes_late_is_waited_for_and_its_partitions_too() {
        let dir = sysroot("late", &[("loop0/size", "8\n")]);
        let meant = rule(None, Some("LATE"));
        // It comes while it is looked for, and brings its driver's work with it.
        let mut looks = 0;
        let found = wait_for(&dir, &meant, Duration::from_secs(900), || {
            looks += 1;
            if looks == 2 {
                sysroot("late", &[("sda/size", "2048\n"), ("sda/device/serial", "LATE\n")]);
            }
        });
        assert_eq!((looks, found.unwrap().size), (2, 1 << 20));
        // Its partitions are on it before the kernel shows them.
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        fs::create_dir_all(dir.join("dev")).unwrap();
        fs::write(dir.join("dev/sda"), &sector).unwrap();
        assert!(matches!(find(&dir, &meant), Err(NoDisk::Partitions(_))));
        sector[511] = 0;
        fs::write(dir.join("dev/sda"), &sector).unwrap();
        assert!(find(&dir, &meant).is_ok());
        let none = wait_for(&dir, &rule(None, Some("NEVER")), Duration::ZERO, || panic!("no time for that"));
        assert!(matches!(none, Err(NoDisk::None(_))));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_swap_header_is_as_mkswap_makes_it() {
        let page = swap_header(64 << 20);
        assert_eq!(
            (page.len(), &page[4086..], &page[1024..1028]),
            (4096, &b"SWAPSPACE2"[..], &[1, 0, 0, 0][..])
        );
        assert_eq!(u32::from_ne_bytes(page[1028..1032].try_into().unwrap()), 16383);
    }
}
