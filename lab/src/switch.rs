//! A learning Ethernet switch in user space.
//!
//! ```text
//!   tap (server) --reader--+                        +--queue--writer-- tap
//!   QEMU stream  --reader--+--> learn, look up, --> +--queue--writer-- QEMU stream
//!                          |    flood if unknown    +--queue--button-- (machine is off)
//! ```
//!
//! Each port has a reader and a bounded queue with a writer, so that a machine that does not listen costs its own
//! frames only, as on a real switch. Faults of a cable (cut, loss, delay) act where frames leave for that port; its rate holds in both directions.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use labshift_model::MacAddr;

use crate::{frame, pace::Pace};

/// Frames that wait for a port; about what a small switch holds.
const QUEUE: usize = 2048;

/// Addresses that are learnt; a flood of made-up ones must not eat the memory.
const ADDRESSES: usize = 8192;

/// Number of a port.
pub type PortId = usize;

/// A frame and when it came.
pub struct Queued {
    /// The frame, without checksum.
    pub bytes: Arc<[u8]>,
    /// Arrival at the switch.
    pub at: Instant,
}

/// One cable.
#[derive(Default)]
pub struct Cable {
    cut: AtomicBool,
    loss_per_mille: AtomicU32,
    delay_us: AtomicU64,
    dice: AtomicU64,
    /// Into the switch, and out of it.
    paces: [Mutex<Pace>; 2],
}

impl Cable {
    /// Cuts or mends it.
    pub fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// Whether it is cut.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Loses so many of a thousand frames in each direction, and delays the rest.
    pub fn set_faults(&self, loss_per_mille: u32, delay: Duration) {
        self.loss_per_mille.store(loss_per_mille, Ordering::Relaxed);
        self.delay_us.store(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Carries so many megabits per second in each direction from now on; 0 is as fast as it goes.
    pub fn set_rate(&self, mbit: u32) {
        for pace in &self.paces {
            *pace.lock().unwrap_or_else(PoisonError::into_inner) = Pace::of_mbit(mbit);
        }
    }

    fn pace(&self, direction: usize, bytes: usize) {
        let mut pace = self.paces[direction].lock().unwrap_or_else(PoisonError::into_inner);
        let wait = pace.wait_after(bytes, Instant::now());
        drop(pace);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }

    /// A frame leaves the switch by this cable: takes as long as it may.
    pub fn leave(&self, bytes: usize) {
        self.pace(1, bytes);
    }

    /// How long a frame is under way.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.load(Ordering::Relaxed))
    }

    /// Whether the next frame gets through. The dice are a fixed sequence: a run can be repeated.
    fn passes(&self) -> bool {
        if self.cut.load(Ordering::Relaxed) {
            return false;
        }
        let loss = u64::from(self.loss_per_mille.load(Ordering::Relaxed));
        if loss == 0 {
            return true;
        }
        let n = self.dice.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (n >> 33) % 1000 >= loss
    }
}

/// The switch.
#[derive(Default)]
pub struct Switch {
    ports: Mutex<Vec<(SyncSender<Queued>, Arc<Cable>)>>,
    known: Mutex<HashMap<MacAddr, PortId>>,
}

impl Switch {
    /// Adds a port; frames for it come out of the receiver.
    pub fn plug(&self) -> (PortId, Receiver<Queued>, Arc<Cable>) {
        let (send, receive) = sync_channel(QUEUE);
        let cable = Arc::new(Cable::default());
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push((send, cable.clone()));
        (ports.len() - 1, receive, cable)
    }

    /// Forgets what is behind a port, as when its link goes down: a guest may come up behind another one.
    pub fn forget(&self, port: PortId) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, behind| *behind != port);
    }

    /// A frame came in on a port.
    pub fn forward(&self, from: PortId, bytes: &[u8]) {
        let Some((destination, source)) = frame::addresses(bytes) else { return };
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(cable) = ports.get(from).map(|(_, cable)| cable.clone()) else { return };
        drop(ports);
        if !cable.passes() {
            return;
        }
        // Who sends faster waits here, as a card waits for its cable.
        cable.pace(0, bytes.len());
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !frame::is_group(source) && (known.len() < ADDRESSES || known.contains_key(&source)) {
            known.insert(source, from);
        }
        let to = if frame::is_group(destination) { None } else { known.get(&destination).copied() };
        drop(known);
        let queued: Arc<[u8]> = bytes.into();
        for (port, (queue, cable)) in ports.iter().enumerate() {
            let meant = to.is_none_or(|to| to == port);
            if port != from && meant && cable.passes() {
                // A full queue drops the frame, as a switch does.
                drop(queue.try_send(Queued { bytes: queued.clone(), at: Instant::now() }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_to(destination: u8, source: u8) -> Vec<u8> {
        let mut frame = vec![0u8; 60];
        frame[5] = destination;
        frame[11] = source;
        frame
    }

    #[test]
    fn floods_then_learns() {
        let switch = Switch::default();
        let (a, from_a, _) = switch.plug();
        let (b, from_b, _) = switch.plug();
        let (_, from_c, _) = switch.plug();
        switch.forward(a, &frame_to(2, 1));
        assert!(from_b.try_recv().is_ok() && from_c.try_recv().is_ok() && from_a.try_recv().is_err());
        switch.forward(b, &frame_to(1, 2));
        assert!(from_a.try_recv().is_ok() && from_c.try_recv().is_err());
        switch.forward(a, &frame_to(2, 1));
        assert!(from_b.try_recv().is_ok() && from_c.try_recv().is_err());
        switch.forward(a, &[1, 2, 3]);
        assert!(from_b.try_recv().is_err());
        switch.forget(b);
        switch.forward(a, &frame_to(2, 1));
        assert!(from_b.try_recv().is_ok() && from_c.try_recv().is_ok());
    }

    #[test]
    fn a_cut_cable_carries_nothing_and_a_bad_one_loses_its_share() {
        let switch = Switch::default();
        let (a, _keep, _) = switch.plug();
        let (_, from_b, cable) = switch.plug();
        cable.set_cut(true);
        switch.forward(a, &frame_to(2, 1));
        assert!(from_b.try_recv().is_err());
        cable.set_cut(false);
        cable.set_faults(100, Duration::ZERO);
        (0..1000).for_each(|_| switch.forward(a, &frame_to(2, 1)));
        let arrived = from_b.try_iter().count();
        assert!((850..950).contains(&arrived), "{arrived}");
    }
}
