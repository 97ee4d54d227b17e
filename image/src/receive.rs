//! Images that another host pushes into this store: offered by their signed manifest, sent file by file, published whole.
//!
//! ```text
//! STORE/keys/trusted              public keys of other stores whose images are taken, one in hex a line
//! STORE/incoming/GENERATION/      what has come of a generation; files under their final names are whole and verified
//! ```
//!
//! Nothing is written before the manifest's signature is known to be right, and nothing is published before every file has
//! the hash that the manifest says. A push that breaks off is gone on with by the next one; what nobody goes on with for a day
//! goes.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;
use labshift_model::{
    manifest::{FileEntry, Manifest, Signature},
    paths,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    build::{entries, entry_of, write},
    error::{At, BuildError},
    scratch,
    store::{Published, Store},
};

/// How long half of an image is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// An image that somebody wants to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The manifest's exact bytes.
    pub manifest: String,
    /// Its signature.
    pub signature: Signature,
}

/// What is still to be sent of an offered image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// Names of files.
    pub missing: Vec<String>,
    /// Public key that the server signs boot answers with.
    pub server: String,
}

/// Where an image is to be pointed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Channel.
    pub channel: String,
}

/// A name that is only a name: it leads nowhere else.
fn is_plain(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(fine)
}

fn is_generation(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn refused(name: &str, reason: impl Into<String>) -> BuildError {
    BuildError::Refused { name: name.to_owned(), reason: reason.into() }
}

const IMPOSSIBLE: &str = "it has no name and generation that an image can have";

fn place(store: &Store, name: &str, generation: &str) -> Result<PathBuf, BuildError> {
    if !is_plain(name) || !is_generation(generation) {
        return Err(refused(name, IMPOSSIBLE));
    }
    Ok(store.directory().join("incoming").join(generation))
}

/// The manifest of an offer, if a trusted key signed it and its names are names. Nothing is read or written.
pub fn checked(
    (name, generation): (&str, &str),
    offer: &Offer,
    trusted: &[VerifyingKey],
) -> Result<Manifest, BuildError> {
    if !is_plain(name) || !is_generation(generation) {
        return Err(refused(name, IMPOSSIBLE));
    }
    let manifest =
        Manifest::verify(offer.manifest.as_bytes(), &offer.signature, trusted, Some(generation))
            .map_err(|e| refused(name, format!("{e} (keys of other stores are listed in keys/trusted)")))?;
    let odd = |file: &String| !is_plain(file) || [paths::MANIFEST, paths::SIGNATURE].contains(&file.as_str());
    if manifest.name != name || manifest.files.keys().any(odd) {
        return Err(refused(name, "its manifest names another image, or files that can't be"));
    }
    Ok(manifest)
}

/// Checks an offer and says what is missing. Content that another generation of the image has is taken from there.
pub fn offer(
    store: &Store,
    (name, generation): (&str, &str),
    offer: &Offer,
) -> Result<Vec<String>, BuildError> {
    let directory = place(store, name, generation)?;
    let bytes = offer.manifest.as_bytes();
    let manifest = checked((name, generation), offer, &store.trusted()?)?;
    if store.is_there(name, generation) {
        let path = store.generation(name, generation).join(paths::SIGNATURE);
        let there = fs::read(&path).ok().and_then(|s| serde_json::from_slice::<Signature>(&s).ok());
        // The same image, signed later.
        if there.is_none_or(|there| there.signed < offer.signature.signed) {
            let text = serde_json::to_vec_pretty(&offer.signature).unwrap_or_default();
            scratch::write_whole(&path, &text, 0o644, false).at("writing", &path)?;
        }
        return Ok(vec![]);
    }
    forget(&store.directory().join("incoming"));
    fs::create_dir_all(&directory).at("making", &directory)?;
    write(&directory, paths::SIGNATURE, &serde_json::to_vec_pretty(&offer.signature).unwrap_or_default())?;
    write(&directory, paths::MANIFEST, bytes)?;
    let mut missing = vec![];
    for (file, entry) in &manifest.files {
        let path = directory.join(file);
        if !path.is_file() && !taken_over(store, name, entry, &path) {
            missing.push(file.clone());
        }
    }
    Ok(missing)
}

/// Links a file that a generation of the same image has already.
fn taken_over(store: &Store, name: &str, wanted: &FileEntry, to: &Path) -> bool {
    store.generations(name).iter().any(|generation| {
        let directory = store.generation(name, generation);
        let manifest = fs::read(directory.join(paths::MANIFEST)).ok();
        let Some(manifest) = manifest.and_then(|bytes| Manifest::from_bytes(&bytes).ok()) else {
            return false;
        };
        let same = manifest.files.iter().find(|(_, entry)| *entry == wanted);
        same.is_some_and(|(file, _)| {
            let from = directory.join(file);
            entry_of(&from).is_ok_and(|found| found == *wanted) && fs::hard_link(&from, to).is_ok()
        })
    })
}

fn offered(directory: &Path, name: &str) -> Result<Manifest, BuildError> {
    let absent = || refused(name, "it was not offered, or that is too long ago: push it again");
    let bytes = fs::read(directory.join(paths::MANIFEST)).map_err(|_| absent())?;
    Manifest::from_bytes(&bytes).map_err(|_| absent())
}

/// A file of an offered image, as it comes.
pub struct Incoming {
    file: tempfile::NamedTempFile,
    hash: Sha256,
    size: u64,
    wanted: FileEntry,
    path: PathBuf,
    shown: String,
}

impl Incoming {
    /// Begins a file.
    pub fn begin(
        store: &Store,
        (name, generation): (&str, &str),
        file: &str,
    ) -> Result<Incoming, BuildError> {
        let directory = place(store, name, generation)?;
        let manifest = offered(&directory, name)?;
        let wanted = manifest.files.get(file).cloned();
        let wanted = wanted.ok_or_else(|| refused(name, format!("its manifest names no file \"{file}\"")))?;
        let fresh = tempfile::NamedTempFile::new_in(&directory).at("writing in", &directory)?;
        let (path, shown) = (directory.join(file), format!("{name}, {file}"));
        Ok(Incoming { file: fresh, hash: Sha256::new(), size: 0, wanted, path, shown })
    }

    /// More of it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.size += bytes.len() as u64;
        if self.size > self.wanted.size {
            return Err(refused(
                &self.shown,
                format!("more than the {} bytes of its manifest came", self.wanted.size),
            ));
        }
        self.hash.update(bytes);
        self.file.write_all(bytes).at("writing", &self.path)
    }

    /// The end: it is kept when it is what the manifest says.
    pub fn finish(self) -> Result<(), BuildError> {
        let found = FileEntry { size: self.size, sha256: hex::encode(self.hash.finalize()) };
        if found != self.wanted {
            let reason = format!(
                "{} bytes with SHA-256 {} came, its manifest says {} bytes with {}",
                found.size, found.sha256, self.wanted.size, self.wanted.sha256
            );
            return Err(refused(&self.shown, reason));
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        self.file.as_file().set_permissions(mode).at("writing", &self.path)?;
        self.file.persist(&self.path).map_err(|e| e.error).at("writing", &self.path)?;
        Ok(())
    }
}

/// Publishes an image of which everything has come, and points a channel to it.
pub fn publish(
    store: &Store,
    (name, generation): (&str, &str),
    channel: &str,
    now: Timestamp,
) -> Result<Published, BuildError> {
    let directory = place(store, name, generation)?;
    if store.is_there(name, generation) {
        store.set_channel(name, channel, generation, now)?;
        return Ok(Published::AlreadyThere);
    }
    let manifest = offered(&directory, name)?;
    let work = store.workplace(name)?;
    for file in manifest.files.keys().map(String::as_str).chain([paths::MANIFEST, paths::SIGNATURE]) {
        let (from, to) = (directory.join(file), work.path().join(file));
        fs::hard_link(&from, &to)
            .map_err(|_| refused(name, format!("{file} has not come yet: push it again")))?;
    }
    if entries(work.path(), &[])? != manifest.files {
        let _ = fs::remove_dir_all(&directory);
        return Err(refused(name, "what came is not what its manifest says: push it again"));
    }
    let published = store.publish(work, (name, generation), channel, now)?;
    let _ = fs::remove_dir_all(&directory);
    Ok(published)
}

/// Removes halves of images that nobody went on with.
fn forget(incoming: &Path) {
    for entry in fs::read_dir(incoming).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > KEPT) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// What another store's key is trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// Images that it signed are taken.
    Images,
    /// Images that are built here from now on believe boot answers that it signed.
    Answers,
}

