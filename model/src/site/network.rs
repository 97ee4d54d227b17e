//! The networks of a site: the server's own, those of its other interfaces, and those behind DHCP relays. Reading them, and which
//! addresses they have for machines.

use std::{fmt, net::Ipv4Addr};

use toml::Spanned;

use super::{Server, Site, Workstation, read::duration};
use crate::{fault::Section, paths::MOST_PEERS};

/// `[[interface]]`: one more network card of this server, with a lab's network behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `name = "eth2"`: as the kernel calls it.
    pub name: String,
    /// `dhcp = "authoritative"`: the part that this server takes in DHCP there.
    pub dhcp: Dhcp,
    /// Address, pool, gateway, name servers and lease, as in `[server]`.
    pub server: Server,
}

/// The part taken in DHCP on an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dhcp {
    /// It gives the addresses.
    #[default]
    Authoritative,
    /// It adds boot information beside another server.
    Proxy,
    /// None: TFTP and HTTP only.
    Off,
}

/// `[[relayed]]`: a network that a DHCP relay joins with this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// `subnet = "10.79.0.0/24"`: first address of the network.
    pub network: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// `pool`: first and last address for guests and strangers. Without it only machines with their own address get one.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// `gateway`: the network's router; the way to this server.
    pub gateway: Option<Ipv4Addr>,
    /// `interface = "eth2"`: where the relay's messages come in; the interface of `[server]` when absent.
    pub interface: Option<String>,
}

/// One network as far as addresses go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// An address of it: the server's own where the server has one there.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// Addresses that are lent.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Its router.
    pub gateway: Option<Ipv4Addr>,
    /// The server's own address there; none behind a relay.
    pub own: Option<Ipv4Addr>,
}

impl Subnet {
    fn of_server(server: &Server) -> Self {
        let Server { address, prefix, pool, gateway, .. } = *server;
        Subnet { address, prefix, pool, gateway, own: Some(address) }
    }

    fn of_relayed(relayed: &Relayed) -> Self {
        let Relayed { network, prefix, pool, gateway, .. } = *relayed;
        Subnet { address: network, prefix, pool, gateway, own: None }
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// Whether the address lies in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// Whether a host may have this address: inside, neither the first nor the last.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        let host = address.to_bits() & !self.mask();
        self.contains(address) && host != 0 && host != !self.mask()
    }

    /// Where a frame for everybody goes.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }

    /// Whether a machine may have this address for good; else why not.
    fn gives(&self, address: Ipv4Addr) -> Result<(), String> {
        if Some(address) == self.own || Some(address) == self.gateway {
            Err(format!("{address} is the server's or the gateway's own address"))
        } else if self.pool.is_some_and(|(first, last)| (first..=last).contains(&address)) {
            Err(format!("{address} is inside the pool for guests"))
        } else {
            Ok(())
        }
    }

    /// Its addresses, first to last.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let first = self.address.to_bits() & self.mask();
        (first..=self.broadcast().to_bits()).map(Ipv4Addr::from_bits)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// All networks of a site, the server's own first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Networks(pub Vec<Subnet>);

impl Networks {
    pub fn new(server: &Server, interfaces: &[Interface], relayed: &[Relayed]) -> Self {
        let own = [server].into_iter().chain(interfaces.iter().map(|i| &i.server)).map(Subnet::of_server);
        Networks(own.chain(relayed.iter().map(Subnet::of_relayed)).collect())
    }

    /// Two networks that share addresses.
    pub fn overlap(&self) -> Option<(Subnet, Subnet)> {
        let pairs =
            self.0.iter().enumerate().flat_map(|(n, a)| self.0[n + 1..].iter().map(move |b| (*a, *b)));
        pairs.into_iter().find(|(a, b)| a.contains(b.address) || b.contains(a.address))
    }

    /// Whether a machine may have this address for good; else why not.
    pub fn give(&self, address: Ipv4Addr) -> Result<(), String> {
        match self.0.iter().find(|s| s.is_host(address)) {
            Some(subnet) => subnet.gives(address),
            None => {
                let all: Vec<_> = self.0.iter().map(Subnet::to_string).collect();
                let word = if all.len() == 1 { "subnet" } else { "subnets" };
                Err(format!("{address} is outside the lab's {word} {}", all.join(", ")))
            }
        }
    }
}

impl Site {
    pub(super) fn networks(&self) -> Networks {
        Networks::new(&self.server, &self.interfaces, &self.relayed)
    }

