//! How the last run ended, when its kernel stopped: what the kernel left in memory that outlives a restart (pstore: ACPI ERST, UEFI
//! variables, reserved RAM), taken at the next boot and told to the server. A dead PID 1 ends in the same way: the kernel stops, says
//! why, and starts the machine anew after `panic=` seconds.
//!
//! Linux `Documentation/ABI/testing/pstore`: one file a record, `dmesg-BACKEND-ID`; removing it frees its place. A record begins with a
//! line such as `Panic#1 Part1`; a longer log comes in several parts, of which part 1 is the newest.

use std::{fs, path::Path};

use nix::mount::{MsFlags, mount};

use crate::journal::JOURNAL;

/// Lines of the old log that are told.
const LINES: usize = 60;

/// Shows the kernel's records as files. A kernel without them has no such directory.
pub fn show_records() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("pstore"), "/sys/fs/pstore", Some("pstore"), flags, None::<&str>);
}

/// Tells of a crash, if there are records of one. To be asked again when another place for records is known: a driver's.
pub fn tell(sysroot: &Path) {
    if let Some(reason) = take(sysroot) {
        JOURNAL.crashed(reason);
    }
}

/// Takes the records of a crash and says them. Returns the kernel's own word for it.
fn take(sysroot: &Path) -> Option<String> {
    let directory = sysroot.join("sys/fs/pstore");
    let mut records = vec![];
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        if let Ok(bytes) = fs::read(entry.path()) {
            records.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        // Kept, it would be told again at every boot and take the place of the next one.
        let _ = fs::remove_file(entry.path());
    }
    let (reason, log) = read(&records)?;
    JOURNAL.say("crash", &format!("the last run ended: {reason}"));
    for line in log.iter().skip(log.len().saturating_sub(LINES)) {
        JOURNAL.say("crash", &format!("| {line}"));
    }
    Some(reason)
}

/// The reason and the log of the records, oldest line first. Only a kernel that stopped counts: a record of an oops that the machine
/// survived is none.
fn read(records: &[String]) -> Option<(String, Vec<&str>)> {
    let mut parts: Vec<(u32, &str)> = records
        .iter()
        .filter_map(|record| {
            let (head, text) = record.split_once('\n')?;
            let part = head.strip_prefix("Panic#")?.split_once(" Part")?.1;
            Some((part.trim().parse().ok()?, text))
        })
        .collect();
    parts.sort_by_key(|(part, _)| std::cmp::Reverse(*part));
    let log: Vec<&str> = parts.iter().flat_map(|(_, text)| text.lines()).collect();
    let reason = log.iter().rev().find_map(|line| line.split_once("Kernel panic - ").map(|(_, why)| why));
    let reason = reason.or(log.last().copied())?;
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(300).collect();
    Some((format!("Kernel panic - {reason}"), log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_put_together_and_an_oops_that_was_survived_is_no_end() {
        let records = [
            "Panic#1 Part1\n<0>[    9.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n<4>[ 9.2] CPU: 0\n",
            "Oops#1 Part1\n<4>[    3.0] something else\n",
            "Panic#1 Part2\n<6>[    8.0] before\n",
            "no record\n",
            "Panic#2 Part\n",
        ]
        .map(str::to_owned);
        let (reason, log) = read(&records).unwrap();
        assert_eq!(reason, "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b");
        assert_eq!((log.len(), log[0]), (3, "<6>[    8.0] before"));
        assert_eq!(read(&records[1..2]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn records_are_taken_once() {
        let dir = std::env::temp_dir().join(format!("labshift-pstore-{}", std::process::id()));
        let records = dir.join("sys/fs/pstore");
        fs::create_dir_all(&records).unwrap();
        fs::write(records.join("dmesg-erst-1"), "Panic#1 Part1\nKernel panic - not syncing: sysrq\n")
            .unwrap();
        assert_eq!(take(&dir).as_deref(), Some("Kernel panic - not syncing: sysrq"));
        assert_eq!(take(&dir), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
