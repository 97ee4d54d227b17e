//! What changed is noted: events for people, records for the next start of the server.

use std::collections::BTreeMap;

use labshift_model::api::{Event, EventKind, GuestPhase};
use labshift_plan::fleet::{self, Moment};

use super::{Engine, Kept, NOTE_SECONDS, json};
use crate::registry::records::Write;

impl Engine {
    /// Writes an event and tells it to everybody who listens.
    pub(super) fn note(&mut self, kind: EventKind, subject: &str, state: &str, text: String, cause: &str) {
        let Moment { now, real } = self.moment();
        self.event += 1;
        let event = Event {
            id: self.event,
            at: now,
            at_real: real,
            kind,
            subject: subject.to_owned(),
            state: state.to_owned(),
            text,
            cause: cause.to_owned(),
        };
        self.writes.push(Write::Event(event.clone()));
        self.events.push(event);
    }

    /// Tells when what is wanted of a node changed.
    pub(super) fn note_wanted(&mut self) {
        let now = self.moment().now;
        let site = self.site.clone();
        for machine in &site.machines {
            let Some(node) = self.world.nodes.get(&machine.name) else { continue };
            let wanted = fleet::wanted(&site, machine, node, now);
            let key = (wanted.mode, wanted.cause.clone());
            if self.wanted.insert(machine.name.clone(), key.clone()).is_some_and(|before| before != key) {
                let text = format!("{} shall be in mode {}", machine.name, wanted.mode);
                self.note(EventKind::Wanted, &machine.name, &wanted.mode.to_string(), text, &wanted.cause);
            }
        }
        self.wanted.retain(|name, _| site.machine(name).is_some());
    }

    /// Tells when a guest's phase changed.
    pub(super) fn note_phases(&mut self) {
        let mut changes = vec![];
        for (name, guest) in &self.world.guests {
            let (phase, cause) = fleet::phase(name, guest, &self.world.nodes);
            if self.phases.get(name) != Some(&phase) {
                changes.push((name.clone(), phase, cause, guest.place.as_ref().map(|p| p.node.clone())));
            }
        }
        for (name, phase, cause, node) in changes {
            let known = self.phases.insert(name.clone(), phase).is_some();
            // Its placing was told already, with its own cause.
            if phase != GuestPhase::Placed && (known || phase != GuestPhase::Waiting) {
                let place = node.map_or(String::new(), |n| format!(" on {n}"));
                self.note(
                    EventKind::Guest,
                    &name,
                    &phase.to_string(),
                    format!("{name} is {phase}{place}"),
                    &cause,
                );
            }
        }
        let guests = &self.world.guests;
        self.phases.retain(|name, _| guests.contains_key(name));
    }

    /// Writes records that changed.
    pub(super) fn note_records(&mut self) {
        let real = self.moment().real;
        let mut current: BTreeMap<(&'static str, String), (String, String)> = BTreeMap::new();
        for (name, node) in &self.world.nodes {
            let mut settled = node.clone();
            settled.status = None;
            settled.last_seen_real = None;
            settled.progress_real = None;
            current.insert(("node", name.clone()), (json(&settled), json(node)));
        }
        for (mac, machine) in &self.adopted {
            let text = json(machine);
            current.insert((super::ADOPTED, mac.to_string()), (text.clone(), text));
        }
        for (name, guest) in &self.world.guests {
            let text = json(guest);
            current.insert(("guest", name.clone()), (text.clone(), text));
        }
        self.kept.retain(|key, _| {
            let stays = current.contains_key(key);
            if !stays {
                self.writes.push(Write::Record { kind: key.0, name: key.1.clone(), json: None });
            }
            stays
        });
        for (key, (settled, full)) in current {
            let old = |k: &Kept| real.as_second() - k.at_real.as_second() > NOTE_SECONDS;
            let connected = key.0 == "node" && self.channels.contains_key(&key.1);
            let due = self.kept.get(&key).is_none_or(|k| k.settled != settled || (connected && old(k)));
            if due {
                self.writes.push(Write::Record { kind: key.0, name: key.1.clone(), json: Some(full) });
                self.kept.insert(key, Kept { settled, at_real: real });
            }
        }
    }
}
