//! DHCP client, the part that decides (RFC 2131): which packet to send, and what an answer means.
//!
//! ```text
//!            OFFER             ACK
//! Selecting ------> Requesting ----> Lease ... at T1, T2 or after a restart:
//!     ^                 | NAK            Renewing ---ACK---> Lease
//!     +-----------------+                    | NAK
//!     +--------------------------------------+
//! ```
//!
//! Sockets and clocks are in [`crate::lease`]. Answers come from the network: one that is truncated, addressed to someone
//! else, or that names an unusable address is refused with a reason and changes nothing.

use std::net::Ipv4Addr;

use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode},
};
use labshift_model::{MacAddr, context::Network};

use crate::cmdline::server_url;

/// What the server reads to know that init asks.
pub const VENDOR_CLASS: &str = "labshift-init";
/// The cookie that makes a BOOTP packet a DHCP packet.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes before the options.
const HEADER: usize = 240;

/// What a server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Ours.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// Seconds.
    pub seconds: u32,
    /// Option 67 when it is a labshift server's base URL.
    pub boot_server: Option<String>,
    /// Option 12.
    pub hostname: Option<String>,
}

impl Lease {
    /// In the form that the runtime gets.
    pub fn network(&self, interface: &str, mac: MacAddr) -> Network {
        Network {
            interface: interface.to_owned(),
            mac,
            address: self.address,
            prefix: self.prefix,
            gateway: self.gateway,
            dns: self.dns.clone(),
            dhcp_server: self.server,
            lease_seconds: self.seconds,
        }
    }
}

/// What an answer changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// An offer was taken: send [`Client::packet`] now.
    Offer(Ipv4Addr),
    /// Done.
    Bound(Lease),
    /// The server refused: start again.
    Nak,
    /// Not for us, or not usable.
    Ignored(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Selecting,
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    Renewing { address: Ipv4Addr },
}

/// One port's client.
#[derive(Debug, Clone)]
pub struct Client {
    mac: MacAddr,
    xid: u32,
    state: State,
}

impl Client {
    /// A client without an address. `xid` should be random.
    pub fn new(mac: MacAddr, xid: u32) -> Self {
        Client { mac, xid, state: State::Selecting }
    }

    /// A client that keeps its address.
    pub fn renewing(mac: MacAddr, xid: u32, address: Ipv4Addr) -> Self {
        Client { mac, xid, state: State::Renewing { address } }
    }

    /// The packet to send in this state. `seconds` have passed since the first one.
    pub fn packet(&self, seconds: u16) -> Vec<u8> {
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, zero, zero, zero, zero, &self.mac.0);
        message.set_secs(seconds);
        let kind = match &self.state {
            State::Selecting => MessageType::Discover,
            _ => MessageType::Request,
        };
        match &self.state {
            State::Renewing { address } => {
                message.set_ciaddr(*address);
            }
            // Without an address the kernel delivers broadcasts only.
            _ => {
                message.set_flags(Flags::default().set_broadcast());
            }
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClassIdentifier(VENDOR_CLASS.into()));
        options.insert(DhcpOption::MaxMessageSize(1472));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::Hostname,
            OptionCode::AddressLeaseTime,
            OptionCode::ServerIdentifier,
            OptionCode::BootfileName,
        ]));
        if let State::Requesting { address, server } = self.state {
            options.insert(DhcpOption::RequestedIpAddress(address));
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        message.to_vec().unwrap_or_default()
    }

    /// Takes in what arrived on port 68.
    pub fn hear(&mut self, bytes: &[u8]) -> Heard {
        let message = match self.read(bytes) {
            Ok(message) => message,
            Err(why) => return Heard::Ignored(why),
        };
        match (message.opts().msg_type(), self.state.clone()) {
            (Some(MessageType::Offer), State::Selecting) => match offered(&message) {
                Ok((address, server)) => {
                    self.state = State::Requesting { address, server };
                    Heard::Offer(address)
                }
                Err(why) => Heard::Ignored(why),
            },
            (Some(MessageType::Ack), State::Requesting { address, .. } | State::Renewing { address }) => {
                match lease(&message) {
                    Ok(lease) if lease.address == address => Heard::Bound(lease),
                    Ok(_) => Heard::Ignored("acknowledges another address"),
                    Err(why) => Heard::Ignored(why),
                }
            }
            (Some(MessageType::Nak), State::Requesting { server, .. })
                if server_id(&message) != Some(server) =>
            {
                Heard::Ignored("refusal of another server")
            }
            (Some(MessageType::Nak), State::Requesting { .. } | State::Renewing { .. }) => {
                self.state = State::Selecting;
                Heard::Nak
            }
            _ => Heard::Ignored("not expected now"),
        }
    }

    /// Checks what the decoder is lenient about, then decodes.
    fn read(&self, bytes: &[u8]) -> Result<Message, &'static str> {
        let cookie = bytes.get(HEADER - 4..HEADER).ok_or("shorter than a DHCP packet")?;
        if cookie != COOKIE {
            return Err("without the DHCP cookie");
        }
        if bytes[1] != 1 || bytes[2] != 6 {
            return Err("not for Ethernet");
        }
        let message = Message::decode(&mut Decoder::new(bytes)).map_err(|_| "not readable")?;
        if message.opcode() != Opcode::BootReply {
            return Err("not a reply");
        }
        if message.xid() != self.xid || bytes[28..34] != self.mac.0 {
            return Err("for another client");
        }
        Ok(message)
    }

    /// Back to the beginning, with a new transaction.
    pub fn restart(&mut self, xid: u32) {
        *self = Client::new(self.mac, xid);
    }
}

