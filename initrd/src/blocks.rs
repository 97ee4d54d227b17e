//! The root, block by block, as it is needed: verified chunks that come over HTTP when somebody reads them.
//!
//! ```text
//! kernel reads ──> nbd ──> Blocks::read ── kept? ──yes──────────────────────> bytes
//!                              │ no: one asker fetches, the others wait          ^
//!                              └─> server, range of chunks ── verified ── kept ──┘
//! Blocks::prefetch (in the recorded order, from the first moment) ───────────────┤
//! Blocks::fetch_rest (policy full, once the machine is up) ──────────────────────┘
//! ```
//!
//! What the kernel reads is noted in its order until the machine is up: recorded once in the lab and signed with the manifest, the order
//! lets later boots fetch what they will need before they ask, and little else.
//!
//! The hash tree comes first, whole: it is small, and every block is checked against it before the kernel sees it. dm-verity
//! checks again; what is gained here is that a wrong block has a name, and that another try may bring the right one.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use labshift_model::boot_order::BootOrder;

use crate::{
    disk::Cache,
    source::{FetchError, Source},
    verity::{BLOCK, Leaves, Mismatch, Shape},
};

/// Bytes that are fetched and kept together.
pub const CHUNK: u64 = 32 * BLOCK as u64;
/// Chunks fetched by one request: a request costs more than a few chunks that nobody wants.
const USUAL: u64 = 4;
/// Chunks fetched by one request when reads follow one another.
const AHEAD: u64 = 16;
/// Chunks kept in memory under [`Policy::Lazy`].
const FEW: usize = 64;
/// Chunks that may be fetched in the recorded order before they are read, under [`Policy::Lazy`].
const WINDOW: usize = FEW / 2;
/// How long a wrong chunk is not asked for again.
const WRONG: Duration = Duration::from_secs(10);
/// Chunks fetched by one request in the background.
const BACKGROUND: u64 = 16;

/// A block will not come, or is not what was signed; [`Blocks::fault`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the block can't be had")]
pub struct Missing;

/// How much of the root is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// All of it, fetched and verified before anything of it runs.
    #[default]
    Whole,
    /// All of it in the end: what is needed at once, the rest when the machine is up. Then the server may go away.
    Full,
    /// What was read lately; the rest is fetched again when it is needed.
    Lazy,
    /// What was read lately, and on the local disk all of it in the end; the next boot finds it there.
    Disk,
}

/// What was kept and what is under way.
#[derive(Debug, Default)]
struct Store {
    chunks: HashMap<u64, Arc<Vec<u8>>>,
    /// Oldest first, under [`Policy::Lazy`].
    age: VecDeque<u64>,
    under_way: HashSet<u64>,
    /// Chunks that were wrong, and when: a reader that insists is answered at once for a while.
    wrong: HashMap<u64, Instant>,
    /// The chunk behind the last one that was asked for: the next read there is a row.
    expected: u64,
    /// The first thing that went wrong for good.
    fault: Option<FetchError>,
    /// Chunks in the order in which they were first read.
    read: Vec<u64>,
    /// The same chunks, for a quick look.
    was_read: HashSet<u64>,
    /// Chunks in the order of an earlier boot; empty when none was recorded.
    plan: Vec<u64>,
    /// Where the fetching of the plan is.
    planned: usize,
    /// The chunks of the plan that were read.
    used: usize,
}

/// A root that is fetched as it is read.
#[derive(Debug)]
pub struct Blocks {
    source: Source,
    leaves: Leaves,
    tree: Vec<u8>,
    policy: Policy,
    /// Blocks on the local disk, as little believed as those of the network.
    cache: Option<Cache>,
    store: Mutex<Store>,
    changed: Condvar,
    /// Once the root is mounted, a read waits for the server however long it takes.
    patient: AtomicBool,
    fetched: AtomicU64,
}

