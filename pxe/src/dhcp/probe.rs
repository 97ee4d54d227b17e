//! Is an address really free? Before a machine is offered one that it never had, we ask the wire (ARP probe, RFC 5227):
//! somebody may have set it by hand, or got it from a server that was here before us.
//!
//! ```text
//!   offer of an address that the machine never had
//!     | ask twice, hold the offer back
//!     +-- somebody answers --> the address rests, another one is chosen
//!     +-- nobody, in time ---> the offer goes out
//! ```
//!
//! Only our own network can be asked; behind a relay the client's own probe and DECLINE have to do. When very many ask at
//! once (a room that wakes), offers go out unprobed: late is worse than a conflict that the client will notice.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use labshift_model::{MacAddr, boot::BootPlaneEvent};
use tokio::time::Instant;

use super::reply::Reply;

/// Offers held back at one time.
const MOST: usize = 1024;
const FRAME: usize = 42;

/// An offer that waits for its address to be proven.
#[derive(Debug)]
pub(super) struct Held {
    pub mac: MacAddr,
    /// The DISCOVER, to be answered anew when the address turns out to be taken.
    pub packet: Vec<u8>,
    pub source: SocketAddrV4,
    pub reply: Reply,
    pub event: Option<BootPlaneEvent>,
    pub firmware: bool,
    ask_again: Option<Instant>,
    until: Instant,
}

/// Offers held back, by address.
#[derive(Debug, Default)]
pub(super) struct Probes(HashMap<Ipv4Addr, Held>);

/// An offer to hold back.
pub(super) struct Offer {
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    pub packet: Vec<u8>,
    pub source: SocketAddrV4,
    pub reply: Reply,
    pub event: Option<BootPlaneEvent>,
    pub firmware: bool,
}

impl Probes {
    /// Holds an offer back and says whether the wire has to be asked now: a client that repeats its DISCOVER replaces its
    /// own offer. Gives the offer back when too many wait.
    pub fn hold(&mut self, offer: Offer, wait: Duration, now: Instant) -> Result<bool, Box<Offer>> {
        let known = self.0.get(&offer.address).map(|held| (held.ask_again, held.until));
        if known.is_none() && self.0.len() >= MOST {
            return Err(Box::new(offer));
        }
        let (ask_again, until) = known.unwrap_or((Some(now + wait / 3), now + wait));
        let Offer { address, mac, packet, source, reply, event, firmware } = offer;
        self.0.insert(address, Held { mac, packet, source, reply, event, firmware, ask_again, until });
        Ok(known.is_none())
    }

    /// When something is due next.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|held| held.ask_again.unwrap_or(held.until)).min()
    }

    /// Addresses to ask for a second time.
    pub fn unanswered(&mut self, now: Instant) -> Vec<Ipv4Addr> {
        let due = self.0.iter_mut().filter(|(_, held)| held.ask_again.is_some_and(|at| at <= now));
        due.map(|(address, held)| {
            held.ask_again = None;
            *address
        })
        .collect()
    }

    /// Offers whose address nobody claimed in time.
    pub fn proven(&mut self, now: Instant) -> Vec<(Ipv4Addr, Held)> {
        self.0.extract_if(|_, held| held.ask_again.is_none() && held.until <= now).collect()
    }

    /// Somebody has the address: gives the offer that must not go out. The client itself may have it, still.
    pub fn taken(&mut self, address: Ipv4Addr, by: MacAddr) -> Option<Held> {
        self.0.get(&address).is_some_and(|held| held.mac != by).then(|| self.0.remove(&address)).flatten()
    }
}

/// "Who has `address`?" to everyone, from nobody's address, so that no cache is changed by it.
pub(super) fn question(address: Ipv4Addr, from: MacAddr) -> [u8; FRAME] {
    const HEAD: [u8; 10] = [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1];
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..22].copy_from_slice(&HEAD);
    frame[22..28].copy_from_slice(&from.0);
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// Who says, in a frame, that it has which address: an ARP reply, or a request or announcement with a sender.
pub(super) fn claim(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let arp = frame.get(12..FRAME)?;
    if arp[..8] != [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4] {
        return None;
    }
    let card: [u8; 6] = arp[10..16].try_into().ok()?;
    let address: [u8; 4] = arp[16..20].try_into().ok()?;
    let address = Ipv4Addr::from(address);
    (!address.is_unspecified()).then_some((address, MacAddr(card)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::reply::Destination;

    const CLIENT: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const WAIT: Duration = Duration::from_millis(240);

    fn offer(last: u8, text: &[u8]) -> Offer {
        Offer {
            address: [10, 0, 0, last].into(),
            mac: CLIENT,
            packet: vec![],
            source: "0.0.0.0:68".parse().expect("an address"),
            reply: Reply { bytes: text.to_vec(), to: Destination::Broadcast },
            event: None,
            firmware: false,
        }
    }

    #[test]
    fn an_offer_waits_until_its_address_is_proven() {
        let (mut probes, start) = (Probes::default(), Instant::now());
        assert!(matches!(probes.hold(offer(1, b"first"), WAIT, start), Ok(true)));
        let again = probes.hold(offer(1, b"second"), WAIT, start + WAIT / 2);
        assert!(matches!(again, Ok(false)), "asked already");
        assert_eq!(probes.next(), Some(start + WAIT / 3));
        assert_eq!(probes.unanswered(start + WAIT / 3), [Ipv4Addr::new(10, 0, 0, 1)]);
        assert_eq!(probes.unanswered(start + WAIT), [] as [Ipv4Addr; 0]);
        assert!(probes.proven(start + WAIT / 2).is_empty());
        let proven = probes.proven(start + WAIT);
        assert_eq!(proven[0].1.reply.bytes, b"second", "the newest transaction is answered");
        assert_eq!(probes.next(), None);
    }

    #[test]
    fn an_address_in_use_is_not_offered_but_the_client_may_have_it_itself() {
        let (mut probes, start) = (Probes::default(), Instant::now());
        assert!(probes.hold(offer(1, b""), WAIT, start).is_ok());
        assert!(probes.taken([10, 0, 0, 1].into(), CLIENT).is_none());
        assert!(probes.taken([10, 0, 0, 2].into(), OTHER).is_none());
        assert!(probes.taken([10, 0, 0, 1].into(), OTHER).is_some());
        assert!(probes.proven(start + WAIT * 2).is_empty());
    }

    #[test]
    fn a_crowd_is_not_held_up() {
        let (mut probes, start) = (Probes::default(), Instant::now());
        for n in 0..MOST as u32 {
            let one = Offer { address: n.into(), ..offer(1, b"") };
            assert!(probes.hold(one, WAIT, start).is_ok());
        }
        let one = Offer { address: u32::MAX.into(), ..offer(1, b"") };
        assert!(probes.hold(one, WAIT, start).is_err());
    }

    #[test]
    fn claims_are_read_from_frames() {
        let address = Ipv4Addr::new(10, 0, 0, 9);
        let question = question(address, CLIENT);
        assert_eq!(claim(&question), None, "our own question claims nothing");
        let mut reply = question;
        reply[21] = 2;
        reply[22..28].copy_from_slice(&OTHER.0);
        reply[28..32].copy_from_slice(&address.octets());
        assert_eq!(claim(&reply), Some((address, OTHER)));
        for length in 0..FRAME {
            assert_eq!(claim(&reply[..length]), None);
        }
        reply[12] = 0x86;
        assert_eq!(claim(&reply), None, "not ARP");
    }
}
