//! What the server says of its fleet, and what an admin may ask of it: the JSON of the admin API.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`FleetStatus`] |
//! | `GET /v1/status?newer=VERSION` | the same, once it has changed since that version (or after 20 s) |
//! | `GET /v1/events?since=ID` | [`Event`]s, one JSON object per line, without end |
//! | `GET /v1/nodes/NAME/explain` | [`Explanation`] |
//! | `GET /v1/nodes/NAME/boots` | a list of [`Boot`], newest first |
//! | `GET /v1/nodes/NAME/log` | a list of [`LogPart`], oldest first |
//! | `POST /v1/nodes/NAME/wake` | [`WakeRequest`] → [`Done`] |
//! | `POST /v1/nodes/NAME/mode` | [`ModeRequest`] → [`Done`] |
//! | `POST /v1/nodes/NAME/reboot` | [`RebootRequest`] → [`Done`] |
//! | `POST /v1/nodes/NAME/boot` | [`BootRequest`] → [`Done`] |
//! | `POST /v1/nodes/NAME/fence` | [`FenceRequest`] → [`Done`] |
//! | `POST /v1/nodes/NAME/adopt` | [`AdoptRequest`] → [`Done`] |
//! | `POST /v1/nodes/NAME/forget` | → [`Done`] |
//! | `POST /v1/lab/clock` | [`ClockRequest`] → [`Done`] |
//!
//! Everything needs `Authorization: Bearer` with the admin's token. A refusal is a [`Problem`] with a fitting
//! HTTP status. Times are the server's clock; fields that end in `real` are the machine's own clock, which differs
//! only where a virtual lab moves the server's by hand.

mod request;

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    boot::{Failure, Stage},
    guest::{GuestStatus, SavedState},
    hardware::Hardware,
    mac::MacAddr,
    node::{CompletedTransition, CudaDevice, Facts, Mode, ModeFrom, Transition},
};

pub use request::{
    AdoptRequest, BootRequest, BootTarget, ClockRequest, Done, FenceRequest, ModeRequest, Problem,
    RebootRequest, WakeRequest,
};

/// `GET /v1/status`.
pub const STATUS: &str = "/v1/status";
/// `GET /v1/events`.
pub const EVENTS: &str = "/v1/events";
/// `/v1/nodes/NAME/...`.
pub const NODES: &str = "/v1/nodes";
/// `POST /v1/lab/clock`.
pub const LAB_CLOCK: &str = "/v1/lab/clock";

/// Where a node is in its life.
///
/// ```text
///        magic packet      DHCP/TFTP seen       runtime connects      mode reached
///   off ------------> waking ----------> booting ----------> ready -----------> desktop | compute | maintenance
///    ^                  |  no answer        |  no progress     ^  <-- changing <--+
///    |                  v                   v                  |                  |
///    +--- going-off    failed             failed               +----- lost <------+ connection gone
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Powered off, as far as anybody can know.
    Off,
    /// A magic packet was sent; nothing was heard yet.
    Waking,
    /// Its firmware or init was heard.
    Booting,
    /// Its runtime is connected and has no mode yet.
    Ready,
    /// On its way from one mode to another.
    Changing,
    /// In desktop mode.
    Desktop,
    /// In compute mode.
    Compute,
    /// In maintenance mode.
    Maintenance,
    /// Stopping everything, to power off.
    GoingOff,
    /// The connection broke without a good-bye: it may run on, or have lost its power.
    Lost,
    /// Did not wake, or did not come up; the cause says which.
    Failed,
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NodeState::Off => "off",
            NodeState::Waking => "waking",
            NodeState::Booting => "booting",
            NodeState::Ready => "ready",
            NodeState::Changing => "changing",
            NodeState::Desktop => "desktop",
            NodeState::Compute => "compute",
            NodeState::Maintenance => "maintenance",
            NodeState::GoingOff => "going-off",
            NodeState::Lost => "lost",
            NodeState::Failed => "failed",
        })
    }
}

/// The whole fleet at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// Site name.
    pub site: String,
    /// IANA name of its time zone.
    pub timezone: String,
    /// The server's clock.
    pub now: Timestamp,
    /// The machine's own clock.
    pub now_real: Timestamp,
    /// The clock is moved by hand.
    pub manual_clock: bool,
    /// Counts changes since the server started; `GET /v1/status?newer=` it waits for the next.
    pub version: u64,
    /// Number of the newest event; `GET /v1/events?since=` it misses nothing after this status.
    pub event: u64,
    /// Rooms, in the site file's order.
    pub rooms: Vec<RoomStatus>,
    /// Workstations, in the site file's order.
    pub nodes: Vec<NodeView>,
    /// Batch guests, in the site file's order.
    pub guests: Vec<GuestView>,
    /// Images that rooms and templates name.
    pub images: Vec<ImageView>,
    /// Generations that machines run, are pinned to or would go back to; no store may lose them.
    #[serde(default)]
    pub in_use: Vec<InUse>,
    /// Machines that nobody knows and that wait to be adopted, by first sight.
    #[serde(default)]
    pub strangers: Vec<Stranger>,
    /// What an admin should look at.
    pub troubles: Vec<String>,
}

