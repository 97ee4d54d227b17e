//! Which boot of a node a sign belongs to.

use jiff::Timestamp;
use labshift_model::{
    api::{BootStage, EventKind, LogPart, WakeView},
    boot::{BootPlaneEvent, Speaker, Stage, StageEvent},
    manifest::short,
};
use labshift_plan::{
    fallback::{self, End},
    fleet::NodeEvent,
};

use super::Engine;
use crate::{boots::BootLog, registry::records::Write};

impl Engine {
    /// Something that the boot plane saw.
    pub(super) fn saw(&mut self, mut event: BootPlaneEvent) {
        let (node, real) = (self.node_of(&event), self.moment().real);
        if let (Some(node), BootPlaneEvent::Report { report, .. }) = (&node, &mut event) {
            let log = std::mem::take(&mut report.log);
            self.log_told(node, report.attempt, &log, real);
        }
        let heard = event.clone();
        self.weigh(event);
        // After the event has begun a boot, if it did; what a running node fetches belongs to none.
        if let Some(node) = node
            && let Some(log) = self.boots.get_mut(&node).filter(|log| !log.is_ready())
            && log.heard(&heard, real)
        {
            let log = log.clone();
            self.writes.push(Write::Boot { node, log });
        }
    }

    fn weigh(&mut self, event: BootPlaneEvent) {
        let real = self.moment().real;
        let json = super::json(&event);
        let node = self.node_of(&event);
        // A node that runs fetches and renews many things; only its boots are worth a record.
        let runs = node.as_ref().and_then(|n| self.world.nodes.get(n)).is_some_and(|n| n.connected);
        if !runs {
            self.writes.push(Write::Plane { at_real: real, node: node.clone(), json });
        }
        match event {
            BootPlaneEvent::RogueServer { address } => {
                if self.rogues.insert(address, real).is_none() {
                    let text = format!("another DHCP server answers on this network: {address}");
                    let cause = "two DHCP servers give machines conflicting answers; switch one of them off";
                    self.note(EventKind::Trouble, &address.to_string(), "", text, cause);
                }
            }
            BootPlaneEvent::Offer { mac, address, speaker }
            | BootPlaneEvent::Lease { mac, address, speaker } => {
                self.addresses.insert(address, mac);
                let firmware = matches!(speaker, Speaker::BiosRom | Speaker::Uefi | Speaker::Ipxe);
                let Some(node) = node.filter(|_| firmware) else { return };
                if !self.is_ours(&node, real) {
                    return;
                }
                let past = self.boots.get(&node).is_none_or(|log| log.is_past_firmware() || log.is_ready());
                if past {
                    self.new_boot(&node, real);
                }
                let detail = match speaker {
                    Speaker::BiosRom => "BIOS PXE",
                    Speaker::Uefi => "UEFI",
                    _ => "iPXE",
                };
                self.stage_seen(&node, Stage::Firmware, real, detail.to_owned());
                self.hear(&node, NodeEvent::Firmware);
            }
            BootPlaneEvent::Sent { path, bytes, .. } => {
                let Some(node) = node else { return };
                if self.boots.get(&node).is_some_and(|log| !log.is_past_firmware()) {
                    self.stage_seen(&node, Stage::Loader, real, format!("{path}, {bytes} bytes"));
                }
                self.hear(&node, NodeEvent::Progress);
            }
            BootPlaneEvent::Broken { .. } => {}
            BootPlaneEvent::Report { peer, mut report } => match (node, report.hardware.take()) {
                (Some(node), _) => {
                    if let Some(crash) = &report.crash {
                        let crash: String = crash.chars().filter(|c| !c.is_control()).take(300).collect();
                        let text = format!("{node}: its last run ended: {crash}");
                        let cause = "its kernel left this in memory that outlives a restart";
                        self.note(EventKind::Trouble, &node, "crashed", text, cause);
                        self.explained(&node, &crash);
                    }
                    self.stages_told(&node, report.attempt, &report.stages);
                }
                (None, Some(hardware)) => self.stranger_told(peer, &report, *hardware),
                (None, None) => {}
            },
        }
    }

    fn node_of(&self, event: &BootPlaneEvent) -> Option<String> {
        let by_mac = |mac| self.site.machine_by_mac(mac).map(|m| m.name.clone());
        match event {
            BootPlaneEvent::Offer { mac, .. } | BootPlaneEvent::Lease { mac, .. } => by_mac(*mac),
            BootPlaneEvent::Report { report, .. } => by_mac(report.mac),
            BootPlaneEvent::Sent { peer, .. } | BootPlaneEvent::Broken { peer, .. } => {
                let std::net::IpAddr::V4(address) = peer else { return None };
                let leased = self.addresses.get(address).and_then(|mac| by_mac(*mac));
                leased.or_else(|| {
                    self.site.machines.iter().find(|m| m.address == *address).map(|m| m.name.clone())
                })
            }
            BootPlaneEvent::RogueServer { .. } => None,
        }
    }

    /// The boot that a magic packet begins.
    pub(super) fn begin_boot(&mut self, node: &str, real: Timestamp, wake: &WakeView) {
        self.new_boot(node, real);
        self.stage_seen(node, Stage::Wake, real, wake.means.to_string());
    }

