//! The lock: exactly which packages an image is made of. Same recipe and same lock give the same bytes.

use labshift_model::fault::nearest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{cache::Expected, resolve::Chosen};

/// The format that this version writes and reads.
pub const SCHEMA: u32 = 1;

/// A lock file (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Image name.
    pub image: String,
    /// Archives that the packages come from.
    pub archives: Vec<Archive>,
    /// What is in the image, by name.
    pub packages: Vec<Locked>,
    /// What the builder used (file system maker, boot stub), by name.
    pub tools: Vec<Locked>,
}

/// A mirror's archive of one suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Root of the mirror.
    pub mirror: String,
    /// Suite.
    pub suite: String,
    /// `Date` of the signed list.
    pub date: String,
}

/// One exact package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Source package.
    pub source: String,
    /// Index into [`Lock::archives`].
    pub archive: usize,
    /// Path below the mirror's root.
    pub filename: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// The package that brought it in; absent when the recipe names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_by: Option<String>,
}

impl Locked {
    /// Locks a chosen package.
    pub fn of(chosen: &Chosen<'_>) -> Locked {
        let package = chosen.package;
        Locked {
            name: package.name.clone(),
            version: package.version.to_string(),
            source: package.source.clone(),
            archive: package.archive,
            filename: package.filename.clone(),
            size: package.size,
            sha256: package.sha256.clone(),
            needed_by: chosen.needed_by.clone(),
        }
    }

    /// Size and hash.
    pub fn expected(&self) -> Expected {
        Expected { size: self.size, sha256: self.sha256.clone() }
    }
}

impl Lock {
    /// What a lock file holds.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads a lock file, or says why it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Lock, String> {
        let lock: Lock = serde_json::from_slice(bytes).map_err(|e| format!("it can't be read: {e}"))?;
        if lock.schema != SCHEMA {
            return Err(format!("it has schema {}, this program reads {SCHEMA}: make it anew", lock.schema));
        }
        for package in lock.packages.iter().chain(&lock.tools) {
            if package.archive >= lock.archives.len() {
                return Err(format!(
                    "package {} names archive {}, which is not there",
                    package.name, package.archive
                ));
            }
            if package.sha256.len() != 64 || !package.sha256.bytes().all(|b| b"0123456789abcdef".contains(&b))
            {
                return Err(format!("package {} has no usable SHA-256", package.name));
            }
            if package.filename.starts_with('/') || package.filename.split('/').any(|p| p == "..") {
                return Err(format!("package {} has the path {}", package.name, package.filename));
            }
        }
        Ok(lock)
    }

    /// Identity of the packages: the same whichever mirror they came from.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (part, packages) in [("image", &self.packages), ("tools", &self.tools)] {
            for p in packages {
                hash.update(format!("{part} {} {} {}\n", p.name, p.version, p.sha256));
            }
        }
        hex::encode(hash.finalize())
    }

    /// Whether it still fits a recipe: every wanted package is there.
    pub fn fits(&self, image: &str, wanted: &[String]) -> Result<(), String> {
        if self.image != image {
            return Err(format!("it is of image \"{}\", wanted \"{image}\"", self.image));
        }
        let names = || self.packages.iter().map(|p| p.name.as_str());
        match wanted.iter().find(|w| !names().any(|n| n == w.as_str())) {
            None => Ok(()),
            Some(gone) => {
                let near = nearest(gone, names()).map(|n| format!(" (it has {n})")).unwrap_or_default();
                Err(format!("it lacks package {gone}{near}, which the recipe wants: make the lock anew"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        let locked = |name: &str| Locked {
            name: name.into(),
            version: "1".into(),
            source: name.into(),
            archive: 0,
            filename: format!("pool/{name}.deb"),
            size: 1,
            sha256: "a".repeat(64),
            needed_by: None,
        };
        Lock {
            schema: SCHEMA,
            image: "lab".into(),
            archives: vec![Archive { mirror: "http://m".into(), suite: "trixie".into(), date: "d".into() }],
            packages: vec![locked("bash"), locked("dash")],
            tools: vec![locked("erofs-utils")],
        }
    }

    #[test]
    fn round_trip_and_identity() {
        let lock = lock();
        assert_eq!(Lock::from_bytes(&lock.to_bytes()), Ok(lock.clone()));
        let mut elsewhere = lock.clone();
        elsewhere.archives[0].mirror = "http://other".into();
        assert_eq!(lock.digest(), elsewhere.digest());
        elsewhere.packages[0].version = "2".into();
        assert_ne!(lock.digest(), elsewhere.digest());
    }

    #[test]
    fn refusals() {
        let lock = lock();
        assert!(lock.fits("lab", &["bash".into()]).is_ok());
        assert!(lock.fits("lab", &["bsh".into()]).unwrap_err().contains("it has bash"));
        assert!(lock.fits("other", &[]).is_err());
        for (from, to) in [("\"schema\": 1", "\"schema\": 9"), ("pool/bash", "../bash"), ("aaaa", "AAAA")] {
            let text = String::from_utf8(lock.to_bytes()).unwrap().replacen(from, to, 1);
            assert!(Lock::from_bytes(text.as_bytes()).is_err(), "{from}");
        }
    }
}
