//! Who may ask for what: the admin's token, the nodes' tokens, the guests' tokens.
//!
//! | token | made | kept |
//! |---|---|---|
//! | admin | once, random | `<state>/admin.token`, mode 0600 |
//! | node | for each boot, random | its SHA-256 in the registry; older boots' end with the next check-in |
//! | guest | from its name and `<state>/secret.key` | nowhere |
//!
//! And the key that signs boot answers, which images built in the same store know: `<store>/keys/server.key`.
//!
//! Comparisons are made on hashes, so that their time tells nothing about the token.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ed25519_dalek::SigningKey;
use labshift_model::{
    boot::{BootAnswer, SignedAnswer},
    paths,
};
use rand::RngExt;
use sha2::{Digest, Sha256};

/// A token's hash.
pub type Hash = [u8; 32];

/// A file with a secret can't be read or made.
#[derive(Debug, thiserror::Error)]
#[error("secret file {path}")]
pub struct KeyError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The secrets of this server.
pub struct Keys {
    admin: Hash,
    secret: Hash,
    answers: SigningKey,
}

impl Keys {
    /// Reads the secrets of a state directory and the store's server key; makes those that are missing.
    pub fn open(state: &Path, store: &Path) -> Result<Self, KeyError> {
        let admin = read_or_make(&state.join("admin.token"))?;
        let secret = read_or_make(&state.join("secret.key"))?;
        let path = store.join(paths::SERVER_KEY);
        let failed = |source| KeyError { path: path.clone(), source };
        fs::create_dir_all(store.join("keys")).map_err(failed)?;
        let text = read_or_make(&path).map_err(|mut e| {
            if e.source.kind() == io::ErrorKind::PermissionDenied {
                let reason = "permission denied: whoever runs `labshift serve` must be able to read it; build images as that user, or give it the file";
                e.source = io::Error::new(io::ErrorKind::PermissionDenied, reason);
            }
            e
        })?;
        let seed = hex::decode(text).ok().and_then(|b| b.try_into().ok());
        let damaged = || io::Error::other("does not hold 64 hex digits; restore it from a copy");
        let answers = SigningKey::from_bytes(&seed.ok_or_else(|| failed(damaged()))?);
        Ok(Keys { admin: hash(&admin), secret: hash(&secret), answers })
    }

    /// Signs a boot answer.
    pub fn sign(&self, answer: &BootAnswer) -> SignedAnswer {
        SignedAnswer::sign(answer, &self.answers)
    }

    /// Whether this is the admin's token.
    pub fn is_admin(&self, token: &str) -> bool {
        hash(token) == self.admin
    }

    /// The token with which a guest reports: the same for its whole life, on whatever node.
    pub fn guest(&self, name: &str) -> String {
        let mut digest = Sha256::new();
        digest.update(self.secret);
        digest.update(Sha256::digest(format!("guest {name}")));
        hex::encode(digest.finalize())
    }

    /// Whether this is the guest's token.
    pub fn is_guest(&self, name: &str, token: &str) -> bool {
        hash(token) == hash(&self.guest(name))
    }
}

/// SHA-256 of a token.
pub fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

/// A token of 256 random bits.
pub fn random_token() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill(&mut bytes);
    hex::encode(bytes)
}

fn read_or_make(path: &Path) -> Result<String, KeyError> {
    let failed = |source| KeyError { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) if text.trim().len() >= 32 => return Ok(text.trim().to_owned()),
        Ok(_) => return Err(failed(io::Error::other("holds no token; delete it to have a new one made"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    let token = random_token();
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(format!("{token}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(token)
}

/// Node tokens of the boots that may still speak.
#[derive(Debug, Default)]
pub struct NodeTokens {
    by_hash: HashMap<Hash, (String, u64)>,
}

/// Boots of one node whose tokens are good at one time: init may ask more than once before its runtime speaks.
const KEPT: usize = 4;

impl NodeTokens {
    /// A new boot's token. The oldest of the node's tokens end.
    pub fn add(&mut self, token: Hash, node: &str, attempt: u64) {
        self.by_hash.insert(token, (node.to_owned(), attempt));
        let mut attempts: Vec<u64> =
            self.by_hash.values().filter(|(n, _)| n == node).map(|(_, a)| *a).collect();
        attempts.sort_unstable();
        if let Some(oldest) = attempts.len().checked_sub(KEPT).and_then(|i| attempts.get(i)).copied() {
            self.by_hash.retain(|_, (n, a)| n != node || *a >= oldest);
        }
    }

    /// A boot's runtime has spoken: tokens of the node's earlier boots end.
    pub fn settle(&mut self, node: &str, attempt: u64) {
        self.by_hash.retain(|_, (n, a)| n != node || *a >= attempt);
    }

    /// Whose token this is, and of which boot.
    pub fn find(&self, token: &str) -> Option<(String, u64)> {
        self.by_hash.get(&hash(token)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_made_once_and_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let keys = Keys::open(dir.path(), &dir.path().join("store")).expect("keys");
        let path = dir.path().join("admin.token");
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
        let token = fs::read_to_string(&path).expect("readable");
        let again = Keys::open(dir.path(), &dir.path().join("store")).expect("keys");
        assert!(again.is_admin(token.trim()) && !again.is_admin("") && !again.is_admin(&token));
        assert_eq!(keys.guest("primes"), again.guest("primes"));
        assert!(
            keys.is_guest("primes", &again.guest("primes"))
                && !keys.is_guest("other", &again.guest("primes"))
        );
        fs::write(&path, "short").expect("written");
        assert!(Keys::open(dir.path(), &dir.path().join("store")).is_err());
    }

    #[test]
    fn earlier_boots_lose_their_voice() {
        let mut tokens = NodeTokens::default();
        for attempt in 1..=6 {
            tokens.add(hash(&attempt.to_string()), "ws1", attempt);
        }
        tokens.add(hash("x"), "ws2", 7);
        assert_eq!(tokens.find("2"), None);
        assert_eq!(tokens.find("3"), Some(("ws1".into(), 3)));
        tokens.settle("ws1", 6);
        assert_eq!(tokens.find("5"), None);
        assert_eq!(tokens.find("6"), Some(("ws1".into(), 6)));
        assert_eq!(tokens.find("x"), Some(("ws2".into(), 7)));
    }
}
