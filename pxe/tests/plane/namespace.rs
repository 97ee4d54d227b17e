//! The whole plane on a real interface: a server and a client in network namespaces of their own, joined by a veth pair.
//! Needs root; without it a test says so and checks nothing.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use dhcproto::v4::{Message, MessageType};
use labshift_model::{
    MacAddr,
    boot::{BootPlaneEvent, Speaker},
};
use labshift_pxe::{BindError, BootPlane, Config};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket,
        sockopt::{BindToDevice, Broadcast},
    },
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use tokio::{runtime::Runtime, sync::oneshot, time::timeout};

use crate::{
    fake::{Ask, FIXED, FIXED_ADDRESS, GUEST, Notes, POOLED, SERVER, Site, boot_file, kind, publish, read},
    tftp::Client,
};

pub const GUARD: Duration = Duration::from_secs(60);
/// An address of another network: the kernel sends nothing from an interface without one.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 168, 200, 1);

/// A runtime whose threads live in a new network namespace, and a handle to set it up.
fn namespace() -> nix::Result<(Runtime, Handle)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("rtnetlink");
        tokio::spawn(connection);
        handle
    });
    Ok((runtime, handle))
}

/// Two namespaces joined by a cable, `server0` here and `client0` there, both still down. The server sends the client a
/// word when it is ready, and hears when the client is done.
pub fn on_a_cable(
    server: impl FnOnce(&Runtime, &Handle, mpsc::Sender<String>, oneshot::Receiver<()>) + Send + 'static,
    client: impl FnOnce(&Runtime, &Handle, String) + Send + 'static,
) {
    let (to_server, from_client) = mpsc::channel::<File>();
    let (to_client, from_server) = mpsc::channel::<String>();
    let (done, finished) = oneshot::channel::<()>();
    let client = thread::spawn(move || {
        let Ok((runtime, handle)) = namespace() else { return };
        let own = File::open("/proc/thread-self/ns/net").expect("the namespace");
        to_server.send(own).expect("the server waits");
        client(&runtime, &handle, from_server.recv().expect("the server is up"));
        drop(done);
    });
    let server = thread::spawn(move || {
        let (runtime, handle) = match namespace() {
            Ok(namespace) => namespace,
            Err(e) => return eprintln!("skipped: no network namespace without root ({e})"),
        };
        let peer = from_client.recv().expect("the client's namespace");
        runtime.block_on(async {
            handle.link().add(LinkVeth::new("server0", "client0").build()).execute().await.expect("a pair");
            let moved = LinkUnspec::new_with_name("client0").setns_by_fd(peer.as_raw_fd()).build();
            handle.link().set(moved).execute().await.expect("moving the client's end");
        });
        server(&runtime, &handle, to_client, finished);
    });
    for side in [client, server] {
        if let Err(panic) = side.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A plane with these settings, until the client is done.
fn serving(
    change: impl FnOnce(&mut Config) + Send + 'static,
    notes: Notes,
) -> impl FnOnce(&Runtime, &Handle, mpsc::Sender<String>, oneshot::Receiver<()>) {
    move |runtime, handle, ready, done| {
        let store = tempfile::tempdir().expect("a directory");
        let mut config = Config::new("server0", SERVER, 24, store.path().into(), store.path().join("state"));
        change(&mut config);
        runtime.block_on(async {
            up(handle, "server0", SERVER).await;
            let site = Site { generation: "ab".repeat(32), ..Site::default() };
            let plane = BootPlane::bind(config, Arc::new(site), Arc::new(notes)).expect("the plane");
            ready.send(String::new()).expect("the client waits");
            timeout(GUARD, plane.serve(async { drop(done.await) })).await.expect("no hang").expect("serving");
        });
    }
}

async fn up(handle: &Handle, name: &str, address: Ipv4Addr) {
    let index = nix::net::if_::if_nametoindex(name).expect("the interface");
    handle.address().add(index, address.into(), 24).execute().await.expect("an address");
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.expect("up");
}

fn dhcp_client(interface: &str) -> UdpSocket {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&fd, BindToDevice, &interface.to_owned().into()).expect("bound to the interface");
    setsockopt(&fd, Broadcast, &true).expect("broadcast");
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 68)).expect("port 68");
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a pause before the next try");
    socket
}

