//! A node's life as the server sees it: the state machine drawn at [`NodeState`].

use jiff::{Timestamp, ToSpan};
use labshift_model::{
    api::{NodeState, Override},
    boot::{Failure, Stage},
    guest::{GuestState, Role},
    node::{Facts, Mode, NodeDesired, NodeStatus},
};
use serde::{Deserialize, Serialize};

use super::{Draft, FleetStep, Moment};

/// A boot without any sign of progress for so many seconds has failed.
pub(super) const BOOT_SILENCE_SECONDS: i64 = 600;

/// What the server knows of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Where it is in its life.
    pub state: NodeState,
    /// Since when, by the server's clock.
    pub since: Timestamp,
    /// Since when, by the machine's own clock.
    pub since_real: Timestamp,
    /// Why.
    pub cause: String,
    /// Its channel is open.
    pub connected: bool,
    /// Last word from its runtime.
    pub last_seen_real: Option<Timestamp>,
    /// Last sign of progress of a boot.
    pub progress_real: Option<Timestamp>,
    /// Last stage of its boot.
    pub stage: Option<Stage>,
    /// The boot that runs, from check-in on. Guests belong to a node for one boot: memory does not outlive it.
    pub attempt: Option<u64>,
    /// What it said last.
    pub status: Option<NodeStatus>,
    /// What the machine has.
    pub facts: Option<Facts>,
    /// What it was told last.
    pub desired: Option<NodeDesired>,
    /// Revision of the last desired state.
    pub revision: u64,
    /// `desired` went out on the connection that is open now.
    pub sent: bool,
    /// An admin's mode, since when.
    pub override_mode: Option<(Override, Timestamp)>,
    /// An admin woke it: it stays up for a while though its schedule says off.
    pub hold: Option<Hold>,
    /// The current or last wake.
    pub wake: Option<Wake>,
    /// Since when it owns no batch guest.
    #[serde(default)]
    pub idle_since: Option<Timestamp>,
    /// An admin asked for a reboot, for this reason; until its firmware is heard.
    pub rebooting: Option<String>,
    /// It boots its own disk now: unless our system runs on it still, it is not ours.
    #[serde(default)]
    pub own_disk: bool,
}

/// Stay up, though the schedule says off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Since when.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Why.
    pub cause: String,
}

/// A series of magic packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// First packet.
    pub begun_real: Timestamp,
    /// Packets sent.
    pub sent: u32,
    /// Last packet.
    pub last_real: Timestamp,
    /// Why the node is woken.
    pub cause: String,
}

/// A node's state changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// State before.
    pub from: NodeState,
    /// State now.
    pub to: NodeState,
    /// Why.
    pub cause: String,
}

/// Something that happened to a node.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEvent {
    /// Its firmware or loader asked for an address or a file: the machine was switched on or restarted.
    Firmware,
    /// Its init asked what to boot.
    Init,
    /// It fetched a file.
    Progress,
    /// A stage of its boot ended.
    Stage {
        /// Which.
        stage: Stage,
        /// Present when the boot failed there.
        failure: Option<Failure>,
    },
    /// Its runtime opened the channel.
    Connected {
        /// Boot that this is.
        attempt: u64,
        /// What the machine has.
        facts: Facts,
    },
    /// It told its status.
    Status(Box<NodeStatus>),
    /// The channel broke.
    Disconnected,
    /// An admin declares that it has no power.
    Fenced {
        /// How it is known.
        cause: String,
    },
    /// The server was started again and knows the node from before.
    Reloaded,
}

impl Node {
    /// A node that was never heard of: taken for off.
    pub fn new(moment: Moment) -> Self {
        Node {
            state: NodeState::Off,
            since: moment.now,
            since_real: moment.real,
            cause: "never seen yet".into(),
            connected: false,
            last_seen_real: None,
            progress_real: None,
            stage: None,
            attempt: None,
            status: None,
            facts: None,
            desired: None,
            revision: 0,
            sent: false,
            override_mode: None,
            hold: None,
            wake: None,
            idle_since: None,
            rebooting: None,
            own_disk: false,
        }
    }

