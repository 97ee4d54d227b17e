//! The client's side of RFB 3.8 (RFC 6143), with what QEMU adds to it. Pure: bytes in, picture and events out.
//!
//! ```text
//! version -> security types -> security result -> server init -> messages
//!                                                                 |-> update header -> rectangle header -> payload -+
//!                                                                 |        ^------------- next rectangle -----------+
//!                                                                 |-> colour map, clipboard: read and thrown away
//! ```
//!
//! The server is a guest's display: whoever owns the guest may write what he likes. Every length is checked against a
//! limit before anything is stored, and a broken stream ends the connection with a [`Fault`].
//! QEMU's additions: extended key events (-258), absolute pointer (-257), lock lights (-261); besides them desktop
//! size (-223, -308) and cursor shape (-239).

mod reader;
mod requests;

use super::{cursor::Cursor, picture::Picture, rect::Rect};
use reader::Reader;

/// Pixels of the largest picture taken (8K).
pub const MOST_PIXELS: u64 = 7680 * 4320;
/// Pixels across or down of the largest cursor.
pub const MOST_CURSOR: u32 = 256;
const MOST_NAME: u32 = 4096;
const MOST_REASON: u32 = 4096;
const MOST_SCREENS: u8 = 16;
const MOST_SKIPPED: u32 = 16 << 20;

const RAW: i32 = 0;
const COPY_RECT: i32 = 1;
const DESKTOP_SIZE: i32 = -223;
const RICH_CURSOR: i32 = -239;
const POINTER_MODE: i32 = -257;
const EXTENDED_KEYS: i32 = -258;
const LOCK_LIGHTS: i32 = -261;
const EXTENDED_DESKTOP_SIZE: i32 = -308;

/// Why a server is no longer listened to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// First bytes are not RFB 3.8.
    #[error("the guest's display does not speak RFB 3.8")]
    Version,
    /// It wants a password or encryption.
    #[error("the guest's display offers no open security type; open it with SKIPAUTH")]
    Security,
    /// It refused us.
    #[error("the guest's display refused: {0}")]
    Refused(String),
    /// A length or position that can't be true.
    #[error("the guest's display sent {what} out of bounds ({value})")]
    Bounds {
        /// Of what.
        what: &'static str,
        /// What was sent.
        value: u64,
    },
    /// A message or encoding that was not agreed on.
    #[error("the guest's display sent {what} {number}, which was not asked for")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// Its number.
        number: i64,
    },
}

/// What a server's bytes meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is over; the picture has its first size.
    Connected {
        /// Name of the desktop.
        name: String,
    },
    /// The picture has a new size and is black.
    Resized,
    /// The server takes [`Client::ask_for_size`].
    SizeOnRequest,
    /// These pixels changed.
    Damaged(Rect),
    /// The cursor has a new shape; `None` hides it.
    Cursor(Option<Cursor>),
    /// The pointer is taken as a place (true) or as movements (false).
    PointerMode {
        /// True for places.
        absolute: bool,
    },
    /// The guest's lock lights: bit 0 scroll, bit 1 num, bit 2 caps.
    Lights(u8),
    /// One update is complete.
    UpdateDone {
        /// It held pixels.
        pixels: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Version,
    SecurityTypes,
    SecurityResult,
    Reason,
    Init,
    Message,
    Rectangle,
    RawRows { rect: Rect, done: u32 },
    CopyFrom { rect: Rect },
    CursorShape { rect: Rect },
    Screens { size: (u32, u32), reason: u16, status: u16 },
    Light,
    Skip { bytes: u32 },
}

/// One connection to a guest's display.
#[derive(Debug)]
pub struct Client {
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    picture: Picture,
    rectangles: u16,
    pixels: bool,
    extended_keys: bool,
    resizable: bool,
    screen: (u32, u32),
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// Before the first byte.
    pub fn new() -> Self {
        Self {
            state: State::Version,
            input: Vec::new(),
            output: Vec::new(),
            picture: Picture::default(),
            rectangles: 0,
            pixels: false,
            extended_keys: false,
            resizable: false,
            screen: (0, 0),
        }
    }

