//! `InRelease` files: the root of trust for everything a mirror sends.
//!
//! ```text
//! key ring -> OpenPGP signature -> InRelease -> SHA-256 of Packages.xz -> SHA-256 of every package
//! ```
//!
//! The signature is checked by rpgp; key binding, revocation and expiry, and the list's own `Valid-Until`, are
//! checked here.

use std::{collections::HashMap, time::SystemTime};

use jiff::{Timestamp, fmt::rfc2822};
use pgp::{
    composed::{CleartextSignedMessage, Deserializable, SignedPublicKey},
    packet::{Signature, SignatureType},
    types::KeyDetails,
};

use crate::cache::Expected;

/// Why a package list is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// No clear-text signature.
    #[error("it is not signed ({0})")]
    Unsigned(String),
    /// No key of the ring made any of its signatures.
    #[error(
        "its signature was made by {made_by}, and no valid key in {ring} is that; if the mirror is right, name its key ring in the recipe: keyring = \"...\""
    )]
    NoKey {
        /// Key ids on the signatures.
        made_by: String,
        /// Key ring.
        ring: String,
    },
    /// A key of the ring is named, but the signature is not of this text.
    #[error("its signature does not match its content: it was changed on its way")]
    BadSignature,
    /// Too old.
    #[error("it expired on {0}; the mirror is no longer updated (or this machine's clock is wrong)")]
    Expired(String),
    /// Signed text lacks a field.
    #[error("it has no usable {0} field")]
    Field(&'static str),
    /// It is about another suite.
    #[error("it is for suite {found}, wanted {wanted}: somebody swapped lists")]
    WrongSuite {
        /// Asked for.
        wanted: String,
        /// Got.
        found: String,
    },
}

/// A key ring file's keys.
pub struct KeyRing {
    /// For messages.
    pub name: String,
    keys: Vec<SignedPublicKey>,
}

impl KeyRing {
    /// Reads a binary or armoured key ring. Keys that can't be read are left out.
    pub fn parse(name: &str, bytes: &[u8]) -> KeyRing {
        let keys = if bytes.starts_with(b"-----") {
            SignedPublicKey::from_armor_many(bytes)
                .map(|(keys, _)| keys.flatten().collect())
                .unwrap_or_default()
        } else {
            SignedPublicKey::from_bytes_many(bytes).map(|keys| keys.flatten().collect()).unwrap_or_default()
        };
        KeyRing { name: name.to_owned(), keys }
    }

