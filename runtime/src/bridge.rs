//! The bridge that guests and the workstation share (rtnetlink(7)).
//!
//! ```text
//! before   port: address, routes            after   br0: address, routes, the port's MAC, no STP, no delay
//!                                                     +-- port    +-- guest taps (libvirt adds them)
//! ```
//!
//! The state is read first and the way back is known before anything is touched; afterwards it is read again and
//! compared. When the two do not agree, or a request fails, the port gets back what it had. The server sees the
//! same MAC and address throughout; open connections survive.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::{StreamExt, TryStreamExt};
use labshift_model::context::Network;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{BridgeStpState, LinkAttribute, LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol},
};
use rtnetlink::{Error as NetlinkError, Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use crate::domain::BRIDGE;

/// The bridge could not be set up; what was there before is there again unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] std::io::Error),
    /// A request failed.
    #[error("{what} {device}")]
    Request {
        /// In gerunds.
        what: &'static str,
        /// Device.
        device: String,
        /// The kernel's word.
        source: NetlinkError,
    },
    /// The port is not there.
    #[error("there is no network port {0}; was its driver loaded?")]
    NoPort(String),
    /// The kernel took every request, but the result is another.
    #[error("{device} is not as it was set up: {why}")]
    Unverified {
        /// Device.
        device: String,
        /// What differs.
        why: &'static str,
    },
}

/// What counts of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    index: u32,
    mac: Vec<u8>,
    controller: Option<u32>,
    up: bool,
}

/// What was there.
struct Before {
    port: Link,
    bridge: Option<Link>,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
}

/// The bridge carries the port and its address.
pub async fn is_up(network: &Network) -> Result<bool, BridgeError> {
    let netlink = Netlink::open()?;
    let before = netlink.read(&network.interface).await?;
    Ok(netlink.missing(network, &before).await?.is_none())
}

