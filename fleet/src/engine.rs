//! The task that owns the fleet's state.
//!
//! A turn: take note of messages, plan until nothing is left to do, write the registry, then act (packets, messages to
//! nodes), then publish. What is acted on is durable before: a guest that was given to a node is known to be there,
//! also by a server that starts again.

mod adopt;
mod boot;
mod hear;
mod note;
mod request;
mod told;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use labshift_model::{
    MacAddr,
    api::{self, Done, Event, EventKind, GuestPhase, GuestReport, NodeState, Stranger, WakeMeans, WakeView},
    boot::BootPlaneEvent,
    guest::SavedState,
    manifest::FileEntry,
    node::{FromNode, Mode, NodeDesired, ToNode},
    site::{Site, Workstation},
};
use labshift_plan::{
    fallback::Trials,
    fleet::{self, FleetStep, Inputs, Moment, World},
    told::Told,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    RegistryError, Shared, View,
    boots::BootLog,
    keys::Hash,
    registry::records::{self, Remembered, Write},
    saved::{self, Part},
    status,
    store::Images,
    wol,
};

/// Something that happened, for the engine.
pub(crate) enum Message {
    /// The boot plane saw something.
    Plane(BootPlaneEvent),
    /// A node's init was told what to boot.
    Answered { node: String, attempt: u64, token: Hash, image: String, generation: String, from: IpAddr },
    /// A node's runtime opened its channel and said hello.
    Opened { node: String, connection: u64, hello: FromNode, to: mpsc::Sender<ToNode> },
    /// It said something more.
    Said { node: String, connection: u64, message: FromNode },
    /// Its channel is closed.
    Closed { node: String, connection: u64 },
    /// A guest reported.
    Report { guest: String, body: serde_json::Value, reply: oneshot::Sender<()> },
    /// A part of a saved guest is in the store; answered when that is durable in the registry.
    Uploaded {
        guest: String,
        revision: u64,
        part: Part,
        entry: FileEntry,
        node: String,
        reply: oneshot::Sender<()>,
    },
    /// An admin asks for something.
    Admin { peer: SocketAddr, request: Request, reply: oneshot::Sender<Result<Done, Refusal>> },
    /// A new site.
    Reload(Box<Site>),
}

/// What an admin may ask for.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Wake(String, api::WakeRequest),
    Mode(String, api::ModeRequest),
    Reboot(String, api::RebootRequest),
    Boot(String, api::BootRequest),
    Fence(String, api::FenceRequest),
    Adopt(String, api::AdoptRequest),
    Forget(String),
    Clock(api::ClockRequest),
    /// Noted, not granted: the image is in the store already.
    Push {
        image: String,
        generation: String,
        channel: String,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such node.
    NotFound(String),
    /// It can't be done as things are.
    Conflict(String),
    /// The request makes no sense.
    Bad(String),
}

impl Refusal {
    pub(crate) fn text(&self) -> &str {
        match self {
            Refusal::NotFound(text) | Refusal::Conflict(text) | Refusal::Bad(text) => text,
        }
    }
}

/// An open channel to a node.
struct Channel {
    connection: u64,
    to: mpsc::Sender<ToNode>,
}

/// What is done after the registry was written.
enum Effect {
    Wake { node: String, mac: MacAddr, address: Ipv4Addr, view: WakeView },
    Desire { node: String, desired: Box<NodeDesired> },
    Reboot { node: String, attempt: u64, cause: String, kexec: bool },
    Prune { guest: String, keep: u64 },
    Reported(oneshot::Sender<()>),
    Answer(oneshot::Sender<Result<Done, Refusal>>, Result<String, Refusal>),
}