    /// How a frame for everybody on a machine's network leaves: from which address of ours, to which, and on which interface (`None`:
    /// that of `[server]`). Behind a relay there is no interface: only routers reach it.
    pub fn way_to(&self, address: Ipv4Addr) -> Way<'_> {
        let behind = |r: &&Relayed| Subnet::of_relayed(r).contains(address);
        if let Some(relayed) = self.relayed.iter().find(behind) {
            let subnet = Subnet::of_relayed(relayed);
            return Way { from: self.server.address, to: subnet.broadcast(), link: Link::Routed };
        }
        let there = self.interfaces.iter().find(|i| Subnet::of_server(&i.server).contains(address));
        match there {
            Some(i) => {
                Way { from: i.server.address, to: i.server.broadcast(), link: Link::Interface(&i.name) }
            }
            None => Way { from: self.server.address, to: self.server.broadcast(), link: Link::Main },
        }
    }

    /// The machines with which this one may share blocks of its root, by address: of rooms that allow it, in its network, with its image. The
    /// nearest in the file, before and after it, so that each of two machines names the other.
    pub fn peers_of(&self, machine: &Workstation) -> Vec<Ipv4Addr> {
        let shares = |name: &str| self.room(name).filter(|room| room.peers);
        let Some(own) = shares(&machine.room) else { return vec![] };
        let networks = self.networks();
        let network = |address| networks.0.iter().position(|n| n.contains(address));
        let same = |other: &&Workstation| {
            shares(&other.room).is_some_and(|room| room.image == own.image)
                && network(other.address) == network(machine.address)
        };
        let all: Vec<Ipv4Addr> = self.machines.iter().filter(same).map(|m| m.address).collect();
        let Some(place) = all.iter().position(|a| *a == machine.address) else { return vec![] };
        let ring = [&all[place + 1..], &all[..place]].concat();
        match ring.len().checked_sub(MOST_PEERS) {
            Some(further @ 1..) => [&ring[..MOST_PEERS / 2], &ring[MOST_PEERS / 2 + further..]].concat(),
            _ => ring,
        }
    }

    /// The longest lease of its networks, in seconds.
    pub fn longest_lease(&self) -> u32 {
        let others = self.interfaces.iter().map(|i| i.server.lease_seconds);
        others.fold(self.server.lease_seconds, u32::max)
    }
}

/// See [`Site::way_to`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way<'s> {
    /// Our address.
    pub from: Ipv4Addr,
    /// The network's broadcast address.
    pub to: Ipv4Addr,
    /// Where a frame leaves.
    pub link: Link<'s>,
}

/// Where a frame leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link<'s> {
    /// The interface that the server was started with.
    Main,
    /// This one.
    Interface(&'s str),
    /// Nowhere: the network is behind routers.
    Routed,
}

/// `[server]`, or the same keys of an `[[interface]]`.
pub(super) fn server(table: Section<'_, '_>) -> Option<Server> {
    let help = "the server's address with the subnet's prefix length, like \"10.77.0.1/24\"";
    let address = subnet(&table, "address", help);
    let pool = table.string("pool");
    let gateway = table.parsed::<Ipv4Addr>("gateway");
    let dns = table
        .strings("dns")
        .into_iter()
        .filter_map(|item| {
            let parsed = item.get_ref().parse().ok();
            if parsed.is_none() {
                let message = format!("\"{}\" is not an IPv4 address", item.get_ref());
                table.source().fault(item.span(), message, "");
            }
            parsed
        })
        .collect();
    let lease_seconds = duration(&table, "lease", 60..=30 * 86400).unwrap_or(3600);
    let source = table.source();
    let (found, span) = address.map(|a| (*a.get_ref(), a.span()))?;
    let (address, prefix) = found;
    let plain = Subnet { address, prefix, pool: None, gateway: None, own: Some(address) };
    if !plain.is_host(address) {
        let message = format!("{address} is not a host's address in its own subnet");
        source.fault(span, message, "take another address");
    }
    let whose = "the subnet of the server's address";
    let gateway = gateway.map(|g| router(&table, &plain, &g, whose));
    let pool = pool.and_then(|p| range(&table, &plain, &p, whose));
    table.close();
    Some(Server { address, prefix, pool, gateway, dns, lease_seconds })
}

