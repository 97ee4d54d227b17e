//! DHCP on real ports: asks on all of them at once until one has a lease, and renews it for life.
//!
//! A socket is bound to its port by name, so that a machine with several cards can ask on each; packets without
//! an address go to the broadcast address (RFC 2131 section 4.1).

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use labshift_model::{MacAddr, context::Network};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt},
};

use crate::{
    dhcp::{Client, Heard, Lease, patience_seconds},
    link::Port,
};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

/// A socket on port 68; bound to one network port when `port` is given, else to `address`.
fn open(port: Option<&str>, address: Ipv4Addr) -> io::Result<UdpSocket> {
    open_at(port, SocketAddrV4::new(address, CLIENT_PORT))
}

/// A socket that reaches everybody behind one network port, which may have no address yet.
pub fn broadcaster(port: &str) -> io::Result<UdpSocket> {
    open_at(Some(port), SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
}

fn open_at(port: Option<&str>, address: SocketAddrV4) -> io::Result<UdpSocket> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::Broadcast, &true)?;
    if let Some(port) = port {
        setsockopt(&fd, sockopt::BindToDevice, &port.into())?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(address))?;
    Ok(UdpSocket::from(fd))
}

/// Random enough to tell our answers from those to others; the MAC is checked as well.
fn transaction() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u32
}

struct Asking<'a> {
    port: &'a Port,
    socket: UdpSocket,
    client: Client,
    sent: u32,
    next: Instant,
}

/// Asks on all ports at once; the first lease wins. `ready` says whether a port has a link: without one nothing is sent, and the
/// patience of a port starts anew when its link comes. `heard` is told of refused answers.
pub fn acquire(
    ports: &[Port],
    patience: Duration,
    ready: impl Fn(&Port) -> bool,
    mut heard: impl FnMut(&Port, &str),
) -> Result<Option<(&Port, Lease)>> {
    let begin = Instant::now();
    let mut asking = Vec::new();
    for port in ports {
        let socket = open(Some(&port.name), Ipv4Addr::UNSPECIFIED)
            .with_context(|| format!("opening the DHCP client port on {}", port.name))?;
        socket.set_nonblocking(true)?;
        asking.push(Asking {
            port,
            socket,
            client: Client::new(port.mac, transaction()),
            sent: 0,
            next: begin,
        });
    }
    let broadcast = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    while begin.elapsed() < patience {
        for a in &mut asking {
            if !ready(a.port) {
                a.sent = 0;
                a.next = Instant::now();
            } else if Instant::now() >= a.next {
                if a.sent > 3 {
                    // An offer whose server fell silent: look for another.
                    a.client.restart(transaction());
                }
                let seconds = begin.elapsed().as_secs() as u16;
                // A port that can't send yet is tried again like one that got no answer.
                let _ = a.socket.send_to(&a.client.packet(seconds), broadcast);
                a.sent += 1;
                a.next = Instant::now() + Duration::from_secs(patience_seconds(a.sent));
            }
        }
        wait(&asking);
        for a in &mut asking {
            let mut bytes = [0; 2048];
            while let Ok((length, _)) = a.socket.recv_from(&mut bytes) {
                match a.client.hear(&bytes[..length]) {
                    Heard::Bound(lease) => return Ok(Some((a.port, lease))),
                    Heard::Offer(_) => {
                        let seconds = begin.elapsed().as_secs() as u16;
                        let _ = a.socket.send_to(&a.client.packet(seconds), broadcast);
                        a.sent = 1;
                        a.next = Instant::now() + Duration::from_secs(2);
                    }
                    Heard::Nak => {
                        heard(a.port, "the server took its offer back");
                        a.client.restart(transaction());
                        a.next = Instant::now() + Duration::from_secs(1);
                    }
                    Heard::Ignored("for another client" | "not expected now" | "not a reply") => {}
                    Heard::Ignored(why) => heard(a.port, &format!("an answer {why} was refused")),
                }
            }
        }
    }
    Ok(None)
}

/// Waits until an answer is there or something is to be sent; at most 100 ms, as links come without a sign.
fn wait(asking: &[Asking<'_>]) {
    let mut fds: Vec<_> = asking.iter().map(|a| PollFd::new(a.socket.as_fd(), PollFlags::POLLIN)).collect();
    let _ = poll(&mut fds, PollTimeout::from(100u8));
}

/// How a renewal ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// Extended.
    Extended(Lease),
    /// The server refused: the address must be given up.
    Refused,
    /// Nobody answered.
    Silence,
}

/// Asks for more time, from the address itself. `broadcast`: any server may answer (past T2).
pub fn renew(network: &Network, broadcast: bool) -> Result<Renewal> {
    let socket = open(None, if broadcast { Ipv4Addr::UNSPECIFIED } else { network.address })
        .context("opening the DHCP client port")?;
    let target = if broadcast { subnet_broadcast(network) } else { network.dhcp_server };
    exchange(&socket, SocketAddrV4::new(target, SERVER_PORT), network.mac, network.address)
}

