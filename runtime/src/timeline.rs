//! How long mode changes take: phases as they happen, and the last completed changes.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use labshift_model::node::{CompletedTransition, Mode, Transition};
use labshift_plan::node::{Plan, Step};

/// Completed changes that are remembered.
const REMEMBERED: usize = 16;

/// The node's mode changes.
#[derive(Debug, Default)]
pub struct Timeline {
    mode: Option<Mode>,
    change: Option<Change>,
    completed: VecDeque<CompletedTransition>,
}

#[derive(Debug)]
struct Change {
    to: Mode,
    since: Timestamp,
    began: Duration,
    phases: Vec<(String, u64)>,
    current: Option<(String, Duration)>,
    left: usize,
}

impl Timeline {
    /// The mode reached last.
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Looks at a new plan; `now` is the server's clock, `at` the time since boot. Returns the change that this
    /// plan completes; none while a step of it is still `busy`.
    pub fn look(
        &mut self,
        plan: &Plan,
        busy: bool,
        now: Timestamp,
        at: Duration,
    ) -> Option<&CompletedTransition> {
        if self.mode == Some(plan.mode) && self.change.is_none() {
            return None;
        }
        // A change that turns round starts anew: its time is counted from the new wish.
        if self.change.as_ref().is_none_or(|c| c.to != plan.mode) {
            let (to, phases) = (plan.mode, vec![]);
            self.change = Some(Change { to, since: now, began: at, phases, current: None, left: 0 });
        }
        let change = self.change.as_mut()?;
        change.left = plan.steps.len();
        if busy || !plan.reached() {
            return None;
        }
        let change = self.change.take()?;
        let from = self.mode.replace(plan.mode);
        if from == Some(plan.mode) && change.phases.is_empty() {
            // The wish went away and came back before anything was done.
            return None;
        }
        if self.completed.len() == REMEMBERED {
            self.completed.pop_front();
        }
        let took_ms = milliseconds(at.saturating_sub(change.began));
        self.completed.push_back(CompletedTransition { from, to: plan.mode, took_ms, phases: change.phases });
        self.completed.back()
    }

    /// A step begins.
    pub fn begin(&mut self, step: &Step, at: Duration) {
        if let Some(change) = &mut self.change {
            change.current = Some((step.phase(), at));
        }
    }

    /// The step is over, done or not.
    pub fn end(&mut self, at: Duration) {
        if let Some(change) = &mut self.change
            && let Some((phase, began)) = change.current.take()
        {
            change.phases.push((phase, milliseconds(at.saturating_sub(began))));
        }
    }

    /// The change under way, for the status.
    pub fn transition(&self, at: Duration) -> Option<Transition> {
        let change = self.change.as_ref()?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Some(Transition {
            from: self.mode,
            to: change.to,
            phase: change.current.as_ref().map_or_else(|| "waiting".into(), |(phase, _)| phase.clone()),
            done: count(change.phases.len()),
            total: count(change.phases.len() + change.left),
            since: change.since,
            elapsed_ms: milliseconds(at.saturating_sub(change.began)),
        })
    }

    /// The last completed changes, newest last.
    pub fn completed(&self) -> Vec<CompletedTransition> {
        self.completed.iter().cloned().collect()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mode: Mode, steps: Vec<Step>) -> Plan {
        Plan { mode, cause: "test".into(), steps, afterwards: vec![], held_up: false, look_again: None }
    }

    fn start() -> Step {
        Step::StartGuest { guest: "desk-1".into() }
    }

    #[test]
    fn a_change_with_its_phases() {
        let mut timeline = Timeline::default();
        let (now, at) = (Timestamp::UNIX_EPOCH, Duration::from_secs);
        let way = vec![Step::EnsureBridge, start()];
        assert!(timeline.look(&plan(Mode::Desktop, way.clone()), false, now, at(10)).is_none());
        timeline.begin(&way[0], at(10));
        let transition = timeline.transition(at(11)).unwrap();
        assert_eq!((transition.from, transition.to, transition.elapsed_ms), (None, Mode::Desktop, 1000));
        assert_eq!((transition.done, transition.total), (0, 2));
        assert_eq!(transition.phase, "setting up the bridge");
        timeline.end(at(12));
        timeline.look(&plan(Mode::Desktop, way[1..].to_vec()), false, now, at(12));
        assert_eq!(timeline.transition(at(12)).unwrap().total, 2);
        timeline.begin(&way[1], at(12));
        timeline.end(at(15));
        let done = timeline.look(&plan(Mode::Desktop, vec![]), false, now, at(15)).cloned().unwrap();
        assert_eq!((done.from, done.to, done.took_ms), (None, Mode::Desktop, 5000));
        let phases = [("setting up the bridge".to_owned(), 2000), ("starting desk-1".to_owned(), 3000)];
        assert_eq!(done.phases, phases);
        assert_eq!((timeline.mode(), timeline.transition(at(16))), (Some(Mode::Desktop), None));

        // A guest that is started again is a repair, not a change of mode.
        assert!(timeline.look(&plan(Mode::Desktop, vec![start()]), false, now, at(20)).is_none());
        timeline.begin(&start(), at(20));
        timeline.end(at(21));
        assert!(timeline.look(&plan(Mode::Desktop, vec![]), false, now, at(21)).is_none());
        assert_eq!(timeline.completed().len(), 1);
    }

    #[test]
    fn a_change_that_turns_round() {
        let mut timeline = Timeline::default();
        let (now, at) = (Timestamp::UNIX_EPOCH, Duration::from_secs);
        timeline.look(&plan(Mode::Desktop, vec![]), false, now, at(1));
        timeline.look(&plan(Mode::Compute, vec![start()]), false, now, at(2));
        assert!(timeline.look(&plan(Mode::Desktop, vec![]), false, now, at(3)).is_none());
        assert_eq!((timeline.completed().len(), timeline.transition(at(3))), (1, None));
        for i in 0..40 {
            let mode = if i % 2 == 0 { Mode::Compute } else { Mode::Desktop };
            timeline.look(&plan(mode, vec![]), false, now, at(10 + i));
        }
        assert_eq!(timeline.completed().len(), REMEMBERED);
    }
}
