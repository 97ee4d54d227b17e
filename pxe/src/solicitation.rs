//! Answers a workstation's IPv6 router solicitation with "no router here" (RFC 4861 sections 4.1, 4.2).
//!
//! iPXE, also the one in a network card's ROM, configures IPv4 and IPv6 side by side and goes on when both are done. On a
//! network without an IPv6 router it asks five times and waits 16 s for an answer that never comes. An advertisement with
//! router lifetime 0, no prefix and no flags ends the wait at once and configures nothing: by the RFC its sender is no
//! default router, and what the message leaves unsaid stays as it is. It goes to the asking machine alone, and only to
//! workstations that the directory knows, or lets boot.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    sync::Arc,
};

use labshift_model::{
    MacAddr,
    boot::{BootChoice, Directory, MachineKind},
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket,
    sockopt::{BindToDevice, Ipv6Ttl},
};
use tokio::net::UdpSocket as AsyncSocket;

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Receivers drop anything else: a router can't have forwarded it.
const HOP_LIMIT: i32 = 255;

/// Router lifetime 0, no flags, no options; the kernel fills in the check sum.
const NO_ROUTER: [u8; 16] = [ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Opens the ICMPv6 socket of an interface.
pub(crate) fn open(name: &str, index: u32) -> io::Result<UdpSocket> {
    let fd = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
    setsockopt(&fd, BindToDevice, &name.to_owned().into())?;
    setsockopt(&fd, Ipv6Ttl, &HOP_LIMIT)?;
    // Not UDP; but the calls of the type are those of any datagram socket.
    let socket = UdpSocket::from(fd);
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    Ok(socket)
}

/// Answers until the future is dropped.
pub(crate) async fn run(socket: AsyncSocket, directory: Arc<dyn Directory>) -> io::Result<()> {
    let mut buffer = [0; 1500];
    loop {
        let (length, SocketAddr::V6(source)) = socket.recv_from(&mut buffer).await? else { continue };
        let Some(mac) = solicitor(&buffer[..length], &source) else { continue };
        let boots = match directory.machine(mac) {
            Some(machine) => machine.kind == MachineKind::Node,
            None => directory.boot(mac) != BootChoice::Ignore,
        };
        if !boots {
            continue;
        }
        tracing::debug!("{mac} asks for an IPv6 router: there is none");
        if let Err(e) = socket.send_to(&NO_ROUTER, source).await {
            tracing::debug!("advertising to {source}: {e}");
        }
    }
}

/// The card that asks, when the packet is a solicitation with its address in it, from this link.
fn solicitor(packet: &[u8], source: &SocketAddrV6) -> Option<MacAddr> {
    const SOURCE_LINK_LAYER: u8 = 1;
    if packet.len() < 8 || packet[..2] != [SOLICITATION, 0] || !source.ip().is_unicast_link_local() {
        return None;
    }
    let mut options = &packet[8..];
    while let [kind, units, ..] = *options {
        let (option, rest) = options.split_at_checked(usize::from(units) * 8).filter(|_| units > 0)?;
        if kind == SOURCE_LINK_LAYER && units == 1 {
            return option[2..].try_into().ok().map(MacAddr);
        }
        options = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_solicitations_of_this_link_are_heard() {
        let link = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 0, 0, 2);
        let global = SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 0, 0, 2);
        let ask = [133, 0, 1, 2, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0, 0, 1];
        let nonce = [133, 0, 1, 2, 0, 0, 0, 0, 14, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0, 0, 1];
        let mac = Some(MacAddr([0x52, 0x54, 0, 0, 0, 1]));
        assert_eq!(solicitor(&ask, &link), mac);
        assert_eq!(solicitor(&nonce, &link), mac);
        assert_eq!(solicitor(&ask, &global), None);
        for length in 0..ask.len() {
            assert_eq!(solicitor(&ask[..length], &link), None, "{length}");
        }
        let endless = [133, 0, 1, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(solicitor(&endless, &link), None);
        assert_eq!(solicitor(&NO_ROUTER, &link), None);
    }
}
