//! A fleet on loopback with a manual clock, and nodes that are programs of the test: they speak the real protocol.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use labshift_fleet::{Clock, Fleet, FleetOptions};
use labshift_model::{
    MacAddr,
    api::{FleetStatus, NodeView},
    boot::{BootAnswer, BootPlaneEvent, NoAnswer, Speaker},
    guest::{GuestState, GuestStatus, Role, SavedState},
    manifest::{self, FileEntry, ImageKind, Manifest, Root, trusted_keys},
    node::{Facts, FromNode, Mode, NodeDesired, NodeStatus, ToNode},
    paths,
    site::Site,
};
use tokio::sync::oneshot;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

/// Only against hanging for ever.
pub const GUARD: Duration = Duration::from_secs(120);

pub struct Lab {
    pub fleet: Arc<Fleet>,
    pub address: SocketAddr,
    pub http: reqwest::Client,
    pub admin: String,
    pub state: PathBuf,
    site: Site,
    stop: Option<oneshot::Sender<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

pub fn example() -> Site {
    let text = include_str!("../../../docs/examples/site.toml").replace("10.77.0.1/24", "127.0.0.1/8");
    let text = text.replace("10.77.0.1\"", "127.0.0.1\"").replace("10.77.", "127.77.");
    Site::parse("site.toml", &text).unwrap_or_else(|faults| panic!("{faults}"))
}

/// Publishes a small image in a store.
pub fn publish(store: &Path, name: &str) {
    publish_with(store, name, "");
}

/// The same, of another generation for each text of arguments; returns it.
pub fn publish_with(store: &Path, name: &str, arguments: &str) -> String {
    let manifest = Manifest {
        schema: manifest::SCHEMA,
        name: name.into(),
        kind: if name.starts_with("guest-") { ImageKind::Guest } else { ImageKind::Host },
        architecture: "amd64".into(),
        kernel_release: "6.12".into(),
        kernel_arguments: arguments.into(),
        root: Root { root_hash: "00".into(), salt: "11".into(), data_size: 4096, block_size: 4096 },
        files: Default::default(),
        lock: String::new(),
        services: vec![],
        modules: vec![],
        ports: vec![],
        valid_days: None,
        disk: None,
    };
    let bytes = manifest.to_bytes();
    let generation = manifest::generation_of(&bytes);
    let dir = store.join("images").join(name).join(&generation);
    std::fs::create_dir_all(&dir).expect("made");
    std::fs::create_dir_all(store.join("channels")).expect("made");
    std::fs::write(dir.join(paths::MANIFEST), &bytes).expect("written");
    let signature = manifest::sign(
        &bytes,
        &ed25519_dalek::SigningKey::from_bytes(&[7; 32]),
        jiff::Timestamp::UNIX_EPOCH,
        None,
    );
    std::fs::write(dir.join(paths::SIGNATURE), serde_json::to_vec(&signature).expect("JSON"))
        .expect("written");
    std::fs::write(store.join("channels").join(name), &generation).expect("written");
    generation
}

impl Lab {
    /// Starts a server whose state lies under `dir`, at a local time of the site.
    pub async fn start(dir: &Path, local: &str) -> Lab {
        Lab::start_with(dir, local, example()).await
    }

    /// The same for another site.
    pub async fn start_with(dir: &Path, local: &str, site: Site) -> Lab {
        for image in ["lab", "guest-desktop", "guest-batch"] {
            publish(&dir.join("store"), image);
        }
        Lab::reopen_with(dir, local, site).await
    }

    /// With the store and the state that are there.
    pub async fn reopen(dir: &Path, local: &str) -> Lab {
        Lab::reopen_with(dir, local, example()).await
    }

