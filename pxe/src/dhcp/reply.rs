//! How a reply is made and where it goes (RFC 2131 section 4.1; RFC 4578; UEFI 2.10 section 24.7).

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::{
    Encodable,
    v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode},
};
use labshift_model::MacAddr;

use super::{
    boot::BootFile,
    client::{Client, HTTP_CLASS, PXE_CLASS},
    request::Request,
};
use crate::config::{Config, Subnet};

/// Port on which a server, and a relay, takes messages.
pub const SERVER_PORT: u16 = 67;
/// Port on which a client takes messages.
pub const CLIENT_PORT: u16 = 68;
/// Shortest BOOTP message: some old clients drop a shorter one.
const MINIMUM: usize = 300;
/// Option 82: the last one, by RFC 3046.
const RELAY: u8 = 82;
/// The `file` field, of which the last byte stays NUL.
const FILE: usize = 128;

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Payload of the UDP datagram.
    pub bytes: Vec<u8>,
    /// Where it goes.
    pub to: Destination,
}

/// Where a reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To a socket that answers ARP.
    Socket(SocketAddrV4),
    /// To a client that has no address yet: this address, in a frame to this card.
    Card(Ipv4Addr, MacAddr),
    /// To everyone on our network.
    Broadcast,
}

/// A reply under construction.
pub struct Draft {
    message: Message,
    /// Options written as they are, after the others. (`dhcproto` leaves out an empty one, sorts the parts of option 82,
    /// and writes an unparsed option 82 twice.)
    raw: Vec<(u8, Vec<u8>)>,
}

impl Draft {
    /// The fields that every reply takes over from its request, and who we are.
    pub fn new(request: &Request, kind: MessageType, config: &Config) -> Self {
        let mut message = Message::new_with_id(
            request.xid,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            request.giaddr,
            &request.mac.0,
        );
        message.set_opcode(Opcode::BootReply).set_htype(HType::Eth).set_flags(request.flags);
        let mut draft = Draft { message, raw: vec![] };
        draft.option(DhcpOption::MessageType(kind));
        draft.option(DhcpOption::ServerIdentifier(config.server_address));
        for (code, value) in [(61, &request.client_id), (97, &request.uuid), (RELAY, &request.relay)] {
            if let Some(value) = value {
                draft.raw(code, value.clone());
            }
        }
        draft
    }

    fn option(&mut self, option: DhcpOption) {
        self.message.opts_mut().insert(option);
    }

    fn raw(&mut self, code: u8, value: Vec<u8>) {
        self.raw.push((code, value));
    }

    /// The client's address and for how many seconds.
    pub fn lease(mut self, address: Ipv4Addr, seconds: u32) -> Self {
        self.message.set_yiaddr(address);
        self.option(DhcpOption::AddressLeaseTime(seconds));
        self.option(DhcpOption::Renewal(seconds / 2));
        self.option(DhcpOption::Rebinding(seconds / 8 * 7));
        self
    }

    /// Copies the address that the client already uses.
    pub fn in_use(mut self, ciaddr: Ipv4Addr) -> Self {
        self.message.set_ciaddr(ciaddr);
        self
    }

    /// Mask, gateway, name servers, host name.
    pub fn network(mut self, subnet: &Subnet, dns: &[Ipv4Addr], name: Option<&str>) -> Self {
        self.option(DhcpOption::SubnetMask(subnet.mask()));
        self.option(DhcpOption::BroadcastAddr(subnet.broadcast()));
        if let Some(gateway) = subnet.gateway {
            self.option(DhcpOption::Router(vec![gateway]));
        }
        if !dns.is_empty() {
            self.option(DhcpOption::DomainNameServer(dns.to_vec()));
        }
        if let Some(name) = name {
            self.option(DhcpOption::Hostname(name.to_owned()));
        }
        self
    }

