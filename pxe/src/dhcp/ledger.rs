//! Leases on disk: an append-only text file, one line a change, each line with its own check sum.
//!
//! ```text
//! labshift-leases 1
//! 10.77.0.131 52:54:00:12:34:56 bound 2026-11-23T08:40:00Z 6f1d0c2be2a94b07
//! ```
//!
//! A change is on disk (`fdatasync`) before the acknowledgement that it stands for leaves. A crash can tear only the
//! last lines, which stand for nothing that a client heard of; a torn line fails its check sum and is dropped. On
//! opening, and when the file has grown to many times what it says, it is written anew beside itself and renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::lease::{Lease, State, fnv};

const NAME: &str = "leases";
const TITLE: &str = "labshift-leases 1\n";
/// Lines beyond twice the table's size before the file is written anew.
const SLACK: usize = 4096;

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("lease ledger {path}: {reason}")]
pub struct LedgerError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub reason: io::Error,
}

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    lines: usize,
    /// A write failed half-way: what would be appended now could join a torn line.
    torn: bool,
}

impl Ledger {
    /// Opens the ledger of a state directory, creating both when they are new, and gives what it says.
    pub fn open(state: &Path) -> Result<(Self, Vec<Lease>), LedgerError> {
        let path = state.join(NAME);
        let fault = |reason| LedgerError { path: path.clone(), reason };
        fs::create_dir_all(state).map_err(fault)?;
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => vec![],
            other => other.map_err(fault)?,
        };
        let leases = parse(&bytes);
        let file = rewrite(&path, &leases).map_err(fault)?;
        Ok((Ledger { lines: leases.len(), path, file, torn: false }, leases))
    }

    /// Adds changes and returns when they are on disk. After an error none of them may be acted upon.
    pub fn append(&mut self, changes: &[Lease]) -> Result<(), LedgerError> {
        if changes.is_empty() {
            return Ok(());
        }
        let lines: String = changes.iter().map(line).collect();
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        self.torn = written.is_err();
        self.lines += changes.len();
        written.map_err(|reason| LedgerError { path: self.path.clone(), reason })
    }

    /// Whether to [`Ledger::compact`] instead of appending: it would save much, or the end of the file is torn.
    pub fn wants_compaction(&self, leases: usize) -> bool {
        self.torn || self.lines > 2 * leases + SLACK
    }

    /// Writes the file anew with just these leases.
    pub fn compact(&mut self, leases: &[Lease]) -> Result<(), LedgerError> {
        self.file =
            rewrite(&self.path, leases).map_err(|reason| LedgerError { path: self.path.clone(), reason })?;
        self.lines = leases.len();
        self.torn = false;
        Ok(())
    }
}

/// Reads a ledger. Lines that are torn, or not ours, are dropped.
pub fn parse(bytes: &[u8]) -> Vec<Lease> {
    bytes
        .split_inclusive(|b| *b == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok()?.strip_suffix('\n'))
        .filter_map(lease)
        .collect()
}

/// One lease as a line.
pub fn line(lease: &Lease) -> String {
    let state = match lease.state {
        State::Offered => "offered",
        State::Bound => "bound",
        State::Declined => "declined",
    };
    let text = format!("{} {} {state} {}", lease.address, lease.mac, lease.expires);
    format!("{text} {:016x}\n", fnv(text.as_bytes()))
}

