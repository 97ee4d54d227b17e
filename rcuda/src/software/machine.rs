//! Runs a grid, block by block.
//!
//! ```text
//!            +-- runs until it waits --+
//!            v                         |
//!  ready ----> barrier --(all there)---+        warp = shfl, vote, bar.warp: waits for the lanes of its mask
//!        \---> warp -----(all there)---+
//!         \--> done
//! ```
//!
//! When every thread waits and nothing can be released, the kernel would hang for ever: that is a fault.

use thiserror::Error;

use super::memory::{Memory, OutOfBounds};
use crate::ptx::{
    KernelCode,
    instruction::{Operation, Shuffle, Vote},
};

/// Lanes of a warp.
pub const WARP: usize = 32;
/// Threads of a block.
pub const MAX_THREADS: u64 = 1024;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Grid<'k> {
    /// Code.
    pub kernel: &'k KernelCode,
    /// Addresses of the module's variables.
    pub variables: &'k [u64],
    /// Parameter block.
    pub parameters: &'k [u8],
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Instructions that all threads together may run.
    pub step_limit: u64,
}

/// Why a kernel stopped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("kernel {kernel}, PTX line {line}, block {block:?}, thread {thread:?}: {cause}")]
pub struct Fault {
    /// Kernel.
    pub kernel: String,
    /// Line of the instruction.
    pub line: u32,
    /// Block index.
    pub block: [u32; 3],
    /// Thread index in its block.
    pub thread: [u32; 3],
    /// What happened.
    pub cause: Cause,
}

/// What happened to a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Cause {
    /// Access outside of allocated memory.
    #[error(transparent)]
    Memory(#[from] OutOfBounds),
    /// Access outside of shared, local or parameter memory.
    #[error("{bytes} bytes at offset {offset:#x} lie outside the {size} bytes of {space} memory")]
    Window {
        /// Which memory.
        space: &'static str,
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Size of that memory.
        size: u64,
    },
    /// Address is no multiple of the access's size.
    #[error("the address {address:#x} is not aligned to {bytes} bytes")]
    Misaligned {
        /// Address.
        address: u64,
        /// Size of the access.
        bytes: u64,
    },
    /// `trap`.
    #[error("the kernel gave up (trap)")]
    Trap,
    /// Everybody waits.
    #[error("waits for threads that never come")]
    Deadlock,
    /// Too many instructions.
    #[error("the launch ran for more instructions than one may")]
    StepLimit,
}

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Can run.
    Ready,
    /// Waits at a barrier, for all threads or so many.
    Barrier {
        /// Barrier number.
        id: u32,
        /// For how many; all that still run if `None`.
        threads: Option<u32>,
    },
    /// Waits for lanes of its warp.
    Warp,
    /// Has ended.
    Done,
}

/// A block while it runs.
#[derive(Debug)]
pub struct Block<'k, 'm> {
    pub(super) launch: Grid<'k>,
    pub(super) memory: &'m mut Memory,
    /// This block's index.
    pub(super) index: [u32; 3],
    pub(super) shared: Vec<u8>,
    /// Local memory of all threads.
    pub(super) local: Vec<u8>,
    /// Registers of all threads.
    pub(super) registers: Vec<u64>,
    /// Next instruction of each thread.
    pub(super) next: Vec<usize>,
    pub(super) states: Vec<State>,
    /// Instructions run so far.
    pub(super) steps: u64,
}

/// Runs a whole grid. What it wrote before a fault stays written, as on a GPU.
pub fn run(launch: Grid<'_>, memory: &mut Memory) -> Result<(), Fault> {
    let threads = launch.block.iter().map(|n| *n as usize).product();
    let kernel = launch.kernel;
    let shared = dynamic_base(kernel) as usize + launch.dynamic_shared as usize;
    let mut block = Block {
        launch,
        memory,
        index: [0; 3],
        shared: vec![0; shared],
        local: vec![0; threads * kernel.local_bytes as usize],
        registers: vec![0; threads * kernel.registers as usize],
        next: vec![0; threads],
        states: vec![State::Ready; threads],
        steps: 0,
    };
    for z in 0..launch.grid[2] {
        for y in 0..launch.grid[1] {
            for x in 0..launch.grid[0] {
                block.restart([x, y, z]);
                block.run()?;
            }
        }
    }
    Ok(())
}

/// Where dynamic shared memory begins.
pub fn dynamic_base(kernel: &KernelCode) -> u32 {
    kernel.shared_bytes.next_multiple_of(16)
}

impl Block<'_, '_> {
    fn restart(&mut self, index: [u32; 3]) {
        self.index = index;
        self.shared.fill(0);
        self.local.fill(0);
        self.registers.fill(0);
        self.next.fill(0);
        self.states.fill(State::Ready);
    }

    fn run(&mut self) -> Result<(), Fault> {
        loop {
            for thread in 0..self.states.len() {
                if self.states[thread] == State::Ready {
                    self.states[thread] =
                        self.run_thread(thread).map_err(|cause| self.fault(thread, cause))?;
                }
            }
            let mut released = false;
            for first in (0..self.states.len()).step_by(WARP) {
                released |= self.release_warp(first);
            }
            released |= self.release_barrier();
            if !released {
                return match self.states.iter().position(|state| *state != State::Done) {
                    None => Ok(()),
                    Some(thread) => Err(self.fault(thread, Cause::Deadlock)),
                };
            }
        }
    }

    fn fault(&self, thread: usize, cause: Cause) -> Fault {
        let code = &self.launch.kernel.code;
        let line = code.get(self.next[thread]).or(code.last()).map_or(0, |instruction| instruction.line);
        Fault {
            kernel: self.launch.kernel.name.clone(),
            line,
            block: self.index,
            thread: self.thread_index(thread),
            cause,
        }
    }

