//! One transfer, on a thread of its own, until the last ACK, an ERROR, or silence.

use std::{
    io,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::{
    line::Line,
    packet::{Packet, Terms, code, data_into, error, oack},
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
    /// Another transfer took its place, or the server ends.
    Replaced,
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
pub struct Transfer<'l> {
    /// The way to the client.
    pub line: &'l Line,
    /// What to send.
    pub source: Source,
    /// As agreed.
    pub terms: Terms,
    /// The packets of one window, kept from one to the next.
    packets: Vec<u8>,
}

impl<'l> Transfer<'l> {
    /// On this line, with these terms.
    pub fn new(line: &'l Line, source: Source, terms: Terms) -> Self {
        Transfer { line, source, terms, packets: vec![] }
    }

    /// Sends the whole. `chosen` is called at the client's first ACK: from then on it speaks with this transfer, and with no other
    /// that it may have asked for.
    pub fn run(mut self, chosen: impl FnOnce()) -> End {
        match self.send(chosen) {
            _ if self.line.is_over() => End::Replaced,
            Ok(end) => end,
            Err(e) => End::Broken(e.to_string()),
        }
    }

    fn send(&mut self, chosen: impl FnOnce()) -> io::Result<End> {
        let mut window = Window::new(self.source.size(), self.terms.block, self.terms.window);
        let mut patience = Patience::new(self.terms.timeout);
        let (mut heard, mut sent) = (Instant::now(), Instant::now());
        let (mut chosen, mut waits) = (Some(chosen), Duration::ZERO);
        let opening = (!self.terms.accepted.is_empty()).then(|| oack(&self.terms.accepted));
        match &opening {
            Some(packet) => self.line.send(packet)?,
            None => self.blocks(window.again())?,
        }
        let mut buffer = [0; 512];
        while !self.line.is_over() {
            if waits != patience.wait {
                waits = patience.wait;
                self.line.patience(waits)?;
            }
            let received = match self.line.receive(&mut buffer) {
                Ok(received) => received,
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(self.gone(&window)),
                Err(e) => return Err(e),
            };
            let packet = received.map(|length| Packet::of(&buffer[..length]));
            match packet {
                Some(Ok(Packet::Ack(number))) => {
                    if let Some(chosen) = chosen.take() {
                        chosen();
                    }
                    match window.take(number) {
                        Step::Done => return Ok(End::Sent),
                        Step::Wait => {}
                        Step::Send(range) => {
                            heard = Instant::now();
                            patience.answered(heard - sent);
                            self.blocks(range)?;
                            sent = Instant::now();
                            continue;
                        }
                    }
                }
                Some(Ok(Packet::Error(number, _))) if number == code::OPTIONS || window.acked() == 0 => {
                    return Ok(End::Probed);
                }
                Some(Ok(Packet::Error(number, text))) => {
                    let block = window.acked();
                    return Ok(End::Broken(format!(
                        "client stopped after block {block}: error {number} {text}"
                    )));
                }
                _ => {}
            }
            // Packets that say nothing new do not put off what is due.
            if sent.elapsed() < waits {
                continue;
            }
            if heard.elapsed() > PATIENCE {
                let (seconds, block) = (PATIENCE.as_secs(), window.acked());
                return Ok(End::Broken(format!("no answer for {seconds} s after block {block}")));
            }
            patience.silent();
            match opening.as_ref().filter(|_| !window.is_open()) {
                Some(packet) => self.line.send(packet)?,
                None => self.blocks(window.again())?,
            }
            sent = Instant::now();
        }
        Ok(End::Replaced)
    }

    /// The client's port is closed: it has all and its last ACK was lost, or it has given up.
    fn gone(&self, window: &Window) -> End {
        match (window.all_sent(), window.acked()) {
            (true, _) => End::Sent,
            (false, 0) => End::Probed,
            (false, block) => End::Broken(format!("client closed its port after block {block}")),
        }
    }

    fn blocks(&mut self, range: RangeInclusive<u64>) -> io::Result<()> {
        self.packets.clear();
        for number in range {
            let offset = (number - 1) * self.terms.block as u64;
            match self.source.read(offset, self.terms.block) {
                Ok(bytes) => data_into(&mut self.packets, number as u16, bytes),
                Err(e) => {
                    self.line.send(&error(code::UNDEFINED, "the server could not read the file"))?;
                    return Err(e);
                }
            }
        }
        self.line.send_all(&self.packets, self.terms.block + 4)
    }
}
