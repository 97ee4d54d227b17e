//! Who owns a batch guest, read off what the nodes say.

use std::collections::BTreeMap;

use jiff::{Timestamp, ToSpan};
use labshift_model::{
    api::GuestPhase,
    guest::{GuestState, SavedState},
    manifest::FileEntry,
    node::{Mode, NodeDesired},
};
use serde::{Deserialize, Serialize};

use super::{Draft, FleetStep, Moment, Node};

/// A guest that its node says has ended for so many seconds has done its work.
const END_SECONDS: i64 = 10;

/// What the server knows of one batch guest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    /// Its owner.
    pub place: Option<Place>,
    /// Newest saved state, verified by the store.
    pub saved: Option<SavedState>,
    /// Image generation that it booted from; a saved state goes on with the same.
    pub generation: Option<String>,
    /// Why it will not be placed again.
    pub finished: Option<String>,
    /// What the store holds, by revision.
    #[serde(default)]
    pub stored: BTreeMap<u64, StoredParts>,
}

/// Verified uploads of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredParts {
    /// libvirt save image.
    pub memory: Option<FileEntry>,
    /// qcow2 overlay.
    pub disk: Option<FileEntry>,
}

impl StoredParts {
    /// The store holds exactly what the node says it saved.
    fn hold(&self, saved: &SavedState) -> bool {
        self.memory.as_ref() == Some(&saved.memory) && (saved.disk.is_none() || self.disk == saved.disk)
    }
}

/// A guest's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Node.
    pub node: String,
    /// Boot of the node: the guest's memory lives no longer than it.
    pub attempt: u64,
    /// Since when, by the server's clock.
    pub since: Timestamp,
    /// What it went on from.
    pub restore: Option<SavedState>,
    /// First desired state that named it; 0 until one was sent.
    pub named: u64,
    /// It is taken off the node's list.
    pub revoked: bool,
    /// First desired state without it; 0 until one was sent.
    pub unnamed: u64,
    /// It was seen running there.
    pub ran: bool,
    /// Since when the node says that it ended after it ran, by the machine's own clock.
    #[serde(default)]
    pub stopped_real: Option<Timestamp>,
}

impl Place {
    pub(super) fn new(node: &str, attempt: u64, restore: Option<SavedState>, moment: Moment) -> Self {
        Place {
            node: node.to_owned(),
            attempt,
            since: moment.now,
            restore,
            named: 0,
            revoked: false,
            unnamed: 0,
            ran: false,
            stopped_real: None,
        }
    }

    pub(super) fn note_desired(&mut self, desired: &NodeDesired) {
        if self.revoked && self.unnamed == 0 {
            self.unnamed = desired.revision;
        } else if !self.revoked && self.named == 0 {
            self.named = desired.revision;
        }
    }

    fn base(&self) -> u64 {
        self.restore.as_ref().map_or(0, |s| s.revision)
    }
}

/// What the owner says of the guest, if it is about this placement.
fn told<'n>(name: &str, place: &Place, node: &'n Node) -> Option<&'n GuestState> {
    let status = node.status.as_ref().filter(|s| place.named > 0 && s.revision >= place.named)?;
    status.guests.iter().find(|g| g.name == name).map(|g| &g.state)
}

/// Takes note of what a node's new status says of the guests it owns; returns saved states that are new.
pub(super) fn note_status(
    guests: &mut BTreeMap<String, Guest>,
    node_name: &str,
    node: &Node,
    moment: Moment,
) -> Vec<(String, SavedState)> {
    use GuestState as G;
    let mut kept = vec![];
    for (name, guest) in guests {
        let Some(place) =
            guest.place.as_mut().filter(|p| p.node == node_name && node.attempt == Some(p.attempt))
        else {
            continue;
        };
        let state = told(name, place, node);
        place.ran |= matches!(state, Some(G::Running));
        let stopped = place.ran && matches!(state, Some(G::Stopped));
        place.stopped_real = stopped.then(|| place.stopped_real.unwrap_or(moment.real));
        if let Some(G::Saved { saved }) = state
            && saved.revision > place.base().max(guest.saved.as_ref().map_or(0, |s| s.revision))
            && guest.stored.get(&saved.revision).is_some_and(|parts| parts.hold(saved))
        {
            guest.saved = Some(saved.clone());
            kept.push((name.clone(), saved.clone()));
        }
    }
    kept
}

/// Reads every placement off its node's status: ends ownership where that is certain.
pub(super) fn settle(draft: &mut Draft<'_>) {
    let names: Vec<String> = draft.world.guests.keys().cloned().collect();
    for name in names {
        for step in settle_one(draft, &name) {
            draft.push(step);
        }
    }
}

