//! TFTP over real sockets on the loopback, with a client that loses packets.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use labshift_model::boot::BootPlaneEvent;
use labshift_pxe::{Config, tftp::server::Server};
use tokio::{net::UdpSocket, task::JoinHandle, time::timeout};

use crate::fake::{Notes, publish};

const GUARD: Duration = Duration::from_secs(60);

struct Running {
    address: SocketAddr,
    notes: Notes,
    task: JoinHandle<std::io::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(store: &Path, loaders: &Path) -> Running {
    let mut config = Config::new("lo", [127, 0, 0, 1].into(), 8, store.into(), store.into());
    config.loaders = loaders.into();
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let (address, notes) = (socket.local_addr().expect("an address"), Notes::default());
    let server = Server { config: Arc::new(config), journal: Arc::new(notes.clone()), mtu: 1500 };
    Running { address, notes, task: tokio::spawn(server.run(socket)) }
}

fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(2654435761) >> 13) as u8).collect()
}

fn request(path: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = vec![0, 1];
    for word in [path, "octet"].into_iter().chain(options.iter().flat_map(|(n, v)| [*n, *v])) {
        packet.extend(word.as_bytes());
        packet.push(0);
    }
    packet
}

/// What a client that follows the RFCs, on a line that loses packets, ends up with.
pub struct Client {
    socket: UdpSocket,
    percent: u64,
    seed: u64,
    /// Words of the OACK.
    pub accepted: Vec<String>,
    data_packets: u64,
}

impl Client {
    async fn new(percent: u64) -> Self {
        Client::on(([127, 0, 0, 1], 0).into(), percent).await
    }

    /// Sends from this address and loses so many packets of a hundred, both ways.
    pub async fn on(address: SocketAddr, percent: u64) -> Self {
        let socket = UdpSocket::bind(address).await.expect("a port");
        Client { socket, percent, seed: percent + 1, accepted: vec![], data_packets: 0 }
    }

    fn lost(&mut self) -> bool {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) % 100 < self.percent
    }

    async fn send(&mut self, packet: &[u8], to: SocketAddr) {
        if !self.lost() {
            self.socket.send_to(packet, to).await.expect("sending");
        }
    }

    pub async fn get(
        &mut self,
        server: SocketAddr,
        path: &str,
        options: &[(&str, &str)],
    ) -> Result<Vec<u8>, String> {
        let number = |name: &str, or: usize| {
            options.iter().find(|(n, _)| *n == name).map_or(or, |(_, v)| v.parse().expect("a number"))
        };
        let (mut block, mut width) = (512, 1);
        let (mut body, mut next, mut fresh) = (vec![], 1u64, 0);
        let (mut last, mut to) = (request(path, options), server);
        self.send(&last.clone(), server).await;
        let mut buffer = vec![0; 70_000];
        loop {
            let wait = Duration::from_millis(700);
            let Ok(received) = timeout(wait, self.socket.recv_from(&mut buffer)).await else {
                self.send(&last.clone(), to).await;
                continue;
            };
            let (length, from) = received.expect("receiving");
            if self.lost() || (to != server && from != to) {
                continue;
            }
            match buffer[..length] {
                [0, 5, _, code, ref text @ ..] => {
                    return Err(format!("{code} {}", String::from_utf8_lossy(text).trim_end_matches('\0')));
                }
                [0, 6, ref words @ ..] => {
                    to = from;
                    self.accepted =
                        String::from_utf8_lossy(words).split_terminator('\0').map(str::to_owned).collect();
                    let granted = |name: &str, or: usize| {
                        let at = self.accepted.iter().position(|w| w == name);
                        at.map_or(or, |at| self.accepted[at + 1].parse().expect("a number"))
                    };
                    (block, width) = (granted("blksize", 512), granted("windowsize", 1));
                    assert!(block <= number("blksize", 512) && width <= number("windowsize", 1));
                    last = vec![0, 4, 0, 0];
                    self.send(&last.clone(), to).await;
                }
                [0, 3, high, low, ref bytes @ ..] => {
                    to = from;
                    self.data_packets += 1;
                    if u16::from_be_bytes([high, low]) != next as u16 {
                        // A gap or a repetition: say where we are.
                        fresh = 0;
                        last = [&[0, 4][..], &((next - 1) as u16).to_be_bytes()].concat();
                        self.send(&last.clone(), to).await;
                        continue;
                    }
                    body.extend(bytes);
                    (next, fresh) = (next + 1, fresh + 1);
                    if fresh == width || bytes.len() < block {
                        fresh = 0;
                        last = [&[0, 4][..], &((next - 1) as u16).to_be_bytes()].concat();
                        self.send(&last.clone(), to).await;
                    }
                    if bytes.len() < block {
                        return Ok(body);
                    }
                }
                _ => panic!("unexpected packet {:?}", &buffer[..length.min(16)]),
            }
        }
    }
}

