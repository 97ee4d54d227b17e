//! Whom to ask for blocks: the machines that a server named, what each is known to hold, and how each has behaved. Pure.
//!
//! ```text
//!   unknown ──answers──> good ──slow or gone──> resting ──time is over──> good      too often, or one wrong block: shut
//! ```
//!
//! Blocks are divided among the machines that answer, itself included, by rendezvous hashing over their addresses: each group of
//! chunks has one machine that brings it from the server, and all others ask that one. Nobody has to agree with anybody: where two
//! views differ, a group is brought twice.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// Chunks that one machine brings together.
pub const GROUP: u64 = 4;
/// How long a machine that did not answer is left alone, the first time; twice as long each time after.
const REST: Duration = Duration::from_secs(5);
/// Times after which it is asked no more.
const MOST_FAULTS: u32 = 4;

/// Where chunks are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// At the server.
    Server,
    /// At a machine of the segment.
    Peer(Ipv4Addr),
}

/// What was wrong with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It has not what was asked for, and said so.
    Absent,
    /// It did not answer in time, or in no useful way.
    Silent,
    /// It sent other bytes than were signed.
    Wrong,
}

/// Which chunks a machine holds, one bit each, the first in the lowest bit of the first byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(Vec<u8>);

impl Held {
    /// Bytes that hold so many bits.
    pub fn bytes_of(chunks: u64) -> usize {
        chunks.div_ceil(8) as usize
    }

    /// Of the chunks with these numbers.
    pub fn of(chunks: u64, numbers: impl Iterator<Item = u64>) -> Self {
        let mut bits = vec![0; Self::bytes_of(chunks)];
        for number in numbers {
            if let Some(byte) = bits.get_mut((number / 8) as usize) {
                *byte |= 1 << (number % 8);
            }
        }
        Held(bits)
    }

    /// As another machine told it; `None` when it is not about so many chunks.
    pub fn read(bytes: Vec<u8>, chunks: u64) -> Option<Self> {
        (bytes.len() == Self::bytes_of(chunks)).then_some(Held(bytes))
    }

