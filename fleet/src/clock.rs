//! The server's clock: the system's, or one that an admin moves by hand (virtual labs).

use std::sync::{Arc, RwLock};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use labshift_plan::fleet::Moment;

/// What `now` means to this server.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's own clock.
    System,
    /// Stands still until an admin moves it.
    Manual(Arc<RwLock<Timestamp>>),
}

/// A clock was described or moved in a way that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// Neither `system` nor `manual:TIME`.
    #[error("\"{0}\" is no clock; write system, or manual:2026-11-23T07:40:00")]
    Unknown(String),
    /// Not a time.
    #[error(
        "\"{0}\" is not a time; write 2026-11-23T07:40:00 (local time of the site) or 2026-11-23T07:40:00+01:00"
    )]
    NotATime(String),
    /// The system's clock can't be moved from here.
    #[error("this server follows the system's clock; start it with --clock manual:TIME to move time by hand")]
    NotManual,
    /// Time goes forward only.
    #[error("{to} is before the clock's {now}; the clock only goes forward")]
    Backward {
        /// The clock.
        now: Timestamp,
        /// Where it should go.
        to: Timestamp,
    },
}

impl Clock {
    /// Reads `system` or `manual:TIME`, where TIME is RFC 3339 or local time of `zone`.
    pub fn parse(text: &str, zone: &TimeZone) -> Result<Self, ClockError> {
        match text.split_once(':') {
            None if text == "system" => Ok(Clock::System),
            Some(("manual", time)) => Ok(Clock::manual(read_time(time, zone)?)),
            _ => Err(ClockError::Unknown(text.to_owned())),
        }
    }

    /// A clock that stands at `now`.
    pub fn manual(now: Timestamp) -> Self {
        Clock::Manual(Arc::new(RwLock::new(now)))
    }

    /// Both clocks, now.
    pub fn moment(&self) -> Moment {
        let real = Timestamp::now();
        let now = match self {
            Clock::System => real,
            Clock::Manual(at) => *at.read().unwrap_or_else(|e| e.into_inner()),
        };
        Moment { now, real }
    }

    /// The clock is moved by hand.
    pub fn is_manual(&self) -> bool {
        matches!(self, Clock::Manual(_))
    }

    /// Moves a manual clock forward.
    pub fn set(&self, to: Timestamp) -> Result<(), ClockError> {
        let Clock::Manual(at) = self else { return Err(ClockError::NotManual) };
        let mut at = at.write().unwrap_or_else(|e| e.into_inner());
        if to < *at {
            return Err(ClockError::Backward { now: *at, to });
        }
        *at = to;
        Ok(())
    }
}

/// Reads RFC 3339, or local time of a zone.
pub fn read_time(text: &str, zone: &TimeZone) -> Result<Timestamp, ClockError> {
    if let Ok(exact) = text.parse::<Timestamp>() {
        return Ok(exact);
    }
    let civil = text.parse::<DateTime>().map_err(|_| ClockError::NotATime(text.to_owned()))?;
    zone.to_ambiguous_timestamp(civil).compatible().map_err(|_| ClockError::NotATime(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_and_only_goes_forward() {
        let zone = TimeZone::get("Europe/Budapest").expect("a zone");
        let clock = Clock::parse("manual:2026-11-23T07:40:00", &zone).expect("a clock");
        let now = clock.moment().now;
        assert_eq!(now.to_string(), "2026-11-23T06:40:00Z");
        assert_eq!(clock.moment().now, now);
        let later = read_time("2026-11-23T07:50:00+01:00", &zone).expect("a time");
        assert_eq!(clock.set(later), Ok(()));
        assert!(matches!(clock.set(now), Err(ClockError::Backward { .. })));
        assert_eq!(Clock::System.set(later), Err(ClockError::NotManual));
        assert!(Clock::parse("sundial", &zone).is_err());
        assert!(Clock::parse("manual:noon", &zone).is_err());
    }
}
