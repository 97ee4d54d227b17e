//! Guest images on the node: fetched from the server, verified like the node's own, kept while needed.
//!
//! ```text
//! manifest.json + manifest.sig -> signature, generation -> vmlinuz, initrd.img, root.erofs -> size, SHA-256
//!     all into .part-GENERATION/, renamed to GENERATION/ when every byte is right
//! ```
//!
//! The bytes are hashed as they arrive; a directory with a generation's name is therefore always whole and right.
//!
//! The date of the signature is looked at when an image comes, as init does with the node's own: a guest's image that runs out while the node
//! is up goes on. The time is that of the signed boot answer, which nobody on the network can turn back.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use labshift_model::{
    context::NodeContext,
    manifest::{
        FileEntry, ImageKind, Manifest, Refused, Signature, Stale, generation_of, short, trusted_keys,
    },
    paths,
};

use crate::{
    clock::Clock,
    record::named,
    saved::{Store, StoreError},
};

/// A manifest is a few kilobytes; more is not a manifest.
const LARGEST_MANIFEST: u64 = 1 << 20;

/// An image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The server did not send the right bytes.
    #[error("fetching {file} of image {image}")]
    Fetch {
        /// File.
        file: String,
        /// Image and short generation.
        image: String,
        /// Why.
        source: Box<StoreError>,
    },
    /// The signature or the generation is wrong.
    #[error("image {image} is refused")]
    Refused {
        /// Image and short generation.
        image: String,
        /// Why.
        source: Refused,
    },
    /// The signature is too old.
    #[error("image {image} is not taken; `labshift image publish` signs it anew")]
    Stale {
        /// Image and short generation.
        image: String,
        /// Why.
        source: Stale,
    },
    /// The image is not one that a guest can boot.
    #[error("image {image} {why}")]
    NotBootable {
        /// Image and short generation.
        image: String,
        /// What it lacks.
        why: String,
    },
    /// The node's own file system.
    #[error("keeping image {image}")]
    Disk {
        /// Image and short generation.
        image: String,
        /// Why.
        source: io::Error,
    },
}

/// The images that the node keeps.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
    trusted: Vec<String>,
    minimum: Option<Timestamp>,
    clock: Clock,
}

impl Images {
    /// Images live below `root`; init says whose are taken, and from when on.
    pub fn new(root: impl Into<PathBuf>, context: &NodeContext) -> Self {
        let clock = Clock::from_offset(context.clock_offset_ms);
        Images { root: root.into(), trusted: context.trusted_keys.clone(), minimum: context.minimum, clock }
    }

    /// Where a generation's files are.
    pub fn directory(&self, generation: &str) -> PathBuf {
        self.root.join(generation)
    }

