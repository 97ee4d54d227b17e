//! The first bytes in both directions. Their layout is the one thing that no later version may change.
//!
//! ```text
//! offset 0  magic    4 bytes "LsRc"
//!        4  version  u16
//!        6  hash     u64, over the layout of every message
//!       14  verdict  u8: 0 = accepted (or a client's hello), 1 = refused
//!       15  length   u8, of the text
//!       16  text     release of the speaker; with a refusal: release, then a line break, then the reason
//! ```

use std::fmt;

use thiserror::Error;

use super::{
    codec::layout_hash,
    message::{DeviceInfo, Failure, Kernel, Launch, Reply, Request, Symbol},
};

const MAGIC: [u8; 4] = *b"LsRc";
/// Bytes before the text.
pub const HEAD: usize = 16;

/// Counted up when the meaning of a message changes without its layout.
pub const VERSION: u16 = 1;

/// Hash over the layout of every message of this build.
pub const HASH: u64 = {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    hash = layout_hash(hash, Request::LAYOUT);
    hash = layout_hash(hash, Reply::LAYOUT);
    hash = layout_hash(hash, DeviceInfo::LAYOUT);
    hash = layout_hash(hash, Failure::LAYOUT);
    hash = layout_hash(hash, Kernel::LAYOUT);
    hash = layout_hash(hash, Symbol::LAYOUT);
    layout_hash(hash, Launch::LAYOUT)
};

/// What one side says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version.
    pub version: u16,
    /// Layout hash.
    pub hash: u64,
    /// Release of the program.
    pub release: String,
    /// Why the connection is refused.
    pub refusal: Option<String>,
}

/// Why a peer's first bytes were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HelloError {
    /// Something else listens or speaks there.
    #[error("the other side does not speak remote CUDA; check the address")]
    NotOurs,
    /// Both speak remote CUDA, but not the same.
    #[error("versions differ: this side speaks {ours}, the other side {theirs}; use programs of one release")]
    Mismatch {
        /// This program.
        ours: String,
        /// The peer.
        theirs: String,
    },
    /// The server said no.
    #[error("the server refused the connection: {0}")]
    Refused(String),
}

impl fmt::Display for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "protocol {} (hash {:016x}, release {})", self.version, self.hash, self.release)
    }
}

impl Hello {
    /// This program's hello.
    pub fn ours() -> Self {
        Self { version: VERSION, hash: HASH, release: env!("CARGO_PKG_VERSION").to_owned(), refusal: None }
    }

    /// This program's hello, with a refusal.
    pub fn refuse(reason: &str) -> Self {
        Self { refusal: Some(reason.to_owned()), ..Self::ours() }
    }

    /// Bytes to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = self.release.clone();
        if let Some(reason) = &self.refusal {
            text.push('\n');
            text.push_str(reason);
        }
        let mut end = text.len().min(255);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.hash.to_le_bytes());
        bytes.push(u8::from(self.refusal.is_some()));
        bytes.push(end as u8);
        bytes.extend_from_slice(&text.as_bytes()[..end]);
        bytes
    }

    /// How many bytes of text follow this head.
    pub fn text_length(head: &[u8; HEAD]) -> Result<usize, HelloError> {
        if head[..4] == MAGIC { Ok(head[15].into()) } else { Err(HelloError::NotOurs) }
    }

    /// Reads head and text.
    pub fn from_bytes(head: &[u8; HEAD], text: &[u8]) -> Result<Self, HelloError> {
        Self::text_length(head)?;
        let [_, _, _, _, v0, v1, h0, h1, h2, h3, h4, h5, h6, h7, verdict, _] = *head;
        // The text is shown to people: nothing in it may steer a terminal.
        let text: String =
            String::from_utf8_lossy(text).chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        let (release, reason) = text.split_once('\n').unwrap_or((&text, ""));
        Ok(Self {
            version: u16::from_le_bytes([v0, v1]),
            hash: u64::from_le_bytes([h0, h1, h2, h3, h4, h5, h6, h7]),
            release: release.to_owned(),
            refusal: (verdict != 0).then(|| reason.to_owned()),
        })
    }

    /// Whether the peer's messages mean what ours mean.
    pub fn check(&self) -> Result<(), HelloError> {
        let ours = Self::ours();
        if (self.version, self.hash) != (ours.version, ours.hash) {
            return Err(HelloError::Mismatch { ours: ours.to_string(), theirs: self.to_string() });
        }
        match &self.refusal {
            Some(reason) => Err(HelloError::Refused(reason.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(hello: &Hello) -> Result<Hello, HelloError> {
        let bytes = hello.to_bytes();
        let (head, text) = bytes.split_first_chunk::<HEAD>().ok_or(HelloError::NotOurs)?;
        assert_eq!(Hello::text_length(head)?, text.len());
        Hello::from_bytes(head, text)
    }

    #[test]
    fn round_trip() {
        for hello in
            [Hello::ours(), Hello::refuse("it serves at most 64 at a time, and that many are connected")]
        {
            assert_eq!(through(&hello), Ok(hello));
        }
    }

    #[test]
    fn a_mismatch_names_both_versions() {
        let other = Hello { version: 9, hash: 0xabc, release: "7.7".into(), refusal: None };
        let Err(error) = through(&other).and_then(|h| h.check()) else { panic!("accepted") };
        let text = error.to_string();
        assert!(text.contains(&Hello::ours().to_string()), "{text}");
        assert!(text.contains("protocol 9 (hash 0000000000000abc, release 7.7)"), "{text}");
    }

    #[test]
    fn another_protocol_is_recognised() {
        assert_eq!(Hello::text_length(b"HTTP/1.1 400 Bad"), Err(HelloError::NotOurs));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let cut = through(&Hello::refuse(&"é".repeat(400))).map(|h| h.refusal.unwrap_or_default());
        assert!(cut.is_ok_and(|reason| reason.chars().all(|c| c == 'é') && reason.len() > 200));
    }
}
