//! Published files of the image store, for TFTP and HTTP alike: `images/NAME/GENERATION/FILE` where the generation
//! has a manifest and a signature, and the manifest names the file. Nothing else in the store can be fetched.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use labshift_model::{
    manifest::{Manifest, generation_of, short},
    paths,
};

/// An open file that may be sent.
#[derive(Debug)]
pub struct Published {
    /// The file.
    pub file: File,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in hex, as the manifest says it: never changes for this path.
    pub sha256: String,
}

/// Why a file is not sent.
#[derive(Debug, thiserror::Error)]
pub enum NotServed {
    /// No published file has this path.
    #[error("no published file {0}")]
    Unknown(String),
    /// The store holds something else than the manifest says.
    #[error("{path}: {reason}; publish the image again")]
    Damaged {
        /// File on disk.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk did not give it.
    #[error("{path}: {reason}")]
    Unreadable {
        /// File on disk.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
}

/// Opens a published file. Blocks on the disk.
pub fn open(store: &Path, name: &str, generation: &str, file: &str) -> Result<Published, NotServed> {
    let directory = directory(store, name, generation, file)?;
    let manifest = manifest(store, name, generation)?;
    let path = directory.join(file);
    let (wanted, sha256) = match file {
        paths::MANIFEST => (None, generation.to_owned()),
        paths::SIGNATURE => (None, generation_of(&read(&path)?)),
        _ => {
            let entry = manifest.files.get(file).filter(|_| is_word(file));
            let entry = entry.ok_or_else(|| unknown(name, generation, file))?;
            (Some(entry.size), entry.sha256.clone())
        }
    };
    let opened = File::open(&path).and_then(|f| f.metadata().map(|m| (f, m)));
    let (file, metadata) = opened.map_err(|reason| NotServed::Unreadable { path: path.clone(), reason })?;
    if !metadata.is_file() {
        return Err(NotServed::Damaged { path, reason: "is not a file".to_owned() });
    }
    let size = metadata.len();
    match wanted.filter(|wanted| *wanted != size) {
        None => Ok(Published { file, size, sha256 }),
        Some(wanted) => {
            let reason = format!("has {size} bytes, its manifest says {wanted}");
            Err(NotServed::Damaged { path, reason })
        }
    }
}

/// The manifest of a published generation. Blocks on the disk.
pub fn manifest(store: &Path, name: &str, generation: &str) -> Result<Manifest, NotServed> {
    let directory = directory(store, name, generation, paths::MANIFEST)?;
    if !directory.join(paths::SIGNATURE).is_file() {
        return Err(unknown(name, generation, paths::SIGNATURE));
    }
    let path = directory.join(paths::MANIFEST);
    let bytes = read(&path)?;
    let found = generation_of(&bytes);
    if found != generation {
        let reason = format!("is generation {}, not {}", short(&found), short(generation));
        return Err(NotServed::Damaged { path, reason });
    }
    Manifest::from_bytes(&bytes).map_err(|e| NotServed::Damaged { path, reason: e.to_string() })
}

fn directory(store: &Path, name: &str, generation: &str, file: &str) -> Result<PathBuf, NotServed> {
    let hex = generation.len() == 64 && generation.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !hex || !is_word(name) {
        return Err(unknown(name, generation, file));
    }
    Ok(store.join(&paths::IMAGES[1..]).join(name).join(generation))
}

fn read(path: &Path) -> Result<Vec<u8>, NotServed> {
    std::fs::read(path).map_err(|reason| match reason.kind() {
        io::ErrorKind::NotFound => NotServed::Unknown(path.display().to_string()),
        _ => NotServed::Unreadable { path: path.to_owned(), reason },
    })
}

fn unknown(name: &str, generation: &str, file: &str) -> NotServed {
    let path = format!("{}/{name}/{}/{file}", paths::IMAGES, short(generation));
    NotServed::Unknown(path.escape_debug().to_string())
}

/// One path component that names a file and goes nowhere else.
fn is_word(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
    (1..=128).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(fine)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use ed25519_dalek::SigningKey;
    use labshift_model::manifest::{FileEntry, ImageKind, Root, SCHEMA, sign};

    use super::*;

    /// Publishes an image with these files and gives its generation.
    pub fn publish(store: &Path, name: &str, arguments: &str, files: &[(&str, &[u8])]) -> String {
        let entry = |bytes: &[u8]| FileEntry { size: bytes.len() as u64, sha256: generation_of(bytes) };
        let manifest = Manifest {
            schema: SCHEMA,
            name: name.to_owned(),
            kind: ImageKind::Host,
            architecture: "amd64".to_owned(),
            kernel_release: "6.12".to_owned(),
            kernel_arguments: arguments.to_owned(),
            root: Root { root_hash: "ab".repeat(32), salt: "00".into(), data_size: 4096, block_size: 4096 },
            files: files.iter().map(|(n, b)| ((*n).to_owned(), entry(b))).collect::<BTreeMap<_, _>>(),
            lock: "22".to_owned(),
            services: vec![],
            modules: vec![],
            ports: vec![],
            valid_days: None,
            disk: None,
        };
        let bytes = manifest.to_bytes();
        let generation = generation_of(&bytes);
        let directory = store.join("images").join(name).join(&generation);
        std::fs::create_dir_all(&directory).expect("making the generation");
        let signature = serde_json::to_vec(&sign(
            &bytes,
            &SigningKey::from_bytes(&[7; 32]),
            jiff::Timestamp::UNIX_EPOCH,
            None,
        ))
        .expect("signing");
        for (file, content) in
            files.iter().copied().chain([("manifest.json", &bytes[..]), ("manifest.sig", &signature)])
        {
            std::fs::write(directory.join(file), content).expect("writing");
        }
        generation
    }

    #[test]
    fn case_21_only_published_files_can_be_opened() {
        let store = tempfile::tempdir().expect("a directory");
        let generation =
            publish(store.path(), "lab", "quiet", &[("vmlinuz", b"kernel"), ("../key", b"secret")]);
        std::fs::write(store.path().join("images/lab").join(&generation).join("extra"), "x")
            .expect("writing");
        for file in ["vmlinuz", "manifest.json", "manifest.sig"] {
            let published = open(store.path(), "lab", &generation, file).expect(file);
            assert_eq!(published.size, published.file.metadata().expect("metadata").len());
        }
        for (name, generation, file) in [
            ("lab", &generation[..], "extra"),
            ("lab", &generation, "../key"),
            ("lab", &generation, ""),
            ("lab", &generation, "."),
            ("..", &generation, "vmlinuz"),
            ("lab/..", &generation, "vmlinuz"),
            ("lab", "..", "vmlinuz"),
            ("lab", &generation[..12], "vmlinuz"),
            ("other", &generation, "vmlinuz"),
            ("lab", &generation.to_uppercase(), "vmlinuz"),
        ] {
            let refused = open(store.path(), name, generation, file);
            assert!(matches!(refused, Err(NotServed::Unknown(_))), "{name} {generation} {file} {refused:?}");
        }
    }

    #[test]
    fn a_damaged_store_is_named() {
        let store = tempfile::tempdir().expect("a directory");
        let generation = publish(store.path(), "lab", "quiet", &[("vmlinuz", b"kernel")]);
        let directory = store.path().join("images/lab").join(&generation);
        std::fs::write(directory.join("vmlinuz"), "kern").expect("writing");
        let fault = open(store.path(), "lab", &generation, "vmlinuz").expect_err("damaged").to_string();
        assert!(fault.contains("has 4 bytes, its manifest says 6; publish the image again"), "{fault}");
        std::fs::write(directory.join("manifest.json"), "{}").expect("writing");
        assert!(matches!(manifest(store.path(), "lab", &generation), Err(NotServed::Damaged { .. })));
        std::fs::remove_file(directory.join("manifest.sig")).expect("removing");
        assert!(matches!(manifest(store.path(), "lab", &generation), Err(NotServed::Unknown(_))));
    }
}
