//! One client's message, read and checked: what passes here is a BOOTREQUEST of an Ethernet client with a message
//! type and well-formed options (RFC 2131).

use std::net::Ipv4Addr;

use dhcproto::{
    Decodable, Decoder,
    v4::{Flags, HType, Message, MessageType, Opcode},
};
use labshift_model::MacAddr;

use super::{
    client::Client,
    options::{Malformed, Options, sub_option},
};

/// Relays may add up to this many hops (RFC 1542).
const MAX_HOPS: u8 = 16;

/// A client's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// DISCOVER, REQUEST, and so on.
    pub kind: MessageType,
    /// Transaction.
    pub xid: u32,
    /// With the broadcast bit.
    pub flags: Flags,
    /// The address the client already uses, else 0.0.0.0.
    pub ciaddr: Ipv4Addr,
    /// The relay, else 0.0.0.0.
    pub giaddr: Ipv4Addr,
    /// Hardware address.
    pub mac: MacAddr,
    /// Who speaks.
    pub client: Client,
    /// Option 50: the address it would like.
    pub asked: Option<Ipv4Addr>,
    /// Option 54: the server it chose.
    pub server: Option<Ipv4Addr>,
    /// Option 60, raw.
    pub vendor_class: Option<Vec<u8>>,
    /// Option 61, raw; goes back unchanged (RFC 6842).
    pub client_id: Option<Vec<u8>>,
    /// Option 82, raw; goes back unchanged (RFC 3046).
    pub relay: Option<Vec<u8>>,
    /// Option 97 of an allowed length; goes back unchanged (RFC 4578).
    pub uuid: Option<Vec<u8>>,
}

impl Request {
    /// Reads a packet.
    pub fn of(packet: &[u8]) -> Result<Self, Malformed> {
        let options = Options::of(packet)?;
        let header = Message::decode(&mut Decoder::new(packet)).map_err(|_| Malformed::NotDhcp)?;
        if header.opcode() != Opcode::BootRequest {
            return Err(Malformed::Header("op"));
        }
        if header.htype() != HType::Eth || header.hlen() != 6 {
            return Err(Malformed::Header("htype"));
        }
        if header.hops() > MAX_HOPS {
            return Err(Malformed::Header("hops"));
        }
        let mac: [u8; 6] = header.chaddr().try_into().map_err(|_| Malformed::Header("hlen"))?;
        if mac == [0; 6] || mac[0] & 1 != 0 {
            return Err(Malformed::Header("chaddr"));
        }
        if !is_station(header.ciaddr()) || !is_station(header.giaddr()) {
            return Err(Malformed::Header("ciaddr or giaddr"));
        }
        let kind = options.byte(53)?.ok_or(Malformed::Length(53))?;
        let owned = |code| options.get(code).map(<[u8]>::to_vec);
        Ok(Request {
            kind: kind.into(),
            xid: header.xid(),
            flags: header.flags(),
            ciaddr: header.ciaddr(),
            giaddr: header.giaddr(),
            mac: MacAddr(mac),
            client: Client::of(&options),
            asked: options.address(50)?.filter(|a| !a.is_unspecified()),
            server: options.address(54)?,
            vendor_class: owned(60),
            client_id: owned(61),
            relay: owned(82),
            uuid: owned(97).filter(|id| matches!(id.len(), 0 | 17)),
        })
    }

    /// An address on the network that the client sits on: the one its relay names (RFC 3527), the relay's own, or
    /// the one that it uses; `None` for the network of our own interface.
    pub fn network(&self) -> Option<Ipv4Addr> {
        const LINK_SELECTION: u8 = 5;
        let link = self.relay.as_deref().and_then(|field| sub_option(field, LINK_SELECTION));
        let selected = link.and_then(|value| <[u8; 4]>::try_from(value).ok()).map(Ipv4Addr::from);
        let given = |a: Ipv4Addr| (!a.is_unspecified()).then_some(a);
        selected.filter(|_| given(self.giaddr).is_some()).or(given(self.giaddr)).or(given(self.ciaddr))
    }
}

/// Zero, or an address that one machine can have.
fn is_station(address: Ipv4Addr) -> bool {
    !(address.is_broadcast() || address.is_multicast() || address.is_loopback())
}

/// A server's reply that we overheard: its address when it is an OFFER or ACK.
pub fn overheard_server(packet: &[u8]) -> Option<Ipv4Addr> {
    if packet.first() != Some(&2) {
        return None;
    }
    let options = Options::of(packet).ok()?;
    let kind = options.byte(53).ok()??;
    matches!(MessageType::from(kind), MessageType::Offer | MessageType::Ack)
        .then(|| options.address(54).ok().flatten())
        .flatten()
        .filter(|a| is_station(*a) && !a.is_unspecified())
}
