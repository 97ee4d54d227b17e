//! The kiosk: a guest's display, full screen on the workstation, without X, Wayland, Mesa or udev.
//!
//! ```text
//!  runtime --stdin: commands, sockets--> desk <--evdev-- input <-- keyboards, mice
//!          <--stdout: events------------  |  ^
//!                                         |  +--rfb-- guest's display (a connected socket; no port)
//!                          view: page | guest, warning, cursor
//!                                         v
//!                                 kms: dumb buffer on the monitor
//! ```
//!
//! It runs as a child process of the runtime: what a hostile guest might do to a decoder stays out of the daemon.
//! Pure parts: [`rfb`] (protocol), [`scale`] (geometry), [`rect`] (damage), [`keys`], `pointer`, [`page`], [`view`]
//! (layers). Parts with effects: [`kms`], [`input`], [`guest`] (socket), [`desk`] (the loop), `sys`.
//! The words on stdin and stdout are in [`control`]; the reasons in `docs/decisions/kiosk.md`.

pub mod control;
pub mod cursor;
pub mod desk;
pub mod guest;
pub mod input;
pub mod keys;
pub mod kms;
pub mod page;
pub mod picture;
pub mod pointer;
pub mod rect;
pub mod rfb;
pub mod scale;
mod sys;
pub mod text;
pub mod view;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;

use control::Status;
use desk::Desk;

/// Shows a guest, or the node's own page, on the workstation's screen.
#[derive(Debug, Parser)]
#[command(name = "labshift-runtime kiosk", version)]
struct Arguments {
    /// Name of the workstation, for its page.
    #[arg(long, default_value = "")]
    node: String,
    /// Its mode, for its page.
    #[arg(long, default_value = "")]
    mode: String,
    /// Inherited descriptor of a guest's display: a connected RFB stream socket.
    #[arg(long)]
    vnc_fd: Option<i32>,
}

/// The kiosk's whole life; `arguments` are those after the word `kiosk`. 0: asked to end, 2: wrong arguments,
/// 1: anything else, with the reason on standard error.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(std::iter::once("kiosk".into()).chain(arguments)) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiosk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let status = Status { node: arguments.node, mode: arguments.mode, ..Status::default() };
    let commands = desk::commands_of_stdin().context("opening standard input")?;
    let mut desk = Desk::new(status, commands).context("watching signals and input devices")?;
    if let Some(number) = arguments.vnc_fd {
        let display =
            sys::inherited(number).with_context(|| format!("taking over descriptor {number} (--vnc-fd)"))?;
        desk.show(display).context("connecting to the guest's display")?;
    }
    desk.run().context("serving the screen")
}
