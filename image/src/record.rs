//! Which inputs gave which generation: a build that would change nothing does nothing.
//!
//! ```text
//! STORE/built/NAME        the last build of an image (JSON)
//! ```
//!
//! A record that is wrong, old or damaged only costs a build.

use labshift_model::{manifest::Manifest, paths};
use serde::{Deserialize, Serialize};

use crate::{
    error::{At, BuildError},
    scratch,
    store::Store,
};

/// The last build of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Hash of everything that decides about an image.
    pub inputs: String,
    /// What came of it.
    pub generation: String,
    /// Bytes of the root before packing.
    pub root_bytes: u64,
    /// What the build warned of.
    pub warnings: Vec<String>,
}

impl Record {
    /// Reads an image's record.
    pub fn read(store: &Store, name: &str) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(store.record(name)).ok()?).ok()
    }

    /// Writes it.
    pub fn write(&self, store: &Store, name: &str) -> Result<(), BuildError> {
        let path = store.record(name);
        scratch::write_whole(&path, &serde_json::to_vec(self).unwrap_or_default(), 0o644, false)
            .at("writing", &path)
    }

    /// The generation's manifest, if all of its files are there with their sizes.
    pub fn still_there(&self, store: &Store, name: &str) -> Option<Manifest> {
        let directory = store.generation(name, &self.generation);
        let manifest = Manifest::from_bytes(&std::fs::read(directory.join(paths::MANIFEST)).ok()?).ok()?;
        let size = |file: &str| std::fs::metadata(directory.join(file)).ok().map(|m| m.len());
        let whole = manifest.files.iter().all(|(file, entry)| size(file) == Some(entry.size));
        (whole && size(paths::SIGNATURE).is_some()).then_some(manifest)
    }
}
