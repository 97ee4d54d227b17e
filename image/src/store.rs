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
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ed25519_dalek::SigningKey;
use labshift_model::{fault::nearest, manifest, paths};
use nix::fcntl::{Flock, FlockArg};

use crate::error::{At, BuildError};

/// An image store.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// A directory that a build works in; gone when it is dropped.
pub struct Workplace {
    path: PathBuf,
    _lock: Flock<fs::File>,
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
        store.sweep()?;
        Ok(store)
    }

    fn sweep(&self) -> Result<(), BuildError> {
        let tmp = self.directory.join("tmp");
        for entry in fs::read_dir(&tmp).at("reading", &tmp)?.flatten() {
            let lock = fs::OpenOptions::new().write(true).open(entry.path().join(".lock"));
            let alive = lock.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err());
            if !alive {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// A fresh directory for one build.
    pub fn workplace(&self, name: &str) -> Result<Workplace, BuildError> {
        let tmp = self.directory.join("tmp");
        let path = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(&tmp)
            .at("making a directory in", &tmp)?
            .keep();
        let lock = path.join(".lock");
        let file = fs::File::create(&lock).at("writing", &lock)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| std::io::Error::from(e))
            .at("locking", &lock)?;
        Ok(Workplace { path, _lock: lock })
    }

    /// The signing key; the first call makes one.
    pub fn signing_key(&self) -> Result<SigningKey, BuildError> {
        let path = self.directory.join("keys/signing.key");
        let public = self.directory.join("keys/signing.pub");
        let seed: [u8; 32] = match fs::read_to_string(&path) {
            Ok(text) => hex::decode(text.trim()).ok().and_then(|b| b.try_into().ok()).ok_or_else(|| {
                let reason = "it does not hold 64 hex digits; restore it from a copy (a new key means that nodes need new images)";
                BuildError::Key { path: path.clone(), reason: reason.to_owned() }
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut seed = [0; 32];
                let mut random = fs::File::open("/dev/urandom").at("opening", "/dev/urandom")?;
                random.read_exact(&mut seed).at("reading", "/dev/urandom")?;
                let mut options = fs::OpenOptions::new();
                let mut file = options.write(true).create_new(true).mode(0o600).open(&path).at("writing", &path)?;
                writeln!(file, "{}", hex::encode(seed)).and_then(|()| file.sync_all()).at("writing", &path)?;
                seed
            }
            Err(e) => return Err(e).at("reading", &path),
        };
        let key = SigningKey::from_bytes(&seed);
        if !public.exists() {
            let line = format!("{}\n", hex::encode(key.verifying_key().as_bytes()));
            fs::write(&public, line).at("writing", &public)?;
        }
        Ok(key)
    }

    /// Where a generation lies.
    pub fn generation(&self, name: &str, generation: &str) -> PathBuf {
        self.directory.join("images").join(name).join(generation)
    }

    /// Moves a finished generation into place and points its channel to it.
    pub fn publish(&self, from: Workplace, name: &str, generation: &str) -> Result<Published, BuildError> {
        let target = self.generation(name, generation);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).at("making", parent)?;
        }
        let published = if target.join(paths::MANIFEST).is_file() {
            Published::AlreadyThere
        } else {
            let lock = from.path.join(".lock");
            fs::remove_file(&lock).at("removing", &lock)?;
            for entry in fs::read_dir(&from.path).at("reading", &from.path)?.flatten() {
                fs::File::open(entry.path()).and_then(|f| f.sync_all()).at("writing", entry.path())?;
            }
            fs::set_permissions(&from.path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .at("changing the mode of", &from.path)?;
            fs::rename(&from.path, &target).at("publishing", &target)?;
            if let Some(parent) = target.parent() {
                fs::File::open(parent).and_then(|d| d.sync_all()).at("writing", parent)?;
            }
            Published::New
        };
        self.set_channel(name, generation)?;
        Ok(published)
    }

    /// Points an image's channel to a generation.
    pub fn set_channel(&self, name: &str, generation: &str) -> Result<(), BuildError> {
        let channels = self.directory.join("channels");
        let path = channels.join(name);
        let mut file = tempfile::NamedTempFile::new_in(&channels).at("writing in", &channels)?;
        writeln!(file, "{generation}").and_then(|()| file.as_file().sync_all()).at("writing", &path)?;
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .at("writing", &path)?;
        file.persist(&path).map_err(|e| e.error).at("writing", &path)?;
        Ok(())
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

impl Workplace {
    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // After publishing the path is gone already; otherwise the next build removes what stays here.
        let _ = fs::remove_dir_all(&self.path);
    }
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