    async fn reopen_with(dir: &Path, local: &str, site: Site) -> Lab {
        let state = dir.join("state");
        let clock = Clock::parse(&format!("manual:{local}"), &site.timezone).expect("a clock");
        let options = FleetOptions {
            site: site.clone(),
            store: dir.join("store"),
            state: state.clone(),
            interface: None,
            clock,
        };
        let fleet = Arc::new(Fleet::open(options).expect("opened"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("bound");
        let routes = fleet.router().merge(fleet.dashboard());
        let (stop, stopped) = oneshot::channel::<()>();
        let engine = tokio::spawn({
            let fleet = fleet.clone();
            async move { fleet.run(async { drop(stopped.await) }).await.expect("runs") }
        });
        let service = routes.into_make_service_with_connect_info::<SocketAddr>();
        let http = tokio::spawn(async move { axum::serve(listener, service).await.expect("serves") });
        let admin = std::fs::read_to_string(state.join("admin.token")).expect("made").trim().to_owned();
        let client = reqwest::Client::builder().no_proxy().timeout(GUARD).build().expect("a client");
        Lab { fleet, address, http: client, admin, state, site, stop: Some(stop), tasks: vec![engine, http] }
    }

    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let http = self.tasks.pop().expect("http");
        http.abort();
        for task in self.tasks.drain(..) {
            task.await.expect("ended in order");
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn post(&self, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
        let request = self.http.post(self.url(path)).bearer_auth(&self.admin).json(&body);
        let response = request.send().await.expect("answered");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    pub async fn clock(&self, local: &str) {
        let (status, body) = self.post("/v1/lab/clock", serde_json::json!({ "now": local })).await;
        assert_eq!(status, 200, "{body}");
    }

    /// Waits until the fleet is as wanted.
    pub async fn wait(&self, what: &str, done: impl Fn(&FleetStatus) -> bool) -> FleetStatus {
        let waited = tokio::time::timeout(GUARD, async {
            let mut path = "/v1/status".to_owned();
            loop {
                let request = self.http.get(self.url(&path)).bearer_auth(&self.admin);
                let status: FleetStatus =
                    request.send().await.expect("answered").json().await.expect("a status");
                if done(&status) {
                    return status;
                }
                path = format!("/v1/status?newer={}", status.version);
            }
        });
        match waited.await {
            Ok(status) => status,
            Err(_) => panic!("waited in vain for {what}: {:#?}", self.fleet.status()),
        }
    }

    pub async fn wait_node(&self, node: &str, what: &str, done: impl Fn(&NodeView) -> bool) -> FleetStatus {
        self.wait(&format!("{node} {what}"), |s| s.nodes.iter().any(|n| n.name == node && done(n))).await
    }

    /// A workstation's firmware is heard, its init gets its answer, its runtime connects.
    pub async fn boot(&self, node: &str) -> Node {
        let machine = self.site.machine(node).expect("in the site");
        let (mac, address) = (machine.mac, machine.address);
        for speaker in [Speaker::BiosRom, Speaker::Ipxe] {
            self.fleet.journal().record(BootPlaneEvent::Lease { mac, address, speaker });
        }
        let answer = self.answer(mac).expect("an answer");
        let socket = self.channel(&answer.token).await.expect("a channel");
        let mut node = Node {
            name: node.to_owned(),
            answer,
            socket,
            desired: None,
            status: NodeStatus {
                revision: 0,
                mode: None,
                transition: None,
                completed: vec![],
                guests: vec![],
                rcuda: None,
                idle_seconds: None,
                trouble: None,
            },
        };
        node.hello().await;
        node
    }

    pub fn answer(&self, mac: MacAddr) -> Result<BootAnswer, NoAnswer> {
        let from = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 11));
        let signed = self.fleet.directory().answer(mac, "question1", from)?;
        Ok(signed.open(&trusted_keys(&signed.key), "question1").expect("a signed answer"))
    }

    pub async fn channel(&self, token: &str) -> Result<Socket, u16> {
        let mut request =
            format!("ws://{}{}", self.address, paths::NODE_CHANNEL).into_client_request().expect("a request");
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(e) => panic!("{e}"),
        }
    }
}

pub type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// A node's runtime, played by the test.
pub struct Node {
    pub name: String,
    pub answer: BootAnswer,
    pub socket: Socket,
    pub desired: Option<NodeDesired>,
    pub status: NodeStatus,
}

impl Node {
    async fn hello(&mut self) {
        let facts = Facts { cpus: 2, memory_mib: 3072, kvm: true, cpu_model: "test".into() };
        let attempt = self.answer.attempt;
        self.say(&FromNode::Hello { attempt, version: "test".into(), facts, stages: vec![] }).await;
    }

