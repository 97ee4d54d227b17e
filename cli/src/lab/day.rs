//! One day of a small lab, played on a clock that is moved forward when the last hour's events have been seen.
//!
//! ```text
//!  Mon 07:50  both machines are woken      ws1 (BIOS)  ws2 (UEFI)  -> desktop
//!  Mon 10:00  room-a is free               ws1 -> compute: batch guest "primes", remote CUDA
//!  Mon 12:00  next session in room-a       primes is saved, ws1 -> desktop
//!  Mon 13:00  room-b is free               ws2 -> compute: primes goes on where it stopped
//!  Mon 20:00  night                        primes is saved, both power off, Wake-on-LAN armed
//!  Tue 07:50  both machines are woken      and come back
//! ```
//!
//! Nothing here is told to a machine directly: the clock moves, and the schedule does the rest.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use labshift_fleet::client::Client;
use labshift_model::{
    api::{FleetStatus, GuestPhase, GuestReport, GuestView, NodeState, NodeView},
    node::CompletedTransition,
};
use serde::Serialize;
use serde_json::Value;

/// Nothing takes so long, even on a slow and busy machine without KVM: only against hanging for ever.
pub const GUARD: Duration = Duration::from_secs(15 * 60);

/// One line of the timeline.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Lab time, for people.
    pub clock: String,
    /// Stable name, for programs.
    pub name: String,
    /// What happened.
    pub what: String,
    /// Real milliseconds it took.
    pub took_ms: u64,
    /// Mode changes that the machines completed, by machine.
    pub changes: Vec<(String, CompletedTransition)>,
}

/// What the scenario needs of the lab around it.
pub trait Stage {
    /// A person should know.
    fn say(&mut self, step: &Step);
    /// Saves the workstation's screen as `NAME.png` once it shows the guest's desktop; fails when it does not.
    fn see_desktop(&mut self, node: &str, name: &str) -> Result<()>;
    /// Fails unless the workstation has no power and its network card was armed when it lost it.
    fn is_off_and_armed(&mut self, node: &str) -> Result<()>;
}

/// Plays the day; returns its timeline.
pub fn play(client: &Client, stage: &mut dyn Stage) -> Result<Vec<Step>> {
    let mut day = Day { client, stage, steps: vec![], known: BTreeMap::new() };
    day.play()?;
    Ok(day.steps)
}

struct Day<'a> {
    client: &'a Client,
    stage: &'a mut dyn Stage,
    steps: Vec<Step>,
    /// Mode changes that were told with an earlier step, by machine.
    known: BTreeMap<String, Vec<CompletedTransition>>,
}

