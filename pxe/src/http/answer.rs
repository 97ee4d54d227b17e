//! `GET /boot/script.ipxe?mac=` and `GET /v1/boot/answer?mac=`: what a machine boots.

use std::{net::SocketAddr, time::Instant};

use axum::{
    Json,
    extract::{ConnectInfo, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use labshift_model::{
    MacAddr,
    boot::{BootChoice, LONGEST_NONCE, MachineKind, NoAnswer, is_nonce},
};
use serde::Deserialize;

use super::{Context, owner, sentence};
use crate::{
    script::{Script, introduction, script},
    store,
};

/// `?mac=..`; init adds a number of its own, which comes back in the signed answer.
#[derive(Deserialize)]
pub(super) struct Asker {
    mac: Option<String>,
    #[serde(default)]
    nonce: String,
}

impl Asker {
    fn mac(&self) -> Result<MacAddr, Box<Response>> {
        let Some(mac) = &self.mac else {
            return Err(Box::new(sentence(
                StatusCode::BAD_REQUEST,
                "name the machine: ?mac=52:54:00:00:00:01",
            )));
        };
        mac.parse().map_err(|e: labshift_model::mac::BadMac| {
            Box::new(sentence(StatusCode::BAD_REQUEST, e.to_string()))
        })
    }
}

/// iPXE's script. A machine that is known gets one that never ends in a prompt, whatever is wrong.
pub(super) async fn ipxe_script(State(context): State<Context>, Query(asker): Query<Asker>) -> Response {
    let base = context.config.base_url();
    if asker.mac.is_none() {
        return text(introduction(&base));
    }
    let mac = match asker.mac() {
        Ok(mac) => mac,
        Err(refused) => return *refused,
    };
    let machine = context.directory.machine(mac);
    let (name, choice) = match &machine {
        Some(machine) if machine.kind == MachineKind::Node => {
            (machine.name.clone(), context.directory.boot(mac))
        }
        Some(_) => (mac.to_string(), BootChoice::Ignore),
        None => (mac.to_string(), context.directory.boot(mac)),
    };
    let say = |what: &Script<'_>| script(&base, mac, &name, what);
    text(match choice {
        BootChoice::Ignore if machine.is_none() => {
            let why = format!("no machine in site.toml has MAC address {mac}");
            return sentence(StatusCode::NOT_FOUND, why);
        }
        BootChoice::Ignore => {
            return sentence(StatusCode::NOT_FOUND, format!("{name} does not boot from this server"));
        }
        BootChoice::LocalDisk => say(&Script::LocalDisk),
        BootChoice::Refuse(reason) => say(&Script::Wait(&reason)),
        BootChoice::Image { name, generation, arguments } => {
            let (images, image, wanted) = (context.config.store.clone(), name.clone(), generation.clone());
            let read = tokio::task::spawn_blocking(move || store::manifest(&images, &image, &wanted)).await;
            match read.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.to_string())) {
                Ok(manifest) => {
                    say(&Script::Boot { manifest: &manifest, generation: &generation, arguments: &arguments })
                }
                Err(reason) => {
                    tracing::error!("image {name} for {mac}: {reason}");
                    say(&Script::Wait(&format!("image {name} can not be read: {reason}")))
                }
            }
        }
    })
}

fn text(script: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], script)
        .into_response()
}

/// Nothing, for firmware that would wait a minute for an offer otherwise.
pub(super) async fn own_disk() -> Response {
    sentence(StatusCode::NOT_FOUND, "this machine boots its own disk")
}

/// Init's answer; a refusal is a sentence for the node's screen.
pub(super) async fn boot_answer(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Query(asker): Query<Asker>,
) -> Response {
    let mac = match asker.mac() {
        Ok(mac) => mac,
        Err(refused) => return *refused,
    };
    if !is_nonce(&asker.nonce) {
        return sentence(
            StatusCode::BAD_REQUEST,
            format!("the nonce must be at most {LONGEST_NONCE} letters and digits"),
        );
    }
    // A new session is a write to the database: no place for a busy loop on some machine.
    if !context.limiter.allows(peer.ip(), Instant::now()) {
        return super::report::too_many();
    }
    let peer = peer.ip().to_canonical();
    if let Err(reason) = owner::check(&context, mac, peer).await {
        tracing::warn!("{peer} asked for the boot answer of {mac}: {reason}");
        return sentence(StatusCode::FORBIDDEN, reason);
    }
    match context.directory.answer(mac, &asker.nonce, peer) {
        Ok(answer) => ([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response(),
        Err(NoAnswer::Refused(reason)) => sentence(StatusCode::FORBIDDEN, reason),
        // Not yet: it waits to be adopted.
        Err(NoAnswer::Unknown(reason)) => sentence(StatusCode::ACCEPTED, reason),
    }
}
