//! Watches an interface.

use std::{io, time::Duration};

use nix::net::if_::if_nametoindex;
use tokio::time::{Instant, timeout_at};

use super::{Finding, Observations, frame::Link};
use crate::wire::{ALL, AsyncWire, Wire};

/// How often what was seen is judged.
const ROUND: Duration = Duration::from_secs(1);
/// Longer than any frame.
const FRAME: usize = 1 << 16;

/// Watches until `end`, and tells `news` of every finding once. A trouble shows when nothing happens, too, so it looks at
/// what it has seen once a second.
pub async fn watch(
    interface: &str,
    end: Option<Duration>,
    mut news: impl FnMut(&Observations, &Finding),
) -> io::Result<Observations> {
    let index = if_nametoindex(interface)
        .map_err(|_| io::Error::new(io::ErrorKind::NotFound, format!("no network interface {interface}")))?;
    let wire = AsyncWire::new(Wire::open(index, ALL)?)?;
    let (mut seen, mut told, start) = (Observations::default(), vec![], Instant::now());
    let mut buffer = vec![0; FRAME];
    let end = end.map(|seconds| start + seconds);
    loop {
        let round = end.map_or(Instant::now() + ROUND, |end| end.min(Instant::now() + ROUND));
        while let Ok(length) = timeout_at(round, wire.receive(&mut buffer)).await {
            let length = length?.min(FRAME);
            seen.take(start.elapsed().as_secs_f64(), Link::Ethernet, &buffer[..length]);
        }
        seen.wait_until(start.elapsed().as_secs_f64());
        for finding in seen.findings() {
            let key = (finding.client, finding.pattern);
            if !told.contains(&key) {
                told.push(key);
                news(&seen, &finding);
            }
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(seen);
        }
    }
}
