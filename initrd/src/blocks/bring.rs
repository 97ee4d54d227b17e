//! How a chunk comes: from the cache, from a peer, from the server. One thread claims it and brings it, the others wait. And how it goes
//! to a peer that asks for it.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Blocks, CHUNK, FEW, Missing, Policy, Store};
use crate::{
    disk::Cache,
    peers::circle::{Fault, GROUP, Held, Way},
    source::FetchError,
    verity::{BLOCK, Mismatch},
};

/// How long another machine waits for a chunk that is under way to this one.
const FOR_OTHERS: Duration = Duration::from_secs(4);

/// Chunks that one thread fetches now: nobody else does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub first: u64,
    pub count: u64,
    pub way: Way,
}

impl Blocks {
    /// Claims `number` and as many of the following as are neither there nor under way; at most `most`, and with peers around no more
    /// than one of them brings.
    pub(super) fn claim(&self, store: &mut Store, number: u64, most: u64) -> Claim {
        let most = most.min(self.chunks().saturating_sub(number));
        let (way, most) = self.peers.as_ref().map_or((Way::Server, most), |peers| peers.way(number, most));
        self.claim_by(store, number, most, way)
    }

    pub(super) fn claim_by(&self, store: &mut Store, number: u64, most: u64, way: Way) -> Claim {
        let last = self.chunks();
        let free = |n: &u64| *n < last && !store.chunks.contains_key(n) && !store.under_way.contains_key(n);
        let count = (number..number.saturating_add(most)).take_while(free).count() as u64;
        store.under_way.extend((number..number + count).map(|n| (n, way)));
        Claim { first: number, count, way }
    }

    /// Fetches claimed chunks, keeps those that are right, and wakes those who wait. What went wrong is noted for all to see.
    pub(super) fn bring(&self, claim: Claim) -> Result<(), Missing> {
        self.bring_quietly(claim).map_err(|why| {
            self.lock().fault.get_or_insert(why);
            self.changed.notify_all();
            Missing
        })
    }

    fn bring_quietly(&self, claim: Claim) -> Result<(), FetchError> {
        let brought = self.bring_claimed(claim);
        let mut store = self.lock();
        for number in claim.first..claim.first + claim.count {
            store.under_way.remove(&number);
        }
        if let Err(FetchError::Mismatch(Mismatch::Data { block, .. })) = &brought {
            store.wrong.insert(block * BLOCK as u64 / CHUNK, Instant::now());
        }
        drop(store);
        self.changed.notify_all();
        brought
    }

    /// Takes from the cache what it has and fetches the rest, in rows.
    fn bring_claimed(&self, Claim { first, count, way }: Claim) -> Result<(), FetchError> {
        let (mut missing, end) = (first, first + count);
        for chunk in first..end {
            if let Some(bytes) = self.cached(chunk) {
                if missing < chunk {
                    self.bring_row(missing, chunk - missing, way)?;
                }
                self.keep(chunk, bytes);
                missing = chunk + 1;
            }
        }
        if missing < end { self.bring_row(missing, end - missing, way) } else { Ok(()) }
    }

    /// Fetches a row from the peer that was chosen; from the server when there is none or it fails.
    fn bring_row(&self, first: u64, count: u64, way: Way) -> Result<(), FetchError> {
        let (Way::Peer(peer), Some(peers)) = (way, &self.peers) else { return self.fetch_row(first, count) };
        let (from, to) = self.bytes_of(first, count);
        let fault = match peers.fetch(peer, from, to) {
            Ok(bytes) if self.leaves.verify(from / BLOCK as u64, &bytes).is_ok() => {
                self.fetched.fetch_add(to - from, Ordering::Relaxed);
                peers.brought(to - from);
                for (number, chunk) in (first..).zip(bytes.chunks(CHUNK as usize)) {
                    self.keep_verified(number, chunk.to_vec());
                }
                return Ok(());
            }
            Ok(_) => Fault::Wrong,
            Err(fault) => fault,
        };
        peers.failed(peer, fault);
        // Others may wait for it now: it comes from the server.
        self.lock().under_way.extend((first..first + count).map(|n| (n, Way::Server)));
        self.fetch_row(first, count)
    }

    fn bytes_of(&self, first: u64, count: u64) -> (u64, u64) {
        (first * CHUNK, ((first + count) * CHUNK).min(self.data_size()))
    }

    /// A chunk from the cache, verified. A wrong one is as absent.
    fn cached(&self, chunk: u64) -> Option<Vec<u8>> {
        let from = chunk * CHUNK;
        let length = CHUNK.min(self.leaves.shape().data_size().checked_sub(from)?);
        let bytes = self.cache.as_ref()?.read(chunk, length as usize)?;
        self.leaves.verify(from / BLOCK as u64, &bytes).is_ok().then_some(bytes)
    }

