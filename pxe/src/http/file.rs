//! `GET /images/NAME/GENERATION/FILE`, with ranges and resuming. The ETag is the file's SHA-256: files never change under
//! their path, so a client that lost its connection goes on where it was.
//!
//! What to answer is decided here once, for the two ways in which a body leaves: by `sendfile` (the `front`), or through
//! the router in pieces (TLS, and requests that the front leaves to it).

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
    time::Instant,
};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use futures_util::stream;
use labshift_model::boot::{BootPlaneEvent, Journal};

use super::{
    Context,
    range::{Part, part},
};
use crate::store::{self, NotServed, Published};

/// Bytes read and sent at a time: the runtime's default of 64 KiB is three times slower.
const CHUNK: u64 = 1 << 20;
/// A path never changes its content.
const FOREVER: &str = "public, max-age=31536000, immutable";

/// A request for a file.
pub(super) struct Wanted {
    pub name: String,
    pub generation: String,
    pub file: String,
    pub head: bool,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub if_none_match: Option<String>,
}

/// What it gets.
pub(super) struct Found {
    pub status: StatusCode,
    pub headers: Vec<(&'static str, String)>,
    pub content: Content,
}

/// What follows the head of an answer.
pub(super) enum Content {
    /// Nothing, though the head may announce a length.
    Nothing,
    /// A sentence.
    Text(String),
    /// A part of a file on its way.
    File(Sending),
}

impl Wanted {
    /// Looks the file up, and tells the journal when there is none.
    pub async fn find(self, context: &Context, peer: SocketAddr) -> Found {
        let Wanted { name, generation, file, head, range, if_range, if_none_match } = self;
        let path =
            format!("/images/{}/{}/{}", name.escape_debug(), generation.escape_debug(), file.escape_debug());
        let peer = peer.ip().to_canonical();
        let images = context.config.store.clone();
        let opened =
            tokio::task::spawn_blocking(move || store::open(&images, &name, &generation, &file)).await;
        let fault = match opened {
            Ok(Ok(Published { file, size, sha256 })) => {
                let tag = format!("\"{sha256}\"");
                let wanted =
                    part(range.as_deref(), if_range.as_deref(), if_none_match.as_deref(), &tag, size);
                let sending = |range| {
                    let sending = Sending::new(file, range, peer, path, context.journal.clone());
                    if head { Content::Nothing } else { Content::File(sending) }
                };
                return Found::of(wanted, tag, size, sending);
            }
            Ok(Err(fault)) => fault,
            Err(e) => return Found::sentence(StatusCode::INTERNAL_SERVER_ERROR, e.to_string(), head),
        };
        let (protocol, reason) = ("http".to_owned(), fault.to_string());
        let found = if matches!(fault, NotServed::Unknown(_)) {
            Found::sentence(StatusCode::NOT_FOUND, reason.clone(), head)
        } else {
            tracing::error!("{reason}");
            let text = "the server's copy of this file is damaged or unreadable".to_owned();
            Found::sentence(StatusCode::INTERNAL_SERVER_ERROR, text, head)
        };
        context.journal.record(BootPlaneEvent::Broken { peer, protocol, path, reason });
        found
    }
}

impl Found {
    fn of(wanted: Part, tag: String, size: u64, sending: impl FnOnce(Range<u64>) -> Content) -> Self {
        let mut headers = vec![
            ("etag", tag),
            ("accept-ranges", "bytes".to_owned()),
            ("cache-control", FOREVER.to_owned()),
            ("content-type", "application/octet-stream".to_owned()),
        ];
        let (status, range) = match wanted {
            Part::Unchanged => {
                return Found { status: StatusCode::NOT_MODIFIED, headers, content: Content::Nothing };
            }
            Part::Beyond => {
                let headers =
                    vec![("content-range", format!("bytes */{size}")), ("content-length", "0".to_owned())];
                return Found {
                    status: StatusCode::RANGE_NOT_SATISFIABLE,
                    headers,
                    content: Content::Nothing,
                };
            }
            Part::Whole => (StatusCode::OK, 0..size),
            Part::Some(range) => (StatusCode::PARTIAL_CONTENT, range),
        };
        headers.push(("content-length", (range.end - range.start).to_string()));
        if status == StatusCode::PARTIAL_CONTENT {
            headers.push(("content-range", format!("bytes {}-{}/{size}", range.start, range.end - 1)));
        }
        Found { status, headers, content: sending(range) }
    }

    fn sentence(status: StatusCode, mut text: String, head: bool) -> Self {
        text.push('\n');
        let headers = vec![
            ("content-type", "text/plain; charset=utf-8".to_owned()),
            ("content-length", text.len().to_string()),
        ];
        let content = if head { Content::Nothing } else { Content::Text(text) };
        Found { status, headers, content }
    }
}

/// The same through the router.
pub(super) async fn image(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path((name, generation, file)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (range, if_range) = (text(header::RANGE), text(header::IF_RANGE));
    let (if_none_match, head) = (text(header::IF_NONE_MATCH), method == Method::HEAD);
    let wanted = Wanted { name, generation, file, head, range, if_range, if_none_match };
    let Found { status, headers, content } = wanted.find(&context, peer).await;
    let mut response = Response::new(match content {
        Content::Nothing => Body::empty(),
        Content::Text(text) => Body::from(text),
        Content::File(sending) => sending.body(),
    });
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// A part of a file on its way; tells the journal how it ended, also when the client goes away.
pub(super) struct Sending {
    pub file: Arc<File>,
    /// Bytes of the file that have not left yet.
    pub left: Range<u64>,
    /// Why it will not go on.
    pub fault: Option<String>,
    bytes: u64,
    peer: IpAddr,
    path: String,
    journal: Arc<dyn Journal>,
    started: Instant,
}

impl Sending {
    fn new(file: File, range: Range<u64>, peer: IpAddr, path: String, journal: Arc<dyn Journal>) -> Self {
        let bytes = range.end - range.start;
        Sending {
            file: file.into(),
            left: range,
            fault: None,
            bytes,
            peer,
            path,
            journal,
            started: Instant::now(),
        }
    }

    fn body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut sending| async move {
            let chunk = sending.next().await?;
            Some((chunk, sending))
        }))
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.left.is_empty() || self.fault.is_some() {
            return None;
        }
        let (file, at) = (self.file.clone(), self.left.start);
        let length = (self.left.end - at).min(CHUNK);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; length as usize];
            file.read_exact_at(&mut buffer, at).map(|()| Bytes::from(buffer))
        });
        let chunk = read.await.map_err(io::Error::other).and_then(|r| r);
        match &chunk {
            Ok(_) => self.left.start += length,
            Err(e) => self.fault = Some(format!("reading the file at {at}: {e}")),
        }
        Some(chunk)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let (peer, protocol, path) = (self.peer, "http".to_owned(), std::mem::take(&mut self.path));
        self.journal.record(if self.left.is_empty() {
            let milliseconds = self.started.elapsed().as_millis() as u64;
            BootPlaneEvent::Sent { peer, protocol, path, bytes: self.bytes, milliseconds }
        } else {
            let went =
                || format!("the client went away {} bytes before the end", self.left.end - self.left.start);
            let reason = self.fault.take().unwrap_or_else(went);
            BootPlaneEvent::Broken { peer, protocol, path, reason }
        });
    }
}
