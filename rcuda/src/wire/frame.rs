//! Frames on a byte stream: a `u32` length, then that many bytes of one message.

use std::io::{self, Read, Write};

use thiserror::Error;

use super::{
    codec::{Malformed, Wire},
    hello::{HEAD, Hello, HelloError},
    message::MAX_FRAME,
};

/// Why a conversation can't go on.
#[derive(Debug, Error)]
pub enum WireError {
    /// The peer closed the connection between two messages.
    #[error("the other side closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// A frame is longer than allowed.
    #[error("a message of {length} bytes exceeds the limit of {MAX_FRAME}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// A frame is no message.
    #[error("the other side sent a malformed message")]
    Malformed(#[from] Malformed),
    /// The first bytes were not accepted.
    #[error(transparent)]
    Hello(#[from] HelloError),
}

/// Sends one message.
pub fn send<W: Write, M: Wire>(to: &mut W, message: &M) -> Result<(), WireError> {
    let mut bytes = vec![0; 4];
    message.put(&mut bytes);
    let length = bytes.len() - 4;
    if length > MAX_FRAME {
        return Err(WireError::TooLong { length });
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    to.write_all(&bytes)?;
    Ok(())
}

/// Receives one message.
pub fn receive<R: Read, M: Wire>(from: &mut R) -> Result<M, WireError> {
    let mut head = [0; 4];
    let mut have = 0;
    while have < head.len() {
        match from.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Err(WireError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_FRAME {
        return Err(WireError::TooLong { length });
    }
    // Grows with what arrives: a header alone costs its sender's peer nothing.
    let mut body = Vec::new();
    from.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(M::from_bytes(&body)?)
}

/// Sends a hello.
pub fn send_hello<W: Write>(to: &mut W, hello: &Hello) -> Result<(), WireError> {
    to.write_all(&hello.to_bytes())?;
    Ok(())
}

/// Receives a hello, whatever version it is of.
pub fn receive_hello<R: Read>(from: &mut R) -> Result<Hello, WireError> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => WireError::Hello(HelloError::NotOurs),
        _ => WireError::Io(e),
    })?;
    let mut text = vec![0; Hello::text_length(&head)?];
    from.read_exact(&mut text)?;
    Ok(Hello::from_bytes(&head, &text)?)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::wire::message::{Bytes, DeviceInfo, Failure, Kernel, Launch, Reply, Request, Symbol};

    fn requests() -> Vec<Request> {
        vec![
            Request::Init {},
            Request::MemoryInfo { device: 0 },
            Request::Allocate { device: 0, bytes: 4096 },
            Request::Free { device: 0, address: 1 << 40 },
            Request::Write { device: 0, address: 1, stream: 0, data: Bytes(vec![1, 2, 3]) },
            Request::Read { device: 0, address: 1, stream: 0, bytes: 3 },
            Request::Fill { device: 1, address: 1, value: 7, width: 4, count: 9, stream: 0 },
            Request::LoadModule { device: 0, ptx: ".version 7.0".into() },
            Request::Launch {
                launch: Launch {
                    device: 0,
                    module: 3,
                    kernel: 0,
                    grid: [1, 2, 3],
                    block: [4, 5, 6],
                    shared_bytes: 64,
                    stream: 0,
                    parameters: Bytes(vec![0; 32]),
                },
            },
            Request::ElapsedTime { device: 0, start: 1, end: 2 },
        ]
    }

    fn replies() -> Vec<Reply> {
        vec![
            Reply::Failed { failure: Failure { code: 2, message: "out of memory".into() } },
            Reply::Done {},
            Reply::Devices {
                devices: vec![DeviceInfo {
                    name: "x".into(),
                    software: true,
                    capability: [7, 5],
                    memory_total: 1,
                    device_total: 2,
                    device_used: 3,
                    uuid: [9; 16],
                    attributes: vec![[1, 1024], [2, 3]],
                }],
                clients: 1,
            },
            Reply::Module {
                module: 5,
                kernels: vec![Kernel { name: "k".into(), parameters: vec![[0, 8], [8, 4]] }],
                symbols: vec![Symbol { name: "s".into(), address: 1, bytes: 2 }],
            },
            Reply::Elapsed { milliseconds: 1.5 },
        ]
    }

    #[test]
    fn messages_survive_the_stream() {
        let mut stream = Vec::new();
        for request in requests() {
            assert!(send(&mut stream, &request).is_ok());
        }
        let mut cursor = Cursor::new(stream);
        for request in requests() {
            assert_eq!(receive::<_, Request>(&mut cursor).ok(), Some(request));
        }
        assert!(matches!(receive::<_, Request>(&mut cursor), Err(WireError::Closed)));
    }

    #[test]
    fn a_long_frame_is_refused_by_its_header() {
        let header = u32::MAX.to_le_bytes();
        assert!(matches!(
            receive::<_, Request>(&mut Cursor::new(header)),
            Err(WireError::TooLong { length }) if length == u32::MAX as usize
        ));
        let big = Request::Write { device: 0, address: 0, stream: 0, data: Bytes(vec![0; MAX_FRAME]) };
        assert!(matches!(send(&mut Vec::new(), &big), Err(WireError::TooLong { .. })));
    }

    /// Deterministic noise.
    struct Noise(u64);
    impl Noise {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    /// Bytes from a hostile peer are refused or understood, never a panic, and what is understood has one
    /// encoding only.
    #[test]
    fn mutated_messages_do_no_harm() {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let mut seeds: Vec<Vec<u8>> = Vec::new();
        for request in requests() {
            let mut bytes = Vec::new();
            request.put(&mut bytes);
            seeds.push(bytes);
        }
        for reply in replies() {
            let mut bytes = Vec::new();
            reply.put(&mut bytes);
            seeds.push(bytes);
        }
        let mut understood = 0;
        for round in 0..200_000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..=noise.below(3) {
                match noise.below(4) {
                    0 => bytes.truncate(noise.below(bytes.len() + 1)),
                    1 => bytes.push(noise.below(256) as u8),
                    _ if bytes.is_empty() => {}
                    2 => {
                        let at = noise.below(bytes.len());
                        bytes[at] = noise.below(256) as u8;
                    }
                    _ => {
                        let at = noise.below(bytes.len());
                        bytes[at] ^= 1 << noise.below(8);
                    }
                }
            }
            if let Ok(request) = Request::from_bytes(&bytes) {
                understood += 1;
                let mut again = Vec::new();
                request.put(&mut again);
                assert_eq!(again, bytes);
            }
            let _ = Reply::from_bytes(&bytes);
        }
        assert!(understood > 10_000, "the loop must reach past the tags: {understood}");
    }
}