impl Blocks {
    /// Fetches and verifies the hash tree, if it is not in the cache.
    pub fn open(
        source: Source,
        shape: Shape,
        policy: Policy,
        cache: Option<Cache>,
    ) -> Result<Self, FetchError> {
        let kept = cache.as_ref().and_then(|cache| {
            let tree = cache.read_tree(shape.tree_size() as usize)?;
            let leaves = shape.clone().verify_tree(&tree).ok()?;
            Some((tree, leaves))
        });
        let (tree, leaves, fetched) = match kept {
            Some((tree, leaves)) => (tree, leaves, 0),
            None => {
                let tree = Self::fetch_tree(&source, &shape)?;
                let leaves = shape.verify_tree(&tree)?;
                if let Some(cache) = &cache {
                    cache.write_tree(&tree);
                }
                let fetched = tree.len() as u64;
                (tree, leaves, fetched)
            }
        };
        let fetched = AtomicU64::new(fetched);
        let (store, changed, patient) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Ok(Blocks { source, leaves, tree, policy, cache, store, changed, patient, fetched })
    }

    fn fetch_tree(source: &Source, shape: &Shape) -> Result<Vec<u8>, FetchError> {
        let (data_size, tree_size) = (shape.data_size(), shape.tree_size());
        let mut tree = Vec::with_capacity(tree_size as usize);
        if tree_size > 0 {
            source.stream(data_size, data_size + tree_size, &mut |bytes| {
                tree.extend_from_slice(bytes);
                true
            })?;
        }
        Ok(tree)
    }

    /// Little is kept in memory: what is not there is fetched again, or read from the disk.
    fn keeps_few(&self) -> bool {
        matches!(self.policy, Policy::Lazy | Policy::Disk)
    }

    /// Bytes of data and tree.
    pub fn size(&self) -> u64 {
        self.leaves.shape().data_size() + self.tree.len() as u64
    }

    /// Bytes that have come so far.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// From now on reads wait for the server, however long it takes: a running machine has nothing better to do.
    pub fn be_patient(&self) {
        self.patient.store(true, Ordering::Relaxed);
    }

    /// The first block that was wrong, or why nothing came, in the words of a failure.
    pub fn fault(&self) -> Option<FetchError> {
        self.lock().fault.take()
    }

