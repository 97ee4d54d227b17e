//! What happened in a lab, in order: one JSON object per line in `events.jsonl`, and told to whoever listens.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Something that happened to a workstation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// Counts from 1.
    pub id: usize,
    /// When.
    pub at: Timestamp,
    /// Workstation.
    pub machine: String,
    /// `powered-on`, `powered-off`, `magic-packet-ignored`, `serial`, `reset`, `cable-cut`, ...
    pub event: String,
    /// More about it.
    pub detail: String,
}

/// The events of a lab.
pub struct Journal {
    state: Mutex<(File, Vec<Happening>)>,
    grown: Condvar,
}

impl Journal {
    /// Starts a journal in `directory`.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let file = File::create(directory.join("events.jsonl"))?;
        Ok(Journal { state: Mutex::new((file, vec![])), grown: Condvar::new() })
    }

    /// Notes one event.
    #[allow(clippy::disallowed_methods, reason = "the lab is the edge: its events happen now")]
    pub fn note(&self, machine: &str, event: &str, detail: &str) {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, events) = &mut *guard;
        let happening = Happening {
            id: events.len() + 1,
            at: Timestamp::now(),
            machine: machine.to_owned(),
            event: event.to_owned(),
            detail: detail.to_owned(),
        };
        if let Ok(line) = serde_json::to_string(&happening) {
            drop(writeln!(file, "{line}"));
        }
        events.push(happening);
        self.grown.notify_all();
    }

    /// Waits for the first event after number `since` that fits; `None` when the guard ran out.
    pub fn wait(
        &self,
        since: usize,
        guard: Duration,
        fits: impl Fn(&Happening) -> bool,
    ) -> Option<Happening> {
        let deadline = Instant::now() + guard;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = state.1.iter().skip(since).find(|h| fits(h)) {
                return Some(found.clone());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All events so far.
    pub fn all(&self) -> Vec<Happening> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}