fn server_id(message: &Message) -> Option<Ipv4Addr> {
    match message.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server).filter(usable),
        _ => None,
    }
}

fn offered(message: &Message) -> Result<(Ipv4Addr, Ipv4Addr), &'static str> {
    let lease = lease(message)?;
    Ok((lease.address, lease.server))
}

/// A unicast address that a host may have.
fn usable(address: &Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.octets()[0] == 0
        || address.octets()[0] >= 240)
}

fn lease(message: &Message) -> Result<Lease, &'static str> {
    let options = message.opts();
    let address = Some(message.yiaddr()).filter(usable).ok_or("without a usable address")?;
    let server = server_id(message).ok_or("without a server identifier")?;
    let mask = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => u32::from(*mask),
        _ => return Err("without a subnet mask"),
    };
    let prefix = mask.leading_ones() as u8;
    if mask.count_ones() != mask.leading_ones() || !(8..=31).contains(&prefix) {
        return Err("with a senseless subnet mask");
    }
    let seconds = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(seconds)) if *seconds > 0 => *seconds,
        _ => return Err("without a lease time"),
    };
    let gateway = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied().filter(usable),
        _ => None,
    };
    // A route through a gateway outside the subnet can't be set.
    let same_subnet = |other: &Ipv4Addr| u32::from(*other) & mask == u32::from(address) & mask;
    let gateway = gateway.filter(same_subnet);
    let dns = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => {
            servers.iter().copied().filter(usable).take(3).collect()
        }
        _ => vec![],
    };
    let boot_server = match options.get(OptionCode::BootfileName) {
        Some(DhcpOption::BootfileName(name)) => {
            std::str::from_utf8(name).ok().and_then(|n| server_url(n.trim_end_matches('\0')))
        }
        _ => None,
    };
    let hostname = match options.get(OptionCode::Hostname) {
        Some(DhcpOption::Hostname(name)) => Some(name.clone()).filter(|n| is_host_name(n)),
        _ => None,
    };
    Ok(Lease { address, prefix, gateway, dns, server, seconds, boot_server, hostname })
}

/// Letters, digits, `-` and `.`, at most 64 bytes: what may go into the kernel's host name.
pub fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