    pub async fn say(&mut self, message: &FromNode) {
        let text = serde_json::to_string(message).expect("JSON");
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    /// The next desired state that fits.
    pub async fn desired(&mut self, what: &str, fits: impl Fn(&NodeDesired) -> bool) -> NodeDesired {
        let waited = tokio::time::timeout(GUARD, async {
            loop {
                let frame = self.socket.next().await.expect("open").expect("readable");
                let Message::Text(text) = frame else { continue };
                if let ToNode::Desired(desired) = serde_json::from_str(&text).expect("a message") {
                    self.desired = Some((*desired).clone());
                    if fits(&desired) {
                        return *desired;
                    }
                }
            }
        });
        let Ok(desired) = waited.await else {
            panic!("{} waited in vain for {what}: {:?}", self.name, self.desired)
        };
        desired
    }

    /// Says that the newest desired mode is reached, with these guests.
    pub async fn reach(&mut self, guests: Vec<GuestStatus>) {
        let desired = self.desired.as_ref().expect("a desired state");
        self.status.revision = desired.revision;
        self.status.mode = Some(desired.current.mode);
        self.status.guests = guests;
        let status = self.status.clone();
        self.say(&FromNode::Status(status)).await;
    }

    /// Waits for a mode and says that it is reached, with the guests that belong to it.
    pub async fn follow(&mut self, mode: Mode) -> NodeDesired {
        let desired = self.desired(&format!("mode {mode}"), |d| d.current.mode == mode).await;
        let guests = match mode {
            Mode::Desktop => {
                desired.desktop.iter().map(|g| guest(&g.name, Role::Desktop, GuestState::Running)).collect()
            }
            Mode::Compute => {
                desired.batch.iter().map(|g| guest(&g.name, Role::Batch, GuestState::Running)).collect()
            }
            _ => vec![],
        };
        self.reach(guests).await;
        desired
    }

    pub async fn put(
        &self,
        lab: &Lab,
        guest: &str,
        revision: u64,
        part: &str,
        body: &str,
    ) -> Result<FileEntry, u16> {
        let url = lab.url(&format!("{}/{guest}/{revision}/{part}", paths::SAVED));
        let request = lab.http.put(url).bearer_auth(&self.answer.token).body(body.to_owned());
        let response = request.send().await.expect("answered");
        match response.status().as_u16() {
            200 => Ok(response.json().await.expect("an entry")),
            status => Err(status),
        }
    }

    pub async fn get(&self, lab: &Lab, guest: &str, revision: u64, part: &str) -> Result<String, u16> {
        let url = lab.url(&format!("{}/{guest}/{revision}/{part}", paths::SAVED));
        let response = lab.http.get(url).bearer_auth(&self.answer.token).send().await.expect("answered");
        match response.status().as_u16() {
            200 => Ok(response.text().await.expect("text")),
            status => Err(status),
        }
    }

    /// Uploads both parts of a guest and says that it is saved.
    pub async fn save(&mut self, lab: &Lab, name: &str, revision: u64, memory: &str) -> SavedState {
        let memory = self.put(lab, name, revision, "memory", memory).await.expect("stored");
        let disk = self.put(lab, name, revision, "disk", "disk").await.expect("stored");
        let saved = SavedState { revision, memory, disk: Some(disk), node: self.name.clone() };
        self.reach(vec![guest(name, Role::Batch, GuestState::Saved { saved: saved.clone() })]).await;
        saved
    }
}

pub fn guest(name: &str, role: Role, state: GuestState) -> GuestStatus {
    GuestStatus { name: name.to_owned(), role, state, address: None, visible: role == Role::Desktop }
}
