//! Which machine has which address until when. Keyed by hardware address: ROM, loader and operating system of one
//! machine send different client identifiers and must get one address.
//!
//! ```text
//!            offer                  acknowledge
//!   free ------------> offered ----------------------> bound
//!    ^                    | time passes                  | time passes, release
//!    +--------------------+------------------------------+     (remembered: the machine gets it again)
//!    ^                                                   |
//!    +---- time passes ---- declined <-------------------+  the client found it in use
//! ```
//!
//! An address is taken from the moment it is offered, so a burst of clients never collides. The table is plain
//! memory; what must survive a crash comes out of [`Leases::take_changes`] and goes to the ledger before the
//! acknowledgement leaves.

use std::{collections::HashMap, net::Ipv4Addr};

use jiff::{SignedDuration, Timestamp};
use labshift_model::MacAddr;

use crate::config::Subnet;

/// How long an offer holds its address: firmware under load takes its time.
const OFFER_SECONDS: i64 = 120;
/// How long an address that a client found in use is kept back.
const DECLINED_SECONDS: i64 = 600;

/// What stands between an address and the next client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Offered, not yet taken.
    Offered,
    /// Taken.
    Bound,
    /// Found in use by somebody we don't know.
    Declined,
}

/// One address and who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Who has it, or declined it.
    pub mac: MacAddr,
    /// Since the last message.
    pub state: State,
    /// From here on others may have it.
    pub expires: Timestamp,
}

/// All leases.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    by_address: HashMap<Ipv4Addr, Lease>,
    by_mac: HashMap<MacAddr, Ipv4Addr>,
    changes: Vec<Lease>,
    /// When the wire was last asked for an address and nobody answered.
    silent: HashMap<Ipv4Addr, Timestamp>,
}

impl Leases {
    /// The table that a ledger describes: a later entry for an address replaces an earlier one.
    pub fn from_ledger(entries: impl IntoIterator<Item = Lease>) -> Self {
        let mut leases = Leases::default();
        for entry in entries {
            leases.put(entry);
        }
        leases
    }

    /// What changed since the last call and must be on disk before the reply leaves.
    pub fn take_changes(&mut self) -> Vec<Lease> {
        std::mem::take(&mut self.changes)
    }

    /// Everything worth keeping: all but open offers.
    pub fn snapshot(&self) -> Vec<Lease> {
        let mut all: Vec<Lease> =
            self.by_address.values().filter(|l| l.state != State::Offered).copied().collect();
        all.sort_by_key(|l| (l.expires, l.address));
        all
    }

    /// How many addresses the table knows.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// True when nothing was ever leased.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// The lease a machine has, or had last.
    pub fn of(&self, mac: MacAddr) -> Option<&Lease> {
        self.by_mac.get(&mac).and_then(|address| self.by_address.get(address))
    }

    /// Who holds the address now.
    pub fn holder(&self, address: Ipv4Addr, now: Timestamp) -> Option<MacAddr> {
        let lease = self.by_address.get(&address)?;
        (lease.state == State::Bound && lease.expires > now).then_some(lease.mac)
    }

