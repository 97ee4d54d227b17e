//! The bridge in a network namespace of its own: set up, repeated, and taken back when it can't be.
//!
//! Needs the right to make a network namespace; without it there is nothing to see here, and the tests say so.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use labshift_model::{MacAddr, context::Network};
use labshift_runtime::bridge;
use netlink_packet_route::{
    address::AddressAttribute,
    link::LinkAttribute,
    route::{RouteAttribute, RouteHeader},
};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Runs on a thread that has a network namespace to itself, with a port as init leaves it.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Handle, Network) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("not run: no network namespace: {error}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            let network = port(&handle).await;
            test(handle, network).await;
        });
    });
    thread.join().unwrap();
}

async fn port(handle: &Handle) -> Network {
    handle.link().add(LinkVeth::new("port0", "far0").build()).execute().await.unwrap();
    for name in ["far0", "port0"] {
        let mut link = LinkUnspec::new_with_index(index(handle, name).await).up();
        if name == "port0" {
            link = link.address(MAC.to_vec());
        }
        handle.link().set(link.build()).execute().await.unwrap();
    }
    let port = index(handle, "port0").await;
    handle.address().add(port, IpAddr::V4(ADDRESS), 24).execute().await.unwrap();
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(port).build();
    handle.route().add(route).execute().await.unwrap();
    Network {
        interface: "port0".into(),
        mac: MacAddr(MAC),
        address: ADDRESS,
        prefix: 24,
        gateway: Some(GATEWAY),
        dns: vec![],
        dhcp_server: GATEWAY,
        lease_seconds: 600,
    }
}

async fn index(handle: &Handle, name: &str) -> u32 {
    let mut links = Box::pin(handle.link().get().match_name(name.to_owned()).execute());
    links.try_next().await.unwrap().unwrap().header.index
}

/// The device that has the node's address, its MAC, and the device of the default route.
async fn found(handle: &Handle) -> (String, Vec<u8>, String) {
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await.unwrap();
    let local = AddressAttribute::Local(IpAddr::V4(ADDRESS));
    let with: Vec<_> = addresses.iter().filter(|a| a.attributes.contains(&local)).collect();
    assert_eq!(with.len(), 1, "one device has the address");
    let routes: Vec<_> = handle
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute()
        .try_collect::<Vec<_>>()
        .await
        .unwrap()
        .into_iter()
        .filter(|r| r.header.table == RouteHeader::RT_TABLE_MAIN && r.header.destination_prefix_length == 0)
        .collect();
    assert_eq!(routes.len(), 1, "one default route");
    let out = routes[0].attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let (name, mac) = name_and_mac(handle, with[0].header.index).await;
    (name, mac, name_and_mac(handle, out.unwrap()).await.0)
}

async fn name_and_mac(handle: &Handle, index: u32) -> (String, Vec<u8>) {
    let mut links = Box::pin(handle.link().get().match_index(index).execute());
    let link = links.try_next().await.unwrap().unwrap();
    let (mut name, mut mac) = (String::new(), vec![]);
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = n,
            LinkAttribute::Address(m) => mac = m,
            _ => {}
        }
    }
    (name, mac)
}

#[test]
fn address_route_and_mac_move_to_the_bridge_once() {
    in_namespace(|handle, network| async move {
        assert_eq!(found(&handle).await, ("port0".into(), MAC.to_vec(), "port0".into()));
        assert!(!bridge::is_up(&network).await.unwrap());
        for _ in 0..2 {
            bridge::ensure(&network).await.unwrap();
            assert!(bridge::is_up(&network).await.unwrap());
            assert_eq!(found(&handle).await, ("br0".into(), MAC.to_vec(), "br0".into()));
        }
    });
}

#[test]
fn a_bridge_that_was_half_done_is_completed() {
    in_namespace(|handle, network| async move {
        handle.link().add(rtnetlink::LinkBridge::new("br0").build()).execute().await.unwrap();
        let joined = LinkUnspec::new_with_index(index(&handle, "port0").await)
            .controller(index(&handle, "br0").await)
            .build();
        handle.link().set(joined).execute().await.unwrap();
        bridge::ensure(&network).await.unwrap();
        assert_eq!(found(&handle).await, ("br0".into(), MAC.to_vec(), "br0".into()));
    });
}

#[test]
fn what_can_not_be_done_leaves_everything_as_it_was() {
    in_namespace(|handle, network| async move {
        // Something else has the bridge's name: the port can't join it.
        handle.link().add(LinkVeth::new("br0", "other0").build()).execute().await.unwrap();
        let error = bridge::ensure(&network).await.unwrap_err();
        assert_eq!(error.to_string(), "adding to the bridge port0");
        assert_eq!(found(&handle).await, ("port0".into(), MAC.to_vec(), "port0".into()));
    });
}

#[test]
fn a_port_that_is_not_there_is_named() {
    in_namespace(|_, network| async move {
        let network = Network { interface: "eth7".into(), ..network };
        let error = bridge::ensure(&network).await.unwrap_err();
        assert!(error.to_string().starts_with("there is no network port eth7"), "{error}");
    });
}