    /// Waits for the next thing that goes wrong.
    pub fn next_fault(&self) -> FetchError {
        let mut store = self.lock();
        loop {
            match store.fault.take() {
                Some(why) => return why,
                None => store = self.changed.wait(store).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// True when everything is to be here in the end.
    pub fn is_full(&self) -> bool {
        matches!(self.policy, Policy::Full | Policy::Disk)
    }

    /// From now on [`Blocks::prefetch`] has something to do.
    pub fn follow(&self, order: &BootOrder) {
        let (last, per_chunk) = (self.chunks(), CHUNK / BLOCK as u64);
        let mut seen = HashSet::new();
        let plan = order.ranges().iter().flat_map(|&(first, count)| {
            first / per_chunk..(first.saturating_add(count)).div_ceil(per_chunk).min(last)
        });
        self.lock().plan = plan.filter(|chunk| seen.insert(*chunk)).collect();
    }

    /// True when a recorded order is followed.
    pub fn is_ordered(&self) -> bool {
        !self.lock().plan.is_empty()
    }

    /// What was read so far, in its order.
    pub fn order(&self) -> BootOrder {
        let (mut order, per_chunk) = (BootOrder::default(), CHUNK / BLOCK as u64);
        for chunk in &self.lock().read {
            order.push(chunk * per_chunk, per_chunk);
        }
        order
    }

    /// Fetches in the recorded order until all of it is here, something goes wrong, or [`Blocks::forget_order`]. Several threads may do it.
    pub fn prefetch(&self) {
        while let Some((first, count)) = self.next_planned() {
            // Whoever needs what did not come asks for it again, and is told.
            if self.bring(first, count).is_err() {
                return;
            }
        }
    }

    /// Nothing more is fetched before it is asked for: the boot has failed.
    pub fn forget_order(&self) {
        self.lock().plan.clear();
        self.changed.notify_all();
    }

    /// Claims the next chunks of the plan.
    fn next_planned(&self) -> Option<(u64, u64)> {
        let mut store = self.lock();
        loop {
            let first = *store.plan.get(store.planned)?;
            if self.keeps_few() && store.planned >= store.used + WINDOW {
                store = self.changed.wait(store).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let rest = store.plan.get(store.planned..).unwrap_or_default();
            let row = rest.iter().zip(first..).take_while(|(chunk, next)| *chunk == next).count() as u64;
            let count = self.claim(&mut store, first, row.min(AHEAD));
            store.planned += count.max(1) as usize;
            if count > 0 {
                return Some((first, count));
            }
        }
    }

    /// Reads; waits for what is not there yet. `Err` means that it will not come, or is not what was signed.
    pub fn read(&self, from: u64, buffer: &mut [u8]) -> Result<(), Missing> {
        let data_size = self.leaves.shape().data_size();
        let mut done = 0;
        while done < buffer.len() {
            let at = from + done as u64;
            if at >= data_size {
                let tree_at = (at - data_size) as usize;
                let part = self.tree.get(tree_at..tree_at + buffer.len() - done).ok_or(Missing)?;
                buffer[done..].copy_from_slice(part);
                return Ok(());
            }
            self.note(at / CHUNK);
            let chunk = self.chunk(at / CHUNK)?;
            let offset = (at % CHUNK) as usize;
            let part = chunk.get(offset..).filter(|p| !p.is_empty()).ok_or(Missing)?;
            let length = part.len().min(buffer.len() - done);
            buffer[done..done + length].copy_from_slice(&part[..length]);
            done += length;
        }
        Ok(())
    }

    /// Notes that a chunk is read.
    fn note(&self, number: u64) {
        let mut store = self.lock();
        if !store.was_read.insert(number) {
            return;
        }
        store.read.push(number);
        // Under `Lazy` the plan is a window that moves with what is read.
        if store.plan.get(store.used..).is_some_and(|rest| rest.contains(&number)) {
            store.used += 1;
            drop(store);
            self.changed.notify_all();
        }
    }

    fn chunk(&self, number: u64) -> Result<Arc<Vec<u8>>, Missing> {
        let mut store = self.lock();
        loop {
            if let Some(chunk) = store.chunks.get(&number) {
                return Ok(chunk.clone());
            }
            if store.wrong.get(&number).is_some_and(|since| since.elapsed() < WRONG) {
                return Err(Missing);
            }
            if store.under_way.contains(&number) {
                store = self.changed.wait(store).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // What a recorded boot did not read is needed alone.
            let (row, usual) = if store.plan.is_empty() { (AHEAD, USUAL) } else { (USUAL, 1) };
            let ahead = if number == store.expected { row } else { usual };
            let count = self.claim(&mut store, number, ahead);
            store.expected = number + count;
            drop(store);
            self.bring(number, count)?;
            // Where few are kept, others may have pushed it out again.
            store = self.lock();
        }
    }

    /// Claims `number` and as many of the following as are neither there nor under way; at most `most`.
    fn claim(&self, store: &mut Store, number: u64, most: u64) -> u64 {
        let last = self.chunks();
        let free = |n: &u64| *n < last && !store.chunks.contains_key(n) && !store.under_way.contains(n);
        let count = (number..number + most).take_while(free).count() as u64;
        store.under_way.extend(number..number + count);
        count
    }

    fn chunks(&self) -> u64 {
        self.leaves.shape().data_size().div_ceil(CHUNK)
    }

    /// Fetches claimed chunks, keeps those that are right, and wakes those who wait.
    fn bring(&self, first: u64, count: u64) -> Result<(), Missing> {
        let brought = self.bring_claimed(first, count);
        let mut store = self.lock();
        for number in first..first + count {
            store.under_way.remove(&number);
        }
        let done = brought.map_err(|why| {
            if let FetchError::Mismatch(Mismatch::Data { block, .. }) = &why {
                store.wrong.insert(block * BLOCK as u64 / CHUNK, Instant::now());
            }
            store.fault.get_or_insert(why);
            Missing
        });
        drop(store);
        self.changed.notify_all();
        done
    }

    /// Takes from the cache what it has and fetches the rest, in rows.
    fn bring_claimed(&self, first: u64, count: u64) -> Result<(), FetchError> {
        let (mut missing, end) = (first, first + count);
        for chunk in first..end {
            if let Some(bytes) = self.cached(chunk) {
                if missing < chunk {
                    self.fetch_row(missing, chunk - missing)?;
                }
                self.keep(chunk, &bytes);
                missing = chunk + 1;
            }
        }
        if missing < end { self.fetch_row(missing, end - missing) } else { Ok(()) }
    }

    /// A chunk from the cache, verified. A wrong one is as absent.
    fn cached(&self, chunk: u64) -> Option<Vec<u8>> {
        let from = chunk * CHUNK;
        let length = CHUNK.min(self.leaves.shape().data_size().checked_sub(from)?);
        let bytes = self.cache.as_ref()?.read(chunk, length as usize)?;
        self.leaves.verify(from / BLOCK as u64, &bytes).is_ok().then_some(bytes)
    }

    fn fetch_row(&self, first: u64, count: u64) -> Result<(), FetchError> {
        let from = first * CHUNK;
        let to = (from + count * CHUNK).min(self.leaves.shape().data_size());
        let mut tries = 0;
        loop {
            let mut bytes = Vec::with_capacity((to - from) as usize);
            let streamed = self.source.stream(from, to, &mut |part| {
                bytes.extend_from_slice(part);
                true
            });
            self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            match streamed {
                Ok(_) => {
                    self.leaves.verify(first * CHUNK / BLOCK as u64, &bytes)?;
                    if let Some(cache) = &self.cache {
                        (first..).zip(bytes.chunks(CHUNK as usize)).for_each(|(n, c)| cache.write(n, c));
                    }
                    self.keep(first, &bytes);
                    return Ok(());
                }
                // The stream has tried several times. A running machine tries for ever.
                Err(FetchError::Broken { .. }) if self.patient.load(Ordering::Relaxed) => {
                    tries += 1;
                    std::thread::sleep(self.source.pause * (1 << tries.min(4)));
                }
                Err(why) => return Err(why),
            }
        }
    }

    fn keep(&self, first: u64, bytes: &[u8]) {
        let mut store = self.lock();
        for (number, chunk) in (first..).zip(bytes.chunks(CHUNK as usize)) {
            store.chunks.insert(number, Arc::new(chunk.to_vec()));
            if self.keeps_few() {
                store.age.push_back(number);
                if store.age.len() > FEW
                    && let Some(old) = store.age.pop_front()
                {
                    store.chunks.remove(&old);
                }
            }
        }
    }

    /// Fetches what is still missing. Returns false when it can't be had: then the fault says why.
    pub fn fetch_rest(&self, pause: Duration) -> bool {
        for number in 0..self.chunks() {
            let mut store = self.lock();
            let count = self.claim(&mut store, number, BACKGROUND);
            drop(store);
            if count > 0 && self.bring(number, count).is_err() {
                return false;
            }
            if count > 0 {
                std::thread::sleep(pause);
            }
        }
        if self.keeps_few() {
            return true;
        }
        // What others had under way may have failed.
        (0..self.chunks()).all(|number| self.chunk(number).is_ok())
    }

    /// Waits until the disk has what was kept there.
    pub fn sync(&self) {
        if let Some(cache) = &self.cache {
            cache.sync();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
