//! The dashboard: one page, made on the server, kept fresh by server-sent events. Read-only.
//!
//! ```text
//!   GET /                      the page
//!   GET /dashboard/now         its middle, for the script to swap in
//!   GET /dashboard/changes     server-sent events: a line whenever the fleet changed
//!   GET /dashboard/style.css, /dashboard/live.js, /dashboard/icon.svg
//! ```
//!
//! Nothing comes from elsewhere and nothing is inline: the content security policy allows this server's own files only.
//! Text from nodes, guests and the site file is escaped by the templates.

mod cards;
mod page;
mod words;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use maud::Markup;

use crate::{Shared, registry::records};

/// Events on the page.
const EVENTS: usize = 30;
/// The page is renewed at most so often.
const PACE: Duration = Duration::from_millis(400);
/// A word on the stream at least so often, so that a dead connection is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route("/", get(whole))
        .route("/dashboard/now", get(now))
        .route("/dashboard/changes", get(changes))
        .route("/dashboard/style.css", file("text/css; charset=utf-8", include_str!("dashboard/style.css")))
        .route(
            "/dashboard/live.js",
            file("text/javascript; charset=utf-8", include_str!("dashboard/live.js")),
        )
        .route("/dashboard/icon.svg", file("image/svg+xml", include_str!("dashboard/icon.svg")))
        .layer(middleware::from_fn(guard))
        .with_state(shared)
}

async fn guard(request: axum::extract::Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn whole(State(shared): State<Arc<Shared>>) -> Markup {
    let site = shared.status.borrow().site.clone();
    page::whole(&site, &middle(&shared).await)
}

async fn now(State(shared): State<Arc<Shared>>) -> Markup {
    middle(&shared).await
}

async fn middle(shared: &Shared) -> Markup {
    let events = shared.registry.run(|t| records::newest_events(t, None, EVENTS)).await.unwrap_or_default();
    let status = shared.status.borrow().clone();
    page::middle(&status, &events)
}

/// One event per change, at most a few in a second.
async fn changes(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.status.subscribe();
    let stream = stream::unfold((status, true), |(mut status, first)| async move {
        if !first {
            tokio::time::sleep(PACE).await;
            match tokio::time::timeout(HEARTBEAT, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => {
                    return Some((
                        Ok::<_, Infallible>(Bytes::from_static(b": still here\n\n")),
                        (status, false),
                    ));
                }
            }
        }
        let version = status.borrow_and_update().version;
        Some((Ok(Bytes::from(format!("data: {version}\n\n"))), (status, false)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}
