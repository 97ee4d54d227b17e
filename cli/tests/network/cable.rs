//! A cable that loses, delays and shuffles, in user space: two TAP devices and a process between them, because not every
//! kernel has netem.

use std::{
    collections::BinaryHeap,
    fs::File,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How bad it is.
#[derive(Debug, Clone, Copy)]
pub struct Properties {
    /// Frames of a thousand that are lost.
    pub lost_of_1000: u64,
    /// How long a frame takes.
    pub delay: Duration,
    /// By how much more or less.
    pub jitter: Duration,
}

/// A cable in use; it is pulled out when dropped.
pub struct Cable {
    stop: Option<[UnixStream; 2]>,
    directions: Vec<JoinHandle<()>>,
}

impl Cable {
    pub fn lay(one: File, other: File, properties: Properties) -> Self {
        let again = |file: &File| file.try_clone().expect("the other direction");
        let (back_from, back_to) = (again(&other), again(&one));
        let (stop_one, one_stopped) = UnixStream::pair().expect("a signal");
        let (stop_other, other_stopped) = UnixStream::pair().expect("a signal");
        let directions = vec![
            thread::spawn(move || carry(one, other, one_stopped, properties, 1)),
            thread::spawn(move || carry(back_from, back_to, other_stopped, properties, 2)),
        ];
        Cable { stop: Some([stop_one, stop_other]), directions }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop = None;
        for direction in self.directions.drain(..) {
            drop(direction.join());
        }
    }
}

/// A frame on its way; the heap gives the one that arrives first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Frame {
    arrives: std::cmp::Reverse<Instant>,
    number: std::cmp::Reverse<u64>,
    bytes: Vec<u8>,
}

fn carry(mut from: File, mut to: File, stopped: UnixStream, properties: Properties, seed: u64) {
    let (send, sent) = mpsc::channel::<Frame>();
    let arriving = thread::spawn(move || {
        let mut way: BinaryHeap<Frame> = BinaryHeap::new();
        loop {
            let next = way.peek().map(|frame| frame.arrives.0.saturating_duration_since(Instant::now()));
            let received = match next {
                Some(wait) => sent.recv_timeout(wait),
                None => sent.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(frame) => way.push(frame),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(frame) = way.pop() {
                        // An interface that is down takes nothing.
                        drop(to.write(&frame.bytes));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below.max(1)
    };
    let mut buffer = [0; 2048];
    for number in 0.. {
        let mut ready =
            [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).expect("waiting for a frame");
        if ready[1].any().unwrap_or(true) {
            break;
        }
        let Ok(length) = from.read(&mut buffer) else { continue };
        if random(1000) < properties.lost_of_1000 {
            continue;
        }
        let jitter = properties.jitter.as_micros() as u64;
        let delay = properties.delay + Duration::from_micros(random(2 * jitter + 1)) - properties.jitter;
        let arrives = std::cmp::Reverse(Instant::now() + delay);
        let frame = Frame { arrives, number: std::cmp::Reverse(number), bytes: buffer[..length].to_vec() };
        if send.send(frame).is_err() {
            break;
        }
    }
    drop(send);
    drop(arriving.join());
}
