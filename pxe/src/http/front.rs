//! The door of the HTTP port: a request for an image is answered here, its bytes by `sendfile(2)` from the page cache to the
//! card; every other connection goes on to the router with what was read of it.
//!
//! ```text
//!   accept --> head --image--> file by sendfile --keep alive--> head ...
//!                |
//!                +--other----> router (scripts, answers, reports, the control plane's API)
//! ```
//!
//! It runs on threads of its own, so that a slow disk holds up neither DHCP nor TFTP. A client that sends nothing, takes
//! nothing, or opens too many connections is let go.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdStream},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use axum::{
    Router,
    serve::{Listener, ListenerExt},
};
use jiff::Timestamp;
use labshift_model::boot::{Directory, Journal};
use nix::sys::sendfile::sendfile;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Context,
    file::{Content, Found, Sending},
    request::{Head, head},
};
use crate::{config::Config, dhcp::socket::Table, workers::Workers};

/// Longest head that is read here.
const MAX_HEAD: usize = 16 * 1024;
/// A request must be complete by then.
const HEAD_WITHIN: Duration = Duration::from_secs(15);
/// How long a connection may rest between two requests.
const REST: Duration = Duration::from_secs(75);
/// How long a client may take nothing of what is sent.
const STALL: Duration = Duration::from_secs(60);
/// Bytes given to the kernel at a time: others get their turn in between.
const PIECE: u64 = 4 << 20;
/// Connections in all, and from one address.
const MOST: usize = 8192;
const MOST_EACH: usize = 256;

/// The server of one HTTP port.
pub struct Front {
    context: Context,
}

impl Front {
    /// `leases` tells whose address a request comes from.
    pub fn new(
        config: Arc<Config>,
        directory: Arc<dyn Directory>,
        journal: Arc<dyn Journal>,
        leases: Table,
    ) -> Self {
        Front { context: Context::new(config, directory, journal, leases) }
    }

    /// Serves images itself and everything else by `routes`, until the future is dropped. Fails when the port does.
    pub async fn serve(self, listener: TcpListener, routes: Router) -> io::Result<()> {
        let workers = Workers::start("images")?;
        let address = listener.local_addr()?;
        let (hand_over, handed_over) = mpsc::channel(64);
        let counted = Arc::new(Counted::default());
        let context = Arc::new(self.context);
        let accepting = async {
            loop {
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Out of file descriptors, or the client is gone already: others may be served again soon.
                        tracing::warn!("accepting an HTTP connection: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let Some(place) = counted.clone().admit(peer.ip()) else {
                    tracing::warn!("{peer} has too many HTTP connections: one more was closed");
                    continue;
                };
                let stream = stream.into_std()?;
                let (context, hand_over) = (context.clone(), hand_over.clone());
                workers.next().spawn(async move {
                    match talk(stream, peer, &context).await {
                        Ok(None) => {}
                        Ok(Some((stream, read))) => {
                            drop(hand_over.send(Guest { stream, read, peer, place }).await);
                        }
                        Err(e) => tracing::debug!("HTTP connection of {peer}: {e}"),
                    }
                });
            }
        };
        let guests = Guests { handed_over, address }.tap_io(|_| {});
        let service = routes.into_make_service_with_connect_info::<SocketAddr>();
        tokio::select! {
            ended = accepting => ended,
            ended = axum::serve(guests, service) => ended,
        }
    }
}

/// Speaks with one client. Gives the connection back, with what was read, when its request is not for a file.
async fn talk(
    stream: StdStream,
    peer: SocketAddr,
    context: &Context,
) -> io::Result<Option<(StdStream, Vec<u8>)>> {
    let mut stream = TcpStream::from_std(stream)?;
    let mut read = Vec::with_capacity(2048);
    let mut rest = HEAD_WITHIN;
    loop {
        // From its first byte on, a request has one deadline: a byte now and then does not keep a place.
        let mut deadline = Instant::now() + rest;
        let (wanted, keep) = loop {
            match head(&read) {
                Head::Image { wanted, keep, length } => {
                    read.drain(..length);
                    break (wanted, keep);
                }
                Head::Partial if read.len() < MAX_HEAD => {}
                Head::Partial | Head::Other => return Ok(Some((stream.into_std()?, read))),
            }
            let begins = read.is_empty();
            match timeout_at(deadline, stream.read_buf(&mut read)).await {
                Ok(Ok(0)) | Err(_) => return Ok(None),
                Ok(Ok(_)) if begins => deadline = Instant::now() + HEAD_WITHIN,
                Ok(Ok(_)) => {}
                Ok(Err(e)) => return Err(e),
            }
        };
        let found = wanted.find(context, peer).await;
        answer(&mut stream, found, keep).await?;
        if !keep {
            stream.shutdown().await?;
            return Ok(None);
        }
        rest = REST;
    }
}

