//! Sends replies, each the way its client can hear it.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use nix::{
    libc::{in_addr, in_pktinfo},
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg},
};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    answer::Port,
    neighbour::Neighbours,
    reply::{CLIENT_PORT, Destination, Reply},
};

/// A reply on its way out.
pub(super) struct Outgoing {
    /// The port that it leaves from.
    pub port: Port,
    /// It may have to wait a little: some ROMs miss a reply that comes at once.
    pub firmware: bool,
    /// The packet.
    pub reply: Reply,
}

pub(super) struct Sender {
    pub dhcp: UdpSocket,
    pub boot_server: UdpSocket,
    pub neighbours: Option<Neighbours>,
    pub from: Ipv4Addr,
    pub interface: u32,
    /// How long replies to firmware wait.
    pub delay: Duration,
}

impl Sender {
    /// Sends them in order; what has to wait leaves later by itself.
    pub async fn send_all(self: &Arc<Self>, replies: Vec<Outgoing>) {
        let (late, now): (Vec<_>, Vec<_>) =
            replies.into_iter().partition(|out| out.firmware && !self.delay.is_zero());
        for out in now {
            self.send(out.port, out.reply).await;
        }
        if !late.is_empty() {
            let sender = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(sender.delay).await;
                for out in late {
                    sender.send(out.port, out.reply).await;
                }
            });
        }
    }

    async fn send(&self, port: Port, reply: Reply) {
        let everyone = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
        let (to, routed) = match reply.to {
            Destination::Socket(to) => (to, true),
            Destination::Broadcast => (everyone, false),
            Destination::Card(address, mac) => match &self.neighbours {
                None => (everyone, false),
                Some(neighbours) => match neighbours.learn(address, mac).await {
                    Ok(()) => (SocketAddrV4::new(address, CLIENT_PORT), false),
                    Err(e) => {
                        tracing::warn!(
                            "no neighbour entry for {mac} ({e}): broadcasting; give CAP_NET_ADMIN to avoid"
                        );
                        (everyone, false)
                    }
                },
            },
        };
        let socket = match port {
            Port::Dhcp => &self.dhcp,
            Port::BootServer => &self.boot_server,
        };
        // A relay may be behind a gateway: there the kernel's routes choose; the socket is tied to the interface
        // in any case.
        let interface = if routed { 0 } else { self.interface as i32 };
        let info = in_pktinfo {
            ipi_ifindex: interface,
            ipi_spec_dst: in_addr { s_addr: u32::from(self.from).to_be() },
            ipi_addr: in_addr { s_addr: 0 },
        };
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                let (payload, address) = ([IoSlice::new(&reply.bytes)], SockaddrIn::from(to));
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(socket.as_raw_fd(), &payload, &control, MsgFlags::empty(), Some(&address))
                    .map_err(io::Error::from)
            })
            .await;
        if let Err(e) = sent {
            tracing::warn!("sending a DHCP reply to {to}: {e}");
        }
    }
}
