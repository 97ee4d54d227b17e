//! `scripts.json`: which maintainer scripts ran for an image, and what they did to it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The file inside a generation.
pub const REPORT: &str = "scripts.json";

/// The format that this version writes and reads.
pub const SCHEMA: u32 = 1;

/// What maintainer scripts did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Scripts, in the order in which they ran.
    pub ran: Vec<Ran>,
}

/// One script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    /// Package; empty for triggers, which several may have pulled.
    pub package: String,
    /// Its version.
    pub version: String,
    /// `preinst`, `postinst` or `triggers`.
    pub script: String,
    /// Exit status. A script that fails ends the build, so it is 0.
    pub exit: i32,
    /// Paths of the image that it made or changed.
    pub changed: Vec<String>,
    /// Paths of the image that it removed.
    pub removed: Vec<String>,
}

impl Report {
    /// Reads it, or says why it can't.
    pub fn from_bytes(bytes: &[u8]) -> Result<Report, String> {
        let report: Report = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if report.schema != SCHEMA {
            return Err(format!("schema {}, this program reads {SCHEMA}", report.schema));
        }
        Ok(report)
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Number of paths that scripts made, changed or removed.
    pub fn paths(&self) -> usize {
        let all = |r: &Ran| r.changed.iter().chain(&r.removed).cloned().collect::<Vec<_>>();
        self.ran.iter().flat_map(all).collect::<BTreeSet<_>>().len()
    }

    /// What an admin must know of it.
    pub fn warning(&self) -> String {
        format!(
            "{} maintainer scripts ran and changed {} paths (see `image inspect`): labshift alone no longer promises that two builds are the same; `image verify --rebuild` shows whether they are",
            self.ran.len(),
            self.paths()
        )
    }
}
