//! What the fleet does next: `(site, images, world, now) -> steps`. The server's engine performs the steps and tells the
//! [`World`] about each, then plans again when something happens.
//!
//! ```text
//!   events from nodes, firmware, admins          schedule            images
//!                 |                                  |                  |
//!             World::node.apply                      v                  v
//!                 +-------------------------------> plan -----> steps: Place, Desire, Wake, MarkFailed, ...
//!                 ^                                                |
//!                 +------------------ World::apply <---------------+--> effects (packets, messages, database)
//! ```
//!
//! A batch guest has one owner at most. A node owns it from [`FleetStep::Place`] on, for this boot of the node, until:
//!
//! - the node has acknowledged a desired state without the guest, and says that it does not run there; or
//! - this boot of the node is over: firmware was heard again, it went off in order, it was silent for longer than
//!   its lease, or an admin declared that it has no power.
//!
//! Only then it is placed again, from its newest saved state. Times of day follow [`Moment::now`]; how long hardware
//! takes is measured by [`Moment::real`], because a virtual lab moves the former by hand.

mod guest;
mod node;
mod place;
#[cfg(test)]
mod tests;
mod wake;
mod want;

use std::collections::BTreeMap;

use jiff::Timestamp;
use labshift_model::{
    api::{NodeState, WakeMeans},
    guest::SavedState,
    node::NodeDesired,
    site::Site,
};
use serde::{Deserialize, Serialize};

pub use guest::{Guest, Place, StoredParts, phase};
pub use node::{Hold, Node, NodeEvent, StateChange, Wake};
pub use place::RESERVED_MIB;
pub use want::{next_modes, wanted};

/// The two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The server's clock: schedules follow it.
    pub now: Timestamp,
    /// The machine's own clock: time-outs follow it.
    pub real: Timestamp,
}

/// What the server knows of nodes and batch guests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct World {
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// Batch guests by name.
    pub guests: BTreeMap<String, Guest>,
}

/// What a plan is made from.
pub struct Inputs<'a> {
    /// The site.
    pub site: &'a Site,
    /// Generation that each image's stable channel points to.
    pub images: &'a BTreeMap<String, String>,
    /// The token with which a guest reports.
    pub token: &'a dyn Fn(&str) -> String,
    /// Both clocks.
    pub moment: Moment,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetStep {
    /// Send a magic packet.
    Wake {
        /// Node.
        node: String,
        /// How.
        means: WakeMeans,
        /// Counts from 1 within one wake.
        number: u32,
        /// Why the node is woken.
        cause: String,
    },
    /// Tell a node what is wanted.
    Desire {
        /// Node.
        node: String,
        /// Everything that is wanted of it.
        desired: Box<NodeDesired>,
    },
    /// Take a node for failed.
    MarkFailed {
        /// Node.
        node: String,
        /// Why.
        cause: String,
    },
    /// No magic packets any more: the node is not wanted now.
    StopWaking {
        /// Node.
        node: String,
        /// Why.
        cause: String,
    },
    /// Take a node for off: its boot is over.
    MarkOff {
        /// Node.
        node: String,
        /// Why.
        cause: String,
    },
    /// Give a guest to a node.
    Place {
        /// Batch guest.
        guest: String,
        /// Node.
        node: String,
        /// Boot of the node.
        attempt: u64,
        /// Generation of the guest's image.
        generation: String,
        /// Where it goes on from; a fresh boot when absent.
        restore: Option<SavedState>,
        /// Why.
        cause: String,
    },
    /// Take a guest off its node's list, to give it to another.
    Revoke {
        /// Batch guest.
        guest: String,
        /// Why.
        cause: String,
    },
    /// The guest is nobody's now.
    Release {
        /// Batch guest.
        guest: String,
        /// Why.
        cause: String,
    },
    /// The guest's work is done.
    Finish {
        /// Batch guest.
        guest: String,
        /// Why.
        cause: String,
    },
}

/// What an event changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heard {
    /// The node's change of state.
    pub change: Option<StateChange>,
    /// Saved states that are new, verified by the store.
    pub kept: Vec<(String, SavedState)>,
}

