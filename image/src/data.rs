//! Content of files. Small ones stay in memory; larger ones lie in a file that has no name, so that a build's memory
//! does not grow with its image and nothing is left of it when it dies.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What is at most this large (bytes) stays in memory.
const SMALL: usize = 2048;

/// A file's content, or what is known of it.
#[derive(Debug, Clone)]
pub struct Data {
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: [u8; 32],
    /// SHA-1, which SPDX demands of every file.
    pub sha1: [u8; 20],
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Memory(Arc<[u8]>),
    Spooled {
        file: Arc<File>,
        at: u64,
    },
    /// In a file of the cache: read, and verified, each time.
    Stored {
        file: Arc<Path>,
        at: u64,
        length: usize,
        packed: bool,
    },
    /// In a packed layer: not at hand any more.
    Packed,
}

impl PartialEq for Data {
    fn eq(&self, other: &Data) -> bool {
        (self.size, self.sha256) == (other.size, other.sha256)
    }
}

impl Eq for Data {}

impl Data {
    /// Content that stays in memory.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Data {
        let bytes = bytes.into();
        let (sha256, sha1) = (Sha256::digest(&bytes).into(), Sha1::digest(&bytes).into());
        Data { size: bytes.len() as u64, sha256, sha1, place: Place::Memory(bytes) }
    }

    /// Where stored content lies in its file: at which byte, how many bytes, whether packed.
    pub fn lies(&self) -> Option<(u64, usize, bool)> {
        match self.place {
            Place::Stored { at, length, packed, .. } => Some((at, length, packed)),
            _ => None,
        }
    }

    /// Content of which only the hashes are known.
    pub fn packed(size: u64, sha256: [u8; 32], sha1: [u8; 20]) -> Data {
        Data { size, sha256, sha1, place: Place::Packed }
    }

    /// Content that lies in a file of the cache from byte `at` on, `length` bytes long, packed with zstd or plain.
    pub fn stored(
        (size, sha256, sha1): (u64, [u8; 32], [u8; 20]),
        file: Arc<Path>,
        (at, length, packed): (u64, usize, bool),
    ) -> Data {
        Data { size, sha256, sha1, place: Place::Stored { file, at, length, packed } }
    }

    /// The bytes. Content of a packed layer has none.
    pub fn bytes(&self) -> io::Result<Arc<[u8]>> {
        match &self.place {
            Place::Memory(bytes) => Ok(bytes.clone()),
            Place::Spooled { file, at } => {
                let mut bytes = vec![0; usize::try_from(self.size).map_err(io::Error::other)?];
                file.read_exact_at(&mut bytes, *at)?;
                Ok(bytes.into())
            }
            Place::Stored { file, at, length, packed } => {
                let mut bytes = vec![0; *length];
                File::open(file)?.read_exact_at(&mut bytes, *at)?;
                if *packed {
                    bytes = zstd::bulk::decompress(
                        &bytes,
                        usize::try_from(self.size).map_err(io::Error::other)?,
                    )?;
                }
                if self.sha256[..] != Sha256::digest(&bytes)[..] {
                    let file = file.display();
                    return Err(io::Error::other(format!("{file} is damaged; remove it, and build again")));
                }
                Ok(bytes.into())
            }
            Place::Packed => Err(io::Error::other("its content is in a packed layer")),
        }
    }
}

/// Where content goes that is too large for memory.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    end: AtomicU64,
}

impl Spool {
    /// A file without a name on the disk of `directory`.
    pub fn on_disk_of(directory: &Path) -> io::Result<Spool> {
        let file = tempfile::tempfile_in(directory)?;
        Ok(Spool { file: Arc::new(file), end: AtomicU64::new(0) })
    }

    /// Keeps content.
    pub fn keep(&self, bytes: Vec<u8>) -> io::Result<Data> {
        if bytes.len() <= SMALL {
            return Ok(Data::new(bytes));
        }
        let at = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(&bytes, at)?;
        let (sha256, sha1) = (Sha256::digest(&bytes).into(), Sha1::digest(&bytes).into());
        let place = Place::Spooled { file: self.file.clone(), at };
        Ok(Data { size: bytes.len() as u64, sha256, sha1, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_wherever_it_lies() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::on_disk_of(directory.path()).unwrap();
        for size in [0, SMALL, SMALL + 1, 100_000] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 31) as u8).collect();
            let data = spool.keep(bytes.clone()).unwrap();
            assert_eq!(data, Data::new(bytes.clone()));
            assert_eq!(data.bytes().unwrap()[..], bytes[..]);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(Data::packed(1, [0; 32], [0; 20]).bytes().is_err());
    }
}
