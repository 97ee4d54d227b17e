//! Whole Ethernet frames of one interface (packet(7)): ARP for the conflict probe, everything for the doctor.

#![allow(unsafe_code, reason = "nix can make a link-layer address to bind to only from a raw sockaddr_ll")]

use std::{io, net::UdpSocket, os::fd::AsRawFd};

use nix::{
    libc::{AF_PACKET, sockaddr_ll},
    sys::socket::{AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, bind, socket},
};
use tokio::net::UdpSocket as AsyncSocket;

/// Every frame, also those that this machine sends (`ETH_P_ALL`).
pub(crate) const ALL: u16 = 0x0003;
/// ARP frames only (`ETH_P_ARP`).
pub(crate) const ARP: u16 = 0x0806;

/// A packet socket of one interface. Needs CAP_NET_RAW.
#[derive(Debug)]
pub(crate) struct Wire(UdpSocket);

/// The same inside the runtime.
#[derive(Debug)]
pub(crate) struct AsyncWire(AsyncSocket);

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
        Ok(Wire(fd.into()))
    }
}

impl AsyncWire {
    /// Registers it with the current runtime.
    pub fn new(wire: Wire) -> io::Result<Self> {
        AsyncSocket::from_std(wire.0).map(AsyncWire)
    }

    /// Waits for a frame and gives its length: what did not fit in `buffer` is cut.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer).await
    }

    /// Sends a frame; a full queue loses it, as a cable may.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match self.0.try_send(frame) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(()),
            other => other.map(drop),
        }
    }
}
