//! Whole Ethernet frames of one interface (packet(7)): ARP for the conflict probe, everything for the doctor.

#![allow(unsafe_code, reason = "nix can make a link-layer address to bind to only from a raw sockaddr_ll")]

use std::{io, net::UdpSocket, os::fd::AsRawFd};

use nix::{
    libc::{AF_PACKET, ENETDOWN, ENOBUFS, sockaddr_ll},
    net::if_::if_indextoname,
    sys::socket::{AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, bind, socket},
};
use tokio::net::UdpSocket as AsyncSocket;

/// Every frame, also those that this machine sends (`ETH_P_ALL`).
pub(crate) const ALL: u16 = 0x0003;
/// ARP frames only (`ETH_P_ARP`).
pub(crate) const ARP: u16 = 0x0806;

/// A packet socket of one interface. Needs CAP_NET_RAW.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: UdpSocket,
    interface: u32,
}

/// The same inside the runtime.
#[derive(Debug)]
pub(crate) struct AsyncWire {
    socket: AsyncSocket,
    interface: u32,
}

impl Wire {
    /// Opens it for frames of one EtherType.
    pub fn open(interface: u32, protocol: u16) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol nothing arrives before `bind` has named interface and protocol at once.
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        let address = sockaddr_ll {
            sll_family: AF_PACKET as u16,
            sll_protocol: protocol.to_be(),
            sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the pointer is to a live sockaddr_ll of the length given, whose family says what it is.
        let address =
            unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(size_of_val(&address) as u32)) };
        bind(fd.as_raw_fd(), &address.ok_or(io::ErrorKind::InvalidInput)?)?;
        // Not UDP; but the calls of the type are those of any datagram socket.
        Ok(Wire { socket: fd.into(), interface })
    }
}

impl AsyncWire {
    /// Registers it with the current runtime.
    pub fn new(wire: Wire) -> io::Result<Self> {
        Ok(AsyncWire { socket: AsyncSocket::from_std(wire.socket)?, interface: wire.interface })
    }

    /// Waits for a frame and gives its length: what did not fit in `buffer` is cut. While the interface is down nothing
    /// comes; afterwards frames come again.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.recv(buffer).await {
                // packet(7) says once that the interface went down.
                Err(e) if e.raw_os_error() == Some(ENETDOWN) => {}
                other => return other,
            }
        }
    }

    /// The interface still exists, be it up or down.
    pub fn is_there(&self) -> bool {
        // nix 0.31 takes the null pointer of an unknown index for an empty name.
        if_indextoname(self.interface).is_ok_and(|name| !name.is_empty())
    }

    /// Sends a frame; a full queue or an interface that is down loses it, as a cable may.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match self.socket.try_send(frame) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(ENOBUFS | ENETDOWN)) => Ok(()),
            other => other.map(drop),
        }
    }
}
