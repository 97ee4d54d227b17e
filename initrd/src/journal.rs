//! What happened in this boot: timed stages and a log of bounded size, shown on the consoles and told to the
//! server.
//!
//! Every line looks like `labshift: [  12.345] STAGE detail`; the time is seconds since the kernel started.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use labshift_model::{
    MacAddr,
    boot::{BootReport, Failure, Stage, StageEvent},
};

use crate::{console::Consoles, page::Page, sys};

/// Bytes of log that are kept, and the most that one report carries.
const KEPT: usize = 64 * 1024;
/// Longest line that is kept.
const LONGEST: usize = 1024;

/// Log and stages of this boot.
#[derive(Debug)]
pub struct Journal {
    consoles: Consoles,
    inner: Mutex<Inner>,
    said: Condvar,
}

#[derive(Debug)]
struct Inner {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines of this boot, kept or not.
    all_lines: u64,
    /// As many of them, the oldest, were carried by reports.
    sent_lines: u64,
    stages: Vec<StageEvent>,
    /// Stages that reports have carried.
    sent_stages: usize,
    /// How the last run ended, until a report has carried it.
    crash: Option<String>,
    /// Stages of failed attempts, and the first, which all attempts share.
    earlier_stages: usize,
}

/// The journal of this process.
pub static JOURNAL: Journal = Journal::empty();

impl Journal {
    const fn empty() -> Self {
        let inner = Inner {
            lines: VecDeque::new(),
            bytes: 0,
            all_lines: 0,
            sent_lines: 0,
            stages: Vec::new(),
            sent_stages: 0,
            crash: None,
            earlier_stages: 0,
        };
        Journal { consoles: Consoles::closed(), inner: Mutex::new(inner), said: Condvar::new() }
    }

    /// Opens the consoles below `sysroot`.
    pub fn open_consoles(&self, sysroot: &Path) {
        self.consoles.open(sysroot);
    }

    /// Says one line about `topic` on all consoles and keeps it.
    pub fn say(&self, topic: &str, detail: &str) {
        let line = line(sys::boottime_ms(), topic, detail);
        self.consoles.line(&line);
        self.keep(line);
    }

    /// Keeps a line of a service's output; shows it on serial lines only when `show`.
    pub fn output(&self, service: &str, text: &str, show: bool) {
        let line = line(sys::boottime_ms(), service, text);
        if show {
            self.consoles.serial_line(&line);
        }
        self.keep(line);
    }

    /// Notes that a stage ended well.
    pub fn reached(&self, stage: Stage, detail: &str) {
        self.say(stage_name(stage), detail);
        self.note(stage, None, detail);
    }

    /// Notes that a stage failed; shows the page that an admin reads. It stays on the screen through the next
    /// attempts, until [`Journal::leave_page`].
    pub fn failed(&self, stage: Stage, failure: &Failure, page: Option<&Page>) {
        if let Some(page) = page {
            self.consoles.show(page);
        }
        let line = line(
            sys::boottime_ms(),
            stage_name(stage),
            &format!("failed: {} {}", failure.code, failure.sentence),
        );
        self.consoles.serial_line(&line);
        self.keep(line);
        self.note(stage, Some(failure.clone()), "");
    }

    /// Shows a page that is no failure.
    pub fn show(&self, page: &Page) {
        self.consoles.show(page);
    }

    /// The page that is shown, if any, is shown on a screen that a driver has just brought.
    pub fn show_again(&self) {
        self.consoles.show_again();
    }

    /// The page is taken off the screen; lines go there again.
    pub fn leave_page(&self) {
        self.consoles.leave_page();
    }

    fn keep(&self, line: String) {
        self.lock().keep(line);
        self.said.notify_all();
    }

    /// Returns once there are lines that no report has carried.
    pub fn wait_for_lines(&self) {
        let inner = self.said.wait_while(self.lock(), |inner| inner.unsent() == 0);
        drop(inner);
    }

    fn note(&self, stage: Stage, failure: Option<Failure>, detail: &str) {
        let event = StageEvent { stage, at_ms: sys::boottime_ms(), failure, detail: detail.to_owned() };
        self.lock().stages.push(event);
    }

    /// A new attempt begins.
    pub fn begin_attempt(&self) {
        let mut inner = self.lock();
        inner.earlier_stages = inner.stages.len();
    }

    /// The stages of the attempt under way, and those before the first attempt.
    pub fn stages(&self) -> Vec<StageEvent> {
        let inner = self.lock();
        let before = inner.stages.iter().take_while(|s| s.stage == Stage::Init && s.failure.is_none());
        before.chain(&inner.stages[inner.earlier_stages..]).cloned().collect()
    }

