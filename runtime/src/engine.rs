//! The one task that owns the node's state.
//!
//! ```text
//!          event (desired, domain, screen, rcuda, timer, step done)
//!            v
//!   observe everything --> plan --> the same step as the one that runs?  --yes--> wait
//!            ^                        | no: may it be abandoned?  --no--> wait
//!            |                        v yes, or nothing runs
//!            +------------------- perform the plan's first step
//! ```

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Result;
use labshift_model::{
    boot::{Stage, StageEvent},
    guest::Role,
    node::{Mode, NodeDesired, NodeStatus, ToNode},
    paths,
};
use labshift_plan::node::{self as plan, Domain, NodeObserved, Plan, Rcuda, Screen, Step, Trouble};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    bridge,
    channel::{Incoming, Outgoing},
    clock::{Clock, since_boot},
    console,
    kiosk::control::Status as Page,
    observe,
    perform::Performer,
    status,
    timeline::Timeline,
};

/// Without any event a node with guests looks at itself so often: how long one has been silent is no event.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The status goes out so often even when nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A failure that was not repeated for so long is history: every retry comes sooner.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// A subject's failures.
struct Failures {
    times: u32,
    last: Duration,
    reason: String,
}

/// A step that is being performed.
struct Running {
    step: Step,
    task: JoinHandle<()>,
}

/// A step that is over.
type Performed = (Step, Result<()>);

/// What wakes the engine.
pub struct Events {
    /// From the server.
    pub incoming: mpsc::Receiver<Incoming>,
    /// Names of domains whose life changed.
    pub domains: mpsc::UnboundedReceiver<String>,
}

/// The engine.
pub struct Engine {
    performer: Performer,
    events: Events,
    changes: watch::Sender<u64>,
    outgoing: watch::Sender<Outgoing>,
    clock: Clock,
    desired: Option<NodeDesired>,
    /// The connection is open and has brought a desired state.
    reachable: bool,
    reboot: bool,
    kexec: bool,
    leaving: bool,
    warned: Option<Duration>,
    failures: BTreeMap<String, Failures>,
    rcuda_exits: u32,
    running: Option<Running>,
    done: (mpsc::Sender<Performed>, mpsc::Receiver<Performed>),
    timeline: Timeline,
    consoles: BTreeMap<String, JoinHandle<()>>,
    page: Page,
    observed: NodeObserved,
    told_at: Duration,
    visible_told: bool,
}

impl Engine {
    /// An engine that knows nothing yet. `changes` is the sender of [`Performer::domains`].
    pub fn new(
        performer: Performer,
        events: Events,
        changes: watch::Sender<u64>,
        outgoing: watch::Sender<Outgoing>,
        page: Page,
    ) -> Self {
        let clock = Clock::from_offset(performer.context.clock_offset_ms);
        Engine {
            performer,
            events,
            changes,
            outgoing,
            clock,
            desired: None,
            reachable: false,
            reboot: false,
            kexec: false,
            leaving: false,
            warned: None,
            failures: BTreeMap::new(),
            rcuda_exits: 0,
            running: None,
            done: mpsc::channel(4),
            timeline: Timeline::default(),
            consoles: BTreeMap::new(),
            page,
            observed: NodeObserved::default(),
            told_at: Duration::ZERO,
            visible_told: false,
        }
    }

