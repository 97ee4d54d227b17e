//! The disk of the machine itself, where the recipe names one: it keeps blocks of the root and takes encrypted swap. A boot that does not
//! find it goes on in memory.

use std::{path::Path, sync::Once, time::Duration};

use labshift_model::manifest::{LocalDisk, Manifest};

use crate::{blocks::Policy, disk, journal::JOURNAL, modules::Loader, verity::Shape};

/// The policy that this machine can have, and the local disk that the recipe names. Without the disk the root comes into memory.
pub fn choose(
    policy: Policy,
    manifest: &Manifest,
    shape: &Shape,
    loader: &mut Loader,
) -> (Policy, Option<(Option<disk::Cache>, disk::Found)>) {
    let without = if policy == Policy::Disk { Policy::Full } else { policy };
    let Some(rule) = &manifest.disk else {
        if policy == Policy::Disk {
            JOURNAL.say("disk", "the recipe names no disk ([disk]); the root comes into memory");
        }
        return (without, None);
    };
    let crypt = loader.load("dm_crypt");
    if let Err(why) = &crypt {
        JOURNAL.say("disk", &why.to_string());
    }
    let root = Path::new("/");
    // The threads beside may not have come to it yet.
    loader.coldplug(root, |_| true);
    let patience = if policy == Policy::Disk { disk::CACHE_PATIENCE } else { Duration::ZERO };
    let found = match disk::wait_for(root, rule, patience, || drop(loader.coldplug(root, |_| true))) {
        Ok(found) => found,
        Err(why @ disk::NoDisk::None(_)) => {
            if policy == Policy::Disk {
                JOURNAL.say("disk", &format!("{why}; the root comes into memory"));
            }
            swap_late(rule);
            return (without, None);
        }
        Err(why) => {
            JOURNAL.say("disk", &format!("{why}; the root comes into memory"));
            return (without, None);
        }
    };
    if policy != Policy::Disk {
        return (policy, Some((None, found)));
    }
    match found.cache(shape) {
        Ok(cache) => {
            let state =
                if cache.is_warm() { "holds blocks of this root" } else { "holds nothing of this root" };
            JOURNAL.say("disk", &format!("{} {state}", found.path().display()));
            (policy, Some((Some(cache), found)))
        }
        Err(why) => {
            JOURNAL.say("disk", &format!("{why}; the root comes into memory"));
            (without, None)
        }
    }
}

/// Swaps to a disk that comes when the boot has gone on without it.
fn swap_late(rule: &LocalDisk) {
    static ONCE: Once = Once::new();
    let rule = rule.clone();
    ONCE.call_once(|| {
        std::thread::spawn(move || match disk::wait_for(Path::new("/"), &rule, disk::SWAP_PATIENCE, || ()) {
            Ok(found) => swap(Some(&found), None),
            Err(why) => JOURNAL.say("disk", &format!("{why}; there is no swap")),
        });
    });
}

/// Swaps to what the cache leaves of the local disk. Without it there is less to work in, and the boot goes on.
pub fn swap(found: Option<&disk::Found>, cache: Option<&Shape>) {
    let Some(found) = found else { return };
    match found.swap(Path::new("/dev"), cache) {
        Ok(0) => JOURNAL.say("disk", "too little is left for swap"),
        Ok(size) => JOURNAL.say("disk", &format!("{} MiB of encrypted swap", size >> 20)),
        Err(why) => JOURNAL.say("disk", &format!("no swap: {why}")),
    }
}
