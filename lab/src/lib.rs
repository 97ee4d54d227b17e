//! The virtual lab: workstations in QEMU behind a switch, with a Wake-on-LAN power button. For admins who try a recipe
//! or a schedule before a room sees it, and the harness of the end-to-end tests.
//!
//! ```text
//!   this machine                 |  the lab's own namespaces
//!   browser --> 127.0.0.1:8088 --+--> labshift serve --- lab0 (tap) --- switch --- cable --- ws1 (QEMU, BIOS)
//!   labshift lab ... --> control.sock --> lab                             +------- cable --- ws2 (QEMU, UEFI)
//! ```
//!
//! [`up`] runs a lab until it is told to stop; [`LabClient`] steers it from outside.

pub mod control;
pub mod frame;
pub mod journal;
pub mod namespace;
pub mod pace;
pub mod qmp;
pub mod screen;
pub mod switch;
pub mod tap;
mod wake;
pub mod workstation;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc::Receiver},
};

use labshift_model::MacAddr;
use nix::sys::signal::{SigSet, Signal};

pub use control::{ControlError, LabClient};
use journal::Journal;
use switch::{Queued, Switch};
use workstation::Workstation;
pub use workstation::{Firmware, Hardware};

/// The server's interface in the lab.
pub const SERVER_INTERFACE: &str = "lab0";

/// What a lab is made of.
pub struct Plan {
    /// Directory for logs, sockets, pictures.
    pub directory: PathBuf,
    /// The server's address in the lab.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// Megabits per second of the server's cable, each way; 0 is as fast as it goes.
    pub server_mbit: u32,
    /// Workstations, all off.
    pub machines: Vec<Hardware>,
    /// The server's command line, program first; it runs in the lab's namespaces.
    pub server: Vec<String>,
    /// Text in the server's output that means that it serves.
    pub server_ready: String,
    /// A socket of the outer network that the server takes over as systemd would hand it over.
    pub dashboard: Option<TcpListener>,
}

/// Why a lab can't be, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] namespace::NamespaceError),
    /// The server's port.
    #[error(transparent)]
    Tap(#[from] tap::ConfigureError),
    /// Anything of the system.
    #[error("{doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("the lab's server ended ({status}); its last words are in {}:\n{tail}", log.display())]
    ServerEnded {
        /// How.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
}

/// A running lab, from inside.
pub(crate) struct Lab {
    pub(crate) machines: Vec<Arc<Workstation>>,
    pub(crate) journal: Arc<Journal>,
    switch: Arc<Switch>,
    server_port: switch::PortId,
}

impl Lab {
    pub(crate) fn machine(&self, name: &str) -> Option<&Arc<Workstation>> {
        self.machines.iter().find(|m| m.hardware.name == name)
    }

    pub(crate) fn send_magic_packet(&self, mac: MacAddr) {
        let source = MacAddr::for_guest("labshift-lab");
        self.switch.forward(self.server_port, &frame::magic_frame(mac, source));
    }
}

/// Runs a lab until SIGINT, SIGTERM or a `stop` on its control socket. Must be called in the lab's namespaces, by a process that
/// [`namespace::tend`] started, before any thread is started. `ready` is called once when everything is up.
pub fn up(plan: Plan, ready: impl FnOnce()) -> Result<(), LabError> {
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        move |source| LabError::Io { doing, source }
    };
    // Blocked in every thread that starts from here on; taken one by one in `wait_for_the_end`.
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD].iter().for_each(|s| signals.add(*s));
    signals.thread_block().map_err(|e| failed("blocking signals")(e.into()))?;

    let tap = tap::create(SERVER_INTERFACE).map_err(failed("making the lab's network (/dev/net/tun)"))?;
    tap::configure(SERVER_INTERFACE, plan.address, plan.prefix)?;
    let switch = Arc::new(Switch::default());
    let (server_port, frames, cable) = switch.plug();
    cable.set_rate(plan.server_mbit);
    let output = tap.try_clone().map_err(failed("using the lab's network"))?;
    std::thread::spawn(move || to_server(output, &frames, &cable));
    let input = switch.clone();
    std::thread::spawn(move || from_server(tap, &input, server_port));

    let journal = Arc::new(Journal::create(&plan.directory).map_err(failed("making the lab's journal"))?);
    let machines = plan.machines.iter().cloned();
    let machines = machines.map(|h| Workstation::new(h, &plan.directory, &switch, &journal)).collect();
    let lab = Arc::new(Lab { machines, journal, switch, server_port });

    let log = plan.directory.join("server.log");
    let mut server = start_server(&plan, &log, &signals)?;
    wait_for_text(&mut server, &log, &plan.server_ready)?;
    let me = nix::unistd::getpid();
    let stop = move || {
        let _ = nix::sys::signal::kill(me, Signal::SIGTERM);
    };
    control::serve(&lab, &plan.directory, stop).map_err(failed("listening for lab commands"))?;
    ready();
    let end = wait_for_the_end(&signals, &mut server, &log);
    control::close(&plan.directory);
    end
}

