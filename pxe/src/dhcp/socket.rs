//! The thin loop around [`super::answer`]: drains the sockets, writes what must survive to the ledger once for the whole
//! batch, then sends. A reply never leaves before its lease is on disk.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use labshift_model::boot::{BootPlaneEvent, Directory, Journal};
use nix::{
    libc::{in_addr, in_pktinfo},
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg},
};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    answer::{Answer, Port, answer},
    lease::{Lease, Leases},
    ledger::{Ledger, LedgerError},
    neighbour::Neighbours,
    reply::{CLIENT_PORT, Destination, Reply},
    request::overheard_server,
};
use crate::{config::Config, config::Mode};

/// Packets answered before one write to the ledger.
const BATCH: usize = 256;
/// Larger than any DHCP message on Ethernet.
const BUFFER: usize = 4096;
/// How often one foreign server is reported.
const ROGUE_EVERY: SignedDuration = SignedDuration::from_mins(10);

/// The DHCP sockets of one interface.
pub struct Sockets {
    /// Port 67.
    pub dhcp: UdpSocket,
    /// Port 4011.
    pub boot_server: UdpSocket,
    /// Port 68, where other servers' broadcast replies are overheard; absent when the port was not to be had.
    pub overheard: Option<UdpSocket>,
}

/// The DHCP server's task.
pub struct Server {
    /// Settings.
    pub config: Arc<Config>,
    /// Who machines are.
    pub directory: Arc<dyn Directory>,
    /// Who hears of what happened.
    pub journal: Arc<dyn Journal>,
    /// The table.
    pub leases: Leases,
    /// The table on disk.
    pub ledger: Arc<Mutex<Ledger>>,
    /// Index of the interface.
    pub interface: u32,
}

impl Server {
    /// Serves until the future is dropped. Returns only when a socket fails for good.
    pub async fn run(mut self, sockets: Sockets) -> io::Result<()> {
        let neighbours = Neighbours::open(self.interface)
            .inspect_err(|e| {
                tracing::warn!("no rtnetlink ({e}): replies to clients without address are broadcast")
            })
            .ok();
        let Sockets { dhcp, boot_server, overheard } = sockets;
        let sender = Arc::new(Sender {
            dhcp,
            boot_server,
            neighbours,
            from: self.config.server_address,
            interface: self.interface,
        });
        let mut rogues = Rogues::default();
        loop {
            tokio::select! {
                ready = sender.dhcp.readable() => ready?,
                ready = sender.boot_server.readable() => ready?,
                ready = readable(overheard.as_ref()) => ready?,
            }
            let now = Timestamp::now();
            let mut replies = vec![];
            for (socket, port) in [(&sender.dhcp, Port::Dhcp), (&sender.boot_server, Port::BootServer)] {
                for (packet, source) in drain(socket) {
                    let Answer { replies: new, events } =
                        answer(&packet, source, port, &self.config, &mut self.leases, &*self.directory, now);
                    replies.extend(new.into_iter().map(|reply| (port, reply)));
                    events.into_iter().for_each(|event| self.tell(event, &mut rogues, now));
                }
            }
            for (packet, _) in overheard.as_ref().map(drain).unwrap_or_default() {
                if let Some(address) = overheard_server(&packet).filter(|a| *a != self.config.server_address)
                {
                    self.tell(BootPlaneEvent::RogueServer { address }, &mut rogues, now);
                }
            }
            match self.persist().await {
                Ok(()) => sender.send_all(replies, &self.config).await,
                Err(fault) => tracing::error!("{fault}; DHCP clients get no answer until it can be written"),
            }
        }
    }

    fn tell(&self, event: BootPlaneEvent, rogues: &mut Rogues, now: Timestamp) {
        if let BootPlaneEvent::RogueServer { address } = event {
            // Beside a proxy there is another server: the one that gives the addresses.
            if self.config.mode != Mode::Authoritative || !rogues.is_news(address, now) {
                return;
            }
            tracing::warn!(
                "{address} is another DHCP server on {}: machines may boot from it",
                self.config.interface
            );
        }
        self.journal.record(event);
    }

    async fn persist(&mut self) -> Result<(), LedgerError> {
        let changes = self.leases.take_changes();
        if changes.is_empty() {
            return Ok(());
        }
        let anew =
            self.ledger.lock().unwrap_or_else(PoisonError::into_inner).wants_compaction(self.leases.len());
        let anew: Option<Vec<Lease>> = anew.then(|| self.leases.snapshot());
        let ledger = self.ledger.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            match anew {
                Some(all) => ledger.compact(&all),
                None => ledger.append(&changes),
            }
        });
        written.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

async fn readable(socket: Option<&UdpSocket>) -> io::Result<()> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

/// What has arrived by now, up to a batch.
fn drain(socket: &UdpSocket) -> Vec<(Vec<u8>, SocketAddrV4)> {
    let mut buffer = [0; BUFFER];
    std::iter::from_fn(|| match socket.try_recv_from(&mut buffer) {
        Ok((length, SocketAddr::V4(source))) => Some((buffer[..length].to_vec(), source)),
        Ok((_, SocketAddr::V6(_))) => None,
        Err(e) => {
            if e.kind() != io::ErrorKind::WouldBlock {
                tracing::warn!("receiving DHCP: {e}");
            }
            None
        }
    })
    .take(BATCH)
    .collect()
}

struct Sender {
    dhcp: UdpSocket,
    boot_server: UdpSocket,
    neighbours: Option<Neighbours>,
    from: Ipv4Addr,
    interface: u32,
}

impl Sender {
    async fn send_all(self: &Arc<Self>, replies: Vec<(Port, Reply)>, config: &Config) {
        if config.reply_delay.is_zero() {
            for (port, reply) in replies {
                self.send(port, reply).await;
            }
        } else if !replies.is_empty() {
            let (sender, delay) = (self.clone(), config.reply_delay);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                for (port, reply) in replies {
                    sender.send(port, reply).await;
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

/// Which foreign servers were reported lately.
#[derive(Default)]
struct Rogues(HashMap<Ipv4Addr, Timestamp>);

impl Rogues {
    fn is_news(&mut self, address: Ipv4Addr, now: Timestamp) -> bool {
        self.0.retain(|_, since| now.duration_since(*since) < ROGUE_EVERY);
        // A liar can invent server addresses without end.
        let news = self.0.len() < 64 && !self.0.contains_key(&address);
        if news {
            self.0.insert(address, now);
        }
        news
    }
}
