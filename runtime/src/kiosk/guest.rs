//! The connection to one guest's display: a socket, its RFB client, and what the guest has told so far.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use super::{
    keys,
    picture::Picture,
    pointer::Report,
    rfb::{Client, Event, Fault},
    scale::Placement,
};

/// Bytes that may wait for a guest's display that does not read: after that it counts as dead.
const MOST_WAITING: usize = 1 << 20;

/// Why a guest's display is gone.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// It closed the connection.
    #[error("the guest's display closed the connection")]
    Closed,
    /// It stopped reading.
    #[error("the guest's display no longer takes input")]
    Deaf,
    /// The socket failed.
    #[error("the connection to the guest's display failed")]
    Socket(#[from] std::io::Error),
    /// It broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A guest's display.
#[derive(Debug)]
pub struct Guest {
    stream: UnixStream,
    client: Client,
    absolute: bool,
    num_lock: bool,
    held: BTreeSet<u16>,
    buffer: Vec<u8>,
}

impl Guest {
    /// Over this connected socket.
    pub fn new(socket: OwnedFd) -> std::io::Result<Self> {
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            client: Client::new(),
            absolute: true,
            num_lock: false,
            held: BTreeSet::new(),
            buffer: vec![0; 256 << 10],
        })
    }

    /// The socket, to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Bytes wait for the socket to take them.
    pub fn wants_to_write(&mut self) -> bool {
        !self.client.output().is_empty()
    }

    /// What it shows.
    pub fn picture(&self) -> &Picture {
        self.client.picture()
    }

    /// Reads what is there. A bounded amount at a time: a person's input comes in between.
    pub fn read(&mut self) -> Result<Vec<Event>, Lost> {
        let mut events = Vec::new();
        for _ in 0..32 {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(Lost::Closed),
                Ok(length) => self.client.feed(&self.buffer[..length], &mut events)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        for event in &events {
            match event {
                Event::PointerMode { absolute } => self.absolute = *absolute,
                Event::Lights(lights) => self.num_lock = lights & 2 != 0,
                _ => {}
            }
        }
        Ok(events)
    }

    /// Writes what waits, as far as the socket takes it.
    pub fn write(&mut self) -> Result<(), Lost> {
        while !self.client.output().is_empty() {
            match self.stream.write(self.client.output()) {
                Ok(0) => return Err(Lost::Closed),
                Ok(length) => drop(self.client.output().drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.client.output().len() > MOST_WAITING { Err(Lost::Deaf) } else { Ok(()) }
    }

    /// Asks for the whole picture, or for what changed.
    pub fn ask_for_update(&mut self, changes: bool) {
        self.client.ask_for_update(changes);
    }

    /// Asks for a picture as large as the screen.
    pub fn ask_for_size(&mut self, (width, height): (u32, u32)) {
        if let (Ok(width), Ok(height)) = (u16::try_from(width), u16::try_from(height)) {
            self.client.ask_for_size(width, height);
        }
    }

    /// Hands a key on.
    pub fn key(&mut self, key: u16, down: bool) {
        let Some(code) = keys::scan_code(key).filter(|_| self.client.is_connected()) else { return };
        if down {
            self.held.insert(key);
        } else if !self.held.remove(&key) {
            // It went down before this guest was shown; its release is none of the guest's business.
            return;
        }
        self.client.key(code, keys::key_symbol(key, self.num_lock), down);
    }

    /// Lets go of all keys, as when a keyboard is unplugged.
    pub fn release_keys(&mut self) {
        for key in std::mem::take(&mut self.held) {
            if let Some(code) = keys::scan_code(key) {
                self.client.key(code, keys::key_symbol(key, self.num_lock), false);
            }
        }
    }

    /// Hands the pointer on.
    pub fn point(&mut self, report: Report, placement: Placement) {
        if !self.client.is_connected() {
            return;
        }
        let (x, y) = if self.absolute {
            placement.to_guest(report.x, report.y)
        } else {
            let moved = |by: i32| (0x7fff + by.clamp(-0x7fff, 0x7fff)) as u16;
            (moved(report.dx), moved(report.dy))
        };
        self.client.pointer(x, y, report.buttons);
    }
}
