//! The bytes behind a transfer: a text made for the client, or a file read piece by piece.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Bytes read at a time.
const AHEAD: usize = 64 * 1024;

/// Something to send, with its size.
#[derive(Debug)]
pub struct Source {
    /// None for a text, which is all in `ahead`.
    file: Option<File>,
    size: u64,
    /// Where `ahead` begins.
    at: u64,
    ahead: Vec<u8>,
}

impl Source {
    /// A text.
    pub fn text(text: String) -> Self {
        Source { file: None, size: text.len() as u64, at: 0, ahead: text.into_bytes() }
    }

    /// A file of a size that was looked up.
    pub fn file(file: File, size: u64) -> Self {
        Source { file: Some(file), size, at: 0, ahead: vec![] }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Up to `length` bytes at `offset`; fewer only at the end.
    pub fn read(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let length = length.min(usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        if let Some(file) = &self.file
            && (offset < self.at || offset + length as u64 > self.at + self.ahead.len() as u64)
        {
            fill(file, &mut self.ahead, offset, length.max(AHEAD))?;
            self.at = offset;
        }
        let start = (offset - self.at) as usize;
        self.ahead
            .get(start..start + length)
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"))
    }
}

/// Fills the buffer from `offset`, to `length` bytes or the end of the file.
fn fill(file: &File, buffer: &mut Vec<u8>, offset: u64, length: usize) -> io::Result<()> {
    buffer.resize(length, 0);
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer.truncate(filled);
    Ok(())
}
