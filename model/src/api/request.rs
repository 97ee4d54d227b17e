//! What an admin may ask of the server, and how it answers.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{mac::MacAddr, node::Mode};

/// Wake a node now. Where its schedule says `off`, it stays up in maintenance mode for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WakeRequest {
    /// How long it stays up though its schedule says `off`; an hour when absent.
    pub seconds: Option<u32>,
    /// Who wants it and what for; shown by `explain`.
    pub cause: String,
}

/// Give a node a mode, whatever its schedule says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeRequest {
    /// The mode; absent gives the node back to its schedule.
    pub mode: Option<Mode>,
    /// Until when; without end when absent.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// Why; shown by `explain`.
    #[serde(default)]
    pub cause: String,
}

/// Reboot a node. Its batch guests are saved first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RebootRequest {
    /// Why; shown by `explain`.
    pub cause: String,
    /// Straight into the kernel of the generation that it shall run, without the firmware's start-up.
    pub kexec: bool,
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BootTarget {
    /// Its room's image.
    Room,
    /// Its own disk: the boot plane sends its firmware on to it, and nobody wakes it.
    Disk,
    /// This host image.
    Image {
        /// Image name.
        name: String,
        /// Generation, or the beginning of one (4 hex digits at least); that of the channel `stable` when absent.
        #[serde(default)]
        generation: Option<String>,
    },
}

impl std::fmt::Display for BootTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BootTarget::Room => f.write_str("its room's image"),
            BootTarget::Disk => f.write_str("its own disk"),
            BootTarget::Image { name, generation: None } => f.write_str(name),
            BootTarget::Image { name, generation: Some(generation) } => {
                write!(f, "{name}@{}", crate::manifest::short(generation))
            }
        }
    }
}

/// Says what a machine boots from its next boot on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootRequest {
    /// What it boots.
    pub target: BootTarget,
    /// For one boot only.
    #[serde(default)]
    pub once: bool,
    /// Why; shown by `explain`.
    #[serde(default)]
    pub cause: String,
}

/// Declares that a lost node has no power, so that its guests may be resumed elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FenceRequest {
    /// How it is known.
    pub cause: String,
}

/// Makes a machine known under a name that is free; it goes on to boot its room's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptRequest {
    /// Hardware address of the port it boots from.
    pub mac: MacAddr,
    /// The room it stands in.
    pub room: String,
    /// The address it always gets; the first free one outside the pool when absent.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
}

/// Moves a manual clock forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockRequest {
    /// The new time: RFC 3339 (`2026-11-23T07:50:00+01:00`), or local time of the site (`2026-11-23T07:50:00`).
    pub now: String,
}

/// A request was carried out or is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done, in words.
    pub done: String,
    /// Number of the newest event when it was done.
    pub event: u64,
}

/// A request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong and what to do.
    pub problem: String,
}
