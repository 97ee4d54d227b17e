//! One boot of a node, put together from what the boot plane saw, what init reported, and what the runtime said.
//!
//! Firmware has no clock that we know, init counts from the kernel's start, the server has its own time. Everything is
//! laid on one line that begins with the boot's first sign: the first report tells when the kernel started.

use jiff::Timestamp;
use labshift_model::{
    api::{Boot, BootStage, Exchange},
    boot::{BootPlaneEvent, Speaker, Stage, StageEvent},
};
use serde::{Deserialize, Serialize};

/// Exchanges that one boot keeps: a node that fetches without end must not fill the registry.
const MOST_EXCHANGES: usize = 200;

/// A boot being put together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootLog {
    /// Number of the record.
    pub id: u64,
    /// What is known.
    pub boot: Boot,
    /// When the kernel started, by the machine's own clock.
    pub kernel_real: Option<Timestamp>,
}

impl BootLog {
    /// A boot whose first sign was seen now.
    pub fn new(id: u64, real: Timestamp) -> Self {
        let boot = Boot {
            attempt: 0,
            begun_real: real,
            image: String::new(),
            generation: String::new(),
            stages: vec![],
            failure: None,
            exchanges: vec![],
        };
        BootLog { id, boot, kernel_real: None }
    }

    /// The firmware's first word would begin another boot than this one.
    pub fn is_past_firmware(&self) -> bool {
        self.boot.attempt != 0 || self.boot.stages.iter().any(|s| s.stage >= Stage::Init)
    }

    /// The runtime has checked in.
    pub fn is_ready(&self) -> bool {
        self.has(Stage::Ready)
    }

    fn has(&self, stage: Stage) -> bool {
        self.boot.stages.iter().any(|s| s.stage == stage)
    }

    /// A stage that the server itself saw end now. Returns it if it is new; a loader's stage ends with its last file.
    pub fn saw(&mut self, stage: Stage, real: Timestamp, detail: String) -> Option<BootStage> {
        let ms = milliseconds(self.boot.begun_real, real);
        let seen = BootStage { stage, ms, detail, failure: None };
        if let Some(before) = self.boot.stages.iter_mut().find(|s| s.stage == stage) {
            if stage == Stage::Loader {
                *before = seen;
            }
            return None;
        }
        self.push(seen.clone());
        Some(seen)
    }

    /// Notes what passed between the node and the boot server. True when it belongs to the boot, and is worth a write.
    pub fn heard(&mut self, event: &BootPlaneEvent, real: Timestamp) -> bool {
        let Some((text, fault)) = exchange(event).filter(|_| self.boot.exchanges.len() < MOST_EXCHANGES)
        else {
            return false;
        };
        let ms = milliseconds(self.boot.begun_real, real);
        self.boot.exchanges.push(Exchange { ms, text, fault });
        true
    }

    /// Stages that the node reported; returns those that are new.
    pub fn told(&mut self, events: &[StageEvent], real: Timestamp) -> Vec<BootStage> {
        let Some(last) = events.iter().map(|e| e.at_ms).max() else { return vec![] };
        let since_kernel = jiff::SignedDuration::from_millis(i64::try_from(last).unwrap_or(0));
        let kernel = *self.kernel_real.get_or_insert_with(|| real.checked_sub(since_kernel).unwrap_or(real));
        let start = milliseconds(self.boot.begun_real, kernel);
        let mut new = vec![];
        for event in events {
            if self.has(event.stage) && event.failure.is_none() {
                continue;
            }
            let stage = BootStage {
                stage: event.stage,
                ms: start.saturating_add(event.at_ms),
                detail: event.detail.chars().take(200).collect(),
                failure: event.failure.clone(),
            };
            if event.failure.is_some() {
                self.boot.failure = event.failure.clone();
                self.boot.stages.retain(|s| s.stage != event.stage);
            }
            self.push(stage.clone());
            new.push(stage);
        }
        new
    }

    fn push(&mut self, stage: BootStage) {
        self.boot.stages.push(stage);
        self.boot.stages.sort_by_key(|s| (s.ms, s.stage));
    }
}