    /// Adds the keys of another ring.
    pub fn join(&mut self, other: KeyRing) {
        self.keys.extend(other.keys);
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// A verified list of lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `Codename`.
    pub codename: String,
    /// `Date`, as written.
    pub date: String,
    /// Files below the suite's directory.
    pub files: HashMap<String, Expected>,
}

/// Verifies an `InRelease` and reads it. `suite` is the code name asked for; `now` decides about expiry.
pub fn verify(bytes: &[u8], ring: &KeyRing, suite: &str, now: Timestamp) -> Result<Release, Untrusted> {
    let text = std::str::from_utf8(bytes).map_err(|_| Untrusted::Unsigned("it is not text".to_owned()))?;
    let (message, _) = CleartextSignedMessage::from_string(text)
        .map_err(|e| Untrusted::Unsigned(first_line(&e.to_string())))?;
    check_signatures(&message, ring, now)?;
    read(&message.signed_text(), suite, now)
}

fn check_signatures(
    message: &CleartextSignedMessage,
    ring: &KeyRing,
    now: Timestamp,
) -> Result<(), Untrusted> {
    let text = message.signed_text();
    let mut named = false;
    for signature in message.signatures() {
        for key in ring.keys.iter().filter(|k| usable(k, now)) {
            let subkeys = key.public_subkeys.iter().filter(|s| {
                s.verify_bindings(&key.primary_key).is_ok()
                    && !s.signatures.iter().any(|b| b.typ() == Some(SignatureType::SubkeyRevocation))
                    && s.signatures.iter().any(|b| b.key_flags().sign() && !key_over(b, s.created_at(), now))
            });
            let good = match is_by(signature, &key.primary_key) {
                true => signature.verify(&key.primary_key, text.as_bytes()).is_ok(),
                false => match subkeys.into_iter().find(|s| is_by(signature, &s.key)) {
                    Some(subkey) => signature.verify(&subkey.key, text.as_bytes()).is_ok(),
                    None => continue,
                },
            };
            named = true;
            if good && !signature_over(signature, now) {
                return Ok(());
            }
        }
    }
    if named {
        return Err(Untrusted::BadSignature);
    }
    let made_by: Vec<String> = message
        .signatures()
        .iter()
        .flat_map(|s| s.issuer_fingerprint().into_iter().map(|f| f.to_string()))
        .collect();
    let made_by = if made_by.is_empty() { "an unnamed key".to_owned() } else { made_by.join(", ") };
    Err(Untrusted::NoKey { made_by, ring: ring.name.clone() })
}

/// The key vouches for itself, is not revoked and has not expired.
fn usable(key: &SignedPublicKey, now: Timestamp) -> bool {
    let own: Vec<&Signature> =
        key.details.users.iter().flat_map(|u| &u.signatures).filter(|s| is_by(s, &key.primary_key)).collect();
    let certified = key.details.users.iter().any(|u| {
        u.signatures.iter().any(|s| {
            is_by(s, &key.primary_key)
                && s.verify_certification(&key.primary_key, pgp::types::Tag::UserId, &u.id).is_ok()
        })
    });
    let latest = own.iter().filter_map(|s| s.created().map(|c| (c, *s))).max_by_key(|(c, _)| *c);
    certified
        && key.details.revocation_signatures.is_empty()
        && latest.is_none_or(|(_, s)| !key_over(s, key.primary_key.created_at(), now))
}

fn is_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    let fingerprint = key.fingerprint();
    let id = key.legacy_key_id();
    signature.issuer_fingerprint().contains(&&fingerprint) || signature.issuer_key_id().contains(&&id)
}

fn after(start: pgp::types::Timestamp, length: pgp::types::Duration) -> Option<SystemTime> {
    SystemTime::from(start).checked_add(length.into())
}

fn key_over(binding: &Signature, created: pgp::types::Timestamp, now: Timestamp) -> bool {
    let ends = binding.key_expiration_time().filter(|d| *d != Default::default());
    ends.and_then(|length| after(created, length)).is_some_and(|end| SystemTime::from(now) >= end)
}

fn signature_over(signature: &Signature, now: Timestamp) -> bool {
    let length = signature.signature_expiration_time().filter(|d| *d != Default::default());
    let end = length.zip(signature.created()).and_then(|(length, start)| after(start, length));
    end.is_some_and(|end| SystemTime::from(now) >= end)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(120).collect()
}

fn read(text: &str, suite: &str, now: Timestamp) -> Result<Release, Untrusted> {
    let field = |name: &str| crate::index::field(text, name);
    let codename = field("Codename").ok_or(Untrusted::Field("Codename"))?;
    if codename != suite && field("Suite") != Some(suite) {
        return Err(Untrusted::WrongSuite { wanted: suite.to_owned(), found: codename.to_owned() });
    }
    if let Some(until) = field("Valid-Until") {
        let end = date(until).ok_or(Untrusted::Field("Valid-Until"))?;
        if now > end {
            return Err(Untrusted::Expired(until.to_owned()));
        }
    }
    let mut files = HashMap::new();
    let hashes = text.lines().skip_while(|l| l.trim_end() != "SHA256:").skip(1);
    for line in hashes.take_while(|l| l.starts_with(' ')) {
        let mut words = line.split_whitespace();
        let (Some(sha256), Some(size), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Ok(size) = size.parse() else { continue };
        if sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            files.insert(name.to_owned(), Expected { size, sha256: sha256.to_ascii_lowercase() });
        }
    }
    if files.is_empty() {
        return Err(Untrusted::Field("SHA256"));
    }
    Ok(Release { codename: codename.to_owned(), date: field("Date").unwrap_or_default().to_owned(), files })
}

