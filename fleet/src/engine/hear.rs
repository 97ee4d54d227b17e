//! Messages to the engine, one by one.

use std::sync::{Arc, PoisonError};

use labshift_model::{
    api::{EventKind, GuestReport},
    node::{FromNode, NodeStatus},
};
use labshift_plan::fleet::NodeEvent;

use super::{Channel, Effect, Engine, Message, Part};
use crate::registry::records::Write;

impl Engine {
    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Plane(event) => self.saw(event),
            Message::Answered { node, attempt, token, image, generation, from } => {
                tracing::debug!(node, attempt, %from, "told what to boot");
                self.writes.push(Write::Token { hash: token, node: node.clone(), attempt });
                self.answered(&node, attempt, image, generation);
            }
            Message::Opened { node, connection, hello, to } => {
                let FromNode::Hello { attempt, facts, stages, version } = hello else { return };
                tracing::info!(node, attempt, version, "channel open");
                // The newest connection is the one that works; dropping the older channel closes it.
                if self.channels.insert(node.clone(), Channel { connection, to }).is_some() {
                    self.hear(&node, NodeEvent::Disconnected);
                }
                self.shared.tokens.write().unwrap_or_else(PoisonError::into_inner).settle(&node, attempt);
                self.writes.push(Write::EndTokens { node: node.clone(), attempt });
                self.stages_told(&node, Some(attempt), &stages);
                self.hear(&node, NodeEvent::Connected { attempt, facts });
            }
            Message::Said { node, connection, message } => {
                if self.channels.get(&node).is_none_or(|c| c.connection != connection) {
                    return;
                }
                match message {
                    FromNode::Status(status) => self.status_told(&node, status),
                    FromNode::Stage(stage) => {
                        let attempt = self.world.nodes.get(&node).and_then(|n| n.attempt);
                        self.stages_told(&node, attempt, &[stage]);
                    }
                    // Only the first message of a connection may be a hello.
                    FromNode::Hello { .. } => {}
                }
            }
            Message::Closed { node, connection } => {
                if self.channels.get(&node).is_some_and(|c| c.connection == connection) {
                    self.channels.remove(&node);
                    self.hear(&node, NodeEvent::Disconnected);
                }
            }
            Message::Report { guest, body, reply } => self.report(guest, body, reply),
            Message::Uploaded { guest, revision, part, entry, node, reply } => {
                if let Some(record) = self.world.guests.get_mut(&guest) {
                    let parts = record.stored.entry(revision).or_default();
                    match part {
                        Part::Memory => parts.memory = Some(entry.clone()),
                        Part::Disk => parts.disk = Some(entry.clone()),
                    }
                }
                let (at_real, part) = (self.moment().real, part.name());
                self.writes.push(Write::Upload { guest, revision, part, entry, node, at_real });
                self.effects.push(Effect::Reported(reply));
            }
            Message::Admin { peer, request, reply } => self.request(peer, request, reply),
            Message::Reload(site) => {
                self.follow_site(Arc::new(*site));
                let site = self.site.clone();
                self.channels.retain(|node, _| site.machine(node).is_some());
                self.trials.retain(|node, _| site.machine(node).is_some());
                self.told.retain(|node, _| site.machine(node).is_some());
                self.read_store_now();
                self.note(EventKind::Site, &site.name, "", "the site file was read again".into(), "");
            }
        }
    }

    fn status_told(&mut self, node: &str, status: NodeStatus) {
        let before = self.world.nodes.get(node).and_then(|n| n.status.clone());
        let trouble =
            status.trouble.clone().filter(|t| before.as_ref().and_then(|b| b.trouble.as_ref()) != Some(t));
        let last = status.completed.last().cloned();
        let known = before.as_ref().and_then(|b| b.completed.last().cloned());
        let more = before.as_ref().map_or(0, |b| b.completed.len()) < status.completed.len();
        self.hear(node, NodeEvent::Status(Box::new(status)));
        if let Some(done) = last.filter(|done| more || known.as_ref() != Some(done)) {
            let from = done.from.map_or("boot".to_owned(), |m| m.to_string());
            let took = format!("{}.{:03} s", done.took_ms / 1000, done.took_ms % 1000);
            let text = format!("{node}: {from} to {} took {took}", done.to);
            let wanted = self.world.nodes.get(node).and_then(|n| n.desired.as_ref());
            let cause = wanted.map_or(String::new(), |d| d.current.cause.clone());
            self.note(EventKind::Mode, node, &done.to.to_string(), text, &cause);
        }
        if let Some(trouble) = trouble {
            self.note(EventKind::Trouble, node, "", format!("{node}: {trouble}"), "the node complains");
        }
    }

    fn report(&mut self, guest: String, body: serde_json::Value, reply: tokio::sync::oneshot::Sender<()>) {
        let moment = self.moment();
        let node = self.world.guests.get(&guest).and_then(|g| Some(g.place.as_ref()?.node.clone()));
        let report = GuestReport { at: moment.now, at_real: moment.real, node, body };
        self.writes.push(Write::Report { guest: guest.clone(), report: report.clone() });
        let count = self.reports.get(&guest).map_or(0, |(_, n)| *n) + 1;
        self.reports.insert(guest, (report, count));
        self.effects.push(Effect::Reported(reply));
    }
}