    /// Whether this machine may have the address now.
    pub fn is_free_for(&self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> bool {
        self.by_address
            .get(&address)
            .is_none_or(|l| l.expires <= now || (l.mac == mac && l.state != State::Declined))
    }

    /// Whether the machine may be offered the address without asking the wire who has it: it had the address before, or
    /// nobody answered a moment ago.
    pub fn is_proven(&self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> bool {
        let had = self.by_address.get(&address).is_some_and(|l| l.mac == mac && l.state == State::Bound);
        let fresh = SignedDuration::from_secs(OFFER_SECONDS);
        had || self.silent.get(&address).is_some_and(|at| now.duration_since(*at) < fresh)
    }

    /// The wire was asked for the address, and nobody answered.
    pub fn heard_nothing(&mut self, address: Ipv4Addr, now: Timestamp) {
        let fresh = SignedDuration::from_secs(OFFER_SECONDS);
        if self.silent.len() >= 4096 {
            self.silent.retain(|_, at| now.duration_since(*at) < fresh);
        }
        self.silent.insert(address, now);
    }

    /// The address to offer: the reservation, else what the machine had, else what it asks for, else a free one
    /// that depends on the machine, so that a lost ledger changes little. `None` when the pool is used up.
    pub fn choose(
        &self,
        mac: MacAddr,
        subnet: &Subnet,
        reserved: Option<Ipv4Addr>,
        asked: Option<Ipv4Addr>,
        kept_back: &[Ipv4Addr],
        now: Timestamp,
    ) -> Option<Ipv4Addr> {
        let free = |address: &Ipv4Addr| self.is_free_for(mac, *address, now);
        let pooled =
            |address: &Ipv4Addr| subnet.pools(*address) && !kept_back.contains(address) && free(address);
        if let Some(address) = reserved.filter(|a| subnet.is_host(*a)).filter(free) {
            return Some(address);
        }
        let had = self.by_mac.get(&mac).copied();
        had.into_iter().chain(asked).find(pooled).or_else(|| self.probe(mac, subnet, pooled))
    }

    /// Walks the pool from a place that the hardware address gives. An address that nobody ever had comes before
    /// one that somebody may come back for.
    fn probe(&self, mac: MacAddr, subnet: &Subnet, fits: impl Fn(&Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let (first, last) = (u32::from(subnet.pool.0), u32::from(subnet.pool.1));
        let size = u64::from(last.checked_sub(first)?) + 1;
        let start = fnv(&mac.0) % size;
        let mut oldest: Option<&Lease> = None;
        for step in 0..size {
            let address = Ipv4Addr::from(first + ((start + step) % size) as u32);
            if !fits(&address) {
                continue;
            }
            match self.by_address.get(&address) {
                None => return Some(address),
                Some(lease) if oldest.is_none_or(|o| lease.expires < o.expires) => oldest = Some(lease),
                Some(_) => {}
            }
        }
        oldest.map(|lease| lease.address)
    }

    /// The pool's oldest offer that a stranger has not taken: a flood of strangers must not use up a machine's address.
    pub fn unclaimed(&self, subnet: &Subnet, stranger: impl Fn(MacAddr) -> bool) -> Option<Ipv4Addr> {
        let offers =
            self.by_address.values().filter(|l| l.state == State::Offered && subnet.pools(l.address));
        offers.filter(|l| stranger(l.mac)).min_by_key(|l| l.expires).map(|l| l.address)
    }

    /// Holds the address for the machine while it makes up its mind. Its own running lease stays as it is.
    pub fn offer(&mut self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) {
        let until = now + SignedDuration::from_secs(OFFER_SECONDS);
        match self.by_address.get_mut(&address) {
            Some(lease) if lease.mac == mac && lease.state == State::Bound && lease.expires > now => {
                lease.expires = lease.expires.max(until);
            }
            _ => self.put(Lease { address, mac, state: State::Offered, expires: until }),
        }
    }

    /// Gives the address. The caller has checked [`Leases::is_free_for`].
    pub fn bind(&mut self, mac: MacAddr, address: Ipv4Addr, seconds: u32, now: Timestamp) {
        if let Some(old) = self.of(mac).filter(|l| l.address != address).map(|l| l.address) {
            self.release(mac, old, now);
        }
        let expires = now + SignedDuration::from_secs(seconds.into());
        self.note(Lease { address, mac, state: State::Bound, expires });
    }

    /// Ends the machine's lease or offer of this address; it is still the first it will get again.
    pub fn release(&mut self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) {
        match self.by_address.get(&address).copied() {
            Some(lease) if lease.mac == mac && lease.state == State::Bound => {
                self.note(Lease { expires: lease.expires.min(now), ..lease });
            }
            _ => self.let_go(mac, address),
        }
    }

    /// Drops an offer that the machine did not take; a lease stays.
    pub fn let_go(&mut self, mac: MacAddr, address: Ipv4Addr) {
        if self.by_address.get(&address).is_some_and(|l| l.mac == mac && l.state == State::Offered) {
            self.by_address.remove(&address);
            self.by_mac.remove(&mac);
        }
    }

    /// Keeps an address back that its client found in use. Only who was given it can say so.
    pub fn decline(&mut self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> bool {
        let given = self.by_address.get(&address).is_some_and(|l| l.mac == mac && l.expires > now);
        if given {
            let expires = now + SignedDuration::from_secs(DECLINED_SECONDS);
            self.note(Lease { address, mac, state: State::Declined, expires });
        }
        given
    }

    fn note(&mut self, lease: Lease) {
        self.changes.push(lease);
        self.put(lease);
    }

    fn put(&mut self, lease: Lease) {
        if let Some(old) = self.by_address.insert(lease.address, lease)
            && self.by_mac.get(&old.mac) == Some(&lease.address)
        {
            self.by_mac.remove(&old.mac);
        }
        if lease.state != State::Declined {
            self.by_mac.insert(lease.mac, lease.address);
        }
    }
}

/// FNV-1a, 64 bits: spreads addresses over the pool, and marks torn lines in the ledger.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn mac(n: u32) -> MacAddr {
        let [a, b, c, d] = n.to_be_bytes();
        MacAddr([2, 0, a, b, c, d])
    }

    fn at(seconds: i64) -> Timestamp {
        NOW + SignedDuration::from_secs(seconds)
    }

    fn subnet(first: u8, last: u8) -> Subnet {
        Subnet {
            network: [10, 0, 0, 0].into(),
            prefix: 24,
            pool: ([10, 0, 0, first].into(), [10, 0, 0, last].into()),
            gateway: None,
        }
    }

    fn choose(leases: &Leases, n: u32, subnet: &Subnet, now: Timestamp) -> Option<Ipv4Addr> {
        leases.choose(mac(n), subnet, None, None, &[], now)
    }

    #[test]
    fn case_10_a_burst_of_offers_never_names_an_address_twice() {
        let pool = subnet(10, 209);
        let mut leases = Leases::default();
        let mut seen = HashSet::new();
        for n in 0..200 {
            let address = choose(&leases, n, &pool, NOW).expect("an address");
            leases.offer(mac(n), address, NOW);
            assert!(seen.insert(address));
        }
        assert_eq!(choose(&leases, 200, &pool, NOW), None, "the pool is used up");
        assert!(choose(&leases, 200, &pool, at(OFFER_SECONDS)).is_some(), "offers lapse");
        assert!(leases.take_changes().is_empty(), "offers are not worth a write");
    }

    #[test]
    fn a_machine_gets_its_address_again_even_after_its_lease() {
        let pool = subnet(10, 20);
        let mut leases = Leases::default();
        let address = choose(&leases, 1, &pool, NOW).expect("an address");
        leases.offer(mac(1), address, NOW);
        leases.bind(mac(1), address, 60, NOW);
        for n in 2..12 {
            let other = choose(&leases, n, &pool, at(100)).expect("an address");
            assert_ne!(other, address, "never used comes before used");
            leases.bind(mac(n), other, 60, at(100));
        }
        assert_eq!(choose(&leases, 1, &pool, at(101)), Some(address));
        assert_eq!(
            choose(&leases, 99, &pool, at(101)),
            Some(address),
            "the oldest when nothing else is left"
        );
    }

    #[test]
    fn a_reservation_moves_a_machine_and_frees_its_old_address() {
        let pool = subnet(10, 20);
        let fixed = Ipv4Addr::new(10, 0, 0, 5);
        let mut leases = Leases::default();
        let old = choose(&leases, 1, &pool, NOW).expect("an address");
        leases.bind(mac(1), old, 600, NOW);
        assert_eq!(leases.choose(mac(1), &pool, Some(fixed), None, &[], at(1)), Some(fixed));
        leases.bind(mac(1), fixed, 600, at(1));
        assert!(leases.is_free_for(mac(2), old, at(2)));
        assert_eq!(leases.of(mac(1)).map(|l| l.address), Some(fixed));
        let off_net = Some([192, 168, 0, 1].into());
        assert_ne!(leases.choose(mac(3), &pool, off_net, None, &[], at(2)), off_net, "not on this network");
    }

    #[test]
    fn declined_addresses_rest_and_only_their_client_may_decline() {
        let pool = subnet(10, 11);
        let mut leases = Leases::default();
        let address = choose(&leases, 1, &pool, NOW).expect("an address");
        leases.bind(mac(1), address, 60, NOW);
        assert!(!leases.decline(mac(2), address, at(1)));
        assert!(leases.decline(mac(1), address, at(1)));
        let next = choose(&leases, 1, &pool, at(2)).expect("an address");
        assert_ne!(next, address);
        assert!(leases.is_free_for(mac(2), address, at(1 + DECLINED_SECONDS)));
    }

    #[test]
    fn an_address_is_proven_by_silence_or_by_having_been_the_machines_own() {
        let address = Ipv4Addr::new(10, 0, 0, 10);
        let mut leases = Leases::default();
        leases.offer(mac(1), address, NOW);
        assert!(!leases.is_proven(mac(1), address, NOW), "offered is not had");
        leases.heard_nothing(address, NOW);
        assert!(leases.is_proven(mac(1), address, at(1)));
        assert!(!leases.is_proven(mac(1), address, at(OFFER_SECONDS)), "somebody may have come");
        leases.bind(mac(1), address, 60, NOW);
        assert!(leases.is_proven(mac(1), address, at(100_000)));
        assert!(!leases.is_proven(mac(2), address, at(100_000)));
    }

    #[test]
    fn the_server_and_the_gateway_are_never_given() {
        let pool = subnet(1, 3);
        let back = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3)];
        let asked = Some(back[0]);
        let leases = Leases::default();
        assert_eq!(leases.choose(mac(1), &pool, None, asked, &back, NOW), Some([10, 0, 0, 2].into()));
    }
}