    /// What the guest shows.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Bytes for the server; the caller removes what it could send.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The handshake is over.
    pub fn is_connected(&self) -> bool {
        !matches!(
            self.state,
            State::Version | State::SecurityTypes | State::SecurityResult | State::Reason | State::Init
        )
    }

    /// Takes bytes of the server, however they are cut. After a fault the client is of no further use.
    pub fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Fault> {
        // Taken out, so that the parser may borrow from it while it changes the rest.
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut reader = Reader { bytes: &input, at: 0 };
        let result = loop {
            let before = (self.state, reader.at);
            let start = reader.at;
            match self.step(&mut reader, events) {
                Ok(Some(())) => {
                    if (self.state, reader.at) == before {
                        break Ok(());
                    }
                }
                Ok(None) => {
                    reader.at = start;
                    break Ok(());
                }
                Err(fault) => break Err(fault),
            }
        };
        let used = reader.at;
        input.drain(..used);
        self.input = input;
        result
    }

    /// One step of the parser; `None` when it needs more bytes.
    fn step(&mut self, r: &mut Reader<'_>, events: &mut Vec<Event>) -> Result<Option<()>, Fault> {
        match self.state {
            State::Message => self.message(r, events),
            State::Rectangle => self.rectangle(r, events),
            State::RawRows { rect, done } => Ok(self.raw_rows(r, rect, done, events)),
            State::CopyFrom { rect } => self.copy_rect(r, rect, events),
            State::CursorShape { rect } => Ok(self.cursor(r, rect, events)),
            State::Screens { size, reason, status } => self.screens(r, size, reason, status, events),
            State::Light => {
                let Some(lights) = r.u8() else { return Ok(None) };
                events.push(Event::Lights(lights & 7));
                self.next_rectangle(events);
                Ok(Some(()))
            }
            State::Skip { bytes } => {
                let skipped = r.skip(bytes);
                self.state = match bytes - skipped {
                    0 => State::Message,
                    left => State::Skip { bytes: left },
                };
                Ok(Some(()))
            }
            _ => self.handshake(r, events),
        }
    }

    fn handshake(&mut self, r: &mut Reader<'_>, events: &mut Vec<Event>) -> Result<Option<()>, Fault> {
        match self.state {
            State::Version => {
                let Some(version) = r.take(12) else { return Ok(None) };
                if version != b"RFB 003.008\n" {
                    return Err(Fault::Version);
                }
                self.output.extend_from_slice(version);
                self.state = State::SecurityTypes;
            }
            State::SecurityTypes => {
                let Some(count) = r.u8() else { return Ok(None) };
                if count == 0 {
                    self.state = State::Reason;
                    return Ok(Some(()));
                }
                let Some(types) = r.take(count.into()) else { return Ok(None) };
                if !types.contains(&1) {
                    return Err(Fault::Security);
                }
                self.output.push(1);
                self.state = State::SecurityResult;
            }
            State::SecurityResult => {
                let Some(result) = r.u32() else { return Ok(None) };
                if result != 0 {
                    self.state = State::Reason;
                    return Ok(Some(()));
                }
                // Shared: an admin's viewer and the kiosk may look at one guest.
                self.output.push(1);
                self.state = State::Init;
            }
            State::Reason => {
                let Some(length) = r.u32() else { return Ok(None) };
                let length = bounded("a reason", length, MOST_REASON)?;
                let Some(reason) = r.take(length as usize) else { return Ok(None) };
                return Err(Fault::Refused(printable(reason)));
            }
            _ => {
                let (Some(width), Some(height)) = (r.u16(), r.u16()) else { return Ok(None) };
                let Some(length) = r.take(16).and_then(|_its_pixel_format| r.u32()) else { return Ok(None) };
                let length = bounded("a name", length, MOST_NAME)?;
                let Some(name) = r.take(length as usize) else { return Ok(None) };
                let name = printable(name);
                self.picture = blank(width, height)?;
                self.greet();
                self.state = State::Message;
                events.push(Event::Connected { name });
            }
        }
        Ok(Some(()))
    }

