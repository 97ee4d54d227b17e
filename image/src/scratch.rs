//! Directories that one process works in, and that nobody misses when it dies.
//!
//! A scratch directory is locked (flock(2) on the directory itself) for as long as its process lives; the kernel gives
//! the lock up however the process ends. Whoever opens the place next removes what nobody holds. The lock is on the
//! directory and not on a file in it: it stays with the directory when that is renamed into its final place.

use std::{fs, io, path::Path, path::PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{At, BuildError};

/// A locked directory; gone when it is dropped, unless it was moved away before.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl Scratch {
    /// A fresh directory `PREFIX-...` in `place`.
    pub fn new(place: &Path, prefix: &str) -> Result<Scratch, BuildError> {
        // Nobody sweeps between making and locking.
        let _held = lock(place, FlockArg::LockExclusive).at("locking", place)?;
        let path = tempfile::Builder::new()
            .prefix(&format!("{prefix}-"))
            .tempdir_in(place)
            .at("making a directory in", place)?
            .keep();
        let lock = lock(&path, FlockArg::LockExclusiveNonblock).at("locking", &path)?;
        Ok(Scratch { path, _lock: lock })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Absent when it was moved; what can't be removed now, the next sweep removes.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes everything in `place` that no living process holds.
pub fn sweep(place: &Path) -> Result<(), BuildError> {
    let _held = lock(place, FlockArg::LockExclusive).at("locking", place)?;
    for entry in fs::read_dir(place).at("reading", place)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if lock(&path, FlockArg::LockExclusiveNonblock).is_ok() {
                let _ = fs::remove_dir_all(&path);
            }
        } else {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Locks a file or directory until the value is dropped.
pub fn lock(path: &Path, how: FlockArg) -> io::Result<Flock<fs::File>> {
    Flock::lock(fs::File::open(path)?, how).map_err(|(_, errno)| errno.into())
}

/// Writes a file whole or not at all: nobody, and no crash, sees half of it. An existing file is replaced, unless
/// `fresh` asks for a new one (then [`io::ErrorKind::AlreadyExists`]).
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32, fresh: bool) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::PermissionsExt};
    let place = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(place)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    if fresh { file.persist_noclobber(path) } else { file.persist(path) }.map_err(|e| e.error)?;
    fs::File::open(place)?.sync_all()
}

/// Writes a file that everybody may read, whole or not at all.
pub fn write_whole_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let place = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    write_whole(&place.join(path.file_name().unwrap_or_default()), bytes, 0o644, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_swept_and_the_living_stay() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("dead")).unwrap();
        fs::write(place.path().join("file"), "x").unwrap();
        let living = Scratch::new(place.path(), "lab").unwrap();
        fs::write(living.path().join("inside"), "x").unwrap();
        sweep(place.path()).unwrap();
        assert!(living.path().join("inside").exists());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        drop(living);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_fresh_file_replaces_nothing() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("key");
        write_whole(&path, b"one", 0o600, true).unwrap();
        let kind = write_whole(&path, b"two", 0o600, true).unwrap_err().kind();
        assert_eq!((kind, fs::read(&path).unwrap()), (io::ErrorKind::AlreadyExists, b"one".to_vec()));
        write_whole(&path, b"two", 0o644, false).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