/// A generation that is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    /// Image name.
    pub image: String,
    /// Full generation.
    pub generation: String,
    /// By whom, in words.
    pub why: String,
}

/// A machine that nobody knows, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// Hardware address of the port it booted from.
    pub mac: MacAddr,
    /// The address it has now.
    pub address: Option<Ipv4Addr>,
    /// First word from it, by the machine's own clock.
    pub first_seen_real: Timestamp,
    /// Last word from it.
    pub last_seen_real: Timestamp,
    /// What it is made of.
    pub hardware: Hardware,
}

/// One room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoomStatus {
    /// Name.
    pub name: String,
    /// Schedule name.
    pub schedule: String,
    /// What the schedule says now.
    pub current: ModeFrom,
    /// What it says next, soonest first.
    pub upcoming: Vec<ModeFrom>,
}

/// One workstation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Host name.
    pub name: String,
    /// Room.
    pub room: String,
    /// Hardware address.
    pub mac: MacAddr,
    /// Fixed address.
    pub address: Ipv4Addr,
    /// Where it is in its life.
    pub state: NodeState,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub cause: String,
    /// Its channel is open.
    pub connected: bool,
    /// Last word from it.
    pub last_seen_real: Option<Timestamp>,
    /// What is wanted of it now, and why.
    pub wanted: ModeFrom,
    /// An admin's override of the schedule.
    pub override_mode: Option<Override>,
    /// Mode it reached.
    pub mode: Option<Mode>,
    /// Mode change under way.
    pub transition: Option<Transition>,
    /// Mode changes it completed, newest last.
    pub completed: Vec<CompletedTransition>,
    /// Guests it has.
    pub guests: Vec<GuestStatus>,
    /// Devices of its remote-CUDA service, while it answers.
    pub rcuda: Option<Vec<CudaDevice>>,
    /// Seconds since a person touched it.
    pub idle_seconds: Option<u64>,
    /// What it complains about.
    pub trouble: Option<String>,
    /// What an admin told it to boot; absent when it boots its room's image.
    #[serde(default)]
    pub told: Option<BootTarget>,
    /// Adopted by a command: the site file does not name it.
    #[serde(default)]
    pub adopted: bool,
    /// What the machine has, once it has said so.
    pub facts: Option<Facts>,
    /// Image name.
    pub image: String,
    /// Generation it runs, or would boot now.
    pub generation: Option<String>,
    /// The current or last boot.
    pub boot: Option<Boot>,
    /// Wake attempts of the current or last wake, oldest first.
    pub wakes: Vec<WakeView>,
}

/// A mode that an admin gave to a node, whatever its schedule says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The mode.
    pub mode: Mode,
    /// Until when; without end when absent.
    pub until: Option<Timestamp>,
    /// Why.
    pub cause: String,
}

/// How a magic packet goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WakeMeans {
    /// UDP port 9, to the subnet's broadcast address.
    Udp,
    /// A bare Ethernet frame with EtherType 0x0842.
    Ethernet,
}

impl std::fmt::Display for WakeMeans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WakeMeans::Udp => "UDP broadcast",
            WakeMeans::Ethernet => "Ethernet frame 0x0842",
        })
    }
}

/// One magic packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeView {
    /// When, by the machine's own clock.
    pub at_real: Timestamp,
    /// How.
    pub means: WakeMeans,
    /// Counts from 1 within one wake.
    pub number: u32,
    /// Why the node was woken.
    pub cause: String,
    /// Why it could not be sent.
    pub failure: Option<String>,
}

/// Part of a node's log, as one report brought it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// When the node started for the boot that this is of.
    pub begun_real: Timestamp,
    /// When it came.
    pub at_real: Timestamp,
    /// Lines, each with its end. Nobody vouches for them: whoever is on the lab's network can report in a machine's name.
    pub text: String,
}

