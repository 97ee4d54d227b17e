//! The boot plane's questions and its journal.
//!
//! `pxe` serves bytes to firmware; it does not know who a machine is. It asks a [`Directory`], and tells a
//! [`Journal`] what happened. `fleet` implements both; the `labshift` command joins them.

use std::net::{IpAddr, Ipv4Addr};

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    hardware::Hardware,
    mac::MacAddr,
    manifest::{Refused, Signature, is_signed, public},
};

/// Who a hardware address belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Host name.
    pub name: String,
    /// The address it always gets, outside the dynamic pool.
    pub address: Option<Ipv4Addr>,
    /// Workstation or virtual machine.
    pub kind: MachineKind,
}

/// Workstation or virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineKind {
    /// A workstation that may boot from us.
    Node,
    /// A virtual machine on a node: gets an address, never a boot file.
    Guest,
}

/// What a machine boots now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootChoice {
    /// An image of the store.
    Image {
        /// Image name.
        name: String,
        /// Full generation.
        generation: String,
        /// Kernel arguments beyond the image's own.
        arguments: String,
    },
    /// Its local disk: we answer nothing about booting.
    LocalDisk,
    /// Not ours: we stay silent.
    Ignore,
    /// Known, but must not boot now; the reason goes to the screen and the journal.
    Refuse(String),
}

/// Why a node's init gets no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// It may not boot; the sentence goes to its screen.
    Refused(String),
    /// Nobody knows it: it shall say what it is made of, and ask again until it is adopted.
    Unknown(String),
}

impl NoAnswer {
    /// The sentence.
    pub fn sentence(&self) -> &str {
        match self {
            NoAnswer::Refused(sentence) | NoAnswer::Unknown(sentence) => sentence,
        }
    }
}

/// Answers who a machine is and what it boots. Called from the packet path: answers come from memory.
pub trait Directory: Send + Sync {
    /// Who owns this hardware address; `None` for a stranger. What a stranger boots, [`Directory::boot`] says all the same.
    fn machine(&self, mac: MacAddr) -> Option<Machine>;
    /// What it boots now.
    fn boot(&self, mac: MacAddr) -> BootChoice;
    /// The answer for the node's own init, which asks with a number of its own: opens a session with a fresh token.
    fn answer(&self, mac: MacAddr, nonce: &str, from: IpAddr) -> Result<SignedAnswer, NoAnswer>;
}

/// Hears what the boot plane saw.
pub trait Journal: Send + Sync {
    /// Notes one event. Must not block.
    fn record(&self, event: BootPlaneEvent);
}

/// Who is speaking in an exchange of the boot plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speaker {
    /// BIOS PXE ROM.
    BiosRom,
    /// UEFI PXE or HTTP boot.
    Uefi,
    /// iPXE.
    Ipxe,
    /// Our own init.
    Init,
    /// Any other DHCP client (a guest's operating system).
    Other,
}

/// Something that the boot plane saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum BootPlaneEvent {
    /// A DISCOVER was answered.
    Offer {
        /// Client.
        mac: MacAddr,
        /// Address offered.
        address: Ipv4Addr,
        /// Who asked.
        speaker: Speaker,
    },
    /// A lease was given or renewed.
    Lease {
        /// Client.
        mac: MacAddr,
        /// Address.
        address: Ipv4Addr,
        /// Who asked.
        speaker: Speaker,
    },
    /// A file was sent whole, by TFTP or HTTP.
    Sent {
        /// Who took it.
        peer: IpAddr,
        /// `tftp` or `http`.
        protocol: String,
        /// Path as asked.
        path: String,
        /// Bytes sent.
        bytes: u64,
        /// From the request to the last byte.
        milliseconds: u64,
    },
    /// A transfer did not complete.
    Broken {
        /// Who wanted it.
        peer: IpAddr,
        /// `tftp` or `http`.
        protocol: String,
        /// Path as asked.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// Another DHCP server answers on this network.
    RogueServer {
        /// Its address.
        address: Ipv4Addr,
    },
    /// A node's init reported.
    Report {
        /// Where it came from.
        peer: IpAddr,
        /// What it said.
        report: BootReport,
    },
}

/// What init is told when it asks what to boot (`GET /v1/boot/answer`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootAnswer {
    /// Host name.
    pub node: String,
    /// Room the machine stands in.
    pub room: String,
    /// Image name.
    pub image: String,
    /// Full generation; files are under `/images/IMAGE/GENERATION/`.
    pub generation: String,
    /// The exact bytes of `manifest.json`.
    pub manifest: String,
    /// Signature over these bytes.
    pub signature: Signature,
    /// Number of this boot attempt in the journal.
    pub attempt: u64,
    /// Bearer token of the node for this boot.
    pub token: String,
    /// The server's clock.
    pub now: Timestamp,
    /// The number that the machine asked with: an answer that was recorded earlier has another.
    pub nonce: String,
    /// Machines of the segment that may give and take blocks of the same root; none where the site does not allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Ipv4Addr>,
}

