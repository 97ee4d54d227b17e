//! Gives blocks to other machines of the segment: a small HTTP server that only reads, and knows one root.
//!
//! It answers the machines that the server named and nobody else, with whole chunks that were verified here. A chunk that is not here
//! it fetches from the server, once for all who ask, and never from another peer: requests don't go in circles.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{Shutdown, shutdown};

use super::{
    Swarm,
    request::{Asked, Head, LONGEST, head},
};
use crate::{blocks::Blocks, journal::JOURNAL};

/// Connections at the same time, in all and from one machine.
const MOST: usize = 128;
const MOST_EACH: usize = 16;
/// How long a connection may rest between two requests.
const REST: Duration = Duration::from_secs(15);
/// A request must be complete by then, from its first byte.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// How long an asker may take nothing of what is sent.
const STALL: Duration = Duration::from_secs(10);
/// Bytes given after which it is told, and again whenever they have doubled.
const TOLD: u64 = 64 << 20;

/// The open door of one node.
#[derive(Debug)]
pub struct Giving {
    listener: TcpListener,
    closed: AtomicBool,
    open: Mutex<HashMap<Ipv4Addr, usize>>,
    given: AtomicU64,
}

impl Giving {
    /// Listens at the node's own address, and nowhere else.
    pub fn listen(at: SocketAddrV4) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind(at)?;
        let (closed, open, given) = (AtomicBool::new(false), Mutex::default(), AtomicU64::new(0));
        Ok(Arc::new(Giving { listener, closed, open, given }))
    }

    /// Bytes of blocks that others have got.
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// Nobody gets anything any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }

    /// Serves until it is closed.
    pub fn serve(self: &Arc<Self>, swarm: &Arc<Swarm>, blocks: &Arc<Blocks>) {
        while !self.closed.load(Ordering::Relaxed) {
            let Ok((stream, from)) = self.listener.accept() else {
                // Out of descriptors, or the asker is gone already. A closed door ends the loop.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let IpAddr::V4(from) = from.ip() else { continue };
            let Some(place) = self.admit(from, swarm) else { continue };
            let (giving, swarm, blocks) = (self.clone(), swarm.clone(), blocks.clone());
            let answer = move || {
                let _ = giving.answer(stream, &swarm, &blocks);
                drop(place);
            };
            let _ = std::thread::Builder::new().name("giving".into()).spawn(answer);
        }
    }

    fn admit(self: &Arc<Self>, from: Ipv4Addr, swarm: &Swarm) -> Option<Place> {
        if !swarm.circle().knows(from) {
            return None;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.get(&from).copied().unwrap_or_default();
        if own >= MOST_EACH || open.values().sum::<usize>() >= MOST {
            return None;
        }
        open.insert(from, own + 1);
        Some(Place { giving: self.clone(), from })
    }

    /// Speaks with one asker until it leaves, rests too long, or asks for something odd.
    fn answer(&self, mut stream: TcpStream, swarm: &Arc<Swarm>, blocks: &Blocks) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(STALL))?;
        let (mut read, mut buffer) = (Vec::new(), [0; 1024]);
        while !self.closed.load(Ordering::Relaxed) {
            let mut deadline = Instant::now() + if read.is_empty() { REST } else { HEAD_WITHIN };
            let Head { asked, keep, length } = loop {
                if let Some(head) = head(&read, swarm.root(), blocks.data_size()) {
                    break head;
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                stream.set_read_timeout(Some(left))?;
                let room = buffer.len().min(LONGEST.saturating_sub(read.len()).max(1));
                match stream.read(&mut buffer[..room])? {
                    0 => return Ok(()),
                    count => {
                        if read.is_empty() {
                            deadline = Instant::now() + HEAD_WITHIN;
                        }
                        read.extend_from_slice(&buffer[..count]);
                    }
                }
            };
            read.drain(..length);
            match asked {
                Ok(Asked::Held(from)) => {
                    let held = blocks.held();
                    send(&mut stream, "200 OK", held.bytes().len(), [held.bytes()].into_iter())?;
                    swarm.was_greeted_by(from);
                }
                Ok(Asked::Chunks { first, count }) => match blocks.give(first, count) {
                    Some(chunks) => {
                        let length: usize = chunks.iter().map(|c| c.len()).sum();
                        let parts = chunks.iter().map(|c| c.as_slice());
                        send(&mut stream, "206 Partial Content", length, parts)?;
                        self.note(length as u64);
                    }
                    None => send(&mut stream, "404 Not Found", 0, [].into_iter())?,
                },
                Err(refusal) => {
                    send(&mut stream, &format!("{} -", refusal as u16), 0, [].into_iter())?;
                }
            }
            if !keep {
                break;
            }
        }
        Ok(())
    }

    fn note(&self, length: u64) {
        let before = self.given.fetch_add(length, Ordering::Relaxed);
        let doubled = |bytes: u64| (bytes / TOLD).checked_ilog2();
        if doubled(before) != doubled(before + length) {
            JOURNAL.say("peers", &format!("{} MiB given to others", (before + length) >> 20));
        }
    }
}

fn send<'p>(
    stream: &mut TcpStream,
    status: &str,
    length: usize,
    parts: impl Iterator<Item = &'p [u8]>,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    // A short answer leaves in one segment.
    for part in parts {
        if head.is_empty() || head.len() + part.len() > 2048 {
            stream.write_all(&head)?;
            head.clear();
            stream.write_all(part)?;
        } else {
            head.extend_from_slice(part);
        }
    }
    stream.write_all(&head)
}

/// A connection's place among those that are open.
struct Place {
    giving: Arc<Giving>,
    from: Ipv4Addr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.giving.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.from) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(open.remove(&self.from)),
        }
    }
}