/// Makes it so. Safe to repeat.
pub async fn ensure(network: &Network) -> Result<(), BridgeError> {
    let netlink = Netlink::open()?;
    let before = netlink.read(&network.interface).await?;
    if netlink.missing(network, &before).await?.is_none() {
        return Ok(());
    }
    let result = match netlink.apply(network, &before).await {
        Ok(()) => netlink.verify(network).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &result {
        tracing::warn!(%error, "the bridge is taken back");
        netlink.revert(network, &before).await?;
    }
    result
}

/// One netlink socket.
struct Netlink {
    handle: Handle,
}

impl Netlink {
    fn open() -> Result<Self, BridgeError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(BridgeError::Socket)?;
        // Ends with the handle.
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    async fn link(&self, name: &str) -> Result<Option<Link>, BridgeError> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute().boxed();
        match links.try_next().await {
            Ok(message) => Ok(message.map(|m| describe(&m))),
            Err(NetlinkError::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
            Err(source) => Err(request("reading", name)(source)),
        }
    }

    async fn addresses(&self, index: u32, name: &str) -> Result<Vec<AddressMessage>, BridgeError> {
        let all = self.handle.address().get().set_link_index_filter(index).execute();
        let all: Vec<AddressMessage> =
            all.try_collect().await.map_err(request("reading the addresses of", name))?;
        Ok(all.into_iter().filter(|a| a.header.family == AddressFamily::Inet).collect())
    }

    /// Routes of the main table that somebody set; the kernel makes the others by itself.
    async fn routes(&self, index: u32, name: &str) -> Result<Vec<RouteMessage>, BridgeError> {
        let all = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let all: Vec<RouteMessage> =
            all.try_collect().await.map_err(request("reading the routes of", name))?;
        let mut routes: Vec<RouteMessage> = all
            .into_iter()
            .filter(|r| r.header.table == RouteHeader::RT_TABLE_MAIN)
            .filter(|r| r.header.protocol != RouteProtocol::Kernel)
            .filter(|r| r.attributes.contains(&RouteAttribute::Oif(index)))
            .collect();
        // A gateway must be reachable before a route names it.
        routes.sort_by_key(|r| r.attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_))));
        Ok(routes)
    }

    async fn read(&self, port: &str) -> Result<Before, BridgeError> {
        let link = self.link(port).await?.ok_or_else(|| BridgeError::NoPort(port.to_owned()))?;
        let addresses = self.addresses(link.index, port).await?;
        let routes = self.routes(link.index, port).await?;
        Ok(Before { bridge: self.link(BRIDGE).await?, port: link, addresses, routes })
    }

    /// The first thing that is not as it should be.
    async fn missing(&self, network: &Network, now: &Before) -> Result<Option<&'static str>, BridgeError> {
        let Some(bridge) = &now.bridge else { return Ok(Some("there is no bridge")) };
        if now.port.controller != Some(bridge.index) {
            return Ok(Some("the port is not part of it"));
        }
        if !bridge.up || !now.port.up {
            return Ok(Some("it is down"));
        }
        if bridge.mac != now.port.mac {
            return Ok(Some("its MAC is not the port's"));
        }
        if now.addresses.iter().any(is_global) {
            return Ok(Some("the port still has an address"));
        }
        let wanted = IpAddr::V4(network.address);
        let has = self.addresses(bridge.index, BRIDGE).await?;
        if !has.iter().any(|a| a.attributes.contains(&AddressAttribute::Local(wanted))) {
            return Ok(Some("it has not the node's address"));
        }
        Ok(None)
    }

    async fn verify(&self, network: &Network) -> Result<(), BridgeError> {
        let now = self.read(&network.interface).await?;
        match self.missing(network, &now).await? {
            Some(why) => Err(BridgeError::Unverified { device: BRIDGE.into(), why }),
            None => Ok(()),
        }
    }

    async fn apply(&self, network: &Network, before: &Before) -> Result<(), BridgeError> {
        if before.bridge.is_none() {
            let message = LinkBridge::new(BRIDGE)
                .address(before.port.mac.clone())
                .stp_state(BridgeStpState::Disabled)
                .forward_delay(0)
                .build();
            self.handle.link().add(message).execute().await.map_err(request("creating", BRIDGE))?;
        }
        let bridge = self.link(BRIDGE).await?.ok_or_else(|| BridgeError::NoPort(BRIDGE.into()))?;
        let up = LinkUnspec::new_with_index(bridge.index).address(before.port.mac.clone()).up().build();
        self.set(up, "setting up", BRIDGE).await?;
        let joined = LinkUnspec::new_with_index(before.port.index).controller(bridge.index).up().build();
        self.set(joined, "adding to the bridge", &network.interface).await?;

        let wanted = IpAddr::V4(network.address);
        let moved = before.addresses.iter().filter(|a| is_global(a)).filter_map(address_of);
        let mut addresses: Vec<(IpAddr, u8)> = moved.collect();
        if !addresses.iter().any(|(a, _)| *a == wanted) {
            addresses.push((wanted, network.prefix));
        }
        for (address, prefix) in addresses {
            let add = self.handle.address().add(bridge.index, address, prefix).replace();
            add.execute().await.map_err(request("giving an address to", BRIDGE))?;
        }
        for address in before.addresses.iter().filter(|a| is_global(a)) {
            let delete = self.handle.address().del(address.clone()).execute();
            delete.await.map_err(request("taking the address from", &network.interface))?;
        }
        for route in &before.routes {
            self.route(route, bridge.index, BRIDGE).await?;
        }
        if let Some(gateway) = network.gateway.filter(|_| before.routes.is_empty()) {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(gateway)
                .output_interface(bridge.index)
                .build();
            let add = self.handle.route().add(route).replace();
            add.execute().await.map_err(request("setting the default route on", BRIDGE))?;
        }
        Ok(())
    }

    /// Back to `before`. Goes on after a failure: each part that comes back is one less lost.
    async fn revert(&self, network: &Network, before: &Before) -> Result<(), BridgeError> {
        let mut result = Ok(());
        let mut note = |done: Result<(), BridgeError>| {
            if result.is_ok() {
                result = done;
            }
        };
        if before.bridge.is_none() {
            if let Some(bridge) = self.link(BRIDGE).await? {
                let delete = self.handle.link().del(bridge.index).execute().await;
                note(delete.map_err(request("removing", BRIDGE)));
            }
        } else if before.port.controller.is_none() {
            let free = LinkUnspec::new_with_index(before.port.index).nocontroller().build();
            note(self.set(free, "freeing", &network.interface).await);
        }
        for (address, prefix) in before.addresses.iter().filter_map(address_of) {
            let add = self.handle.address().add(before.port.index, address, prefix).replace();
            note(add.execute().await.map_err(request("giving the address back to", &network.interface)));
        }
        for route in &before.routes {
            note(self.route(route, before.port.index, &network.interface).await);
        }
        result
    }

    async fn set(&self, message: LinkMessage, what: &'static str, device: &str) -> Result<(), BridgeError> {
        self.handle.link().set(message).execute().await.map_err(request(what, device))
    }

    /// The same route over another device.
    async fn route(&self, route: &RouteMessage, index: u32, device: &str) -> Result<(), BridgeError> {
        let mut route = route.clone();
        for attribute in &mut route.attributes {
            if let RouteAttribute::Oif(oif) = attribute {
                *oif = index;
            }
        }
        let add = self.handle.route().add(route).replace();
        add.execute().await.map_err(request("moving a route to", device))
    }
}

fn request(what: &'static str, device: &str) -> impl FnOnce(NetlinkError) -> BridgeError {
    let device = device.to_owned();
    move |source| BridgeError::Request { what, device, source }
}

fn describe(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        mac: vec![],
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => link.mac = mac.clone(),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            _ => {}
        }
    }
    link
}

/// Reaches beyond this machine and this wire.
fn is_global(address: &AddressMessage) -> bool {
    address.header.scope == AddressScope::Universe
}

fn address_of(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })?;
    Some((local, message.header.prefix_len))
}
