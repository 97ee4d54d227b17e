//! Names for what a client made. They begin at a random number: one client's names mean nothing to another.

use std::collections::BTreeMap;

use crate::{
    device::{DeviceError, Outcome, Status},
    wire::message::Handle,
};

/// A table of one kind of things.
#[derive(Debug)]
pub struct Handles<T> {
    what: &'static str,
    next: Handle,
    limit: usize,
    table: BTreeMap<Handle, T>,
}

impl<T> Handles<T> {
    /// An empty table that takes at most `limit` entries.
    pub fn new(what: &'static str, salt: u64, limit: usize) -> Self {
        // Never 0, which is the default stream, and far from the end.
        Self { what, next: (salt >> 1) | 1 << 32, limit, table: BTreeMap::new() }
    }

    /// Refuses if the table is full.
    pub fn check_room(&self) -> Outcome<()> {
        if self.table.len() < self.limit {
            return Ok(());
        }
        let message = format!("{} {}s are in use, no more are allowed", self.limit, self.what);
        Err(DeviceError::new(Status::OutOfMemory, message))
    }

    /// Names a thing.
    pub fn insert(&mut self, thing: T) -> Handle {
        let handle = self.next;
        self.next += 1;
        self.table.insert(handle, thing);
        handle
    }

    fn unknown(&self, handle: Handle) -> DeviceError {
        DeviceError::new(Status::InvalidHandle, format!("{handle:#x} is no {} of this client", self.what))
    }

    /// Looks a thing up.
    pub fn get(&self, handle: Handle) -> Outcome<&T> {
        self.table.get(&handle).ok_or_else(|| self.unknown(handle))
    }

    /// Takes a thing out.
    pub fn remove(&mut self, handle: Handle) -> Outcome<T> {
        self.table.remove(&handle).ok_or_else(|| self.unknown(handle))
    }
}
