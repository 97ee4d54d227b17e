//! Content of files. Small ones stay in memory; larger ones lie in a file, so that a build's memory does not grow with its
//! image. What is larger than [`LARGE`] is never in memory as a whole.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufReader, Read, Write},
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
const SMALL: u64 = 2048;

/// What is larger than this (bytes) is only read piece by piece.
pub const LARGE: u64 = 8 << 20;

/// Bytes of such a piece.
const PIECE: usize = 256 << 10;

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

    /// The file where large content lies as it is, and at which byte; `None` for what [`Data::bytes`] is for.
    pub fn place(&self) -> io::Result<Option<(Arc<File>, u64)>> {
        match &self.place {
            _ if self.size <= LARGE => Ok(None),
            Place::Spooled { file, at } => Ok(Some((file.clone(), *at))),
            Place::Stored { file, at, packed: false, .. } => Ok(Some((Arc::new(File::open(file)?), *at))),
            _ => Ok(None),
        }
    }

    /// The bytes of large content, to be read piece by piece; `None` for what [`Data::bytes`] is for.
    pub fn pieces(&self) -> io::Result<Option<impl Read>> {
        let Some((file, at)) = self.place()? else { return Ok(None) };
        let wanted = match &self.place {
            Place::Stored { file, .. } => Some((self.sha256, file.clone())),
            _ => None,
        };
        let pieces = Pieces { file, at, left: self.size, hash: Sha256::new(), wanted };
        Ok(Some(BufReader::with_capacity(PIECE, pieces)))
    }

    /// Gives the bytes to `out`.
    pub fn copy_to(&self, out: &mut impl Write) -> io::Result<()> {
        match self.pieces()? {
            Some(mut pieces) => io::copy(&mut pieces, out).map(drop),
            None => out.write_all(&self.bytes()?),
        }
    }

    /// The bytes. Content of a packed layer has none.
    pub fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        match &self.place {
            Place::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            Place::Spooled { file, at } => {
                let mut bytes = vec![0; usize::try_from(self.size).map_err(io::Error::other)?];
                file.read_exact_at(&mut bytes, *at)?;
                Ok(Cow::Owned(bytes))
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
                    return Err(damaged(file));
                }
                Ok(Cow::Owned(bytes))
            }
            Place::Packed => Err(io::Error::other("its content is in a packed layer")),
        }
    }
}

fn damaged(file: &Path) -> io::Error {
    io::Error::other(format!("{} is damaged; remove it, and build again", file.display()))
}

/// A part of a file. Its last piece comes only if the whole has the hash that is wanted.
struct Pieces {
    file: Arc<File>,
    at: u64,
    left: u64,
    hash: Sha256,
    wanted: Option<([u8; 32], Arc<Path>)>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(buffer.len()).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        if let Some((sha256, file)) = &self.wanted {
            self.hash.update(&buffer[..count]);
            if self.left == 0 && count > 0 && self.hash.finalize_reset()[..] != sha256[..] {
                return Err(damaged(file));
            }
        }
        Ok(count)
    }
}

/// Moves large content of a size from one place to another, piece by piece, and returns what is to be known of it.
pub(crate) fn hashed(
    size: u64,
    from: &mut dyn Read,
    mut to: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<(u64, [u8; 32], [u8; 20])> {
    let (mut sha256, mut sha1, mut piece, mut left) = (Sha256::new(), Sha1::new(), vec![0; PIECE], size);
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        from.read_exact(&mut piece[..count])?;
        sha256.update(&piece[..count]);
        sha1.update(&piece[..count]);
        to(&piece[..count])?;
        left -= count as u64;
    }
    Ok((size, sha256.finalize().into(), sha1.finalize().into()))
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

    /// Keeps content of this size.
    pub fn keep(&self, size: u64, from: &mut dyn Read) -> io::Result<Data> {
        if size <= SMALL {
            let mut bytes = vec![];
            from.read_to_end(&mut bytes)?;
            return Ok(Data::new(bytes));
        }
        let at = self.end.fetch_add(size, Ordering::Relaxed);
        let mut next = at;
        let (size, sha256, sha1) = hashed(size, from, |piece| {
            self.file.write_all_at(piece, next)?;
            next += piece.len() as u64;
            Ok(())
        })?;
        Ok(Data { size, sha256, sha1, place: Place::Spooled { file: self.file.clone(), at } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_wherever_it_lies() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::on_disk_of(directory.path()).unwrap();
        for size in [0, SMALL, SMALL + 1, 100_000, LARGE, LARGE + 1, LARGE + PIECE as u64] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 31) as u8).collect();
            let data = spool.keep(size, &mut &bytes[..]).unwrap();
            assert_eq!(data, Data::new(bytes.clone()));
            assert_eq!(data.bytes().unwrap()[..], bytes[..]);
            let mut copy = vec![];
            data.copy_to(&mut copy).unwrap();
            assert!(copy == bytes);
            assert_eq!(data.place().unwrap().is_some(), size > LARGE);
        }
        assert!(spool.keep(10_000, &mut &[0; 9_999][..]).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(Data::packed(1, [0; 32], [0; 20]).bytes().is_err());
    }
}
