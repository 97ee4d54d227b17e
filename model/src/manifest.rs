//! What an image is. The manifest names everything by size and SHA-256 and is signed; the image's generation is
//! the SHA-256 of the manifest's exact bytes.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature as Ed25519, Signer, SigningKey, Verifier, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::service::Service;

/// The manifest format that this version writes and reads.
pub const SCHEMA: u32 = 1;

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// Boots over the network on a workstation.
    Host,
    /// Boots as a virtual machine on a node.
    Guest,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// The verified root file system: an EROFS image followed by its dm-verity hash tree, in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// dm-verity root hash (SHA-256, lower-case hex).
    pub root_hash: String,
    /// dm-verity salt (lower-case hex).
    pub salt: String,
    /// Bytes of file system before the tree; a multiple of `block_size`. The tree starts here, without a
    /// verity superblock.
    pub data_size: u64,
    /// Bytes per data block and per hash block.
    pub block_size: u32,
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Image name, the recipe's.
    pub name: String,
    /// Host or guest.
    pub kind: ImageKind,
    /// Debian architecture name.
    pub architecture: String,
    /// `uname -r` of the kernel.
    pub kernel_release: String,
    /// Kernel arguments of the recipe; the UKI carries them too.
    pub kernel_arguments: String,
    /// Root file system.
    pub root: Root,
    /// Every file of the generation except the manifest and its signature.
    pub files: BTreeMap<String, FileEntry>,
    /// SHA-256 of the lock the image was built from.
    pub lock: String,
    /// What PID 1 supervises after hand-over.
    pub services: Vec<Service>,
    /// Kernel modules that init loads after the root is mounted (dependencies are found in the root).
    pub modules: Vec<String>,
    /// TCP ports that the recipe lets the node listen on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// A detached Ed25519 signature over the manifest's exact bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Public key, lower-case hex: says which of the trusted keys to try, proves nothing by itself.
    pub key: String,
    /// 64 bytes, lower-case hex.
    pub ed25519: String,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The signing key is none of the trusted ones.
    #[error(
        "manifest is signed by key {0}, which this machine does not trust; build the image with a trusted key"
    )]
    UnknownKey(String),
    /// The signature is not one of these bytes.
    #[error("manifest signature does not match its content; the image was changed after it was signed")]
    BadSignature,
    /// Not a manifest, or one of another version.
    #[error("manifest is not readable: {0}")]
    Unreadable(String),
    /// The bytes are not the generation that was asked for.
    #[error("manifest is generation {found}, wanted {wanted}")]
    WrongGeneration {
        /// What was asked for.
        wanted: String,
        /// What the bytes are.
        found: String,
    },
}

impl Manifest {
    /// Canonical bytes: what is hashed, signed, stored and sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads a manifest whose signature was checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refused> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| Refused::Unreadable(e.to_string()))?;
        if manifest.schema != SCHEMA {
            return Err(Refused::Unreadable(format!(
                "schema {}, this program reads {SCHEMA}",
                manifest.schema
            )));
        }
        Ok(manifest)
    }

    /// Checks signature, then generation (when one is given), then reads. Nothing of the content is looked at
    /// before its signature is known to be good.
    pub fn verify(
        bytes: &[u8],
        signature: &Signature,
        trusted: &[VerifyingKey],
        generation: Option<&str>,
    ) -> Result<Self, Refused> {
        let key = trusted
            .iter()
            .find(|k| hex::encode(k.as_bytes()) == signature.key)
            .ok_or_else(|| Refused::UnknownKey(signature.key.chars().take(64).collect()))?;
        let raw: [u8; 64] = hex::decode(&signature.ed25519)
            .ok()
            .and_then(|v| v.try_into().ok())
            .ok_or(Refused::BadSignature)?;
        key.verify(bytes, &Ed25519::from_bytes(&raw)).map_err(|_| Refused::BadSignature)?;
        let found = generation_of(bytes);
        if let Some(wanted) = generation.filter(|g| *g != found) {
            return Err(Refused::WrongGeneration { wanted: wanted.to_owned(), found });
        }
        Self::from_bytes(bytes)
    }
}

/// The generation that these manifest bytes are: their SHA-256 in lower-case hex.
pub fn generation_of(manifest: &[u8]) -> String {
    hex::encode(Sha256::digest(manifest))
}

/// The first 12 characters, the form shown to people.
pub fn short(generation: &str) -> &str {
    generation.get(..12).unwrap_or(generation)
}

/// Signs manifest bytes.
pub fn sign(bytes: &[u8], key: &SigningKey) -> Signature {
    Signature {
        key: hex::encode(key.verifying_key().as_bytes()),
        ed25519: hex::encode(key.sign(bytes).to_bytes()),
    }
}

/// Reads a trusted-keys file: one key in hex per line, `#` starts a comment. Lines that are no key are skipped:
/// a key that can't be read is a key that is not trusted.
pub fn trusted_keys(text: &str) -> Vec<VerifyingKey> {
    text.lines()
        .filter_map(|line| {
            let digits = line.split('#').next()?.trim();
            let raw: [u8; 32] = hex::decode(digits).ok()?.try_into().ok()?;
            VerifyingKey::from_bytes(&raw).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            schema: SCHEMA,
            name: "lab".into(),
            kind: ImageKind::Host,
            architecture: "amd64".into(),
            kernel_release: "6.12".into(),
            kernel_arguments: "quiet".into(),
            root: Root { root_hash: "00".into(), salt: "11".into(), data_size: 4096, block_size: 4096 },
            files: BTreeMap::new(),
            lock: "22".into(),
            services: vec![],
            modules: vec![],
            ports: vec![],
        }
    }

    #[test]
    fn accepts_only_what_a_trusted_key_signed() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let bytes = manifest().to_bytes();
        let signature = sign(&bytes, &key);
        let trusted = trusted_keys(&format!("# lab key\n{}\n", signature.key));
        assert_eq!(
            Manifest::verify(&bytes, &signature, &trusted, Some(&generation_of(&bytes))),
            Ok(manifest())
        );

        assert!(matches!(Manifest::verify(&bytes, &signature, &[], None), Err(Refused::UnknownKey(_))));
        let mut flipped = bytes.clone();
        flipped[20] ^= 1;
        assert_eq!(Manifest::verify(&flipped, &signature, &trusted, None), Err(Refused::BadSignature));
        assert!(matches!(
            Manifest::verify(&bytes, &signature, &trusted, Some("ff")),
            Err(Refused::WrongGeneration { .. })
        ));
    }
}