    /// The last `count` lines, newest last.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let inner = self.lock();
        inner.lines.iter().skip(inner.lines.len().saturating_sub(count)).cloned().collect()
    }

    /// What no report has carried yet. [`Journal::delivered`] marks it as carried.
    pub fn report(&self, mac: MacAddr, attempt: Option<u64>) -> (BootReport, Mark) {
        let inner = self.lock();
        let mark = Mark { stages: inner.stages.len(), lines: inner.all_lines };
        let carried = inner.lines.len() - inner.unsent();
        let log: String = inner.lines.iter().skip(carried).flat_map(|l| [l.as_str(), "\n"]).collect();
        let stages = inner.stages[inner.sent_stages..].to_vec();
        (BootReport { mac, attempt, stages, crash: inner.crash.clone(), log, hardware: None }, mark)
    }

    /// The server has taken a report.
    pub fn delivered(&self, mark: Mark) {
        let mut inner = self.lock();
        inner.crash = None;
        inner.sent_stages = inner.sent_stages.max(mark.stages);
        inner.sent_lines = inner.sent_lines.max(mark.lines);
    }

    /// The next report tells how the last run ended. What is known already, the kernel's own words, says more than what comes later.
    pub fn crashed(&self, reason: String) {
        self.lock().crash.get_or_insert(reason);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a report carried the journal.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    stages: usize,
    lines: u64,
}

impl Inner {
    fn keep(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        self.all_lines += 1;
        while self.bytes > KEPT {
            let Some(old) = self.lines.pop_front() else { break };
            self.bytes -= old.len() + 1;
        }
    }

    /// How many of the lines that are kept no report has carried.
    fn unsent(&self) -> usize {
        usize::try_from(self.all_lines - self.sent_lines)
            .map_or(self.lines.len(), |n| n.min(self.lines.len()))
    }
}

/// The name of a stage as it is on the wire.
pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Wake => "wake",
        Stage::Firmware => "firmware",
        Stage::Loader => "loader",
        Stage::Init => "init",
        Stage::Modules => "modules",
        Stage::Link => "link",
        Stage::Address => "address",
        Stage::Manifest => "manifest",
        Stage::RootFetched => "root-fetched",
        Stage::RootMounted => "root-mounted",
        Stage::Services => "services",
        Stage::Ready => "ready",
        Stage::GuestVisible => "guest-visible",
    }
}

/// One line; control characters (a service may print anything) become blanks.
fn line(at_ms: u64, topic: &str, detail: &str) -> String {
    let detail: String =
        detail.trim_end().chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("labshift: [{:4}.{:03}] {topic} {detail}", at_ms / 1000, at_ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_one_form() {
        assert_eq!(line(12_345, "root-mounted", "erofs"), "labshift: [  12.345] root-mounted erofs");
        assert_eq!(line(1, "x", "a\x1b[2J\nb\n"), "labshift: [   0.001] x a [2J b");
    }

    #[test]
    fn reports_carry_each_thing_once_and_stay_small() {
        let journal = Journal::empty();
        let mac = MacAddr([2; 6]);
        journal.reached(Stage::Init, "kernel 6.12");
        let (first, mark) = journal.report(mac, None);
        assert_eq!((first.stages.len(), first.log.lines().count()), (1, 1));
        let (again, _) = journal.report(mac, None);
        assert_eq!(again.stages.len(), 1, "not delivered yet");
        journal.say("link", "e1000e");
        journal.delivered(mark);
        let (second, _) = journal.report(mac, Some(3));
        assert_eq!((second.stages.len(), second.log.lines().count()), (0, 1));

        journal.begin_attempt();
        journal.reached(Stage::Modules, "");
        journal.begin_attempt();
        journal.reached(Stage::Modules, "again");
        let stages: Vec<_> = journal.stages().into_iter().map(|s| (s.stage, s.detail)).collect();
        assert_eq!(stages, [(Stage::Init, "kernel 6.12".to_owned()), (Stage::Modules, "again".to_owned())]);

        for i in 0..5_000 {
            journal.say("noise", &format!("{i} {}", "x".repeat(2_000)));
        }
        let (full, mark) = journal.report(mac, None);
        assert!(full.log.len() <= KEPT, "{}", full.log.len());
        assert!(full.log.lines().last().is_some_and(|l| l.contains("4999")));
        assert_eq!(journal.tail(2).len(), 2);
        // Two reports of the same, and a flood while they travel: what is new is not taken for carried.
        (0..200).for_each(|i| journal.say("flood", &format!("{i} {}", "y".repeat(2_000))));
        journal.delivered(mark);
        journal.delivered(mark);
        let (rest, mark) = journal.report(mac, None);
        assert!(rest.log.contains("] flood 199 ") && !rest.log.contains("noise"), "{}", rest.log.len());
        journal.delivered(mark);
        assert_eq!(journal.report(mac, None).0.log, "");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| journal.wait_for_lines());
            journal.say("late", "word");
            waiting.join().expect("woken");
        });
    }
}
