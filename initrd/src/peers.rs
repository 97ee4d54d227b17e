//! Blocks from the machines around: a room that starts at once does not queue at the server.
//!
//! ```text
//!   boot answer names machines ──> greet: what do you hold? ──> circle ──> way of a chunk
//!                                     ^                                      │
//!   who greets us is greeted ─────────┘        held by a peer, or its part ──┴── nobody's, or our part
//!                                                       │                                │
//!                                                     peer ── wrong, slow, gone ──────> server
//! ```
//!
//! Nothing that comes from a peer is believed: [`crate::blocks`] verifies it against the hash tree before anybody reads it. A machine
//! that sent one wrong block is asked no more; the block comes from the server, and the boot goes on.

pub mod circle;
pub mod giving;
pub mod request;

use std::{
    collections::HashSet,
    io::Read,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use labshift_model::paths;
use ureq::{Agent, http::StatusCode};

use self::{
    circle::{Circle, Fault, GROUP, Held, Way},
    giving::Giving,
};
use crate::{blocks::Blocks, journal::JOURNAL};

/// How long a machine may take to accept a connection: one that is off never does.
const CONNECT: Duration = Duration::from_secs(1);
/// How long it may take to begin an answer: it may fetch the block first.
const BEGIN: Duration = Duration::from_secs(5);
/// How long a group of chunks may take in all.
const WHOLE: Duration = Duration::from_secs(10);
/// Machines that are greeted at the same time.
const GREETERS: usize = 16;
/// Threads that fetch ahead beside the first ones, once a peer has answered.
const MORE_PREFETCHERS: usize = 2;

/// The machines around this node, as far as they have to do with one root.
#[derive(Debug)]
pub struct Swarm {
    own: Ipv4Addr,
    port: u16,
    root: String,
    agent: Agent,
    circle: Mutex<Circle>,
    /// Machines that are being greeted.
    greeting: Mutex<HashSet<Ipv4Addr>>,
    blocks: OnceLock<Weak<Blocks>>,
    giving: OnceLock<Arc<Giving>>,
    taken: AtomicU64,
}

impl Swarm {
    /// Around the machine with address `own`: those that the server named. `root` is the root hash in hex.
    pub fn new(own: Ipv4Addr, named: &[Ipv4Addr], port: u16, root: String) -> Arc<Self> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(BEGIN))
            .timeout_global(Some(WHOLE))
            .max_response_header_size(4096)
            .input_buffer_size(128 << 10)
            .max_idle_connections(2 * paths::MOST_PEERS)
            .max_idle_age(Duration::from_secs(5))
            .build()
            .new_agent();
        Arc::new(Swarm {
            own,
            port,
            root,
            agent,
            circle: Mutex::new(Circle::new(own, named)),
            greeting: Mutex::default(),
            blocks: OnceLock::new(),
            giving: OnceLock::new(),
            taken: AtomicU64::new(0),
        })
    }

    /// Begins to give what these blocks hold, and greets the machines that the server named.
    pub fn start(self: &Arc<Self>, blocks: &Arc<Blocks>) {
        let _ = self.blocks.set(Arc::downgrade(blocks));
        match Giving::listen(SocketAddrV4::new(self.own, self.port)) {
            Ok(giving) => {
                let _ = self.giving.set(giving.clone());
                let (swarm, blocks) = (self.clone(), blocks.clone());
                std::thread::spawn(move || giving.serve(&swarm, &blocks));
            }
            Err(why) => JOURNAL.say("peers", &format!("nothing is given: port {}: {why}", self.port)),
        }
        let named = self.circle().named();
        JOURNAL.say("peers", &format!("the server names {} machines", named.len()));
        let queue = Arc::new(Mutex::new(named.into_iter()));
        for _ in 0..GREETERS.min(self.circle().named().len()) {
            let (swarm, queue) = (self.clone(), queue.clone());
            std::thread::spawn(move || {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some(mate) = next() {
                    swarm.greet(mate);
                }
            });
        }
    }

    /// Gives nothing any more.
    pub fn close(&self) {
        if let Some(giving) = self.giving.get() {
            giving.close();
        }
    }

    /// The root that this is about, its hash in hex.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Bytes of verified blocks that came from peers.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes of blocks that peers have got.
    pub fn given(&self) -> u64 {
        self.giving.get().map_or(0, |giving| giving.given())
    }

    /// How many machines may be asked now.
    pub fn size(&self) -> usize {
        self.circle().size(Instant::now())
    }

    /// Where chunks are asked for, and how many of the next `most` at once.
    pub fn way(&self, first: u64, most: u64) -> (Way, u64) {
        let (circle, now) = (self.circle(), Instant::now());
        if circle.size(now) == 0 {
            return (Way::Server, most);
        }
        let most = most.min(GROUP - first % GROUP);
        (circle.way(first, most, now), most)
    }

    /// A place to begin in a row of so many chunks, another one on each machine.
    pub fn begin(&self, row: u64) -> u64 {
        self.circle().begin(row)
    }

    /// Fetches bytes `from..to` of the root from a peer. They are not verified.
    pub fn fetch(&self, peer: Ipv4Addr, from: u64, to: u64) -> Result<Vec<u8>, Fault> {
        let url = format!("http://{peer}:{}{}/{}", self.port, paths::PEER_ROOT, self.root);
        let request = self.agent.get(&url).header("range", format!("bytes={from}-{}", to - 1));
        let response = request.call().map_err(|_| Fault::Silent)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::NOT_FOUND => return Err(Fault::Absent),
            _ => return Err(Fault::Silent),
        }
        let mut bytes = vec![0; (to - from) as usize];
        let mut body = response.into_body().into_reader();
        body.read_exact(&mut bytes).map_err(|_| Fault::Silent)?;
        // Only a body that was read to its end leaves the connection to the next request.
        match body.read(&mut [0]) {
            Ok(0) => Ok(bytes),
            _ => Err(Fault::Silent),
        }
    }

    /// What a peer sent was verified.
    pub fn brought(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A peer was asked in vain.
    pub fn failed(&self, peer: Ipv4Addr, fault: Fault) {
        let shut = self.circle().failed(peer, fault, Instant::now());
        match fault {
            Fault::Wrong if shut => {
                JOURNAL
                    .say("peers", &format!("{peer} sent other bytes than were signed; it is asked no more"));
            }
            Fault::Silent if shut => {
                JOURNAL.say("peers", &format!("{peer} is too slow; it is asked no more"))
            }
            Fault::Silent => {
                JOURNAL.say("peers", &format!("{peer} does not answer; it is left alone for a while"))
            }
            Fault::Absent | Fault::Wrong => {}
        }
    }

    /// A machine says that it boots the same root: it may be asked, too, from now on.
    fn was_greeted_by(self: &Arc<Self>, mate: Ipv4Addr) {
        if !self.circle().may_greet(mate) {
            return;
        }
        let busy = {
            let greeting = self.greeting();
            greeting.contains(&mate) || greeting.len() >= GREETERS
        };
        if !busy {
            let swarm = self.clone();
            std::thread::spawn(move || swarm.greet(mate));
        }
    }

    /// Asks a machine what it holds.
    fn greet(self: &Arc<Self>, mate: Ipv4Addr) {
        if !self.greeting().insert(mate) {
            return;
        }
        let held = self.ask_held(mate);
        self.greeting().remove(&mate);
        // Most machines are off, or run something else: nothing to speak of.
        let (Some(held), Some(blocks)) = (held, self.blocks.get().and_then(Weak::upgrade)) else { return };
        let count = held.count();
        let first = self.circle().answered(mate, held);
        JOURNAL.say("peers", &format!("{mate} answers and holds {count} of {} chunks", blocks.chunks()));
        if first {
            let own = blocks.clone();
            std::thread::spawn(move || own.prefetch_own());
            for _ in 0..MORE_PREFETCHERS {
                let blocks = blocks.clone();
                std::thread::spawn(move || blocks.prefetch());
            }
        }
    }

    fn ask_held(&self, mate: Ipv4Addr) -> Option<Held> {
        let (root, own) = (&self.root, self.own);
        let path = format!("{}/{root}{}/{own}", paths::PEER_ROOT, paths::PEER_HELD);
        let response = self.agent.get(format!("http://{mate}:{}{path}", self.port)).call().ok()?;
        let chunks = self.blocks.get()?.upgrade()?.chunks();
        let mut bytes = vec![];
        let most = Held::bytes_of(chunks) as u64 + 1;
        let good = response.status() == StatusCode::OK;
        response.into_body().into_reader().take(most).read_to_end(&mut bytes).ok()?;
        Held::read(bytes, chunks).filter(|_| good)
    }

    pub(crate) fn circle(&self) -> MutexGuard<'_, Circle> {
        self.circle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn greeting(&self) -> MutexGuard<'_, HashSet<Ipv4Addr>> {
        self.greeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
