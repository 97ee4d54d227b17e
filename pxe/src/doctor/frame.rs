//! Frames down to what the doctor looks at: UDP datagrams over IPv4, ICMP errors about them, and IP fragments. Bytes that
//! are anything else, cut or malformed, are nothing.

use std::net::{Ipv4Addr, SocketAddrV4};

use labshift_model::MacAddr;

/// How frames of a capture begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Ethernet.
    Ethernet,
    /// Nothing before the IP header.
    Ip,
    /// Linux's `any` device, 16 bytes (SLL), or 20 (SLL2).
    Cooked(usize),
}

impl Link {
    /// From a capture's link type (tcpdump.org/linktypes.html).
    pub fn of(number: u32) -> Option<Self> {
        match number {
            1 => Some(Link::Ethernet),
            12 | 101 | 228 => Some(Link::Ip),
            113 => Some(Link::Cooked(16)),
            276 => Some(Link::Cooked(20)),
            _ => None,
        }
    }
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    /// A datagram. `cut`: the rest comes in further fragments.
    Udp { card: Option<MacAddr>, from: SocketAddrV4, to: SocketAddrV4, payload: &'a [u8], cut: bool },
    /// "Unreachable" about a datagram that somebody sent.
    Unreachable { by: Ipv4Addr, code: u8, from: SocketAddrV4, to: SocketAddrV4 },
}

const IPV4: [u8; 2] = [0x08, 0x00];
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// Reads a frame.
pub(super) fn seen(link: Link, frame: &[u8]) -> Option<Seen<'_>> {
    let (card, packet) = match link {
        Link::Ip => (None, frame),
        Link::Cooked(length) => (None, frame.get(length..)?),
        Link::Ethernet => {
            let card: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
            let mut at = 12;
            // VLAN tags, one or two.
            while matches!(frame.get(at..at + 2)?, [0x81, 0x00] | [0x88, 0xa8]) {
                at += 4;
            }
            (frame.get(at..at + 2)? == IPV4).then_some((Some(MacAddr(card)), frame.get(at + 2..)?))?
        }
    };
    let Ip { protocol, from, to, fragment, more, body } = ip(packet)?;
    match protocol {
        // Only the first fragment has the ports.
        UDP if fragment == 0 => {
            let (from_port, to_port, payload) = udp(body)?;
            let (from, to) = (SocketAddrV4::new(from, from_port), SocketAddrV4::new(to, to_port));
            Some(Seen::Udp { card, from, to, payload, cut: more })
        }
        ICMP if fragment == 0 && body.first() == Some(&3) => {
            let code = *body.get(1)?;
            let inner = ip(body.get(8..)?)?;
            let ports = inner.body.get(..4).filter(|_| inner.protocol == UDP)?;
            let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
            let (from_inner, to_inner) = (inner.from, inner.to);
            Some(Seen::Unreachable {
                by: from,
                code,
                from: SocketAddrV4::new(from_inner, port(0)),
                to: SocketAddrV4::new(to_inner, port(2)),
            })
        }
        _ => None,
    }
}

struct Ip<'a> {
    protocol: u8,
    from: Ipv4Addr,
    to: Ipv4Addr,
    fragment: u16,
    more: bool,
    body: &'a [u8],
}

fn ip(packet: &[u8]) -> Option<Ip<'_>> {
    let head: &[u8; 20] = packet.first_chunk()?;
    let length = usize::from(head[0] & 15) * 4;
    if head[0] >> 4 != 4 || length < 20 {
        return None;
    }
    // Frames may be padded; a quoted packet in an ICMP error is cut.
    let total = usize::from(u16::from_be_bytes([head[2], head[3]])).min(packet.len());
    let flags = u16::from_be_bytes([head[6], head[7]]);
    let address = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
    Some(Ip {
        protocol: head[9],
        from: address(12),
        to: address(16),
        fragment: flags & 0x1fff,
        more: flags & 0x2000 != 0,
        body: packet.get(length..total)?,
    })
}

fn udp(body: &[u8]) -> Option<(u16, u16, &[u8])> {
    let head: &[u8; 8] = body.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([head[4], head[5]])).min(body.len());
    let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    Some((port(0), port(2), body.get(8..length)?))
}
