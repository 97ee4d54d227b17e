//! From one packet to the replies it gets: the authoritative server (RFC 2131). Pure; the only state is the lease
//! table, which is passed in.
//!
//! ```text
//! DISCOVER ---------> choose, hold -----------------------> OFFER
//! REQUEST  chosen ---> is it free for this machine? --yes--> bind, ACK
//!          restarted     |
//!          renewing      +--no, or not on this network ----> NAK
//!          other server -> let go of our offer               (silence)
//! INFORM   ------------------------------------------------> ACK without address
//! DECLINE, RELEASE --> keep back, free                       (silence)
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::MessageType;
use jiff::Timestamp;
use labshift_model::boot::{BootPlaneEvent, Directory, Machine};

use super::{
    boot::boot_file,
    client::Client,
    lease::Leases,
    proxy,
    reply::{Destination, Draft, Reply, destination},
    request::Request,
};
use crate::config::{Config, Mode, NO_POOL, Subnet};

/// Where a packet came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// 67.
    Dhcp,
    /// 4011, the PXE boot server's.
    BootServer,
}

/// What one packet leads to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Packets to send, in order.
    pub replies: Vec<Reply>,
    /// What the journal hears.
    pub events: Vec<BootPlaneEvent>,
    /// The machine never had this address: the reply may leave once the wire says that nobody else has it.
    pub unproven: Option<Ipv4Addr>,
    /// The reply is for network boot firmware, which may want it a little later.
    pub firmware: bool,
}

impl Answer {
    pub(super) fn one(reply: Option<Reply>, event: Option<BootPlaneEvent>) -> Self {
        let (replies, events) = (reply.into_iter().collect(), event.into_iter().collect());
        Answer { replies, events, ..Answer::default() }
    }
}

/// Answers one packet. Whatever is malformed, foreign or not for us gets silence.
pub fn answer(
    packet: &[u8],
    source: SocketAddrV4,
    port: Port,
    config: &Config,
    leases: &mut Leases,
    directory: &dyn Directory,
    now: Timestamp,
) -> Answer {
    let request = match Request::of(packet) {
        Ok(request) => request,
        Err(fault) => {
            tracing::debug!("DHCP packet from {source} dropped: {fault}");
            return Answer::default();
        }
    };
    let firmware = matches!(request.client, Client::Firmware(_));
    let answer = match (config.mode, port) {
        (Mode::Off, _) => Answer::default(),
        (_, Port::BootServer) => proxy::boot_server(&request, source, config, directory),
        (Mode::Proxy, Port::Dhcp) => proxy::offer(&request, config, directory),
        (Mode::Authoritative, Port::Dhcp) => {
            let Some(subnet) = subnet_of(&request, *source.ip(), config) else {
                tracing::warn!(
                    "DHCP {:?} of {} is from a network we have no pool for",
                    request.kind,
                    request.mac
                );
                return Answer::default();
            };
            let machine = directory.machine(request.mac);
            Exchange { request, subnet, machine, config, directory, now }.answer(leases)
        }
    };
    let firmware = firmware && !answer.replies.is_empty();
    Answer { firmware, ..answer }
}

/// The network that the client sits on, so that a relayed client gets an address it can use.
fn subnet_of(request: &Request, source: Ipv4Addr, config: &Config) -> Option<Subnet> {
    let here = request.ciaddr.is_unspecified() || source.is_unspecified() || config.local().contains(source);
    if request.giaddr.is_unspecified() && here {
        return Some(config.local());
    }
    config.subnet_of(request.network()?)
}

struct Exchange<'a> {
    request: Request,
    subnet: Subnet,
    machine: Option<Machine>,
    config: &'a Config,
    directory: &'a dyn Directory,
    now: Timestamp,
}

