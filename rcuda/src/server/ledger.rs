//! Bytes of device memory that each worker uses, in a file without a name that all of them share.
//!
//! ```text
//! slot = { alive: u64, used: [u64; DEVICES] }     one slot per worker
//! ```
//!
//! A worker changes its own slot under the file's lock. The listener clears a slot when its worker has ended,
//! however it ended.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Devices that a slot has room for.
pub const DEVICES: usize = 16;
/// Most workers at a time.
pub const SLOTS: usize = 64;
const WORDS: usize = 1 + DEVICES;
const SLOT_BYTES: u64 = (WORDS * 8) as u64;

/// The shared file, opened by one process.
#[derive(Debug)]
pub struct Ledger {
    file: File,
}

/// Sums over all slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Workers alive.
    pub clients: u32,
    /// Bytes that they use of each device.
    pub used: [u64; DEVICES],
}

impl Ledger {
    /// A new, empty ledger.
    pub fn create() -> io::Result<Self> {
        let fd = memfd_create(c"rcuda-ledger", MFdFlags::MFD_CLOEXEC)?;
        let file = File::from(fd);
        file.set_len(SLOTS as u64 * SLOT_BYTES)?;
        Ok(Self { file })
    }

    /// Opens a ledger that was inherited. A lock belongs to an opening of a file, so this opens it anew.
    pub fn open(inherited: &impl AsFd) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", inherited.as_fd().as_raw_fd());
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(path)? })
    }

    /// A descriptor to pass on.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    fn read(&self) -> io::Result<[[u64; WORDS]; SLOTS]> {
        let mut bytes = vec![0; SLOTS * WORDS * 8];
        self.file.read_exact_at(&mut bytes, 0)?;
        let mut slots = [[0; WORDS]; SLOTS];
        for (word, raw) in slots.as_flattened_mut().iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*raw);
        }
        Ok(slots)
    }

    fn write(&self, slot: usize, word: usize, value: u64) -> io::Result<()> {
        self.file.write_all_at(&value.to_le_bytes(), slot as u64 * SLOT_BYTES + word as u64 * 8)
    }

    /// Takes a free slot; `None` if `limit` are taken.
    pub fn enter(&self, limit: usize) -> io::Result<Option<usize>> {
        self.file.lock()?;
        let free = self.read().and_then(|slots| {
            let free = slots.iter().take(limit).position(|slot| slot[0] == 0);
            free.map(|slot| self.write(slot, 0, 1).map(|()| slot)).transpose()
        });
        self.file.unlock()?;
        free
    }

    /// Gives a slot back, with all that it used.
    pub fn leave(&self, slot: usize) -> io::Result<()> {
        self.file.write_all_at(&[0; WORDS * 8], slot as u64 * SLOT_BYTES)
    }

    /// Sums.
    pub fn totals(&self) -> io::Result<Totals> {
        let mut totals = Totals::default();
        for slot in self.read()?.iter().filter(|slot| slot[0] != 0) {
            totals.clients += 1;
            for (sum, used) in totals.used.iter_mut().zip(&slot[1..]) {
                *sum = sum.saturating_add(*used);
            }
        }
        Ok(totals)
    }

    /// Sets what a worker uses of a device, if all workers together then use at most `total`; false if not.
    pub fn set_used(&self, slot: usize, device: usize, used: u64, total: u64) -> io::Result<bool> {
        self.file.lock()?;
        let done = self.read().and_then(|slots| {
            let before = slots[slot % SLOTS][1 + device % DEVICES];
            let others: u64 =
                slots.iter().map(|s| s[1 + device % DEVICES]).fold(0, u64::saturating_add) - before;
            let fits = used <= before || others.saturating_add(used) <= total;
            if fits {
                self.write(slot % SLOTS, 1 + device % DEVICES, used)?;
            }
            Ok(fits)
        });
        self.file.unlock()?;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_what_the_device_has() -> io::Result<()> {
        let server = Ledger::create()?;
        assert_eq!(server.enter(2)?, Some(0));
        assert_eq!(server.enter(2)?, Some(1));
        assert_eq!(server.enter(2)?, None);
        let worker = Ledger::open(&server.descriptor()?)?;
        assert!(server.set_used(0, 0, 60, 100)?);
        assert!(!worker.set_used(1, 0, 41, 100)?);
        assert!(worker.set_used(1, 0, 40, 100)?);
        assert_eq!(server.totals()?.used[0], 100);
        // Giving back is always allowed, even when the device shrank meanwhile.
        assert!(worker.set_used(1, 0, 30, 10)?);
        server.leave(0)?;
        assert_eq!((server.totals()?.clients, server.totals()?.used[0]), (1, 30));
        assert_eq!(server.enter(2)?, Some(0));
        Ok(())
    }
}