    /// As it is told.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|b| u64::from(b.count_ones())).sum()
    }

    fn has(&self, number: u64) -> bool {
        self.0.get((number / 8) as usize).is_some_and(|byte| byte >> (number % 8) & 1 == 1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unknown,
    Good,
    Resting(Instant),
    Shut,
}

#[derive(Debug, Clone)]
struct Mate {
    standing: Standing,
    held: Held,
    faults: u32,
}

/// The machines around one node.
#[derive(Debug, Clone)]
pub struct Circle {
    own: Ipv4Addr,
    mates: BTreeMap<Ipv4Addr, Mate>,
}

impl Circle {
    /// Nobody is known to answer yet.
    pub fn new(own: Ipv4Addr, named: &[Ipv4Addr]) -> Self {
        let mate = || Mate { standing: Standing::Unknown, held: Held::default(), faults: 0 };
        let mates = named.iter().filter(|a| **a != own).map(|a| (*a, mate())).collect();
        Circle { own, mates }
    }

    /// True for a machine that the server named, and for this one.
    pub fn knows(&self, address: Ipv4Addr) -> bool {
        address == self.own || self.mates.contains_key(&address)
    }

    /// The machines that the server named.
    pub fn named(&self) -> Vec<Ipv4Addr> {
        self.mates.keys().copied().collect()
    }

    /// True when a machine that greets is worth a greeting: the server named it, and it is not known to answer, nor shut out.
    pub fn may_greet(&self, address: Ipv4Addr) -> bool {
        let mate = self.mates.get(&address);
        mate.is_some_and(|m| matches!(m.standing, Standing::Unknown | Standing::Resting(_)))
    }

    /// A machine has answered a greeting, and told what it holds. True when nobody had before.
    pub fn answered(&mut self, address: Ipv4Addr, held: Held) -> bool {
        let first = self.mates.values().all(|m| m.standing == Standing::Unknown);
        match self.mates.get_mut(&address).filter(|m| m.standing != Standing::Shut) {
            Some(mate) => {
                (mate.standing, mate.held) = (Standing::Good, held);
                first
            }
            None => false,
        }
    }

    /// A machine was asked in vain. True when it is asked no more from now on.
    pub fn failed(&mut self, address: Ipv4Addr, fault: Fault, now: Instant) -> bool {
        let Some(mate) = self.mates.get_mut(&address).filter(|m| m.standing != Standing::Shut) else {
            return false;
        };
        // What it held once it may have dropped.
        mate.held = Held::default();
        if fault == Fault::Absent {
            return false;
        }
        mate.faults += 1;
        if fault == Fault::Wrong || mate.faults >= MOST_FAULTS {
            mate.standing = Standing::Shut;
            return true;
        }
        mate.standing = Standing::Resting(now + REST * (1 << (mate.faults - 1)));
        false
    }

    fn good(&self, now: Instant) -> impl Iterator<Item = (Ipv4Addr, &Mate)> {
        let is_good = move |mate: &Mate| match mate.standing {
            Standing::Good => true,
            Standing::Resting(until) => now >= until,
            Standing::Unknown | Standing::Shut => false,
        };
        self.mates.iter().filter(move |(_, mate)| is_good(mate)).map(|(address, mate)| (*address, mate))
    }

    /// How many may be asked now.
    pub fn size(&self, now: Instant) -> usize {
        self.good(now).count()
    }

    /// Where these chunks of one group are asked for: at a machine that holds them, or else at the one whose part they are.
    pub fn way(&self, first: u64, count: u64, now: Instant) -> Way {
        let score = |address: &Ipv4Addr| score(*address, first / GROUP);
        let holds = |mate: &Mate| (first..first + count).all(|number| mate.held.has(number));
        let holder = self.good(now).filter(|(_, mate)| holds(mate)).map(|(a, _)| a).max_by_key(score);
        let owner = || [self.own].into_iter().chain(self.good(now).map(|(a, _)| a)).max_by_key(score);
        match holder.or_else(owner) {
            Some(address) if address != self.own => Way::Peer(address),
            _ => Way::Server,
        }
    }

    /// A place to begin in a row of so many, another one on each machine.
    pub fn begin(&self, row: u64) -> u64 {
        score(self.own, u64::MAX) % row.max(1)
    }
}

/// Rendezvous score: which machine brings a group is the same everywhere, and even.
fn score(address: Ipv4Addr, group: u64) -> u64 {
    // Splitmix64's finish.
    let mut z = (u64::from(address.to_bits()) << 32 ^ group).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, n)
    }

    /// A room of `n` machines as machine `own` sees it when all answer and hold nothing.
    fn room(own: u8, n: u8) -> Circle {
        let named: Vec<_> = (1..=n).map(address).collect();
        let mut circle = Circle::new(address(own), &named);
        for mate in named.iter().filter(|a| **a != address(own)) {
            circle.answered(*mate, Held::default());
        }
        circle
    }

    #[test]
    fn every_group_has_one_machine_that_brings_it_and_the_parts_are_even() {
        let now = Instant::now();
        let rooms: Vec<_> = (1..=8).map(|own| room(own, 8)).collect();
        let mut parts = [0; 8];
        for group in 0..800 {
            let ways: Vec<_> = rooms.iter().map(|r| r.way(group * GROUP, GROUP, now)).collect();
            let owners: Vec<_> = (0..8).filter(|i| ways[*i] == Way::Server).collect();
            assert_eq!(owners.len(), 1, "group {group}: {ways:?}");
            let owner = Way::Peer(address(owners[0] as u8 + 1));
            assert!(ways.iter().all(|w| *w == Way::Server || *w == owner), "{ways:?}");
            parts[owners[0]] += 1;
        }
        assert!(parts.iter().all(|n| (60..=140).contains(n)), "{parts:?}");
        let begins: std::collections::HashSet<_> = rooms.iter().map(|r| r.begin(1440)).collect();
        assert!(begins.len() == 8 && begins.iter().all(|b| *b < 1440), "{begins:?}");
    }

    #[test]
    fn who_holds_it_is_asked_first_and_nobody_when_all_are_silent() {
        let now = Instant::now();
        let mut circle = Circle::new(address(1), &[address(1), address(2), address(3)]);
        assert!(circle.knows(address(1)) && circle.knows(address(2)) && !circle.knows(address(9)));
        assert_eq!((circle.way(0, 4, now), circle.size(now)), (Way::Server, 0));
        assert!(
            circle.may_greet(address(2)) && !circle.may_greet(address(1)) && !circle.may_greet(address(9))
        );
        assert!(circle.answered(address(2), Held::of(100, 0..50)));
        assert!(!circle.may_greet(address(2)), "or two machines would greet each other for ever");
        assert!(!circle.answered(address(3), Held::default()), "the first came before");
        assert!(!circle.answered(address(9), Held::of(100, 0..100)), "nobody named it");
        for group in 0..12 {
            assert_eq!(circle.way(group * 4, 4, now), Way::Peer(address(2)));
        }
        // Chunks 48 and 49 are held, 50 and 51 are not.
        let of_group = circle.way(48, 4, now);
        assert_eq!(circle.way(48, 2, now), Way::Peer(address(2)));
        assert_eq!(circle.way(51, 1, now), of_group, "a group stays together");
        assert_eq!(circle.way(u64::MAX - 8, 4, now), circle.way(u64::MAX - 8, 4, now));
    }

    #[test]
    fn the_slow_rest_and_the_wrong_are_shut_out() {
        let now = Instant::now();
        let mut circle = Circle::new(address(1), &[address(2), address(3)]);
        circle.answered(address(2), Held::of(8, 0..8));
        circle.answered(address(3), Held::of(8, 0..8));
        assert!(!circle.failed(address(2), Fault::Silent, now));
        assert_eq!((circle.way(0, 4, now), circle.size(now)), (Way::Peer(address(3)), 1));
        assert!(circle.may_greet(address(2)), "it may have been restarted");
        assert_eq!(circle.size(now + REST), 2, "it gets another chance");
        assert!(circle.failed(address(3), Fault::Wrong, now));
        assert!(!circle.may_greet(address(3)) && !circle.answered(address(3), Held::of(8, 0..8)));
        assert_eq!(circle.way(0, 4, now), Way::Server);
        let later = now + REST;
        assert!(!circle.failed(address(2), Fault::Absent, later), "an honest no is no fault");
        assert!(!circle.failed(address(2), Fault::Silent, later) && circle.size(later + REST) == 0);
        assert!(!circle.failed(address(2), Fault::Silent, later) && circle.size(later + REST * 4) == 1);
        assert!(circle.failed(address(2), Fault::Silent, later), "the fourth time is the last");
        assert_eq!(circle.size(later + REST * 1000), 0);
    }

    #[test]
    fn what_is_held_is_told_in_bits() {
        let held = Held::of(12, [0, 9, 11, 40].into_iter());
        assert_eq!((held.bytes(), held.count()), (&[1, 0b1010][..], 3));
        assert_eq!(Held::read(vec![1, 0b1010], 12), Some(held));
        assert_eq!(Held::read(vec![1], 12), None);
    }
}
