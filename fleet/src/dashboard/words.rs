//! Times and amounts as people read them.

use jiff::{Timestamp, tz::TimeZone};
use labshift_model::{api::NodeState, boot::Stage, node::Mode};

/// The site's time zone, for local times.
pub(super) struct Zone(TimeZone);

impl Zone {
    pub(super) fn new(name: &str) -> Self {
        Zone(TimeZone::get(name).unwrap_or(TimeZone::UTC))
    }

    pub(super) fn day_and_time(&self, at: Timestamp) -> String {
        at.to_zoned(self.0.clone()).strftime("%A %-d %B %Y, %H:%M").to_string()
    }

    pub(super) fn clock(&self, at: Timestamp) -> String {
        at.to_zoned(self.0.clone()).strftime("%H:%M:%S").to_string()
    }

    /// `14:00` today, `Tue 08:00` otherwise.
    pub(super) fn when(&self, at: Timestamp, now: Timestamp) -> String {
        let (at, now) = (at.to_zoned(self.0.clone()), now.to_zoned(self.0.clone()));
        let pattern = if at.date() == now.date() { "%H:%M" } else { "%a %H:%M" };
        at.strftime(pattern).to_string()
    }
}

/// `in 35 min`, `in 3 h 20 min`.
pub(super) fn until(at: Timestamp, now: Timestamp) -> String {
    let minutes = (at.as_second() - now.as_second() + 59) / 60;
    match (minutes / 60, minutes % 60) {
        (h, _) if h >= 48 => format!("in {} days", h / 24),
        (0, m) => format!("in {m} min"),
        (h, 0) => format!("in {h} h"),
        (h, m) => format!("in {h} h {m} min"),
    }
}

/// `840 ms`, `12.3 s`, `2 min 5 s`.
pub(super) fn milliseconds(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms} ms"),
        1000..=119_999 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
    }
}

/// `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12 MiB`.
pub(super) fn bytes(size: u64) -> String {
    match size {
        0..=9_999 => format!("{size} B"),
        10_000..=9_999_999 => format!("{} KiB", size >> 10),
        10_000_000..=9_999_999_999 => format!("{} MiB", size >> 20),
        _ => format!("{} GiB", size >> 30),
    }
}

/// The colour class of a state.
pub(super) fn tone(state: NodeState) -> &'static str {
    match state {
        NodeState::Desktop => "desktop",
        NodeState::Compute => "compute",
        NodeState::Maintenance | NodeState::Ready => "maintenance",
        NodeState::Waking | NodeState::Booting | NodeState::Changing | NodeState::GoingOff => "moving",
        NodeState::Off => "off",
        NodeState::Lost | NodeState::Failed => "bad",
    }
}

/// The colour class of a mode.
pub(super) fn mode_tone(mode: Mode) -> &'static str {
    match mode {
        Mode::Desktop => "desktop",
        Mode::Compute => "compute",
        Mode::Maintenance => "maintenance",
        Mode::Off => "off",
    }
}

/// A stage in words: what was done by its end.
pub(super) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Wake => "magic packet",
        Stage::Firmware => "firmware",
        Stage::Loader => "loader and kernel",
        Stage::Init => "kernel start-up",
        Stage::Modules => "modules",
        Stage::Link => "link",
        Stage::Address => "address",
        Stage::Manifest => "manifest verified",
        Stage::RootFetched => "root fetched and verified",
        Stage::RootMounted => "root mounted",
        Stage::Services => "services",
        Stage::Ready => "ready",
        Stage::GuestVisible => "guest visible",
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(milliseconds(999), "999 ms");
        assert_eq!(milliseconds(12_345), "12.3 s");
        assert_eq!(milliseconds(125_000), "2 min 5 s");
        assert_eq!(bytes(268_435_456), "256 MiB");
        let now: Timestamp = "2026-11-23T07:00:00Z".parse().expect("a time");
        assert_eq!(until(now + 35.minutes(), now), "in 35 min");
        assert_eq!(until(now + 200.minutes(), now), "in 3 h 20 min");
        let zone = Zone::new("Europe/Budapest");
        assert_eq!(zone.when(now, now), "08:00");
        assert_eq!(zone.when(now + 24.hours(), now), "Tue 08:00");
        assert_eq!(zone.day_and_time(now), "Monday 23 November 2026, 08:00");
    }
}
