//! Addresses and routes by rtnetlink. Each call is one conversation with the kernel; the kernel's state is the only one.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

/// Runs one conversation to its end, from code that is not asynchronous.
fn talk<T>(conversation: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting a runtime for netlink")?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening netlink")?;
        tokio::spawn(connection);
        conversation(handle).await
    })
}

/// Sets ports up.
pub fn set_up(indexes: &[u32]) -> Result<()> {
    talk(async |handle| {
        for &index in indexes {
            let up = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(up).execute().await.with_context(|| format!("setting port {index} up"))?;
        }
        Ok(())
    })
}

/// Gives a port its address and the default route through `gateway`. What is there already stays.
pub fn configure(index: u32, address: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) -> Result<()> {
    talk(async |handle| {
        let add = handle.address().add(index, IpAddr::V4(address), prefix).replace().execute();
        add.await.with_context(|| format!("setting address {address}/{prefix}"))?;
        if let Some(gateway) = gateway {
            let route =
                RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(gateway).build();
            let add = handle.route().add(route).replace().execute();
            add.await.with_context(|| format!("setting default route via {gateway}"))?;
        }
        Ok(())
    })
}

/// Takes an address away, wherever it is.
pub fn remove_address(address: Ipv4Addr) -> Result<()> {
    talk(async |handle| {
        for message in with_address(&handle, address).await? {
            handle.address().del(message).execute().await.with_context(|| format!("removing {address}"))?;
        }
        Ok(())
    })
}

/// Takes every address off a port.
pub fn flush(index: u32) -> Result<()> {
    talk(async |handle| {
        let all = handle.address().get().set_link_index_filter(index).execute().try_collect::<Vec<_>>();
        for message in all.await.context("listing addresses")? {
            let _ = handle.address().del(message).execute().await;
        }
        Ok(())
    })
}

/// The port that carries an address now: the runtime moves it to a bridge.
pub fn carrier_of(address: Ipv4Addr) -> Result<Option<u32>> {
    talk(async |handle| Ok(with_address(&handle, address).await?.first().map(|m| m.header.index)))
}

async fn with_address(handle: &Handle, address: Ipv4Addr) -> Result<Vec<AddressMessage>> {
    let all: Vec<_> = handle.address().get().execute().try_collect().await.context("listing addresses")?;
    let ours = AddressAttribute::Local(IpAddr::V4(address));
    Ok(all.into_iter().filter(|m| m.attributes.contains(&ours)).collect())
}
