//! The kiosk's process: commands in, events out, one JSON object per line.

use std::{io, os::fd::BorrowedFd, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};

use crate::kiosk::control::{self, Command, Event, Sender, Status};

/// One life of the kiosk.
pub(super) struct Kiosk {
    child: Child,
    commands: Sender,
    events: Lines<BufReader<ChildStdout>>,
}

impl Kiosk {
    /// Starts this same program as the kiosk.
    pub(super) fn spawn(page: &Status) -> Result<Self, String> {
        let start = || -> io::Result<Self> {
            let (commands, theirs) = control::channel()?;
            let mut child = tokio::process::Command::new(std::env::current_exe()?)
                .args(["kiosk", "--node", &page.node, "--mode", &page.mode])
                .stdin(Stdio::from(theirs))
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
        if let Err(error) = self.commands.send(command) {
            tracing::warn!(%error, "telling the kiosk");
        }
    }

    /// Hands over a guest's screen.
    pub(super) fn send_guest(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.commands.show_guest(socket)
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
