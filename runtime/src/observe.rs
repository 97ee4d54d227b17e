//! Puts what was found of the guests into the planner's words. Pure: records and domains in.

use std::collections::BTreeMap;

use labshift_plan::node::{Domain, GuestObserved, SavedCopy};

use crate::{libvirt::Found, record::Record};

/// The guests: one for each record. A domain without a record is none of ours.
pub fn guests(
    records: &BTreeMap<String, Record>,
    domains: &BTreeMap<String, Found>,
    memory_is_here: impl Fn(&str, u64) -> bool,
    silent: impl Fn(&str) -> Option<u64>,
) -> BTreeMap<String, GuestObserved> {
    let observe = |(name, record): (&String, &Record)| {
        let found = domains.get(name);
        let domain = match found.map(|f| f.domain) {
            // libvirt forgot a domain that was started: it was lost with its process.
            None if record.started && record.saved.is_none() && record.stored.is_none() => {
                Domain::Ended { orderly: false }
            }
            None => Domain::None,
            Some(domain) => domain,
        };
        let guest = GuestObserved {
            role: record.spec.role,
            domain,
            generation: record.spec.generation.clone(),
            revision: record.revision,
            saved: saved_copy(record, domain, found, &memory_is_here),
            // A guest that was restored goes on from where it had said everything.
            silent_seconds: silent(name).filter(|_| domain == Domain::Running && record.revision == 0),
            resets: record.resets,
        };
        (name.clone(), guest)
    };
    records.iter().map(observe).collect()
}

fn saved_copy(
    record: &Record,
    domain: Domain,
    found: Option<&Found>,
    memory_is_here: &impl Fn(&str, u64) -> bool,
) -> Option<SavedCopy> {
    if matches!(domain, Domain::Running | Domain::Paused) {
        return None;
    }
    let stored = record.stored.as_ref().map(|s| SavedCopy { revision: s.revision, stored: true });
    // A save that broke off leaves a file too. When the daemon ended before it could note the end of a save, libvirt
    // still knows.
    let noted = record.saving.filter(|_| found.is_some_and(|f| f.saved)).or(record.saved);
    let local = noted
        .filter(|revision| memory_is_here(&record.spec.name, *revision))
        .map(|revision| SavedCopy { revision, stored: false });
    local.or(stored)
}

#[cfg(test)]
mod tests {
    use labshift_model::{
        MacAddr,
        guest::{GuestSpec, Role, SavedState},
        manifest::FileEntry,
    };

    use super::*;

    fn record(started: bool, saving: Option<u64>, stored: Option<u64>) -> Record {
        let spec = GuestSpec {
            name: "batch-1".into(),
            role: Role::Batch,
            image: "work".into(),
            generation: "01".into(),
            memory_mib: 256,
            vcpus: 1,
            disk_mib: 0,
            mac: MacAddr::for_guest("batch-1"),
            cid: 5,
            token: "t".into(),
            restore: None,
        };
        let memory = FileEntry { size: 1, sha256: "00".into() };
        let stored = stored.map(|revision| SavedState { revision, memory, disk: None, node: "ws".into() });
        Record { spec, revision: 1, started, saving, saved: None, stored, resets: 0 }
    }

    fn one(record: Record, domain: Option<(Domain, bool)>, here: bool) -> (Domain, Option<SavedCopy>) {
        let records = [("batch-1".to_owned(), record)].into();
        let found = domain.map(|(domain, saved)| ("batch-1".to_owned(), Found { domain, saved }));
        let guest = guests(&records, &found.into_iter().collect(), |_, _| here, |_| None)["batch-1"].clone();
        (guest.domain, guest.saved)
    }

    #[test]
    fn a_save_counts_only_when_libvirt_says_that_it_ended() {
        let ended = Domain::Ended { orderly: true };
        let copy = |revision, stored| Some(SavedCopy { revision, stored });
        assert_eq!(one(record(true, Some(2), None), Some((ended, true)), true).1, copy(2, false));
        assert_eq!(one(record(true, Some(2), None), Some((ended, false)), true).1, None);
        assert_eq!(one(record(true, Some(2), None), Some((ended, true)), false).1, None);
        let noted = Record { saved: Some(2), ..record(true, None, None) };
        let failed = Domain::Ended { orderly: false };
        assert_eq!(
            one(noted, Some((failed, false)), true).1,
            copy(2, false),
            "a restore that failed loses nothing"
        );
        assert_eq!(one(record(true, Some(2), None), Some((Domain::Running, false)), true).1, None);
        assert_eq!(one(record(true, None, Some(2)), Some((ended, true)), false).1, copy(2, true));
        assert_eq!(one(record(true, Some(3), Some(2)), Some((ended, true)), true).1, copy(3, false));
    }

    #[test]
    fn only_a_guest_that_booted_can_be_silent() {
        let silence = |revision, domain| {
            let records = [("batch-1".to_owned(), Record { revision, ..record(true, None, None) })].into();
            let found = [("batch-1".to_owned(), Found { domain, saved: false })].into();
            guests(&records, &found, |_, _| false, |_| Some(70))["batch-1"].silent_seconds
        };
        assert_eq!(silence(0, Domain::Running), Some(70));
        assert_eq!(silence(0, Domain::Paused), None);
        assert_eq!(silence(1, Domain::Running), None, "it said everything before it was saved");
    }

    #[test]
    fn domains_that_libvirt_forgot() {
        assert_eq!(one(record(true, None, None), None, false).0, Domain::Ended { orderly: false });
        assert_eq!(one(record(false, None, None), None, false).0, Domain::None);
        assert_eq!(one(record(true, None, Some(4)), None, false).0, Domain::None);
    }
}