fn ask(socket: &UdpSocket, ask: Ask) {
    let ask = Ask { broadcast: true, ..ask };
    socket.send_to(&ask.bytes(), (Ipv4Addr::BROADCAST, 67)).expect("sending");
}

/// Asks until the wanted kind of reply comes. A real client repeats too: what is sent before the kernel has noticed
/// that both ends of the pair are up is dropped without a word.
fn exchange(socket: &UdpSocket, question: Ask, wanted: MessageType) -> Message {
    let mut buffer = [0; 1500];
    for _ in 0..GUARD.as_secs() {
        ask(socket, question.clone());
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            assert_eq!(from, SocketAddr::from((SERVER, 67)));
            let reply = read(&buffer[..length]);
            if kind(&reply) == wanted && reply.chaddr() == question.mac.0 {
                return reply;
            }
        }
    }
    panic!("no {wanted:?} within {GUARD:?}");
}

#[test]
fn a_client_gets_address_and_file_over_a_real_interface() {
    on_a_cable(
        |runtime, handle, ready, _| {
            let store = tempfile::tempdir().expect("a directory");
            let generation = publish(store.path(), &[("uki.efi", &[7; 200_000])]);
            let config = Config::new("server0", SERVER, 24, store.path().into(), store.path().join("state"));
            let (notes, site) =
                (Notes::default(), Arc::new(Site { generation: generation.clone(), ..Site::default() }));
            let bind =
                |config: &Config| BootPlane::bind(config.clone(), site.clone(), Arc::new(notes.clone()));
            runtime.block_on(async {
                let elsewhere = Config { interface: "other0".to_owned(), ..config.clone() };
                assert!(matches!(bind(&elsewhere), Err(BindError::NoInterface(name)) if name == "other0"));
                let missing = bind(&config).err().expect("no address yet").to_string();
                assert!(missing.contains("ip address add 10.77.0.1/24 dev server0"), "{missing}");
                up(handle, "server0", SERVER).await;
                let plane = bind(&config).expect("the plane");
                let taken = bind(&config).err().expect("taken").to_string();
                assert!(taken.contains("UDP port 69 is in use by another program; `ss -lunp"), "{taken}");
                ready.send(format!("images/lab/{generation}/uki.efi")).expect("the client waits");
                let done = async { drop(notes.wait_for(|e| matches!(e, BootPlaneEvent::Sent { .. })).await) };
                timeout(GUARD, plane.serve(done)).await.expect("no hang").expect("serving");
                let heard = |e: &BootPlaneEvent| {
                    matches!(e, BootPlaneEvent::Report { report, .. } if report.mac == FIXED && report.log == "no server")
                };
                assert_eq!(notes.all().iter().filter(|e| heard(e)).count(), 1, "{:?}", notes.all());
            });
            let ledger = std::fs::read_to_string(store.path().join("state/leases")).expect("the ledger");
            assert!(ledger.contains(&format!("{FIXED_ADDRESS} {FIXED} bound ")), "{ledger}");
        },
        |runtime, handle, path| {
            runtime.block_on(async {
                up(handle, "client0", ELSEWHERE).await;
                let socket = dhcp_client("client0");
                let offer = exchange(&socket, Ask::discover(FIXED).firmware(7), MessageType::Offer);
                assert_eq!(offer.yiaddr(), FIXED_ADDRESS);
                let ask = Ask::request(FIXED, FIXED_ADDRESS).firmware(7);
                assert_eq!(boot_file(&exchange(&socket, ask, MessageType::Ack)), Some(path.clone()));
                up(handle, "client0", FIXED_ADDRESS).await;
                // Init's fallback: a report to everybody, as one datagram.
                for text in ["not a report", &format!(r#"{{"mac":"{FIXED}","stages":[],"log":"no server"}}"#)]
                {
                    socket.send_to(text.as_bytes(), (Ipv4Addr::BROADCAST, 8080)).expect("sending");
                }
                let mut tftp = Client::on((FIXED_ADDRESS, 0).into(), 0).await;
                let options = [("tsize", "0"), ("blksize", "9000"), ("windowsize", "4")];
                let got =
                    timeout(GUARD, tftp.get((SERVER, 69).into(), &path, &options)).await.expect("no hang");
                assert_eq!(got.expect("the file").len(), 200_000);
                let accepted = &tftp.accepted;
                assert!(accepted.contains(&"1468".to_owned()), "the interface's MTU: {accepted:?}");
            });
        },
    );
}

/// Somebody set an address of the pool by hand: the kernel of the client's side answers ARP for it.
#[test]
fn an_address_that_somebody_uses_is_not_offered() {
    let used = Ipv4Addr::new(10, 77, 0, 128);
    let notes = Notes::default();
    let heard = notes.clone();
    on_a_cable(
        serving(move |config| config.pool = (used, [10, 77, 0, 129].into()), notes),
        move |runtime, handle, _| {
            runtime.block_on(up(handle, "client0", used));
            let socket = dhcp_client("client0");
            let wanted = Ask::discover(POOLED).with(50, &used.octets());
            let address = Ipv4Addr::new(10, 77, 0, 129);
            assert_eq!(exchange(&socket, wanted, MessageType::Offer).yiaddr(), address);
            let ack = exchange(&socket, Ask::request(POOLED, address), MessageType::Ack);
            assert_eq!(ack.yiaddr(), address);
        },
    );
    let offers = heard.all().into_iter().filter(|e| matches!(e, BootPlaneEvent::Offer { .. }));
    let wanted =
        BootPlaneEvent::Offer { mac: POOLED, address: [10, 77, 0, 129].into(), speaker: Speaker::Other };
    assert!(offers.clone().all(|e| e == wanted), "{:?}", offers.collect::<Vec<_>>());
}

#[test]
fn case_11_a_reply_to_firmware_can_wait_while_others_are_answered() {
    on_a_cable(
        serving(|config| config.reply_delay = Duration::from_secs(2), Notes::default()),
        |runtime, handle, _| {
            runtime.block_on(up(handle, "client0", ELSEWHERE));
            let socket = dhcp_client("client0");
            // The cable works, and both machines have had their addresses: nothing else is waited for.
            for (mac, address) in [(FIXED, FIXED_ADDRESS), (POOLED, Ipv4Addr::new(10, 77, 0, 200))] {
                exchange(&socket, Ask::of(3, mac).with(50, &address.octets()), MessageType::Ack);
            }
            ask(&socket, Ask::discover(FIXED).firmware(0));
            ask(&socket, Ask::discover(POOLED));
            let mut buffer = [0; 1500];
            let mut offers = vec![];
            while offers.len() < 2 {
                if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                    let reply = read(&buffer[..length]);
                    offers.extend((kind(&reply) == MessageType::Offer).then(|| reply.chaddr().to_vec()));
                }
            }
            assert_eq!(offers, [POOLED.0.to_vec(), FIXED.0.to_vec()]);
        },
    );
}

#[test]
fn case_10_a_flood_of_invented_cards_keeps_no_machine_of_the_site_from_its_address() {
    on_a_cable(serving(|_| {}, Notes::default()), |runtime, handle, _| {
        runtime.block_on(up(handle, "client0", ELSEWHERE));
        let socket = dhcp_client("client0");
        exchange(&socket, Ask::discover(FIXED), MessageType::Offer);
        // More than the pool has addresses.
        for n in 0..3000u16 {
            let [high, low] = n.to_be_bytes();
            ask(&socket, Ask::discover(MacAddr([2, 99, 0, 0, high, low])));
        }
        for mac in [POOLED, GUEST] {
            let offer = exchange(&socket, Ask::discover(mac), MessageType::Offer);
            let ack = exchange(&socket, Ask::request(mac, offer.yiaddr()), MessageType::Ack);
            assert_eq!(ack.yiaddr(), offer.yiaddr());
        }
    });
}
