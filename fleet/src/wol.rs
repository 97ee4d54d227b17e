//! Wake-on-LAN: the magic packet (six bytes 0xff, then the hardware address sixteen times), as UDP to port 9 of the
//! subnet's broadcast address, or as a bare Ethernet frame with EtherType 0x0842.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
};

use labshift_model::{
    MacAddr,
    api::WakeMeans,
    site::{Link, Way},
};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket},
};

/// EtherType of a magic packet.
const ETHERTYPE: u16 = 0x0842;
/// UDP port that magic packets go to by custom ("discard").
const PORT: u16 = 9;

/// A packet could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    /// UDP.
    #[error("sending a magic packet from {from} to {to}: {source}")]
    Udp {
        /// Our address.
        from: Ipv4Addr,
        /// The subnet's broadcast address.
        to: Ipv4Addr,
        /// Why.
        source: io::Error,
    },
    /// Ethernet.
    #[error("sending a magic packet on interface {interface}: {source}")]
    Ethernet {
        /// The lab's interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// Only routers reach the machine's network.
    #[error(
        "no frame reaches a network behind routers; let them pass directed broadcasts to {to}, UDP port 9"
    )]
    Routed {
        /// The network's broadcast address.
        to: Ipv4Addr,
    },
    /// The server was started without an interface.
    #[error("no interface is known to send an Ethernet frame on; start the server with --interface")]
    NoInterface,
}

/// The 102 bytes.
pub fn magic(mac: MacAddr) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(mac.0.iter().cycle().take(96));
    packet
}

/// Sends one magic packet. `main` is the interface that the server was started with.
pub fn send(mac: MacAddr, means: WakeMeans, way: Way<'_>, main: Option<&str>) -> Result<(), WakeError> {
    match means {
        WakeMeans::Udp => {
            let Way { from, to, .. } = way;
            udp(mac, from, SocketAddrV4::new(to, PORT)).map_err(|source| WakeError::Udp { from, to, source })
        }
        WakeMeans::Ethernet => {
            let interface = match way.link {
                Link::Main => main.ok_or(WakeError::NoInterface)?,
                Link::Interface(name) => name,
                Link::Routed => return Err(WakeError::Routed { to: way.to }),
            };
            let failed = |source| WakeError::Ethernet { interface: interface.to_owned(), source };
            ethernet(mac, interface).map_err(failed)
        }
    }
}

fn udp(mac: MacAddr, from: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_broadcast(true)?;
    socket.send_to(&magic(mac), to).map(drop)
}

fn ethernet(mac: MacAddr, interface: &str) -> io::Result<()> {
    // The interface's own link address names it to sendto; a raw frame carries its destination itself.
    let link = getifaddrs()?
        .filter(|i| i.interface_name == interface)
        .find_map(|i| i.address.as_ref().and_then(|a| a.as_link_addr().copied()))
        .ok_or_else(|| io::Error::other("there is no Ethernet interface of this name"))?;
    let own = MacAddr(link.addr().ok_or_else(|| io::Error::other("it has no hardware address"))?);
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let frame = frame(own, mac);
    let sent = sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
    if sent == frame.len() { Ok(()) } else { Err(io::Error::other("the frame was cut short")) }
}

fn frame(own: MacAddr, mac: MacAddr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(own.0);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend(magic(mac));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);

    #[test]
    fn six_times_ff_then_sixteen_addresses() {
        let packet = magic(MAC);
        assert_eq!(packet.len(), 102);
        assert_eq!(packet[..6], [0xff; 6]);
        assert!(packet[6..].chunks(6).all(|c| c == MAC.0));
        let frame = frame(MacAddr([2, 0, 0, 0, 0, 1]), MAC);
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08, 0x42]);
    }

    #[test]
    fn the_udp_packet_arrives() {
        let listener = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let to = match listener.local_addr().expect("bound") {
            std::net::SocketAddr::V4(to) => to,
            other => panic!("{other}"),
        };
        udp(MAC, Ipv4Addr::LOCALHOST, to).expect("sent");
        let mut buffer = [0; 200];
        let (length, _) = listener.recv_from(&mut buffer).expect("received");
        assert_eq!(buffer[..length], magic(MAC)[..]);
    }

    #[test]
    fn what_fails_is_named() {
        let way = |link| Way { from: Ipv4Addr::LOCALHOST, to: Ipv4Addr::BROADCAST, link };
        for (link, main) in [(Link::Main, Some("none0")), (Link::Interface("none0"), Some("lo"))] {
            let error = send(MAC, WakeMeans::Ethernet, way(link), main).expect_err("no such interface");
            assert!(error.to_string().starts_with("sending a magic packet on interface none0: "), "{error}");
        }
        let without = send(MAC, WakeMeans::Ethernet, way(Link::Main), None);
        assert!(matches!(without, Err(WakeError::NoInterface)));
        let routed = send(MAC, WakeMeans::Ethernet, way(Link::Routed), Some("lo"));
        assert!(matches!(routed, Err(WakeError::Routed { .. })));
    }
}