fn start_server(plan: &Plan, log: &Path, signals: &SigSet) -> Result<Child, LabError> {
    let failed = |source| LabError::Io { doing: format!("starting the server, {:?}", plan.server), source };
    // Two write it: the server's own errors, and the copy of what it says.
    File::create(log).map_err(failed)?;
    let file = OpenOptions::new().append(true).open(log).map_err(failed)?;
    let [program, arguments @ ..] = plan.server.as_slice() else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let mut command = match &plan.dashboard {
        None => Command::new(program),
        // systemd's protocol names the receiver's pid, which only the receiver's own shell knows in time.
        Some(_) => {
            let mut shell = Command::new("sh");
            shell.args([
                "-c",
                "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" \"$@\"",
                program,
            ]);
            shell
        }
    };
    let socket = match &plan.dashboard {
        Some(listener) => Stdio::from(OwnedFd::from(listener.try_clone().map_err(failed)?)),
        None => Stdio::null(),
    };
    command.args(arguments).stdin(socket).stdout(Stdio::piped()).stderr(file);
    // A child inherits the mask; the server must hear its signals.
    signals.thread_unblock().map_err(|e| failed(e.into()))?;
    let child = command.spawn().map_err(failed);
    signals.thread_block().map_err(|e| failed(e.into()))?;
    child
}

/// Waits until the server says that it serves, and goes on copying what it says into its log.
fn wait_for_text(server: &mut Child, log: &Path, text: &str) -> Result<(), LabError> {
    let failed = |source| LabError::Io { doing: format!("writing {}", log.display()), source };
    let mut copy = OpenOptions::new().append(true).open(log).map_err(failed)?;
    let mut output =
        server.stdout.take().map(BufReader::new).ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    let mut line = vec![];
    while output.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        copy.write_all(&line).map_err(failed)?;
        if String::from_utf8_lossy(&line).contains(text) {
            std::thread::spawn(move || io::copy(&mut output, &mut copy));
            return Ok(());
        }
        line.clear();
    }
    // Nobody can hear it any more: it has ended, or is of no use.
    drop(server.kill());
    let status = server.wait().map_err(failed)?;
    Err(ended_with(status, log))
}

fn ended(server: &mut Child, log: &Path) -> Result<(), LabError> {
    let status =
        server.try_wait().map_err(|source| LabError::Io { doing: "asking for the server".into(), source })?;
    status.map_or(Ok(()), |status| Err(ended_with(status, log)))
}

fn ended_with(status: ExitStatus, log: &Path) -> LabError {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(10)..].join("\n");
    LabError::ServerEnded { status, log: log.to_owned(), tail }
}

fn wait_for_the_end(signals: &SigSet, server: &mut Child, log: &Path) -> Result<(), LabError> {
    loop {
        let signal = signals
            .wait()
            .map_err(|e| LabError::Io { doing: "waiting for signals".into(), source: e.into() })?;
        if signal != Signal::SIGCHLD {
            break;
        }
        ended(server, log)?;
    }
    // The server gets the chance to end in order; everything else ends with this process.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.id().cast_signed()), Signal::SIGTERM);
    drop(server.wait());
    Ok(())
}

fn to_server(mut tap: File, frames: &Receiver<Queued>, cable: &switch::Cable) {
    while let Ok(frame) = frames.recv() {
        cable.leave(frame.bytes.len());
        // The kernel refuses a frame while the interface is down: lost, as on a cable.
        drop(tap.write_all(&frame.bytes));
    }
}

fn from_server(mut tap: File, switch: &Switch, port: switch::PortId) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = tap.read(&mut buffer) {
        switch.forward(port, &buffer[..length]);
    }
    tracing::error!("the lab's network (descriptor {}) is gone", tap.as_raw_fd());
}
