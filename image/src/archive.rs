//! From mirrors to an [`Index`]: signed lists are fetched, verified and read.

use std::{fs, io::Read, path::Path};

use jiff::Timestamp;

use crate::{
    apt::Mirrors,
    cache::{Cache, Expected},
    error::{At, BuildError},
    index::Index,
    lock,
    progress::{Progress, Stage},
    release::{self, KeyRing, Release},
};

/// Which lists to read.
pub struct Wanted<'a> {
    /// Mirrors, the first that answers is used.
    pub mirrors: &'a Mirrors,
    /// Main suite; its `-updates` and `-security` are used where they exist.
    pub suite: &'a str,
    /// Components.
    pub components: &'a [String],
    /// Keys that may sign.
    pub ring: &'a KeyRing,
    /// Decides about expiry.
    pub now: Timestamp,
}

/// Verified lists of a suite: which package lists there are, by hash.
pub struct Lists {
    /// Where they come from.
    pub archives: Vec<lock::Archive>,
    /// Hashes of the package lists: what they say is known by these.
    pub hashes: Vec<String>,
    lists: Vec<List>,
}

/// One package list.
struct List {
    url: String,
    by_hash: String,
    expected: Expected,
    archive: usize,
}

impl Lists {
    /// Fetches and reads the package lists.
    pub fn read(&self, cache: &Cache) -> Result<Index, BuildError> {
        let mut index = Index::default();
        for list in &self.lists {
            // By its hash: the plain name may already mean the next version of the list.
            let packed = match cache.get(&list.by_hash, &list.expected) {
                Err(BuildError::Fetch { .. }) => cache.get(&list.url, &list.expected)?,
                other => other?,
            };
            let mut text = String::new();
            liblzma::read::XzDecoder::new(&packed[..])
                .read_to_string(&mut text)
                .at("unpacking", &list.url)?;
            let bad = |why| BuildError::Index { url: list.url.clone(), why };
            index.add(&text, list.archive).map_err(bad)?;
        }
        index.finish();
        Ok(index)
    }
}

/// Reads the signed lists of a suite. Of the main archive the first mirror that works is used; an optional suite that no
/// mirror has is a warning.
pub fn lists(cache: &Cache, wanted: &Wanted<'_>, progress: &dyn Progress) -> Result<Lists, BuildError> {
    let mut found = Lists { archives: vec![], hashes: vec![], lists: vec![] };
    let suites = [
        (wanted.suite.to_owned(), &wanted.mirrors.main, true),
        (format!("{}-updates", wanted.suite), &wanted.mirrors.main, false),
        (format!("{}-security", wanted.suite), &wanted.mirrors.security, false),
    ];
    for (suite, mirrors, needed) in suites {
        progress.stage(Stage::Index, &suite);
        let mut trouble: Option<BuildError> = None;
        let mut answer = None;
        for mirror in mirrors {
            match signed_list(cache, mirror, &suite, wanted) {
                Ok(Some(release)) => {
                    answer = Some((mirror, release));
                    break;
                }
                Ok(None) => {}
                // A list that lies is never passed over in silence.
                Err(e @ BuildError::Untrusted { .. }) => return Err(e),
                Err(e) => trouble = Some(e),
            }
        }
        let Some((mirror, release)) = answer else {
            if needed {
                return Err(trouble.unwrap_or_else(|| BuildError::Fetch {
                    url: format!("{}/dists/{suite}/InRelease", mirrors.first().map_or("", String::as_str)),
                    reason: "the mirror has no such suite; check \"suite\" in the recipe".to_owned(),
                }));
            }
            let why = trouble.map_or("no mirror has it".to_owned(), |e| e.to_string());
            progress.warning(&format!("suite {suite} is not used: {why}"));
            continue;
        };
        for component in wanted.components {
            let name = format!("{component}/binary-amd64/Packages.xz");
            let url = format!("{mirror}/dists/{suite}/{name}");
            let Some(expected) = release.files.get(&name).cloned() else {
                return Err(BuildError::Fetch { url, reason: "the signed list does not name it".to_owned() });
            };
            let by_hash =
                format!("{mirror}/dists/{suite}/{component}/binary-amd64/by-hash/SHA256/{}", expected.sha256);
            found.hashes.push(expected.sha256.clone());
            found.lists.push(List { url, by_hash, expected, archive: found.archives.len() });
        }
        found.archives.push(lock::Archive { mirror: mirror.clone(), suite, date: release.date });
    }
    Ok(found)
}

fn signed_list(
    cache: &Cache,
    mirror: &str,
    suite: &str,
    wanted: &Wanted<'_>,
) -> Result<Option<Release>, BuildError> {
    let url = format!("{mirror}/dists/{suite}/InRelease");
    let Some(bytes) = cache.small(&url)? else { return Ok(None) };
    let verified = release::verify(&bytes, wanted.ring, suite, wanted.now);
    verified.map(Some).map_err(|reason| BuildError::Untrusted { url, reason })
}

/// The key ring that Debian's lists must be signed by: `named`, else what the machine has of Debian's.
pub fn key_ring(named: Option<&Path>) -> Result<KeyRing, BuildError> {
    let directory = Path::new("/usr/share/keyrings");
    let files = match named {
        Some(path) => vec![path.to_owned()],
        None => {
            let mut files: Vec<_> = fs::read_dir(directory)
                .map(|entries| entries.flatten().map(|e| e.path()).collect())
                .unwrap_or_default();
            files.retain(|f| {
                let name = f.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                name.starts_with("debian-archive-")
                    && !name.contains("removed")
                    && [".gpg", ".pgp", ".asc"].iter().any(|e| name.ends_with(e))
            });
            files.sort();
            files
        }
    };
    let mut ring = KeyRing::parse(&directory.display().to_string(), b"");
    for file in &files {
        let bytes = fs::read(file).at("reading the key ring", file)?;
        ring.join(KeyRing::parse("", &bytes));
    }
    if let Some(path) = named {
        ring.name = path.display().to_string();
    }
    if ring.is_empty() {
        let path = named.unwrap_or(directory).to_owned();
        let reason =
            "it has no OpenPGP keys; install debian-archive-keyring, or name a key ring with --keyring";
        return Err(BuildError::Key { path, reason: reason.to_owned() });
    }
    Ok(ring)
}
