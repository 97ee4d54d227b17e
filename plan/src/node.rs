//! What a node does next: `(desired, observed, now) -> Plan`.
//!
//! The node's engine observes, asks [`plan`], performs the first step, observes again. A plan names every step
//! from here to the desired state, so that progress can be shown and tests can read it; only its head is ever
//! performed. Nothing here remembers anything: a daemon that was killed half-way plans again from what it finds.
//!
//! ```text
//!                    schedule, person at the keyboard
//!    compute ---------------------------------------------------------> desktop
//!      bridge, fetch desktop image, save batch guests, upload them,
//!      stop rcuda, start desktop, see it on the screen
//!
//!                    session over
//!    desktop ---------------------------------------------------------> compute
//!      bridge, warn the person, wait out the grace, shut the desktop down (orderly, then by force),
//!      free the screen, fetch images, start or restore batch guests, start rcuda
//!
//!    any --> maintenance     leave the mode as above, start nothing
//!    any --> off             leave the mode as above; power off once every saved guest is in the store
//! ```
//!
//! Rules that hold in every transition:
//!
//! - A guest that does work is never ended, only saved; its local copy stays until the store has verified its own.
//! - A desktop is never ended without warning and grace.
//! - A guest that hangs before its PID 1 is reset a few times, with growing patience: nothing can be lost in it.
//! - While the server can't be reached the node follows the schedule it was given last
//!   ([`NodeDesired::upcoming`]), but leaves a desktop alone while somebody uses it.
//! - A step that failed is left out until its back-off is over; steps that do not need it go on.
//! - A guest that runs is left as it is when its specification changes; the new one counts from its next start.

mod decide;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use labshift_model::{
    guest::Role,
    node::{Mode, NodeDesired},
};

pub use decide::{mode_wanted, restores_from, retry_after};

/// Seconds that an orderly shutdown may take before the guest is switched off.
pub const SHUTDOWN_GRACE_SECONDS: u32 = 30;

/// A desktop whose keyboard was touched within so many seconds is in use; a node on its own leaves it alone.
pub const IN_USE_SECONDS: u64 = 600;

/// A guest that has said nothing on its console so long after it was switched on hangs before its PID 1; each reset
/// doubles it.
pub const SILENT_SECONDS: u64 = 60;

/// So often a silent guest is reset before it is left alone for a person to look at.
pub const MOST_RESETS: u32 = 3;

/// One thing to do. A step is safe to repeat: performing it twice is the same as performing it once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Put the physical port, its address and its routes under `br0`.
    EnsureBridge,
    /// Fetch a guest image and verify it.
    FetchImage {
        /// Image name.
        image: String,
        /// Full generation.
        generation: String,
    },
    /// Tell the person at the screen that the desktop will end.
    WarnPerson {
        /// Desktop guest.
        guest: String,
        /// Seconds until it ends.
        seconds: u64,
    },
    /// Let the rest of the grace pass.
    AwaitGrace {
        /// Desktop guest.
        guest: String,
        /// Seconds left.
        seconds: u64,
    },
    /// Take the warning back: the desktop stays.
    WithdrawWarning,
    /// Ask the guest to shut down; switch it off after `grace` seconds.
    ShutDownGuest {
        /// Guest.
        guest: String,
        /// Seconds.
        grace: u32,
    },
    /// Give the screen back to the node's own status page.
    HideGuest,
    /// Write the guest's memory and disk to files on the node; the guest stops.
    SaveGuest {
        /// Guest.
        guest: String,
        /// Number of the new saved state.
        revision: u64,
    },
    /// Send a saved state to the store and delete the local copy once the store has the same bytes.
    UploadSaved {
        /// Guest.
        guest: String,
        /// Saved state.
        revision: u64,
    },
    /// Stop remote CUDA.
    StopRcuda,
    /// Boot the guest.
    StartGuest {
        /// Guest.
        guest: String,
    },
    /// Switch a guest off that hangs before its PID 1, and boot it again.
    ResetGuest {
        /// Guest.
        guest: String,
    },
    /// Bring a saved state back to life, from the node's own copy if there is one.
    RestoreGuest {
        /// Guest.
        guest: String,
        /// Saved state.
        revision: u64,
    },
    /// Let a guest go on that something left paused.
    ResumeGuest {
        /// Guest.
        guest: String,
    },
    /// Show the guest on the screen and see its first picture there.
    ShowGuest {
        /// Guest.
        guest: String,
    },
    /// Start remote CUDA and wait until it answers.
    StartRcuda,
    /// Remove what the node keeps of a guest that is over.
    ForgetGuest {
        /// Guest.
        guest: String,
    },
    /// Remove an image that no guest needs.
    DropImage {
        /// Full generation.
        generation: String,
    },
    /// Ask init to reboot.
    Reboot,
    /// Ask init to start the next kernel itself.
    Kexec,
    /// Ask init to arm Wake-on-LAN and power off.
    PowerOff,
}