impl Day<'_> {
    fn play(&mut self) -> Result<()> {
        let both = ["ws1", "ws2"];
        self.step(
            "Mon 07:50",
            "wake",
            "the schedule wakes both machines; each shows its student a desktop",
            |day| {
                day.clock("2026-11-23T07:50:00")?;
                for node in both {
                    day.desktop(node)?;
                    day.stage.see_desktop(node, &format!("{node}-desktop"))?;
                }
                Ok(())
            },
        )?;

        let first = self.step(
            "Mon 10:00",
            "compute",
            "room-a is free: ws1 computes, batch guest \"primes\" reports",
            |day| {
                day.clock("2026-11-23T10:00:00")?;
                day.computing("ws1", 2)
            },
        )?;

        self.step(
            "Mon 12:00",
            "save",
            "the next session nears: primes is saved, ws1 shows the desktop again",
            |day| {
                day.clock("2026-11-23T12:00:00")?;
                day.wait("primes to be saved", |s| primes(s).is_some_and(|g| g.phase == GuestPhase::Saved))?;
                day.desktop("ws1")?;
                day.stage.see_desktop("ws1", "ws1-desktop-again")
            },
        )?;

        let resumed = self.step(
            "Mon 13:00",
            "resume",
            "room-b is free: primes goes on where it stopped, on ws2",
            |day| {
                day.clock("2026-11-23T13:00:00")?;
                let before = primes(&day.client.status()?).map_or(0, |g| g.reports);
                day.computing("ws2", before + 2)
            },
        )?;
        ensure!(
            resumed.nonce == first.nonce,
            "primes was started afresh on ws2: its memory does not hold the number it drew on ws1"
        );
        ensure!(resumed.limit > first.limit, "primes did not go on: {} then {}", first.limit, resumed.limit);

        self.step(
            "Mon 20:00",
            "off",
            "night: primes is saved, both machines power off with Wake-on-LAN armed",
            |day| {
                day.clock("2026-11-23T20:00:00")?;
                for node in both {
                    day.node(node, "to be off", |n| n.state == NodeState::Off)?;
                    day.stage.is_off_and_armed(node)?;
                }
                let saved = primes(&day.client.status()?).is_some_and(|g| g.phase == GuestPhase::Saved);
                ensure!(saved, "the machines are off, but primes was not saved");
                Ok(())
            },
        )?;

        self.step("Tue 07:50", "wake-again", "the schedule wakes both machines again", |day| {
            day.clock("2026-11-24T07:50:00")?;
            both.iter().try_for_each(|node| day.desktop(node))
        })
    }

    /// Does one step, measures it and tells it.
    fn step<T>(
        &mut self,
        clock: &str,
        name: &str,
        what: &str,
        act: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let result = act(self).with_context(|| format!("playing {clock}: {what}"))?;
        let step = Step {
            clock: clock.to_owned(),
            name: name.to_owned(),
            what: what.to_owned(),
            took_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            changes: self.new_changes()?,
        };
        self.stage.say(&step);
        self.steps.push(step);
        Ok(result)
    }

    /// Mode changes completed since the last step. A machine that has rebooted begins a new list.
    fn new_changes(&mut self) -> Result<Vec<(String, CompletedTransition)>> {
        let mut new = vec![];
        for node in self.client.status()?.nodes {
            let known = self.known.get(&node.name).map_or(&[][..], Vec::as_slice);
            let fresh = node.completed.strip_prefix(known).unwrap_or(&node.completed);
            new.extend(fresh.iter().map(|change| (node.name.clone(), change.clone())));
            self.known.insert(node.name, node.completed);
        }
        Ok(new)
    }

    fn clock(&self, local: &str) -> Result<()> {
        self.client.set_clock(local).with_context(|| format!("moving the clock to {local}"))?;
        Ok(())
    }

    fn wait(&self, what: &str, done: impl FnMut(&FleetStatus) -> bool) -> Result<FleetStatus> {
        Ok(self.client.wait_until(what, GUARD, done)?)
    }

    /// Waits for one node; a failed one ends the wait with its reason.
    fn node(&self, name: &str, what: &str, mut done: impl FnMut(&NodeView) -> bool) -> Result<NodeView> {
        let mut failed = None;
        let status = self.wait(&format!("{name} {what}"), |status| {
            let Some(node) = status.nodes.iter().find(|n| n.name == name) else { return false };
            failed = (node.state == NodeState::Failed).then(|| node.cause.clone());
            failed.is_some() || done(node)
        })?;
        if let Some(cause) = failed {
            bail!("{name} failed: {cause}");
        }
        status.nodes.into_iter().find(|n| n.name == name).with_context(|| format!("no node {name}"))
    }

    fn desktop(&self, node: &str) -> Result<()> {
        self.node(node, "to show its desktop", |n| {
            n.state == NodeState::Desktop && n.guests.iter().any(|g| g.visible)
        })?;
        Ok(())
    }

    /// The node is in compute mode, remote CUDA answers, and primes runs there and has sent so many reports.
    fn computing(&self, node: &str, reports: u64) -> Result<Report> {
        self.node(node, "to compute and serve remote CUDA", |n| {
            n.state == NodeState::Compute && n.rcuda.as_ref().is_some_and(|devices| !devices.is_empty())
        })?;
        // Remote CUDA may come up after the guest has looked for it the first time.
        let status = self.wait(&format!("primes to report from {node} and to see remote CUDA"), |s| {
            primes(s).is_some_and(|g| {
                let from_there = |r: &GuestReport| r.node.as_deref() == Some(node) && devices(&r.body) > 0;
                g.reports >= reports && g.report.as_ref().is_some_and(from_there)
            })
        })?;
        let body =
            primes(&status).and_then(|g| g.report.as_ref()).map(|r| r.body.clone()).unwrap_or_default();
        Report::read(&body)
    }
}

fn primes(status: &FleetStatus) -> Option<&GuestView> {
    status.guests.iter().find(|g| g.name == "primes")
}

/// How many remote-CUDA devices a report names.
fn devices(report: &Value) -> usize {
    report["rcuda"].as_array().map_or(0, Vec::len)
}

/// What the batch guest said of its work.
struct Report {
    /// Drawn at its start, held in memory only.
    nonce: String,
    /// Numbers below this were looked at.
    limit: u64,
}

impl Report {
    /// Reads a report and checks its sum.
    fn read(body: &Value) -> Result<Self> {
        let number =
            |key: &str| body[key].as_u64().with_context(|| format!("report {body} has no number \"{key}\""));
        let (limit, claimed) = (number("limit")?, number("primes")?);
        let right = primes_up_to(limit);
        ensure!(claimed == right, "primes reports {claimed} primes up to {limit}; there are {right}");
        ensure!(devices(body) > 0, "the batch guest saw no remote-CUDA device: {body}");
        let nonce = body["nonce"].as_str().filter(|n| !n.is_empty()).context("the report has no nonce")?;
        Ok(Report { nonce: nonce.to_owned(), limit })
    }
}

/// How many primes there are up to and including `limit`.
fn primes_up_to(limit: u64) -> u64 {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(50_000_000);
    let mut composite = vec![false; limit + 1];
    let mut count = 0;
    for n in 2..=limit {
        if composite[n] {
            continue;
        }
        count += 1;
        for multiple in (n.saturating_mul(n)..=limit).step_by(n) {
            composite[multiple] = true;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn primes_are_counted() {
        assert_eq!(primes_up_to(1), 0);
        assert_eq!(primes_up_to(2), 1);
        assert_eq!(primes_up_to(1000), 168);
        assert_eq!(primes_up_to(100_000), 9592);
    }

    #[test]
    fn a_wrong_sum_is_noticed() {
        let good = json!({"nonce": "a1", "limit": 1000, "primes": 168, "rcuda": [{"index": 0}]});
        assert_eq!(Report::read(&good).map(|r| r.limit).ok(), Some(1000));
        for (key, value) in [("primes", json!(169)), ("rcuda", json!([])), ("nonce", json!(""))] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(Report::read(&bad).is_err(), "{bad}");
        }
    }
}
