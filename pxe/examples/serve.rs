//! The boot plane by itself, for trying firmware against it: every machine is known and boots one image.
//!
//! `serve INTERFACE ADDRESS STORE STATE [IMAGE GENERATION [ARGUMENTS] | refuse SENTENCE | disk]`

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use labshift_model::{
    MacAddr,
    boot::{
        BootAnswer, BootChoice, BootPlaneEvent, Directory, Journal, Machine, MachineKind, NoAnswer,
        SignedAnswer,
    },
    manifest::Signature,
    paths,
};
use labshift_pxe::{BootPlane, Config};

struct Everyone {
    config: Config,
    choice: BootChoice,
}

impl Directory for Everyone {
    fn machine(&self, mac: MacAddr) -> Option<Machine> {
        Some(Machine { name: format!("pc-{}", mac.compact()), address: None, kind: MachineKind::Node })
    }

    fn boot(&self, _: MacAddr) -> BootChoice {
        self.choice.clone()
    }

    fn answer(&self, mac: MacAddr, nonce: &str, from: IpAddr) -> Result<SignedAnswer, NoAnswer> {
        let BootChoice::Image { name, generation, .. } = &self.choice else {
            return Err(NoAnswer::Refused("nothing to boot".to_owned()));
        };
        let directory = self.config.store.join("images").join(name).join(generation);
        let read = |file| {
            let text = std::fs::read_to_string(directory.join(file));
            text.map_err(|e| NoAnswer::Refused(format!("{file}: {e}")))
        };
        let signature: Signature =
            serde_json::from_str(&read(paths::SIGNATURE)?).map_err(|e| NoAnswer::Refused(e.to_string()))?;
        let answer = BootAnswer {
            node: format!("pc-{}", mac.compact()),
            room: "bench".to_owned(),
            image: name.clone(),
            generation: generation.clone(),
            manifest: read(paths::MANIFEST)?,
            signature,
            attempt: 1,
            token: format!("session-of-{from}"),
            now: jiff::Timestamp::now(),
            nonce: nonce.to_owned(),
            peers: vec![],
        };
        Ok(SignedAnswer::sign(&answer, &ed25519_dalek::SigningKey::from_bytes(&[7; 32])))
    }
}

struct Printer(Instant);

impl Journal for Printer {
    fn record(&self, event: BootPlaneEvent) {
        let line = serde_json::to_string(&event).unwrap_or_default();
        println!("[{:9.3}] {line}", self.0.elapsed().as_secs_f64());
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [interface, address, store, state, choice @ ..] = &words[..] else {
        bail!(
            "usage: serve INTERFACE ADDRESS STORE STATE [IMAGE GENERATION [ARGUMENTS] | refuse SENTENCE | disk]"
        );
    };
    let choice = match choice {
        [disk] if disk == "disk" => BootChoice::LocalDisk,
        [refuse, sentence] if refuse == "refuse" => BootChoice::Refuse(sentence.clone()),
        [name, generation, rest @ ..] => BootChoice::Image {
            name: name.clone(),
            generation: generation.clone(),
            arguments: rest.join(" "),
        },
        _ => BootChoice::Ignore,
    };
    let address: Ipv4Addr = address.parse().context("reading the server's address")?;
    let config = Config::new(interface, address, 24, store.into(), state.into());
    let directory = Arc::new(Everyone { config: config.clone(), choice });
    let plane = BootPlane::bind(config, directory, Arc::new(Printer(Instant::now())))?;
    let listener = tokio::net::TcpListener::bind(plane.http_address()).await.context("listening for HTTP")?;
    let routes = plane.http_router().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    println!("serving on {address}");
    plane.serve(async { drop(tokio::signal::ctrl_c().await) }).await.context("serving")
}
