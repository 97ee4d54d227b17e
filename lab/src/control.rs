//! How a running lab is steered: a unix socket in its directory, one JSON request and one JSON answer per line.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use labshift_model::MacAddr;
use serde::{Deserialize, Serialize};

use crate::{
    Lab,
    journal::Happening,
    workstation::{Hardware, Power},
};

/// Name of the socket in a lab's directory.
const SOCKET: &str = "control.sock";

/// What may be asked of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// All workstations.
    Status,
    /// Press a power button.
    Press {
        /// Workstation.
        machine: String,
    },
    /// Pull a plug.
    Unplug {
        /// Workstation.
        machine: String,
    },
    /// Cut a cable.
    Cut {
        /// Workstation.
        machine: String,
    },
    /// Mend a cable.
    Mend {
        /// Workstation.
        machine: String,
    },
    /// Make a cable bad.
    Faults {
        /// Workstation.
        machine: String,
        /// Frames of a thousand that are lost, each way.
        loss_per_mille: u32,
        /// Milliseconds that frames to the workstation take longer.
        delay_ms: u64,
    },
    /// Send a magic packet from the server's port.
    Wake {
        /// Whom it is for.
        mac: MacAddr,
    },
    /// Save a picture of a screen.
    Screenshot {
        /// Workstation.
        machine: String,
        /// Absolute path of the PNG file.
        file: PathBuf,
    },
    /// Press a key.
    Key {
        /// Workstation.
        machine: String,
        /// QEMU's name of the key.
        key: String,
    },
    /// Wait for an event.
    Wait {
        /// Only events after this number.
        since: usize,
        /// Workstation.
        machine: String,
        /// Kind of event.
        event: String,
        /// Text that its detail must hold.
        detail: String,
        /// Hang guard in seconds.
        guard: u64,
    },
    /// End the lab.
    Stop,
}

/// A lab's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// Done.
    Ok,
    /// Not done.
    Failed {
        /// Why.
        reason: String,
    },
    /// All workstations.
    Status {
        /// One each.
        machines: Vec<MachineStatus>,
    },
    /// The event that was waited for.
    Happened {
        /// The event.
        happening: Happening,
    },
}

/// One workstation of a running lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// What it is made of.
    pub hardware: Hardware,
    /// How it is doing.
    pub power: Power,
}

/// A lab can't be steered.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no lab.
    #[error("no lab runs in {}; start one with `labshift lab up --output {}`", directory.display(), directory.display())]
    NoLab {
        /// Where one was looked for.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("talking to the lab")]
    Io(#[from] io::Error),
    /// The lab refused.
    #[error("{0}")]
    Refused(String),
}

/// A running lab, from outside.
#[derive(Debug, Clone)]
pub struct LabClient {
    directory: PathBuf,
}

impl LabClient {
    /// The lab whose `--output` is this directory.
    pub fn new(directory: &Path) -> Self {
        LabClient { directory: directory.to_owned() }
    }

    /// True when a lab runs there.
    pub fn is_up(&self) -> bool {
        self.status().is_ok()
    }

    /// Asks one thing.
    pub fn ask(&self, request: &Request) -> Result<Answer, ControlError> {
        let no_lab = |source| ControlError::NoLab { directory: self.directory.clone(), source };
        // Through the directory's descriptor: a socket's path may have 107 bytes only.
        let directory = File::open(&self.directory).map_err(no_lab)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        let mut stream = UnixStream::connect(path).map_err(no_lab)?;
        writeln!(stream, "{}", serde_json::to_string(request).map_err(io::Error::from)?)?;
        stream.shutdown(Shutdown::Write)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        match serde_json::from_str(&line).map_err(io::Error::from)? {
            Answer::Failed { reason } => Err(ControlError::Refused(reason)),
            answer => Ok(answer),
        }
    }

    /// All workstations.
    pub fn status(&self) -> Result<Vec<MachineStatus>, ControlError> {
        match self.ask(&Request::Status)? {
            Answer::Status { machines } => Ok(machines),
            other => Err(ControlError::Refused(format!("unexpected answer {other:?}"))),
        }
    }

    /// Waits for the first event of a workstation after number `since` whose detail holds a text.
    pub fn wait(
        &self,
        since: usize,
        machine: &str,
        event: &str,
        detail: &str,
        guard: Duration,
    ) -> Result<Happening, ControlError> {
        let request = Request::Wait {
            since,
            machine: machine.to_owned(),
            event: event.to_owned(),
            detail: detail.to_owned(),
            guard: guard.as_secs(),
        };
        match self.ask(&request)? {
            Answer::Happened { happening } => Ok(happening),
            other => Err(ControlError::Refused(format!("unexpected answer {other:?}"))),
        }
    }
}

/// Answers requests until the process ends; `stop` is called when somebody asks for the end.
pub(crate) fn serve(
    lab: &Arc<Lab>,
    directory: &Path,
    stop: impl Fn() + Send + Sync + 'static,
) -> io::Result<()> {
    let held = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd());
    drop(fs::remove_file(directory.join(SOCKET)));
    let listener = UnixListener::bind(path)?;
    let (lab, stop) = (lab.clone(), Arc::new(stop));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (lab, stop) = (lab.clone(), stop.clone());
            std::thread::spawn(move || drop(converse(&lab, &stream, &*stop)));
        }
    });
    Ok(())
}

