//! Saved guests in the state directory: `saved/GUEST/REVISION/{memory,disk}`.
//!
//! A file is written under a temporary name, hashed on the way, made durable, then renamed. What a broken connection
//! leaves behind is removed, at the latest when the server starts again.

use std::{
    io,
    path::{Path, PathBuf},
};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt;
use labshift_model::manifest::FileEntry;
use sha2::{Digest, Sha256};
use tokio::{
    fs,
    io::{AsyncReadExt, AsyncWriteExt},
};

/// How a temporary file's name ends.
const TEMPORARY: &str = ".part";

/// The parts of a saved guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// libvirt save image.
    Memory,
    /// qcow2 overlay.
    Disk,
}

impl Part {
    /// From its name in the URL.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "memory" => Some(Part::Memory),
            "disk" => Some(Part::Disk),
            _ => None,
        }
    }

    /// Its name in URLs, files and the registry.
    pub fn name(self) -> &'static str {
        match self {
            Part::Memory => "memory",
            Part::Disk => "disk",
        }
    }
}

/// An upload was not kept.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The sender stopped before the end.
    #[error("the connection broke after {0} bytes; nothing was kept")]
    Broken(u64),
    /// More than the guest can have.
    #[error("more than {0} bytes, which is more than this guest's template allows")]
    TooLarge(u64),
    /// The store's disk.
    #[error("writing {path}: {source}")]
    Disk {
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn directory(state: &Path, guest: &str, revision: u64) -> PathBuf {
    state.join("saved").join(guest).join(revision.to_string())
}

/// Where a part lies.
pub fn file(state: &Path, guest: &str, revision: u64, part: Part) -> PathBuf {
    directory(state, guest, revision).join(part.name())
}

/// Writes a part and answers with what was written. It is durable when this returns.
pub async fn write(
    state: &Path,
    guest: &str,
    revision: u64,
    part: Part,
    limit: u64,
    body: BodyDataStream,
) -> Result<FileEntry, UploadError> {
    let dir = directory(state, guest, revision);
    let path = file(state, guest, revision, part);
    let temporary = dir.join(format!("{}-{}{TEMPORARY}", part.name(), &crate::keys::random_token()[..16]));
    let failed = |source| UploadError::Disk { path: path.clone(), source };
    fs::create_dir_all(&dir).await.map_err(failed)?;
    // Dropped with this future too: a sender that goes away leaves nothing.
    let guard = Remove(temporary.clone());
    let entry = receive(&temporary, limit, body, &path).await?;
    fs::rename(&temporary, &path).await.map_err(failed)?;
    std::mem::forget(guard);
    // The new names must survive a power failure as well: the file's, the revision's, the guest's.
    for dir in path.ancestors().skip(1).take(4) {
        fs::File::open(dir).await.map_err(failed)?.sync_all().await.map_err(failed)?;
    }
    Ok(entry)
}

async fn receive(
    temporary: &Path,
    limit: u64,
    mut body: BodyDataStream,
    path: &Path,
) -> Result<FileEntry, UploadError> {
    let failed = |source| UploadError::Disk { path: path.to_owned(), source };
    let mut file = fs::File::create_new(temporary).await.map_err(failed)?;
    let mut digest = Sha256::new();
    let mut size = 0_u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| UploadError::Broken(size))?;
        size += chunk.len() as u64;
        if size > limit {
            return Err(UploadError::TooLarge(limit));
        }
        digest.update(&chunk);
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    Ok(FileEntry { size, sha256: hex::encode(digest.finalize()) })
}

/// Removes a file when it is dropped.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens a part for sending: its size and its bytes.
pub async fn read(path: &Path) -> io::Result<(u64, Body)> {
    let file = fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    let stream = futures_util::stream::try_unfold(file, |mut file| async move {
        let mut chunk = Vec::with_capacity(1 << 20);
        let read = (&mut file).take(1 << 20).read_to_end(&mut chunk).await?;
        io::Result::Ok((read > 0).then(|| (Bytes::from(chunk), file)))
    });
    Ok((size, Body::from_stream(stream)))
}

/// Removes temporary files that an earlier server left.
pub fn sweep(state: &Path) -> io::Result<()> {
    let list = |dir: &Path| match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>(),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(vec![]),
        Err(e) => Err(e),
    };
    for guest in list(&state.join("saved"))? {
        for revision in list(&guest)? {
            for file in list(&revision)? {
                if file.to_string_lossy().ends_with(TEMPORARY) {
                    tracing::info!(file = %file.display(), "removing an upload that was not completed");
                    std::fs::remove_file(&file)?;
                }
            }
        }
    }
    Ok(())
}

/// Removes a guest's revisions before `keep`.
pub async fn prune(state: &Path, guest: &str, keep: u64) -> io::Result<()> {
    let mut entries = match fs::read_dir(state.join("saved").join(guest)).await {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    while let Some(entry) = entries.next_entry().await? {
        let old = entry.file_name().to_str().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n < keep);
        if old {
            fs::remove_dir_all(entry.path()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn written_hashed_read_and_pruned() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path();
        for revision in 1..=3 {
            let body = Body::from("hello").into_data_stream();
            let entry = write(state, "primes", revision, Part::Memory, 5, body).await.expect("written");
            assert_eq!(entry, FileEntry { size: 5, sha256: hex::encode(Sha256::digest("hello")) });
        }
        let (size, body) = read(&file(state, "primes", 3, Part::Memory)).await.expect("there");
        let bytes = axum::body::to_bytes(body, 100).await.expect("read");
        assert_eq!((size, &bytes[..]), (5, &b"hello"[..]));
        prune(state, "primes", 3).await.expect("pruned");
        assert!(!directory(state, "primes", 2).exists() && directory(state, "primes", 3).exists());
    }

    #[tokio::test]
    async fn what_is_too_large_or_broken_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let body = Body::from("hello").into_data_stream();
        let error = write(dir.path(), "primes", 1, Part::Disk, 4, body).await.expect_err("too large");
        assert!(matches!(error, UploadError::TooLarge(4)));
        let chunks = [Ok(Bytes::from("he")), Err(io::Error::other("cut"))];
        let body = Body::from_stream(futures_util::stream::iter(chunks)).into_data_stream();
        let error = write(dir.path(), "primes", 1, Part::Disk, 9, body).await.expect_err("cut");
        assert!(matches!(error, UploadError::Broken(2)));
        assert_eq!(std::fs::read_dir(directory(dir.path(), "primes", 1)).expect("there").count(), 0);
    }

    #[test]
    fn leftovers_are_swept_and_saved_guests_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let saved = directory(dir.path(), "primes", 7);
        std::fs::create_dir_all(&saved).expect("made");
        for name in ["memory", "memory-0123.part"] {
            std::fs::write(saved.join(name), "x").expect("written");
        }
        sweep(dir.path()).expect("swept");
        assert!(saved.join("memory").exists() && !saved.join("memory-0123.part").exists());
        sweep(&dir.path().join("nowhere")).expect("nothing to do");
    }
}