    /// The generations that are here, whole.
    pub fn list(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| is_generation(n)).collect()
    }

    /// The verified manifest of a generation that is here.
    pub fn manifest(&self, image: &str, generation: &str) -> Result<Manifest, ImageError> {
        let shown = shown(image, generation);
        let disk = |source| ImageError::Disk { image: shown.clone(), source };
        let directory = self.directory(generation);
        let bytes = read(&directory.join(paths::MANIFEST)).map_err(disk)?;
        let signature = read(&directory.join(paths::SIGNATURE)).map_err(disk)?;
        self.verify(image, generation, &bytes, &signature).map(|(manifest, _)| manifest)
    }

    /// Fetches and verifies a generation, unless it is here.
    pub async fn fetch(&self, store: &Store, image: &str, generation: &str) -> Result<(), ImageError> {
        let shown = shown(image, generation);
        if !is_generation(generation) {
            let why = "has no generation that can be a directory's name".to_owned();
            return Err(ImageError::NotBootable { image: shown, why });
        }
        if self.directory(generation).is_dir() {
            return Ok(());
        }
        let disk = |source| ImageError::Disk { image: shown.clone(), source };
        let part = self.root.join(format!(".part-{generation}"));
        remove(&part).map_err(disk)?;
        std::fs::create_dir_all(&part).map_err(|e| disk(named(&part, e)))?;
        let result = self.fetch_into(&part, store, image, generation, &shown).await;
        match result {
            Ok(()) => std::fs::rename(&part, self.directory(generation)).map_err(disk),
            Err(error) => {
                // The first error is the one to tell; what is left is removed at the next attempt.
                let _ = remove(&part);
                Err(error)
            }
        }
    }

    /// Removes a generation.
    pub fn remove(&self, generation: &str) -> io::Result<()> {
        if is_generation(generation) { remove(&self.directory(generation)) } else { Ok(()) }
    }

    async fn fetch_into(
        &self,
        part: &Path,
        store: &Store,
        image: &str,
        generation: &str,
        shown: &str,
    ) -> Result<(), ImageError> {
        let url = |file: &str| format!("{}/{image}/{generation}/{file}", paths::IMAGES);
        let failed = |file: &str, source: StoreError| ImageError::Fetch {
            file: file.to_owned(),
            image: shown.to_owned(),
            source: Box::new(source),
        };
        let disk = |source| ImageError::Disk { image: shown.to_owned(), source };
        let small = async |file: &'static str| {
            store.read(&url(file), LARGEST_MANIFEST).await.map_err(|e| failed(file, e))
        };
        let bytes = small(paths::MANIFEST).await?;
        let signature = small(paths::SIGNATURE).await?;
        let (manifest, signed) = self.verify(image, generation, &bytes, &signature)?;
        let stale = |source| ImageError::Stale { image: shown.to_owned(), source };
        signed.is_fresh(self.clock.now(), self.minimum).map_err(stale)?;
        for file in [paths::KERNEL, paths::INITRD, paths::ROOT] {
            let entry: &FileEntry = manifest.files.get(file).ok_or_else(|| ImageError::NotBootable {
                image: shown.to_owned(),
                why: format!("has no {file}"),
            })?;
            store.fetch(&url(file), &part.join(file), entry).await.map_err(|e| failed(file, e))?;
        }
        for (file, bytes) in [(paths::MANIFEST, &bytes), (paths::SIGNATURE, &signature)] {
            let path = part.join(file);
            std::fs::write(&path, bytes).map_err(|e| disk(named(&path, e)))?;
        }
        Ok(())
    }

    fn verify(
        &self,
        image: &str,
        generation: &str,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(Manifest, Signature), ImageError> {
        let shown = shown(image, generation);
        let refused = |source| ImageError::Refused { image: shown.clone(), source };
        let signature: Signature =
            serde_json::from_slice(signature).map_err(|e| refused(Refused::Unreadable(e.to_string())))?;
        let trusted = trusted_keys(&self.trusted.join("\n"));
        let manifest = Manifest::verify(bytes, &signature, &trusted, Some(generation)).map_err(refused)?;
        if manifest.kind != ImageKind::Guest {
            return Err(ImageError::NotBootable { image: shown, why: "is for hosts, not for guests".into() });
        }
        Ok((manifest, signature))
    }
}

/// A full generation: what [`generation_of`] returns.
fn is_generation(name: &str) -> bool {
    name.len() == generation_of(b"").len() && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn shown(image: &str, generation: &str) -> String {
    format!("{image} {}", short(generation))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| named(path, e))
}

fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(named(directory, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ed25519_dalek::SigningKey;
    use labshift_model::manifest::{Root, SCHEMA, sign};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::saved::test_server::{Files, serve};

    struct Published {
        files: Files,
        generation: String,
        key: String,
    }

    /// A node whose kernel started at the beginning of 1970.
    fn images(root: impl Into<PathBuf>, key: &str, minimum: Option<Timestamp>) -> Images {
        let trusted = vec![key.to_owned()];
        Images { root: root.into(), trusted, minimum, clock: Clock::from_offset(0) }
    }

    fn published(kind: ImageKind) -> Published {
        published_for(kind, None)
    }

    fn published_for(kind: ImageKind, valid_days: Option<u32>) -> Published {
        let key = SigningKey::from_bytes(&[3; 32]);
        let content = [(paths::KERNEL, "kernel"), (paths::INITRD, "initrd"), (paths::ROOT, "root")];
        let entry =
            |b: &str| FileEntry { size: b.len() as u64, sha256: hex::encode(Sha256::digest(b.as_bytes())) };
        let manifest = Manifest {
            schema: SCHEMA,
            name: "work".into(),
            kind,
            architecture: "amd64".into(),
            kernel_release: "6.12".into(),
            kernel_arguments: String::new(),
            root: Root { root_hash: "00".into(), salt: "11".into(), data_size: 4096, block_size: 4096 },
            files: content.iter().map(|(n, b)| ((*n).to_owned(), entry(b))).collect::<BTreeMap<_, _>>(),
            lock: "22".into(),
            services: vec![],
            modules: vec![],
            ports: vec![],
            valid_days: None,
            disk: None,
        };
        let bytes = manifest.to_bytes();
        let generation = generation_of(&bytes);
        let signature = sign(&bytes, &key, Timestamp::UNIX_EPOCH, valid_days);
        let at = |file: &str| format!("/images/work/{generation}/{file}");
        let mut files: Files =
            content.iter().map(|(n, b)| (at(n), b.as_bytes().to_vec())).collect::<BTreeMap<_, _>>();
        files.insert(at(paths::MANIFEST), bytes);
        files.insert(at(paths::SIGNATURE), serde_json::to_vec(&signature).unwrap());
        Published { files, generation, key: signature.key }
    }

    async fn fetched(published: &Published, files: Files) -> (tempfile::TempDir, Images, Result<(), String>) {
        fetched_by(published, files, |images| images).await
    }

    async fn fetched_by(
        published: &Published,
        files: Files,
        node: impl FnOnce(Images) -> Images,
    ) -> (tempfile::TempDir, Images, Result<(), String>) {
        let root = tempfile::tempdir().unwrap();
        let images = node(images(root.path().join("images"), &published.key, None));
        let server = serve(files).await;
        let store = Store::new(&server.url, "token");
        let result = images.fetch(&store, "work", &published.generation).await;
        let told = result.map_err(|e| match std::error::Error::source(&e) {
            Some(source) => format!("{e}: {source}"),
            None => e.to_string(),
        });
        (root, images, told)
    }

    #[tokio::test]
    async fn an_image_arrives_whole_or_not_at_all() {
        let good = published(ImageKind::Guest);
        let (_root, images, result) = fetched(&good, good.files.clone()).await;
        assert_eq!(result, Ok(()));
        assert_eq!(images.list(), [good.generation.clone()].into());
        assert_eq!(images.manifest("work", &good.generation).unwrap().name, "work");
        images.remove(&good.generation).unwrap();
        assert!(images.list().is_empty());

        // Any byte of any file flipped, cut off or missing: refused, nothing kept.
        for (path, bytes) in &good.files {
            for damage in 0..3 {
                let mut files = good.files.clone();
                let mut changed = bytes.clone();
                match damage {
                    0 => changed[bytes.len() / 2] ^= 1,
                    1 => changed.truncate(bytes.len() - 1),
                    _ => changed.push(b' '),
                }
                // Trailing space is harmless JSON in a signature; everything else must be refused.
                if damage == 2 && path.ends_with(paths::SIGNATURE) {
                    continue;
                }
                files.insert(path.clone(), changed);
                let (_root, images, result) = fetched(&good, files).await;
                assert!(result.is_err(), "{path} damage {damage}");
                assert!(images.list().is_empty());
            }
            let mut files = good.files.clone();
            files.remove(path);
            let told = fetched(&good, files).await.2.unwrap_err();
            assert!(told.contains("404"), "{told}");
        }
    }

    #[tokio::test]
    async fn the_refusal_names_image_and_file() {
        let good = published(ImageKind::Guest);
        let mut files = good.files.clone();
        let root = format!("/images/work/{}/{}", good.generation, paths::ROOT);
        files.insert(root, b"rout".to_vec());
        let told = fetched(&good, files).await.2.unwrap_err();
        let image = shown("work", &good.generation);
        assert!(told.starts_with(&format!("fetching root.erofs of image {image}: ")), "{told}");

        let host = published(ImageKind::Host);
        let told = fetched(&host, host.files.clone()).await.2.unwrap_err();
        assert!(told.ends_with("is for hosts, not for guests"), "{told}");

        let stranger = Published { key: "00".repeat(32), ..published(ImageKind::Guest) };
        let told = fetched(&stranger, stranger.files.clone()).await.2.unwrap_err();
        assert!(told.contains("is refused"), "{told}");
    }

    #[tokio::test]
    async fn old_signatures_are_not_taken() {
        let ten_days = published_for(ImageKind::Guest, Some(10));
        let day = |n: i64| Clock::from_offset(n * 24 * 3600 * 1000);
        let at = async |clock: Clock, minimum: Option<Timestamp>| {
            let node = |images| Images { clock, minimum, ..images };
            let (_root, images, told) = fetched_by(&ten_days, ten_days.files.clone(), node).await;
            assert_eq!(images.list().len(), usize::from(told.is_ok()));
            told
        };
        assert_eq!(at(day(9), Some(Timestamp::UNIX_EPOCH)).await, Ok(()));
        let told = at(day(10), None).await.unwrap_err();
        assert!(told.contains("is not taken") && told.contains("good until 1970-01-11"), "{told}");
        let told = at(day(1), Some(Timestamp::from_second(1).unwrap())).await.unwrap_err();
        assert!(told.contains("or later"), "{told}");
        // One that runs out while it is here goes on.
        let (_root, here, _) = fetched(&ten_days, ten_days.files.clone()).await;
        let later = Images { clock: day(99), ..here };
        assert!(later.manifest("work", &ten_days.generation).is_ok());
    }

    #[tokio::test]
    async fn a_generation_is_no_path() {
        let images = images("/nowhere", "", None);
        let store = Store::new("http://127.0.0.1:9", "");
        for bad in ["", "..", "../../etc", "AB", &"A".repeat(64), &"0".repeat(63)] {
            assert!(images.fetch(&store, "work", bad).await.is_err());
        }
    }
}