/// Trusts another store's key, a line of a trusted-keys file.
pub fn trust(store: &Store, line: &str, with: With) -> Result<(), BuildError> {
    let path = store.directory().join(match with {
        With::Images => "keys/trusted",
        With::Answers => "keys/servers",
    });
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    if !text.lines().any(|known| known.trim() == line.trim()) {
        text += &format!("{}\n", line.trim());
        scratch::write_whole(&path, text.as_bytes(), 0o644, false).at("writing", &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build,
        channel::STABLE,
        inspect,
        progress::Silent,
        world::{RECIPE, World},
    };

    /// A built image, and another store that trusts its key.
    fn stores() -> (World, Store, Offer, String, Store) {
        let world = World::new();
        let built = build(&world.options(), &Silent).unwrap();
        let offer = offer_of(&built.directory);
        let ours = Store::open(&world.path("store")).unwrap();
        let theirs = Store::open(&world.path("theirs")).unwrap();
        (world, ours, offer, built.generation, theirs)
    }

    fn offer_of(directory: &Path) -> Offer {
        let read = |file: &str| fs::read(directory.join(file)).unwrap();
        let signature = serde_json::from_slice(&read(paths::SIGNATURE)).unwrap();
        Offer { manifest: String::from_utf8(read(paths::MANIFEST)).unwrap(), signature }
    }

    fn send(store: &Store, at: (&str, &str), from: &Path, file: &str) -> Result<(), BuildError> {
        let mut incoming = Incoming::begin(store, at, file)?;
        incoming.write(&fs::read(from.join(file)).unwrap())?;
        incoming.finish()
    }

    #[test]
    fn only_what_a_trusted_key_signed_is_taken() {
        let (_world, ours, good, generation, theirs) = stores();
        let at = ("tiny", generation.as_str());
        let fail = |at: (&str, &str), offered: &Offer| offer(&theirs, at, offered).unwrap_err().to_string();
        assert!(fail(at, &good).contains("does not trust"));
        trust(&theirs, &fs::read_to_string(ours.directory().join("keys/signing.pub")).unwrap(), With::Images)
            .unwrap();
        assert!(fail(("other", at.1), &good).contains("another image"));
        assert!(fail(("../up", at.1), &good).contains("no name and generation"));
        assert!(fail((at.0, "ab"), &good).contains("no name and generation"));
        assert!(fail((at.0, &"ab".repeat(32)), &good).contains("manifest is generation"));
        let mut changed = good.clone();
        changed.manifest = changed.manifest.replace("tiny", "tinY");
        assert!(fail(at, &changed).contains("signature does not match"));
        assert!(!theirs.directory().join("incoming").exists(), "something was written");
        assert_eq!(
            offer(&theirs, at, &good).unwrap().len(),
            Manifest::from_bytes(good.manifest.as_bytes()).unwrap().files.len()
        );
    }

    #[test]
    fn a_push_that_broke_off_is_gone_on_with_and_wrong_bytes_are_refused() {
        let (world, ours, good, generation, theirs) = stores();
        trust(&theirs, &fs::read_to_string(ours.directory().join("keys/signing.pub")).unwrap(), With::Images)
            .unwrap();
        let (at, from) = (("tiny", generation.as_str()), ours.generation("tiny", &generation));
        let all = offer(&theirs, at, &good).unwrap();
        send(&theirs, at, &from, &all[0]).unwrap();
        // Half of one, then other bytes, then too many.
        let mut half = Incoming::begin(&theirs, at, &all[1]).unwrap();
        half.write(b"x").unwrap();
        drop(half);
        let mut wrong = Incoming::begin(&theirs, at, &all[1]).unwrap();
        wrong.write(b"x").unwrap();
        assert!(wrong.finish().unwrap_err().to_string().contains("its manifest says"));
        let mut more = Incoming::begin(&theirs, at, &all[1]).unwrap();
        assert!(more.write(&vec![0; 1 << 24]).unwrap_err().to_string().contains("more than the"));
        assert!(Incoming::begin(&theirs, at, "../x").is_err());
        let early = publish(&theirs, at, STABLE, Timestamp::UNIX_EPOCH).unwrap_err().to_string();
        assert!(early.contains("has not come yet"), "{early}");
        assert!(theirs.images().is_empty());

        let rest = offer(&theirs, at, &good).unwrap();
        assert_eq!(rest, all[1..]);
        rest.iter().for_each(|file| send(&theirs, at, &from, file).unwrap());
        assert_eq!(publish(&theirs, at, STABLE, Timestamp::UNIX_EPOCH).unwrap(), Published::New);
        inspect(&theirs, "tiny", Some(&generation)).unwrap();
        assert!(offer(&theirs, at, &good).unwrap().is_empty());
        assert_eq!(publish(&theirs, at, "canary", Timestamp::UNIX_EPOCH).unwrap(), Published::AlreadyThere);

        // The next one shares what did not change.
        world.recipe(&RECIPE.replace("hello", "other"));
        let next = build(&world.options(), &Silent).unwrap();
        let missing = offer(&theirs, ("tiny", &next.generation), &offer_of(&next.directory)).unwrap();
        assert!(
            missing.contains(&paths::ROOT.to_owned()) && !missing.contains(&paths::KERNEL.to_owned()),
            "{missing:?}"
        );
    }
}
