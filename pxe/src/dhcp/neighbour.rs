//! A neighbour entry (what ARP would have found) for a client that has no address yet and so answers no ARP: with it
//! in place the kernel sends a plain datagram straight to the client's card.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use labshift_model::MacAddr;
use netlink_packet_route::{
    link::LinkAttribute,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
};
use rtnetlink::Handle;

/// Writes entries for one interface.
#[derive(Clone)]
pub struct Neighbours {
    handle: Handle,
    interface: u32,
}

impl Neighbours {
    /// Opens rtnetlink; its connection runs as a task of the current runtime.
    pub fn open(interface: u32) -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Neighbours { handle, interface })
    }

    /// Makes or replaces an entry. It ages like one that the kernel found by itself.
    pub async fn learn(&self, address: Ipv4Addr, mac: MacAddr) -> Result<(), rtnetlink::Error> {
        self.handle
            .neighbours()
            .add(self.interface, address.into())
            .link_layer_address(&mac.0)
            .state(NeighbourState::Reachable)
            .replace()
            .execute()
            .await
    }
}

/// The largest packet that an interface carries, if the kernel says.
pub async fn mtu(interface: &str) -> Option<usize> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    let task = tokio::spawn(connection);
    let link = handle.link().get().match_name(interface.to_owned()).execute().try_next().await.ok().flatten();
    task.abort();
    link?.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(bytes) => usize::try_from(bytes).ok(),
        _ => None,
    })
}

/// The card that an address of an interface's network has, if the kernel knows.
pub async fn card_of(interface: &str, address: Ipv4Addr) -> Option<MacAddr> {
    let index = nix::net::if_::if_nametoindex(interface).ok()?;
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    let task = tokio::spawn(connection);
    let known = handle.neighbours().get().execute().try_filter_map(|entry| async move {
        let here = entry.header.ifindex == index;
        let is =
            |a: &NeighbourAttribute| *a == NeighbourAttribute::Destination(NeighbourAddress::Inet(address));
        let card = entry.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(&bytes[..]).ok(),
            _ => None,
        });
        Ok(card.filter(|_| here && entry.attributes.iter().any(is)).map(MacAddr))
    });
    let card = std::pin::pin!(known).try_next().await.ok().flatten();
    task.abort();
    card
}
