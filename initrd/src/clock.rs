//! A guest's wall clock. While a guest is paused or saved its kernel's clock stands still; its board's clock (RTC), which the
//! hypervisor keeps, goes on. A guest that finds itself behind takes the board's time.
//!
//! For guests only: the board of a workstation may have a dead battery, and is never believed.

use std::{fs, path::Path, time::Duration};

use crate::{journal::JOURNAL, sys};

/// How often the clocks are compared.
const PERIOD: Duration = Duration::from_secs(5);
/// The board counts whole seconds: a difference below this is none.
const SLACK_MS: i64 = 2_000;

/// What the clock must be set to, if it must be: the board's time, when both differ visibly. Times in milliseconds since the
/// epoch; the board shows whole seconds.
fn correction(ours_ms: i64, board_seconds: i64) -> Option<i64> {
    let board_ms = board_seconds.checked_mul(1000)?.checked_add(500)?;
    let sane = board_seconds > 1_600_000_000;
    (sane && (ours_ms - board_ms).abs() > SLACK_MS).then_some(board_ms)
}

/// Compares for life.
pub fn follow(sysroot: &Path) {
    let board = sysroot.join("sys/class/rtc/rtc0/since_epoch");
    loop {
        std::thread::sleep(PERIOD);
        let seconds = fs::read_to_string(&board).ok().and_then(|t| t.trim().parse().ok());
        let ours = sys::realtime_ms();
        if let Some(right) = seconds.and_then(|s| correction(ours, s)) {
            match sys::set_realtime_ms(right) {
                Ok(()) => JOURNAL.say("clock", &format!("set by {} ms: the guest was paused", right - ours)),
                Err(why) => JOURNAL.say("clock", &format!("not set: {why}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_visible_difference_counts() {
        let now = 1_790_000_000;
        assert_eq!(correction(now * 1000, now), None);
        assert_eq!(correction(now * 1000 + 999, now), None);
        assert_eq!(correction((now - 60) * 1000, now), Some(now * 1000 + 500));
        assert_eq!(correction((now + 60) * 1000, now), Some(now * 1000 + 500));
        assert_eq!(correction(now * 1000, 0), None, "a board that has lost its time is not believed");
        assert_eq!(correction(now * 1000, i64::MAX), None);
    }
}
