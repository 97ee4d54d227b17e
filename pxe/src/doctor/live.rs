//! Watches an interface.

use std::{io, time::Duration};

use nix::net::if_::if_nametoindex;
use tokio::time::{Instant, sleep_until};

use super::{Finding, Observations, frame::Link};
use crate::wire::{ALL, AsyncWire, Wire};

/// How often what was seen is judged: a trouble shows when nothing happens, too.
const ROUND: Duration = Duration::from_secs(1);
/// Longer than any frame.
const FRAME: usize = 1 << 16;

/// Watches for so long, or until `interrupted`, and tells `news` of every finding once. Ends early when
/// the interface is gone, and says so.
pub async fn watch(
    interface: &str,
    end: Option<Duration>,
    interrupted: impl Future<Output = ()>,
    mut news: impl FnMut(&Finding),
) -> io::Result<(Observations, bool)> {
    let index = if_nametoindex(interface).map_err(|_| {
        let text = format!("no network interface {interface}; `ip link` lists them");
        io::Error::new(io::ErrorKind::NotFound, text)
    })?;
    let wire = AsyncWire::new(Wire::open(index, ALL)?)?;
    let (mut seen, mut told, start) = (Observations::default(), vec![], Instant::now());
    let mut buffer = vec![0; FRAME];
    let end = end.map(|seconds| start + seconds);
    let mut round = start + ROUND;
    tokio::pin!(interrupted);
    loop {
        let last = tokio::select! {
            length = wire.receive(&mut buffer) => {
                let length = length?.min(FRAME);
                seen.take(start.elapsed().as_secs_f64(), Link::Ethernet, &buffer[..length]);
                continue;
            }
            () = sleep_until(end.map_or(round, |end| end.min(round))) => {
                round += ROUND;
                end.is_some_and(|end| Instant::now() >= end)
            }
            () = &mut interrupted => true,
        };
        seen.wait_until(start.elapsed().as_secs_f64());
        for finding in seen.findings() {
            let key = (finding.client, finding.pattern);
            if !told.contains(&key) {
                told.push(key);
                news(&finding);
            }
        }
        let gone = !wire.is_there();
        if last || gone {
            return Ok((seen, gone));
        }
    }
}
