//! The hardware watchdog: a timer on the board that starts the machine anew when nobody feeds it. Fed from the first second there is a
//! driver for it, for life; a kernel that hangs, and a PID 1 that is gone, stop feeding it.
//!
//! Linux `Documentation/watchdog/watchdog-api.rst`: opening `/dev/watchdog` starts the timer, a write feeds it. The driver's own
//! time, usually 30 s, is left as it is. Its `bootstatus` says whether the timer ended the last run (`WDIOF_CARDRESET`); not every driver knows.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    time::Duration,
};

use crate::journal::JOURNAL;

/// Between two feedings, where the driver does not tell its time.
const PERIOD: Duration = Duration::from_secs(5);
/// Between two looks for a watchdog whose driver is not loaded yet.
const LOOK: Duration = Duration::from_millis(500);
/// Looks before there is taken to be none; one that comes later still is fed, by the slower look.
const LOOKS: u32 = 120;

/// The bit of `bootstatus` that says that the timer restarted the machine (`linux/watchdog.h`).
const CARD_RESET: u32 = 0x20;

/// Feeds for life.
pub fn feed(sysroot: &Path) {
    let mut looks = 0;
    loop {
        if let Err(why) = feed_one(sysroot)
            && why.kind() != io::ErrorKind::NotFound
        {
            JOURNAL.say("watchdog", &format!("not fed: {why}"));
            std::thread::sleep(PERIOD * 12);
        }
        looks += 1;
        std::thread::sleep(if looks < LOOKS { LOOK } else { PERIOD * 12 });
    }
}

fn feed_one(sysroot: &Path) -> io::Result<()> {
    let mut device = OpenOptions::new().write(true).open(sysroot.join("dev/watchdog"))?;
    let about = |file: &str| {
        let text = fs::read_to_string(sysroot.join("sys/class/watchdog/watchdog0").join(file));
        text.map(|t| t.trim().to_owned()).unwrap_or_default()
    };
    JOURNAL.say(
        "watchdog",
        &format!(
            "{} fed; the machine starts anew {} s after the last time",
            about("identity"),
            about("timeout")
        ),
    );
    if is_card_reset(&about("bootstatus")) {
        let reason = "the watchdog restarted the machine, which had fed it no more";
        JOURNAL.say("crash", &format!("the last run ended: {reason}"));
        JOURNAL.crashed(reason.to_owned());
    }
    let period = period(&about("timeout"));
    loop {
        device.write_all(&[0])?;
        std::thread::sleep(period);
    }
}

/// A third of the driver's time, in seconds: two feedings may come late. The driver's usual time is 30 s.
fn period(timeout: &str) -> Duration {
    timeout.parse().map_or(PERIOD, |seconds: u64| Duration::from_secs((seconds / 3).clamp(1, 10)))
}

fn is_card_reset(bootstatus: &str) -> bool {
    bootstatus.parse::<u32>().is_ok_and(|bits| bits & CARD_RESET != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_three_times_in_its_time() {
        let seconds = |timeout| period(timeout).as_secs();
        assert_eq!(
            (seconds("30"), seconds("15"), seconds("2"), seconds("600"), seconds("")),
            (10, 5, 1, 10, 5)
        );
    }

    #[test]
    fn only_the_timers_own_restart_counts() {
        assert!(is_card_reset("32") && is_card_reset("33"));
        for other in ["0", "1", "64", "", "x", "-32"] {
            assert!(!is_card_reset(other), "{other}");
        }
    }
}
