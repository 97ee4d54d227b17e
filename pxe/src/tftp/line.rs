//! A transfer's own socket, connected to its client: blocking, so that an acknowledgement and the block it asks for cost one
//! wake-up. Blocks of one window leave in one call (UDP generic segmentation), where the kernel can.

use std::{
    io::{self, IoSlice},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{self as sys, ControlMessage, MsgFlags},
};

/// Most segments and bytes that the kernel takes in one call.
const SEGMENTS: usize = 64;
const BYTES: usize = 65_000;

/// The socket, and whether its transfer shall end.
#[derive(Debug)]
pub struct Line {
    socket: UdpSocket,
    stop: AtomicBool,
    whole: AtomicBool,
}

impl Line {
    /// A new port of ours, for this client alone.
    pub fn open(from: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        Ok(Line { socket, stop: AtomicBool::new(false), whole: AtomicBool::new(true) })
    }

    /// Ends the transfer, wherever it is.
    pub fn end(&self) {
        self.stop.store(true, Ordering::Release);
        // Wakes who waits for a packet.
        let _ = sys::shutdown(self.socket.as_raw_fd(), sys::Shutdown::Read);
    }

    /// Whether it shall end.
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// How long [`Line::receive`] waits.
    pub fn patience(&self, wait: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(wait))
    }

    /// The next packet; `None` when none came in time.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.socket.recv(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Some(0)),
            Err(e) => Err(e),
        }
    }

    /// Sends one packet.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        passing(self.socket.send(packet).map(drop))
    }

    /// Sends packets of `size` bytes that lie one behind the other; the last may be shorter.
    pub fn send_all(&self, packets: &[u8], size: usize) -> io::Result<()> {
        let at_once = (BYTES / size).clamp(1, SEGMENTS) * size;
        for some in packets.chunks(at_once) {
            if some.len() > size && self.whole.load(Ordering::Relaxed) {
                match self.send_segments(some, size) {
                    Ok(()) => continue,
                    Err(
                        Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT,
                    ) => {
                        // This card, or this kernel, can't: one by one from now on.
                        self.whole.store(false, Ordering::Relaxed);
                    }
                    Err(e) => {
                        passing(Err(e.into()))?;
                        continue;
                    }
                }
            }
            for packet in some.chunks(size) {
                self.send(packet)?;
            }
        }
        Ok(())
    }

    fn send_segments(&self, packets: &[u8], size: usize) -> nix::Result<()> {
        let size = u16::try_from(size).map_err(|_| Errno::EINVAL)?;
        let control = [ControlMessage::UdpGsoSegments(&size)];
        let payload = [IoSlice::new(packets)];
        sys::sendmsg::<()>(self.socket.as_raw_fd(), &payload, &control, MsgFlags::empty(), None).map(drop)
    }
}

/// Takes a full queue or a passing fault of the network for a lost packet.
fn passing(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EHOSTUNREACH)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_leaves_as_packets_and_an_end_wakes_who_waits() {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let line =
            Line::open(([127, 0, 0, 1], 0).into(), client.local_addr().expect("bound")).expect("a line");
        let packets: Vec<u8> = (0..40 * 1000 + 7).map(|n| (n / 1000) as u8).collect();
        for whole in [true, false] {
            line.whole.store(whole, Ordering::Relaxed);
            line.send_all(&packets, 1000).expect("sent");
            let mut buffer = [0; 2000];
            for n in 0..=40 {
                let length = client.recv(&mut buffer).expect("received");
                let wanted = if n == 40 { 7 } else { 1000 };
                assert!(length == wanted && buffer[..length].iter().all(|b| *b == n), "{n}: {length}");
            }
        }
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| line.receive(&mut [0; 10]).expect("no fault"));
            line.end();
            assert_eq!(waiting.join().expect("no panic"), Some(0));
        });
        assert!(line.is_over());
    }
}
