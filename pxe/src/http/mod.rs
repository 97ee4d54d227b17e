//! What the boot plane answers over HTTP: scripts for iPXE, answers and reports of init, and the published files.
//!
//! Firmware is a poor HTTP client: nothing here redirects, looks at `Host`, or answers without `Content-Length`.

mod answer;
mod file;
mod front;
mod owner;
mod range;
pub(crate) mod report;
mod request;
pub mod tls;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use labshift_model::{
    boot::{Directory, Journal},
    paths,
};

pub use self::front::Front;
use crate::{
    config::Config,
    dhcp::socket::Table,
    limit::{Limiter, Rate},
};

/// Writes to the journal and the database, by address: a boot reports about a dozen stages.
const WRITES: Rate = Rate { burst: 40.0, each_second: 4.0 };
/// Largest boot report.
const MAX_REPORT: usize = 256 * 1024;

/// Allows each address so many writes.
fn write_limiter() -> Limiter<IpAddr> {
    Limiter::new(WRITES, IpAddr::from([0, 0, 0, 0]))
}

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Context {
    pub config: Arc<Config>,
    pub directory: Arc<dyn Directory>,
    pub journal: Arc<dyn Journal>,
    pub leases: Table,
    pub limiter: Arc<Limiter<IpAddr>>,
}

/// The routes. Serve them with `into_make_service_with_connect_info::<SocketAddr>()`.
/// `leases` tells whose address a request comes from.
pub fn router(
    config: Arc<Config>,
    directory: Arc<dyn Directory>,
    journal: Arc<dyn Journal>,
    leases: Table,
) -> Router {
    Context::new(config, directory, journal, leases).routes()
}

impl Context {
    pub(crate) fn new(
        config: Arc<Config>,
        directory: Arc<dyn Directory>,
        journal: Arc<dyn Journal>,
        leases: Table,
    ) -> Self {
        let limiter = Arc::new(write_limiter());
        Context { config, directory, journal, leases, limiter }
    }

    fn routes(self) -> Router {
        Router::new()
            .route(paths::IPXE_SCRIPT, get(answer::ipxe_script))
            .route(paths::OWN_DISK, get(answer::own_disk))
            .route(paths::BOOT_ANSWER, get(answer::boot_answer))
            .route(paths::BOOT_REPORT, post(report::boot_report).layer(DefaultBodyLimit::max(MAX_REPORT)))
            .layer(map_response(leave))
            .route(&format!("{}/{{name}}/{{generation}}/{{file}}", paths::IMAGES), get(file::image))
            .with_state(self)
    }
}

/// After a script or an answer comes an image: on a new connection, which the front serves by `sendfile`.
async fn leave(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A sentence as the whole answer.
fn sentence(status: StatusCode, text: impl Into<String>) -> Response {
    let mut text: String = text.into();
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}