/// `Thu, 26 Nov 2026 02:12:54 UTC`
fn date(text: &str) -> Option<Timestamp> {
    let text = text.replace(" UTC", " +0000");
    rfc2822::DateTimeParser::new().parse_timestamp(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with gpg at a faked time: an ed25519 key valid for 2026, a list signed in its first days and valid for one
    // week, and another key.
    const LIST: &[u8] = include_bytes!("../tests/data/InRelease");
    const RING: &[u8] = include_bytes!("../tests/data/ring.gpg");
    const OTHER: &[u8] = include_bytes!("../tests/data/other.asc");

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn check(list: &[u8], ring: &[u8], suite: &str, now: &str) -> Result<Release, Untrusted> {
        verify(list, &KeyRing::parse("ring", ring), suite, at(now))
    }

    #[test]
    fn believes_what_a_key_of_the_ring_signed() {
        let release = check(LIST, RING, "trixie", "2026-01-05T00:00:00Z").unwrap();
        assert_eq!(release.codename, "trixie");
        assert_eq!(release.files["main/binary-amd64/Packages.xz"].size, 123);
        assert_eq!(release.files.len(), 1);
        let mut both = KeyRing::parse("ring", OTHER);
        assert_eq!(both.len(), 1);
        both.join(KeyRing::parse("", RING));
        assert!(verify(LIST, &both, "trixie", at("2026-01-05T00:00:00Z")).is_ok());
    }

    #[test]
    fn refusals() {
        let now = "2026-01-05T00:00:00Z";
        assert!(matches!(check(LIST, OTHER, "trixie", now), Err(Untrusted::NoKey { .. })));
        assert!(matches!(check(LIST, b"", "trixie", now), Err(Untrusted::NoKey { .. })));
        assert!(matches!(check(LIST, RING, "sid", now), Err(Untrusted::WrongSuite { .. })));
        assert!(matches!(check(LIST, RING, "trixie", "2026-01-11T00:00:00Z"), Err(Untrusted::Expired(_))));
        // The key itself ends with 2026.
        assert!(matches!(check(LIST, RING, "trixie", "2027-02-01T00:00:00Z"), Err(Untrusted::NoKey { .. })));
        let text = String::from_utf8(LIST.to_vec()).unwrap();
        let changed = text.replace(" 123 main", " 124 main");
        assert_eq!(check(changed.as_bytes(), RING, "trixie", now), Err(Untrusted::BadSignature));
        let body = text.split("\n\n").nth(1).unwrap();
        assert!(matches!(check(body.as_bytes(), RING, "trixie", now), Err(Untrusted::Unsigned(_))));
        // Text before the signed part is not part of it.
        let prefixed = format!("Codename: sid\n{text}");
        assert_ne!(check(prefixed.as_bytes(), RING, "sid", now).map(|r| r.codename), Ok("sid".to_owned()));
    }

    #[test]
    fn garbage_is_refused_and_never_a_panic() {
        let mut state = 0x1234_5678_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize
        };
        let ring = KeyRing::parse("ring", RING);
        for _ in 0..500 {
            let (mut list, mut keys) = (LIST.to_vec(), RING.to_vec());
            let (i, j) = (next() % list.len(), next() % keys.len());
            list[i] ^= 1 << (next() % 7);
            keys[j] ^= 1 << (next() % 7);
            let _ = verify(&list, &ring, "trixie", at("2026-01-05T00:00:00Z"));
            let _ = KeyRing::parse("damaged", &keys);
        }
    }
}