fn settle_one(draft: &Draft<'_>, name: &str) -> Vec<FleetStep> {
    use GuestState as G;
    let Some(guest) = draft.world.guests.get(name) else { return vec![] };
    let Some(place) = &guest.place else { return vec![] };
    let owner = &place.node;
    let release = |cause: String| vec![FleetStep::Release { guest: name.to_owned(), cause }];
    let revoke = |cause: String| FleetStep::Revoke { guest: name.to_owned(), cause };
    let Some(node) = draft.world.nodes.get(owner) else {
        return release(format!("{owner} left the site"));
    };
    if node.attempt != Some(place.attempt) {
        let next = match &guest.saved {
            Some(saved) => format!("it goes on from saved state {}", saved.revision),
            None => "it has no saved state and starts anew".into(),
        };
        return release(format!("that boot of {owner} is over ({}); {next}", node.cause));
    }
    let state = told(name, place, node);
    let kept = guest.saved.as_ref().is_some_and(|s| s.revision > place.base());
    let computing = node.desired.as_ref().is_some_and(|d| d.current.mode == Mode::Compute);
    if !place.revoked {
        return match state {
            Some(G::Saved { .. }) if kept && !computing => {
                vec![revoke(format!("saved by {owner}, free for another node"))]
            }
            // A moment without it is no end: its node may be restarting its daemon.
            Some(G::Stopped) if computing && place.stopped_real.is_some_and(|t| is_over(t, draft)) => {
                let cause = format!("it ended by itself on {owner}");
                vec![FleetStep::Finish { guest: name.to_owned(), cause: cause.clone() }, revoke(cause)]
            }
            _ if draft.inputs.site.guest(name).is_none() => {
                vec![revoke("it is not in the site file any more".into())]
            }
            // The node left compute before it ever began with the guest: nothing of it is there, and in its present mode
            // the node will not begin.
            None | Some(G::Fetching | G::Failed { .. })
                if !computing && place.named > 0 && acknowledges(node) =>
            {
                vec![revoke(format!("{owner} left compute mode before it was started"))]
            }
            _ => vec![],
        };
    }
    if place.unnamed == 0 || node.status.as_ref().is_none_or(|s| s.revision < place.unnamed) {
        return vec![];
    }
    let at_rest = match state {
        None | Some(G::Stopped) => true,
        Some(G::Saved { saved }) => guest.saved.as_ref().is_some_and(|s| s.revision >= saved.revision),
        _ => false,
    };
    if at_rest { release(format!("{owner} has let go of it")) } else { vec![] }
}

fn is_over(stopped: Timestamp, draft: &Draft<'_>) -> bool {
    stopped.checked_add(END_SECONDS.seconds()).is_ok_and(|end| end <= draft.inputs.moment.real)
}

/// The node answers the newest desired state.
fn acknowledges(node: &Node) -> bool {
    node.sent && node.status.as_ref().is_some_and(|s| s.revision >= node.revision)
}

/// Where a guest is, for people, and why.
pub fn phase(name: &str, guest: &Guest, nodes: &BTreeMap<String, Node>) -> (GuestPhase, String) {
    use GuestState as G;
    if let Some(cause) = &guest.finished {
        return (GuestPhase::Finished, cause.clone());
    }
    let Some(place) = &guest.place else {
        return match &guest.saved {
            Some(s) => (
                GuestPhase::Saved,
                format!("saved state {} of {} waits for a compute node", s.revision, s.node),
            ),
            None => (GuestPhase::Waiting, "no compute node has room for it".into()),
        };
    };
    let Some(node) = nodes.get(&place.node) else {
        return (GuestPhase::Unknown, "its node left the site".into());
    };
    if !node.connected {
        return (GuestPhase::Unknown, format!("{} is {}: {}", place.node, node.state, node.cause));
    }
    match told(name, place, node) {
        Some(G::Running) => (GuestPhase::Running, format!("on {} since {}", place.node, place.since)),
        Some(G::Saving) => (GuestPhase::Saving, format!("{} leaves compute mode", place.node)),
        Some(G::Failed { reason }) => (GuestPhase::Failed, format!("{}: {reason}", place.node)),
        Some(G::Saved { saved }) => {
            match guest.saved.as_ref().is_some_and(|s| s.revision >= saved.revision) {
                true => (GuestPhase::Saved, format!("saved by {}", place.node)),
                false => (
                    GuestPhase::Saving,
                    format!("{} says it saved; the store does not hold it yet", place.node),
                ),
            }
        }
        Some(G::Stopping | G::Stopped) => (GuestPhase::Placed, format!("stops on {}", place.node)),
        Some(G::Fetching) => (GuestPhase::Placed, format!("{} fetches what it needs", place.node)),
        Some(G::Starting) | None => (GuestPhase::Placed, format!("{} brings it up", place.node)),
    }
}