impl Exchange<'_> {
    fn answer(&self, leases: &mut Leases) -> Answer {
        let (mac, for_us) =
            (self.request.mac, self.request.server.is_none_or(|s| s == self.config.server_address));
        match self.request.kind {
            MessageType::Discover => self.offer(leases),
            MessageType::Request if for_us => self.request(leases),
            MessageType::Request => self.lost(leases),
            MessageType::Decline if for_us => {
                if let Some(address) = self.request.asked.filter(|a| leases.decline(mac, *a, self.now)) {
                    tracing::warn!("{mac} found {address} in use; the address rests for ten minutes");
                }
                Answer::default()
            }
            MessageType::Release if for_us => {
                leases.release(mac, self.request.ciaddr, self.now);
                Answer::default()
            }
            MessageType::Inform => self.inform(),
            _ => Answer::default(),
        }
    }

    fn offer(&self, leases: &mut Leases) -> Answer {
        let mac = self.request.mac;
        let reserved = self.machine.as_ref().and_then(|m| m.address);
        let chosen =
            leases.choose(mac, &self.subnet, reserved, self.request.asked, &self.kept_back(), self.now);
        let stranger = |mac| self.directory.machine(mac).is_none();
        let taken_over = || self.machine.as_ref().and_then(|_| leases.unclaimed(&self.subnet, stranger));
        let Some(address) = chosen.or_else(taken_over) else {
            let (first, last) = self.subnet.pool;
            if self.subnet.pool == NO_POOL {
                tracing::warn!(
                    "no address for {mac}: it has no fixed one, and its network has no pool in site.toml"
                );
            } else {
                tracing::warn!(
                    "no address for {mac}: the pool {first} to {last} is used up; widen it in site.toml"
                );
            }
            return Answer::default();
        };
        leases.offer(mac, address, self.now);
        let event = BootPlaneEvent::Offer { mac, address, speaker: self.request.client.speaker() };
        let here = self.request.giaddr.is_unspecified() && !self.config.probe.is_zero();
        let unproven = Some(address).filter(|a| here && !leases.is_proven(mac, *a, self.now));
        Answer { unproven, ..Answer::one(self.give(MessageType::Offer, address), Some(event)) }
    }

    fn request(&self, leases: &mut Leases) -> Answer {
        let renewing = Some(self.request.ciaddr).filter(|a| !a.is_unspecified());
        let Some(address) = renewing.or(self.request.asked) else { return Answer::default() };
        if let Err(reason) = self.may_have(address, leases) {
            let to = match destination(&self.request, Ipv4Addr::UNSPECIFIED) {
                Destination::Socket(relay) if *relay.ip() == self.request.giaddr => {
                    Destination::Socket(relay)
                }
                _ => Destination::Broadcast,
            };
            tracing::info!("{} may not have {address}: {reason}", self.request.mac);
            let nak =
                Draft::new(&self.request, MessageType::Nak, self.config).reason(reason).broadcast().to(to);
            return Answer::one(nak, None);
        }
        let mac = self.request.mac;
        leases.bind(mac, address, self.config.lease_seconds, self.now);
        let event = BootPlaneEvent::Lease { mac, address, speaker: self.request.client.speaker() };
        Answer::one(self.give(MessageType::Ack, address), Some(event))
    }

    fn may_have(&self, address: Ipv4Addr, leases: &Leases) -> Result<(), &'static str> {
        let reserved = self.machine.as_ref().and_then(|m| m.address) == Some(address);
        if !self.subnet.is_host(address) {
            Err("the address is not of this network")
        } else if !reserved && (!self.subnet.pools(address) || self.kept_back().contains(&address)) {
            Err("the address is not one that this server gives")
        } else if !leases.is_free_for(self.request.mac, address, self.now) {
            Err("the address belongs to another machine")
        } else {
            Ok(())
        }
    }

    /// The client took another server's offer. On a network that should have one server, that is worth a word.
    fn lost(&self, leases: &mut Leases) -> Answer {
        if let Some(address) = leases.of(self.request.mac).map(|l| l.address) {
            leases.let_go(self.request.mac, address);
        }
        let event = self.request.server.map(|address| BootPlaneEvent::RogueServer { address });
        Answer::one(None, event)
    }

    fn inform(&self) -> Answer {
        if self.request.ciaddr.is_unspecified() {
            return Answer::default();
        }
        let draft = Draft::new(&self.request, MessageType::Ack, self.config).in_use(self.request.ciaddr);
        Answer::one(self.finish(draft, self.request.ciaddr), None)
    }

    fn give(&self, kind: MessageType, address: Ipv4Addr) -> Option<Reply> {
        let draft = Draft::new(&self.request, kind, self.config).lease(address, self.config.lease_seconds);
        let draft = if kind == MessageType::Ack { draft.in_use(self.request.ciaddr) } else { draft };
        self.finish(draft, address)
    }

    fn finish(&self, draft: Draft, address: Ipv4Addr) -> Option<Reply> {
        let (client, mac) = (self.request.client, self.request.mac);
        let name = self.machine.as_ref().map(|m| m.name.as_str());
        let choice = || self.directory.boot(mac);
        let file = boot_file(client, mac, self.machine.as_ref(), choice, self.config);
        draft
            .network(&self.subnet, &self.config.dns, name)
            .boot(client, file.as_ref(), self.config)
            .to(destination(&self.request, address))
    }

    /// Addresses that no client gets though they may lie in the pool.
    fn kept_back(&self) -> [Ipv4Addr; 3] {
        let relay = self.request.giaddr;
        [self.config.server_address, self.subnet.gateway.unwrap_or(self.config.server_address), relay]
    }
}
