//! The node's daemon: started by init, talks to the server, runs guests.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use labshift_model::{
    boot::{Stage, StageEvent},
    context::NodeContext,
    node::FromNode,
    paths,
};
use labshift_runtime::{
    bridge,
    channel::{Channel, Outgoing},
    clock::since_boot,
    engine::{Engine, Events, say},
    facts,
    images::Images,
    kiosk::control::Status as Page,
    libvirt::Hypervisor,
    perform::Performer,
    rcuda::Rcuda,
    record::Records,
    saved::Store,
    screen::Screen,
    status,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

/// The daemon of a labshift node: network, guests, modes.
#[derive(Parser)]
#[command(name = "labshift-runtime", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (this is what happens without a command).
    Run(Run),
    /// Print what the running daemon last told the server.
    Status {
        /// Print JSON instead of one line for each guest.
        #[arg(long)]
        json: bool,
    },
    /// Draw the workstation's screen; the daemon starts this by itself.
    #[command(disable_help_flag = true)]
    Kiosk {
        /// Arguments of the kiosk.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(clap::Args)]
struct Run {
    /// What init knows of this boot.
    #[arg(long, default_value = paths::NODE_CONTEXT)]
    context: PathBuf,
    /// libvirt to use.
    #[arg(long, default_value = "qemu:///system")]
    libvirt: String,
}

impl Default for Run {
    fn default() -> Self {
        Run { context: paths::NODE_CONTEXT.into(), libvirt: "qemu:///system".into() }
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Some(Command::Kiosk { arguments }) => return labshift_runtime::kiosk::main(arguments.into_iter()),
        Some(Command::Status { json }) => print_status(json),
        Some(Command::Run(run)) => start(&run),
        None => start(&Run::default()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("labshift-runtime: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_status(json: bool) -> Result<()> {
    let text = std::fs::read_to_string(status::FILE)
        .with_context(|| format!("reading {}; does the daemon run?", status::FILE))?;
    if json {
        print!("{text}");
        return Ok(());
    }
    let status: labshift_model::node::NodeStatus =
        serde_json::from_str(&text).with_context(|| format!("reading {}", status::FILE))?;
    let mode = status.mode.map_or_else(|| "none yet".to_owned(), |m| m.to_string());
    println!("mode   {mode}");
    if let Some(change) = &status.transition {
        println!("change to {}: {} ({} of {})", change.to, change.phase, change.done, change.total);
    }
    for guest in &status.guests {
        let state = serde_json::to_value(&guest.state)?;
        println!("guest  {} {}", guest.name, state["state"].as_str().unwrap_or("?"));
    }
    if let Some(trouble) = &status.trouble {
        println!("trouble {trouble}");
    }
    Ok(())
}

fn start(run: &Run) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LABSHIFT_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_target(false)
        .with_ansi(false)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    let text = std::fs::read_to_string(&run.context)
        .with_context(|| format!("reading {}, which init writes", run.context.display()))?;
    let context: NodeContext =
        serde_json::from_str(&text).with_context(|| format!("reading {}", run.context.display()))?;
    // One thread: nothing here computes, what waits for libvirt has threads of its own, and an idle node wakes no others.
    let threads = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Longer than from one look at libvirt to the next.
        .thread_keep_alive(Duration::from_secs(60))
        .build();
    threads.context("starting the runtime's thread")?.block_on(serve(run, context))
}

async fn serve(run: &Run, context: NodeContext) -> Result<()> {
    let context = Arc::new(context);
    let (facts, no_kvm) = facts::read();
    let page = Page {
        node: context.node.clone(),
        mode: "starting".into(),
        line: "Waiting for the server".into(),
        hint: String::new(),
    };
    let screen = Screen::spawn(page.clone());
    if let Err(error) = bridge::ensure(&context.network).await {
        // The plan begins with the bridge; until then the port works as it is.
        tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "no bridge yet");
    }

    let (domain_changes, domains) = mpsc::unbounded_channel();
    let hypervisor = Hypervisor::new(&run.libvirt, domain_changes);
    let version = wait_for_libvirt(&hypervisor).await;
    if let Err(error) = std::fs::write(paths::RUNTIME_READY, "") {
        tracing::warn!(%error, "{} is not there", paths::RUNTIME_READY);
    }
    let probing = hypervisor.clone();
    tokio::spawn(async move {
        if let Err(error) = probing.probe().await {
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "libvirt has no working QEMU"
            );
        }
    });

    let kvm = match &no_kvm {
        None => "ok".to_owned(),
        Some(reason) => format!("missing ({reason})"),
    };
    let libvirt = format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000);
    let detail = format!(
        "kvm {kvm}, libvirt {libvirt}, {} CPUs, {} MiB, server {}",
        facts.cpus, facts.memory_mib, context.server
    );
    let at_ms = u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX);
    let mut stages = context.stages.clone();
    stages.push(StageEvent { stage: Stage::Ready, at_ms, failure: None, detail: detail.clone() });

    let (outgoing, outgoing_seen) = watch::channel(Outgoing { status: None, stages });
    let (incoming, heard) = mpsc::channel(16);
    let channel = Channel {
        server: context.server.clone(),
        token: context.token.clone(),
        outgoing: outgoing_seen,
        incoming,
    };
    let attempt = context.attempt;
    let told = std::sync::Once::new();
    let talking = tokio::spawn(channel.run(move |stages| {
        told.call_once(|| say("ready", &detail));
        FromNode::Hello {
            attempt,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: facts.clone(),
            stages,
        }
    }));

    let (changes, watched) = watch::channel(0);
    let performer = Performer {
        hypervisor,
        domains: watched,
        images: Images::new(paths::NODE_IMAGES, &context),
        records: Records::new(paths::DOMAINS),
        store: Store::new(&context.server, &context.token),
        screen,
        rcuda: Rcuda::spawn(),
        no_kvm,
        context,
    };
    let engine = Engine::new(performer, Events { incoming: heard, domains }, changes, outgoing, page);

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("listening for SIGTERM")?;
    tokio::select! {
        () = engine.run() => {}
        _ = talking => {}
        _ = terminate.recv() => tracing::info!("asked to end; guests go on"),
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

/// It starts at the same time. Where it is late, it is asked less and less often.
async fn wait_for_libvirt(hypervisor: &Hypervisor) -> u32 {
    let (mut told, mut pause) = (false, Duration::from_millis(20));
    loop {
        match hypervisor.version().await {
            Ok(version) => return version,
            Err(error) => {
                pause = (pause * 11 / 10).min(Duration::from_millis(500));
                if pause == Duration::from_millis(500) && !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        error = format!("{:#}", anyhow::Error::from(error)),
                        "waiting for libvirt"
                    );
                }
                sleep(pause).await;
            }
        }
    }
}
