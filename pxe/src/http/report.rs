//! `POST /v1/boot/report`: what a node saw before it had a root, or why it has none. Not authenticated, hence small,
//! counted, and only ever written to the journal.

use std::{net::SocketAddr, time::Instant};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use labshift_model::boot::{BootPlaneEvent, BootReport};

use super::{Context, sentence};

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
    let report: BootReport = match serde_json::from_slice(&body) {
        Ok(report) => report,
        Err(e) => return sentence(StatusCode::BAD_REQUEST, format!("not a boot report: {e}")),
    };
    if report.log.len() > MAX_LOG || report.stages.len() > MAX_STAGES {
        let limits = format!("a boot report has at most {MAX_LOG} bytes of log and {MAX_STAGES} stages");
        return sentence(StatusCode::PAYLOAD_TOO_LARGE, limits);
    }
    context.journal.record(BootPlaneEvent::Report { peer: peer.ip().to_canonical(), report });
    StatusCode::NO_CONTENT.into_response()
}

pub(super) fn too_many() -> Response {
    let mut response =
        sentence(StatusCode::TOO_MANY_REQUESTS, "too many requests from this address; wait a second");
    response.headers_mut().insert(header::RETRY_AFTER, 1.into());
    response
}