    fn message(&mut self, r: &mut Reader<'_>, events: &mut Vec<Event>) -> Result<Option<()>, Fault> {
        let Some(kind) = r.u8() else { return Ok(None) };
        match kind {
            0 => {
                let Some(count) = r.take(1).and_then(|_padding| r.u16()) else { return Ok(None) };
                self.pixels = false;
                self.rectangles = count;
                self.state = State::Rectangle;
                if count == 0 {
                    self.next_rectangle(events);
                }
            }
            1 => {
                let Some(count) = r.take(3).and_then(|_first_colour| r.u16()) else { return Ok(None) };
                self.state = State::Skip { bytes: u32::from(count) * 6 };
            }
            2 => {}
            3 => {
                let Some(length) = r.take(3).and_then(|_padding| r.u32()) else { return Ok(None) };
                self.state = State::Skip { bytes: bounded("a clipboard", length, MOST_SKIPPED)? };
            }
            other => return Err(Fault::Unknown { what: "message", number: other.into() }),
        }
        Ok(Some(()))
    }

    fn rectangle(&mut self, r: &mut Reader<'_>, events: &mut Vec<Event>) -> Result<Option<()>, Fault> {
        let (Some(x), Some(y), Some(w), Some(h)) = (r.u16(), r.u16(), r.u16(), r.u16()) else {
            return Ok(None);
        };
        let Some(encoding) = r.u32() else { return Ok(None) };
        let rect = Rect::new(x.into(), y.into(), w.into(), h.into());
        match encoding.cast_signed() {
            RAW => {
                self.state = State::RawRows { rect: self.inside(rect)?, done: 0 };
                return Ok(Some(()));
            }
            COPY_RECT => {
                self.state = State::CopyFrom { rect: self.inside(rect)? };
                return Ok(Some(()));
            }
            RICH_CURSOR => {
                if rect.width > MOST_CURSOR || rect.height > MOST_CURSOR {
                    return Err(Fault::Bounds {
                        what: "a cursor",
                        value: rect.width.max(rect.height).into(),
                    });
                }
                self.state = State::CursorShape { rect };
                return Ok(Some(()));
            }
            EXTENDED_DESKTOP_SIZE => {
                self.state = State::Screens { size: (rect.width, rect.height), reason: x, status: y };
                return Ok(Some(()));
            }
            LOCK_LIGHTS => {
                self.state = State::Light;
                return Ok(Some(()));
            }
            DESKTOP_SIZE => self.resize((rect.width, rect.height), events)?,
            POINTER_MODE => events.push(Event::PointerMode { absolute: x != 0 }),
            EXTENDED_KEYS => self.extended_keys = true,
            other => return Err(Fault::Unknown { what: "encoding", number: other.into() }),
        }
        self.next_rectangle(events);
        Ok(Some(()))
    }

    fn raw_rows(
        &mut self,
        r: &mut Reader<'_>,
        rect: Rect,
        mut done: u32,
        events: &mut Vec<Event>,
    ) -> Option<()> {
        let row_bytes = rect.width as usize * 4;
        while done < rect.height && row_bytes > 0 {
            let Some(bytes) = r.take(row_bytes) else {
                self.state = State::RawRows { rect, done };
                return Some(());
            };
            let row = &mut self.picture.row_mut(rect.y + done)[rect.x as usize..rect.right() as usize];
            for (pixel, b) in row.iter_mut().zip(bytes.chunks_exact(4)) {
                *pixel = u32::from_le_bytes([b[0], b[1], b[2], 0]);
            }
            done += 1;
        }
        self.painted(rect, events);
        Some(())
    }

