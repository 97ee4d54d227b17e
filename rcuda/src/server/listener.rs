//! Accepts clients and gives each its worker. Nothing a client sends is read here.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Uid,
};

use super::{ledger::Ledger, platform::Source, report};
use crate::{
    foreign,
    wire::{
        endpoint::{Connection, Endpoint},
        frame,
        hello::Hello,
    },
};

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; never TCP.
    pub endpoints: Vec<Endpoint>,
    /// Where devices come from.
    pub source: Source,
    /// Bytes that one client may use of each device; `None` for all.
    pub limit: Option<u64>,
    /// Most clients at a time.
    pub clients: usize,
    /// First user id for workers, one each; 0 keeps the server's own.
    pub worker_uid: u32,
}

/// Serves until it is killed.
pub fn serve(options: &Options) -> Result<ExitCode> {
    let mut listeners = Vec::new();
    for endpoint in &options.endpoints {
        let listener = endpoint.listen().with_context(|| match endpoint {
            Endpoint::Unix(_) => format!("listening on {endpoint}"),
            Endpoint::Vsock { .. } => {
                format!("listening on {endpoint}: the kernel needs vsock (modules vsock, vhost_vsock)")
            }
        })?;
        report::note(format_args!("listening on {endpoint}"));
        listeners.push((endpoint.to_string(), listener));
    }
    if listeners.is_empty() {
        bail!("nowhere to listen: give --unix PATH or --vsock-port N");
    }
    let ledger = Arc::new(Ledger::create().context("making the ledger")?);
    loop {
        for (place, listener) in ready(&listeners)? {
            match foreign::accept(listener) {
                Ok(socket) => admit(options, &ledger, place, socket)?,
                // The client may have gone again; a lack of descriptors passes when others go.
                Err(error) => {
                    report::warn(format_args!("{place}: a client was lost: {error}"));
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}

fn ready(listeners: &[(String, OwnedFd)]) -> Result<Vec<(&str, &OwnedFd)>> {
    let mut polled: Vec<_> =
        listeners.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error).context("waiting for clients"),
    }
    let ready = polled.iter().map(|fd| fd.any().unwrap_or(false));
    Ok(listeners
        .iter()
        .zip(ready)
        .filter(|(_, ready)| *ready)
        .map(|((place, fd), _)| (place.as_str(), fd))
        .collect())
}

fn admit(options: &Options, ledger: &Arc<Ledger>, place: &str, socket: OwnedFd) -> Result<()> {
    let Some(slot) = ledger.enter(options.clients).context("entering a client in the ledger")? else {
        let reason = format!("it serves at most {} at a time, and that many are connected", options.clients);
        report::warn(format_args!("{place}: refused a client: {reason}"));
        refuse(socket, &reason);
        return Ok(());
    };
    match spawn(options, ledger, slot, socket) {
        Ok(child) => {
            report::note(format_args!("{place}: client {slot} has worker {}", child.id()));
            let ledger = Arc::clone(ledger);
            thread::Builder::new()
                .name(format!("reaper-{slot}"))
                .spawn(move || reap(child, &ledger, slot))
                .context("starting a reaper")?;
        }
        Err(error) => {
            report::warn(format_args!("{place}: no worker for client {slot}: {error:#}"));
            ledger.leave(slot).context("clearing a slot")?;
        }
    }
    Ok(())
}

/// Tells a client why, without waiting for it: the answer is far smaller than any socket's buffer.
fn refuse(socket: OwnedFd, reason: &str) {
    let mut connection = Connection::from(socket);
    let sent = connection
        .set_timeout(Duration::from_millis(100))
        .map_err(frame::WireError::from)
        .and_then(|()| frame::send_hello(&mut connection, &Hello::refuse(reason)));
    if let Err(error) = sent {
        report::warn(format_args!("the refusal did not reach the client: {error}"));
    }
}

fn spawn(options: &Options, ledger: &Ledger, slot: usize, socket: OwnedFd) -> Result<Child> {
    // This very program, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg("worker");
    command.args(["--slot", &slot.to_string(), "--parent", &std::process::id().to_string()]);
    match &options.source {
        Source::Software { total } => command.args(["--software", &total.to_string()]),
        Source::Driver { library } => command.arg("--library").arg(library),
    };
    if let Some(limit) = options.limit {
        command.args(["--limit", &limit.to_string()]);
    }
    if options.worker_uid != 0 && Uid::effective().is_root() {
        command.args(["--uid", &(options.worker_uid + slot as u32).to_string()]);
    }
    let ledger = ledger.descriptor().context("passing on the ledger")?;
    command.stdin(Stdio::from(socket)).stdout(Stdio::from(ledger)).env_clear();
    command.spawn().context("starting a worker")
}

fn reap(mut child: Child, ledger: &Ledger, slot: usize) {
    let ended = match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    if let Err(error) = ledger.leave(slot) {
        report::warn(format_args!("clearing slot {slot}: {error}"));
    }
    report::note(format_args!("client {slot} has gone ({ended})"));
}

/// Asks a child process for the driver's devices: a driver that crashes takes only the child along.
pub fn probe(library: &Path) -> io::Result<Result<String, String>> {
    let output = Command::new("/proc/self/exe").arg("probe").arg(library).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let reason = text(&output.stderr);
        Err(format!("{} ({})", reason.strip_prefix("rcuda-server: ").unwrap_or(&reason), output.status))
    })
}