/// An event in a few words, and whether it is a fault.
fn exchange(event: &BootPlaneEvent) -> Option<(String, bool)> {
    let who = |speaker: Speaker| match speaker {
        Speaker::BiosRom => "BIOS",
        Speaker::Uefi => "UEFI",
        Speaker::Ipxe => "iPXE",
        Speaker::Init => "init",
        Speaker::Other => "the system",
    };
    match event {
        BootPlaneEvent::Offer { address, speaker, .. } if address.is_unspecified() => {
            Some((format!("{} is told its boot file", who(*speaker)), false))
        }
        BootPlaneEvent::Offer { address, speaker, .. } => {
            Some((format!("{} is offered {address}", who(*speaker)), false))
        }
        BootPlaneEvent::Lease { address, speaker, .. } => {
            Some((format!("{} has {address}", who(*speaker)), false))
        }
        BootPlaneEvent::Sent { protocol, path, bytes, milliseconds, .. } => {
            let rate = *bytes as f64 / (*milliseconds).max(1) as f64 / 1e3;
            Some((format!("{protocol} {path}, {bytes} bytes in {milliseconds} ms, {rate:.1} MB/s"), false))
        }
        BootPlaneEvent::Broken { protocol, path, reason, .. } => {
            Some((format!("{protocol} {path}: {reason}"), true))
        }
        BootPlaneEvent::RogueServer { .. } | BootPlaneEvent::Report { .. } => None,
    }
}

fn milliseconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn told(stage: Stage, at_ms: u64) -> StageEvent {
        StageEvent { stage, at_ms, failure: None, detail: String::new() }
    }

    #[test]
    fn exchanges_tell_bytes_and_rate_and_the_first_trouble_is_named() {
        let begun: Timestamp = "2026-11-23T07:00:00Z".parse().expect("a time");
        let mut log = BootLog::new(1, begun);
        let (mac, peer) = ("52:54:00:00:00:01".parse().expect("a card"), [10, 0, 0, 5].into());
        let (address, speaker) = ([10, 0, 0, 5].into(), Speaker::Uefi);
        assert!(log.heard(&BootPlaneEvent::Lease { mac, address, speaker }, begun + 1.seconds()));
        let (protocol, path) = ("tftp".to_owned(), "images/lab/ab/uki.efi".to_owned());
        let sent = BootPlaneEvent::Sent { peer, protocol, path, bytes: 60_000_000, milliseconds: 1500 };
        assert!(log.heard(&sent, begun + 3.seconds()));
        assert_eq!(log.boot.first_trouble(), None);
        for reason in ["the client went away", "the client went away again"] {
            let (protocol, path) = ("http".to_owned(), "/images/lab/ab/root.erofs".to_owned());
            let reason = reason.to_owned();
            assert!(log.heard(&BootPlaneEvent::Broken { peer, protocol, path, reason }, begun + 9.seconds()));
        }
        let texts: Vec<&str> = log.boot.exchanges.iter().map(|e| e.text.as_str()).collect();
        assert_eq!(
            texts[..2],
            ["UEFI has 10.0.0.5", "tftp images/lab/ab/uki.efi, 60000000 bytes in 1500 ms, 40.0 MB/s"]
        );
        let trouble = Some((9000, "http /images/lab/ab/root.erofs: the client went away"));
        assert_eq!(log.boot.first_trouble(), trouble);
        for _ in 0..1000 {
            log.heard(&sent, begun);
        }
        assert_eq!(log.boot.exchanges.len(), MOST_EXCHANGES);
    }

    #[test]
    fn three_clocks_make_one_line() {
        let begun: Timestamp = "2026-11-23T07:00:00Z".parse().expect("a time");
        let mut log = BootLog::new(1, begun);
        log.saw(Stage::Wake, begun, String::new());
        log.saw(Stage::Firmware, begun + 4.seconds(), String::new());
        log.saw(Stage::Loader, begun + 5.seconds(), "script".into());
        log.saw(Stage::Loader, begun + 7.seconds(), "kernel".into());
        // The kernel started at 8 s; init reports at 11 s what happened 1 and 3 s after that.
        let events = [told(Stage::Init, 1000), told(Stage::Link, 3000)];
        assert_eq!(log.told(&events, begun + 11.seconds()).len(), 2);
        assert_eq!(
            log.told(&[told(Stage::Link, 3000), told(Stage::Ready, 9000)], begun + 30.seconds()).len(),
            1
        );
        let line: Vec<_> = log.boot.stages.iter().map(|s| (s.stage, s.ms)).collect();
        assert_eq!(
            line,
            [
                (Stage::Wake, 0),
                (Stage::Firmware, 4000),
                (Stage::Loader, 7000),
                (Stage::Init, 9000),
                (Stage::Link, 11000),
                (Stage::Ready, 17000)
            ]
        );
        assert!(log.is_ready() && log.is_past_firmware());
    }
}
