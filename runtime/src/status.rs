//! The node's status: for the server, and as a file for whoever sits at the node.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use labshift_model::{
    MacAddr,
    guest::{GuestSpec, GuestState, GuestStatus, Role},
    node::{NodeDesired, NodeStatus},
};
use labshift_plan::node::{Domain, GuestObserved, NodeObserved, Screen, Step};

use crate::record::Record;

/// The newest status as JSON ([`NodeStatus`]).
pub const FILE: &str = "/run/labshift/runtime.json";

/// What the statuses of the guests are made from.
pub struct Guests<'a> {
    /// What is wanted.
    pub desired: &'a NodeDesired,
    /// What is there.
    pub observed: &'a NodeObserved,
    /// What is remembered.
    pub records: &'a BTreeMap<String, Record>,
    /// The step being performed.
    pub running: Option<&'a Step>,
    /// Last failure of each subject.
    pub failures: &'a BTreeMap<String, String>,
    /// Addresses seen on the bridge.
    pub neighbours: &'a BTreeMap<MacAddr, Ipv4Addr>,
}

impl Guests<'_> {
    /// One status for each guest that is here, or on its way.
    pub fn statuses(&self) -> Vec<GuestStatus> {
        let here = self.observed.guests.iter().filter_map(|(name, guest)| {
            let spec = &self.records.get(name)?.spec;
            Some(self.status(spec, Some(guest)))
        });
        let coming = self.desired.desktop.iter().chain(&self.desired.batch).filter(|spec| {
            !self.observed.guests.contains_key(&spec.name)
                && (self.is_working_on(spec) || self.failures.contains_key(&spec.name))
        });
        here.chain(coming.map(|spec| self.status(spec, None))).collect()
    }

    fn status(&self, spec: &GuestSpec, guest: Option<&GuestObserved>) -> GuestStatus {
        let runs = guest.is_some_and(|g| g.domain == Domain::Running);
        GuestStatus {
            name: spec.name.clone(),
            role: spec.role,
            state: self.state(spec, guest),
            address: self.neighbours.get(&spec.mac).copied().filter(|_| runs),
            visible: runs
                && spec.role == Role::Desktop
                && self.observed.screen == Screen::Guest(spec.name.clone()),
        }
    }

    fn is_working_on(&self, spec: &GuestSpec) -> bool {
        self.running.is_some_and(|s| s.subject() == spec.name || s.subject() == spec.generation)
    }

    fn state(&self, spec: &GuestSpec, guest: Option<&GuestObserved>) -> GuestState {
        let domain = guest.map_or(Domain::None, |g| g.domain);
        let step = self.running.filter(|_| self.is_working_on(spec));
        match step {
            Some(Step::FetchImage { .. }) if domain == Domain::None => return GuestState::Fetching,
            Some(Step::StartGuest { .. } | Step::RestoreGuest { .. } | Step::ResumeGuest { .. }) => {
                return GuestState::Starting;
            }
            Some(Step::ShutDownGuest { .. }) => return GuestState::Stopping,
            Some(Step::SaveGuest { .. } | Step::UploadSaved { .. }) => return GuestState::Saving,
            _ => {}
        }
        let failure = self.failures.get(&spec.name).or_else(|| self.failures.get(&spec.generation));
        let stored = self.records.get(&spec.name).and_then(|r| r.stored.clone());
        match (domain, guest.and_then(|g| g.saved), stored, failure) {
            (Domain::Running, ..) => GuestState::Running,
            (_, Some(copy), Some(saved), _) if copy.stored => GuestState::Saved { saved },
            (_, Some(_), ..) => GuestState::Saving,
            (_, _, _, Some(reason)) => GuestState::Failed { reason: reason.clone() },
            (Domain::Paused, ..) => GuestState::Starting,
            (Domain::Ended { orderly: false }, ..) => {
                GuestState::Failed { reason: format!("{} ended without being asked to", spec.name) }
            }
            (Domain::None, ..) if step.is_some() => GuestState::Starting,
            _ => GuestState::Stopped,
        }
    }
}

/// Hardware addresses and the IPv4 addresses that the node's kernel saw with them (`/proc/net/arp`).
pub fn neighbours(arp: &str) -> BTreeMap<MacAddr, Ipv4Addr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        let mac: MacAddr = words.nth(2)?.parse().ok()?;
        (mac != MacAddr([0; 6])).then_some((mac, address))
    };
    arp.lines().filter_map(line).collect()
}

/// Writes the status for people at the node.
pub fn write(path: &Path, status: &NodeStatus) -> std::io::Result<()> {
    crate::record::write_whole(path, 0o644, &serde_json::to_vec_pretty(status)?)
}

/// The two say the same but for the time: nothing that a server would act upon at once.
pub fn differ(a: &NodeStatus, b: &NodeStatus) -> bool {
    let timeless = |s: &NodeStatus| {
        let mut s = s.clone();
        s.idle_seconds = s.idle_seconds.map(|idle| u64::from(idle >= ACTIVE_SECONDS));
        if let Some(transition) = &mut s.transition {
            transition.elapsed_ms = 0;
        }
        s
    };
    timeless(a) != timeless(b)
}

/// Somebody who touched a key so lately is at the keyboard now.
const ACTIVE_SECONDS: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_the_kernels_table() {
        let arp = "IP address       HW type     Flags       HW address            Mask     Device\n\
                   10.77.0.1        0x1         0x2         52:54:00:12:34:56     *        br0\n\
                   10.77.0.9        0x1         0x0         00:00:00:00:00:00     *        br0\n";
        let found = neighbours(arp);
        assert_eq!(found.len(), 1);
        assert_eq!(found[&"52:54:00:12:34:56".parse().unwrap()], Ipv4Addr::new(10, 77, 0, 1));
    }

    #[test]
    fn time_alone_is_no_news_but_a_touch_is() {
        let status = |idle| NodeStatus {
            revision: 1,
            mode: None,
            transition: None,
            completed: vec![],
            guests: vec![],
            rcuda: None,
            idle_seconds: idle,
            trouble: None,
        };
        assert!(!differ(&status(Some(20)), &status(Some(90))));
        assert!(differ(&status(Some(20)), &status(Some(0))));
        assert!(differ(&status(None), &status(Some(0))));
    }
}
