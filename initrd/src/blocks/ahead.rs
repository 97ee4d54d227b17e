//! What is fetched before anybody asks for it: the recorded order of an earlier boot, this machine's part of it, and in the end the rest.

use std::{collections::HashSet, sync::PoisonError, time::Duration};

use labshift_model::boot_order::BootOrder;

use super::{AHEAD, Blocks, CHUNK, FEW, bring::Claim};
use crate::{peers::circle::Way, verity::BLOCK};

/// Chunks that may be fetched in the recorded order before they are read, under [`super::Policy::Lazy`].
const WINDOW: usize = FEW / 2;
/// Chunks fetched by one request in the background.
const BACKGROUND: u64 = 16;

impl Blocks {
    /// From now on [`Blocks::prefetch`] has something to do.
    pub fn follow(&self, order: &BootOrder) {
        let (last, per_chunk) = (self.chunks(), CHUNK / BLOCK as u64);
        let mut seen = HashSet::new();
        let mut chunks = |ranges: &[(u64, u64)]| -> Vec<u64> {
            let chunks = ranges.iter().flat_map(|&(first, count)| {
                first / per_chunk..(first.saturating_add(count)).div_ceil(per_chunk).min(last)
            });
            chunks.filter(|chunk| seen.insert(*chunk)).collect()
        };
        let (early, late) = order.ranges().split_at(order.until_up());
        let (mut plan, late) = (chunks(early), chunks(late));
        let mut store = self.lock();
        store.until_up = plan.len();
        plan.extend(late);
        store.plan = plan;
    }

    /// True when a recorded order is followed.
    pub fn is_ordered(&self) -> bool {
        !self.lock().plan.is_empty()
    }

    /// What was read so far, in its order.
    pub fn order(&self) -> BootOrder {
        let (mut order, per_chunk) = (BootOrder::default(), CHUNK / BLOCK as u64);
        let store = self.lock();
        for (i, chunk) in store.read.iter().enumerate() {
            if store.read_until_up == Some(i) {
                order.note_up();
            }
            order.push(chunk * per_chunk, per_chunk);
        }
        order
    }

    /// Fetches in the recorded order until all of it is here, something goes wrong, or [`Blocks::abandon`]. Several threads may do it.
    pub fn prefetch(&self) {
        while let Some(claim) = self.next_planned() {
            // Whoever needs what did not come asks for it again, and is told.
            if self.bring(claim).is_err() {
                return;
            }
        }
    }

    /// Fetches those chunks of the recorded order that fall to this machine: its peers will ask for them.
    pub fn prefetch_own(&self) {
        let Some(peers) = self.peers.as_ref().filter(|_| !self.keeps_few()) else { return };
        let mut at = 0;
        loop {
            let mut store = self.lock();
            let Some(&first) = store.plan.get(at) else { return };
            let rest = store.plan.get(at..).unwrap_or_default();
            let row = rest.iter().zip(first..).take_while(|(chunk, next)| *chunk == next).count() as u64;
            let (way, count) = peers.way(first, row);
            at += count.max(1) as usize;
            if way == Way::Server {
                let claim = self.claim_by(&mut store, first, count, way);
                drop(store);
                if self.bring(claim).is_err() {
                    return;
                }
            }
        }
    }

    /// Nothing more is fetched before it is asked for, and nothing is given: the boot has failed.
    pub fn abandon(&self) {
        self.forget_plan();
        if let Some(peers) = &self.peers {
            peers.close();
        }
    }

    fn forget_plan(&self) {
        self.lock().plan.clear();
        self.changed.notify_all();
    }

    /// Claims the next chunks of the plan.
    fn next_planned(&self) -> Option<Claim> {
        let mut store = self.lock();
        loop {
            let first = *store.plan.get(store.planned)?;
            let is_too_far = self.keeps_few() && store.planned >= store.used + WINDOW;
            if is_too_far || store.planned >= store.until_up {
                store = self.changed.wait(store).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let rest = store.plan.get(store.planned..).unwrap_or_default();
            let row = rest.iter().zip(first..).take_while(|(chunk, next)| *chunk == next).count();
            let row = row.min(store.until_up - store.planned) as u64;
            let claim = self.claim(&mut store, first, row.min(AHEAD));
            store.planned += claim.count.max(1) as usize;
            if claim.count > 0 {
                return Some(claim);
            }
        }
    }

    /// Fetches what is still missing. Returns false when it can't be had: then the fault says why.
    pub fn fetch_rest(&self, pause: Duration) -> bool {
        // Whoever still waits to fetch in the recorded order is done.
        self.forget_plan();
        // Machines of one room begin at different places: what one has fetched, others take from it.
        let begin = self.peers.as_ref().map_or(0, |peers| peers.begin(self.chunks()));
        for number in (begin..self.chunks()).chain(0..begin) {
            let mut store = self.lock();
            let claim = self.claim(&mut store, number, BACKGROUND);
            drop(store);
            if claim.count > 0 {
                if self.bring(claim).is_err() {
                    return false;
                }
                std::thread::sleep(pause);
            }
        }
        if self.keeps_few() {
            return true;
        }
        // What others had under way may have failed.
        (0..self.chunks()).all(|number| self.chunk(number).is_ok())
    }
}
