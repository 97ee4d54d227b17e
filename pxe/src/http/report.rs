//! `POST /v1/boot/report`, or a datagram: what a node saw before it had a root, or why it has none. Not authenticated, hence small,
//! counted, and only ever written to the journal.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use labshift_model::boot::{BootPlaneEvent, BootReport, Journal};
use tokio::net::UdpSocket;

use super::{Context, sentence, write_limiter};

/// Longest log in a report, in bytes.
const MAX_LOG: usize = 64 * 1024;
/// Most stages in a report: each ends once.
const MAX_STAGES: usize = 64;

pub(super) async fn boot_report(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> Response {
    if !context.limiter.allows(peer.ip(), Instant::now()) {
        return too_many();
    }
    match read(&body) {
        Ok(report) => {
            context.journal.record(BootPlaneEvent::Report { peer: peer.ip().to_canonical(), report });
            StatusCode::NO_CONTENT.into_response()
        }
        Err((status, why)) => sentence(status, why),
    }
}

fn read(body: &[u8]) -> Result<BootReport, (StatusCode, String)> {
    let report: BootReport = serde_json::from_slice(body)
        .map_err(|e| (StatusCode::BAD_REQUEST, format!("not a boot report: {e}")))?;
    if report.log.len() > MAX_LOG || report.stages.len() > MAX_STAGES {
        let limits = format!("a boot report has at most {MAX_LOG} bytes of log and {MAX_STAGES} stages");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, limits));
    }
    Ok(report)
}

/// Takes the datagrams that init sends when it can't reach us over HTTP, or does not know us yet. They are worth what a report over
/// HTTP is worth, and get no answer.
pub(crate) async fn hear_datagrams(socket: UdpSocket, journal: Arc<dyn Journal>) -> io::Result<()> {
    let limiter = write_limiter();
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let (length, peer) = match socket.recv_from(&mut bytes).await {
            Ok(received) => received,
            // An earlier sender's port is closed: nothing to do with the next datagram.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(e) => return Err(e),
        };
        if !limiter.allows(peer.ip(), Instant::now()) {
            continue;
        }
        match read(&bytes[..length]) {
            Ok(report) => journal.record(BootPlaneEvent::Report { peer: peer.ip().to_canonical(), report }),
            Err((_, why)) => tracing::debug!("datagram of {peer}: {why}"),
        }
    }
}

pub(super) fn too_many() -> Response {
    let mut response =
        sentence(StatusCode::TOO_MANY_REQUESTS, "too many requests from this address; wait a second");
    response.headers_mut().insert(header::RETRY_AFTER, 1.into());
    response
}