    /// Runs until the server's channel is dropped.
    pub async fn run(mut self) {
        let mut screen = self.performer.screen.state();
        let mut rcuda = self.performer.rcuda.state();
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                incoming = self.events.incoming.recv() => match incoming {
                    Some(incoming) => self.hear(incoming),
                    None => return,
                },
                Some(_) = self.events.domains.recv() => self.changes.send_modify(|n| *n += 1),
                Ok(()) = screen.changed() => {}
                Ok(()) = rcuda.changed() => {}
                Some((step, result)) = self.done.1.recv() => self.finish(step, result),
                () = sleep_until(look_at) => self.changes.send_modify(|n| *n += 1),
            }
            while self.events.domains.try_recv().is_ok() {
                self.changes.send_modify(|n| *n += 1);
            }
            let wait = self.look().await;
            look_at = Instant::now() + wait;
        }
    }

    fn hear(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Open => tracing::info!("the channel to the server is open"),
            Incoming::Closed(reason) => {
                if std::mem::take(&mut self.reachable) {
                    tracing::warn!(reason, "on our own: the node follows its schedule");
                }
            }
            Incoming::Message(ToNode::Desired(desired)) => {
                self.clock.set(desired.now, since_boot());
                self.reachable = true;
                if self.desired.as_ref().is_none_or(|d| d.current != desired.current) {
                    tracing::info!(
                        revision = desired.revision,
                        mode = %desired.current.mode,
                        cause = desired.current.cause,
                        "desired state"
                    );
                }
                self.desired = Some(*desired);
            }
            Incoming::Message(ToNode::Reboot { attempt, cause, kexec }) => {
                if attempt == self.performer.context.attempt {
                    tracing::info!(cause, "an admin asks for a reboot");
                    (self.reboot, self.kexec) = (true, kexec);
                } else {
                    tracing::info!(attempt, cause, "a reboot of another boot is ignored");
                }
            }
        }
    }

    fn finish(&mut self, step: Step, result: Result<()>) {
        // A step that was abandoned may have been done in the same moment.
        if self.running.as_ref().is_some_and(|r| r.step == step) {
            self.running = None;
        }
        let now = since_boot();
        self.timeline.end(now);
        match result {
            Ok(()) => {
                self.failures.remove(step.subject());
                match step {
                    Step::WarnPerson { .. } => self.warned = Some(now),
                    Step::WithdrawWarning => self.warned = None,
                    Step::PowerOff | Step::Reboot | Step::Kexec => self.leaving = true,
                    _ => {}
                }
            }
            Err(error) => self.fail(step.subject(), format!("{}: {error:#}", step.phase()), now),
        }
    }

    fn fail(&mut self, subject: &str, reason: String, now: Duration) {
        tracing::warn!(reason, "failed");
        say("trouble", &reason);
        let failures = self.failures.entry(subject.to_owned()).or_insert(Failures {
            times: 0,
            last: now,
            reason: String::new(),
        });
        failures.times += 1;
        (failures.last, failures.reason) = (now, reason);
    }

    /// Observes, plans, performs, tells; returns how long to wait when nothing happens.
    async fn look(&mut self) -> Duration {
        let now = since_boot();
        let observed = match self.observe(now).await {
            Ok(observed) => observed,
            Err(error) => {
                let reason = format!("{error:#}");
                if self.failures.get("libvirt").is_none_or(|f| f.reason != reason) {
                    self.fail("libvirt", reason, now);
                }
                // Without libvirt nothing can be decided; the server hears of it with what was seen last.
                let (desired, observed) = (self.desired.clone(), self.observed.clone());
                self.tell(desired.as_ref(), &observed, now);
                return LOOK_AGAIN;
            }
        };
        self.failures.remove("libvirt");
        self.failures.retain(|_, f| now.saturating_sub(f.last) < FORGET_AFTER);
        self.observed = observed.clone();
        self.follow_consoles(&observed);
        let usual = if observed.guests.is_empty() { HEARTBEAT } else { LOOK_AGAIN };
        let Some(desired) = self.desired.clone() else {
            self.tell(None, &observed, now);
            return usual;
        };
        let plan = plan::plan(&desired, &observed, self.clock.now());
        if !self.leaving {
            self.advance(&plan, &desired, now);
        }
        // What a step does may be seen before the step is over; the mode is reached when both are true.
        let busy = self.running.as_ref().is_some_and(|r| !plan.afterwards.contains(&r.step));
        if let Some(done) = self.timeline.look(&plan, busy, self.clock.now(), now) {
            let seconds = done.took_ms as f64 / 1000.0;
            let phases: Vec<String> = done
                .phases
                .iter()
                .map(|(phase, ms)| format!("{phase} {:.1} s", *ms as f64 / 1000.0))
                .collect();
            let how = if phases.is_empty() { String::new() } else { format!(" ({})", phases.join(", ")) };
            say("mode", &format!("{} reached in {seconds:.1} s{how}", done.to));
        }
        self.set_page(&plan).await;
        self.tell_visible(&plan, &observed, now);
        self.tell(Some(&desired), &observed, now);
        plan.look_again.map_or(usual, |s| Duration::from_secs(s).min(usual))
    }

    /// Performs the plan's first step, unless it is under way.
    fn advance(&mut self, plan: &Plan, desired: &NodeDesired, now: Duration) {
        // The change begins with its first step's beginning, not with its end.
        let next = plan.next();
        if let Some(running) = &self.running {
            let same = next.is_some_and(|step| step.is_same_work(&running.step));
            if same || !running.step.may_be_abandoned() {
                return;
            }
            tracing::info!(step = running.step.phase(), "abandoned: the plan has changed");
            running.task.abort();
            self.running = None;
            self.timeline.end(now);
        }
        let Some(step) = next.cloned() else { return };
        self.timeline.look(plan, true, self.clock.now(), now);
        if !plan.steps.is_empty() {
            self.timeline.begin(&step, now);
        }
        tracing::info!(step = step.phase(), left = plan.steps.len(), mode = %plan.mode, cause = plan.cause, "step");
        let (performer, desired, done) = (self.performer.clone(), desired.clone(), self.done.0.clone());
        let performed = step.clone();
        let task = tokio::spawn(async move {
            let result = performer.perform(&performed, &desired).await;
            // The engine outlives its steps, or the daemon ends.
            let _ = done.send((performed, result)).await;
        });
        self.running = Some(Running { step, task });
    }

    async fn observe(&mut self, now: Duration) -> Result<NodeObserved> {
        let performer = &self.performer;
        let domains = performer.hypervisor.list().await?;
        let records = performer.records.all();
        let guests = observe::guests(
            &records,
            &domains,
            |guest, revision| performer.records.memory(guest, revision).is_file(),
            |guest| console::silent_seconds(&performer.records.console(guest)),
        );
        let rcuda = performer.rcuda.state().borrow().clone();
        let screen = performer.screen.state().borrow().clone();
        if rcuda.exits > self.rcuda_exits {
            self.rcuda_exits = rcuda.exits;
            self.fail("rcuda", "the remote-CUDA server ended by itself".into(), now);
        }
        let bridge = bridge::is_up(&self.performer.context.network).await.unwrap_or(false);
        let troubles = self.failures.iter().map(|(subject, f)| {
            let seconds_ago = now.saturating_sub(f.last).as_secs();
            (subject.clone(), Trouble { times: f.times, seconds_ago })
        });
        Ok(NodeObserved {
            server_reachable: self.reachable,
            bridge,
            guests,
            images: self.performer.images.list(),
            screen: screen.shows,
            warned_seconds_ago: self.warned.map(|w| now.saturating_sub(w).as_secs()),
            rcuda: match (rcuda.process, rcuda.devices.is_some()) {
                (false, _) => Rcuda::Stopped,
                (true, false) => Rcuda::Silent,
                (true, true) => Rcuda::Serving,
            },
            idle_seconds: screen.touched.map(|t| now.saturating_sub(t).as_secs()),
            reboot: self.reboot,
            kexec: self.kexec,
            troubles: troubles.collect(),
        })
    }

    /// Every guest that runs has its console followed.
    fn follow_consoles(&mut self, observed: &NodeObserved) {
        let alive = |name: &str| {
            observed.guests.get(name).is_some_and(|g| matches!(g.domain, Domain::Running | Domain::Paused))
        };
        self.consoles.retain(|name, task| {
            let keep = alive(name);
            if !keep {
                task.abort();
            }
            keep
        });
        for name in observed.guests.keys().filter(|name| alive(name)) {
            if !self.consoles.contains_key(name) {
                let path = self.performer.records.console(name);
                self.consoles.insert(name.clone(), tokio::spawn(console::follow(name.clone(), path)));
            }
        }
    }

    async fn set_page(&mut self, plan: &Plan) {
        let transition = self.timeline.transition(since_boot());
        let line = match (&transition, plan.mode) {
            (Some(change), _) => format!("Changing to {}: {}", change.to, change.phase),
            (None, Mode::Desktop) => "The desktop is about to appear".to_owned(),
            (None, Mode::Compute) => "This workstation computes for others now".to_owned(),
            (None, Mode::Maintenance) => "Under maintenance".to_owned(),
            (None, Mode::Off) => "Switching off".to_owned(),
        };
        let trouble = self.failures.values().max_by_key(|f| f.last).map(|f| f.reason.clone());
        let page = Page {
            node: self.performer.context.node.clone(),
            mode: plan.mode.to_string(),
            line,
            hint: trouble.unwrap_or_else(|| plan.cause.clone()),
        };
        if page != self.page {
            self.page = page.clone();
            self.performer.screen.set_page(page).await;
        }
    }

    /// The first guest that a person sees, or that works, ends the boot.
    fn tell_visible(&mut self, plan: &Plan, observed: &NodeObserved, now: Duration) {
        if self.visible_told {
            return;
        }
        let detail = match (&observed.screen, plan.mode) {
            (Screen::Guest(name), _) => format!("{name} on the screen"),
            (_, Mode::Compute) => {
                let works = |(_, g): &(&String, &plan::GuestObserved)| {
                    g.role == Role::Batch && g.domain == Domain::Running
                };
                match observed.guests.iter().find(works) {
                    Some((name, _)) => format!("{name} runs"),
                    None => return,
                }
            }
            _ => return,
        };
        self.visible_told = true;
        say("guest-visible", &detail);
        let at_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let event = StageEvent { stage: Stage::GuestVisible, at_ms, failure: None, detail };
        self.outgoing.send_modify(|o| o.stages.push(event));
    }

    /// Tells the server and the node's own status file.
    fn tell(&mut self, desired: Option<&NodeDesired>, observed: &NodeObserved, now: Duration) {
        let status = self.status(desired, observed, now);
        let due = now.saturating_sub(self.told_at) >= HEARTBEAT;
        let changed = self.outgoing.borrow().status.as_ref().is_none_or(|old| status::differ(old, &status));
        if !due && !changed {
            return;
        }
        self.told_at = now;
        if let Err(error) = status::write(Path::new(status::FILE), &status) {
            tracing::debug!(%error, "the status file");
        }
        self.outgoing.send_modify(|o| o.status = Some(status));
    }

    fn status(&self, desired: Option<&NodeDesired>, observed: &NodeObserved, now: Duration) -> NodeStatus {
        let records = self.performer.records.all();
        let failures: BTreeMap<String, String> =
            self.failures.iter().map(|(subject, f)| (subject.clone(), f.reason.clone())).collect();
        let neighbours = status::neighbours(&std::fs::read_to_string("/proc/net/arp").unwrap_or_default());
        let guests = desired.map(|desired| {
            status::Guests {
                desired,
                observed,
                records: &records,
                running: self.running.as_ref().map(|r| &r.step),
                failures: &failures,
                neighbours: &neighbours,
            }
            .statuses()
        });
        NodeStatus {
            revision: desired.map_or(0, |d| d.revision),
            mode: self.timeline.mode(),
            transition: self.timeline.transition(now),
            completed: self.timeline.completed(),
            guests: guests.unwrap_or_default(),
            rcuda: self.performer.rcuda.state().borrow().devices.clone(),
            idle_seconds: observed.idle_seconds,
            trouble: self.failures.values().max_by_key(|f| f.last).map(|f| f.reason.clone()),
        }
    }
}

/// Prints progress in the form that init and the tests know: `labshift: [seconds] STAGE detail`. A service of
/// init leaves the beginning to init.
pub fn say(stage: &str, detail: &str) {
    if Path::new(paths::INIT_SOCKET).exists() {
        println!("{stage} {detail}");
    } else {
        println!("labshift: [{:8.3}] {stage} {detail}", since_boot().as_secs_f64());
    }
}
