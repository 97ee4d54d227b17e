//! The decisions. [`plan`] reads from top to bottom like the plan it writes: network, images, what has to
//! leave, what has to come, the screen, tidying up.

use std::collections::BTreeSet;

use jiff::Timestamp;
use labshift_model::{
    guest::{GuestSpec, Role},
    node::{Mode, NodeDesired},
};

use super::{
    Domain, GuestObserved, IN_USE_SECONDS, MOST_RESETS, NodeObserved, Plan, Rcuda, SHUTDOWN_GRACE_SECONDS,
    SILENT_SECONDS, Screen, Step,
};

/// The mode that counts now, its reason, and the seconds until that may change without any event.
pub fn mode_wanted(
    desired: &NodeDesired,
    observed: &NodeObserved,
    now: Timestamp,
) -> (Mode, String, Option<u64>) {
    if observed.reboot {
        return (Mode::Off, "an admin asked for a reboot".into(), None);
    }
    if observed.server_reachable {
        return (desired.current.mode, desired.current.cause.clone(), None);
    }
    let due = desired.upcoming.iter().filter(|m| m.from <= now && m.from >= desired.current.from);
    let current = due.max_by_key(|m| m.from).unwrap_or(&desired.current);
    let next = desired.upcoming.iter().map(|m| m.from).filter(|from| *from > now).min();
    let until_next = next.map(|from| seconds_between(now, from));

    let desktop_runs =
        observed.guests.values().any(|g| g.role == Role::Desktop && g.domain == Domain::Running);
    match observed.idle_seconds {
        Some(idle) if current.mode != Mode::Desktop && desktop_runs && idle < IN_USE_SECONDS => {
            let guard_ends = Some(IN_USE_SECONDS - idle);
            (Mode::Desktop, "somebody uses the desktop".into(), earlier(until_next, guard_ends))
        }
        _ => (current.mode, current.cause.clone(), until_next),
    }
}

/// Seconds to wait after a step failed for the `times`-th time in a row.
pub fn retry_after(times: u32) -> u64 {
    (5u64 << times.clamp(1, 6).saturating_sub(1)).min(120)
}

/// The saved state that a guest comes back from: the newer of the server's and the node's own.
pub fn restores_from(spec: &GuestSpec, observed: Option<&GuestObserved>) -> Option<u64> {
    let servers = spec.restore.as_ref().map(|s| s.revision);
    let own = observed.and_then(|g| g.saved).map(|s| s.revision);
    servers.max(own)
}

/// Plans; see the module's parent.
pub(super) fn plan(desired: &NodeDesired, observed: &NodeObserved, now: Timestamp) -> Plan {
    let (mode, cause, look_again) = mode_wanted(desired, observed, now);
    let mut writer = Writer { observed, steps: vec![], held_up: false, look_again };
    let wanted: Vec<&GuestSpec> = match mode {
        Mode::Desktop => desired.desktop.iter().collect(),
        Mode::Compute => desired.batch.iter().collect(),
        Mode::Maintenance | Mode::Off => vec![],
    };
    let is_wanted = |name: &str| wanted.iter().any(|spec| spec.name == name);
    let unwanted: Vec<(&String, &GuestObserved)> =
        observed.guests.iter().filter(|(name, _)| !is_wanted(name)).collect();

    if mode != Mode::Off && !observed.bridge {
        writer.push(Step::EnsureBridge);
    }
    // Before anything is taken away: the old mode goes on while the bytes of the new one come in.
    for spec in &wanted {
        if must_start(spec, observed.guests.get(&spec.name)) {
            writer.fetch(spec);
        }
    }
    for (name, guest) in unwanted.iter().filter(|(_, g)| g.role == Role::Batch) {
        writer.save(name, guest, desired);
    }
    if observed.rcuda != Rcuda::Stopped && !(mode == Mode::Compute && desired.rcuda) {
        writer.push(Step::StopRcuda);
    }
    let ending: Vec<&String> = unwanted
        .iter()
        .filter(|(_, g)| g.role == Role::Desktop && matches!(g.domain, Domain::Running | Domain::Paused))
        .map(|(name, _)| *name)
        .collect();
    writer.end_desktops(&ending, u64::from(desired.grace_seconds));
    if mode != Mode::Desktop && observed.screen != Screen::Status {
        writer.push(Step::HideGuest);
    }
    for (name, _) in unwanted.iter().filter(|(_, g)| g.role == Role::Desktop) {
        if !ending.contains(name) || writer.shuts_down(name) {
            writer.push(Step::ForgetGuest { guest: (*name).clone() });
        }
    }
    for spec in &wanted {
        writer.start(spec);
    }
    if mode == Mode::Compute && desired.rcuda && observed.rcuda != Rcuda::Serving {
        writer.push(Step::StartRcuda);
    }
    if mode == Mode::Off {
        writer.leave();
    }
    let (held_up, length) = (writer.held_up, writer.steps.len());
    if mode != Mode::Off {
        writer.tidy_up(desired, &unwanted);
    }
    let Writer { mut steps, look_again, .. } = writer;
    let afterwards = steps.split_off(length);
    Plan { mode, cause, steps, afterwards, held_up, look_again }
}

