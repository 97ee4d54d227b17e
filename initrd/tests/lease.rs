//! Leases on a real cable: a port in one network namespace, a DHCP server in another.
//!
//! Needs the right to make network namespaces; without it there is nothing to see here, and the test says so.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    sync::mpsc::channel,
    time::Duration,
};

use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{DhcpOption, Message, MessageType, Opcode},
};
use futures_util::TryStreamExt;
use labshift_initrd::{
    handover,
    lease::{self, Renewal},
    netlink,
};
use labshift_model::{MacAddr, context::Network};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};

const OLD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const NEW: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 50);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn talk<T>(talk: impl AsyncFnOnce(&Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        talk(&handle).await
    })
}

async fn index(handle: &Handle, name: &str) -> u32 {
    let links = handle.link().get().match_name(name.to_owned()).execute().try_collect::<Vec<_>>().await;
    links.expect("listing links").first().expect("the link").header.index
}

async fn raise(handle: &Handle, name: &str, address: Ipv4Addr) {
    let port = index(handle, name).await;
    handle.link().set(LinkUnspec::new_with_index(port).up().build()).execute().await.expect("setting it up");
    handle.address().add(port, IpAddr::V4(address), 24).execute().await.expect("its address");
}

/// Refuses every address but [`NEW`], which it offers.
fn serve(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    loop {
        let (length, _) = socket.recv_from(&mut bytes).expect("a packet");
        let mut message = Message::decode(&mut Decoder::new(&bytes[..length])).expect("a DHCP packet");
        let asked = message.opts().msg_type().expect("its type");
        let answer = match asked {
            MessageType::Discover => MessageType::Offer,
            MessageType::Request if message.ciaddr() == OLD => MessageType::Nak,
            _ => MessageType::Ack,
        };
        let to = if message.ciaddr() == OLD { OLD } else { Ipv4Addr::BROADCAST };
        message.set_opcode(Opcode::BootReply);
        if answer != MessageType::Nak {
            message.set_yiaddr(NEW);
        }
        let options = message.opts_mut();
        options.clear();
        options.insert(DhcpOption::MessageType(answer));
        options.insert(DhcpOption::ServerIdentifier(SERVER));
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        options.insert(DhcpOption::AddressLeaseTime(900));
        let reply = message.to_vec().expect("a packet");
        socket.send_to(&reply, SocketAddrV4::new(to, 68)).expect("sending");
        if answer == MessageType::Ack {
            return;
        }
    }
}

/// A refused address is taken off the port, and another one asked for.
#[test]
fn a_refused_address_is_given_up() {
    let (give_far, far) = channel();
    let (give_moved, moved) = channel::<()>();
    let (give_ready, ready) = channel::<()>();
    let server = std::thread::spawn(move || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return;
        }
        give_far
            .send(File::open("/proc/thread-self/ns/net").expect("its namespace"))
            .expect("waiting client");
        moved.recv().expect("a cable");
        talk(async |handle| raise(handle, "far0", SERVER).await);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).expect("the server's port");
        setsockopt(&socket, sockopt::Broadcast, &true).expect("broadcasts");
        setsockopt(&socket, sockopt::BindToDevice, &"far0".into()).expect("its cable");
        give_ready.send(()).expect("waiting client");
        serve(&socket);
    });
    let client = std::thread::spawn(move || {
        let Ok(far) = far.recv() else { return eprintln!("not run: no right to make a network namespace") };
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace as the server has");
        talk(async |handle| {
            handle.link().add(LinkVeth::new("port0", "far0").build()).execute().await.expect("a cable");
            let end =
                LinkUnspec::new_with_index(index(handle, "far0").await).setns_by_fd(far.as_raw_fd()).build();
            handle.link().set(end).execute().await.expect("handing the far end over");
            let port = LinkUnspec::new_with_index(index(handle, "port0").await).address(MAC.to_vec()).build();
            handle.link().set(port).execute().await.expect("its hardware address");
            raise(handle, "port0", OLD).await;
        });
        give_moved.send(()).expect("waiting server");
        ready.recv().expect("a server");
        let network = Network {
            interface: "port0".into(),
            mac: MacAddr(MAC),
            address: OLD,
            prefix: 24,
            gateway: None,
            dns: vec![],
            dhcp_server: SERVER,
            lease_seconds: 900,
        };
        assert_eq!(lease::renew(&network, false).expect("asking"), Renewal::Refused);
        let anew = handover::begin_anew(&network, Duration::from_secs(60)).expect("another address");
        assert_eq!((anew.address, anew.interface.as_str()), (NEW, "port0"));
        assert_eq!(netlink::carrier_of(OLD).expect("looking"), None, "the refused address must be gone");
        assert!(netlink::carrier_of(NEW).expect("looking").is_some());
    });
    client.join().expect("the client");
    server.join().expect("the server");
}
