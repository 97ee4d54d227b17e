//! The messages on a node's channel: a WebSocket that the node opens; each text frame is one JSON message.
//!
//! The channel is level-triggered. The server sends the whole desired state whenever it changes; the node sends
//! its whole status whenever that changes. A message lost with a connection does no harm.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    boot::StageEvent,
    guest::{GuestSpec, GuestStatus},
};

/// What a node is for at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Shows its student a desktop.
    Desktop,
    /// Runs batch guests and shares its GPU.
    Compute,
    /// Up, runs nothing: an admin works on it.
    Maintenance,
    /// Powered off, to be woken by Wake-on-LAN.
    Off,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Desktop => "desktop",
            Mode::Compute => "compute",
            Mode::Maintenance => "maintenance",
            Mode::Off => "off",
        })
    }
}

/// A mode, from a time on, with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeFrom {
    /// When it begins.
    pub from: Timestamp,
    /// The mode.
    pub mode: Mode,
    /// Why, in words that `explain` prints.
    pub cause: String,
}

/// What the server wants of a node. Complete: what is not named shall not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeDesired {
    /// Counts up with every change.
    pub revision: u64,
    /// The server's clock when this was sent.
    pub now: Timestamp,
    /// Wanted now.
    pub current: ModeFrom,
    /// What the schedule says next: followed when the server can't be reached.
    pub upcoming: Vec<ModeFrom>,
    /// Seconds a person gets between the warning and the end of the desktop.
    pub grace_seconds: u32,
    /// The desktop guest, to run in desktop mode.
    pub desktop: Option<GuestSpec>,
    /// Batch guests, to run in compute mode.
    pub batch: Vec<GuestSpec>,
    /// Serve remote CUDA in compute mode.
    pub rcuda: bool,
}

/// Server to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToNode {
    /// The desired state.
    Desired(Box<NodeDesired>),
    /// Asks for a reboot of exactly this boot attempt; a command that arrives late finds another number and is ignored.
    Reboot {
        /// The boot that is meant.
        attempt: u64,
        /// Why.
        cause: String,
        /// Without the firmware's start-up.
        #[serde(default)]
        kexec: bool,
    },
}

/// Node to server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromNode {
    /// First message of a connection.
    Hello {
        /// Boot attempt that this is.
        attempt: u64,
        /// `labshift-runtime` version.
        version: String,
        /// What the machine has.
        facts: Facts,
        /// Stages of this boot, up to `Ready`.
        stages: Vec<StageEvent>,
    },
    /// The whole status.
    Status(NodeStatus),
    /// A later stage ended (`GuestVisible`).
    Stage(StageEvent),
}

/// What a machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Logical CPUs.
    pub cpus: u32,
    /// MiB of RAM.
    pub memory_mib: u64,
    /// /dev/kvm works: a virtual machine with a vCPU could be created.
    pub kvm: bool,
    /// CPU model string.
    pub cpu_model: String,
}

/// Where a node is between two modes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    /// Mode that it comes from; `None` after boot.
    pub from: Option<Mode>,
    /// Mode that it goes to.
    pub to: Mode,
    /// Phase under way, in words (`saving batch-1`).
    pub phase: String,
    /// Phases done and phases in all.
    pub done: u32,
    /// Phases in all.
    pub total: u32,
    /// When the transition began, by the node's copy of the server's clock.
    pub since: Timestamp,
    /// Milliseconds the transition has taken so far, real time.
    pub elapsed_ms: u64,
}

/// Everything a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeStatus {
    /// Revision of the desired state that this answers.
    pub revision: u64,
    /// The mode reached; `None` before the first.
    pub mode: Option<Mode>,
    /// Present while a mode change is under way.
    pub transition: Option<Transition>,
    /// The last completed mode changes, newest last, at most 16.
    pub completed: Vec<CompletedTransition>,
    /// All guests that the node knows.
    pub guests: Vec<GuestStatus>,
    /// Remote-CUDA devices while the service answers.
    pub rcuda: Option<Vec<CudaDevice>>,
    /// Seconds since a person touched keyboard or mouse; `None` when there are none.
    pub idle_seconds: Option<u64>,
    /// What went wrong last, if it still matters.
    pub trouble: Option<String>,
}

/// A mode change that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompletedTransition {
    /// Mode that it came from.
    pub from: Option<Mode>,
    /// Mode reached.
    pub to: Mode,
    /// Milliseconds from start to end.
    pub took_ms: u64,
    /// Phases with their milliseconds.
    pub phases: Vec<(String, u64)>,
}

/// One device of the remote-CUDA service; what `rcuda-smi --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CudaDevice {
    /// Index.
    pub index: u32,
    /// Product name; the software device says so in its name.
    pub name: String,
    /// Bytes of device memory.
    pub memory_total: u64,
    /// Bytes free.
    pub memory_free: u64,
    /// Compute capability, such as `9.0`.
    pub compute_capability: String,
    /// True for the software device.
    pub software: bool,
}
