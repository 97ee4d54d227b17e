//! The thin loop around [`super::answer`]: drains the sockets, writes what must survive to the ledger once for the whole
//! batch, then sends. A reply never leaves before its lease is on disk, nor an offer before its address is proven free.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant as Clock,
};

use jiff::Timestamp;
use labshift_model::{
    MacAddr,
    boot::{BootPlaneEvent, Directory, Journal},
};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep_until},
};

use super::{
    answer::{Answer, Port, answer},
    flood::Gate,
    lease::{Lease, Leases},
    ledger::{Ledger, LedgerError},
    neighbour::Neighbours,
    probe::{Held, Offer, Probes, claim, question},
    request::overheard_server,
    rogue::Rogues,
    sender::{Outgoing, Sender},
};
use crate::{
    config::{Control, Mode},
    wire::AsyncWire,
};

/// Packets answered before one write to the ledger.
const BATCH: usize = 256;
/// Larger than any DHCP message on Ethernet.
const BUFFER: usize = 4096;

/// The table of leases, shared with whoever must know who has an address.
pub type Table = Arc<Mutex<Leases>>;

/// The table, now. What is done with it is done at once.
pub fn now(table: &Table) -> MutexGuard<'_, Leases> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The DHCP sockets of one interface.
pub(crate) struct Sockets {
    /// Port 67.
    pub dhcp: UdpSocket,
    /// Port 4011.
    pub boot_server: UdpSocket,
    /// Port 68, where other servers' broadcast replies are overheard; absent when the port was not to be had.
    pub overheard: Option<UdpSocket>,
    /// ARP, with our card's address; absent when nobody is to be asked.
    pub arp: Option<(AsyncWire, MacAddr)>,
}

/// The DHCP server's task.
pub(crate) struct Server {
    /// Settings.
    pub config: Control,
    /// Who machines are.
    pub directory: Arc<dyn Directory>,
    /// Who hears of what happened.
    pub journal: Arc<dyn Journal>,
    /// The table.
    pub leases: Table,
    /// The table on disk.
    pub ledger: Arc<Mutex<Ledger>>,
    /// Index of the interface.
    pub interface: u32,
}

/// What the server remembers from one packet to the next, beside the leases.
struct Memory {
    gate: Gate,
    rogues: Rogues,
    probes: Probes,
    arp: Option<(AsyncWire, MacAddr)>,
}

impl Server {
    /// Serves until the future is dropped. Returns only when a socket fails for good.
    pub async fn run(self, sockets: Sockets) -> io::Result<()> {
        let neighbours = Neighbours::open(self.interface)
            .inspect_err(|e| {
                tracing::warn!("no rtnetlink ({e}): replies to clients without address are broadcast")
            })
            .ok();
        let Sockets { dhcp, boot_server, overheard, arp } = sockets;
        let sender = Arc::new(Sender {
            dhcp,
            boot_server,
            neighbours,
            from: self.config.now().server_address,
            interface: self.interface,
            delay: self.config.now().reply_delay,
        });
        let mut memory =
            Memory { gate: Gate::new(), rogues: Rogues::default(), probes: Probes::default(), arp };
        loop {
            let claimed = tokio::select! {
                ready = sender.dhcp.readable() => ready.map(|()| None)?,
                ready = sender.boot_server.readable() => ready.map(|()| None)?,
                ready = readable(overheard.as_ref()) => ready.map(|()| None)?,
                claimed = claims(memory.arp.as_ref()) => claimed?,
                () = due(memory.probes.next()) => None,
            };
            let mut out = vec![];
            if let Some((address, by)) = claimed {
                self.conflict(address, by, &mut memory, &mut out);
            }
            self.let_out(&mut memory, &mut out);
            for (socket, port) in [(&sender.dhcp, Port::Dhcp), (&sender.boot_server, Port::BootServer)] {
                for (packet, source) in drain(socket) {
                    let clock = Clock::now();
                    let known =
                        |mac| self.directory.machine(mac).is_some() || now(&self.leases).of(mac).is_some();
                    if memory.gate.admits(&packet, known, clock) {
                        self.take(packet, source, port, &mut memory, &mut out);
                    }
                }
            }
            for (packet, _) in overheard.as_ref().map(drain).unwrap_or_default() {
                if let Some(address) = overheard_server(&packet).filter(|a| *a != sender.from) {
                    self.tell(BootPlaneEvent::RogueServer { address }, &mut memory.rogues);
                }
            }
            match self.persist().await {
                Ok(()) => sender.send_all(out).await,
                Err(fault) => tracing::error!("{fault}; DHCP clients get no answer until it can be written"),
            }
        }
    }

