//! What the runtime tells the kiosk, and what the kiosk tells back: one JSON object a line.
//!
//! Commands come on the kiosk's standard input, a Unix stream socket, so that the guest's display (a connected
//! socket) can ride along with [`Command::Guest`]. Events leave on its standard output.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};

/// What the screen shall show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "show", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The node's own page; a guest's connection is dropped.
    Status(Status),
    /// The guest whose display is attached to the message.
    Guest,
    /// A banner over whatever is shown.
    Warning {
        /// One short sentence.
        text: String,
    },
    /// No banner.
    NoWarning,
}

/// The node's own page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Name of the workstation.
    pub node: String,
    /// Its mode, one word.
    pub mode: String,
    /// What it does, one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub line: String,
    /// What the person in front of it may do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

/// What the kiosk saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A screen is taken.
    Screen {
        /// Its device.
        card: String,
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// There is none yet; the kiosk keeps looking.
    NoScreen {
        /// Why not.
        reason: String,
    },
    /// The handshake with a guest's display is done.
    Connected {
        /// Name of the display.
        name: String,
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// A whole picture of the guest is on the screen.
    FirstFrame,
    /// A person touched keyboard or mouse; at most once a second.
    Input,
    /// The guest's display is gone.
    Closed {
        /// Why.
        reason: String,
    },
    /// Something to log; the kiosk goes on.
    Trouble {
        /// What.
        reason: String,
    },
}

/// The runtime's end of a kiosk's standard input.
#[derive(Debug)]
pub struct Sender {
    stream: UnixStream,
}

/// A new pair: the runtime's end, and what becomes the kiosk's standard input.
pub fn channel() -> io::Result<(Sender, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((Sender { stream: ours }, theirs.into()))
}

impl Sender {
    /// Sends a command. For a guest use [`Sender::show_guest`].
    pub fn send(&self, command: &Command) -> io::Result<()> {
        self.send_with(command, None)
    }

    /// Shows the guest behind a connected RFB socket.
    pub fn show_guest(&self, display: BorrowedFd<'_>) -> io::Result<()> {
        self.send_with(&Command::Guest, Some(display))
    }

    fn send_with(&self, command: &Command, attached: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let fds = attached.map(|fd| [fd.as_raw_fd()]);
        let attach = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        // A line is far smaller than a socket's buffer, so the kernel takes it whole; a kiosk that hangs must not hang us.
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&line)],
            attach.as_slice(),
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// Longest command line, in bytes.
const LONGEST_LINE: usize = 16 << 10;

/// Cuts a stream of bytes into commands.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes bytes; gives each whole line as a command, or the reason why it is none.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Result<Command, String>> {
        self.rest.extend_from_slice(bytes);
        let mut commands = Vec::new();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if !line.trim_ascii().is_empty() {
                commands.push(serde_json::from_slice(&line).map_err(|e| format!("not a kiosk command: {e}")));
            }
        }
        if self.rest.len() > LONGEST_LINE {
            self.rest.clear();
            commands.push(Err(format!("a command longer than {LONGEST_LINE} bytes")));
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn lines_become_commands() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(br#"{"show":"no-warn"#), []);
        let got =
            lines.feed(b"ing\"}\n\n{\"show\":\"guest\"}\nnonsense\n{\"show\":\"warning\",\"text\":\"hi\"}\n");
        assert_eq!(got[0], Ok(Command::NoWarning));
        assert_eq!(got[1], Ok(Command::Guest));
        assert!(got[2].as_ref().is_err_and(|e| e.contains("line 1")));
        assert_eq!(got[3], Ok(Command::Warning { text: "hi".into() }));
        let status = br#"{"show":"status","node":"ws-01","mode":"compute"}"#;
        let wanted = Status { node: "ws-01".into(), mode: "compute".into(), ..Status::default() };
        assert_eq!(lines.feed(&[&status[..], b"\n"].concat()), [Ok(Command::Status(wanted))]);
        assert!(lines.feed(&[b'x'; LONGEST_LINE + 1])[0].is_err());
    }

    #[test]
    fn a_display_rides_along() {
        let (sender, theirs) = channel().unwrap();
        let (display, _other) = UnixStream::pair().unwrap();
        sender.show_guest(display.as_fd()).unwrap();
        sender.send(&Command::NoWarning).unwrap();
        let mut receiver = super::super::sys::Receiver::new(theirs);
        let (bytes, fds) = receiver.receive().unwrap();
        assert_eq!(bytes, b"{\"show\":\"guest\"}\n");
        assert_eq!(fds.len(), 1);
        assert_eq!(receiver.receive().unwrap().0, b"{\"show\":\"no-warning\"}\n");
        drop(sender);
        assert_eq!(receiver.receive().unwrap().0, b"");
    }
}