/// `[[interface]]`.
pub(super) fn interface(table: Section<'_, '_>) -> Option<(Interface, Spanned<String>)> {
    let name = table.required("name", "the kernel's name of the network card, like \"eth2\"");
    let name = name.filter(|found| {
        let text = *found.get_ref();
        let good = (1..16).contains(&text.len()) && !text.contains(|c: char| c.is_whitespace() || c == '/');
        if !good {
            table.source().fault(
                found.span(),
                format!("\"{text}\" is no name of an interface"),
                "`ip link` lists them",
            );
        }
        good
    });
    let name = name.map(|found| Spanned::new(found.span(), (*found.get_ref()).to_owned()));
    let dhcp = table.string("dhcp").map(|found| match *found.get_ref() {
        "authoritative" => Dhcp::Authoritative,
        "proxy" => Dhcp::Proxy,
        "off" => Dhcp::Off,
        other => {
            let message =
                format!("\"dhcp\" must be \"authoritative\", \"proxy\" or \"off\", but this is \"{other}\"");
            table.source().fault(found.span(), message, "");
            Dhcp::Off
        }
    });
    let server = server(table);
    let name = name?;
    Some((Interface { name: name.get_ref().clone(), dhcp: dhcp.unwrap_or_default(), server: server? }, name))
}

/// `[[relayed]]`.
pub(super) fn relayed(table: Section<'_, '_>, interfaces: &[Interface]) -> Option<Relayed> {
    let help = "the network behind the relay with its prefix length, like \"10.79.0.0/24\"";
    let subnet = subnet(&table, "subnet", help);
    let (pool, gateway) = (table.string("pool"), table.parsed::<Ipv4Addr>("gateway"));
    let interface = table.string("interface").map(|found| {
        if !interfaces.iter().any(|i| i.name == *found.get_ref()) {
            let message = format!("there is no [[interface]] \"{}\"", found.get_ref());
            table.source().fault(
                found.span(),
                message,
                "leave the key out for the interface that the server is started with",
            );
        }
        (*found.get_ref()).to_owned()
    });
    let (address, prefix) = *subnet?.get_ref();
    let mut plain = Subnet { address, prefix, pool: None, gateway: None, own: None };
    plain.address = Ipv4Addr::from_bits(address.to_bits() & plain.mask());
    let whose = "this subnet";
    let gateway = gateway.map(|g| router(&table, &plain, &g, whose));
    let pool = pool.and_then(|p| range(&table, &plain, &p, whose));
    table.close();
    Some(Relayed { network: plain.address, prefix, pool, gateway, interface })
}

/// An address with a prefix length.
fn subnet(table: &Section<'_, '_>, key: &'static str, help: &str) -> Option<Spanned<(Ipv4Addr, u8)>> {
    let found = table.required(key, help)?;
    let parsed = found.get_ref().split_once('/').and_then(|(address, prefix)| {
        let prefix = prefix.parse::<u8>().ok().filter(|p| (8..=30).contains(p))?;
        Some((address.parse::<Ipv4Addr>().ok()?, prefix))
    });
    if parsed.is_none() {
        let message = format!("\"{}\" is not an address with a prefix length from 8 to 30", found.get_ref());
        table.source().fault(found.span(), message, help);
    }
    Some(Spanned::new(found.span(), parsed?))
}

fn router(table: &Section<'_, '_>, subnet: &Subnet, gateway: &Spanned<Ipv4Addr>, whose: &str) -> Ipv4Addr {
    let address = *gateway.get_ref();
    if !subnet.is_host(address) {
        table.source().fault(gateway.span(), format!("gateway {address} is outside {whose}"), "");
    }
    address
}

fn range(
    table: &Section<'_, '_>,
    subnet: &Subnet,
    pool: &Spanned<&str>,
    whose: &str,
) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let help = "two addresses like \"10.77.0.100-10.77.0.199\"";
    let fault = |message: String, help: &str| table.source().fault(pool.span(), message, help);
    let ends = pool.get_ref().split_once('-');
    let ends = ends.and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match ends {
        None => fault(format!("\"{}\" is not a range of addresses", pool.get_ref()), help),
        Some((first, last)) if first > last => {
            fault("the pool ends before it begins".to_owned(), "swap the two addresses");
        }
        Some((first, last)) if !subnet.is_host(first) || !subnet.is_host(last) => {
            fault(format!("the pool is not inside {whose}"), help);
        }
        Some((first, last)) => match subnet.own.filter(|own| (first..=last).contains(own)) {
            Some(own) => fault(format!("the pool holds the server's own address {own}"), ""),
            None => return Some((first, last)),
        },
    }
    None
}