/// The guest does not run, and should.
fn must_start(spec: &GuestSpec, observed: Option<&GuestObserved>) -> bool {
    let Some(guest) = observed else { return true };
    match guest.domain {
        Domain::None => true,
        Domain::Running | Domain::Paused => false,
        // Work that ended by itself is done; a desktop that was shut down starts afresh for the next person.
        Domain::Ended { orderly } => guest.saved.is_some() || !orderly || spec.role == Role::Desktop,
    }
}

/// The guest runs, but hangs before its PID 1.
fn hangs(guest: &GuestObserved) -> bool {
    let patience = SILENT_SECONDS << guest.resets.min(MOST_RESETS);
    guest.resets < MOST_RESETS && guest.silent_seconds.is_some_and(|silent| silent >= patience)
}

fn seconds_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_second() - from.as_second()).unwrap_or(0).max(1)
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// The plan as it is being written. Steps whose subject failed lately are left out, and the plan says so.
struct Writer<'a> {
    observed: &'a NodeObserved,
    steps: Vec<Step>,
    held_up: bool,
    look_again: Option<u64>,
}

impl Writer<'_> {
    /// The subject failed and its back-off is not over.
    fn backs_off(&mut self, subject: &str) -> bool {
        let Some(trouble) = self.observed.troubles.get(subject) else { return false };
        let wait = retry_after(trouble.times).saturating_sub(trouble.seconds_ago);
        if wait > 0 {
            self.look_again = earlier(self.look_again, Some(wait));
        }
        wait > 0
    }

    /// Adds a step of the mode change, unless it has to wait. Tells whether it was added.
    fn push(&mut self, step: Step) -> bool {
        if self.backs_off(step.subject()) {
            self.held_up = true;
            return false;
        }
        self.steps.push(step);
        true
    }

    /// The image is on the node, or will be when the plan gets there.
    fn has_image(&self, generation: &str) -> bool {
        self.observed.images.contains(generation)
            || self
                .steps
                .iter()
                .any(|s| matches!(s, Step::FetchImage { generation: g, .. } if g == generation))
    }

    fn fetch(&mut self, spec: &GuestSpec) {
        if !self.has_image(&spec.generation) {
            self.push(Step::FetchImage { image: spec.image.clone(), generation: spec.generation.clone() });
        }
    }

    fn save(&mut self, name: &str, guest: &GuestObserved, desired: &NodeDesired) {
        let mut unstored = guest.saved.filter(|s| !s.stored).map(|s| s.revision);
        if matches!(guest.domain, Domain::Running | Domain::Paused) {
            let servers = desired.batch.iter().find(|s| s.name == name).and_then(|s| s.restore.as_ref());
            let newest = guest
                .revision
                .max(guest.saved.map_or(0, |s| s.revision))
                .max(servers.map_or(0, |s| s.revision));
            let revision = newest + 1;
            if !self.push(Step::SaveGuest { guest: name.to_owned(), revision }) {
                return;
            }
            unstored = Some(revision);
        }
        // The next mode does not wait for a store that can't be reached or refuses: the copy stays here.
        if let Some(revision) = unstored
            && self.observed.server_reachable
            && !self.backs_off(name)
        {
            self.steps.push(Step::UploadSaved { guest: name.to_owned(), revision });
        }
    }

    /// One warning and one grace, whatever runs; then everything shuts down.
    fn end_desktops(&mut self, ending: &[&String], grace: u64) {
        let mut warned = self.observed.warned_seconds_ago;
        if let Some(first) = ending.first().filter(|_| grace > 0) {
            let guest = (*first).clone();
            if warned.is_none() {
                self.steps.push(Step::WarnPerson { guest: guest.clone(), seconds: grace });
            }
            let seconds = grace.saturating_sub(warned.unwrap_or(0));
            if seconds > 0 {
                self.steps.push(Step::AwaitGrace { guest, seconds });
            }
            warned = warned.or(Some(0));
        }
        let mut left = false;
        for name in ending {
            let guest = (*name).clone();
            left |= !self.push(Step::ShutDownGuest { guest, grace: SHUTDOWN_GRACE_SECONDS });
        }
        if warned.is_some() && !left {
            self.push(Step::WithdrawWarning);
        }
    }

    fn shuts_down(&self, name: &str) -> bool {
        self.steps.iter().any(|s| matches!(s, Step::ShutDownGuest { guest, .. } if guest == name))
    }

    fn start(&mut self, spec: &GuestSpec) {
        let guest = spec.name.clone();
        let observed = self.observed.guests.get(&spec.name);
        let runs = match observed.map(|g| g.domain) {
            Some(Domain::Paused) => self.push(Step::ResumeGuest { guest: guest.clone() }),
            Some(Domain::Running) if observed.is_some_and(hangs) => {
                self.push(Step::ResetGuest { guest: guest.clone() })
            }
            Some(Domain::Running) => true,
            _ if !must_start(spec, observed) => false,
            _ if !self.has_image(&spec.generation) => {
                self.held_up = true;
                false
            }
            _ => self.push(match restores_from(spec, observed) {
                Some(revision) => Step::RestoreGuest { guest: guest.clone(), revision },
                None => Step::StartGuest { guest: guest.clone() },
            }),
        };
        let was_up = observed.is_some_and(|g| g.domain == Domain::Running && !hangs(g));
        let seen = was_up && self.observed.screen == Screen::Guest(guest.clone());
        if spec.role == Role::Desktop && runs && !seen {
            self.push(Step::ShowGuest { guest });
        }
    }

    /// Off, or round again: only when nothing is left that exists nowhere else.
    fn leave(&mut self) {
        let uploads = |name: &str| {
            self.steps.iter().any(|s| matches!(s, Step::UploadSaved { guest, .. } if guest == name))
        };
        let kept_here = self.observed.guests.iter().any(|(name, g)| {
            let needs_store = g.role == Role::Batch
                && (matches!(g.domain, Domain::Running | Domain::Paused)
                    || g.saved.is_some_and(|s| !s.stored));
            needs_store && !uploads(name)
        });
        if kept_here || self.held_up {
            self.held_up = true;
        } else {
            // A kernel that can't be loaded is not tried again: the way through the firmware always works.
            let kexec = self.observed.kexec && !self.observed.troubles.contains_key(Step::Kexec.subject());
            self.push(match (self.observed.reboot, kexec) {
                (true, true) => Step::Kexec,
                (true, false) => Step::Reboot,
                (false, _) => Step::PowerOff,
            });
        }
    }

    /// What nobody needs any more goes; images of what comes next are fetched ahead.
    fn tidy_up(&mut self, desired: &NodeDesired, unwanted: &[(&String, &GuestObserved)]) {
        let specs = || desired.desktop.iter().chain(&desired.batch);
        for (name, guest) in unwanted.iter().filter(|(_, g)| g.role == Role::Batch) {
            let over = matches!(guest.domain, Domain::None | Domain::Ended { .. });
            if over && guest.saved.is_none() && !specs().any(|s| s.name == **name) {
                self.push(Step::ForgetGuest { guest: (*name).clone() });
            }
        }
        let mut needed: BTreeSet<&str> = specs().map(|s| s.generation.as_str()).collect();
        needed.extend(
            self.observed
                .guests
                .values()
                .filter(|g| matches!(g.domain, Domain::Running | Domain::Paused))
                .map(|g| g.generation.as_str()),
        );
        for generation in self.observed.images.iter().filter(|g| !needed.contains(g.as_str())) {
            self.push(Step::DropImage { generation: generation.clone() });
        }
        if self.observed.server_reachable {
            for spec in specs() {
                self.fetch(spec);
            }
        }
    }
}
