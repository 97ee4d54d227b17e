//! Collects what happened, machine by machine: DHCP messages as they stood on the wire, and file transfers.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
};

use labshift_model::MacAddr;

use super::{
    finding::Finding,
    frame::{Link, Seen, seen},
    symptoms,
    transfer::Transfer,
};
use crate::dhcp::{
    client::{Client, Platform},
    options::{HEADER, Options, sub_option},
};

/// Machines, and messages of each, that are remembered: a flood must not use up the memory.
const MOST_CLIENTS: usize = 4096;
const MOST_MESSAGES: usize = 512;
const MOST_TRANSFERS: usize = 4096;

/// A DHCP message.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub seconds: f64,
    /// The card that the frame came from.
    pub card: Option<MacAddr>,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub kind: u8,
    pub xid: u32,
    pub yiaddr: Ipv4Addr,
    pub siaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 67, or the field of the header.
    pub file: Option<String>,
    /// Option 66, or the field of the header.
    pub server_name: Option<String>,
    /// Option 60.
    pub class: Option<String>,
    /// Option 43 has sub-option 6 with "use the file of this reply" (8).
    pub uses_file: bool,
    /// Who speaks, of a client's message.
    pub speaker: Option<Client>,
    /// Option 93.
    pub architecture: Option<u16>,
    /// Option 56.
    pub text: Option<String>,
}

/// DHCP message types.
pub(super) mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
}

impl Message {
    /// Where the reply came from: option 54, else the sender.
    pub fn origin(&self) -> Ipv4Addr {
        self.server.unwrap_or(*self.from.ip())
    }

    /// An offer or acknowledgement without an address: a proxy's.
    pub fn is_proxy(&self) -> bool {
        self.yiaddr.is_unspecified()
    }

    /// For the boot service on port 4011.
    pub fn is_boot_service(&self) -> bool {
        self.to.port() == 4011 || self.from.port() == 4011
    }
}

/// One machine.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// What it sent, and what was sent to it, in order.
    pub messages: Vec<Message>,
    /// Numbers of its transfers.
    pub transfers: Vec<usize>,
}

impl Machine {
    pub fn of_kind(&self, kind: u8) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(move |m| m.kind == kind)
    }

    /// Network boot firmware spoke.
    pub fn firmware(&self) -> Option<Platform> {
        self.messages.iter().find_map(|m| match m.speaker {
            Some(Client::Firmware(platform)) => Some(platform),
            _ => None,
        })
    }
}

/// All that was seen.
#[derive(Debug, Default)]
pub struct Observations {
    pub(super) machines: BTreeMap<MacAddr, Machine>,
    pub(super) transfers: Vec<Transfer>,
    /// Who has which address, from acknowledgements.
    owners: HashMap<Ipv4Addr, MacAddr>,
    first: Option<f64>,
    clock: f64,
    frames: u64,
}

impl Observations {
    /// Frames looked at.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Machines that were seen asking.
    pub fn clients(&self) -> usize {
        self.machines.len()
    }

    /// What is wrong, one finding for each machine and pattern.
    pub fn findings(&self) -> Vec<Finding> {
        symptoms::findings(self)
    }

    /// Seconds from the first frame to now.
    pub(super) fn clock(&self) -> f64 {
        self.clock
    }

    /// Time goes on though nothing is heard.
    pub(super) fn wait_until(&mut self, seconds: f64) {
        self.clock = self.clock.max(seconds - self.first.unwrap_or(seconds));
    }