fn lease(line: &str) -> Option<Lease> {
    let (text, sum) = line.rsplit_once(' ')?;
    if sum.len() != 16 || u64::from_str_radix(sum, 16).ok()? != fnv(text.as_bytes()) {
        return None;
    }
    let mut words = text.split(' ');
    let lease = Lease {
        address: words.next()?.parse().ok()?,
        mac: words.next()?.parse().ok()?,
        state: match words.next()? {
            "offered" => State::Offered,
            "bound" => State::Bound,
            "declined" => State::Declined,
            _ => return None,
        },
        expires: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(lease)
}

fn rewrite(path: &Path, leases: &[Lease]) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&new)?;
    let text: String = std::iter::once(TITLE.to_owned()).chain(leases.iter().map(line)).collect();
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use jiff::{SignedDuration, Timestamp};
    use labshift_model::MacAddr;

    use super::*;
    use crate::{config::Subnet, dhcp::lease::Leases};

    /// 40 machines on a pool of 12 addresses, with releases and lapsed leases: addresses change hands. Gives the
    /// ledger and, per append, its length and who was told what until when.
    fn history() -> (Vec<u8>, Vec<(usize, Lease)>) {
        let subnet = Subnet {
            network: [10, 0, 0, 0].into(),
            prefix: 24,
            pool: ([10, 0, 0, 10].into(), [10, 0, 0, 21].into()),
            gateway: None,
        };
        let (mut leases, mut bytes, mut told) = (Leases::default(), TITLE.as_bytes().to_vec(), vec![]);
        for round in 0..40u8 {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(i64::from(round) * 10);
            let mac = MacAddr([2, 0, 0, 0, 0, round]);
            let Some(address) = leases.choose(mac, &subnet, None, None, &[], now) else { continue };
            leases.offer(mac, address, now);
            leases.bind(mac, address, 90, now);
            for change in leases.take_changes() {
                bytes.extend(line(&change).as_bytes());
                told.push((bytes.len(), change));
            }
            if round % 5 == 0 {
                leases.release(mac, address, now);
                for change in leases.take_changes() {
                    bytes.extend(line(&change).as_bytes());
                    told.push((bytes.len(), change));
                }
            }
        }
        (bytes, told)
    }

    /// Whatever byte the crash came at: every lease that was on disk when its client heard of it is still known, so
    /// its address goes to nobody else before it lapses.
    #[test]
    fn killed_at_any_byte_no_address_is_given_twice() {
        let (bytes, told) = history();
        assert!(told.len() > 40);
        for cut in 0..=bytes.len() {
            let leases = Leases::from_ledger(parse(&bytes[..cut]));
            let mut last: HashMap<Ipv4Addr, Lease> = HashMap::new();
            for (_, lease) in told.iter().filter(|(end, _)| *end <= cut) {
                last.insert(lease.address, *lease);
            }
            for lease in last.values() {
                let before = lease.expires - SignedDuration::from_secs(1);
                let stranger = MacAddr([2, 9, 9, 9, 9, 9]);
                assert!(!leases.is_free_for(stranger, lease.address, before), "{cut}: {lease:?}");
                assert_eq!(leases.holder(lease.address, before), Some(lease.mac), "{cut}");
            }
        }
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next_opening() {
        let state = tempfile::tempdir().expect("a directory");
        let (bytes, told) = history();
        fs::write(state.path().join(NAME), &bytes[..bytes.len() - 7]).expect("writing");
        let (mut ledger, leases) = Ledger::open(state.path()).expect("opening");
        assert_eq!(leases.len(), told.len() - 1);
        ledger.append(&[told[0].1]).expect("appending");
        let (_, again) = Ledger::open(state.path()).expect("opening again");
        assert_eq!(again.len(), told.len());
        assert_eq!(again.last(), Some(&told[0].1));
    }

    #[test]
    fn compacting_keeps_the_table() {
        let state = tempfile::tempdir().expect("a directory");
        let (_, told) = history();
        let (mut ledger, _) = Ledger::open(state.path()).expect("opening");
        let changes: Vec<Lease> = told.iter().map(|(_, l)| *l).collect();
        ledger.append(&changes).expect("appending");
        let table = Leases::from_ledger(changes);
        ledger.compact(&table.snapshot()).expect("compacting");
        ledger.append(&[told[0].1]).expect("appending to the new file");
        let (_, again) = Ledger::open(state.path()).expect("opening");
        assert_eq!(again.len(), table.len() + 1);
    }

    #[test]
    fn foreign_and_changed_lines_are_dropped() {
        let good = line(&history().1[0].1);
        let flipped = good.replacen("10.0.0.", "10.0.1.", 1);
        let text = format!("hello\n\n{flipped}{good}\u{1f600}\n{}", &good[..good.len() - 1]);
        assert_eq!(parse(text.as_bytes()).len(), 1);
    }
}
