//! What the kernel keeps for itself and wakes up for when nobody wants anything of the machine.
//!
//! A kernel with huge pages raises the memory that it never gives away to many times what it takes without them (`khugepaged`), looks every half
//! second whether it could move pages together, every second at its own counters, and every few at the neighbours. Guests ask for huge pages
//! when they start, and get them made then. Documents: Linux `Documentation/admin-guide/sysctl/vm.rst`; docs/decisions/idle.md says what it is worth.

use std::{fs, path::Path};

use crate::journal::JOURNAL;

/// Files of the kernel and what goes into them, on a machine with so many KiB of memory.
fn settings(memory_kib: u64) -> [(&'static str, String); 8] {
    // What the kernel itself keeps when it has no huge pages (`calculate_min_free_kbytes`): enough for what must not wait.
    let reserve = (memory_kib * 16).isqrt().clamp(128, 256 << 10);
    [
        // For those who ask: QEMU does for guests' memory. Others would be given more than they use.
        ("sys/kernel/mm/transparent_hugepage/enabled", "madvise".to_owned()),
        ("proc/sys/vm/min_free_kbytes", reserve.to_string()),
        // The zones DMA, DMA32, Normal, Movable: the lowest 16 MiB are for cards of the last century, and guests may have them, too. What is kept for
        // devices that reach 4 GiB stays.
        ("proc/sys/vm/lowmem_reserve_ratio", "0 256 32 0 0".to_owned()),
        // The processors' own stocks of free pages together: a thousandth of all. By itself each may keep an eighth of its share.
        ("proc/sys/vm/percpu_pagelist_high_fraction", "1024".to_owned()),
        ("proc/sys/vm/compaction_proactiveness", "0".to_owned()),
        // Seconds.
        ("proc/sys/vm/stat_interval", "30".to_owned()),
        // Milliseconds; for neighbours that somebody manages by hand, and nobody does.
        ("proc/sys/net/ipv4/neigh/default/interval_probe_time_ms", "600000".to_owned()),
        ("proc/sys/net/ipv6/neigh/default/interval_probe_time_ms", "600000".to_owned()),
    ]
}

/// Sets them. A kernel that lacks one goes on as it is.
pub fn settle(sysroot: &Path) {
    let meminfo = fs::read_to_string(sysroot.join("proc/meminfo")).unwrap_or_default();
    let Some(memory) = memory_kib(&meminfo) else { return };
    for (file, value) in settings(memory) {
        if let Err(why) = fs::write(sysroot.join(file), value) {
            JOURNAL.say("init", &format!("/{file} stays as it is: {why}"));
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
        let reserve = |kib| settings(kib)[1].1.clone();
        assert_eq!([reserve(3 << 20), reserve(64 << 20)], ["7094", "32768"]);
        assert_eq!([reserve(0), reserve(u64::MAX / 16)], ["128", "262144"]);
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
