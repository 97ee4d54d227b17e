//! The image store: signing key, published generations, channels.
//!
//! ```text
//! STORE/keys/signing.key              seed in hex, 0600, made on first use
//! STORE/keys/signing.pub              its public key, a line of a trusted-keys file
//! STORE/keys/server.key, server.pub   the same for the servers, which sign boot answers
//! STORE/keys/trusted                  public keys of other stores, whose images may be pushed here: see `receive`
//! STORE/keys/servers                  public keys of servers of other stores, which images of this one are to believe
//! STORE/images/NAME/GENERATION/       complete, never changed again
//! STORE/channels, STORE/history       which generations are served: see `channel`
//! STORE/built/NAME                    what the last build was made of: see `record`
//! STORE/tmp/                          builds under way; what a dead one left is removed by the next
//! ```
//!
//! A generation appears by one rename: nobody sees half of one.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use jiff::Timestamp;
use labshift_model::{
    boot_order::BootOrder,
    manifest::{self, Signature},
    paths,
};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    build::entries,
    error::{At, BuildError},
    scratch::{self, Scratch},
};

/// An image store.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// What publishing found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is new.
    New,
    /// The same generation was there already.
    AlreadyThere,
}

impl Store {
    /// Opens (and makes) a store, and removes what dead builds left.
    pub fn open(directory: &Path) -> Result<Store, BuildError> {
        for part in ["keys", "images", "channels", "history", "built", "tmp"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).at("making the store's directory", &path)?;
        }
        let store = Store { directory: directory.to_owned() };
        scratch::sweep(&store.directory.join("tmp"))?;
        Ok(store)
    }

    /// Opens a store that is there: looking must not make one.
    pub fn existing(directory: &Path) -> Result<Store, BuildError> {
        match directory.is_dir() {
            true => Store::open(directory),
            false => Err(BuildError::NoStore { store: directory.to_owned() }),
        }
    }

    /// The store's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Holds the store while generations appear or vanish.
    pub(crate) fn hold(&self) -> Result<Flock<fs::File>, BuildError> {
        let path = self.directory.join("images");
        scratch::lock(&path, FlockArg::LockExclusive).at("locking", &path)
    }

    /// Whether a generation is there.
    pub fn is_there(&self, name: &str, generation: &str) -> bool {
        self.generation(name, generation).join(paths::MANIFEST).is_file()
    }

    /// A fresh directory for one build.
    pub fn workplace(&self, name: &str) -> Result<Scratch, BuildError> {
        Scratch::new(&self.directory.join("tmp"), name)
    }

    /// The key that signs manifests; the first call makes one.
    pub fn signing_key(&self) -> Result<SigningKey, BuildError> {
        self.key("keys/signing.key")
    }

    /// The key with which servers sign boot answers; images know its public half. The first call makes one.
    pub fn server_key(&self) -> Result<SigningKey, BuildError> {
        self.key(paths::SERVER_KEY)
    }

    /// Public keys of the servers that images of this store believe, in hex: its own, and those in `keys/servers`.
    pub fn servers(&self) -> Result<Vec<String>, BuildError> {
        let others = fs::read_to_string(self.directory.join("keys/servers")).unwrap_or_default();
        let own = manifest::public(&self.server_key()?);
        Ok([own].into_iter().chain(others.lines().map(|l| l.trim().to_owned())).collect())
    }

    fn key(&self, name: &str) -> Result<SigningKey, BuildError> {
        let path = self.directory.join(name);
        let public = path.with_extension("pub");
        if !path.exists() {
            let mut seed = [0; 32];
            let mut random = fs::File::open("/dev/urandom").at("opening", "/dev/urandom")?;
            random.read_exact(&mut seed).at("reading", "/dev/urandom")?;
            match scratch::write_whole(&path, format!("{}\n", hex::encode(seed)).as_bytes(), 0o600, true) {
                // Another build was faster: its key is the store's.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.at("writing", &path)?,
            }
        }
        let text = fs::read_to_string(&path).at("reading", &path)?;
        let seed: [u8; 32] = hex::decode(text.trim()).ok().and_then(|b| b.try_into().ok()).ok_or_else(|| {
            let reason = "it does not hold 64 hex digits; restore it from a copy (a new key means that nodes need new images)";
            BuildError::Key { path: path.clone(), reason: reason.to_owned() }
        })?;
        let key = SigningKey::from_bytes(&seed);
        let line = format!("{}\n", manifest::public(&key));
        if fs::read_to_string(&public).ok().as_deref() != Some(&line) {
            scratch::write_whole(&public, line.as_bytes(), 0o644, false).at("writing", &public)?;
        }
        Ok(key)
    }

    /// Keys whose images are right: this store's own, and those of other stores, which `keys/trusted` lists.
    pub fn trusted(&self) -> Result<Vec<VerifyingKey>, BuildError> {
        let mut keys = vec![self.signing_key()?.verifying_key()];
        let others = fs::read_to_string(self.directory.join("keys/trusted")).unwrap_or_default();
        keys.extend(manifest::trusted_keys(&others));
        Ok(keys)
    }

    /// Where a generation lies.
    pub fn generation(&self, name: &str, generation: &str) -> PathBuf {
        self.directory.join("images").join(name).join(generation)
    }

    /// Where the record of an image's last build lies.
    pub(crate) fn record(&self, name: &str) -> PathBuf {
        self.directory.join("built").join(name)
    }

    /// Moves a finished generation into place and points a channel to it. Everything is on disk before anybody can
    /// see it: a crash at any moment leaves the old state or the new one.
    pub fn publish(
        &self,
        from: Scratch,
        (name, generation): (&str, &str),
        channel: &str,
        now: Timestamp,
    ) -> Result<Published, BuildError> {
        let _held = self.hold()?;
        let target = self.generation(name, generation);
        let parent = self.directory.join("images").join(name);
        fs::create_dir_all(&parent).at("making", &parent)?;
        let there = self.is_there(name, generation);
        let published = if there && entries(&target, &[])? == entries(from.path(), &[])? {
            // The same image, signed later.
            let (new, old) = (from.path().join(paths::SIGNATURE), target.join(paths::SIGNATURE));
            if let Ok(signature) = fs::read(&new) {
                scratch::write_whole(&old, &signature, 0o644, false).at("writing", &old)?;
            }
            Published::AlreadyThere
        } else {
            if there {
                // Somebody changed what was published. What it was built as takes its place.
                let damaged = self.workplace(name)?;
                fs::rename(&target, damaged.path()).at("moving away the damaged", &target)?;
            }
            let sync = |path: &Path| fs::File::open(path).and_then(|f| f.sync_all()).at("writing", path);
            for entry in fs::read_dir(from.path()).at("reading", from.path())?.flatten() {
                sync(&entry.path())?;
            }
            fs::set_permissions(from.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .at("changing the mode of", from.path())?;
            sync(from.path())?;
            fs::rename(from.path(), &target).at("publishing", &target)?;
            sync(&parent)?;
            Published::New
        };
        let pointed = self.set_channel(name, channel, generation, now);
        if pointed.is_err() && published == Published::New {
            // A full disk, most of all: what nothing points to goes back to where it came from, and with that away.
            let _ = fs::rename(&target, from.path());
            let _ = fs::remove_dir(&parent);
        }
        pointed.map(|()| published)
    }

    /// Signs a published generation anew, as from now. One that was pushed here keeps its signature: only the store that built it has
    /// the key that its machines trust.
    pub fn sign_anew(&self, name: &str, generation: &str, now: Timestamp) -> Result<(), BuildError> {
        self.sign_with(name, generation, now, None).map(drop)
    }

    /// Signs a published generation anew with another boot order; an empty one is none. Returns the order of before. One that was
    /// pushed here keeps its signature: then there is nothing to return.
    pub fn set_boot_order(
        &self,
        (name, generation): (&str, &str),
        order: &BootOrder,
        now: Timestamp,
    ) -> Result<Option<BootOrder>, BuildError> {
        self.sign_with(name, generation, now, Some(order))
    }

    fn sign_with(
        &self,
        name: &str,
        generation: &str,
        now: Timestamp,
        order: Option<&BootOrder>,
    ) -> Result<Option<BootOrder>, BuildError> {
        let directory = self.generation(name, generation);
        let path = directory.join(paths::MANIFEST);
        let bytes = fs::read(&path).at("reading", &path)?;
        let tampered =
            |reason| BuildError::Tampered { name: format!("{name}/{}", manifest::short(generation)), reason };
        if manifest::generation_of(&bytes) != generation {
            return Err(tampered("its manifest is another generation's".to_owned()));
        }
        let manifest = manifest::Manifest::from_bytes(&bytes).map_err(|e| tampered(e.to_string()))?;
        let (key, path) = (self.signing_key()?, directory.join(paths::SIGNATURE));
        let there = fs::read(&path).ok().and_then(|s| serde_json::from_slice::<Signature>(&s).ok());
        if there.as_ref().is_some_and(|s| s.key != manifest::public(&key)) {
            return Ok(None);
        }
        let before = there.map(|s| s.boot_order).unwrap_or_default();
        let order = order.map_or_else(|| before.clone(), BootOrder::to_string);
        let signature = manifest::sign_with_order(&bytes, &key, now, manifest.valid_days, order);
        let text = serde_json::to_vec_pretty(&signature).unwrap_or_default();
        scratch::write_whole(&path, &text, 0o644, false).at("writing", &path)?;
        // One that nobody can read is none.
        Ok(Some(BootOrder::parse(&before).unwrap_or_default()))
    }

    /// Names of all images, sorted.
    pub fn images(&self) -> Vec<String> {
        names(&self.directory.join("images"))
    }

    /// Generations of an image, sorted.
    pub fn generations(&self, name: &str) -> Vec<String> {
        names(&self.directory.join("images").join(name))
    }

    /// The full generation that starts with `prefix`.
    pub fn complete(&self, name: &str, prefix: &str) -> Result<String, BuildError> {
        let matching: Vec<String> =
            self.generations(name).into_iter().filter(|g| g.starts_with(prefix)).collect();
        match &matching[..] {
            [one] if !prefix.is_empty() => Ok(one.clone()),
            _ => Err(BuildError::NoImage {
                name: format!("{name}/{prefix}"),
                store: self.directory.clone(),
                near: matching.first().map(|g| format!("{name}/{}", manifest::short(g))),
            }),
        }
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::STABLE;

    #[test]
    fn publishes_once_and_sweeps_what_died() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let generation = "ab".repeat(32);
        for expected in [Published::New, Published::AlreadyThere] {
            let work = store.workplace("lab").unwrap();
            fs::write(work.path().join(paths::MANIFEST), "{}").unwrap();
            assert_eq!(
                store.publish(work, ("lab", &generation), STABLE, Timestamp::UNIX_EPOCH).unwrap(),
                expected
            );
        }
        assert_eq!(store.channel("lab", STABLE).unwrap(), generation);
        assert_eq!(store.complete("lab", "abab").unwrap(), generation);
        assert!(store.channel("lap", STABLE).unwrap_err().to_string().contains("did you mean \"lab\""));

        let dead = directory.path().join("tmp/dead");
        fs::create_dir(&dead).unwrap();
        let living = store.workplace("lab").unwrap();
        Store::open(directory.path()).unwrap();
        assert!(!dead.exists() && living.path().exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn one_key_for_ever_and_a_damaged_one_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let key = store.signing_key().unwrap();
        assert_eq!(key, store.signing_key().unwrap());
        let path = directory.path().join("keys/signing.key");
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777,
            0o600
        );
        assert_ne!(key, store.server_key().unwrap(), "servers can't sign images");
        fs::write(&path, "zz").unwrap();
        assert!(store.signing_key().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "zz");
    }
}
