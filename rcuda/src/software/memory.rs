//! Device memory: allocations at addresses of their own, and nothing in between.

use std::cell::Cell;

use thiserror::Error;

/// Allocations start at multiples of this, as on a GPU.
const ALIGNMENT: u64 = 512;
/// Bytes between two allocations that belong to nobody: an access just beyond an end is caught.
const GAP: u64 = 4096;
/// Most allocations at a time.
pub const MAX_ALLOCATIONS: usize = 65_536;
/// Lowest address: clear of the shared and local windows, and of anything that looks like a small number.
pub const LOWEST: u64 = 1 << 40;
/// Addresses end here.
const END: u64 = 1 << 47;

/// An access outside of what is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{bytes} bytes at {address:#x} are not allocated")]
pub struct OutOfBounds {
    /// First byte.
    pub address: u64,
    /// How many.
    pub bytes: u64,
}

#[derive(Debug)]
struct Allocation {
    base: u64,
    bytes: Vec<u8>,
}

/// All allocations of a device.
#[derive(Debug)]
pub struct Memory {
    first: u64,
    /// In order of address.
    allocations: Vec<Allocation>,
    used: u64,
    /// Where the last access was: the next one is often there too.
    last: Cell<usize>,
}

impl Memory {
    /// Empty; `salt` moves all addresses, so that those of one client mean nothing to another.
    pub fn new(salt: u64) -> Self {
        let first = LOWEST + (salt & 0xf_ffff) * (1 << 26);
        Self { first, allocations: Vec::new(), used: 0, last: Cell::new(0) }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Allocates zeroed memory; `None` if there is no room in the address space or `bytes` is 0.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        if bytes == 0 || bytes > END || self.allocations.len() >= MAX_ALLOCATIONS {
            return None;
        }
        let mut base = self.first;
        let mut place = self.allocations.len();
        for (index, allocation) in self.allocations.iter().enumerate() {
            if allocation.base.saturating_sub(base) >= bytes + GAP {
                place = index;
                break;
            }
            base = (allocation.base + allocation.bytes.len() as u64 + GAP).next_multiple_of(ALIGNMENT);
        }
        if base + bytes > END {
            return None;
        }
        // The caller has checked the size against its limit; pages are only taken when they are touched.
        let allocation = Allocation { base, bytes: vec![0; usize::try_from(bytes).ok()?] };
        self.allocations.insert(place, allocation);
        self.used += bytes;
        Some(base)
    }

    /// Frees the allocation that starts here; its size, or `None` if none does.
    pub fn free(&mut self, address: u64) -> Option<u64> {
        let place = self.allocations.binary_search_by_key(&address, |a| a.base).ok()?;
        let bytes = self.allocations.remove(place).bytes.len() as u64;
        self.used -= bytes;
        Some(bytes)
    }

    fn find(&self, address: u64, bytes: u64) -> Result<(usize, usize), OutOfBounds> {
        let holds = |index: usize| {
            let allocation = self.allocations.get(index)?;
            let offset = address.checked_sub(allocation.base)?;
            let end = offset.checked_add(bytes)?;
            (end <= allocation.bytes.len() as u64).then_some((index, offset as usize))
        };
        if let Some(found) = holds(self.last.get()) {
            return Ok(found);
        }
        let after = self.allocations.partition_point(|a| a.base <= address);
        let found = after.checked_sub(1).and_then(holds).ok_or(OutOfBounds { address, bytes })?;
        self.last.set(found.0);
        Ok(found)
    }

    /// Looks at bytes that lie in one allocation.
    pub fn bytes(&self, address: u64, bytes: u64) -> Result<&[u8], OutOfBounds> {
        let (index, offset) = self.find(address, bytes)?;
        Ok(&self.allocations[index].bytes[offset..offset + bytes as usize])
    }

    /// Changes bytes that lie in one allocation.
    pub fn bytes_mut(&mut self, address: u64, bytes: u64) -> Result<&mut [u8], OutOfBounds> {
        let (index, offset) = self.find(address, bytes)?;
        Ok(&mut self.allocations[index].bytes[offset..offset + bytes as usize])
    }

    /// Copies between two ranges.
    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), OutOfBounds> {
        let (source, start) = self.find(from, bytes)?;
        let (target, place) = self.find(to, bytes)?;
        let length = bytes as usize;
        if source == target {
            self.allocations[source].bytes.copy_within(start..start + length, place);
        } else if let Ok([source, target]) = self.allocations.get_disjoint_mut([source, target]) {
            target.bytes[place..place + length].copy_from_slice(&source.bytes[start..start + length]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_access_stays_in_one_allocation() {
        let mut memory = Memory::new(3);
        let (Some(a), Some(b)) = (memory.allocate(100), memory.allocate(1000)) else { panic!("no room") };
        assert_eq!(a % ALIGNMENT, 0);
        assert!(b >= a + 100 + GAP);
        assert_eq!(memory.used(), 1100);
        for (address, bytes, good) in [
            (a, 100, true),
            (a, 101, false),
            (a + 99, 1, true),
            (a + 100, 0, true),
            (a + 100, 1, false),
            (a - 1, 1, false),
            (a, b - a + 1, false),
            (b + 999, 1, true),
            (u64::MAX, 1, false),
            (u64::MAX, u64::MAX, false),
            (0, 1, false),
        ] {
            assert_eq!(memory.bytes(address, bytes).is_ok(), good, "{address:#x} {bytes}");
            assert_eq!(memory.bytes_mut(address, bytes).is_ok(), good);
        }
        assert_eq!(memory.free(a + 1), None);
        assert_eq!(memory.free(a), Some(100));
        assert_eq!(memory.free(a), None);
        assert!(memory.bytes(a, 1).is_err());
        assert!(memory.bytes(b, 1000).is_ok());
    }

    #[test]
    fn gaps_are_filled_and_memory_is_zeroed() {
        let mut memory = Memory::new(0);
        let first: Vec<_> = (0..3).filter_map(|_| memory.allocate(512)).collect();
        memory.bytes_mut(first[1], 512).into_iter().for_each(|b| b.fill(7));
        memory.free(first[1]);
        assert_eq!(memory.allocate(512), Some(first[1]));
        assert!(memory.bytes(first[1], 512).is_ok_and(|b| b.iter().all(|v| *v == 0)));
        assert_eq!(memory.allocate(0), None);
        assert_eq!(memory.allocate(u64::MAX), None);
        assert_eq!(memory.allocate(END), None);
    }

    #[test]
    fn copies_inside_and_between() -> Result<(), OutOfBounds> {
        let mut memory = Memory::new(0);
        let (Some(a), Some(b)) = (memory.allocate(8), memory.allocate(8)) else { panic!("no room") };
        memory.bytes_mut(a, 8)?.copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        memory.copy(b + 4, a, 4)?;
        memory.copy(a + 1, a, 4)?;
        assert_eq!(memory.bytes(b, 8)?, [0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(memory.bytes(a, 8)?, [1, 1, 2, 3, 4, 6, 7, 8]);
        assert!(memory.copy(b, a + 1, 8).is_err());
        Ok(())
    }
}
