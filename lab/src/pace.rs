//! How fast a cable carries frames: a token bucket whose time is passed in. Pure.

use std::time::{Duration, Instant};

/// Bytes that go with each Ethernet frame and are in no buffer: preamble, checksum, gap (IEEE 802.3).
const AROUND: u64 = 24;
/// How far a cable that rested may be ahead of its rate: sleeping is not more exact than that.
const BURST: Duration = Duration::from_millis(2);

/// One direction of a cable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Bits per second; 0 is as fast as it goes.
    bits: u64,
    /// When everything so far has passed.
    passed: Option<Instant>,
}

impl Pace {
    /// Of so many megabits per second; 0 is as fast as it goes.
    pub fn of_mbit(mbit: u32) -> Self {
        Pace { bits: u64::from(mbit) * 1_000_000, passed: None }
    }

    /// A frame of so many bytes goes now: how long to wait before the next one.
    pub fn wait_after(&mut self, bytes: usize, now: Instant) -> Duration {
        if self.bits == 0 {
            return Duration::ZERO;
        }
        let takes = Duration::from_nanos((bytes as u64 + AROUND) * 8 * 1_000_000_000 / self.bits);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let passed = self.passed.map_or(earliest, |passed| passed.max(earliest)) + takes;
        self.passed = Some(passed);
        passed.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_take_as_long_as_on_a_wire() {
        let begin = Instant::now();
        let mut now = begin;
        let mut pace = Pace::of_mbit(100);
        for _ in 0..10_000 {
            now += pace.wait_after(1514, now);
        }
        let took = (now - begin + BURST).as_secs_f64();
        assert!((took - 10_000.0 * 1538.0 * 8.0 / 1e8).abs() < 0.001, "{took}");
        // What was not used in a pause is lost, but for a little.
        now += Duration::from_secs(60);
        let burst = (0..100).take_while(|_| pace.wait_after(1514, now).is_zero()).count();
        assert_eq!(burst, 16, "2 ms of 123 µs each");
        assert!(Pace::default().wait_after(1_000_000, now).is_zero());
    }
}
