//! The kiosk's process: commands in, events out, one JSON object per line.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::Stdio,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};

use super::Page;

/// What the kiosk is told.
#[derive(Debug, Serialize)]
#[serde(tag = "show", rename_all = "kebab-case")]
pub(super) enum Command {
    Status {
        node: String,
        mode: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    Guest,
    Warning {
        text: String,
    },
    NoWarning,
}

impl Command {
    pub(super) fn status(page: &Page) -> Self {
        let Page { node, mode, line, hint } = page.clone();
        Command::Status { node, mode, line, hint }
    }
}

/// What the kiosk tells.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Event {
    Screen { card: String, width: u32, height: u32 },
    NoScreen { reason: String },
    Connected { name: String, width: u32, height: u32 },
    FirstFrame,
    Input,
    Closed { reason: String },
    Trouble { reason: String },
}

/// One life of the kiosk.
pub(super) struct Kiosk {
    child: Child,
    commands: UnixStream,
    events: Lines<BufReader<ChildStdout>>,
}

impl Kiosk {
    /// Starts this same program as the kiosk.
    pub(super) fn spawn(page: &Page) -> Result<Self, String> {
        let start = || -> io::Result<Self> {
            let (commands, theirs) = UnixStream::pair()?;
            // A kiosk that hangs must not hang the daemon.
            commands.set_nonblocking(true)?;
            let mut child = tokio::process::Command::new(std::env::current_exe()?)
                .args(["kiosk", "--node", &page.node, "--mode", &page.mode])
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(Kiosk { child, commands, events: BufReader::new(stdout).lines() })
        };
        start().map_err(|e| format!("starting the kiosk: {e}"))
    }

    /// Sends a command. One that does not get through is logged: the kiosk's end is noticed by [`Kiosk::next`].
    pub(super) fn send(&mut self, command: &Command) {
        if let Err(error) = self.write(command, None) {
            tracing::warn!(%error, "telling the kiosk");
        }
    }

    /// Hands over a guest's screen.
    pub(super) fn send_guest(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.write(&Command::Guest, Some(socket))
    }

    fn write(&mut self, command: &Command, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let descriptors = socket.map(|s| [s.as_raw_fd()]);
        let control: Vec<_> = descriptors.iter().map(|d| ControlMessage::ScmRights(d)).collect();
        let parts = [IoSlice::new(&line)];
        let sent = sendmsg::<()>(self.commands.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        // Commands are far smaller than the socket's buffer: part of one means that nobody reads.
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next event, or how the kiosk ended.
    pub(super) async fn next(&mut self) -> Result<Event, String> {
        loop {
            match self.events.next_line().await {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(event) => return Ok(event),
                    Err(error) => tracing::warn!(%error, line, "the kiosk says something else"),
                },
                _ => {
                    let status = self.child.wait().await;
                    return Err(status.map_or_else(|e| e.to_string(), |s| s.to_string()));
                }
            }
        }
    }

    /// Ends it: its standard input ends.
    pub(super) async fn stop(self) {
        let Kiosk { mut child, commands, events } = self;
        drop((commands, events));
        let _ = timeout(Duration::from_secs(3), child.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_kiosk() {
        let page =
            Page { node: "ws-01".into(), mode: "compute".into(), line: Some("Works".into()), hint: None };
        let text = serde_json::to_string(&Command::status(&page)).unwrap();
        assert_eq!(text, r#"{"show":"status","node":"ws-01","mode":"compute","line":"Works"}"#);
        assert_eq!(serde_json::to_string(&Command::NoWarning).unwrap(), r#"{"show":"no-warning"}"#);
        let event: Event = serde_json::from_str(r#"{"event":"first-frame"}"#).unwrap();
        assert_eq!(event, Event::FirstFrame);
    }
}
