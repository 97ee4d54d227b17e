//! A worker process: one client, from its hello to its end.

use std::{
    collections::hash_map::RandomState,
    fs::File,
    hash::BuildHasher,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Gid, Uid, alarm, dup2_stdin, dup2_stdout, getppid, setgid, setgroups, setuid},
};

use super::{account::Account, ledger::Ledger, platform::Source, report, session::Session};
use crate::wire::{
    endpoint::Connection,
    frame::{self, WireError},
    hello::Hello,
    message::Request,
};

/// A client that does not say hello in this time is let go.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Address space of a software worker beyond its quota: program, frames, registers of a block.
const OVERHEAD: u64 = 1 << 30;

/// What the listener tells a worker on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArguments {
    /// Slot in the ledger.
    #[arg(long)]
    pub slot: usize,
    /// Process id of the listener.
    #[arg(long)]
    pub parent: i32,
    /// Bytes that the client may use.
    #[arg(long)]
    pub limit: Option<u64>,
    /// Bytes of the software device; the driver is used when absent.
    #[arg(long)]
    pub software: Option<u64>,
    /// Path of the driver's library.
    #[arg(long)]
    pub library: Option<PathBuf>,
    /// User and group to become.
    #[arg(long)]
    pub uid: Option<u32>,
}

impl WorkerArguments {
    /// Where devices come from.
    pub fn source(&self) -> Source {
        match &self.library {
            Some(library) if self.software.is_none() => Source::Driver { library: library.clone() },
            _ => Source::Software { total: self.software.unwrap_or(0) },
        }
    }
}

/// Serves the client on standard input. Returns when it has gone.
pub fn run(arguments: &WorkerArguments) -> Result<ExitCode> {
    let ledger = Ledger::open(&io::stdout()).context("opening the ledger")?;
    let socket: OwnedFd = io::stdin().as_fd().try_clone_to_owned().context("taking over the connection")?;
    // Whatever a library prints must reach neither the client nor the ledger.
    let nothing = File::options().read(true).write(true).open("/dev/null").context("opening /dev/null")?;
    dup2_stdin(&nothing).context("closing standard input")?;
    dup2_stdout(&nothing).context("closing standard output")?;
    drop(nothing);
    confine(arguments)?;

    let mut connection = Connection::from(socket);
    connection.set_timeout(HELLO_LIMIT).context("setting the time limit for the hello")?;
    if let Err(error) = greet(&mut connection) {
        report::warn(format_args!("client {}: {error}", arguments.slot));
        return Ok(ExitCode::FAILURE);
    }
    connection.set_timeout(Duration::ZERO).context("lifting the time limit")?;
    watch(&connection)?;

    let account = Account::new(arguments.limit, ledger, arguments.slot);
    let mut session = Session::new(arguments.source(), account, RandomState::new().hash_one(arguments.slot));
    loop {
        let request: Request = match frame::receive(&mut connection) {
            Ok(request) => request,
            Err(WireError::Closed) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error).context("reading a request"),
        };
        if let Some(reply) = session.handle(request) {
            frame::send(&mut connection, &reply).context("sending a reply")?;
        }
    }
}

fn greet(connection: &mut Connection) -> Result<(), WireError> {
    let theirs = frame::receive_hello(connection)?;
    // A client of another version learns ours from our hello, and says both.
    frame::send_hello(connection, &Hello::ours())?;
    Ok(theirs.check()?)
}

/// Gives up whatever a worker does not need.
fn confine(arguments: &WorkerArguments) -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("forbidding core dumps")?;
    setrlimit(Resource::RLIMIT_NOFILE, 256, 256).context("limiting open files")?;
    if let Some(total) = arguments.software {
        let bytes = total.min(arguments.limit.unwrap_or(u64::MAX)).saturating_add(OVERHEAD);
        setrlimit(Resource::RLIMIT_AS, bytes, bytes).context("limiting memory")?;
    }
    if let Some(uid) = arguments.uid {
        setgroups(&[]).context("leaving the server's groups")?;
        setgid(Gid::from_raw(uid)).with_context(|| format!("becoming group {uid}"))?;
        setuid(Uid::from_raw(uid))
            .with_context(|| format!("becoming user {uid}; --worker-uid 0 keeps the server's own"))?;
    }
    prctl::set_no_new_privs().context("giving up new privileges")?;
    prctl::set_dumpable(false).context("closing the process to tracers")?;
    prctl::set_pdeathsig(Signal::SIGKILL).context("tying the worker to its server")?;
    ensure!(getppid().as_raw() == arguments.parent, "the server has ended");
    Ok(())
}

/// Ends the process when the client goes, even in the middle of a kernel.
fn watch(connection: &Connection) -> Result<()> {
    let socket = connection.as_fd().try_clone_to_owned().context("watching the connection")?;
    let watcher = move || {
        let hangup = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut watched = [PollFd::new(socket.as_fd(), hangup)];
        while poll(&mut watched, PollTimeout::NONE) == Err(nix::Error::EINTR) {}
        // A driver may hang in its own exit handlers: the alarm ends the process then.
        alarm::set(5);
        std::process::exit(0);
    };
    std::thread::Builder::new().name("watcher".into()).spawn(watcher).context("starting the watcher")?;
    Ok(())
}