impl Step {
    /// What the step is about, as the key under which its failures are counted: a guest, an image, a service.
    pub fn subject(&self) -> &str {
        match self {
            Step::EnsureBridge => "br0",
            Step::FetchImage { generation, .. } | Step::DropImage { generation } => generation,
            Step::WarnPerson { guest, .. }
            | Step::AwaitGrace { guest, .. }
            | Step::ShutDownGuest { guest, .. }
            | Step::SaveGuest { guest, .. }
            | Step::UploadSaved { guest, .. }
            | Step::StartGuest { guest }
            | Step::ResetGuest { guest }
            | Step::RestoreGuest { guest, .. }
            | Step::ResumeGuest { guest }
            | Step::ForgetGuest { guest } => guest,
            Step::WithdrawWarning | Step::HideGuest | Step::ShowGuest { .. } => "screen",
            Step::StopRcuda | Step::StartRcuda => "rcuda",
            Step::Reboot | Step::Kexec | Step::PowerOff => "power",
        }
    }

    /// The step can be abandoned half-way without harm when the plan changes: it only moves bytes or waits.
    pub fn may_be_abandoned(&self) -> bool {
        use Step::{AwaitGrace, FetchImage, ShowGuest, UploadSaved};
        matches!(self, FetchImage { .. } | AwaitGrace { .. } | UploadSaved { .. } | ShowGuest { .. })
    }

    /// The same work, whatever time is left for it.
    pub fn is_same_work(&self, other: &Step) -> bool {
        match (self, other) {
            (Step::AwaitGrace { guest: a, .. }, Step::AwaitGrace { guest: b, .. }) => a == b,
            _ => self == other,
        }
    }

    /// The phase in words, for the timeline.
    pub fn phase(&self) -> String {
        match self {
            Step::EnsureBridge => "setting up the bridge".into(),
            Step::FetchImage { image, .. } => format!("fetching image {image}"),
            Step::WarnPerson { .. } => "warning the person at the screen".into(),
            Step::AwaitGrace { .. } => "waiting out the grace".into(),
            Step::WithdrawWarning => "withdrawing the warning".into(),
            Step::ShutDownGuest { guest, .. } => format!("shutting {guest} down"),
            Step::HideGuest => "freeing the screen".into(),
            Step::SaveGuest { guest, .. } => format!("saving {guest}"),
            Step::UploadSaved { guest, .. } => format!("uploading {guest}"),
            Step::StopRcuda => "stopping remote CUDA".into(),
            Step::StartGuest { guest } => format!("starting {guest}"),
            Step::ResetGuest { guest } => format!("resetting {guest}, which says nothing"),
            Step::RestoreGuest { guest, .. } => format!("restoring {guest}"),
            Step::ResumeGuest { guest } => format!("resuming {guest}"),
            Step::ShowGuest { guest } => format!("showing {guest}"),
            Step::StartRcuda => "starting remote CUDA".into(),
            Step::ForgetGuest { guest } => format!("removing {guest}"),
            Step::DropImage { generation } => {
                format!("removing image {}", labshift_model::manifest::short(generation))
            }
            Step::Reboot => "rebooting".into(),
            Step::Kexec => "starting the next kernel".into(),
            Step::PowerOff => "powering off".into(),
        }
    }
}

