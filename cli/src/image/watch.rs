//! How a build goes: bars on a terminal, plain lines without one, JSON for programs.

use std::{collections::BTreeMap, io::IsTerminal, sync::Mutex};

use indicatif::{ProgressBar, ProgressStyle};
use labshift_image::{Progress, Stage};
use serde_json::json;

/// Shows how a build goes: bars on a terminal, lines without one, JSON for programs.
pub struct Watcher {
    json: bool,
    bar: Option<ProgressBar>,
    /// Tenths of each stage that were told already.
    told: Mutex<BTreeMap<Stage, u64>>,
}

impl Watcher {
    /// `json`: events as JSON lines on standard output.
    pub fn new(json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style =
                ProgressStyle::with_template("{prefix:>9} {bar:32} {bytes:>10}/{total_bytes:10} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Watcher { json, bar, told: Mutex::default() }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Watcher {
    fn stage(&self, stage: Stage, detail: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(stage.to_string());
                bar.set_message(detail.to_owned());
            }
            None if self.json => {
                println!("{}", json!({ "event": "stage", "stage": stage.to_string(), "detail": detail }))
            }
            None => eprintln!("  {stage}: {detail}"),
        }
    }

    fn bytes(&self, stage: Stage, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            return;
        }
        let tenth = done * 10 / total.max(1);
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.json && told.insert(stage, tenth) != Some(tenth) {
            println!(
                "{}",
                json!({ "event": "bytes", "stage": stage.to_string(), "done": done, "total": total })
            );
        }
    }

    fn warning(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("warning: {text}")),
            None if self.json => println!("{}", json!({ "event": "warning", "text": text })),
            None => eprintln!("  warning: {text}"),
        }
    }
}
