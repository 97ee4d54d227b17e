//! The admin API.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use labshift_model::{
    api::{
        AdoptRequest, Boot, BootRequest, BootTarget, ClockRequest, Done, Event, Explanation, FenceRequest,
        FleetStatus, LogPart, ModeRequest, NodeView, RebootRequest, WakeRequest,
    },
    site,
};
use serde::Deserialize;
use tokio::sync::{broadcast, oneshot};

use super::{Admin, Refused};
use crate::{
    Shared,
    engine::{Message, Request},
    registry::records,
    store,
};

type Answer<T> = Result<Json<T>, Refused>;

/// How long an answer waits for a change.
const WAIT: Duration = Duration::from_secs(20);
/// Events that `explain` shows.
const HISTORY: usize = 40;
/// Boots that are listed.
const BOOTS: usize = 20;
/// Events read from the registry at a time.
const BATCH: usize = 256;

#[derive(Deserialize)]
pub(super) struct Newer {
    /// Answer when the fleet is not as it was in this version.
    newer: Option<u64>,
}

pub(super) async fn status(
    _: Admin,
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Newer>,
) -> Json<FleetStatus> {
    if let Some(version) = query.newer {
        let mut status = shared.status.subscribe();
        let _ = tokio::time::timeout(WAIT, status.wait_for(|s| s.version != version)).await;
    }
    Json(FleetStatus::clone(&shared.status.borrow()))
}

