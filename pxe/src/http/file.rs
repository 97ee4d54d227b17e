//! `GET /images/NAME/GENERATION/FILE`, with ranges and resuming. The ETag is the file's SHA-256: files never change under
//! their path, so a client that lost its connection goes on where it was.

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
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use labshift_model::boot::{BootPlaneEvent, Journal};

use super::{
    Context,
    range::{Part, part},
    sentence,
};
use crate::store::{self, NotServed, Published};

/// Bytes read and sent at a time: the runtime's default of 64 KiB is three times slower.
const CHUNK: u64 = 1 << 20;
/// A path never changes its content.
const FOREVER: &str = "public, max-age=31536000, immutable";

pub(super) async fn image(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path((name, generation, file)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let path =
        format!("/images/{}/{}/{}", name.escape_debug(), generation.escape_debug(), file.escape_debug());
    let peer = peer.ip().to_canonical();
    let broken = |reason: String| {
        let (protocol, path) = ("http".to_owned(), path.clone());
        context.journal.record(BootPlaneEvent::Broken { peer, protocol, path, reason });
    };
    let images = context.config.store.clone();
    let opened = tokio::task::spawn_blocking(move || store::open(&images, &name, &generation, &file)).await;
    let Published { file, size, sha256 } = match opened {
        Ok(Ok(published)) => published,
        Ok(Err(fault @ NotServed::Unknown(_))) => {
            broken(fault.to_string());
            return sentence(StatusCode::NOT_FOUND, fault.to_string());
        }
        Ok(Err(fault)) => {
            tracing::error!("{fault}");
            broken(fault.to_string());
            return sentence(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server's copy of this file is damaged or unreadable",
            );
        }
        Err(e) => return sentence(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    };
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let tag = format!("\"{sha256}\"");
    let wanted = part(text(header::RANGE), text(header::IF_RANGE), text(header::IF_NONE_MATCH), &tag, size);
    let common = [
        (header::ETAG, tag),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CACHE_CONTROL, FOREVER.to_owned()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    let (status, range) = match wanted {
        Part::Unchanged => return (StatusCode::NOT_MODIFIED, common).into_response(),
        Part::Beyond => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, range, ()).into_response();
        }
        Part::Whole => (StatusCode::OK, 0..size),
        Part::Some(range) => (StatusCode::PARTIAL_CONTENT, range),
    };
    let mut response = (status, common, [(header::CONTENT_LENGTH, range.end - range.start)]).into_response();
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = format!("bytes {}-{}/{size}", range.start, range.end - 1).parse()
    {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    if method != Method::HEAD {
        let sending = Sending::new(file, range, peer, path, context.journal.clone());
        *response.body_mut() = sending.body();
    }
    response
}

/// A body on its way; tells the journal how it ended, also when the client goes away.
struct Sending {
    file: Arc<File>,
    left: Range<u64>,
    bytes: u64,
    peer: IpAddr,
    path: String,
    journal: Arc<dyn Journal>,
    started: Instant,
    fault: Option<String>,
}

impl Sending {
    fn new(file: File, range: Range<u64>, peer: IpAddr, path: String, journal: Arc<dyn Journal>) -> Self {
        let bytes = range.end - range.start;
        Sending {
            file: file.into(),
            left: range,
            bytes,
            peer,
            path,
            journal,
            started: Instant::now(),
            fault: None,
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