/// Removes the socket: nobody answers there any more.
pub(crate) fn close(directory: &Path) {
    drop(fs::remove_file(directory.join(SOCKET)));
}

fn converse(lab: &Lab, stream: &UnixStream, stop: &dyn Fn()) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        let answer = match serde_json::from_str::<Request>(&line?) {
            Err(e) => Answer::Failed { reason: format!("not a request: {e}") },
            Ok(Request::Stop) => {
                stop();
                Answer::Ok
            }
            Ok(request) => answer(lab, request).unwrap_or_else(|reason| Answer::Failed { reason }),
        };
        let mut writer = stream;
        writeln!(writer, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

fn answer(lab: &Lab, request: Request) -> Result<Answer, String> {
    let machine =
        |name: &str| lab.machine(name).ok_or_else(|| format!("this lab has no workstation \"{name}\""));
    let done = |result: Result<(), crate::workstation::WorkstationError>| match result {
        Ok(()) => Ok(Answer::Ok),
        Err(e) => Err(match std::error::Error::source(&e) {
            Some(source) => format!("{e}: {source}"),
            None => e.to_string(),
        }),
    };
    match request {
        Request::Status => Ok(Answer::Status {
            machines: lab
                .machines
                .iter()
                .map(|m| MachineStatus { hardware: m.hardware.clone(), power: m.power() })
                .collect(),
        }),
        Request::Press { machine: name } => done(machine(&name)?.press()),
        Request::Unplug { machine: name } => done(machine(&name)?.unplug()),
        Request::Cut { machine: name } => done(machine(&name)?.set_cable(true)),
        Request::Mend { machine: name } => done(machine(&name)?.set_cable(false)),
        Request::Faults { machine: name, loss_per_mille, delay_ms } => {
            machine(&name)?.cable.set_faults(loss_per_mille, Duration::from_millis(delay_ms));
            Ok(Answer::Ok)
        }
        Request::Wake { mac } => {
            lab.send_magic_packet(mac);
            Ok(Answer::Ok)
        }
        Request::Screenshot { machine: name, file } => done(machine(&name)?.screenshot(&file)),
        Request::Key { machine: name, key } => done(machine(&name)?.press_key(&key)),
        Request::Wait { since, machine: name, event, detail, guard } => {
            machine(&name)?;
            lab.journal
                .wait(since, Duration::from_secs(guard), |h| {
                    h.machine == name && h.event == event && h.detail.contains(&detail)
                })
                .map(|happening| Answer::Happened { happening })
                .ok_or_else(|| format!("waited {guard} s in vain for {event} \"{detail}\" of {name}"))
        }
        Request::Stop => Ok(Answer::Ok),
    }
}
