//! The root, block by block, as it is needed: verified chunks that come over HTTP when somebody reads them.
//!
//! ```text
//! kernel reads ──> nbd ──> Blocks::read ── kept? ──yes──────────────────────> bytes
//!                              │ no: one asker fetches, the others wait          ^
//!                              └─> server or peer, chunks ─── verified ── kept ──┘
//! Blocks::prefetch (in the recorded order, from the first moment) ───────────────┤
//! Blocks::give (to peers, what is here or falls to this machine) ────────────────┤
//! Blocks::fetch_rest (policy full, once the machine is up) ──────────────────────┘
//! ```
//!
//! What the kernel reads is noted in its order until the machine is up: recorded once in the lab and signed with the manifest, the order
//! lets later boots fetch what they will need before they ask, and little else.
//!
//! The hash tree comes first, whole: it is small, and every block is checked against it before the kernel sees it. dm-verity
//! checks again; what is gained here is that a wrong block has a name, and that another try may bring the right one.

mod ahead;
mod bring;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    disk::Cache,
    peers::{Swarm, circle::Way},
    source::{FetchError, Source},
    verity::{BLOCK, Leaves, Shape},
};

/// Bytes that are fetched and kept together.
pub const CHUNK: u64 = 32 * BLOCK as u64;
/// Chunks fetched by one request: a request costs more than a few chunks that nobody wants.
const USUAL: u64 = 4;
/// Chunks fetched by one request when reads follow one another.
const AHEAD: u64 = 16;
/// Chunks kept in memory under [`Policy::Lazy`].
const FEW: usize = 64;
/// How long a wrong chunk is not asked for again.
const WRONG: Duration = Duration::from_secs(10);

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
    /// Chunks that are being fetched, and where from.
    under_way: HashMap<u64, Way>,
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
    /// Where the fetching of the plan is, and how far it may go before the machine is up.
    planned: usize,
    until_up: usize,
    /// How many chunks had been read when the machine was up.
    read_until_up: Option<usize>,
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
    /// Machines around that hold the same root.
    peers: Option<Arc<Swarm>>,
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
        Ok(Blocks { source, leaves, tree, policy, cache, store, changed, patient, fetched, peers: None })
    }

    /// The same with peers: asked first, and given what is here.
    pub fn among(self, swarm: Arc<Swarm>) -> Arc<Self> {
        let blocks = Arc::new(Blocks { peers: Some(swarm.clone()), ..self });
        swarm.start(&blocks);
        blocks
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

    /// Bytes of data.
    pub fn data_size(&self) -> u64 {
        self.leaves.shape().data_size()
    }

    /// Bytes that have come so far, from the server and from peers.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// How much of that came from where, in words; nothing where there are no peers.
    pub fn shares(&self) -> String {
        let Some(peers) = &self.peers else { return String::new() };
        let (all, taken) = (self.fetched(), peers.taken());
        let server = all.saturating_sub(taken) >> 20;
        format!(", {server} MiB from the server, {} MiB from {} peers", taken >> 20, peers.size())
    }

    /// Peers that may be asked now.
    pub fn among_how_many(&self) -> usize {
        self.peers.as_ref().map_or(0, |peers| peers.size())
    }

    /// Bytes that peers have got from here.
    pub fn given(&self) -> u64 {
        self.peers.as_ref().map_or(0, |peers| peers.given())
    }

    /// Bytes that came from peers.
    pub fn from_peers(&self) -> u64 {
        self.peers.as_ref().map_or(0, |peers| peers.taken())
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

    /// The machine is up: what was read later at the recorded boot may come, too.
    pub fn note_up(&self) {
        let mut store = self.lock();
        let read = store.read.len();
        store.read_until_up.get_or_insert(read);
        store.until_up = usize::MAX;
        drop(store);
        self.changed.notify_all();
    }

    /// True when everything is to be here in the end.
    pub fn is_full(&self) -> bool {
        matches!(self.policy, Policy::Full | Policy::Disk)
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
            if store.under_way.contains_key(&number) {
                store = self.changed.wait(store).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // What a recorded boot did not read is needed alone.
            let (row, usual) = if store.plan.is_empty() { (AHEAD, USUAL) } else { (USUAL, 1) };
            let ahead = if number == store.expected { row } else { usual };
            let claim = self.claim(&mut store, number, ahead);
            store.expected = number + claim.count;
            drop(store);
            self.bring(claim)?;
            // Where few are kept, others may have pushed it out again.
            store = self.lock();
        }
    }

    /// Chunks of the root; the last one may be short.
    pub fn chunks(&self) -> u64 {
        self.data_size().div_ceil(CHUNK)
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
