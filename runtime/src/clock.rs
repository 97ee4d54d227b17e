//! The server's clock as the node knows it: the last time the server told, plus what passed since. A lab's
//! clock may jump either way or stand still, so the newest word of the server always counts.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Time since the kernel started, sleep included (`CLOCK_BOOTTIME`).
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// The server's clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    told: Timestamp,
    at: Duration,
}

impl Clock {
    /// From init's offset: the server's clock minus `CLOCK_BOOTTIME`, in milliseconds since the epoch.
    pub fn from_offset(offset_ms: i64) -> Self {
        Clock {
            told: Timestamp::from_millisecond(offset_ms).unwrap_or(Timestamp::UNIX_EPOCH),
            at: Duration::ZERO,
        }
    }

    /// The server just said that it is `now`.
    pub fn set(&mut self, now: Timestamp, since_boot: Duration) {
        (self.told, self.at) = (now, since_boot);
    }

    /// The server's time, `since_boot` after the kernel's start.
    pub fn at(&self, since_boot: Duration) -> Timestamp {
        let passed = SignedDuration::try_from(since_boot.saturating_sub(self.at)).unwrap_or_default();
        self.told.saturating_add(passed).unwrap_or(self.told)
    }

    /// The server's time now.
    pub fn now(&self) -> Timestamp {
        self.at(since_boot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_word_of_the_server_counts_even_when_it_goes_back() {
        let mut clock = Clock::from_offset(1_000_000);
        assert_eq!(clock.at(Duration::from_secs(5)).as_millisecond(), 1_005_000);
        let told = Timestamp::from_millisecond(500_000).unwrap();
        clock.set(told, Duration::from_secs(10));
        assert_eq!(clock.at(Duration::from_secs(12)).as_millisecond(), 502_000);
        assert_eq!(clock.at(Duration::from_secs(9)), told, "never before what was told");
    }

    #[test]
    fn the_kernel_has_been_up_for_a_while() {
        assert!(since_boot() > Duration::ZERO);
    }
}