/// Everything that is to be done now, in order. Placements come before the desired states that carry them.
pub fn plan(inputs: &Inputs<'_>, world: &World) -> Vec<FleetStep> {
    let mut draft = Draft { inputs, world: world.clone(), steps: vec![] };
    node::expire(&mut draft);
    guest::settle(&mut draft);
    let demand = place::place(&mut draft);
    want::desire(&mut draft, &demand);
    wake::wake(&mut draft, &demand);
    draft.steps
}

/// A plan being made: each step is applied at once, so that later decisions see it.
struct Draft<'a> {
    inputs: &'a Inputs<'a>,
    world: World,
    steps: Vec<FleetStep>,
}

impl Draft<'_> {
    fn push(&mut self, step: FleetStep) {
        self.world.apply(&step, self.inputs.moment);
        self.steps.push(step);
    }
}

impl World {
    /// Takes note of a step that was performed.
    pub fn apply(&mut self, step: &FleetStep, moment: Moment) -> Option<StateChange> {
        match step {
            FleetStep::Wake { node, number, cause, .. } => {
                let node = self.nodes.get_mut(node)?;
                let begun_real =
                    node.wake.as_ref().filter(|_| *number > 1).map_or(moment.real, |w| w.begun_real);
                node.wake =
                    Some(Wake { begun_real, sent: *number, last_real: moment.real, cause: cause.clone() });
                node.turn(NodeState::Waking, &format!("woken: {cause}"), moment)
            }
            FleetStep::Desire { node, desired } => {
                let name = node;
                let node = self.nodes.get_mut(name)?;
                node.revision = desired.revision;
                node.sent = true;
                for guest in self.guests.values_mut() {
                    if let Some(place) = guest.place.as_mut().filter(|p| p.node == *name) {
                        place.note_desired(desired);
                    }
                }
                self.nodes.get_mut(name)?.desired = Some((**desired).clone());
                None
            }
            FleetStep::MarkFailed { node, cause } => {
                self.nodes.get_mut(node)?.turn(NodeState::Failed, cause, moment)
            }
            FleetStep::MarkOff { node, cause } => {
                let node = self.nodes.get_mut(node)?;
                node.end_boot();
                node.turn(NodeState::Off, cause, moment)
            }
            FleetStep::StopWaking { node, cause } => {
                let node = self.nodes.get_mut(node)?;
                // A boot that may still run somewhere is not over because nobody wants it.
                let state = if node.attempt.is_some() { NodeState::Lost } else { NodeState::Off };
                node.turn(state, cause, moment)
            }
            FleetStep::Place { guest, node, attempt, generation, restore, .. } => {
                let guest = self.guests.get_mut(guest)?;
                guest.generation = Some(generation.clone());
                guest.place = Some(Place::new(node, *attempt, restore.clone(), moment));
                None
            }
            FleetStep::Revoke { guest, .. } => {
                self.guests.get_mut(guest)?.place.as_mut()?.revoked = true;
                None
            }
            FleetStep::Release { guest, .. } => {
                let place = self.guests.get_mut(guest)?.place.take()?;
                self.nodes.get_mut(&place.node)?.idle_since = Some(moment.now);
                None
            }
            FleetStep::Finish { guest, cause } => {
                self.guests.get_mut(guest)?.finished = Some(cause.clone());
                None
            }
        }
    }

    /// Takes note of something that happened to a node, and of what its status says of guests.
    pub fn hear(&mut self, name: &str, event: NodeEvent, moment: Moment) -> Heard {
        let Some(node) = self.nodes.get_mut(name) else { return Heard::default() };
        let is_status = matches!(event, NodeEvent::Status(_));
        let change = node.apply(event, moment);
        let kept = if is_status { guest::note_status(&mut self.guests, name, node, moment) } else { vec![] };
        Heard { change, kept }
    }

    /// Makes the world's names those of the site: new nodes are off, new guests wait. A node that left the site is
    /// forgotten; so is a guest, once no node owns it.
    pub fn follow(&mut self, site: &Site, moment: Moment) {
        for machine in &site.machines {
            self.nodes.entry(machine.name.clone()).or_insert_with(|| Node::new(moment));
        }
        self.nodes.retain(|name, _| site.machine(name).is_some());
        for guest in &site.guests {
            self.guests.entry(guest.name.clone()).or_default();
        }
        let nodes = &self.nodes;
        self.guests.retain(|name, g| {
            site.guest(name).is_some() || g.place.as_ref().is_some_and(|p| nodes.contains_key(&p.node))
        });
    }
}
