//! What the node remembers of a guest, in `record.json` of the guest's directory: enough for a daemon that was
//! killed to go on. Written before a step's effect is relied upon, read at every observation.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use labshift_model::guest::{GuestSpec, SavedState};
use serde::{Deserialize, Serialize};

use crate::domain::CONSOLE;

/// One guest's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// As of its last start.
    pub spec: GuestSpec,
    /// Saved state that it was restored from; 0 when it booted.
    pub revision: u64,
    /// It was started at least once.
    pub started: bool,
    /// Number of a save that was begun and not seen to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<u64>,
    /// Number of the save that is complete on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<u64>,
    /// The state that the store has verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<SavedState>,
    /// How often it was reset since it was started, because it said nothing.
    #[serde(default)]
    pub resets: u32,
}

/// The directory of all guests.
#[derive(Debug, Clone)]
pub struct Records {
    root: PathBuf,
}

impl Records {
    /// Guests live below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Records { root: root.into() }
    }

    /// A guest's directory.
    pub fn directory(&self, guest: &str) -> PathBuf {
        self.root.join(guest)
    }

    /// The file that a guest's memory is saved to.
    pub fn memory(&self, guest: &str, revision: u64) -> PathBuf {
        self.directory(guest).join(format!("memory-{revision}"))
    }

    /// The file with what a guest printed on its console.
    pub fn console(&self, guest: &str) -> PathBuf {
        self.directory(guest).join(CONSOLE)
    }

    /// Reads a guest's record.
    pub fn read(&self, guest: &str) -> io::Result<Record> {
        let path = self.directory(guest).join("record.json");
        let bytes = std::fs::read(&path).map_err(|e| named(&path, e))?;
        serde_json::from_slice(&bytes).map_err(|e| named(&path, e.into()))
    }

    /// Reads all records. A directory without a readable one is left over from a start that did not get far; it
    /// is not a guest.
    pub fn all(&self) -> BTreeMap<String, Record> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .filter_map(|e| e.file_name().into_string().ok())
            .filter_map(|name| Some((name.clone(), self.read(&name).ok()?)))
            .collect()
    }

    /// Writes a record, whole or not at all; only root reads it, for it holds the guest's token.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let directory = self.directory(&record.spec.name);
        std::fs::create_dir_all(&directory).map_err(|e| named(&directory, e))?;
        let path = directory.join("record.json");
        write_whole(&path, 0o600, &serde_json::to_vec_pretty(record)?)
    }

    /// Removes everything kept of a guest.
    pub fn remove(&self, guest: &str) -> io::Result<()> {
        let directory = self.directory(guest);
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(named(&directory, e)),
            _ => Ok(()),
        }
    }
}

/// Writes a file under a temporary name and renames it.
pub fn write_whole(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let write = || {
        let mut file =
            std::fs::File::options().write(true).create(true).truncate(true).mode(mode).open(&part)?;
        io::Write::write_all(&mut file, bytes)?;
        std::fs::rename(&part, path)
    };
    write().map_err(|e| named(path, e))
}

/// The error with the path it is about.
pub fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A guest's name becomes a path and a domain: nothing in it may lead elsewhere.
pub fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use labshift_model::{MacAddr, guest::Role};

    use super::*;

    #[test]
    fn records_come_back_and_rubbish_is_no_guest() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::new(root.path());
        assert!(records.all().is_empty());
        let spec = GuestSpec {
            name: "batch-1".into(),
            role: Role::Batch,
            image: "work".into(),
            generation: "01".into(),
            memory_mib: 256,
            vcpus: 1,
            disk_mib: 0,
            mac: MacAddr::for_guest("batch-1"),
            cid: 5,
            token: "t".into(),
            restore: None,
        };
        let record = Record {
            spec,
            revision: 2,
            started: true,
            saving: Some(3),
            saved: None,
            stored: None,
            resets: 0,
        };
        records.write(&record).unwrap();
        std::fs::create_dir(root.path().join("half")).unwrap();
        std::fs::write(root.path().join("half/record.json"), "{").unwrap();
        assert_eq!(records.all(), [("batch-1".to_owned(), record)].into());
        records.remove("batch-1").unwrap();
        records.remove("batch-1").unwrap();
        assert!(records.all().is_empty());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for good in ["batch-1", "a", "A_b.c"] {
            assert!(is_safe_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "-x", "a b", "a\0b", &"x".repeat(64)] {
            assert!(!is_safe_name(bad), "{bad:?}");
        }
    }
}
