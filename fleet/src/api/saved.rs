//! Saved guests, in and out. Only the node that owns a guest now, with the token of the boot it was given to, may store
//! or fetch it.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use labshift_model::manifest::FileEntry;
use tokio::sync::oneshot;

use super::{NodeIdentity, Refused};
use crate::{
    Shared, View,
    engine::Message,
    saved::{self, Part, UploadError},
};

/// What a save image has beyond the guest's memory: device state, headers; and metadata of a disk.
const SLACK_BYTES: u64 = 256 << 20;

struct Target {
    guest: String,
    revision: u64,
    part: Part,
}

fn target(view: &View, node: &NodeIdentity, path: (String, u64, String)) -> Result<Target, Refused> {
    let (guest, revision, part) = path;
    let not_found = |what: String| Refused::new(StatusCode::NOT_FOUND, what);
    let part = Part::from_name(&part).ok_or_else(|| not_found(format!("there is no part \"{part}\"")))?;
    let owner = view.owners.get(&guest);
    if !owner.is_some_and(|(name, attempt)| *name == node.name && *attempt == node.attempt) {
        tracing::warn!(node = node.name, guest, "refused: it does not own this guest");
        let problem = format!("{} does not own guest \"{guest}\"", node.name);
        return Err(Refused::new(StatusCode::FORBIDDEN, problem));
    }
    Ok(Target { guest, revision, part })
}

pub(super) async fn put(
    node: NodeIdentity,
    State(shared): State<Arc<Shared>>,
    Path(path): Path<(String, u64, String)>,
    body: Body,
) -> Result<Json<FileEntry>, Refused> {
    let view = shared.view();
    let Target { guest, revision, part } = target(&view, &node, path)?;
    let newest = view.saved.get(&guest).copied().unwrap_or(0);
    if revision <= newest {
        let problem = format!("saved state {revision} of {guest} is not newer than {newest}, which is kept");
        return Err(Refused::new(StatusCode::CONFLICT, problem));
    }
    let template = view.site.guest(&guest).and_then(|g| view.site.template(&g.template));
    let mib = template.map_or(0, |t| match part {
        Part::Memory => u64::from(t.memory_mib),
        Part::Disk => u64::from(t.disk_mib),
    });
    let limit = (mib << 20) + SLACK_BYTES;
    let state = &shared.options.state;
    let entry =
        saved::write(state, &guest, revision, part, limit, body.into_data_stream()).await.map_err(|e| {
            tracing::warn!(node = node.name, guest, revision, "upload: {e}");
            let status = match &e {
                UploadError::Broken(_) => StatusCode::BAD_REQUEST,
                UploadError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                UploadError::Disk { .. } => StatusCode::INSUFFICIENT_STORAGE,
            };
            Refused::new(status, e.to_string())
        })?;
    let (reply, answer) = oneshot::channel();
    let uploaded =
        Message::Uploaded { guest, revision, part, entry: entry.clone(), node: node.name.clone(), reply };
    shared.inbox.send(uploaded).await.map_err(|_| Refused::busy())?;
    answer.await.map_err(|_| Refused::busy())?;
    Ok(Json(entry))
}

pub(super) async fn get(
    node: NodeIdentity,
    State(shared): State<Arc<Shared>>,
    Path(path): Path<(String, u64, String)>,
) -> Result<Response, Refused> {
    let Target { guest, revision, part } = target(&shared.view(), &node, path)?;
    let file = saved::file(&shared.options.state, &guest, revision, part);
    let (size, body) = saved::read(&file).await.map_err(|_| {
        let problem = format!("there is no {} of saved state {revision} of {guest}", part.name());
        Refused::new(StatusCode::NOT_FOUND, problem)
    })?;
    let headers = [
        (header::CONTENT_LENGTH, size.to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".into()),
    ];
    Ok((headers, body).into_response())
}