/// The owner of the fleet's state.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Message>,
    /// The file's site with the machines that were adopted.
    pub(crate) site: Arc<Site>,
    /// As the file has it.
    file: Arc<Site>,
    adopted: BTreeMap<MacAddr, Workstation>,
    /// Why adopted machines are left out.
    pub(crate) unadopted: Vec<String>,
    pub(crate) strangers: BTreeMap<MacAddr, Stranger>,
    pub(crate) images: Arc<Images>,
    pub(crate) world: World,
    pub(crate) boots: BTreeMap<String, BootLog>,
    /// What each node has seen of its images.
    pub(crate) trials: BTreeMap<String, Trials>,
    /// What an admin told machines to boot.
    pub(crate) told: BTreeMap<String, Told>,
    pub(crate) wakes: BTreeMap<String, Vec<WakeView>>,
    pub(crate) reports: BTreeMap<String, (GuestReport, u64)>,
    pub(crate) rogues: BTreeMap<Ipv4Addr, Timestamp>,
    channels: BTreeMap<String, Channel>,
    addresses: BTreeMap<Ipv4Addr, MacAddr>,
    phases: BTreeMap<String, GuestPhase>,
    wanted: BTreeMap<String, (Mode, String)>,
    kept: BTreeMap<(&'static str, String), Kept>,
    pub(crate) event: u64,
    boot: u64,
    writes: Vec<Write>,
    effects: Vec<Effect>,
    events: Vec<Event>,
}

/// A record as it was written last.
#[derive(Default)]
struct Kept {
    /// Without what changes all the time.
    settled: String,
    at_real: Timestamp,
}

/// The kind of record that an adopted machine has.
const ADOPTED: &str = "adopted";
/// How often the registry takes note of what changes all the time, in seconds.
const NOTE_SECONDS: i64 = 30;
/// How often the image store is read again, in ticks.
const STORE_TICKS: u64 = 5;

impl Engine {
    pub(crate) fn new(
        shared: Arc<Shared>,
        messages: mpsc::Receiver<Message>,
        remembered: Remembered,
    ) -> Self {
        let view = shared.view();
        let mut engine = Engine {
            messages,
            site: view.site.clone(),
            file: view.site.clone(),
            adopted: BTreeMap::new(),
            unadopted: vec![],
            strangers: BTreeMap::new(),
            images: view.images.clone(),
            world: World::default(),
            boots: remembered.boots,
            trials: BTreeMap::new(),
            told: BTreeMap::new(),
            wakes: BTreeMap::new(),
            reports: remembered.reports,
            rogues: BTreeMap::new(),
            channels: BTreeMap::new(),
            addresses: BTreeMap::new(),
            phases: BTreeMap::new(),
            wanted: BTreeMap::new(),
            kept: BTreeMap::new(),
            event: remembered.event,
            boot: remembered.boot,
            writes: vec![],
            effects: vec![],
            events: vec![],
            shared,
        };
        for ((kind, name), json) in remembered.records {
            let read = match kind.as_str() {
                "node" => {
                    serde_json::from_str(&json).map(|n| drop(engine.world.nodes.insert(name.clone(), n)))
                }
                ADOPTED => {
                    // One that the file names by now is not written again, and its record goes.
                    engine.kept.insert((ADOPTED, name.clone()), Kept::default());
                    serde_json::from_str(&json).map(|m: Workstation| drop(engine.adopted.insert(m.mac, m)))
                }
                "told" => serde_json::from_str(&json).map(|t| drop(engine.told.insert(name.clone(), t))),
                "trials" => serde_json::from_str(&json).map(|t| drop(engine.trials.insert(name.clone(), t))),
                _ => serde_json::from_str(&json).map(|g| drop(engine.world.guests.insert(name.clone(), g))),
            };
            if let Err(e) = read {
                tracing::error!(kind, name, "a record of the registry is not readable and is made anew: {e}");
            }
        }
        // What the records name is there before the first question.
        engine.read_store_now();
        engine.follow_site(engine.file.clone());
        for name in engine.world.nodes.keys().cloned().collect::<Vec<_>>() {
            engine.hear(&name, fleet::NodeEvent::Reloaded);
        }
        for (name, guest) in &engine.world.guests {
            engine.phases.insert(name.clone(), fleet::phase(name, guest, &engine.world.nodes).0);
        }
        engine
    }

