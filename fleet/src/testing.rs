//! What tests of this crate share.

use std::path::Path;

use labshift_model::{
    manifest::{self, ImageKind, Manifest, Root},
    paths,
};

/// Publishes a small image in a store; returns its generation.
pub(crate) fn publish(store: &Path, name: &str) -> String {
    let manifest = Manifest {
        schema: manifest::SCHEMA,
        name: name.into(),
        kind: ImageKind::Host,
        architecture: "amd64".into(),
        kernel_release: "6.12".into(),
        kernel_arguments: String::new(),
        root: Root { root_hash: "00".into(), salt: "11".into(), data_size: 4096, block_size: 4096 },
        files: Default::default(),
        lock: String::new(),
        services: vec![],
        modules: vec![],
        ports: vec![],
        valid_days: None,
        disk: None,
    };
    let bytes = manifest.to_bytes();
    let generation = manifest::generation_of(&bytes);
    let signature = manifest::sign(
        &bytes,
        &ed25519_dalek::SigningKey::from_bytes(&[7; 32]),
        jiff::Timestamp::UNIX_EPOCH,
        None,
    );
    let dir = store.join("images").join(name).join(&generation);
    std::fs::create_dir_all(&dir).expect("made");
    std::fs::create_dir_all(store.join("channels")).expect("made");
    std::fs::write(dir.join(paths::MANIFEST), bytes).expect("written");
    let signature = serde_json::to_vec(&signature).expect("printable");
    std::fs::write(dir.join(paths::SIGNATURE), signature).expect("written");
    std::fs::write(store.join("channels").join(name), format!("{generation}\n")).expect("written");
    generation
}
