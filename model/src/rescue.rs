//! The code that opens the rescue shell of a machine whose boot has failed: a question that the machine shows, an answer that only the
//! owner of an admin's key can work out, both short enough to be read and typed where there is no network.
//!
//! ```text
//! machine                                       admin's PC
//! random e, E = eG ── challenge: E ──────────>  code = short(hash(E, A, aE)) with the private key a
//! code = short(hash(E, A, eA))  <── 8 letters ──┘
//! ```
//!
//! The machine holds only the public key A (its initramfs is public: whoever may netboot can read it), so there is nothing in it that could
//! be guessed at. The keys are Ed25519, as `ssh-keygen` makes them, taken to X25519 (RFC 7748, birational map of section 4.1). A code is for one
//! challenge; the door counts the tries.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// Letters of challenges and codes: Crockford's base 32, without I, L, O and U.
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Letters of a code: 40 bits.
const CODE: usize = 8;
/// Letters that are read as one group.
const GROUP: usize = 4;
/// Bytes that tell a challenge that was typed wrong.
const CHECK: usize = 3;
/// The kind of key that OpenSSH calls Ed25519.
const KIND: &str = "ssh-ed25519";

/// A key or a challenge can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RescueError {
    /// The text is no public key.
    #[error("this is no line of a public Ed25519 key (ssh-ed25519 AAAA...)")]
    Key,
    /// The text is no challenge.
    #[error("this is no challenge: it has {0} letters instead of 56, or other ones than the screen shows")]
    Form(usize),
    /// The text is nearly a challenge.
    #[error("a letter of this challenge is wrong")]
    Check,
    /// Nobody's machine asks that.
    #[error("no machine asks this challenge")]
    Weak,
}

/// An admin's public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminKey(VerifyingKey);

impl AdminKey {
    /// The key of this private one.
    pub fn of(secret: &[u8; 32]) -> Self {
        AdminKey(SigningKey::from_bytes(secret).verifying_key())
    }
}

impl FromStr for AdminKey {
    type Err = RescueError;

    /// Reads a line of `id_ed25519.pub` (RFC 4253 section 6.6, RFC 8709 section 4).
    fn from_str(line: &str) -> Result<Self, RescueError> {
        let mut words = line.split_ascii_whitespace();
        let (Some(KIND), Some(text)) = (words.next(), words.next()) else { return Err(RescueError::Key) };
        let bytes = STANDARD.decode(text).map_err(|_| RescueError::Key)?;
        let rest =
            field(&bytes).filter(|(kind, _)| *kind == KIND.as_bytes()).and_then(|(_, rest)| field(rest));
        let (key, rest) = rest.ok_or(RescueError::Key)?;
        let key = <[u8; 32]>::try_from(key).ok().filter(|_| rest.is_empty());
        let key = key.and_then(|key| VerifyingKey::from_bytes(&key).ok()).filter(|key| !key.is_weak());
        key.map(AdminKey).ok_or(RescueError::Key)
    }
}

/// A field behind its length, and what follows.
fn field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// A machine's question: random, for one boot, kept by the machine.
pub struct Question(SigningKey);

impl Question {
    /// A question of these random bytes.
    pub fn new(random: &[u8; 32]) -> Self {
        Question(SigningKey::from_bytes(random))
    }

    /// What the machine shows.
    pub fn challenge(&self) -> Challenge {
        Challenge(self.0.verifying_key())
    }

    /// The code that the owner of this key works out.
    pub fn code(&self, key: &AdminKey) -> String {
        code(&self.0, &key.0, &self.0.verifying_key(), &key.0)
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Question").field(&self.challenge().to_string()).finish()
    }
}

/// What a machine shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge(VerifyingKey);

impl Challenge {
    /// The code for the owner of this private key.
    pub fn answer(&self, secret: &[u8; 32]) -> String {
        let own = SigningKey::from_bytes(secret);
        code(&own, &self.0, &self.0, &own.verifying_key())
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [self.0.as_bytes().as_slice(), &check(self.0.as_bytes())].concat();
        f.write_str(&grouped(&encode(&bytes)))
    }
}

impl FromStr for Challenge {
    type Err = RescueError;

    /// Reads what a person has typed: small letters, blanks, and letters that look alike are as good.
    fn from_str(text: &str) -> Result<Self, RescueError> {
        let letters = plain(text);
        let form = || RescueError::Form(letters.len());
        let bytes = decode(&letters).filter(|bytes| bytes.len() == 32 + CHECK).ok_or_else(form)?;
        let (point, found) = bytes.split_first_chunk::<32>().ok_or_else(form)?;
        if check(point) != found {
            return Err(RescueError::Check);
        }
        let key = VerifyingKey::from_bytes(point).map_err(|_| RescueError::Weak)?;
        if key.is_weak() { Err(RescueError::Weak) } else { Ok(Challenge(key)) }
    }
}

/// Whether what a person has typed is this code.
pub fn is_code(typed: &str, code: &str) -> bool {
    plain(typed) == plain(code)
}

