//! Port 69: reads requests and starts a task for each transfer.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use labshift_model::boot::{BootPlaneEvent, Journal};
use tokio::{
    net::UdpSocket,
    task::{AbortHandle, JoinSet},
    time::{Duration, Instant},
};

use super::{
    packet::{Fault, Packet, ReadRequest, Terms, code, error},
    path::{Target, target},
    source::Source,
    transfer::{End, Transfer},
};
use crate::{config::Config, script::autoexec, store};

/// Transfers at a time; a client beyond them asks again.
const MOST: usize = 1024;
/// For how long the same request from the same port is a copy of the first, not a new start.
const COPY: Duration = Duration::from_secs(1);
/// IPv4, UDP and TFTP headers.
const HEADERS: usize = 32;

/// The TFTP server's task.
pub struct Server {
    /// Settings.
    pub config: Arc<Config>,
    /// Who hears of what was sent.
    pub journal: Arc<dyn Journal>,
    /// Bytes that the interface carries in one frame.
    pub mtu: usize,
}

struct Active {
    request: ReadRequest,
    since: Instant,
    task: AbortHandle,
    over: Arc<AtomicBool>,
}

impl Server {
    /// Serves until the future is dropped; then all transfers end too. Returns only when the socket fails for good.
    pub async fn run(self, socket: UdpSocket) -> io::Result<()> {
        let server = Arc::new(self);
        let mut tasks = JoinSet::new();
        let mut active: HashMap<SocketAddrV4, Active> = HashMap::new();
        let mut buffer = [0; 2048];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok((length, SocketAddr::V4(client))) => (length, client),
                Ok(_) => continue,
                // An ICMP error about an earlier reply.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(e) => return Err(e),
            };
            while tasks.try_join_next().is_some() {}
            let request = match Packet::of(&buffer[..length]) {
                Ok(Packet::Read(request)) => request,
                Ok(Packet::Write) => {
                    refuse(&socket, client, code::ACCESS, "this server takes no files").await;
                    continue;
                }
                Err(Fault::Refused(reason)) => {
                    refuse(&socket, client, code::ILLEGAL, reason).await;
                    continue;
                }
                Ok(_) | Err(Fault::Nonsense) => continue,
            };
            active.retain(|_, a| !a.task.is_finished() && !a.over.load(Ordering::Acquire));
            if let Some(old) = active.get(&client) {
                if old.request == request && old.since.elapsed() < COPY {
                    continue;
                }
                // The client started anew from the same port: after a reset, firmware counts its ports from the same
                // number again.
                old.task.abort();
            }
            if active.len() >= MOST {
                tracing::warn!("{MOST} TFTP transfers at once: {client} has to ask again");
                continue;
            }
            let over = Arc::new(AtomicBool::new(false));
            let task = server.clone().serve(client, request.clone(), over.clone());
            let task = tasks.spawn(task);
            active.insert(client, Active { request, since: Instant::now(), task, over });
        }
    }

    async fn serve(self: Arc<Self>, client: SocketAddrV4, request: ReadRequest, over: Arc<AtomicBool>) {
        let (peer, path) = ((*client.ip()).into(), request.path.escape_debug().to_string());
        let protocol = || "tftp".to_owned();
        let started = Instant::now();
        let source = match self.clone().open(request.path.clone()).await {
            Ok(source) => source,
            Err(reason) => {
                if let Ok(socket) = UdpSocket::bind(SocketAddr::from((self.config.server_address, 0))).await {
                    refuse(&socket, client, code::NOT_FOUND, "no such file").await;
                }
                self.journal.record(BootPlaneEvent::Broken { peer, protocol: protocol(), path, reason });
                return;
            }
        };
        let terms = Terms::agree(&request, source.size(), self.mtu.saturating_sub(HEADERS).max(512));
        tracing::debug!("TFTP {path} to {client}: {terms:?}");
        let (from, bytes) = (self.config.server_address, source.size());
        let end = Transfer { from, to: client, source, terms, over }.run().await;
        match end {
            End::Sent => {
                let milliseconds = started.elapsed().as_millis() as u64;
                let sent = BootPlaneEvent::Sent { peer, protocol: protocol(), path, bytes, milliseconds };
                self.journal.record(sent);
            }
            End::Probed => tracing::debug!("TFTP {path}: {client} wanted the size only"),
            End::Broken(reason) => {
                self.journal.record(BootPlaneEvent::Broken { peer, protocol: protocol(), path, reason });
            }
        }
    }

    async fn open(self: Arc<Self>, path: String) -> Result<Source, String> {
        let open = move || match target(&path).ok_or("no file has this path")? {
            Target::Autoexec => Ok(Source::text(autoexec(&self.config.base_url()))),
            Target::Loader(name) => {
                let path = self.config.loaders.join(name);
                let opened = File::open(&path).and_then(|f| f.metadata().map(|m| (f, m.len())));
                let (file, size) = opened.map_err(|e| {
                    format!("opening {}: {e}; install the Debian package ipxe on the server", path.display())
                })?;
                Ok(Source::file(file, size))
            }
            Target::Image { name, generation, file } => {
                let published = store::open(&self.config.store, &name, &generation, &file);
                published.map(|p| Source::file(p.file, p.size)).map_err(|e| e.to_string())
            }
        };
        tokio::task::spawn_blocking(open).await.map_err(|e| e.to_string())?
    }
}

async fn refuse(socket: &UdpSocket, client: SocketAddrV4, code: u16, reason: &str) {
    if let Err(e) = socket.send_to(&error(code, reason), client).await {
        tracing::debug!("TFTP error to {client}: {e}");
    }
}
