//! Port 69: reads requests and starts a thread for each transfer.
//!
//! The same request may come twice: copied by the network, sent again by a client that waits for our first packet, or new, after the
//! client has ended the first (firmware asks for the size, sends ERROR, and asks again, often from the same port). Nobody can tell
//! these apart by looking at port 69. So each request gets its transfer; the client answers one of them, and with that the others
//! end. Packets of the same client on two ports need no order among them.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use labshift_model::boot::{BootPlaneEvent, Journal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    line::Line,
    packet::{Fault, Packet, ReadRequest, Terms, code, error},
    path::{Target, target},
    source::Source,
    transfer::{End, Transfer},
};
use crate::{config::Config, script::autoexec, store};

/// Transfers at a time; a client beyond them asks again.
const MOST: usize = 1024;
/// Transfers of one client's port: copies of its request.
const COPIES: usize = 4;
/// Stack of a transfer's thread, in bytes.
const STACK: usize = 256 * 1024;
/// IP, UDP and TFTP headers.
const HEADERS: usize = 32;
const HEADERS_V6: usize = 52;

/// The TFTP server's task.
pub struct Server {
    /// Settings.
    pub config: Arc<Config>,
    /// Who hears of what was sent.
    pub journal: Arc<dyn Journal>,
    /// Bytes that the interface carries in one frame.
    pub mtu: usize,
}

/// The transfers under way, by client.
#[derive(Default)]
struct Lines(Mutex<HashMap<SocketAddr, Vec<Arc<Line>>>>);

impl Lines {
    fn now(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<Arc<Line>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more? `Err` says why not.
    fn room(&self, client: SocketAddr) -> Result<(), &'static str> {
        let lines = self.now();
        if lines.get(&client).is_some_and(|own| own.len() >= COPIES) {
            Err("it has asked for the same too often")
        } else if lines.values().map(Vec::len).sum::<usize>() >= MOST {
            Err("too many transfers at once")
        } else {
            Ok(())
        }
    }

    /// The client speaks on this line: its others are over.
    fn chosen(&self, client: SocketAddr, line: &Arc<Line>) {
        let lines = self.now();
        lines
            .get(&client)
            .into_iter()
            .flatten()
            .filter(|other| !Arc::ptr_eq(other, line))
            .for_each(|l| l.end());
    }

    fn remove(&self, client: SocketAddr, line: &Arc<Line>) {
        let mut lines = self.now();
        if let Some(own) = lines.get_mut(&client) {
            own.retain(|other| !Arc::ptr_eq(other, line));
            if own.is_empty() {
                lines.remove(&client);
            }
        }
    }
}

/// Transfers end with the server.
struct EndAll(Arc<Lines>);

impl Drop for EndAll {
    fn drop(&mut self) {
        self.0.now().values().flatten().for_each(|line| line.end());
    }
}

impl Server {
    /// Serves until the future is dropped; then all transfers end too. Returns only when the socket fails for good.
    pub async fn run(self, socket: UdpSocket) -> io::Result<()> {
        let (server, lines) = (Arc::new(self), Arc::new(Lines::default()));
        let _end = EndAll(lines.clone());
        let mut buffer = [0; 2048];
        loop {
            let (length, client, local) = match receive(&socket, &mut buffer).await {
                Ok(received) => received,
                // An ICMP error about an earlier reply.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(e) => return Err(e),
            };
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
            if let Err(why) = lines.room(client) {
                tracing::warn!("TFTP request of {client} waits: {why}");
                continue;
            }
            let from = local.unwrap_or_else(|| (server.config.server_address, 0).into());
            if let Err(e) = server.clone().start(from, client, request, &lines) {
                tracing::warn!("TFTP to {client}: {e}");
            }
        }
    }

    fn start(
        self: Arc<Self>,
        from: SocketAddr,
        client: SocketAddr,
        request: ReadRequest,
        lines: &Arc<Lines>,
    ) -> io::Result<()> {
        let line = Arc::new(Line::open(from, client)?);
        lines.now().entry(client).or_default().push(line.clone());
        let (own, running) = (line.clone(), lines.clone());
        let thread = std::thread::Builder::new().name("tftp".to_owned()).stack_size(STACK);
        let started = thread.spawn(move || {
            self.serve(client, &request, &own, &running);
            running.remove(client, &own);
        });
        started.map(drop).inspect_err(|_| lines.remove(client, &line))
    }

    fn serve(&self, client: SocketAddr, request: &ReadRequest, line: &Arc<Line>, lines: &Lines) {
        let (peer, path) = (client.ip().to_canonical(), request.path.escape_debug().to_string());
        let protocol = || "tftp".to_owned();
        let started = Instant::now();
        let source = match self.open(&request.path) {
            Ok(source) => source,
            Err(reason) => {
                drop(line.send(&error(code::NOT_FOUND, "no such file")));
                self.journal.record(BootPlaneEvent::Broken { peer, protocol: protocol(), path, reason });
                return;
            }
        };
        let headers = if client.is_ipv4() { HEADERS } else { HEADERS_V6 };
        let terms = Terms::agree(request, source.size(), self.mtu.saturating_sub(headers).max(512));
        tracing::debug!("TFTP {path} to {client}: {terms:?}");
        let bytes = source.size();
        match Transfer::new(line, source, terms).run(|| lines.chosen(client, line)) {
            End::Sent => {
                let milliseconds = started.elapsed().as_millis() as u64;
                let sent = BootPlaneEvent::Sent { peer, protocol: protocol(), path, bytes, milliseconds };
                self.journal.record(sent);
            }
            End::Probed => tracing::debug!("TFTP {path}: {client} wanted the size only"),
            End::Replaced => tracing::debug!("TFTP {path}: {client} went on with another transfer"),
            End::Broken(reason) => {
                self.journal.record(BootPlaneEvent::Broken { peer, protocol: protocol(), path, reason });
            }
        }
    }

    fn open(&self, path: &str) -> Result<Source, String> {
        match target(path).ok_or("no file has this path")? {
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
        }
    }
}

/// The next packet, who sent it, and to which IPv6 address of ours: the answer must come from there.
async fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<SocketAddr>)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!(nix::libc::in6_pktinfo, nix::libc::in_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::empty(),
            )?;
            let from = message.address.ok_or(io::ErrorKind::InvalidData)?;
            let v4 = from.as_sockaddr_in().map(|a| SocketAddr::from(std::net::SocketAddrV4::from(*a)));
            let v6 = from.as_sockaddr_in6().map(|a| SocketAddr::from(std::net::SocketAddrV6::from(*a)));
            let client = v4.or(v6).ok_or(io::ErrorKind::InvalidData)?;
            let local = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
                _ => None,
            });
            let local = local.map(|info| {
                let scope = if client_is_local(client) { info.ipi6_ifindex } else { 0 };
                std::net::SocketAddrV6::new(info.ipi6_addr.s6_addr.into(), 0, 0, scope).into()
            });
            Ok((message.bytes, client, local))
        })
        .await
}

/// Whether the client's address means something on its own link only.
fn client_is_local(client: SocketAddr) -> bool {
    matches!(client.ip(), IpAddr::V6(address) if address.is_unicast_link_local())
}

async fn refuse(socket: &UdpSocket, client: SocketAddr, code: u16, reason: &str) {
    if let Err(e) = socket.send_to(&error(code, reason), client).await {
        tracing::debug!("TFTP error to {client}: {e}");
    }
}