    /// Takes note of an event; returns the change of state, if it is one.
    pub fn apply(&mut self, event: NodeEvent, moment: Moment) -> Option<StateChange> {
        match event {
            NodeEvent::Firmware => {
                self.progress_real = Some(moment.real);
                if self.state == NodeState::Booting && self.attempt.is_none() {
                    return None;
                }
                let cause = self.boot_cause();
                self.end_boot();
                self.stage = Some(Stage::Firmware);
                self.turn(NodeState::Booting, &cause, moment)
            }
            NodeEvent::Init => {
                if self.connected {
                    return None;
                }
                self.progress_real = Some(moment.real);
                let cause = self.boot_cause();
                self.end_boot();
                self.turn(NodeState::Booting, &cause, moment)
            }
            NodeEvent::Progress => {
                self.progress_real = Some(moment.real);
                None
            }
            NodeEvent::Stage { stage, failure } => {
                self.progress_real = Some(moment.real);
                self.stage = Some(stage);
                if self.connected {
                    return None;
                }
                match failure {
                    Some(f) => {
                        let cause = format!("boot failed: {} {} {}", f.code, f.sentence, f.hint);
                        self.turn(NodeState::Failed, cause.trim_end(), moment)
                    }
                    None if self.attempt.is_none() && self.state != NodeState::Booting => {
                        let cause = self.boot_cause();
                        self.turn(NodeState::Booting, &cause, moment)
                    }
                    None => None,
                }
            }
            NodeEvent::Connected { attempt, facts } => {
                if self.attempt != Some(attempt) {
                    self.end_boot();
                    self.attempt = Some(attempt);
                }
                self.connected = true;
                self.sent = false;
                self.facts = Some(facts);
                self.last_seen_real = Some(moment.real);
                self.wake = None;
                self.rebooting = None;
                let (state, cause) = self.settled();
                self.turn(state, &cause, moment)
            }
            NodeEvent::Status(status) => {
                self.last_seen_real = Some(moment.real);
                self.status = Some(*status);
                let (state, cause) = self.settled();
                self.turn(state, &cause, moment)
            }
            NodeEvent::Disconnected => {
                if !self.connected {
                    return None;
                }
                self.connected = false;
                self.sent = false;
                self.last_seen_real = Some(moment.real);
                self.progress_real = Some(moment.real);
                if let Some(cause) = self.rebooting.clone().filter(|_| !self.holds_work()) {
                    self.end_boot();
                    return self.turn(NodeState::Booting, &format!("rebooting: {cause}"), moment);
                }
                if self.goes_off() && !self.holds_work() {
                    let cause = self.desired.as_ref().map_or_else(String::new, |d| d.current.cause.clone());
                    self.end_boot();
                    return self.turn(NodeState::Off, &format!("powered off: {cause}"), moment);
                }
                self.turn(NodeState::Lost, "the connection broke without a good-bye", moment)
            }
            NodeEvent::Fenced { cause } => {
                self.connected = false;
                self.end_boot();
                self.turn(NodeState::Off, &format!("declared to have no power: {cause}"), moment)
            }
            NodeEvent::Reloaded => {
                self.connected = false;
                self.sent = false;
                self.progress_real = Some(moment.real);
                match self.state {
                    NodeState::Off | NodeState::Waking | NodeState::Booting | NodeState::Failed => None,
                    _ => self.turn(NodeState::Lost, "the server was started again and waits for it", moment),
                }
            }
        }
    }

    /// Changes the state; the same state again only takes note of a new cause while nothing ran before it.
    pub(super) fn turn(&mut self, to: NodeState, cause: &str, moment: Moment) -> Option<StateChange> {
        let from = self.state;
        if from == to {
            return None;
        }
        self.state = to;
        self.since = moment.now;
        self.since_real = moment.real;
        self.cause = cause.to_owned();
        Some(StateChange { from, to, cause: cause.to_owned() })
    }

