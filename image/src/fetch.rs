//! Packages into trees: several connections download, as many threads as there are cores unpack what has come, both at
//! the same time.

use std::{
    collections::VecDeque,
    fs,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    cache::Cache,
    deb::Unpacked,
    error::BuildError,
    lock::{Lock, Locked},
    progress::{Progress, Stage},
    shelf::Shelf,
};

/// Downloads that run at the same time.
const CONNECTIONS: usize = 6;

/// Where a locked package is to be had.
pub fn url(lock: &Lock, package: &Locked) -> String {
    format!("{}/{}", lock.archives[package.archive].mirror, package.filename)
}

/// A package's file, from the cache or its mirror.
pub fn open(cache: &Cache, lock: &Lock, package: &Locked) -> Result<fs::File, BuildError> {
    cache.open_or_get(&url(lock, package), &package.expected())
}

/// What the threads share.
struct Work {
    to_fetch: VecDeque<usize>,
    to_unpack: VecDeque<usize>,
    fetching: usize,
    done: Vec<Option<Unpacked>>,
    failed: Option<BuildError>,
}

struct Desk {
    work: Mutex<Work>,
    changed: Condvar,
}

impl Desk {
    fn hold(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: BuildError) {
        self.hold().failed.get_or_insert(error);
        self.changed.notify_all();
    }
}

/// Unpacks all packages of a lock, in its order, or takes them from the shelf. `stays(package, path)` says what the
/// shelf keeps.
pub fn unpack_all(
    cache: &Cache,
    lock: &Lock,
    stays: &(dyn Fn(&Locked, &str) -> bool + Sync),
    shelf: &Shelf,
    progress: &dyn Progress,
) -> Result<Vec<Unpacked>, BuildError> {
    // The largest first: what takes longest must not start last.
    let mut order: Vec<usize> = (0..lock.packages.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lock.packages[*i].size));
    let (here, missing): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|i| {
        let package = &lock.packages[*i];
        shelf.has(&package.sha256) || cache.has(&package.expected())
    });
    let bytes = |indexes: &[usize]| indexes.iter().map(|i| lock.packages[*i].size).sum::<u64>();
    let (fetch_total, total) = (bytes(&missing), bytes(&missing) + bytes(&here));
    if !missing.is_empty() {
        progress.stage(Stage::Download, &format!("{} packages, {} MiB", missing.len(), fetch_total >> 20));
    }
    progress.stage(Stage::Unpack, &format!("{} packages", lock.packages.len()));
    let (fetched, unpacked) = (AtomicU64::new(0), AtomicU64::new(0));
    let heard = |count| {
        let now = fetched.fetch_add(count, Ordering::Relaxed) + count;
        progress.bytes(Stage::Download, now.min(fetch_total), fetch_total);
    };
    let work = Work {
        to_fetch: missing.into(),
        to_unpack: here.into(),
        fetching: 0,
        done: lock.packages.iter().map(|_| None).collect(),
        failed: None,
    };
    let desk = Desk { work: Mutex::new(work), changed: Condvar::new() };
    let fetcher = || {
        loop {
            let index = {
                let mut work = desk.hold();
                if work.failed.is_some() {
                    return;
                }
                let Some(index) = work.to_fetch.pop_front() else { return };
                work.fetching += 1;
                index
            };
            let package = &lock.packages[index];
            let result = cache.download(&url(lock, package), &package.expected(), &heard);
            let mut work = desk.hold();
            work.fetching -= 1;
            match result {
                Ok(()) => work.to_unpack.push_back(index),
                Err(error) => {
                    work.failed.get_or_insert(error);
                }
            }
            drop(work);
            desk.changed.notify_all();
        }
    };
    let unpacker = || {
        while let Some(index) = next(&desk) {
            let package = &lock.packages[index];
            let unpack = || {
                let file = open(cache, lock, package)?;
                let known = (package.name.as_str(), package.sha256.as_str());
                shelf.unpack(file, known, &|path| stays(package, path)).map_err(|why| BuildError::Package {
                    package: format!("{} {}", package.name, package.version),
                    why,
                })
            };
            let result = shelf.get(&package.sha256).map_or_else(unpack, Ok);
            match result {
                Ok(result) => desk.hold().done[index] = Some(result),
                Err(error) => return desk.fail(error),
            }
            let now = unpacked.fetch_add(package.size, Ordering::Relaxed) + package.size;
            progress.bytes(Stage::Unpack, now, total);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(fetcher);
        }
        for _ in 0..threads {
            scope.spawn(unpacker);
        }
    });
    let work = desk.work.into_inner().unwrap_or_else(PoisonError::into_inner);
    match work.failed {
        Some(error) => Err(error),
        None => Ok(work.done.into_iter().flatten().collect()),
    }
}

/// The next package to unpack, when one has come; `None` when none will.
fn next(desk: &Desk) -> Option<usize> {
    let mut work = desk.hold();
    loop {
        if work.failed.is_some() {
            return None;
        }
        if let Some(index) = work.to_unpack.pop_front() {
            return Some(index);
        }
        if work.to_fetch.is_empty() && work.fetching == 0 {
            return None;
        }
        work = desk.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
    }
}
