//! What an image is. The manifest names everything by size and SHA-256 and is signed; the image's generation is
//! the SHA-256 of the manifest's exact bytes.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature as Ed25519, Signer, SigningKey, Verifier, VerifyingKey};
use jiff::{SignedDuration, Timestamp};
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
    /// Days for which one signature of it is good; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_days: Option<u32>,
    /// The local disk that machines may use; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<LocalDisk>,
}

/// How the local disk is recognised that a machine may use: all that is on it is lost. One of the two is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalDisk {
    /// Name of a GPT partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Serial number of a whole disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// A detached Ed25519 signature: over the manifest's generation, the two times and the boot order. These stand here and not in the
/// manifest: an image that is built again has the same bytes, and is signed anew when it is published again or was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Public key, lower-case hex: says which of the trusted keys to try, proves nothing by itself.
    pub key: String,
    /// When it was signed. A machine refuses what was signed before the minimum that its initramfs names.
    pub signed: Timestamp,
    /// From when on it is no longer good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// In which order a boot reads the root, as text of a [`crate::boot_order::BootOrder`]; empty until it was recorded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_order: String,
    /// 64 bytes, lower-case hex.
    pub ed25519: String,
}

/// Why a good signature does not count any more: somebody plays an old image back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Signed before the minimum.
    #[error("it was signed at {signed}; this machine takes only what was signed at {minimum} or later")]
    Older {
        /// When it was signed.
        signed: Timestamp,
        /// The minimum.
        minimum: Timestamp,
    },
    /// Its time is over.
    #[error("its signature was good until {expires}, now it is {now}")]
    Expired {
        /// Its end.
        expires: Timestamp,
        /// The time now.
        now: Timestamp,
    },
}

impl Signature {
    /// Whether it still counts.
    pub fn is_fresh(&self, now: Timestamp, minimum: Option<Timestamp>) -> Result<(), Stale> {
        if let Some(minimum) = minimum.filter(|minimum| self.signed < *minimum) {
            return Err(Stale::Older { signed: self.signed, minimum });
        }
        match self.expires.filter(|expires| now >= *expires) {
            Some(expires) => Err(Stale::Expired { expires, now }),
            None => Ok(()),
        }
    }
}

/// What is signed for a manifest.
fn statement(manifest: &[u8], signed: Timestamp, expires: Option<Timestamp>, boot_order: &str) -> String {
    let end = expires.map_or_else(|| "never".to_owned(), |t| t.to_string());
    let order = if boot_order.is_empty() { String::new() } else { format!("{boot_order}\n") };
    format!("labshift manifest\n{}\n{signed}\n{end}\n{order}", generation_of(manifest))
}

/// Whether one of the trusted keys signed a text. Used for manifests and for boot answers.
pub(crate) fn is_signed(
    text: &[u8],
    (key, ed25519): (&str, &str),
    trusted: &[VerifyingKey],
) -> Result<(), Refused> {
    let key = trusted
        .iter()
        .find(|k| hex::encode(k.as_bytes()) == key)
        .ok_or_else(|| Refused::UnknownKey(key.chars().take(64).collect()))?;
    let raw: [u8; 64] =
        hex::decode(ed25519).ok().and_then(|v| v.try_into().ok()).ok_or(Refused::BadSignature)?;
    key.verify(text, &Ed25519::from_bytes(&raw)).map_err(|_| Refused::BadSignature)
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
        let statement = statement(bytes, signature.signed, signature.expires, &signature.boot_order);
        is_signed(statement.as_bytes(), (&signature.key, &signature.ed25519), trusted)?;
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

/// Signs manifest bytes, at a time given in whole seconds, for so many days.
pub fn sign(bytes: &[u8], key: &SigningKey, now: Timestamp, valid_days: Option<u32>) -> Signature {
    sign_with_order(bytes, key, now, valid_days, String::new())
}

/// The same with the order in which a boot reads the root.
pub fn sign_with_order(
    bytes: &[u8],
    key: &SigningKey,
    now: Timestamp,
    valid_days: Option<u32>,
    boot_order: String,
) -> Signature {
    let signed = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let expires = valid_days.map(|days| {
        signed.checked_add(SignedDuration::from_hours(i64::from(days) * 24)).unwrap_or(Timestamp::MAX)
    });
    Signature {
        key: public(key),
        ed25519: hex::encode(key.sign(statement(bytes, signed, expires, &boot_order).as_bytes()).to_bytes()),
        signed,
        expires,
        boot_order,
    }
}

/// The public half of a key, as a line of a trusted-keys file has it.
pub fn public(key: &SigningKey) -> String {
    hex::encode(key.verifying_key().as_bytes())
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

    const NOW: Timestamp = Timestamp::constant(1_790_000_000, 5);

    #[test]
    fn a_signature_has_its_time_and_nobody_moves_it() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let bytes = manifest().to_bytes();
        let signature = sign(&bytes, &key, NOW, Some(10));
        let (day, expires) = (SignedDuration::from_hours(24), signature.expires.unwrap());
        assert_eq!((signature.signed.as_second(), expires), (NOW.as_second(), signature.signed + day * 10));
        assert_eq!(signature.is_fresh(expires - day, Some(signature.signed)), Ok(()));
        assert!(matches!(signature.is_fresh(expires, None), Err(Stale::Expired { .. })));
        assert!(matches!(signature.is_fresh(NOW, Some(NOW)), Err(Stale::Older { .. })));
        let trusted = [key.verifying_key()];
        for moved in [
            Signature { expires: None, ..signature.clone() },
            Signature { expires: Some(expires + day), ..signature.clone() },
            Signature { signed: signature.signed + day, ..signature.clone() },
            Signature { boot_order: "0+32".into(), ..signature.clone() },
        ] {
            assert_eq!(Manifest::verify(&bytes, &moved, &trusted, None), Err(Refused::BadSignature));
        }
        let ordered = sign_with_order(&bytes, &key, NOW, None, "0+32,7".into());
        assert_eq!(Manifest::verify(&bytes, &ordered, &trusted, None), Ok(manifest()));
        let other = Signature { boot_order: "7".into(), ..ordered };
        assert_eq!(Manifest::verify(&bytes, &other, &trusted, None), Err(Refused::BadSignature));
        assert_eq!(sign(&bytes, &key, NOW, None).is_fresh(Timestamp::MAX, None), Ok(()));
        assert_eq!(sign(&bytes, &key, NOW, Some(u32::MAX)).expires, Some(Timestamp::MAX));
    }

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
            valid_days: None,
            disk: None,
        }
    }

    #[test]
    fn accepts_only_what_a_trusted_key_signed() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let bytes = manifest().to_bytes();
        let signature = sign(&bytes, &key, NOW, Some(10));
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
