//! The control plane: who is in the fleet, what each machine should do now, and why.
//!
//! ```text
//!   firmware, init ---> boot plane --(Directory, Journal)--+
//!   nodes --------(WebSocket, saved guests)---+            |
//!   guests -------(reports)-----------------+ |            v        plan::fleet
//!   admins -------(API)---------------------+-+-------> engine <------------------> World
//!                                                       |  |  |
//!                   magic packets, desired states <-----+  |  +-----> status, events ---> API, dashboard
//!                                                          v
//!                                                      registry (SQLite)
//! ```
//!
//! One task, the `engine`, owns the state. Everything that happens is a message to it; it takes note, plans (in
//! `labshift-plan`, which is pure), writes the registry, and only then acts. Others read snapshots that it publishes.

pub mod api;
mod boots;
pub mod client;
pub mod clock;
mod dashboard;
mod directory;
mod engine;
mod keys;
mod registry;
mod saved;
mod status;
mod store;
#[cfg(test)]
mod testing;
mod wol;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use labshift_model::{
    api::{Event, FleetStatus},
    boot::{Directory, Journal},
    site::Site,
};
use labshift_plan::{fallback::Trials, told::Told};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use crate::{
    clock::{Clock, ClockError},
    keys::KeyError,
    registry::RegistryError,
    wol::WakeError,
};
use crate::{
    engine::{Engine, Message},
    keys::{Keys, NodeTokens},
    registry::{Registry, records},
    store::{Besides, Images},
};

/// What a fleet is opened with.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The site.
    pub site: Site,
    /// Image store.
    pub store: PathBuf,
    /// Directory for everything that the server learns by itself; created when missing.
    pub state: PathBuf,
    /// Interface of the lab, for magic packets as Ethernet frames.
    pub interface: Option<String>,
    /// The clock that schedules follow.
    pub clock: Clock,
}

/// The fleet can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The state directory.
    #[error("state directory {path}: {source}")]
    State {
        /// Path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The secrets.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The fleet runs already, or is over.
    #[error("this fleet was started before")]
    Started,
}

/// What all parts of the server share.
pub(crate) struct Shared {
    pub(crate) options: FleetOptions,
    pub(crate) keys: Keys,
    pub(crate) registry: Registry,
    pub(crate) tokens: RwLock<NodeTokens>,
    pub(crate) view: RwLock<Arc<View>>,
    pub(crate) status: watch::Sender<Arc<FleetStatus>>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) attempts: AtomicU64,
    pub(crate) inbox: mpsc::Sender<Message>,
}

/// What answers are given from: published by the engine, never waited for.
pub(crate) struct View {
    pub(crate) site: Arc<Site>,
    pub(crate) images: Arc<Images>,
    /// What each node has seen of its images.
    pub(crate) trials: BTreeMap<String, Trials>,
    /// What an admin told machines to boot.
    pub(crate) told: BTreeMap<String, Told>,
    /// Owner of each batch guest: node and its boot.
    pub(crate) owners: BTreeMap<String, (String, u64)>,
    /// Newest saved state of each batch guest.
    pub(crate) saved: BTreeMap<String, u64>,
}

impl View {
    /// Before anything is known of nodes and guests.
    pub(crate) fn new(site: Arc<Site>, images: Arc<Images>) -> Self {
        let (trials, told) = (BTreeMap::new(), BTreeMap::new());
        let (owners, saved) = (BTreeMap::new(), BTreeMap::new());
        View { site, images, trials, told, owners, saved }
    }
}

impl Shared {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn publish(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    pub(crate) fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The control plane of one site.
pub struct Fleet {
    shared: Arc<Shared>,
    engine: Mutex<Option<Engine>>,
}

impl Fleet {
    /// Opens the state directory and remembers what it holds. Nothing is sent to anybody before [`Fleet::run`].
    pub fn open(options: FleetOptions) -> Result<Self, FleetError> {
        let failed = |source| FleetError::State { path: options.state.clone(), source };
        std::fs::create_dir_all(&options.state).map_err(failed)?;
        saved::sweep(&options.state).map_err(failed)?;
        let keys = Keys::open(&options.state, &options.store)?;
        let registry = Registry::open(&options.state.join("labshift.db"))?;
        let remembered = registry.run_now(records::remember)?;
        let mut tokens = NodeTokens::default();
        for (hash, node, attempt) in &remembered.tokens {
            tokens.add(*hash, node, *attempt);
        }
        let site = Arc::new(options.site.clone());
        let images = Arc::new(Images::read(&options.store, &site, &Besides::default(), &Images::default()));
        let (inbox, messages) = mpsc::channel(8192);
        let attempts = AtomicU64::new(remembered.attempt);
        let empty = status::empty(&site, &options.clock);
        let view = View::new(site.clone(), images);
        let shared = Arc::new(Shared {
            keys,
            registry,
            tokens: RwLock::new(tokens),
            view: RwLock::new(Arc::new(view)),
            status: watch::Sender::new(Arc::new(empty)),
            events: broadcast::Sender::new(1024),
            attempts,
            inbox,
            options,
        });
        let engine = Engine::new(shared.clone(), messages, remembered);
        Ok(Fleet { shared, engine: Mutex::new(Some(engine)) })
    }

    /// Tells the boot plane who a machine is and what it boots.
    pub fn directory(&self) -> Arc<dyn Directory> {
        Arc::new(directory::Answers::new(self.shared.clone()))
    }

    /// Takes what the boot plane saw.
    pub fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(directory::Ears::new(self.shared.clone()))
    }

    /// Routes of the API for nodes, guests and admins: everything needs a token.
    pub fn router(&self) -> axum::Router {
        api::router(self.shared.clone())
    }

    /// The dashboard's pages: `/` and what it needs. Read-only, without a token; the caller decides on which
    /// listener they appear.
    pub fn dashboard(&self) -> axum::Router {
        dashboard::router(self.shared.clone())
    }

    /// Replaces the site. Takes effect at once; machines that are gone from it are forgotten.
    pub async fn reload(&self, site: Site) -> Result<(), FleetError> {
        self.shared.inbox.send(Message::Reload(Box::new(site))).await.map_err(|_| FleetError::Started)
    }

    /// Whether a request's headers hold the admin's token: for routes that the caller adds beside [`Fleet::router`].
    pub fn is_admin(&self, headers: &axum::http::HeaderMap) -> bool {
        api::bearer(headers).is_some_and(|token| self.shared.keys.is_admin(token))
    }

    /// Notes in events and audit log that an admin pushed an image, and which channel points to it now.
    pub async fn note_push(&self, peer: SocketAddr, image: String, generation: String, channel: String) {
        let request = engine::Request::Push { image, generation, channel };
        let (reply, answer) = oneshot::channel();
        if self.shared.inbox.send(Message::Admin { peer, request, reply }).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// The fleet as it is now.
    pub fn status(&self) -> Arc<FleetStatus> {
        self.shared.status.borrow().clone()
    }

    /// Runs the engine until `shutdown` is done. Running nodes go on without the server.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) -> Result<(), FleetError> {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        engine.ok_or(FleetError::Started)?.run(shutdown).await?;
        Ok(())
    }
}