pub(super) async fn boots(
    _: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Answer<Vec<Boot>> {
    view(&shared, &name)?;
    Ok(Json(shared.registry.run(move |t| records::boots(t, &name, BOOTS)).await?))
}

pub(super) async fn log(
    _: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Answer<Vec<LogPart>> {
    view(&shared, &name)?;
    Ok(Json(shared.registry.run(move |t| records::log(t, &name)).await?))
}

pub(super) async fn explain(
    _: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Answer<Explanation> {
    let node = view(&shared, &name)?;
    let status = shared.status.borrow().clone();
    let upcoming = status.rooms.iter().find(|r| r.name == node.room).map(|r| r.upcoming.clone());
    let subject = name.clone();
    let history = shared.registry.run(move |t| records::newest_events(t, Some(&subject), HISTORY)).await?;
    let since = node.since.to_zoned(zone(&shared)).strftime("%a %H:%M:%S").to_string();
    let mut summary = format!("{name} is {} since {since}: {}.", node.state, node.cause);
    if !summary.contains(&node.wanted.cause) {
        summary += &format!(" Wanted is {}: {}.", node.wanted.mode, node.wanted.cause);
    }
    if let Some(trouble) = &node.trouble {
        summary += &format!(" It complains: {trouble}.");
    }
    Ok(Json(Explanation {
        node: name,
        summary,
        history,
        wanted: node.wanted,
        upcoming: upcoming.unwrap_or_default(),
    }))
}

fn zone(shared: &Shared) -> jiff::tz::TimeZone {
    shared.view().site.timezone.clone()
}

fn view(shared: &Shared, name: &str) -> Result<NodeView, Refused> {
    let status = shared.status.borrow();
    let found = status.nodes.iter().find(|n| n.name == name).cloned();
    found.ok_or_else(|| {
        Refused::new(StatusCode::NOT_FOUND, format!("there is no machine \"{name}\" in the site file"))
    })
}

async fn ask(shared: &Shared, admin: Admin, request: Request) -> Answer<Done> {
    let (reply, answer) = oneshot::channel();
    let message = Message::Admin { peer: admin.peer, request, reply };
    shared.inbox.send(message).await.map_err(|_| Refused::busy())?;
    Ok(Json(answer.await.map_err(|_| Refused::busy())??))
}

/// A JSON body; none at all counts as `{}`.
fn body<T: for<'de> Deserialize<'de>>(bytes: &Bytes) -> Result<T, Refused> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|e| {
        Refused::new(StatusCode::BAD_REQUEST, format!("the request's JSON is not understood: {e}"))
    })
}

pub(super) async fn wake(
    admin: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer<Done> {
    let request: WakeRequest = body(&bytes)?;
    ask(&shared, admin, Request::Wake(name, request)).await
}

pub(super) async fn mode(
    admin: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer<Done> {
    let request: ModeRequest = body(&bytes)?;
    ask(&shared, admin, Request::Mode(name, request)).await
}

pub(super) async fn reboot(
    admin: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer<Done> {
    let request: RebootRequest = body(&bytes)?;
    ask(&shared, admin, Request::Reboot(name, request)).await
}

pub(super) async fn boot(
    admin: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer<Done> {
    let mut request: BootRequest = body(&bytes)?;
    if let BootTarget::Image { name, generation } = &mut request.target {
        let (store, image, beginning) = (shared.options.store.clone(), name.clone(), generation.clone());
        let found = tokio::task::spawn_blocking(move || {
            if !site::is_name(&image) {
                return Err(format!("\"{image}\" is no image name"));
            }
            let whole = beginning.map(|b| store::generation(&store, &image, &b)).transpose()?;
            store::is_bootable(&store, &image, whole.as_deref())?;
            Ok(whole)
        });
        let found =
            found.await.map_err(|e| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
        *generation = found.map_err(|why| Refused::new(StatusCode::NOT_FOUND, why))?;
    }
    ask(&shared, admin, Request::Boot(name, request)).await
}

pub(super) async fn fence(
    admin: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer<Done> {
    let request: FenceRequest = body(&bytes)?;
    ask(&shared, admin, Request::Fence(name, request)).await
}

pub(super) async fn adopt(
    admin: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer<Done> {
    let request: AdoptRequest = body(&bytes)?;
    ask(&shared, admin, Request::Adopt(name, request)).await
}

pub(super) async fn forget(
    admin: Admin,
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Answer<Done> {
    ask(&shared, admin, Request::Forget(name)).await
}

pub(super) async fn clock(admin: Admin, State(shared): State<Arc<Shared>>, bytes: Bytes) -> Answer<Done> {
    let request: ClockRequest = body(&bytes)?;
    ask(&shared, admin, Request::Clock(request)).await
}

#[derive(Deserialize)]
pub(super) struct Since {
    /// Number of the last event that is known; the next event is the first when absent.
    since: Option<u64>,
}

/// One event per line, without end. An empty line now and then says that the server lives.
pub(super) async fn events(
    _: Admin,
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Since>,
) -> Response {
    // Listen first, then look back: nothing falls in between.
    let live = shared.events.subscribe();
    let last = query.since.unwrap_or_else(|| shared.status.borrow().event);
    let follow = Follow { shared, live, last, ready: vec![] };
    let stream = futures_util::stream::unfold(follow, |mut follow| async move {
        let line = follow.next_line().await?;
        Some((Ok::<_, Infallible>(line), follow))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")],
        Body::from_stream(stream),
    )
        .into_response()
}

struct Follow {
    shared: Arc<Shared>,
    live: broadcast::Receiver<Event>,
    last: u64,
    /// Newest first.
    ready: Vec<Event>,
}

impl Follow {
    async fn next_line(&mut self) -> Option<Bytes> {
        if self.ready.is_empty() {
            self.look_back().await?;
        }
        loop {
            if let Some(event) = self.ready.pop() {
                self.last = event.id;
                return line(&event);
            }
            match tokio::time::timeout(Duration::from_secs(15), self.live.recv()).await {
                Err(_) => return Some(Bytes::from_static(b"\n")),
                Ok(Ok(event)) if event.id == self.last + 1 => self.ready.push(event),
                Ok(Ok(event)) if event.id <= self.last => {}
                // Some were missed: they are in the registry.
                Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => self.look_back().await?,
                Ok(Err(broadcast::error::RecvError::Closed)) => return None,
            }
        }
    }

    async fn look_back(&mut self) -> Option<()> {
        let last = self.last;
        let mut events =
            self.shared.registry.run(move |t| records::events_after(t, last, BATCH)).await.ok()?;
        events.reverse();
        self.ready = events;
        Some(())
    }
}

fn line(event: &Event) -> Option<Bytes> {
    let mut line = serde_json::to_vec(event).ok()?;
    line.push(b'\n');
    Some(line.into())
}
