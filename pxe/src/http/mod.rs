//! What the boot plane answers over HTTP: scripts for iPXE, answers and reports of init, and the published files.
//!
//! Firmware is a poor HTTP client: nothing here redirects, looks at `Host`, or answers without `Content-Length`.

mod answer;
mod file;
mod limit;
mod range;
pub(crate) mod report;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use labshift_model::{
    boot::{Directory, Journal},
    paths,
};

use self::limit::Limiter;
use crate::config::Config;

/// Largest boot report.
const MAX_REPORT: usize = 256 * 1024;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Context {
    pub config: Arc<Config>,
    pub directory: Arc<dyn Directory>,
    pub journal: Arc<dyn Journal>,
    pub limiter: Arc<Limiter>,
}

/// The routes. Serve them with `into_make_service_with_connect_info::<SocketAddr>()`.
pub fn router(config: Arc<Config>, directory: Arc<dyn Directory>, journal: Arc<dyn Journal>) -> Router {
    let context = Context { config, directory, journal, limiter: Arc::default() };
    Router::new()
        .route(paths::IPXE_SCRIPT, get(answer::ipxe_script))
        .route(paths::BOOT_ANSWER, get(answer::boot_answer))
        .route(paths::BOOT_REPORT, post(report::boot_report).layer(DefaultBodyLimit::max(MAX_REPORT)))
        .route(&format!("{}/{{name}}/{{generation}}/{{file}}", paths::IMAGES), get(file::image))
        .with_state(context)
}

/// A sentence as the whole answer.
fn sentence(status: StatusCode, text: impl Into<String>) -> Response {
    let mut text: String = text.into();
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}