    /// What to boot. `client` gets what its kind needs to hear even when there is nothing to boot.
    pub fn boot(mut self, client: Client, file: Option<&BootFile>, config: &Config) -> Self {
        // Sub-option 6 = 8: use the file of this reply, look for no boot server (EDK2 would, on port 4011).
        const PXE_DISCOVERY_CONTROL: [u8; 4] = [6, 1, 8, 255];
        // Sub-option 9, a boot menu, of one item of type 0, the local disk; sub-option 10, a prompt that waits 0 s before it
        // takes the first item; sub-option 6: nobody is to be looked for.
        const PXE_OWN_DISK: &[u8] = b"\x06\x01\x03\x09\x0b\0\0\x08own disk\x0a\x09\0own disk\xff";
        // Sub-option 176 = 1: no proxyDHCP offer is coming; saves iPXE two to three seconds.
        const IPXE_NO_PROXY: [u8; 3] = [0xb0, 1, 1];
        if client == Client::Ipxe {
            self.raw(175, IPXE_NO_PROXY.to_vec());
        }
        let Some(file) = file else { return self };
        self.message.set_siaddr(config.server_address);
        match file {
            BootFile::Tftp(path) => {
                self.option(DhcpOption::ClassIdentifier(PXE_CLASS.to_vec()));
                self.option(DhcpOption::VendorExtensions(PXE_DISCOVERY_CONTROL.to_vec()));
                self.file(path, true);
            }
            BootFile::HttpBoot(url) => {
                self.option(DhcpOption::ClassIdentifier(HTTP_CLASS.to_vec()));
                self.file(url, true);
            }
            BootFile::Script(url) => self.file(url, true),
            BootFile::Base(url) => self.file(url, false),
            BootFile::OwnDisk => {
                self.option(DhcpOption::ClassIdentifier(PXE_CLASS.to_vec()));
                self.option(DhcpOption::VendorExtensions(PXE_OWN_DISK.to_vec()));
            }
        }
        self
    }

    /// Boot file by option 67 and, for firmware, by the header's field. Some ROMs read past the end of option 67:
    /// theirs ends in NUL.
    fn file(&mut self, name: &str, firmware: bool) {
        let mut value = name.as_bytes().to_vec();
        if firmware {
            if value.len() < FILE {
                self.message.set_fname(&value);
            }
            value.push(0);
        }
        self.option(DhcpOption::BootfileName(value));
    }

    /// The reason of a NAK, for the client's log.
    pub fn reason(mut self, text: &str) -> Self {
        self.option(DhcpOption::Message(text.to_owned()));
        self
    }

    /// For a relay that must broadcast on its side: the client can't take a unicast.
    pub fn broadcast(mut self) -> Self {
        self.message.set_flags(Flags::default().set_broadcast());
        self
    }

    /// The packet. `None` when an option can't be encoded.
    pub fn to(mut self, to: Destination) -> Option<Reply> {
        const END: u8 = 255;
        let mut bytes = self.message.to_vec().ok()?;
        bytes.pop_if(|last| *last == END);
        self.raw.sort_by_key(|(code, _)| *code == RELAY);
        for (code, value) in &self.raw {
            // A value over 255 bytes in parts (RFC 3396); an empty one as one empty part.
            for part in value.chunks(255).chain(value.is_empty().then_some(&[][..])) {
                bytes.extend([*code, part.len() as u8]);
                bytes.extend(part);
            }
        }
        bytes.push(END);
        bytes.resize(bytes.len().max(MINIMUM), 0);
        Some(Reply { bytes, to })
    }
}

/// Where a reply that gives, or confirms, `address` goes.
pub fn destination(request: &Request, address: Ipv4Addr) -> Destination {
    if !request.giaddr.is_unspecified() {
        Destination::Socket(SocketAddrV4::new(request.giaddr, SERVER_PORT))
    } else if !request.ciaddr.is_unspecified() {
        Destination::Socket(SocketAddrV4::new(request.ciaddr, CLIENT_PORT))
    } else if request.flags.broadcast() || address.is_unspecified() {
        Destination::Broadcast
    } else {
        Destination::Card(address, request.mac)
    }
}