async fn answer(stream: &mut TcpStream, found: Found, keep: bool) -> io::Result<()> {
    let Found { status, headers, content } = found;
    let mut text = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("-"));
    for (name, value) in headers {
        text.extend([name, ": ", &value, "\r\n"]);
    }
    if let Ok(date) =
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now())
    {
        text.extend(["date: ", &date, "\r\n"]);
    }
    text.push_str(if keep { "\r\n" } else { "connection: close\r\n\r\n" });
    match content {
        Content::Nothing => stream.write_all(text.as_bytes()).await,
        Content::Text(body) => {
            text.push_str(&body);
            stream.write_all(text.as_bytes()).await
        }
        Content::File(mut sending) => {
            let sent = send(stream, text.as_bytes(), &mut sending).await;
            if let Err(e) = &sent
                && e.kind() == io::ErrorKind::TimedOut
            {
                sending.fault = Some(e.to_string());
            }
            sent
        }
    }
}

async fn send(stream: &mut TcpStream, head: &[u8], sending: &mut Sending) -> io::Result<()> {
    // Corked, whole segments leave and head and file share the first one: faster to a single client. Uncorked, and without
    // Nagle's algorithm, the last bytes do not wait for an acknowledgement, which clients delay.
    stream.set_nodelay(true)?;
    SockRef::from(&*stream).set_tcp_cork(true)?;
    stream.write_all(head).await?;
    while !sending.left.is_empty() {
        let (mut at, length) =
            (sending.left.start as i64, (sending.left.end - sending.left.start).min(PIECE));
        let sent = stream.async_io(Interest::WRITABLE, || {
            Ok(sendfile(&*stream, &*sending.file, Some(&mut at), length as usize)?)
        });
        let stalled = || {
            let left = sending.left.end - sending.left.start;
            let seconds = STALL.as_secs();
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the client took nothing for {seconds} s, {left} bytes before the end"),
            )
        };
        match timeout(STALL, sent).await {
            Err(_) => return Err(stalled()),
            Ok(Err(e)) => return Err(e),
            Ok(Ok(0)) => {
                sending.fault = Some(format!("the file ends at {}", sending.left.start));
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Ok(length)) => sending.left.start += length as u64,
        }
        tokio::task::yield_now().await;
    }
    SockRef::from(&*stream).set_tcp_cork(false)
}

/// Open connections by address.
#[derive(Default)]
struct Counted(Mutex<HashMap<IpAddr, usize>>);

/// A connection's place among them.
struct Place {
    counted: Arc<Counted>,
    address: IpAddr,
}

impl Counted {
    fn admit(self: Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (open.values().sum::<usize>(), open.get(&address).copied().unwrap_or(0));
        if all >= MOST || own >= MOST_EACH {
            return None;
        }
        open.insert(address, own + 1);
        drop(open);
        Some(Place { counted: self, address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.counted.0.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.address) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(open.remove(&self.address)),
        }
    }
}

/// A connection on its way to the router.
struct Guest {
    stream: StdStream,
    read: Vec<u8>,
    peer: SocketAddr,
    place: Place,
}

/// The router's listener.
struct Guests {
    handed_over: mpsc::Receiver<Guest>,
    address: SocketAddr,
}

impl Listener for Guests {
    type Io = Rewound;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Rewound, SocketAddr) {
        loop {
            // The sender lives as long as this does: both are parts of one future.
            let Some(Guest { stream, read, peer, place }) = self.handed_over.recv().await else {
                std::future::pending().await
            };
            match TcpStream::from_std(stream) {
                Ok(stream) => return (Rewound { stream, read, at: 0, _place: place }, peer),
                Err(e) => tracing::warn!("HTTP connection of {peer}: {e}"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection of which something was read already.
struct Rewound {
    stream: TcpStream,
    read: Vec<u8>,
    at: usize,
    _place: Place,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at < self.read.len() {
            let length = buffer.remaining().min(self.read.len() - self.at);
            buffer.put_slice(&self.read[self.at..self.at + length]);
            self.at += length;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}
