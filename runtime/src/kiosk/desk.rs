//! What a person sits at: one screen, its keyboards and pointers, and the guest or page that is shown.
//!
//! ```text
//!            +----------- no screen: look again each second ------------+
//!            v                                                          |
//!  commands -> page -- show guest, first lit picture --> guest -- closed, status --> page
//!                              warning: a banner over both
//! ```
//!
//! One thread waits for all of them together and then does what there is to do; drawing comes last, once.

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{
    control::{Command, Event, Lines, Status},
    guest::{Guest, Lost},
    input::{Act, Devices},
    kms::{QuietConsole, Screen},
    picture::Picture,
    pointer::Pointer,
    rfb,
    sys::Receiver,
    view::View,
};

/// How often a missing screen or input directory is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often the monitor is asked whether it is still there.
const CHECK_MONITOR: Duration = Duration::from_secs(10);
/// Input is told to the runtime at most this often.
const TELL_INPUT: Duration = Duration::from_secs(1);
/// A picture with less light than this is a machine that starts: firmware's or kernel's text on black.
const LIT_PERCENT: u32 = 10;
/// After this long a guest is shown whatever its picture is: a person can then see what it hangs at.
const SHOW_ANYWAY: Duration = Duration::from_secs(80);
/// The page's size while there is no screen.
const UNSEEN: (u32, u32) = (1024, 768);

/// The desk with everything on it.
pub struct Desk {
    commands: Receiver,
    lines: Lines,
    fds: Vec<OwnedFd>,
    signals: SignalFd,
    devices: Devices,
    pointer: Pointer,
    screen: Option<Screen>,
    console: Option<QuietConsole>,
    view: View,
    guest: Option<Guest>,
    first_frame: bool,
    /// When the first pixels came of a guest that is not shown yet.
    waiting: Option<Instant>,
    told: Told,
}

/// What was told the runtime, so that it is not told again.
#[derive(Debug, Default)]
struct Told {
    no_screen: bool,
    input: Option<Instant>,
    looked: Option<Instant>,
}