    fn copy_rect(
        &mut self,
        r: &mut Reader<'_>,
        rect: Rect,
        events: &mut Vec<Event>,
    ) -> Result<Option<()>, Fault> {
        let (Some(x), Some(y)) = (r.u16(), r.u16()) else { return Ok(None) };
        let from = self.inside(Rect::new(x.into(), y.into(), rect.width, rect.height))?;
        self.picture.copy_within(from, rect.x, rect.y);
        self.painted(rect, events);
        Ok(Some(()))
    }

    fn cursor(&mut self, r: &mut Reader<'_>, rect: Rect, events: &mut Vec<Event>) -> Option<()> {
        let (width, height) = (rect.width as usize, rect.height as usize);
        let pixels = width * height * 4;
        let mask_row = width.div_ceil(8);
        let bytes = r.take(pixels + mask_row * height)?;
        let (pixels, mask) = bytes.split_at(pixels);
        events.push(Event::Cursor(Cursor::new(rect, pixels, mask)));
        self.next_rectangle(events);
        Some(())
    }

    fn screens(
        &mut self,
        r: &mut Reader<'_>,
        size: (u32, u32),
        reason: u16,
        status: u16,
        events: &mut Vec<Event>,
    ) -> Result<Option<()>, Fault> {
        let Some(count) = r.u8() else { return Ok(None) };
        if count > MOST_SCREENS {
            return Err(Fault::Bounds { what: "screens", value: count.into() });
        }
        let Some(bytes) = r.take(3 + usize::from(count) * 16) else { return Ok(None) };
        if let Some(id) = bytes.get(3..7).and_then(|b| <[u8; 4]>::try_from(b).ok()) {
            self.screen.0 = u32::from_be_bytes(id);
        }
        if !self.resizable {
            self.resizable = true;
            events.push(Event::SizeOnRequest);
        }
        // Reason 1 answers our own request; then a status other than 0 says that nothing changed.
        if reason != 1 || status == 0 {
            self.resize(size, events)?;
        }
        self.next_rectangle(events);
        Ok(Some(()))
    }

    fn painted(&mut self, rect: Rect, events: &mut Vec<Event>) {
        if !rect.is_empty() {
            self.pixels = true;
            events.push(Event::Damaged(rect));
        }
        self.next_rectangle(events);
    }

    fn next_rectangle(&mut self, events: &mut Vec<Event>) {
        self.rectangles = self.rectangles.saturating_sub(1);
        self.state = State::Rectangle;
        if self.rectangles == 0 {
            self.state = State::Message;
            events.push(Event::UpdateDone { pixels: self.pixels });
        }
    }

    fn resize(&mut self, (width, height): (u32, u32), events: &mut Vec<Event>) -> Result<(), Fault> {
        if (width, height) != (self.picture.width(), self.picture.height()) {
            let narrow = |v: u32| u16::try_from(v).unwrap_or(u16::MAX);
            self.picture = blank(narrow(width), narrow(height))?;
            events.push(Event::Resized);
        }
        Ok(())
    }

    fn inside(&self, rect: Rect) -> Result<Rect, Fault> {
        let bounds = self.picture.bounds();
        if rect.right() > bounds.width || rect.bottom() > bounds.height {
            return Err(Fault::Bounds { what: "a rectangle", value: rect.right().max(rect.bottom()).into() });
        }
        Ok(rect)
    }
}

fn blank(width: u16, height: u16) -> Result<Picture, Fault> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MOST_PIXELS {
        return Err(Fault::Bounds { what: "a picture", value: pixels });
    }
    Ok(Picture::new(width.into(), height.into(), 0))
}

fn bounded(what: &'static str, value: u32, most: u32) -> Result<u32, Fault> {
    if value > most { Err(Fault::Bounds { what, value: value.into() }) } else { Ok(value) }
}

/// Text that may go to a log or screen.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