    fn new_boot(&mut self, node: &str, real: Timestamp) {
        // One that was told what to boot and was never heard of again: a kernel that hangs, or a hand at the plug.
        let silent = self.boots.get(node).filter(|log| log.boot.attempt != 0 && !log.is_ready());
        if let Some(log) = silent.filter(|log| log.boot.failure.is_none()) {
            let generation = log.boot.generation.clone();
            self.ended(node, &generation, End::Silent);
        }
        self.boot += 1;
        self.boots.insert(node.to_owned(), BootLog::new(self.boot, real));
    }

    fn stage_seen(&mut self, node: &str, stage: Stage, real: Timestamp, detail: String) {
        let Some(log) = self.boots.get_mut(node) else { return };
        let new = log.saw(stage, real, detail);
        self.writes.push(Write::Boot { node: node.to_owned(), log: log.clone() });
        if let Some(stage) = new {
            self.note_stage(node, &stage);
        }
    }

    /// A node's init was answered: from here on the boot has a number.
    pub(super) fn answered(&mut self, node: &str, attempt: u64, image: String, generation: String) {
        let real = self.moment().real;
        if self.boots.get(node).is_none_or(BootLog::is_ready) {
            self.new_boot(node, real);
        }
        if let Some(log) = self.boots.get_mut(node) {
            log.boot.attempt = attempt;
            log.boot.image = image;
            log.boot.generation = generation;
            log.boot.failure = None;
            self.writes.push(Write::Boot { node: node.to_owned(), log: log.clone() });
        }
        self.told_answered(node);
        self.hear(node, NodeEvent::Init);
    }

    /// Lines that a node reported. Like its stages, those of a boot that is over come too late.
    fn log_told(&mut self, node: &str, attempt: Option<u64>, lines: &str, real: Timestamp) {
        let boot = self.boots.get(node).map(|log| &log.boot);
        let is_over = boot.is_some_and(|boot| attempt.is_some_and(|a| a < boot.attempt));
        if lines.is_empty() || is_over {
            return;
        }
        // Terminals will show it, and anybody could have sent it.
        let plain = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        let part = LogPart {
            begun_real: boot.map_or(real, |boot| boot.begun_real),
            at_real: real,
            text: lines.chars().map(plain).collect(),
        };
        self.writes.push(Write::Log { node: node.to_owned(), part });
    }

    /// Stages that a node reported. Reports of a boot that is over change nothing.
    pub(super) fn stages_told(&mut self, node: &str, attempt: Option<u64>, stages: &[StageEvent]) {
        let real = self.moment().real;
        let Some(log) = self.boots.get_mut(node) else { return };
        if attempt.is_some_and(|a| a < log.boot.attempt) {
            return;
        }
        let new = log.told(stages, real);
        if new.is_empty() {
            return;
        }
        let (image, generation) = (log.boot.image.clone(), log.boot.generation.clone());
        self.writes.push(Write::Boot { node: node.to_owned(), log: log.clone() });
        for stage in new {
            self.note_stage(node, &stage);
            match &stage.failure {
                Some(failure) if fallback::is_of_image(&failure.code) => {
                    let why = format!("{} {}", failure.code, failure.sentence);
                    self.ended(node, &generation, End::Failed(&why));
                }
                None if stage.stage == Stage::Ready => self.was_ready(node, &image, &generation),
                _ => {}
            }
            self.told_reached(node, stage.stage);
            self.hear(node, NodeEvent::Stage { stage: stage.stage, failure: stage.failure });
        }
    }

    /// A boot of a generation ended before it was ready: after some of them the node gets back the last one that was.
    fn ended(&mut self, node: &str, generation: &str, end: End<'_>) {
        let news = self.trials.entry(node.to_owned()).or_default().ended(generation, end);
        self.goes_back(node, news);
    }

    /// The kernel's last words on how a run of the node ended: it was no hand at the plug.
    fn explained(&mut self, node: &str, why: &str) {
        let Some(trials) = self.trials.get_mut(node) else { return };
        let news = trials.explained(why);
        self.goes_back(node, news);
    }

    fn goes_back(&mut self, node: &str, why: Option<String>) {
        self.write_trials(node);
        let Some(why) = why else { return };
        let trials = self.trials.get(node);
        let of = |generation: Option<&String>| generation.map_or("", |g| short(g)).to_owned();
        let bad = of(trials.and_then(|t| t.bad.as_ref()).map(|bad| &bad.generation));
        let good = of(trials.and_then(|t| t.good.as_ref()).map(|(_, good)| good));
        let cause = format!("generation {bad}: {why}");
        self.note(EventKind::Trouble, node, "", format!("{node} goes back to generation {good}"), &cause);
    }

    fn was_ready(&mut self, node: &str, image: &str, generation: &str) {
        if self.trials.entry(node.to_owned()).or_default().ready(image, generation) {
            self.write_trials(node);
        }
    }

    fn write_trials(&mut self, node: &str) {
        let json = self.trials.get(node).map(super::json);
        self.writes.push(Write::Record { kind: "trials", name: node.to_owned(), json });
    }

    fn note_stage(&mut self, node: &str, stage: &BootStage) {
        let name = serde_json::to_value(stage.stage).ok();
        let name = name.as_ref().and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let text = match &stage.failure {
            None => format!("{node}: {name} after {}.{:03} s", stage.ms / 1000, stage.ms % 1000),
            Some(f) => format!("{node}: {name} failed: {} {} {}", f.code, f.sentence, f.hint),
        };
        self.note(EventKind::Stage, node, &name, text, &stage.detail);
    }
}
