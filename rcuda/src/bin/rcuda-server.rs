//! The node's remote-CUDA server. `worker` and `probe` are the two ways in which it starts itself again.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use labshift_rcuda::{
    driver::Driver,
    server::{
        ledger::SLOTS,
        listener::{self, Options},
        platform::{self, Source},
        report,
        worker::{self, WorkerArguments},
    },
    wire::endpoint::Endpoint,
};

const MIB: u64 = 1 << 20;

/// Shares this machine's CUDA devices with programs in its guests.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Listen on this Unix socket (mode 0600).
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Listen on this vsock port, for the guests of this machine.
    #[arg(long, value_name = "N")]
    vsock_port: Option<u32>,
    /// Device memory that one client may use, in MiB, per device [default: all of it].
    #[arg(long, value_name = "MiB")]
    memory_limit: Option<u64>,
    /// Serve the software device even where there is a driver.
    #[arg(long)]
    software: bool,
    /// Memory of the software device, in MiB [default: a quarter of the machine's, at most 1024].
    #[arg(long, value_name = "MiB")]
    software_memory: Option<u64>,
    /// The driver's library [default: the first of the usual places that exists].
    #[arg(long, value_name = "PATH")]
    driver_library: Option<PathBuf>,
    /// Most clients at a time.
    #[arg(long, value_name = "N", default_value_t = 32)]
    clients: usize,
    /// First user id for workers, one each, when started by root; 0 keeps the server's own.
    #[arg(long, value_name = "UID", default_value_t = 64_000)]
    worker_uid: u32,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serves the one client on standard input; started by the server.
    #[command(hide = true)]
    Worker(WorkerArguments),
    /// Names the devices of a driver's library; started by the server.
    #[command(hide = true)]
    Probe {
        /// Path of the library.
        library: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        Some(Role::Worker(worker)) => worker::run(worker),
        Some(Role::Probe { library }) => probe(library),
        None => options(&arguments).and_then(|options| listener::serve(&options)),
    };
    outcome.unwrap_or_else(|error| {
        report::warn(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn probe(library: &Path) -> Result<ExitCode> {
    let devices = Driver::open(library)?.devices()?;
    if devices.is_empty() {
        bail!("the driver has no device");
    }
    for device in devices {
        println!("{} ({} MiB)", device.name, device.device_total / MIB);
    }
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &Arguments) -> Result<Options> {
    let mut endpoints: Vec<_> = arguments.unix.iter().cloned().map(Endpoint::Unix).collect();
    if let Some(port) = arguments.vsock_port {
        endpoints.push(Endpoint::Vsock { cid: u32::MAX, port });
    }
    if !(1..=SLOTS).contains(&arguments.clients) {
        bail!("--clients {}: between 1 and {SLOTS} clients can be served", arguments.clients);
    }
    Ok(Options {
        endpoints,
        source: source(arguments)?,
        limit: arguments.memory_limit.map(|mib| mib.saturating_mul(MIB)),
        clients: arguments.clients,
        worker_uid: arguments.worker_uid,
    })
}

/// The driver where there is one that works, else the software device. A library that was named must work.
fn source(arguments: &Arguments) -> Result<Source> {
    let named = arguments.driver_library.clone();
    let library = if arguments.software { None } else { named.clone().or_else(platform::installed_library) };
    if let Some(library) = library {
        match listener::probe(&library).context("probing the driver")? {
            Ok(devices) => {
                report::note(format_args!("{}: {}", library.display(), devices.replace('\n', ", ")));
                return Ok(Source::Driver { library });
            }
            Err(reason) if named.is_some() => bail!("{}: {reason}", library.display()),
            Err(reason) => report::warn(format_args!("{} can't be used: {reason}", library.display())),
        }
    }
    let total = match arguments.software_memory {
        Some(mib) => mib.saturating_mul(MIB),
        None => (machine_memory()? / 4).min(1024 * MIB),
    };
    report::note(format_args!("serving the software device ({} MiB)", total / MIB));
    Ok(Source::Software { total })
}

/// Bytes of RAM.
fn machine_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = line
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .context("/proc/meminfo has no MemTotal; give --software-memory")?;
    Ok(kib * 1024)
}
