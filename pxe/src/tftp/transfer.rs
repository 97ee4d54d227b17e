//! One transfer: its own socket, connected to the client, until the last ACK, an ERROR, or silence.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    packet::{Packet, Terms, code, data, error, oack},
    source::Source,
    window::{Step, Window},
};

/// Before the line's round trip is known.
const FIRST_WAIT: Duration = Duration::from_millis(300);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// Silence after which the client is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a transfer ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The client has all.
    Sent,
    /// The client looked at the options, or at our answer to them, and went away: usual for firmware that wants to know
    /// the size.
    Probed,
    /// It did not complete.
    Broken(String),
}

/// How long to wait for an ACK: from the measured round trip, doubled after each silence (RFC 6298 in small).
#[derive(Debug, Clone)]
struct Patience {
    wait: Duration,
    cap: Duration,
    fresh: bool,
}

impl Patience {
    fn new(asked: Option<u8>) -> Self {
        let cap = asked.map_or(LONGEST_WAIT, |s| Duration::from_secs(s.into()).min(LONGEST_WAIT));
        Patience { wait: FIRST_WAIT.min(cap), cap, fresh: true }
    }

    fn answered(&mut self, after: Duration) {
        // The answer to something sent twice says nothing about the round trip (Karn).
        if self.fresh {
            self.wait = (after * 4).clamp(SHORTEST_WAIT, self.cap);
        }
        self.fresh = true;
    }

    fn silent(&mut self) {
        self.wait = (self.wait * 2).min(self.cap);
        self.fresh = false;
    }
}

/// A transfer about to start.
pub struct Transfer {
    /// Our address; the port is new.
    pub from: Ipv4Addr,
    /// The client.
    pub to: SocketAddrV4,
    /// What to send.
    pub source: Source,
    /// As agreed.
    pub terms: Terms,
    /// Set before the client can see that the port is closed: what it asks then is a new request, no copy.
    pub over: Arc<AtomicBool>,
}

impl Transfer {
    /// Sends the whole.
    pub async fn run(mut self) -> End {
        let opened = async {
            let socket = UdpSocket::bind(SocketAddr::from((self.from, 0))).await?;
            socket.connect(self.to).await.map(|()| socket)
        };
        let socket = match opened.await {
            Ok(socket) => socket,
            Err(e) => return End::Broken(e.to_string()),
        };
        let end = self.send(&socket).await;
        self.over.store(true, Ordering::Release);
        drop(socket);
        end.unwrap_or_else(|e| End::Broken(e.to_string()))
    }

    async fn send(&mut self, socket: &UdpSocket) -> io::Result<End> {
        let mut window = Window::new(self.source.size(), self.terms.block, self.terms.window);
        let mut patience = Patience::new(self.terms.timeout);
        let (mut heard, mut sent) = (Instant::now(), Instant::now());
        let opening = (!self.terms.accepted.is_empty()).then(|| oack(&self.terms.accepted));
        match &opening {
            Some(packet) => push(socket, packet).await?,
            None => self.blocks(socket, window.again()).await?,
        }
        let mut buffer = [0; 512];
        loop {
            let received = match timeout_at(sent + patience.wait, socket.recv(&mut buffer)).await {
                Ok(Ok(length)) => Packet::of(&buffer[..length]),
                Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(self.gone(&window)),
                Ok(Err(e)) => return Err(e),
                Err(_) if heard.elapsed() > PATIENCE => {
                    let seconds = PATIENCE.as_secs();
                    return Ok(End::Broken(format!(
                        "no answer for {seconds} s after block {}",
                        window.acked()
                    )));
                }
                Err(_) => {
                    patience.silent();
                    match opening.as_ref().filter(|_| !window.is_open()) {
                        Some(packet) => push(socket, packet).await?,
                        None => self.blocks(socket, window.again()).await?,
                    }
                    sent = Instant::now();
                    continue;
                }
            };
            match received {
                Ok(Packet::Ack(number)) => match window.take(number) {
                    Step::Done => return Ok(End::Sent),
                    Step::Wait => {}
                    Step::Send(range) => {
                        heard = Instant::now();
                        patience.answered(heard - sent);
                        self.blocks(socket, range).await?;
                        sent = Instant::now();
                    }
                },
                Ok(Packet::Error(number, _)) if number == code::OPTIONS || window.acked() == 0 => {
                    return Ok(End::Probed);
                }
                Ok(Packet::Error(number, text)) => {
                    let block = window.acked();
                    return Ok(End::Broken(format!(
                        "client stopped after block {block}: error {number} {text}"
                    )));
                }
                _ => {}
            }
        }
    }

    /// The client's port is closed: it has all and its last ACK was lost, or it has given up.
    fn gone(&self, window: &Window) -> End {
        match (window.all_sent(), window.acked()) {
            (true, _) => End::Sent,
            (false, 0) => End::Probed,
            (false, block) => End::Broken(format!("client closed its port after block {block}")),
        }
    }

    async fn blocks(&mut self, socket: &UdpSocket, range: RangeInclusive<u64>) -> io::Result<()> {
        for number in range {
            let offset = (number - 1) * self.terms.block as u64;
            let bytes = match self.source.read(offset, self.terms.block).await {
                Ok(bytes) => bytes,
                Err(e) => {
                    push(socket, &error(code::UNDEFINED, "the server could not read the file")).await?;
                    return Err(e);
                }
            };
            push(socket, &data(number as u16, bytes)).await?;
        }
        Ok(())
    }
}

/// Sends, and takes a full queue or a passing fault of the network for a lost packet.
async fn push(socket: &UdpSocket, packet: &[u8]) -> io::Result<()> {
    match socket.send(packet).await {
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOBUFS | nix::libc::EHOSTUNREACH)) => Ok(()),
        other => other.map(drop),
    }
}