    /// A thread's index in x, y, z.
    pub(super) fn thread_index(&self, thread: usize) -> [u32; 3] {
        let [width, height, _] = self.launch.block.map(|n| n as usize);
        [thread % width, thread / width % height, thread / (width * height)].map(|n| n as u32)
    }

    /// Releases the barrier that everybody has reached.
    fn release_barrier(&mut self) -> bool {
        let alive = self.states.iter().filter(|state| **state != State::Done).count();
        let full = self.states.iter().find_map(|state| match *state {
            State::Barrier { id, threads } => {
                let there =
                    self.states.iter().filter(|s| matches!(s, State::Barrier { id: i, .. } if *i == id));
                let wanted = threads.map_or(alive, |n| n as usize);
                (there.count() >= wanted).then_some(id)
            }
            _ => None,
        });
        let Some(full) = full else { return false };
        for (state, next) in self.states.iter_mut().zip(&mut self.next) {
            if matches!(state, State::Barrier { id, .. } if *id == full) {
                *state = State::Ready;
                *next += 1;
            }
        }
        true
    }

    /// Lets the lanes of one warp exchange what they wait to exchange.
    fn release_warp(&mut self, first: usize) -> bool {
        let lanes = first..(first + WARP).min(self.states.len());
        let mut released = false;
        let alive = self.lanes(lanes.clone(), |block, t| block.states[t] != State::Done);
        for thread in lanes.clone() {
            if self.states[thread] != State::Warp {
                continue;
            }
            let at = self.next[thread];
            let wanted = (self.warp_mask(thread) | 1 << (thread - first)) & alive;
            let there = self.lanes(lanes.clone(), |block, t| {
                block.states[t] == State::Warp && block.next[t] == at && wanted >> (t - first) & 1 == 1
            });
            if there == wanted {
                self.exchange(first, there, at);
                released = true;
            }
        }
        released
    }

    fn lanes(&self, range: std::ops::Range<usize>, holds: impl Fn(&Self, usize) -> bool) -> u32 {
        let first = range.start;
        range.filter(|t| holds(self, *t)).fold(0, |mask, t| mask | 1 << (t - first))
    }

    fn warp_mask(&self, thread: usize) -> u32 {
        let instruction = self.launch.kernel.code.get(self.next[thread]);
        match instruction.map(|i| &i.operation) {
            Some(
                Operation::WarpBarrier { mask }
                | Operation::Shuffle { mask, .. }
                | Operation::Vote { mask, .. },
            ) => self.value(thread, *mask) as u32,
            _ => 0,
        }
    }

    /// Performs the instruction at `at` for the lanes in `group`.
    fn exchange(&mut self, first: usize, group: u32, at: usize) {
        let threads = || (0..WARP).filter(move |lane| group >> lane & 1 == 1).map(move |lane| first + lane);
        let code = self.launch.kernel;
        match code.code.get(at).map(|i| &i.operation) {
            Some(Operation::Shuffle { how, d, valid, a, b, c, .. }) => {
                let sources: Vec<u64> = (0..WARP)
                    .map(|lane| if group >> lane & 1 == 1 { self.value(first + lane, *a) } else { 0 })
                    .collect();
                for thread in threads() {
                    let lane = thread - first;
                    let (from, in_range) = source_lane(
                        *how,
                        lane as u32,
                        self.value(thread, *b) as u32,
                        self.value(thread, *c) as u32,
                    );
                    // A lane outside of the group has no value to give: the ISA leaves the result open.
                    let from = if group >> from & 1 == 1 { from as usize } else { lane };
                    self.set(thread, *d, sources[from] & 0xffff_ffff);
                    if let Some(valid) = valid {
                        self.set(thread, *valid, in_range.into());
                    }
                }
            }
            Some(Operation::Vote { vote, d, a, negate, .. }) => {
                let ballot = threads()
                    .filter(|t| (self.value(*t, *a) & 1 == 1) != *negate)
                    .fold(0u32, |mask, t| mask | 1 << (t - first));
                let result = match vote {
                    Vote::All => (ballot == group).into(),
                    Vote::Any => (ballot != 0).into(),
                    Vote::Uniform => (ballot == group || ballot == 0).into(),
                    Vote::Ballot => ballot.into(),
                };
                for thread in threads() {
                    self.set(thread, *d, result);
                }
            }
            _ => {}
        }
        for thread in threads() {
            self.states[thread] = State::Ready;
            self.next[thread] += 1;
        }
    }
}

/// The lane that `shfl` reads, and whether it is in range; out of range, a lane reads itself.
fn source_lane(how: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let low = lane & segment;
    let high = low | (clamp & !segment);
    let (from, in_range) = match how {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= high as i32),
        Shuffle::Down => (lane + b, lane + b <= high),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= high),
        Shuffle::Index => (low | (b & !segment), low | (b & !segment) <= high),
    };
    if in_range { (from & 31, true) } else { (lane, false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffle_lanes() {
        use Shuffle::*;
        for (how, lane, b, c, result) in [
            (Down, 0, 16, 31, (16, true)),
            (Down, 20, 16, 31, (20, false)),
            (Up, 5, 1, 0, (4, true)),
            (Up, 0, 1, 0, (0, false)),
            (Butterfly, 3, 1, 31, (2, true)),
            (Index, 9, 4, 31, (4, true)),
            // Segments of eight lanes.
            (Index, 9, 1, 0x181f, (9, true)),
            (Down, 6, 4, 0x181f, (6, false)),
            (Up, 9, 2, 0x1800, (9, false)),
        ] {
            assert_eq!(source_lane(how, lane, b, c), result, "{how:?} lane {lane} b {b} c {c:#x}");
        }
    }
}