fn code(own: &SigningKey, other: &VerifyingKey, challenge: &VerifyingKey, admin: &VerifyingKey) -> String {
    let shared = other.to_montgomery().mul_clamped(own.to_scalar_bytes());
    let hash = Sha256::new()
        .chain_update(b"labshift rescue code 1\n")
        .chain_update(challenge.as_bytes())
        .chain_update(admin.as_bytes())
        .chain_update(shared.as_bytes())
        .finalize();
    let mut letters = encode(&hash);
    letters.truncate(CODE);
    grouped(&letters)
}

fn check(point: &[u8; 32]) -> [u8; CHECK] {
    let hash = Sha256::digest(point);
    [hash[0], hash[1], hash[2]]
}

fn grouped(letters: &str) -> String {
    let groups: Vec<&str> =
        letters.as_bytes().chunks(GROUP).filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join("-")
}

/// What was typed, as it is meant.
fn plain(text: &str) -> String {
    let meant = |c: char| match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    };
    text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(meant).collect()
}

/// Five bits a letter, the first bits first.
fn encode(bytes: &[u8]) -> String {
    let (mut letters, mut bits, mut kept) = (String::new(), 0, 0_u32);
    for byte in bytes {
        kept = (kept << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            letters.push(char::from(LETTERS[(kept >> bits) as usize & 31]));
        }
    }
    if bits > 0 {
        letters.push(char::from(LETTERS[(kept << (5 - bits)) as usize & 31]));
    }
    letters
}

fn decode(letters: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut kept) = (Vec::new(), 0, 0_u32);
    for letter in letters.bytes() {
        let value = LETTERS.iter().position(|l| *l == letter)?;
        kept = (kept << 5) | u32::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((kept >> bits) as u8);
        }
    }
    (bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `ssh-keygen -t ed25519`.
    const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINYuIu7w3Vy0HwIzdd502gnGe3qwIzRGQxTqjJY7EoNp admin@pc";

    #[test]
    fn both_sides_come_to_the_same_code() {
        let secret: [u8; 32] = [1; 32];
        for random in 0..50_u8 {
            let question = Question::new(&[random; 32]);
            let shown = question.challenge().to_string();
            let typed: Challenge = shown.to_lowercase().replace('-', " ").replace('0', "o").parse().unwrap();
            assert_eq!(typed, question.challenge());
            let code = typed.answer(&secret);
            assert_eq!(code, question.code(&AdminKey::of(&secret)));
            assert_eq!((code.len(), shown.len()), (9, 69));
            assert!(is_code(&format!(" {} ", code.to_lowercase()), &code));
            // Another key, another question: another code.
            assert_ne!(code, typed.answer(&[2; 32]));
            assert_ne!(code, Question::new(&[200; 32]).challenge().answer(&secret));
        }
    }

    #[test]
    fn a_wrong_letter_is_told() {
        let shown = Question::new(&[7; 32]).challenge().to_string();
        for at in (0..shown.len()).filter(|at| shown.as_bytes()[*at] != b'-') {
            let mut letters = shown.clone().into_bytes();
            letters[at] = if letters[at] == b'7' { b'8' } else { b'7' };
            let told = String::from_utf8(letters).unwrap().parse::<Challenge>();
            assert_eq!(told, Err(RescueError::Check), "letter {at}");
        }
        assert_eq!(shown[..60].parse::<Challenge>(), Err(RescueError::Form(48)));
        assert_eq!("U".repeat(56).parse::<Challenge>(), Err(RescueError::Form(56)));
        let zero = [[0; 32].as_slice(), &check(&[0; 32])].concat();
        assert_eq!(encode(&zero).parse::<Challenge>(), Err(RescueError::Weak));
        let mut lot = 7_u64;
        for _ in 0..20_000 {
            lot = lot.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut bytes = shown.clone().into_bytes();
            let at = (lot >> 33) as usize % bytes.len();
            bytes[at] = (lot >> 20) as u8;
            bytes.truncate((lot >> 40) as usize % 100);
            let _ = String::from_utf8_lossy(&bytes).parse::<Challenge>();
            let _ = String::from_utf8_lossy(&bytes).parse::<AdminKey>();
        }
    }

    #[test]
    fn public_keys_as_ssh_keygen_writes_them() {
        assert!(LINE.parse::<AdminKey>().is_ok());
        assert_eq!(LINE.parse::<AdminKey>(), LINE.trim_end_matches(" admin@pc").parse());
        let weak =
            STANDARD.encode([&[0, 0, 0, 11], b"ssh-ed25519".as_slice(), &[0, 0, 0, 32], &[0; 32]].concat());
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            &LINE.replace("ssh-ed25519", "ssh-rsa"),
            &LINE.replace("AAAAC3", "AAAAC4"),
            &LINE.replacen(" admin", "AAAA admin", 1),
            &format!("ssh-ed25519 {weak}"),
        ] {
            assert_eq!(bad.parse::<AdminKey>(), Err(RescueError::Key), "{bad}");
        }
    }

    #[test]
    fn letters_carry_bytes() {
        assert_eq!(encode(b"hello"), "D1JPRV3F");
        assert_eq!(decode("D1JPRV3F").as_deref(), Some(&b"hello"[..]));
        assert_eq!(decode("D1JPRV3"), None);
        assert_eq!(decode("D1JPRV3U"), None);
    }
}
