//! The image store: signing key, published generations, channels.
//!
//! ```text
//! STORE/keys/signing.key              seed in hex, 0600, made on first use
//! STORE/keys/signing.pub              its public key, a line of a trusted-keys file
//! STORE/images/NAME/GENERATION/       complete, never changed again
//! STORE/channels/NAME                 the generation that is served
//! STORE/tmp/                          builds under way; what a dead one left is removed by the next
//! ```
//!
//! A generation appears by one rename: nobody sees half of one.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use ed25519_dalek::SigningKey;
use labshift_model::{fault::nearest, manifest, paths};

use crate::{
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
        for part in ["keys", "images", "channels", "tmp"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).at("making the store's directory", &path)?;
        }
        let store = Store { directory: directory.to_owned() };
        scratch::sweep(&store.directory.join("tmp"))?;
        Ok(store)
    }

    /// A fresh directory for one build.
    pub fn workplace(&self, name: &str) -> Result<Scratch, BuildError> {
        Scratch::new(&self.directory.join("tmp"), name)
    }

    /// The signing key; the first call makes one.
    pub fn signing_key(&self) -> Result<SigningKey, BuildError> {
        let path = self.directory.join("keys/signing.key");
        let public = self.directory.join("keys/signing.pub");
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
        let line = format!("{}\n", hex::encode(key.verifying_key().as_bytes()));
        if fs::read_to_string(&public).ok().as_deref() != Some(&line) {
            scratch::write_whole(&public, line.as_bytes(), 0o644, false).at("writing", &public)?;
        }
        Ok(key)
    }

    /// Where a generation lies.
    pub fn generation(&self, name: &str, generation: &str) -> PathBuf {
        self.directory.join("images").join(name).join(generation)
    }

    /// Moves a finished generation into place and points its channel to it. Everything is on disk before anybody can
    /// see it: a crash at any moment leaves the old state or the new one.
    pub fn publish(&self, from: Scratch, name: &str, generation: &str) -> Result<Published, BuildError> {
        let target = self.generation(name, generation);
        let parent = self.directory.join("images").join(name);
        fs::create_dir_all(&parent).at("making", &parent)?;
        let published = if target.join(paths::MANIFEST).is_file() {
            Published::AlreadyThere
        } else {
            let sync = |path: &Path| fs::File::open(path).and_then(|f| f.sync_all()).at("writing", path);
            for entry in fs::read_dir(from.path()).at("reading", from.path())?.flatten() {
                sync(&entry.path())?;
            }
            fs::set_permissions(from.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .at("changing the mode of", from.path())?;
            sync(from.path())?;
            match fs::rename(from.path(), &target) {
                // Another build of the same was faster.
                Err(_) if target.join(paths::MANIFEST).is_file() => Published::AlreadyThere,
                renamed => {
                    renamed.at("publishing", &target)?;
                    sync(&parent)?;
                    Published::New
                }
            }
        };
        self.set_channel(name, generation)?;
        Ok(published)
    }

    /// Points an image's channel to a generation.
    pub fn set_channel(&self, name: &str, generation: &str) -> Result<(), BuildError> {
        let path = self.directory.join("channels").join(name);
        scratch::write_whole(&path, format!("{generation}\n").as_bytes(), 0o644, false).at("writing", &path)
    }

    /// The generation that an image's channel points to.
    pub fn channel(&self, name: &str) -> Result<String, BuildError> {
        match fs::read_to_string(self.directory.join("channels").join(name)) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(_) => {
                let names = self.images();
                Err(BuildError::NoImage {
                    name: name.to_owned(),
                    store: self.directory.clone(),
                    near: nearest(name, names.iter().map(String::as_str)).map(str::to_owned),
                })
            }
        }
    }

    /// Names of all images, sorted.
    pub fn images(&self) -> Vec<String> {
        entries(&self.directory.join("images"))
    }

    /// Generations of an image, sorted.
    pub fn generations(&self, name: &str) -> Vec<String> {
        entries(&self.directory.join("images").join(name))
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

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishes_once_and_sweeps_what_died() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let generation = "ab".repeat(32);
        for expected in [Published::New, Published::AlreadyThere] {
            let work = store.workplace("lab").unwrap();
            fs::write(work.path().join(paths::MANIFEST), "{}").unwrap();
            assert_eq!(store.publish(work, "lab", &generation).unwrap(), expected);
        }
        assert_eq!(store.channel("lab").unwrap(), generation);
        assert_eq!(store.complete("lab", "abab").unwrap(), generation);
        assert!(store.channel("lap").unwrap_err().to_string().contains("did you mean \"lab\""));

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
        fs::write(&path, "zz").unwrap();
        assert!(store.signing_key().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "zz");
    }
}