    pub(crate) fn moment(&self) -> Moment {
        self.shared.options.clock.moment()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Runs until `shutdown` is done.
    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RegistryError> {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0_u64;
        tokio::pin!(shutdown);
        self.turn().await?;
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                message = self.messages.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    self.take(message);
                    for _ in 0..256 {
                        let Ok(message) = self.messages.try_recv() else { break };
                        self.take(message);
                    }
                }
                _ = tick.tick() => {
                    ticks += 1;
                    if ticks.is_multiple_of(STORE_TICKS) {
                        self.read_store().await;
                    }
                }
            }
            self.turn().await?;
        }
    }

    async fn read_store(&mut self) {
        let (store, site, known) =
            (self.shared.options.store.clone(), self.site.clone(), self.images.clone());
        let besides = self.besides();
        let read = tokio::task::spawn_blocking(move || Images::read(&store, &site, &besides, &known));
        if let Ok(images) = read.await
            && images != *self.images
        {
            self.images = Arc::new(images);
        }
    }

    /// Plans, writes, publishes, acts; until nothing is left to do.
    async fn turn(&mut self) -> Result<(), RegistryError> {
        loop {
            self.note_wanted();
            self.plan_all();
            self.note_phases();
            self.note_records();
            self.publish();
            let (writes, events) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.events));
            let effects = std::mem::take(&mut self.effects);
            let rests = writes.is_empty() && effects.is_empty();
            if !writes.is_empty() {
                self.shared.registry.run(move |t| records::write(t, &writes)).await?;
            }
            status::publish(&self.shared.status, status::build(self));
            // Events are told once they are durable: who asks the registry for what it missed misses nothing.
            for event in events {
                let _ = self.shared.events.send(event);
            }
            if rests {
                return Ok(());
            }
            // Effects change things too (a packet that can't be sent, a channel that turns out to be gone), so the
            // turn goes round until there are none.
            for effect in effects {
                self.perform(effect).await;
            }
        }
    }

    fn plan_all(&mut self) {
        self.see_own_disks();
        // A plan that never comes to rest would be a mistake in the planner; the next turn goes on with it.
        for _ in 0..64 {
            let steps = self.plan();
            if steps.is_empty() {
                break;
            }
            for step in steps {
                self.take_step(step);
            }
        }
    }

    fn plan(&self) -> Vec<FleetStep> {
        let token = |guest: &str| self.shared.keys.guest(guest);
        let inputs =
            Inputs { site: &self.site, images: &self.images.stable, token: &token, moment: self.moment() };
        fleet::plan(&inputs, &self.world)
    }

    fn take_step(&mut self, step: FleetStep) {
        let moment = self.moment();
        let change = self.world.apply(&step, moment);
        let about = match &step {
            FleetStep::Wake { node, .. }
            | FleetStep::MarkFailed { node, .. }
            | FleetStep::MarkOff { node, .. } => Some(node.clone()),
            FleetStep::StopWaking { node, .. } => Some(node.clone()),
            _ => None,
        };
        match step {
            FleetStep::Wake { node, means, number, cause } => self.wake(&node, means, number, cause),
            FleetStep::Desire { node, desired } => self.effects.push(Effect::Desire { node, desired }),
            FleetStep::Place { guest, node, cause, .. } => {
                self.note(EventKind::Guest, &guest, "placed", format!("{guest} is given to {node}"), &cause);
            }
            FleetStep::Revoke { guest, cause } => {
                tracing::info!(guest, cause, "revoked");
            }
            FleetStep::Release { guest, cause } => {
                tracing::info!(guest, cause, "released");
            }
            FleetStep::Finish { guest, cause } => {
                tracing::info!(guest, cause, "finished");
            }
            FleetStep::MarkFailed { .. } | FleetStep::MarkOff { .. } | FleetStep::StopWaking { .. } => {}
        }
        if let (Some(node), Some(change)) = (about, change) {
            self.note_change(&node, &change);
        }
    }

    fn wake(&mut self, node: &str, means: WakeMeans, number: u32, cause: String) {
        let Some(machine) = self.site.machine(node) else { return };
        let (mac, address) = (machine.mac, machine.address);
        let at_real = self.moment().real;
        let view = WakeView { at_real, means, number, cause, failure: None };
        if number == 1 {
            self.wakes.insert(node.to_owned(), vec![]);
            self.begin_boot(node, at_real, &view);
        }
        self.effects.push(Effect::Wake { node: node.to_owned(), mac, address, view });
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Wake { node, mac, address, mut view } => {
                let (site, interface) = (self.site.clone(), self.shared.options.interface.clone());
                let means = view.means;
                let send = move || wol::send(mac, means, site.way_to(address), interface.as_deref());
                let sent = tokio::task::spawn_blocking(send).await;
                view.failure = match sent {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(e.to_string()),
                    Err(e) => Some(e.to_string()),
                };
                let text = match &view.failure {
                    None => format!("magic packet {} to {node} by {}", view.number, view.means),
                    Some(failure) => {
                        format!("magic packet {} to {node} was not sent: {failure}", view.number)
                    }
                };
                self.note(EventKind::Wake, &node, &view.means.to_string(), text, &view.cause.clone());
                self.writes.push(Write::Wake { node: node.clone(), wake: view.clone() });
                self.wakes.entry(node).or_default().push(view);
            }
            Effect::Desire { node, desired } => self.send(&node, ToNode::Desired(desired)),
            Effect::Reboot { node, attempt, cause, kexec } => {
                self.send(&node, ToNode::Reboot { attempt, cause, kexec });
            }
            Effect::Prune { guest, keep } => {
                if let Err(e) = saved::prune(&self.shared.options.state, &guest, keep).await {
                    tracing::warn!(guest, "removing old saved states: {e}");
                }
            }
            Effect::Reported(reply) => drop(reply.send(())),
            Effect::Answer(reply, result) => {
                let event = self.event;
                let _ = reply.send(result.map(|done| Done { done, event }));
            }
        }
    }

    fn send(&mut self, node: &str, message: ToNode) {
        let Some(channel) = self.channels.get(node) else { return };
        if channel.to.try_send(message).is_err() {
            // Its queue is full or gone: without a channel it connects again, and is told everything anew.
            self.channels.remove(node);
            self.hear(node, fleet::NodeEvent::Disconnected);
        }
    }

    /// Applies an event to a node, and tells what it changed.
    fn hear(&mut self, node: &str, event: fleet::NodeEvent) {
        let heard = self.world.hear(node, event, self.moment());
        if let Some(change) = heard.change {
            self.note_change(node, &change);
        }
        for (guest, saved) in heard.kept {
            self.note_kept(&guest, &saved);
        }
    }

    fn note_kept(&mut self, guest: &str, saved: &SavedState) {
        let text =
            format!("{guest}: saved state {} is in the store ({} bytes)", saved.revision, bytes_of(saved));
        let cause = self.world.nodes.get(&saved.node).map_or(String::new(), |n| n.cause.clone());
        self.note(EventKind::Guest, guest, "kept", text, &cause);
        // One older state stays, for the case that the newest can't be restored.
        let keep = saved.revision.saturating_sub(1);
        if let Some(record) = self.world.guests.get_mut(guest) {
            record.stored.retain(|revision, _| *revision >= keep);
        }
        self.writes.push(Write::EndUploads { guest: guest.to_owned(), revision: keep });
        self.effects.push(Effect::Prune { guest: guest.to_owned(), keep });
    }

    fn note_change(&mut self, node: &str, change: &fleet::StateChange) {
        tracing::info!(node, from = %change.from, to = %change.to, cause = change.cause, "node");
        let text = format!("{node} is {} (was {})", change.to, change.from);
        self.note(EventKind::Node, node, &change.to.to_string(), text, &change.cause);
    }

    fn publish(&self) {
        let owner = |(name, guest): (&String, &fleet::Guest)| {
            let place = guest.place.as_ref()?;
            Some((name.clone(), (place.node.clone(), place.attempt)))
        };
        let saved =
            |(name, guest): (&String, &fleet::Guest)| Some((name.clone(), guest.saved.as_ref()?.revision));
        self.shared.publish(View {
            site: self.site.clone(),
            images: self.images.clone(),
            trials: self.trials.clone(),
            told: self.told.clone(),
            owners: self.world.guests.iter().filter_map(owner).collect(),
            saved: self.world.guests.iter().filter_map(saved).collect(),
        });
    }

    /// The state of a node as people see it.
    pub(crate) fn node_state(&self, node: &str) -> Option<NodeState> {
        self.world.nodes.get(node).map(|n| n.state)
    }
}

fn bytes_of(saved: &SavedState) -> u64 {
    saved.memory.size + saved.disk.as_ref().map_or(0, |d| d.size)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn unknown(node: &str) -> Refusal {
    Refusal::NotFound(format!("there is no machine \"{node}\" in the site file"))
}