async fn fetch(percent: u64, size: usize, options: &[(&str, &str)]) -> (Client, Running) {
    let store = tempfile::tempdir().expect("a directory");
    let bytes = content(size);
    let generation = publish(store.path(), &[("uki.efi", &bytes)]);
    let running = start(store.path(), store.path()).await;
    let mut client = Client::new(percent).await;
    let path = format!("images/lab/{generation}/uki.efi");
    let got = timeout(GUARD, client.get(running.address, &path, options))
        .await
        .expect("no hang")
        .expect("the file");
    assert!(got == bytes, "{} bytes, wanted {}", got.len(), bytes.len());
    (client, running)
}

#[tokio::test]
async fn case_18_19_20_a_file_arrives_whole_whatever_was_agreed() {
    for (size, options) in [
        (0, &[][..]),
        (511, &[]),
        (512, &[]),
        (1000, &[("tsize", "0")]),
        (1_000_000, &[("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")]),
        (1468 * 100, &[("blksize", "1468"), ("windowsize", "64")]),
        (300_000, &[("blksize", "65464"), ("windowsize", "9999"), ("timeout", "2")]),
    ] {
        let (client, running) = fetch(0, size, options).await;
        let sent = running.notes.wait_for(|e| matches!(e, BootPlaneEvent::Sent { .. })).await;
        assert!(matches!(sent, BootPlaneEvent::Sent { bytes, .. } if bytes == size as u64), "{sent:?}");
        let names: Vec<&str> = client.accepted.iter().step_by(2).map(String::as_str).collect();
        assert_eq!(names, options.iter().map(|(n, _)| *n).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn case_19_block_numbers_roll_over_on_the_wire() {
    let options = [("blksize", "64"), ("windowsize", "64")];
    let (client, _) = fetch(0, 64 * 70_000 + 5, &options).await;
    assert!(client.data_packets < 72_000, "{}", client.data_packets);
}

#[tokio::test]
async fn case_20_loss_slows_a_transfer_and_multiplies_nothing() {
    for (percent, options) in [
        (5, &[("blksize", "1428")][..]),
        (5, &[("blksize", "1428"), ("windowsize", "16")]),
        (20, &[("blksize", "1428"), ("windowsize", "4")]),
    ] {
        let blocks = 60;
        let (client, _) = fetch(percent, 1428 * blocks, options).await;
        assert!(
            client.data_packets < 12 * blocks as u64,
            "{} packets for {blocks} blocks",
            client.data_packets
        );
    }
}

#[tokio::test]
async fn case_21_what_is_not_a_published_file_is_refused_in_words() {
    let store = tempfile::tempdir().expect("a directory");
    std::fs::write(store.path().join("secret"), "secret").expect("writing");
    std::fs::write(store.path().join("undionly.kpxe"), "loader").expect("writing");
    let running = start(store.path(), store.path()).await;
    for path in ["secret", "../secret", "/etc/passwd", "images/../secret", "..\\secret", "snponly.efi"] {
        let got =
            timeout(GUARD, Client::new(0).await.get(running.address, path, &[])).await.expect("no hang");
        assert_eq!(got, Err("1 no such file".to_owned()), "{path}");
    }
    let long = "x".repeat(10_000);
    let got = timeout(GUARD, Client::new(0).await.get(running.address, &long, &[])).await.expect("no hang");
    assert!(got.is_err_and(|e| e.starts_with("4 ")));
    let loader = timeout(GUARD, Client::new(0).await.get(running.address, "\\undionly.kpxe", &[])).await;
    assert_eq!(loader.expect("no hang"), Ok(b"loader".to_vec()));
    let script = timeout(GUARD, Client::new(0).await.get(running.address, "/autoexec.ipxe", &[])).await;
    assert!(script.expect("no hang").is_ok_and(|s| s.starts_with(b"#!ipxe\n")));

    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    client.send_to(b"\x00\x02f\x00octet\x00", running.address).await.expect("sending");
    let mut buffer = [0; 100];
    let (length, _) =
        timeout(GUARD, client.recv_from(&mut buffer)).await.expect("no hang").expect("receiving");
    assert_eq!(&buffer[..4], &[0, 5, 0, 2], "{:?}", &buffer[..length]);
}

/// EDK2 asks for the size, sends ERROR 8, and asks again, from another port or the same.
#[tokio::test]
async fn case_17_a_probe_for_the_size_is_no_failed_boot() {
    let store = tempfile::tempdir().expect("a directory");
    let generation = publish(store.path(), &[("uki.efi", &content(5000))]);
    let running = start(store.path(), store.path()).await;
    let path = format!("images/lab/{generation}/uki.efi");
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut buffer = [0; 1500];
    for _ in 0..3 {
        client.send_to(&request(&path, &[("tsize", "0")]), running.address).await.expect("sending");
        let (length, from) =
            timeout(GUARD, client.recv_from(&mut buffer)).await.expect("no hang").expect("OACK");
        assert_eq!(&buffer[..length], b"\x00\x06tsize\x005000\x00");
        client.send_to(b"\x00\x05\x00\x08aborted\x00", from).await.expect("sending");
    }
    let mut again = Client::new(0).await;
    again.socket = client;
    let got =
        timeout(GUARD, again.get(running.address, &path, &[("blksize", "1024")])).await.expect("no hang");
    assert_eq!(got.map(|b| b.len()), Ok(5000));
    running.notes.wait_for(|e| matches!(e, BootPlaneEvent::Sent { .. })).await;
    assert!(
        running.notes.all().iter().all(|e| !matches!(e, BootPlaneEvent::Broken { .. })),
        "{:?}",
        running.notes.all()
    );
}

#[tokio::test]
async fn a_client_that_stops_is_a_broken_transfer() {
    let store = tempfile::tempdir().expect("a directory");
    let generation = publish(store.path(), &[("uki.efi", &content(50_000))]);
    let running = start(store.path(), store.path()).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let path = format!("images/lab/{generation}/uki.efi");
    client.send_to(&request(&path, &[]), running.address).await.expect("sending");
    let mut buffer = [0; 1500];
    let (_, from) = timeout(GUARD, client.recv_from(&mut buffer)).await.expect("no hang").expect("DATA");
    client.send_to(&[0, 4, 0, 1], from).await.expect("sending");
    client.send_to(b"\x00\x05\x00\x03disk full\x00", from).await.expect("sending");
    let broken = running.notes.wait_for(|e| matches!(e, BootPlaneEvent::Broken { .. }));
    let broken = timeout(GUARD, broken).await.expect("no hang");
    let BootPlaneEvent::Broken { reason, .. } = broken else { panic!("{broken:?}") };
    assert!(reason.contains("client stopped after block 1: error 3 disk full"), "{reason}");
}

/// The network copies a request, or the client sends it again while the disk is slow: whichever answer it takes, that transfer goes on
/// and nothing is left of the other.
#[tokio::test]
async fn case_17_20_a_request_that_comes_twice_is_one_transfer() {
    let store = tempfile::tempdir().expect("a directory");
    let bytes = content(1200);
    let generation = publish(store.path(), &[("uki.efi", &bytes)]);
    let running = start(store.path(), store.path()).await;
    let request = request(&format!("images/lab/{generation}/uki.efi"), &[("tsize", "0")]);
    for taken in 0..2 {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let mut ports: Vec<SocketAddr> = vec![];
        let mut buffer = [0; 1500];
        for _ in 0..2 {
            client.send_to(&request, running.address).await.expect("sending");
        }
        while ports.len() < 2 {
            let received = timeout(GUARD, client.recv_from(&mut buffer)).await.expect("no hang");
            let (_, from) = received.expect("an OACK");
            if !ports.contains(&from) {
                ports.push(from);
            }
        }
        let (from, mut next) = (ports[taken], 0u8);
        while next < 3 {
            client.send_to(&[0, 4, 0, next], from).await.expect("sending");
            let received = timeout(GUARD, client.recv_from(&mut buffer)).await.expect("no hang");
            let (_, sender) = received.expect("DATA");
            next += u8::from(sender == from && buffer[..4] == [0, 3, 0, next + 1]);
        }
        client.send_to(&[0, 4, 0, 3], from).await.expect("sending");
        let sent = |e: &BootPlaneEvent| matches!(e, BootPlaneEvent::Sent { .. });
        running.notes.wait_for_count(taken + 1, sent).await;
        // The port of the other one is closed.
        let other = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        other.connect(ports[1 - taken]).await.expect("connecting");
        timeout(GUARD, async {
            while other.send(&[0, 4, 0, 0]).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the other transfer ends");
    }
    assert_eq!(running.notes.all().len(), 2, "{:?}", running.notes.all());
}

#[tokio::test]
async fn transfers_over_ipv6_and_the_end_of_the_server_ends_them() {
    let store = tempfile::tempdir().expect("a directory");
    let generation = publish(store.path(), &[("uki.efi", &content(5000))]);
    let mut running = start(store.path(), store.path()).await;
    let config = Config::new("lo", [127, 0, 0, 1].into(), 8, store.path().into(), store.path().into());
    let server = Server { config: Arc::new(config), journal: Arc::new(running.notes.clone()), mtu: 1500 };
    let socket = std::net::UdpSocket::bind("[::1]:0").expect("IPv6 on the loopback");
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6RecvPacketInfo, &true).expect("set");
    socket.set_nonblocking(true).expect("set");
    let socket = UdpSocket::from_std(socket).expect("a socket");
    let address = socket.local_addr().expect("bound");
    running.task.abort();
    running.task = tokio::spawn(server.run(socket));
    let path = format!("images/lab/{generation}/uki.efi");
    let mut client = Client::on("[::1]:0".parse().expect("an address"), 0).await;
    let options = [("blksize", "9000")];
    let got = timeout(GUARD, client.get(address, &path, &options)).await.expect("no hang").expect("the file");
    assert!(got == content(5000) && client.accepted[1] == "1448", "the MTU less IPv6's header");

    let stopped = UdpSocket::bind("[::1]:0").await.expect("a port");
    stopped.send_to(&request(&path, &[]), address).await.expect("sending");
    let mut buffer = [0; 1500];
    let (_, from) = timeout(GUARD, stopped.recv_from(&mut buffer)).await.expect("no hang").expect("DATA");
    running.task.abort();
    stopped.connect(from).await.expect("connecting");
    timeout(GUARD, async {
        while stopped.send(&[0, 5, 0, 0]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("its transfers end with the server");
}