/// Seconds until the next packet, by the number of packets sent: 1, 2, 4, then every 8. A switch port in spanning-tree start-up
/// swallows packets for up to a minute; short waits find its end soon.
pub fn patience_seconds(sent: u32) -> u64 {
    1 << sent.saturating_sub(1).min(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const XID: u32 = 0xdead_beef;
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 21);

    fn reply(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut m = Message::new_with_id(XID, zero, OURS, SERVER, zero, &MAC.0);
        m.set_opcode(Opcode::BootReply);
        let o = m.opts_mut();
        o.insert(DhcpOption::MessageType(kind));
        o.insert(DhcpOption::ServerIdentifier(SERVER));
        o.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        o.insert(DhcpOption::Router(vec![SERVER]));
        o.insert(DhcpOption::DomainNameServer(vec![SERVER]));
        o.insert(DhcpOption::AddressLeaseTime(3600));
        o.insert(DhcpOption::BootfileName(b"http://10.77.0.1:8080\0".to_vec()));
        o.insert(DhcpOption::Hostname("ws-01".into()));
        change(&mut m);
        m.to_vec().unwrap()
    }

    #[test]
    fn a_lease_in_four_packets() {
        let mut client = Client::new(MAC, XID);
        let discover = Message::decode(&mut Decoder::new(&client.packet(0))).unwrap();
        assert_eq!(discover.opts().msg_type(), Some(MessageType::Discover));
        assert!(discover.flags().broadcast());
        assert_eq!(client.hear(&reply(MessageType::Offer, |_| ())), Heard::Offer(OURS));
        let request = Message::decode(&mut Decoder::new(&client.packet(3))).unwrap();
        assert_eq!(
            request.opts().get(OptionCode::RequestedIpAddress),
            Some(&DhcpOption::RequestedIpAddress(OURS))
        );
        let Heard::Bound(lease) = client.hear(&reply(MessageType::Ack, |_| ())) else { panic!("no lease") };
        assert_eq!((lease.address, lease.prefix, lease.gateway), (OURS, 24, Some(SERVER)));
        assert_eq!(lease.boot_server.as_deref(), Some("http://10.77.0.1:8080"));
        assert_eq!(lease.hostname.as_deref(), Some("ws-01"));
    }

    #[test]
    fn refusals_start_again_and_strangers_do_not() {
        let mut client = Client::new(MAC, XID);
        client.hear(&reply(MessageType::Offer, |_| ()));
        let stranger = reply(MessageType::Nak, |m| {
            m.opts_mut().insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 77, 0, 66)));
        });
        assert!(matches!(client.hear(&stranger), Heard::Ignored(_)));
        assert_eq!(client.hear(&reply(MessageType::Nak, |_| ())), Heard::Nak);
        assert_eq!(client.hear(&reply(MessageType::Offer, |_| ())), Heard::Offer(OURS));

        let mut renewing = Client::renewing(MAC, XID, OURS);
        let packet = Message::decode(&mut Decoder::new(&renewing.packet(0))).unwrap();
        assert_eq!((packet.ciaddr(), packet.flags().broadcast()), (OURS, false));
        assert!(matches!(renewing.hear(&reply(MessageType::Ack, |_| ())), Heard::Bound(_)));
        assert_eq!(renewing.hear(&reply(MessageType::Nak, |_| ())), Heard::Nak);
    }

    #[test]
    fn hostile_offers_change_nothing() {
        type Change = fn(&mut Message);
        let changes: [(&str, Change); 9] = [
            ("xid", |m| _ = m.set_xid(1)),
            ("opcode", |m| _ = m.set_opcode(Opcode::BootRequest)),
            ("other mac", |m| _ = m.set_chaddr(&[2; 6])),
            ("no address", |m| _ = m.set_yiaddr(Ipv4Addr::UNSPECIFIED)),
            ("multicast", |m| _ = m.set_yiaddr(Ipv4Addr::new(224, 0, 0, 1))),
            ("loopback", |m| _ = m.set_yiaddr(Ipv4Addr::LOCALHOST)),
            ("no server", |m| drop(m.opts_mut().remove(OptionCode::ServerIdentifier))),
            ("mask", |m| drop(m.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0))))),
            ("time", |m| drop(m.opts_mut().insert(DhcpOption::AddressLeaseTime(0)))),
        ];
        for (name, change) in changes {
            let mut client = Client::new(MAC, XID);
            assert!(matches!(client.hear(&reply(MessageType::Offer, change)), Heard::Ignored(_)), "{name}");
            assert_eq!(client.state, State::Selecting, "{name}");
        }
        let evil = reply(MessageType::Ack, |m| {
            m.opts_mut().insert(DhcpOption::Router(vec![Ipv4Addr::new(192, 0, 2, 1)]));
            m.opts_mut().insert(DhcpOption::BootfileName(b"http://10.0.0.1:80/x y".to_vec()));
            m.opts_mut().insert(DhcpOption::Hostname("ws\n$(reboot)".into()));
        });
        let mut client = Client::renewing(MAC, XID, OURS);
        let Heard::Bound(lease) = client.hear(&evil) else { panic!("refused") };
        assert_eq!((lease.gateway, lease.boot_server, lease.hostname), (None, None, None));
    }

    #[test]
    fn mutated_packets_never_panic() {
        let seeds = [
            reply(MessageType::Offer, |_| ()),
            reply(MessageType::Ack, |_| ()),
            reply(MessageType::Nak, |_| ()),
        ];
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for round in 0..30_000 {
            let mut bytes = seeds[round % 3].clone();
            for _ in 0..1 + next() % 8 {
                let at = next() % bytes.len();
                match next() % 4 {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes.insert(at, next() as u8),
                    _ => bytes[at] = next() as u8,
                }
            }
            for mut client in [Client::new(MAC, XID), Client::renewing(MAC, XID, OURS)] {
                if let Heard::Bound(lease) = client.hear(&bytes) {
                    assert!(usable(&lease.address) && lease.seconds > 0);
                }
            }
        }
    }

    #[test]
    fn case_14_discovery_lasts_beyond_spanning_tree() {
        let total: u64 = (1..=10).map(patience_seconds).sum();
        assert!(total >= 60, "{total}");
    }
}