    /// Fetches a row from the server. Each chunk is there for its readers as soon as it is whole and right.
    fn fetch_row(&self, first: u64, count: u64) -> Result<(), FetchError> {
        let (_, to) = self.bytes_of(first, count);
        let mut row = Row { blocks: self, number: first, bytes: vec![], wrong: None };
        let mut tries = 0;
        loop {
            let streamed = self.source.stream(row.at(), to, &mut |part| row.take(part));
            if let Some(wrong) = row.wrong {
                return Err(wrong.into());
            }
            match streamed {
                Ok(_) => return Ok(()),
                // The stream has tried several times. A running machine tries for ever.
                Err(FetchError::Broken { .. }) if self.patient.load(Ordering::Relaxed) => {
                    tries += 1;
                    std::thread::sleep(self.source.pause * (1 << tries.min(4)));
                }
                Err(why) => return Err(why),
            }
        }
    }

    fn keep_verified(&self, number: u64, bytes: Vec<u8>) {
        if let Some(cache) = &self.cache {
            cache.write(number, &bytes);
        }
        self.keep(number, bytes);
    }

    fn keep(&self, number: u64, bytes: Vec<u8>) {
        let mut store = self.lock();
        store.chunks.insert(number, Arc::new(bytes));
        if self.keeps_few() {
            store.age.push_back(number);
            if store.age.len() > FEW
                && let Some(old) = store.age.pop_front()
            {
                store.chunks.remove(&old);
            }
        }
        drop(store);
        self.changed.notify_all();
    }

    /// Chunks for another machine, all of one group: those that are here, and where much is kept those that fall to this machine.
    /// `None` when it has to go elsewhere.
    pub fn give(&self, first: u64, count: u64) -> Option<Vec<Arc<Vec<u8>>>> {
        (first..first + count).map(|number| self.give_chunk(number, first + count - number)).collect()
    }

    fn give_chunk(&self, number: u64, wanted: u64) -> Option<Arc<Vec<u8>>> {
        let begin = Instant::now();
        let mut store = self.lock();
        loop {
            if let Some(chunk) = store.chunks.get(&number) {
                return Some(chunk.clone());
            }
            match store.under_way.get(&number) {
                // It may be waiting for us.
                Some(Way::Peer(_)) => return None,
                Some(Way::Server) => {
                    let left = FOR_OTHERS.checked_sub(begin.elapsed())?;
                    let waited = self.changed.wait_timeout(store, left);
                    store = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None if self.policy == Policy::Lazy || begin.elapsed() >= FOR_OTHERS => return None,
                None => {
                    let claim = self.claim_by(&mut store, number, wanted.min(GROUP), Way::Server);
                    drop(store);
                    // The asker is told no, and goes to the server itself.
                    self.bring_quietly(claim).ok()?;
                    store = self.lock();
                }
            }
        }
    }

    /// What peers may have at once.
    pub fn held(&self) -> Held {
        let on_disk = self.cache.as_ref().map(Cache::written).unwrap_or_default();
        Held::of(self.chunks(), self.lock().chunks.keys().copied().chain(on_disk))
    }
}

/// A row of chunks that is coming.
struct Row<'a> {
    blocks: &'a Blocks,
    /// The chunk that comes now, and what has come of it.
    number: u64,
    bytes: Vec<u8>,
    wrong: Option<Mismatch>,
}

impl Row<'_> {
    /// Where the next byte belongs.
    fn at(&self) -> u64 {
        self.number * CHUNK + self.bytes.len() as u64
    }

    /// Takes what has come; false when it is not what was signed.
    fn take(&mut self, mut part: &[u8]) -> bool {
        self.blocks.fetched.fetch_add(part.len() as u64, Ordering::Relaxed);
        while !part.is_empty() {
            let (from, to) = self.blocks.bytes_of(self.number, 1);
            let size = (to - from) as usize;
            self.bytes.reserve_exact(size - self.bytes.len());
            let (now, later) = part.split_at(part.len().min(size - self.bytes.len()));
            self.bytes.extend_from_slice(now);
            part = later;
            if self.bytes.len() == size {
                let chunk = std::mem::take(&mut self.bytes);
                if let Err(wrong) = self.blocks.leaves.verify(from / BLOCK as u64, &chunk) {
                    self.wrong = Some(wrong);
                    return false;
                }
                self.blocks.keep_verified(self.number, chunk);
                self.number += 1;
            }
        }
        true
    }
}