/// One boot of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// Number; 0 until the node's init has asked what to boot.
    pub attempt: u64,
    /// First sign of it.
    pub begun_real: Timestamp,
    /// Image name.
    pub image: String,
    /// Full generation.
    pub generation: String,
    /// Stages in order of time.
    pub stages: Vec<BootStage>,
    /// Present when it failed.
    pub failure: Option<Failure>,
    /// What the boot server saw of it, in order: addresses, files with bytes and rate, what broke.
    #[serde(default)]
    pub exchanges: Vec<Exchange>,
}

impl Boot {
    /// The first thing that went wrong, if something did, with its milliseconds.
    pub fn first_trouble(&self) -> Option<(u64, &str)> {
        let exchange = self.exchanges.iter().find(|e| e.fault).map(|e| (e.ms, e.text.as_str()));
        let stage = self.stages.iter().find_map(|s| Some((s.ms, s.failure.as_ref()?.sentence.as_str())));
        exchange.into_iter().chain(stage).min_by_key(|(ms, _)| *ms)
    }
}

/// Something between a node and the boot server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Milliseconds since the boot's first sign.
    pub ms: u64,
    /// What it was, in a few words.
    pub text: String,
    /// It did not go well.
    #[serde(default)]
    pub fault: bool,
}

/// The end of one stage of a boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootStage {
    /// Which.
    pub stage: Stage,
    /// Milliseconds since the boot's first sign.
    pub ms: u64,
    /// What happened, in a few words.
    pub detail: String,
    /// Present when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Where a batch guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestPhase {
    /// No node has room for it now.
    Waiting,
    /// Given to a node, which has not started it yet.
    Placed,
    /// Runs.
    Running,
    /// Being saved.
    Saving,
    /// Saved in the store; waits for a node.
    Saved,
    /// Its work is done.
    Finished,
    /// Its node can't do what was asked.
    Failed,
    /// Its node is lost: nobody knows whether it runs.
    Unknown,
}

impl std::fmt::Display for GuestPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GuestPhase::Waiting => "waiting",
            GuestPhase::Placed => "placed",
            GuestPhase::Running => "running",
            GuestPhase::Saving => "saving",
            GuestPhase::Saved => "saved",
            GuestPhase::Finished => "finished",
            GuestPhase::Failed => "failed",
            GuestPhase::Unknown => "unknown",
        })
    }
}

/// One batch guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestView {
    /// Name.
    pub name: String,
    /// Template.
    pub template: String,
    /// Where it is.
    pub phase: GuestPhase,
    /// Why.
    pub cause: String,
    /// Node that owns it.
    pub node: Option<String>,
    /// Its newest saved state.
    pub saved: Option<SavedState>,
    /// What it reported last.
    pub report: Option<GuestReport>,
    /// Reports it has sent.
    pub reports: u64,
}

/// What a guest told about its work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// When it came, by the server's clock.
    pub at: Timestamp,
    /// When it came, by the machine's own clock.
    pub at_real: Timestamp,
    /// Node that owned the guest then.
    pub node: Option<String>,
    /// What it said: a JSON object.
    pub body: serde_json::Value,
}

/// One image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// Name.
    pub name: String,
    /// Generation that its stable channel points to; `None` while the store has none.
    pub generation: Option<String>,
    /// Why it can't be used.
    pub trouble: Option<String>,
}

/// Something that happened, with its cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up; no number comes twice, also after a restart.
    pub id: u64,
    /// The server's clock.
    pub at: Timestamp,
    /// The machine's own clock.
    pub at_real: Timestamp,
    /// What kind of thing.
    pub kind: EventKind,
    /// Node or guest or room that it is about.
    pub subject: String,
    /// The new state, where there is one (`compute`, `saved`, a stage's name).
    pub state: String,
    /// What happened, in words.
    pub text: String,
    /// Why.
    pub cause: String,
}

/// Kinds of [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A node's state changed; `state` is a [`NodeState`].
    Node,
    /// What is wanted of a node changed; `state` is a [`Mode`].
    Wanted,
    /// A magic packet was sent; `state` is a [`WakeMeans`].
    Wake,
    /// A boot stage ended; `state` is a [`Stage`].
    Stage,
    /// A node completed a mode change; `state` is the mode reached.
    Mode,
    /// A batch guest's phase changed; `state` is a [`GuestPhase`].
    Guest,
    /// The server's clock was moved.
    Clock,
    /// The site file was read again.
    Site,
    /// An admin asked for something; `state` is empty.
    Admin,
    /// Something an admin should look at.
    Trouble,
}

/// Why a node is as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Node name.
    pub node: String,
    /// One sentence for the present.
    pub summary: String,
    /// What happened, newest first: each with its cause.
    pub history: Vec<Event>,
    /// What is wanted now.
    pub wanted: ModeFrom,
    /// What comes next.
    pub upcoming: Vec<ModeFrom>,
}
