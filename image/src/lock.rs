//! The lock: exactly which packages an image is made of. Same recipe and same lock give the same bytes.

use std::collections::BTreeMap;

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
    /// Packages that the recipe named.
    #[serde(default)]
    pub wanted: Vec<String>,
    /// Packages that it left out.
    #[serde(default)]
    pub leave_out: Vec<String>,
    /// Archives that the packages come from.
    pub archives: Vec<Archive>,
    /// What is in the image, by name.
    pub packages: Vec<Locked>,
    /// What the builder used (file system maker, boot stub), by name.
    pub tools: Vec<Locked>,
    /// What maintainer scripts find beside the image's packages, by name; absent when none are run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helpers: Option<Vec<Locked>>,
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
        for package in lock.all() {
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

    /// Every package, whatever it is for.
    pub fn all(&self) -> impl Iterator<Item = &Locked> {
        self.packages.iter().chain(&self.tools).chain(self.helpers())
    }

    /// What is there only while maintainer scripts run.
    pub fn helpers(&self) -> &[Locked] {
        self.helpers.as_deref().unwrap_or_default()
    }

    /// Identity of the packages: the same whichever mirror they came from.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (part, packages) in [("image", &self.packages), ("tools", &self.tools)] {
            for p in packages {
                hash.update(format!("{part} {} {} {}\n", p.name, p.version, p.sha256));
            }
        }
        if let Some(helpers) = &self.helpers {
            hash.update("scripts\n");
            for p in helpers {
                hash.update(format!("helper {} {} {}\n", p.name, p.version, p.sha256));
            }
        }
        hex::encode(hash.finalize())
    }

    /// Whether it still fits a recipe: it was made for these very packages.
    pub fn fits(
        &self,
        image: &str,
        wanted: &[String],
        leave_out: &[String],
        scripts: bool,
    ) -> Result<(), String> {
        if self.image != image {
            return Err(format!("it is of image \"{}\", wanted \"{image}\"", self.image));
        }
        let names = || self.packages.iter().map(|p| p.name.as_str());
        if let Some(gone) = wanted.iter().find(|w| !names().any(|n| n == w.as_str())) {
            let near = nearest(gone, names()).map(|n| format!(" (it has {n})")).unwrap_or_default();
            return Err(format!("it lacks package {gone}{near}, which the recipe wants: {RENEW}"));
        }
        let lists = [("names", &self.wanted[..], wanted), ("leaves out", &self.leave_out[..], leave_out)];
        for (verb, then, now) in lists {
            if let Some(gone) = then.iter().find(|p| !now.contains(p)) {
                return Err(format!("the recipe no longer {verb} {gone}: {RENEW}"));
            }
            if let Some(new) = now.iter().find(|p| !then.contains(p)) {
                return Err(format!("the recipe now {verb} {new}: {RENEW}"));
            }
        }
        match (self.helpers.is_some(), scripts) {
            (false, true) => Err(format!("the recipe now runs maintainer scripts: {RENEW}")),
            (true, false) => Err(format!("the recipe no longer runs maintainer scripts: {RENEW}")),
            _ => Ok(()),
        }
    }
}

const RENEW: &str = "renew it with `labshift image lock RECIPE`";

/// A package that differs between two locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Name.
    pub name: String,
    /// Version before; absent when it is new.
    pub before: Option<String>,
    /// Version after; absent when it is gone.
    pub after: Option<String>,
    /// The version is the same, the file is not.
    pub rebuilt: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(_)) if self.rebuilt => write!(f, "{} {before}, another file", self.name),
            (Some(before), Some(after)) => write!(f, "{} {before} -> {after}", self.name),
            (None, Some(after)) => write!(f, "{} {after}, new", self.name),
            (Some(before), None) => write!(f, "{} {before}, gone", self.name),
            (None, None) => f.write_str(&self.name),
        }
    }
}

/// What differs between two locks, by name; tools too.
pub fn changes(before: &Lock, after: &Lock) -> Vec<Change> {
    type Pair<'l> = (Option<&'l Locked>, Option<&'l Locked>);
    let mut pairs: BTreeMap<(usize, &str), Pair<'_>> = BTreeMap::new();
    for (part, (old, new)) in [
        (&before.packages[..], &after.packages[..]),
        (&before.tools, &after.tools),
        (before.helpers(), after.helpers()),
    ]
    .into_iter()
    .enumerate()
    {
        old.iter().for_each(|p| pairs.entry((part, &p.name)).or_default().0 = Some(p));
        new.iter().for_each(|p| pairs.entry((part, &p.name)).or_default().1 = Some(p));
    }
    let version = |p: Option<&Locked>| p.map(|p| p.version.clone());
    let mut found: Vec<Change> = pairs
        .into_iter()
        .filter(|(_, (a, b))| a.map(|p| (&p.version, &p.sha256)) != b.map(|p| (&p.version, &p.sha256)))
        .map(|((_, name), (a, b))| {
            let (before, after) = (version(a), version(b));
            Change { name: name.to_owned(), rebuilt: before == after, before, after }
        })
        .collect();
    // A library may be in the image and among the tools.
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup();
    found
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
            wanted: vec!["bash".into()],
            leave_out: vec![],
            archives: vec![Archive { mirror: "http://m".into(), suite: "trixie".into(), date: "d".into() }],
            packages: vec![locked("bash"), locked("dash")],
            helpers: None,
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
        let fits = |image: &str, wanted: &[&str], out: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
            lock.fits(image, &own(wanted), &own(out), false)
        };
        assert_eq!(fits("lab", &["bash"], &[]), Ok(()));
        let cases = [
            (fits("lab", &["bsh"], &[]), "it has bash"),
            (fits("other", &[], &[]), "it is of image \"lab\""),
            (fits("lab", &["bash", "dash"], &[]), "now names dash"),
            (fits("lab", &[], &[]), "no longer names bash"),
            (fits("lab", &["bash"], &["dash"]), "now leaves out dash"),
        ];
        for (refusal, said) in cases {
            assert!(refusal.as_ref().unwrap_err().contains(said), "{refusal:?}");
        }
        for (from, to) in [("\"schema\": 1", "\"schema\": 9"), ("pool/bash", "../bash"), ("aaaa", "AAAA")] {
            let text = String::from_utf8(lock.to_bytes()).unwrap().replacen(from, to, 1);
            assert!(Lock::from_bytes(text.as_bytes()).is_err(), "{from}");
        }
    }

    #[test]
    fn versions_are_compared() {
        let before = lock();
        let mut after = lock();
        after.packages[0].version = "2".into();
        after.packages[0].sha256 = "b".repeat(64);
        after.packages.remove(1);
        after.tools[0].sha256 = "c".repeat(64);
        let shown = |a: &Lock, b: &Lock| changes(a, b).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(&before, &after), ["bash 1 -> 2", "dash 1, gone", "erofs-utils 1, another file"]);
        assert_eq!(shown(&after, &before)[1], "dash 1, new");
        assert!(changes(&before, &before).is_empty());
    }
}
