//! What lies in a store, and whether it is still what was built.

use std::path::PathBuf;

use labshift_model::{
    manifest::{self, Manifest, Signature},
    paths,
};

use crate::{
    build::entries,
    channel::STABLE,
    contents::{CONTENTS, Contents},
    error::{At, BuildError},
    lock::Lock,
    look::Side,
    script_report::{REPORT, Report},
    store::Store,
};

/// A published generation, checked.
#[derive(Debug, Clone)]
pub struct Inspected {
    /// Full generation.
    pub generation: String,
    /// Where it lies.
    pub directory: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// What it is made of.
    pub lock: Lock,
    /// All paths of its root; absent in images of versions that did not write them.
    pub contents: Option<Contents>,
    /// What maintainer scripts did; absent when none ran.
    pub scripts: Option<Report>,
    /// Channels that point to it.
    pub channels: Vec<String>,
    /// Who signed it, when, and for how long.
    pub signature: Signature,
}

/// Reads a generation (the stable one without `generation`; a prefix is enough) and verifies every file of it.
pub fn inspect(store: &Store, name: &str, generation: Option<&str>) -> Result<Inspected, BuildError> {
    let generation = match generation {
        Some(prefix) => store.complete(name, prefix)?,
        None => store.channel(name, STABLE)?,
    };
    let directory = store.generation(name, &generation);
    let read = |file: &str| {
        let path = directory.join(file);
        std::fs::read(&path).at("reading", &path)
    };
    let shown = format!("{name}/{}", manifest::short(&generation));
    let tampered = |reason: String| BuildError::Tampered { name: shown.clone(), reason };
    let bytes = read(paths::MANIFEST)?;
    let signature: Signature = serde_json::from_slice(&read(paths::SIGNATURE)?)
        .map_err(|e| tampered(format!("its signature can't be read: {e}")))?;
    let manifest = Manifest::verify(&bytes, &signature, &store.trusted()?, Some(&generation))
        .map_err(|e| tampered(e.to_string()))?;
    let found = entries(&directory, &[])?;
    for (file, expected) in &manifest.files {
        match found.get(file) {
            Some(entry) if entry == expected => {}
            Some(entry) if entry.size != expected.size => {
                return Err(tampered(format!("{file} has {} bytes, expected {}", entry.size, expected.size)));
            }
            Some(_) => return Err(tampered(format!("{file} has another SHA-256 than its manifest says"))),
            None => return Err(tampered(format!("{file} is missing"))),
        }
    }
    let lock = Lock::from_bytes(&read(crate::build::LOCK)?).map_err(tampered)?;
    let contents = match manifest.files.contains_key(CONTENTS) {
        true => {
            Some(Contents::from_bytes(&read(CONTENTS)?).map_err(|e| tampered(format!("{CONTENTS}: {e}")))?)
        }
        false => None,
    };
    let scripts = match manifest.files.contains_key(REPORT) {
        true => Some(Report::from_bytes(&read(REPORT)?).map_err(|e| tampered(format!("{REPORT}: {e}")))?),
        false => None,
    };
    let channels =
        store.channels(name).into_iter().filter(|(_, g)| *g == generation).map(|(c, _)| c).collect();
    Ok(Inspected { generation, directory, manifest, lock, contents, scripts, channels, signature })
}

impl Inspected {
    /// This image as one side of a comparison; `None` when its paths are not known.
    pub fn side(&self) -> Option<Side<'_>> {
        Some(Side { manifest: &self.manifest, lock: &self.lock, contents: self.contents.as_ref()? })
    }
}