/// What libvirt says of a guest's domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// There is none, or it was never started.
    None,
    /// Runs.
    Running,
    /// Paused by something that did not finish.
    Paused,
    /// Ended: by itself or as asked (`orderly`), or it crashed.
    Ended {
        /// The guest's own shutdown.
        orderly: bool,
    },
}

/// A saved state that this node made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedCopy {
    /// Its number.
    pub revision: u64,
    /// The store has verified it and the local copy is gone.
    pub stored: bool,
}

/// A step that failed and may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// How often in a row.
    pub times: u32,
    /// Seconds since the last time.
    pub seconds_ago: u64,
}

/// What the node finds of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestObserved {
    /// Purpose, as of its start.
    pub role: Role,
    /// Its domain.
    pub domain: Domain,
    /// Generation of the image it was started from.
    pub generation: String,
    /// Saved state that it was restored from; 0 when it booted.
    pub revision: u64,
    /// The last state saved here.
    pub saved: Option<SavedCopy>,
    /// Seconds since it was switched on, while nothing came from its console; `None` for one that was restored.
    pub silent_seconds: Option<u64>,
    /// How often it was reset since it was started.
    pub resets: u32,
}

/// What is on the screen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Screen {
    /// The node's status page, or nothing.
    #[default]
    Status,
    /// A guest's picture.
    Guest(String),
}

/// Remote CUDA on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rcuda {
    /// No process.
    #[default]
    Stopped,
    /// A process that does not answer.
    Silent,
    /// Answers.
    Serving,
}

/// Everything the node knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeObserved {
    /// The channel to the server is open.
    pub server_reachable: bool,
    /// `br0` carries the port, its address and its routes.
    pub bridge: bool,
    /// Guests by name.
    pub guests: BTreeMap<String, GuestObserved>,
    /// Verified images: full generations.
    pub images: BTreeSet<String>,
    /// The screen.
    pub screen: Screen,
    /// Seconds since the person was warned, while the warning stands.
    pub warned_seconds_ago: Option<u64>,
    /// Remote CUDA.
    pub rcuda: Rcuda,
    /// Seconds since a person touched keyboard or mouse; `None` when there are none.
    pub idle_seconds: Option<u64>,
    /// An admin asked for a reboot of this boot.
    pub reboot: bool,
    /// Without the firmware's start-up.
    pub kexec: bool,
    /// Failures by [`Step::subject`].
    pub troubles: BTreeMap<String, Trouble>,
}

/// The way from here to the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Mode that the node goes for.
    pub mode: Mode,
    /// Why.
    pub cause: String,
    /// Steps of the mode change, in order; empty once the mode is reached.
    pub steps: Vec<Step>,
    /// Tidying up and preparing, after the mode is reached.
    pub afterwards: Vec<Step>,
    /// The mode is not reached, and some step has to wait for its back-off or for the server.
    pub held_up: bool,
    /// Seconds after which the plan may change without any event.
    pub look_again: Option<u64>,
}

impl Plan {
    /// The step to perform now.
    pub fn next(&self) -> Option<&Step> {
        self.steps.first().or(self.afterwards.first())
    }

    /// The mode is reached: every step of the change is done.
    pub fn reached(&self) -> bool {
        self.steps.is_empty() && !self.held_up
    }
}

/// Plans from the desired and the observed state. `now` is the server's clock as the node knows it.
pub fn plan(desired: &NodeDesired, observed: &NodeObserved, now: Timestamp) -> Plan {
    decide::plan(desired, observed, now)
}
