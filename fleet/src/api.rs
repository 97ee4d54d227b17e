//! The HTTP API, for nodes, guests and admins. Every request carries a bearer token; each group of routes has its own.
//!
//! | routes | token |
//! |---|---|
//! | `/v1/node/channel`, `/v1/saved/...` | the node's, of its boot |
//! | `/v1/guests/NAME/report` | the guest's |
//! | everything else under `/v1` | the admin's |

mod admin;
mod guest;
mod node;
mod saved;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, PoisonError},
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use labshift_model::{
    api::{EVENTS, LAB_CLOCK, NODES, Problem, STATUS},
    paths,
};

use crate::{Shared, engine::Refusal};

/// Largest request with JSON, in bytes.
const JSON_LIMIT: usize = 64 << 10;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let small = Router::new()
        .route(STATUS, get(admin::status))
        .route(EVENTS, get(admin::events))
        .route(&format!("{NODES}/{{name}}/explain"), get(admin::explain))
        .route(&format!("{NODES}/{{name}}/boots"), get(admin::boots))
        .route(&format!("{NODES}/{{name}}/log"), get(admin::log))
        .route(&format!("{NODES}/{{name}}/wake"), post(admin::wake))
        .route(&format!("{NODES}/{{name}}/mode"), post(admin::mode))
        .route(&format!("{NODES}/{{name}}/reboot"), post(admin::reboot))
        .route(&format!("{NODES}/{{name}}/boot"), post(admin::boot))
        .route(&format!("{NODES}/{{name}}/fence"), post(admin::fence))
        .route(&format!("{NODES}/{{name}}/adopt"), post(admin::adopt))
        .route(&format!("{NODES}/{{name}}/forget"), post(admin::forget))
        .route(LAB_CLOCK, post(admin::clock))
        .route(paths::NODE_CHANNEL, get(node::channel))
        .route(&format!("{}/{{name}}/report", paths::GUESTS), post(guest::report))
        .layer(DefaultBodyLimit::max(JSON_LIMIT));
    let large = Router::new()
        .route(&format!("{}/{{guest}}/{{revision}}/{{part}}", paths::SAVED), get(saved::get).put(saved::put))
        .layer(DefaultBodyLimit::disable());
    small.merge(large).with_state(shared)
}

/// A refusal with its HTTP status.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) StatusCode, pub(crate) String);

impl Refused {
    fn new(status: StatusCode, problem: impl Into<String>) -> Self {
        Refused(status, problem.into())
    }

    fn busy() -> Self {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping; try again later")
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Bad(_) => StatusCode::BAD_REQUEST,
        };
        Refused(status, refusal.text().to_owned())
    }
}

impl From<crate::RegistryError> for Refused {
    fn from(error: crate::RegistryError) -> Self {
        tracing::error!("{error}");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = Json(Problem { problem: self.1 });
        match self.0 {
            StatusCode::UNAUTHORIZED => {
                (self.0, [(header::WWW_AUTHENTICATE, "Bearer realm=\"labshift\"")], body).into_response()
            }
            status => (status, body).into_response(),
        }
    }
}

/// The token of a request.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(who: &str) -> Refused {
    Refused::new(
        StatusCode::UNAUTHORIZED,
        format!("this needs {who} token in the header Authorization: Bearer"),
    )
}

fn peer(parts: &Parts) -> SocketAddr {
    let known = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    known.map_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), |ConnectInfo(peer)| *peer)
}

/// A request of the admin: its token was right.
pub(crate) struct Admin {
    peer: SocketAddr,
}

impl FromRequestParts<Arc<Shared>> for Admin {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Refused> {
        let peer = peer(parts);
        if bearer(&parts.headers).is_some_and(|token| shared.keys.is_admin(token)) {
            return Ok(Admin { peer });
        }
        tracing::warn!(%peer, path = parts.uri.path(), "refused: no admin token, or a wrong one");
        Err(unauthorized("the admin's"))
    }
}

/// A request of a node: its token is that of one of its boots.
pub(crate) struct NodeIdentity {
    name: String,
    attempt: u64,
}

impl FromRequestParts<Arc<Shared>> for NodeIdentity {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Refused> {
        let found = bearer(&parts.headers)
            .and_then(|token| shared.tokens.read().unwrap_or_else(PoisonError::into_inner).find(token));
        match found {
            Some((name, attempt)) => Ok(NodeIdentity { name, attempt }),
            None => {
                tracing::warn!(peer = %peer(parts), path = parts.uri.path(), "refused: no node token, or an old one");
                Err(unauthorized("a node's"))
            }
        }
    }
}