/// A boot answer as it travels. The server signs it with a key of its own, which the initramfs knows: name, generation, token and
/// above all the time come from the right server and were said just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedAnswer {
    /// A [`BootAnswer`] as JSON: these very bytes are signed.
    pub answer: String,
    /// The server's public key, lower-case hex.
    pub key: String,
    /// 64 bytes, lower-case hex.
    pub ed25519: String,
}

/// Why a boot answer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disbelieved {
    /// Signed by somebody else.
    #[error("it is signed by key {0}, which is none of this image's server")]
    UnknownKey(String),
    /// Changed on its way.
    #[error("its signature does not match its content")]
    BadSignature,
    /// Given to another question.
    #[error("it was given to an earlier question: somebody plays a recorded answer back")]
    Recorded,
    /// Another version's.
    #[error("it is not readable: {0}")]
    Unreadable(String),
}

/// Longest number that a machine may ask with.
pub const LONGEST_NONCE: usize = 64;

/// Whether a machine may ask with this: letters and digits.
pub fn is_nonce(text: &str) -> bool {
    text.len() <= LONGEST_NONCE && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

impl SignedAnswer {
    /// Signs an answer.
    pub fn sign(answer: &BootAnswer, key: &SigningKey) -> Self {
        let answer = serde_json::to_string(answer).unwrap_or_default();
        let ed25519 = hex::encode(key.sign(&Self::statement(&answer)).to_bytes());
        SignedAnswer { answer, key: public(key), ed25519 }
    }

    fn statement(answer: &str) -> Vec<u8> {
        [b"labshift answer\n", answer.as_bytes()].concat()
    }

    /// The answer, if one of the trusted keys gave it to this number.
    pub fn open(&self, trusted: &[VerifyingKey], nonce: &str) -> Result<BootAnswer, Disbelieved> {
        is_signed(&Self::statement(&self.answer), (&self.key, &self.ed25519), trusted).map_err(|why| {
            match why {
                Refused::UnknownKey(key) => Disbelieved::UnknownKey(key),
                _ => Disbelieved::BadSignature,
            }
        })?;
        let answer: BootAnswer =
            serde_json::from_str(&self.answer).map_err(|e| Disbelieved::Unreadable(e.to_string()))?;
        if answer.nonce == nonce { Ok(answer) } else { Err(Disbelieved::Recorded) }
    }
}

/// Stages of a boot, in order. Each ends once; `explain` and the timeline print them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The magic packet was sent.
    Wake,
    /// Firmware's first DISCOVER was seen.
    Firmware,
    /// The loader or UKI was fetched.
    Loader,
    /// PID 1 runs (its time is the kernel's own start-up).
    Init,
    /// Modules for network and root are loaded.
    Modules,
    /// A link is up.
    Link,
    /// The node has an address.
    Address,
    /// The manifest is verified.
    Manifest,
    /// The root is fetched and verified.
    RootFetched,
    /// The root is mounted.
    RootMounted,
    /// Services are started.
    Services,
    /// The runtime has checked in and can run guests.
    Ready,
    /// The first guest is visible on the screen, or runs.
    GuestVisible,
}

/// One stage's end, or its failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageEvent {
    /// Which stage.
    pub stage: Stage,
    /// Milliseconds since the kernel started (`CLOCK_BOOTTIME`).
    pub at_ms: u64,
    /// Present when the stage failed: a sentence for an admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What happened, in a few words (`e1000e up at 1000 Mbit/s`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A boot failure as shown on the screen, on serial, and at the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Short constant, for searching: `ROOT-HASH`, `NO-LINK`.
    pub code: String,
    /// What is wrong.
    pub sentence: String,
    /// What to do.
    pub hint: String,
}

/// What init tells the server before any root exists (`POST /v1/boot/report`), as often as it has something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootReport {
    /// The machine that reports.
    pub mac: MacAddr,
    /// Attempt number of the boot answer, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// Stages since the last report.
    pub stages: Vec<StageEvent>,
    /// How the machine's last run ended, if its kernel stopped; until a report with it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<String>,
    /// Log lines since the last report, the newest last; at most 64 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// What the machine is made of: told by one that waits to be adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Box<Hardware>>,
}