    /// Takes a frame that was captured at `seconds`, of whatever clock.
    pub(super) fn take(&mut self, seconds: f64, link: Link, frame: &[u8]) {
        self.frames += 1;
        let seconds = seconds - *self.first.get_or_insert(seconds);
        self.clock = self.clock.max(seconds);
        match seen(link, frame) {
            Some(Seen::Udp { card, from, to, payload, cut }) => {
                let dhcp = |port| matches!(port, 67 | 68 | 4011);
                if dhcp(to.port()) || dhcp(from.port()) {
                    self.dhcp(seconds, card, from, to, payload);
                } else {
                    self.tftp(seconds, card, from, to, payload, cut);
                }
            }
            Some(Seen::Unreachable { by, code, from, to }) => {
                if let Some(transfer) = self.transfers.iter_mut().rev().find(|t| t.concerns(from, to)) {
                    transfer.unreachable.get_or_insert((seconds, by, code, from == transfer.client));
                }
            }
            None => {}
        }
    }

    fn dhcp(
        &mut self,
        seconds: f64,
        card: Option<MacAddr>,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: &[u8],
    ) {
        let Some((mac, message)) = message(seconds, card, from, to, payload) else { return };
        if message.kind == kind::ACK && !message.yiaddr.is_unspecified() {
            self.owners.insert(message.yiaddr, mac);
        }
        if self.machines.len() >= MOST_CLIENTS && !self.machines.contains_key(&mac) {
            return;
        }
        let machine = self.machines.entry(mac).or_default();
        if machine.messages.len() < MOST_MESSAGES {
            machine.messages.push(message);
        }
    }

    fn tftp(
        &mut self,
        seconds: f64,
        card: Option<MacAddr>,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: &[u8],
        cut: bool,
    ) {
        if to.port() == 69 {
            let known = self.transfers.iter_mut().rev().find(|t| t.client == from && t.server == to);
            if let Some(transfer) = known
                && transfer.asked_again(seconds, payload)
            {
                return;
            }
            let Some(transfer) = Transfer::begin(seconds, from, to, payload) else { return };
            if self.transfers.len() < MOST_TRANSFERS {
                let number = self.transfers.len();
                self.transfers.push(transfer);
                let owner = self.owners.get(from.ip()).copied().or(card);
                if let Some(machine) = owner.and_then(|mac| self.machines.get_mut(&mac)) {
                    machine.transfers.push(number);
                }
            }
        } else if let Some(transfer) = self.transfers.iter_mut().rev().find(|t| t.concerns(from, to)) {
            transfer.take(seconds, from, payload, cut);
        }
    }
}

fn message(
    seconds: f64,
    card: Option<MacAddr>,
    from: SocketAddrV4,
    to: SocketAddrV4,
    packet: &[u8],
) -> Option<(MacAddr, Message)> {
    let options = Options::of(packet).ok()?;
    let head: &[u8; HEADER] = packet.first_chunk()?;
    let address = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
    let mac = MacAddr(head[28..34].try_into().ok()?);
    let request = head[0] == 1;
    let text = |bytes: &[u8]| {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        let text: String =
            String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(200).collect();
        (!text.is_empty()).then_some(text)
    };
    let option = |code| options.get(code).and_then(text);
    // Option 52 says that a field of the header holds options, not a name.
    let overload = options.get(52).and_then(|v| v.first().copied()).unwrap_or(0);
    let field = |range: std::ops::Range<usize>, bit: u8| text(&head[range]).filter(|_| overload & bit == 0);
    let control = options.get(43).and_then(|field| sub_option(field, 6)).and_then(|v| v.first().copied());
    Some((
        mac,
        Message {
            seconds,
            card,
            from,
            to,
            kind: options.byte(53).ok()??,
            xid: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            yiaddr: address(16),
            siaddr: address(20),
            giaddr: address(24),
            server: options.address(54).ok().flatten(),
            file: option(67).or_else(|| field(108..236, 1)),
            server_name: option(66).or_else(|| field(44..108, 2)),
            class: option(60),
            uses_file: control.is_some_and(|bits| bits & 8 != 0),
            speaker: request.then(|| Client::of(&options)),
            architecture: options
                .get(93)
                .and_then(|v| v.first_chunk::<2>())
                .map(|two| u16::from_be_bytes(*two)),
            text: option(56),
        },
    ))
}
