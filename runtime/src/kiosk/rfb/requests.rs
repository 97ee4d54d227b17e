//! What the client says.

use super::{
    COPY_RECT, Client, DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, EXTENDED_KEYS, LOCK_LIGHTS, POINTER_MODE, RAW,
    RICH_CURSOR,
};

impl Client {
    /// What is said once, after the handshake: the pixels we want and the encodings we know.
    pub(super) fn greet(&mut self) {
        // SetPixelFormat: 32 bits, 24 used, little endian, true colour, 8 bits each, blue lowest: KMS XRGB8888.
        self.output.extend_from_slice(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
        let encodings = [
            RAW,
            COPY_RECT,
            DESKTOP_SIZE,
            EXTENDED_DESKTOP_SIZE,
            RICH_CURSOR,
            POINTER_MODE,
            EXTENDED_KEYS,
            LOCK_LIGHTS,
        ];
        self.output.extend_from_slice(&[2, 0, 0, encodings.len() as u8]);
        for encoding in encodings {
            self.output.extend_from_slice(&encoding.to_be_bytes());
        }
    }

    /// Asks for an update: the whole picture, or (`changes`) what has changed since the last.
    pub fn ask_for_update(&mut self, changes: bool) {
        self.output.extend_from_slice(&[3, changes.into(), 0, 0, 0, 0]);
        for v in [self.picture.width(), self.picture.height()] {
            self.output.extend_from_slice(&(v as u16).to_be_bytes());
        }
    }

    /// Asks the guest for a picture of this size. Only after `Event::SizeOnRequest`.
    pub fn ask_for_size(&mut self, width: u16, height: u16) {
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        self.output.extend_from_slice(&[251, 0]);
        self.output.extend_from_slice(&size);
        self.output.extend_from_slice(&[1, 0]);
        self.output.extend_from_slice(&self.screen.0.to_be_bytes());
        self.output.extend_from_slice(&[0, 0, 0, 0]);
        self.output.extend_from_slice(&size);
        self.output.extend_from_slice(&[0, 0, 0, 0]);
    }

    /// A key goes down or up. Without QEMU's extension nothing is sent: a symbol alone would be a guess at the layout.
    pub fn key(&mut self, scan_code: u16, symbol: u32, down: bool) {
        if self.extended_keys {
            self.output.extend_from_slice(&[255, 0, 0, down.into()]);
            self.output.extend_from_slice(&symbol.to_be_bytes());
            self.output.extend_from_slice(&u32::from(scan_code).to_be_bytes());
        }
    }

    /// The pointer's place and buttons (bit 0 left, 1 middle, 2 right, 3 and 4 wheel up and down, 5 and 6 wheel left
    /// and right). In relative mode, `x` and `y` are 0x7fff plus the movement.
    pub fn pointer(&mut self, x: u16, y: u16, buttons: u8) {
        self.output.extend_from_slice(&[5, buttons]);
        self.output.extend_from_slice(&x.to_be_bytes());
        self.output.extend_from_slice(&y.to_be_bytes());
    }
}
