//! A block device whose reads this process answers: the kernel's network block device over a socket pair.
//! Document: the NBD project's `doc/proto.md`, transmission phase with simple replies.
//!
//! The kernel and this process talk over several connections, so that one slow read does not hold up the others.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{blocks::Blocks, sys, verity::BLOCK};

/// Reads that are answered at the same time.
const CONNECTIONS: usize = 4;
/// Longest read that is answered; the kernel asks for far less.
const LONGEST: u32 = 32 << 20;

const REQUEST: u32 = 0x2560_9513;
/// Bytes before a reply's data.
const HEAD: usize = 16;
const REPLY: u32 = 0x6744_6698;
const READ: u32 = 0;
const DISCONNECT: u32 = 2;

/// What the kernel asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Read {
        handle: u64,
        from: u64,
        length: u32,
    },
    /// Something that a read-only device refuses.
    Other {
        handle: u64,
    },
    Disconnect,
}

fn parse(header: &[u8; 28]) -> Option<Asked> {
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    if word(0) != REQUEST {
        return None;
    }
    let (handle, from, length) = (long(8), long(16), word(24));
    Some(match word(4) & 0xffff {
        READ if length <= LONGEST => Asked::Read { handle, from, length },
        DISCONNECT => Asked::Disconnect,
        _ => Asked::Other { handle },
    })
}

/// Answers one connection until the kernel ends it.
fn answer(mut stream: UnixStream, blocks: &Blocks) -> io::Result<()> {
    const EIO: u32 = 5;
    const EPERM: u32 = 1;
    let mut header = [0; 28];
    let mut reply = vec![0; HEAD];
    loop {
        stream.read_exact(&mut header)?;
        let asked = parse(&header).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let (handle, error, length) = match asked {
            Asked::Disconnect => return Ok(()),
            Asked::Other { handle } => (handle, EPERM, 0),
            Asked::Read { handle, from, length } => {
                let length = length as usize;
                // Only ever grows: what was there is written over.
                reply.resize(reply.len().max(HEAD + length), 0);
                match blocks.read(from, &mut reply[HEAD..HEAD + length]) {
                    Ok(()) => (handle, 0, length),
                    Err(_) => (handle, EIO, 0),
                }
            }
        };
        reply[..4].copy_from_slice(&REPLY.to_be_bytes());
        reply[4..8].copy_from_slice(&error.to_be_bytes());
        reply[8..HEAD].copy_from_slice(&handle.to_be_bytes());
        stream.write_all(&reply[..HEAD + length])?;
    }
}

/// Attaches a device to these blocks. It stays until [`detach`].
pub fn attach(dev: &Path, blocks: &Arc<Blocks>) -> io::Result<PathBuf> {
    let path = dev.join("nbd0");
    let device = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut kernel_ends: Vec<OwnedFd> = Vec::new();
    for _ in 0..CONNECTIONS {
        let (ours, kernels) = UnixStream::pair()?;
        kernel_ends.push(kernels.into());
        let blocks = blocks.clone();
        std::thread::Builder::new().name("blocks".into()).spawn(move || drop(answer(ours, &blocks)))?;
    }
    sys::configure_nbd(&device, &kernel_ends, BLOCK as u64, blocks.size() / BLOCK as u64)?;
    std::thread::Builder::new().name("nbd".into()).spawn(move || {
        // Returns when the device is detached.
        let _ = sys::run_nbd(&device);
        drop(kernel_ends);
    })?;
    // The kernel shows the size as soon as the device runs.
    let begin = Instant::now();
    let size = Path::new("/sys/block/nbd0/size");
    while fs::read_to_string(size).is_ok_and(|t| t.trim() == "0") {
        if begin.elapsed() > Duration::from_secs(20) {
            return Err(io::Error::other("the kernel did not start /dev/nbd0"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(path)
}

/// Takes the device away.
pub fn detach(dev: &Path) {
    if let Ok(device) = OpenOptions::new().read(true).write(true).open(dev.join("nbd0")) {
        let _ = sys::stop_nbd(&device);
    }
}
