//! How an image came about: an in-toto Statement (version 1) with a SLSA Provenance predicate (version 1).
//!
//! Its signature is the manifest's, which names it by hash. It tells no time, no machine and no user: two builders of the
//! same inputs say the same.

use std::collections::BTreeMap;

use labshift_model::manifest::FileEntry;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{lock::Lock, recipe_file::Loaded, sbom::purl};

/// The file inside a generation.
pub const PROVENANCE: &str = "provenance.intoto.json";

/// The statement about `files`, built from these.
pub fn statement(
    loaded: &Loaded,
    lock: &Lock,
    programs: &BTreeMap<String, Vec<u8>>,
    files: &BTreeMap<String, FileEntry>,
) -> Vec<u8> {
    let digest = |bytes: &[u8]| json!({ "sha256": hex::encode(Sha256::digest(bytes)) });
    let mut inputs: Vec<Value> = vec![];
    for (name, bytes) in &loaded.sources {
        inputs.push(json!({ "name": name, "digest": digest(bytes) }));
    }
    for (name, bytes) in programs {
        inputs.push(json!({ "name": format!("program {name}"), "digest": digest(bytes) }));
    }
    for package in lock.all() {
        inputs.push(json!({ "uri": purl(package), "digest": { "sha256": package.sha256 } }));
    }
    let recipe = loaded.sources.last().map(|(name, _)| name.as_str()).unwrap_or_default();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects(files.iter()),
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:labshift:image-build:1",
                "externalParameters": { "recipe": recipe, "lock": lock.digest() },
                // Whether maintainer scripts ran: then two builds are the same only if the scripts make them so.
                "internalParameters": { "maintainerScripts": lock.helpers.is_some() },
                "resolvedDependencies": inputs,
            },
            "runDetails": {
                "builder": { "id": "urn:labshift:builder", "version": { "labshift": env!("CARGO_PKG_VERSION") } },
            },
        },
    });
    let mut bytes = serde_json::to_vec(&statement).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// What the statement is about.
pub(crate) fn subjects<'f>(files: impl Iterator<Item = (&'f String, &'f FileEntry)>) -> Value {
    files.map(|(name, f)| json!({ "name": name, "digest": { "sha256": f.sha256 } })).collect()
}
