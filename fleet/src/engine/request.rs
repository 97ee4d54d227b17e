//! What admins ask for.

use std::net::SocketAddr;

use jiff::ToSpan;
use labshift_model::{
    api::{Done, EventKind, Override},
    manifest,
    node::Mode,
};
use labshift_plan::fleet::{Hold, NodeEvent};
use tokio::sync::oneshot;

use super::{Effect, Engine, Refusal, Request, unknown};
use crate::{clock, registry::records::Write};

/// How long a node that an admin woke stays up, in seconds, when nothing else is said.
const HOLD_SECONDS: u32 = 3600;

impl Engine {
    pub(super) fn request(
        &mut self,
        peer: SocketAddr,
        request: Request,
        reply: oneshot::Sender<Result<Done, Refusal>>,
    ) {
        let asked = format!("{request:?}");
        let result = self.grant(request);
        let outcome = match &result {
            Ok(done) => format!("done: {done}"),
            Err(refusal) => format!("refused: {}", refusal.text()),
        };
        tracing::info!(%peer, asked, outcome, "admin");
        let moment = self.moment();
        self.writes.push(Write::Audit {
            at: moment.now,
            at_real: moment.real,
            who: "admin".into(),
            peer: peer.to_string(),
            request: asked,
            outcome,
        });
        self.effects.push(Effect::Answer(reply, result));
    }

    fn grant(&mut self, request: Request) -> Result<String, Refusal> {
        match request {
            Request::Wake(node, request) => {
                self.known(&node)?;
                if self.world.nodes.get(&node).is_some_and(|n| n.own_disk && !n.connected) {
                    let hint = format!("labshift node boot {node} room takes that back");
                    return Err(Refusal::Conflict(format!(
                        "{node} boots its own disk and is not ours; {hint}"
                    )));
                }
                let now = self.moment().now;
                let seconds = request.seconds.unwrap_or(HOLD_SECONDS);
                let until = now.checked_add(i64::from(seconds).seconds());
                let until = until.map_err(|_| Refusal::Bad(format!("{seconds} s is too long")))?;
                let cause = reason("woken by an admin", &request.cause);
                self.note(EventKind::Admin, &node, "", format!("an admin wakes {node}"), &cause);
                if let Some(record) = self.world.nodes.get_mut(&node) {
                    record.hold = Some(Hold { from: now, until, cause });
                    // A node that was given up is tried again at once.
                    if record.state == labshift_model::api::NodeState::Failed && record.attempt.is_none() {
                        record.since_real = jiff::Timestamp::UNIX_EPOCH;
                    }
                }
                Ok(format!("{node} is woken, and stays up for {} min at least", seconds / 60))
            }
            Request::Mode(node, request) => {
                self.known(&node)?;
                let now = self.moment().now;
                if request.until.is_some_and(|until| until <= now) {
                    return Err(Refusal::Bad(format!("\"until\" is not after the server's clock, {now}")));
                }
                let text = match request.mode {
                    Some(mode) => format!("an admin gives {node} the mode {mode}"),
                    None => format!("an admin gives {node} back to its schedule"),
                };
                let cause = reason("an admin's override", &request.cause);
                self.note(EventKind::Admin, &node, "", text.clone(), &cause);
                if let Some(record) = self.world.nodes.get_mut(&node) {
                    record.hold = record.hold.take().filter(|_| request.mode != Some(Mode::Off));
                    record.override_mode =
                        request.mode.map(|mode| (Override { mode, until: request.until, cause }, now));
                }
                Ok(text)
            }
            Request::Reboot(node, request) => {
                self.known(&node)?;
                let Some(record) = self.world.nodes.get_mut(&node) else { return Err(unknown(&node)) };
                let Some(attempt) = record.attempt.filter(|_| record.connected) else {
                    let state = record.state;
                    return Err(Refusal::Conflict(format!("{node} is {state}, it can't be asked to reboot")));
                };
                let cause = reason("an admin asked for a reboot", &request.cause);
                record.rebooting = Some(cause.clone());
                self.note(EventKind::Admin, &node, "", format!("an admin reboots {node}"), &cause);
                self.effects.push(Effect::Reboot {
                    node: node.clone(),
                    attempt,
                    cause,
                    kexec: request.kexec,
                });
                Ok(format!("{node} saves its guests and reboots"))
            }
            Request::Boot(node, request) => {
                self.known(&node)?;
                self.tell(&node, request)
            }
            Request::Fence(node, request) => {
                self.known(&node)?;
                let connected = self.world.nodes.get(&node).is_some_and(|n| n.connected);
                if connected {
                    return Err(Refusal::Conflict(format!("{node} is connected: it has power")));
                }
                let cause = reason("an admin says so", &request.cause);
                self.note(
                    EventKind::Admin,
                    &node,
                    "",
                    format!("an admin declares {node} to have no power"),
                    &cause,
                );
                self.hear(&node, NodeEvent::Fenced { cause });
                Ok(format!("{node} counts as off; its guests go on elsewhere"))
            }
            Request::Adopt(node, request) => self.adopt(&node, &request),
            Request::Forget(node) => self.forget(&node),
            Request::Push { image, generation, channel } => {
                let text = format!("an admin pushed {image}@{}", manifest::short(&generation));
                self.note(EventKind::Admin, &image, "", text, &format!("channel {channel} points to it"));
                Ok(format!("{image}: {channel} is {generation}"))
            }
            Request::Clock(request) => {
                let to = clock::read_time(&request.now, &self.site.timezone)
                    .map_err(|e| Refusal::Bad(e.to_string()))?;
                self.shared.options.clock.set(to).map_err(|e| Refusal::Conflict(e.to_string()))?;
                // Nodes keep a copy of this clock: all are told anew.
                for node in self.world.nodes.values_mut() {
                    node.sent = false;
                }
                let local = to.to_zoned(self.site.timezone.clone()).strftime("%A %F %H:%M:%S").to_string();
                self.note(
                    EventKind::Clock,
                    "clock",
                    "",
                    format!("the clock was moved to {local}"),
                    "an admin",
                );
                self.note_wanted();
                Ok(format!("it is {local}"))
            }
        }
    }

    fn known(&self, node: &str) -> Result<(), Refusal> {
        if self.node_state(node).is_some() { Ok(()) } else { Err(unknown(node)) }
    }
}

pub(super) fn reason(default: &str, given: &str) -> String {
    let given: String = given.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    if given.is_empty() { default.to_owned() } else { format!("{default}: {given}") }
}