impl Desk {
    /// With the node's first page, commands from `commands`.
    pub fn new(status: Status, commands: OwnedFd) -> io::Result<Self> {
        let mut ends = SigSet::empty();
        ends.add(Signal::SIGTERM);
        ends.add(Signal::SIGINT);
        ends.thread_block()?;
        let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self {
            commands: Receiver::new(commands),
            lines: Lines::default(),
            fds: Vec::new(),
            signals,
            devices: Devices::new(Path::new("/dev/input"))?,
            pointer: Pointer::new(UNSEEN.0, UNSEEN.1),
            screen: None,
            console: None,
            view: View::new(UNSEEN.0, UNSEEN.1, status),
            guest: None,
            first_frame: false,
            waiting: None,
            told: Told::default(),
        })
    }

    /// Works until a signal or the end of the commands.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            self.look_for_screen()?;
            self.reveal();
            self.draw()?;
            let ready = self.wait()?;
            if ready.signal {
                return Ok(());
            }
            if ready.input {
                self.devices.rescan();
            }
            self.take_input(&ready.devices)?;
            if ready.guest {
                self.read_guest()?;
            }
            if ready.command && !self.take_commands()? {
                return Ok(());
            }
            if let Some(guest) = &mut self.guest
                && let Err(lost) = guest.write()
            {
                self.lose_guest(&lost)?;
            }
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let writes = self.guest.as_mut().is_some_and(Guest::wants_to_write);
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        fds.push(readable(self.signals.as_fd()));
        fds.push(readable(self.commands.as_fd()));
        fds.push(readable(self.devices.watch()));
        fds.extend(self.devices.fds().map(readable));
        let devices = 3..fds.len();
        if let Some(guest) = &self.guest {
            let flags = if writes { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
            fds.push(PollFd::new(guest.fd(), flags));
        }
        let pause = match (&self.screen, self.devices.is_watching()) {
            (Some(_), true) if self.waiting.is_none() => CHECK_MONITOR,
            _ => LOOK_AGAIN,
        };
        let pause = PollTimeout::try_from(pause).unwrap_or(PollTimeout::NONE);
        match poll(&mut fds, pause) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        Ok(Ready {
            signal: ready(&fds[0]),
            command: ready(&fds[1]),
            input: ready(&fds[2]) || !self.devices.is_watching(),
            devices: fds[devices.clone()].iter().map(ready).collect(),
            guest: fds.get(devices.end).is_some_and(ready),
        })
    }

    /// Takes a screen when there is none, and lets go of one whose monitor is gone.
    fn look_for_screen(&mut self) -> io::Result<()> {
        let pause = if self.screen.is_some() { CHECK_MONITOR } else { LOOK_AGAIN };
        if self.told.looked.is_some_and(|at| at.elapsed() < pause) {
            return Ok(());
        }
        self.told.looked = Some(Instant::now());
        if self.screen.as_ref().is_some_and(|screen| !screen.is_current()) {
            self.screen = None;
        }
        if self.screen.is_some() {
            return Ok(());
        }
        match Screen::take(Path::new("/dev/dri")) {
            Ok(screen) => {
                self.told.no_screen = false;
                let (width, height) = screen.size();
                let card = screen.card().display().to_string();
                self.screen = Some(screen);
                self.view.set_size(width, height);
                self.pointer.set_size(width, height);
                if self.console.is_none() {
                    match QuietConsole::take() {
                        Ok(console) => self.console = Some(console),
                        Err(error) => tell(&Event::Trouble {
                            reason: format!("the text console may draw over the picture: {error}"),
                        })?,
                    }
                }
                if let Some(guest) = self.guest.as_mut().filter(|_| self.first_frame) {
                    guest.ask_for_size((width, height));
                }
                tell(&Event::Screen { card, width, height })
            }
            Err(error) if !self.told.no_screen => {
                self.told.no_screen = true;
                tell(&Event::NoScreen { reason: chain(&error) })
            }
            Err(_) => Ok(()),
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        if !self.view.is_damaged() {
            return Ok(());
        }
        let Some(screen) = &mut self.screen else { return Ok(()) };
        let parts = self.view.take_damage();
        let nothing = Picture::default();
        let picture = self.guest.as_ref().map_or(&nothing, Guest::picture);
        if let Err(error) = screen.draw(&self.view, picture, &parts) {
            tell(&Event::Trouble { reason: chain(&error) })?;
            self.screen = None;
            return Ok(());
        }
        if self.view.guest().is_some() && !self.first_frame {
            self.first_frame = true;
            tell(&Event::FirstFrame)?;
        }
        Ok(())
    }

    fn take_input(&mut self, ready: &[bool]) -> io::Result<()> {
        let mut acts = Vec::new();
        if self.devices.read(ready, &mut acts) {
            // A device is gone with its keys down: nothing will say that they went up.
            self.pointer.release();
            if let Some(guest) = &mut self.guest {
                guest.release_keys();
            }
        }
        if acts.iter().any(|a| *a != Act::Done) && self.told.input.is_none_or(|at| at.elapsed() >= TELL_INPUT)
        {
            self.told.input = Some(Instant::now());
            tell(&Event::Input)?;
        }
        for act in acts {
            match act {
                Act::Key { key, down } => {
                    if let Some(guest) = self.guest.as_mut().filter(|_| self.view.guest().is_some()) {
                        guest.key(key, down);
                    }
                }
                Act::Point(motion) => self.pointer.take(motion),
                Act::Done => {
                    for report in self.pointer.reports() {
                        self.view.move_pointer(report.x, report.y);
                        if let (Some(guest), Some(placement)) = (&mut self.guest, self.view.guest()) {
                            guest.point(report, placement);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// False when the runtime has closed its end.
    fn take_commands(&mut self) -> io::Result<bool> {
        let (bytes, fds) = self.commands.receive()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        self.fds.extend(fds);
        for command in self.lines.feed(&bytes) {
            match command {
                Ok(Command::Status(status)) => {
                    self.guest = None;
                    self.waiting = None;
                    self.view.show_status(status);
                }
                Ok(Command::Guest) if self.fds.is_empty() => {
                    tell(&Event::Trouble { reason: "a guest without its display's socket".into() })?;
                }
                Ok(Command::Guest) => {
                    let display = self.fds.remove(0);
                    self.show(display)?;
                }
                Ok(Command::Warning { text }) => self.view.warn(&text),
                Ok(Command::NoWarning) => self.view.stop_warning(),
                Err(reason) => tell(&Event::Trouble { reason })?,
            }
        }
        Ok(true)
    }

    /// Connects to a guest's display; the page stays until its first picture is whole.
    pub fn show(&mut self, display: OwnedFd) -> io::Result<()> {
        self.view.show_page();
        self.first_frame = false;
        self.waiting = None;
        self.guest = Some(Guest::new(display)?);
        Ok(())
    }

    fn read_guest(&mut self) -> io::Result<()> {
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let events = match guest.read() {
            Ok(events) => events,
            Err(lost) => return self.lose_guest(&lost),
        };
        let size = |guest: &Guest| (guest.picture().width(), guest.picture().height());
        for event in events {
            match event {
                rfb::Event::Connected { name } => {
                    let (width, height) = size(guest);
                    guest.ask_for_update(false);
                    tell(&Event::Connected { name, width, height })?;
                }
                rfb::Event::SizeOnRequest => {
                    if self.screen.is_some() && size(guest) != self.view.size() {
                        guest.ask_for_size(self.view.size());
                    }
                }
                rfb::Event::Resized => {
                    if self.view.guest().is_some() {
                        self.view.show_guest(size(guest));
                    }
                    guest.ask_for_update(false);
                }
                rfb::Event::Damaged(rect) => self.view.guest_changed(rect),
                rfb::Event::Cursor(cursor) => self.view.set_cursor(cursor),
                rfb::Event::Lights(lights) => self.devices.set_lights(lights),
                rfb::Event::PointerMode { .. } => {}
                rfb::Event::UpdateDone { pixels } => {
                    if pixels && self.view.guest().is_none() {
                        self.waiting.get_or_insert_with(Instant::now);
                    }
                    guest.ask_for_update(true);
                }
            }
        }
        Ok(())
    }

    /// Shows a guest that has waited behind the page, once its picture is worth it.
    fn reveal(&mut self) {
        let (Some(since), Some(guest)) = (self.waiting, &self.guest) else { return };
        let picture = guest.picture();
        if picture.lit_percent() >= LIT_PERCENT || since.elapsed() >= SHOW_ANYWAY {
            self.waiting = None;
            self.view.show_guest((picture.width(), picture.height()));
        }
    }

    fn lose_guest(&mut self, lost: &Lost) -> io::Result<()> {
        self.guest = None;
        self.waiting = None;
        self.view.show_page();
        tell(&Event::Closed { reason: chain(lost) })
    }
}

/// What poll found.
struct Ready {
    signal: bool,
    command: bool,
    input: bool,
    devices: Vec<bool>,
    guest: bool,
}

fn tell(event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// An error with its causes, for one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The process's standard input as a descriptor of its own.
pub fn commands_of_stdin() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    let fd: BorrowedFd<'_> = stdin.as_fd();
    fd.try_clone_to_owned()
}
