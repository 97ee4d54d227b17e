//! What guests tell of their work.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Refused, bearer, unauthorized};
use crate::{Shared, engine::Message};

/// Largest report, in bytes.
const LIMIT: usize = 16 << 10;

pub(super) async fn report(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<StatusCode, Refused> {
    // The token is a function of the name: a guest that is not in the site has none.
    let known = shared.view().site.guest(&name).is_some();
    let right = bearer(&headers).is_some_and(|token| shared.keys.is_guest(&name, token));
    if !known || !right {
        return Err(unauthorized("this guest's"));
    }
    if bytes.len() > LIMIT {
        let problem = format!("a report may have {LIMIT} bytes, this one has {}", bytes.len());
        return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, problem));
    }
    let body: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|e| Refused::new(StatusCode::BAD_REQUEST, format!("the report is not JSON: {e}")))?;
    if !body.is_object() {
        return Err(Refused::new(StatusCode::BAD_REQUEST, "a report must be a JSON object"));
    }
    let (reply, answer) = oneshot::channel();
    shared.inbox.send(Message::Report { guest: name, body, reply }).await.map_err(|_| Refused::busy())?;
    answer.await.map_err(|_| Refused::busy())?;
    Ok(StatusCode::NO_CONTENT)
}
