//! What the kernel keeps for itself and wakes up for when nobody wants anything of the machine.
//!
//! A kernel with huge pages raises the memory that it never gives away to many times what it takes without them (`khugepaged`), looks every half
//! second whether it could move pages together, every second at its own counters, and every few at the neighbours. Guests ask for huge pages when they start, and get
//! them made then. Documents: Linux `Documentation/admin-guide/sysctl/vm.rst`; docs/decisions/idle.md says what it is worth.

use std::{fs, path::Path};

use crate::journal::JOURNAL;

/// Settings below `/proc/sys` for a machine with so many KiB of memory.
fn settings(memory_kib: u64) -> [(&'static str, u64); 5] {
    // What the kernel itself keeps when it has no huge pages (`calculate_min_free_kbytes`): enough for what must not wait.
    let reserve = (memory_kib * 16).isqrt().clamp(128, 256 << 10);
    [
        ("vm/min_free_kbytes", reserve),
        ("vm/compaction_proactiveness", 0),
        // Seconds.
        ("vm/stat_interval", 30),
        // Milliseconds; for neighbours that somebody manages by hand, and nobody does.
        ("net/ipv4/neigh/default/interval_probe_time_ms", 600_000),
        ("net/ipv6/neigh/default/interval_probe_time_ms", 600_000),
    ]
}

/// Sets them. A kernel that lacks one goes on as it is.
pub fn settle(sysroot: &Path) {
    let meminfo = fs::read_to_string(sysroot.join("proc/meminfo")).unwrap_or_default();
    let Some(memory) = memory_kib(&meminfo) else { return };
    for (name, value) in settings(memory) {
        if let Err(why) = fs::write(sysroot.join("proc/sys").join(name), value.to_string()) {
            JOURNAL.say("init", &format!("{name} stays as it is: {why}"));
        }
    }
}

fn memory_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_what_the_kernel_takes_without_huge_pages() {
        let reserve = |kib| settings(kib)[0].1;
        assert_eq!(reserve(3 << 20), 7094);
        assert_eq!(reserve(64 << 20), 32768);
        assert_eq!((reserve(0), reserve(u64::MAX / 16)), (128, 262_144));
    }

    #[test]
    fn settings_reach_the_kernel_and_one_that_is_missing_stops_nothing() {
        let root = std::env::temp_dir().join(format!("labshift-idle-{}", std::process::id()));
        fs::create_dir_all(root.join("proc/sys/vm")).unwrap();
        fs::write(root.join("proc/meminfo"), "MemTotal:        2981756 kB\nMemFree: 1 kB\n").unwrap();
        fs::create_dir(root.join("proc/sys/vm/compaction_proactiveness")).unwrap();
        settle(&root);
        let read = |name: &str| fs::read_to_string(root.join("proc/sys/vm").join(name)).unwrap();
        assert_eq!((read("min_free_kbytes"), read("stat_interval")), ("6907".into(), "30".into()));
        fs::remove_dir_all(&root).unwrap();
    }
}