    /// What ran on the machine is gone.
    pub(super) fn end_boot(&mut self) {
        self.attempt = None;
        self.status = None;
        self.connected = false;
        self.sent = false;
        self.stage = None;
        self.rebooting = None;
    }

    fn boot_cause(&self) -> String {
        if let Some(cause) = &self.rebooting {
            return format!("rebooting: {cause}");
        }
        match &self.wake {
            Some(wake) if self.state == NodeState::Waking => format!("woken: {}", wake.cause),
            _ if self.attempt.is_some() => "it restarted by itself".into(),
            _ => "switched on at the machine, or restarted".into(),
        }
    }

    /// State of a connected node, by what it says.
    fn settled(&self) -> (NodeState, String) {
        let wanted = self.desired.as_ref().map_or("no wish was sent yet", |d| d.current.cause.as_str());
        let Some(status) = &self.status else { return (NodeState::Ready, "checked in".into()) };
        match (&status.transition, status.mode) {
            (Some(t), _) if t.to == Mode::Off => (NodeState::GoingOff, wanted.to_owned()),
            (Some(t), _) => {
                let from = t.from.map_or("boot".to_owned(), |m| m.to_string());
                (NodeState::Changing, format!("{from} to {}: {wanted}", t.to))
            }
            (None, Some(Mode::Desktop)) => (NodeState::Desktop, wanted.to_owned()),
            (None, Some(Mode::Compute)) => (NodeState::Compute, wanted.to_owned()),
            (None, Some(Mode::Maintenance)) => (NodeState::Maintenance, wanted.to_owned()),
            (None, Some(Mode::Off)) => (NodeState::GoingOff, wanted.to_owned()),
            (None, None) => (NodeState::Ready, "checked in".into()),
        }
    }

    fn goes_off(&self) -> bool {
        self.state == NodeState::GoingOff
    }

    /// A batch guest lives only on this node, as far as its last status tells.
    fn holds_work(&self) -> bool {
        use GuestState as G;
        self.status.iter().flat_map(|s| &s.guests).any(|g| {
            g.role == Role::Batch && matches!(g.state, G::Running | G::Saving | G::Stopping | G::Starting)
        })
    }
}

/// Ends what has been silent for too long.
pub(super) fn expire(draft: &mut Draft<'_>) {
    let real = draft.inputs.moment.real;
    let lease = i64::from(draft.inputs.site.longest_lease());
    let names: Vec<String> = draft.world.nodes.keys().cloned().collect();
    for name in names {
        let Some(node) = draft.world.nodes.get(&name).filter(|n| !n.connected) else { continue };
        let silent = |since: Option<Timestamp>, seconds: i64| {
            since.is_some_and(|t| t.checked_add(seconds.seconds()).is_ok_and(|end| end < real))
        };
        let quiet = matches!(node.state, NodeState::Lost | NodeState::Failed);
        if quiet && node.attempt.is_some() && silent(node.last_seen_real, lease) {
            let cause = format!("silent for more than {} min: its lease is over", lease / 60);
            draft.push(FleetStep::MarkOff { node: name, cause });
        } else if node.state == NodeState::Booting && silent(node.progress_real, BOOT_SILENCE_SECONDS) {
            let after =
                node.stage.map_or("its first request".to_owned(), |s| format!("stage {}", stage_name(s)));
            let minutes = BOOT_SILENCE_SECONDS / 60;
            let cause = format!(
                "boot stopped: nothing was heard for {minutes} min after {after}; look at its screen"
            );
            draft.push(FleetStep::MarkFailed { node: name, cause });
        }
    }
}

/// A stage's name as it is written everywhere.
fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Wake => "wake",
        Stage::Firmware => "firmware",
        Stage::Loader => "loader",
        Stage::Init => "init",
        Stage::Modules => "modules",
        Stage::Link => "link",
        Stage::Address => "address",
        Stage::Manifest => "manifest",
        Stage::RootFetched => "root-fetched",
        Stage::RootMounted => "root-mounted",
        Stage::Services => "services",
        Stage::Ready => "ready",
        Stage::GuestVisible => "guest-visible",
    }
}