fn exchange(socket: &UdpSocket, target: SocketAddrV4, mac: MacAddr, address: Ipv4Addr) -> Result<Renewal> {
    let mut client = Client::renewing(mac, transaction(), address);
    for sent in 1..=3 {
        socket
            .send_to(&client.packet(0), target)
            .with_context(|| format!("asking {target} for more time"))?;
        let until = Instant::now() + Duration::from_secs(patience_seconds(sent));
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            let mut bytes = [0; 2048];
            let length = match socket.recv_from(&mut bytes) {
                Ok((length, _)) => length,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => break,
                Err(e) => bail!("receiving a DHCP answer: {e}"),
            };
            match client.hear(&bytes[..length]) {
                Heard::Bound(lease) => return Ok(Renewal::Extended(lease)),
                Heard::Nak => return Ok(Renewal::Refused),
                _ => {}
            }
        }
    }
    Ok(Renewal::Silence)
}

fn subnet_broadcast(network: &Network) -> Ipv4Addr {
    let host = u32::MAX.checked_shr(u32::from(network.prefix)).unwrap_or(0);
    Ipv4Addr::from(u32::from(network.address) | host)
}

/// When to ask again and how, `age` seconds after the lease was given (RFC 2131 section 4.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Not yet; in so many seconds.
    In(u64),
    /// Ask the server that gave it.
    Renew,
    /// Ask anyone.
    Rebind,
    /// Over: begin anew.
    Expired,
}

/// Decides what is due.
pub fn due(lease_seconds: u32, age: u64) -> Due {
    let lease = u64::from(lease_seconds);
    match age {
        age if age >= lease => Due::Expired,
        age if age >= lease * 7 / 8 => Due::Rebind,
        age if age >= lease / 2 => Due::Renew,
        age => Due::In(lease / 2 - age),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dhcproto::{
        Decodable, Decoder, Encodable,
        v4::{DhcpOption, Message, MessageType, Opcode},
    };

    use super::*;

    #[test]
    fn half_then_seven_eighths_then_over() {
        assert_eq!(due(3600, 0), Due::In(1800));
        assert_eq!(due(3600, 1800), Due::Renew);
        assert_eq!(due(3600, 3150), Due::Rebind);
        assert_eq!(due(3600, 3600), Due::Expired);
        assert_eq!(due(16, 8), Due::Renew);
        assert_eq!(due(u32::MAX, 10), Due::In(u64::from(u32::MAX) / 2 - 10));
    }

    /// A DHCP server on the loopback that gives one answer, in the form that a client without options accepts.
    fn answer(kind: MessageType) -> Renewal {
        let (ours, mac) = (Ipv4Addr::new(10, 77, 0, 21), MacAddr([2; 6]));
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(target) = server.local_addr().unwrap() else { panic!("not IPv4") };
        let serving = std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            let (length, from) = server.recv_from(&mut bytes).unwrap();
            let mut message = Message::decode(&mut Decoder::new(&bytes[..length])).unwrap();
            assert_eq!(message.ciaddr(), ours);
            message.set_opcode(Opcode::BootReply).set_yiaddr(ours);
            let options = message.opts_mut();
            options.clear();
            options.insert(DhcpOption::MessageType(kind));
            options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 77, 0, 1)));
            options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
            options.insert(DhcpOption::AddressLeaseTime(900));
            server.send_to(b"noise", from).unwrap();
            server.send_to(&message.to_vec().unwrap(), from).unwrap();
        });
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let renewal = exchange(&socket, target, mac, ours).unwrap();
        serving.join().unwrap();
        renewal
    }

    #[test]
    fn renewals_are_granted_or_refused() {
        assert!(matches!(answer(MessageType::Ack), Renewal::Extended(lease) if lease.seconds == 900));
        assert_eq!(answer(MessageType::Nak), Renewal::Refused);
    }

    #[test]
    fn the_broadcast_address_of_a_subnet() {
        let network = |prefix| Network {
            interface: "eth0".into(),
            mac: MacAddr([2; 6]),
            address: Ipv4Addr::new(10, 77, 3, 21),
            prefix,
            gateway: None,
            dns: vec![],
            dhcp_server: Ipv4Addr::new(10, 77, 0, 1),
            lease_seconds: 60,
        };
        assert_eq!(subnet_broadcast(&network(24)), Ipv4Addr::new(10, 77, 3, 255));
        assert_eq!(subnet_broadcast(&network(16)), Ipv4Addr::new(10, 77, 255, 255));
        assert_eq!(subnet_broadcast(&network(32)), Ipv4Addr::new(10, 77, 3, 21));
    }
}