    /// Answers one packet: at once, or when its address is proven free.
    fn take(
        &self,
        packet: Vec<u8>,
        source: SocketAddrV4,
        port: Port,
        memory: &mut Memory,
        out: &mut Vec<Outgoing>,
    ) {
        let config = self.config.now();
        let Answer { replies, mut events, unproven, firmware } = answer(
            &packet,
            source,
            port,
            &config,
            &mut now(&self.leases),
            &*self.directory,
            Timestamp::now(),
        );
        for reply in replies {
            let (Some(address), Some((wire, card))) = (unproven, &memory.arp) else {
                out.push(Outgoing { port, firmware, reply });
                continue;
            };
            let mac =
                packet.get(28..34).and_then(|bytes| bytes.try_into().ok()).map_or(MacAddr([0; 6]), MacAddr);
            let packet = packet.clone();
            let offer = Offer { address, mac, packet, source, reply, event: events.pop(), firmware };
            match memory.probes.hold(offer, config.probe, Instant::now()) {
                Ok(true) => ask(wire, *card, address),
                Ok(false) => {}
                Err(offer) => {
                    events.extend(offer.event);
                    out.push(Outgoing { port, firmware, reply: offer.reply });
                }
            }
        }
        events.into_iter().for_each(|event| self.tell(event, &mut memory.rogues));
    }

    /// Offers whose address nobody claimed leave; the wire is asked again for the others.
    fn let_out(&self, memory: &mut Memory, out: &mut Vec<Outgoing>) {
        let clock = Instant::now();
        if let Some((wire, card)) = &memory.arp {
            memory.probes.unanswered(clock).into_iter().for_each(|address| ask(wire, *card, address));
        }
        for (address, held) in memory.probes.proven(clock) {
            now(&self.leases).heard_nothing(address, Timestamp::now());
            let Held { reply, event, firmware, .. } = held;
            out.push(Outgoing { port: Port::Dhcp, firmware, reply });
            event.into_iter().for_each(|event| self.tell(event, &mut memory.rogues));
        }
    }

    /// Somebody has an address that we were about to offer: the client gets another one.
    fn conflict(&self, address: Ipv4Addr, by: MacAddr, memory: &mut Memory, out: &mut Vec<Outgoing>) {
        let Some(held) = memory.probes.taken(address, by) else { return };
        tracing::warn!(
            "{address} is in use by {by}, which did not get it from this server; it rests for ten minutes. Take it out \
             of the pool, or give {by} another address"
        );
        now(&self.leases).decline(held.mac, address, Timestamp::now());
        self.take(held.packet, held.source, Port::Dhcp, memory, out);
    }

    fn tell(&self, event: BootPlaneEvent, rogues: &mut Rogues) {
        if let BootPlaneEvent::RogueServer { address } = event {
            // Beside a proxy there is another server: the one that gives the addresses.
            let config = self.config.now();
            if config.mode != Mode::Authoritative || !rogues.is_news(address, Timestamp::now()) {
                return;
            }
            tracing::warn!(
                "{address} is another DHCP server on {}: machines may boot from it",
                config.interface
            );
        }
        self.journal.record(event);
    }

    async fn persist(&self) -> Result<(), LedgerError> {
        let (changes, known) = {
            let mut leases = now(&self.leases);
            (leases.take_changes(), leases.len())
        };
        if changes.is_empty() {
            return Ok(());
        }
        let anew = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).wants_compaction(known);
        let anew: Option<Vec<Lease>> = anew.then(|| now(&self.leases).snapshot());
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

fn ask(wire: &AsyncWire, card: MacAddr, address: Ipv4Addr) {
    if let Err(e) = wire.send(&question(address, card)) {
        tracing::warn!("asking the wire who has {address}: {e}");
    }
}

/// The next frame that claims an address.
async fn claims(arp: Option<&(AsyncWire, MacAddr)>) -> io::Result<Option<(Ipv4Addr, MacAddr)>> {
    let Some((wire, _)) = arp else { return std::future::pending().await };
    let mut frame = [0; 64];
    let length = wire.receive(&mut frame).await?;
    Ok(claim(&frame[..length.min(64)]))
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
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
