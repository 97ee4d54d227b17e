//! What a room's schedule says at a time: `(site, room, now) -> mode, with its cause in words`.
//!
//! Sessions and windows of the site file are local times of day; here they become intervals of absolute time, by the
//! rules of the site's time zone. A time of day that a change to summer time skips is moved forward by the skipped
//! hour; one that comes twice in autumn means the first.
//!
//! ```text
//!            wake_before                bridge_breaks                   window            outside
//!   off ----|~~~~~~~~~~~|== session ==|~~~~~~~~~~~~~~~|== session ==|-- compute --|-- off, compute ----
//!           desktop from here on ......................................
//! ```

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time},
    tz::TimeZone,
};
use labshift_model::{
    node::{Mode, ModeFrom},
    site::{Hours, Room, Schedule, Site},
};

/// How far back a mode's begin is looked for.
const DAYS_BACK: i64 = 8;

/// What the room's schedule wants now, since when, and why.
pub fn mode_at(site: &Site, room: &Room, now: Timestamp) -> ModeFrom {
    // From midnight: where nothing has changed since, a beginning that moves with the clock would be news at every look.
    let start = days_from(now, -DAYS_BACK);
    let midnight = start.as_second() - start.as_second().rem_euclid(24 * 3600);
    let start = Timestamp::from_second(midnight).unwrap_or(start);
    let line = timeline(site, room, start, days_from(now, 1));
    line.into_iter().rfind(|m| m.from <= now).unwrap_or_else(|| ModeFrom {
        from: now,
        mode: Mode::Off,
        cause: format!("room {} has no schedule", room.name),
    })
}

/// What the room's schedule wants after `now`, soonest first, for so many days; at most `limit` changes.
pub fn upcoming(site: &Site, room: &Room, now: Timestamp, days: u16, limit: usize) -> Vec<ModeFrom> {
    let line = timeline(site, room, days_from(now, -1), days_from(now, i64::from(days)));
    line.into_iter().filter(|m| m.from > now).take(limit).collect()
}

/// Every change of the room's mode, or of its cause, from one time to another. The first entry begins at `from`.
pub fn timeline(site: &Site, room: &Room, from: Timestamp, until: Timestamp) -> Vec<ModeFrom> {
    let Some(schedule) = site.schedule(&room.schedule) else { return vec![] };
    let day = Day { schedule, zone: &site.timezone };
    let windows = day.windows(from, until);
    let desktops = day.desktops(from, until, &windows);

    let mut marks: Vec<Timestamp> = windows.iter().chain(&desktops).flat_map(|i| [i.from, i.until]).collect();
    marks.push(from);
    marks.retain(|m| (from..until).contains(m));
    marks.sort_unstable();
    marks.dedup();

    let mut line: Vec<ModeFrom> = vec![];
    for mark in marks {
        let (mode, cause) = match desktops.iter().find(|i| i.holds(mark)) {
            Some(session) => (Mode::Desktop, session.cause.clone()),
            None => day.base(&windows, mark),
        };
        if line.last().is_none_or(|last| last.mode != mode || last.cause != cause) {
            line.push(ModeFrom { from: mark, mode, cause });
        }
    }
    line
}

fn days_from(now: Timestamp, days: i64) -> Timestamp {
    now.checked_add((days * 24).hours()).unwrap_or(now)
}

/// A stretch of time with one mode.
struct Interval {
    from: Timestamp,
    until: Timestamp,
    mode: Mode,
    cause: String,
}

impl Interval {
    fn holds(&self, at: Timestamp) -> bool {
        (self.from..self.until).contains(&at)
    }
}

struct Day<'s> {
    schedule: &'s Schedule,
    zone: &'s TimeZone,
}

impl Day<'_> {
    /// The mode without sessions.
    fn base(&self, windows: &[Interval], at: Timestamp) -> (Mode, String) {
        match windows.iter().find(|w| w.holds(at)) {
            Some(window) => (window.mode, window.cause.clone()),
            None => (
                self.schedule.outside,
                format!("outside the sessions and windows of schedule {}", self.schedule.name),
            ),
        }
    }

    /// Windows, in the file's order: the first that holds wins.
    fn windows(&self, from: Timestamp, until: Timestamp) -> Vec<Interval> {
        let mut intervals = vec![];
        for window in &self.schedule.windows {
            for date in self.dates(from, until).filter(|d| window.days.contains(*d)) {
                let Some((from, until)) = self.absolute(date, window.hours) else { continue };
                let cause =
                    format!("{} window {} of schedule {}", window.mode, window.hours, self.schedule.name);
                intervals.push(Interval { from, until, mode: window.mode, cause });
            }
        }
        intervals
    }

    /// Desktop times: sessions with the time machines need to get ready, and short breaks between them.
    fn desktops(&self, from: Timestamp, until: Timestamp, windows: &[Interval]) -> Vec<Interval> {
        let mut sessions = vec![];
        for session in &self.schedule.sessions {
            for date in self.dates(from, until).filter(|d| self.schedule.takes_place(session, *d)) {
                let Some((from, until)) = self.absolute(date, session.hours) else { continue };
                let cause = format!(
                    "session \"{}\" {} of schedule {}",
                    session.title, session.hours, self.schedule.name
                );
                sessions.push(Interval { from, until, mode: Mode::Desktop, cause });
            }
        }
        sessions.sort_by_key(|s| (s.from, s.until));

        let mut intervals: Vec<Interval> = vec![];
        let mut busy_until = None::<Timestamp>;
        for mut session in sessions {
            let seconds_free = busy_until.map(|end| session.from.as_second() - end.as_second());
            match (seconds_free, busy_until) {
                (Some(free), _) if free <= 0 => {}
                (Some(free), Some(end)) if free <= i64::from(self.schedule.bridge_breaks_seconds) => {
                    let cause = format!("break of {} min before {}", free / 60, session.cause);
                    intervals.push(Interval { from: end, until: session.from, mode: Mode::Desktop, cause });
                }
                _ => {
                    let ready = self.ready_by(session.from, windows);
                    session.from = busy_until.map_or(ready, |end| ready.max(end));
                }
            }
            busy_until = Some(busy_until.map_or(session.until, |end| end.max(session.until)));
            intervals.push(session);
        }
        intervals
    }

    /// When machines must leave what they do to be ready for a session: earlier if they would be off.
    fn ready_by(&self, start: Timestamp, windows: &[Interval]) -> Timestamp {
        let before = |seconds: u32| start.checked_sub(i64::from(seconds).seconds()).unwrap_or(start);
        let wake = before(self.schedule.wake_before_seconds);
        let last = before(1);
        let off = |at: Timestamp| self.base(windows, at).0 == Mode::Off;
        let ends = windows.iter().map(|w| w.until).filter(|t| *t >= wake && *t < start);
        let begins = windows.iter().map(|w| w.from).filter(|t| *t >= wake && *t < start);
        if off(wake) || off(last) || ends.chain(begins).any(off) {
            wake
        } else {
            before(self.schedule.switch_before_seconds)
        }
    }

    /// Local dates on which something may begin that reaches into the time from `from` to `until`.
    fn dates(&self, from: Timestamp, until: Timestamp) -> impl Iterator<Item = Date> {
        let first = from.to_zoned(self.zone.clone()).date().saturating_sub(2.days());
        let last = until.to_zoned(self.zone.clone()).date().saturating_add(2.days());
        first.series(1.day()).take_while(move |d| *d <= last)
    }

    fn absolute(&self, date: Date, hours: Hours) -> Option<(Timestamp, Timestamp)> {
        let end_date = if hours.end <= hours.start { date.tomorrow().ok()? } else { date };
        let at = |date: Date, time: Time| {
            self.zone.to_ambiguous_timestamp(date.to_datetime(time)).compatible().ok()
        };
        let (from, until) = (at(date, hours.start)?, at(end_date, hours.end)?);
        (from < until).then_some((from, until))
    }
}

#[cfg(test)]
mod tests {
    use labshift_model::site::Site;
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = include_str!("../../docs/examples/site.toml");

    fn site(schedule: &str) -> Site {
        let head = EXAMPLE.split("[[schedule]]").next().expect("the example has a schedule");
        let head = head.replace("\"mornings\"", "\"s\"").replace("\"afternoons\"", "\"s\"");
        let text = format!("{head}\n[[schedule]]\nname = \"s\"\n{schedule}");
        Site::parse("site.toml", &text).unwrap_or_else(|faults| panic!("{faults}"))
    }

    /// The timeline of local days, as lines `day time mode cause`.
    fn lines(site: &Site, from: &str, until: &str) -> Vec<String> {
        let at = |text: &str| {
            let civil: jiff::civil::DateTime = text.parse().expect("a local time");
            civil.to_zoned(site.timezone.clone()).expect("in range").timestamp()
        };
        timeline(site, &site.rooms[0], at(from), at(until))
            .into_iter()
            .map(|m| {
                let local = m.from.to_zoned(site.timezone.clone());
                format!("{} {} {}", local.strftime("%a %d %H:%M"), m.mode, m.cause)
            })
            .collect()
    }

    fn session(title: &str, days: &str, start: &str, end: &str) -> String {
        format!(
            "[[schedule.session]]\ntitle = \"{title}\"\ndays = [\"{days}\"]\nstart = \"{start}\"\nend = \"{end}\"\n"
        )
    }

    #[test]
    fn a_mode_that_never_changes_is_no_news_from_one_moment_to_the_next() {
        let site = site("outside = \"compute\"\n");
        let noon: Timestamp = "2026-11-23T12:00:00Z".parse().expect("a time");
        let before = mode_at(&site, &site.rooms[0], noon);
        assert_eq!(before.mode, Mode::Compute);
        for ms in [1, 1000, 3_600_000] {
            let later = noon + jiff::SignedDuration::from_millis(ms);
            assert_eq!(mode_at(&site, &site.rooms[0], later), before, "{ms} ms later");
        }
    }

    #[test]
    fn a_day_of_the_example() {
        let site = Site::parse("site.toml", EXAMPLE).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(
            lines(&site, "2026-11-23T00:00", "2026-11-24T00:00"),
            [
                "Mon 23 00:00 off off window 22:00-07:00 of schedule mornings",
                "Mon 23 07:00 compute outside the sessions and windows of schedule mornings",
                "Mon 23 08:00 desktop session \"Algorithms\" 08:00-10:00 of schedule mornings",
                "Mon 23 10:00 compute outside the sessions and windows of schedule mornings",
                "Mon 23 22:00 off off window 22:00-07:00 of schedule mornings",
            ]
        );
    }

    #[test]
    fn machines_that_are_off_wake_before_the_session() {
        let site = site(&format!(
            "outside = \"off\"\nwake_before = \"15m\"\n{}",
            session("X", "mon", "08:00", "10:00")
        ));
        assert_eq!(
            lines(&site, "2026-11-23T00:00", "2026-11-24T00:00"),
            [
                "Mon 23 00:00 off outside the sessions and windows of schedule s",
                "Mon 23 07:45 desktop session \"X\" 08:00-10:00 of schedule s",
                "Mon 23 10:00 off outside the sessions and windows of schedule s",
            ]
        );
    }

    #[test]
    fn overlapping_sessions_and_short_breaks_keep_the_desktop() {
        let text = [
            "outside = \"compute\"\nbridge_breaks = \"20m\"\n".to_owned(),
            session("A", "mon", "08:00", "10:00"),
            session("B", "mon", "09:00", "11:00"),
            session("C", "mon", "11:15", "12:00"),
            session("D", "mon", "13:00", "14:00"),
        ];
        assert_eq!(
            lines(&site(&text.concat()), "2026-11-23T07:00", "2026-11-23T15:00"),
            [
                "Mon 23 07:00 compute outside the sessions and windows of schedule s",
                "Mon 23 08:00 desktop session \"A\" 08:00-10:00 of schedule s",
                "Mon 23 10:00 desktop session \"B\" 09:00-11:00 of schedule s",
                "Mon 23 11:00 desktop break of 15 min before session \"C\" 11:15-12:00 of schedule s",
                "Mon 23 11:15 desktop session \"C\" 11:15-12:00 of schedule s",
                "Mon 23 12:00 compute outside the sessions and windows of schedule s",
                "Mon 23 13:00 desktop session \"D\" 13:00-14:00 of schedule s",
                "Mon 23 14:00 compute outside the sessions and windows of schedule s",
            ]
        );
    }

    #[test]
    fn terms_holidays_exceptions_and_single_dates() {
        let text = "outside = \"off\"\nwake_before = \"0s\"\nterms = [\"2026-11-01..2026-11-30\"]\n\
                    holidays = [\"2026-11-24\"]\n[[schedule.session]]\ntitle = \"X\"\n\
                    days = [\"daily\", \"2026-12-05\"]\nstart = \"08:00\"\nend = \"09:00\"\n\
                    except = [\"2026-11-26..2026-11-27\"]\n";
        let days: Vec<_> = lines(&site(text), "2026-11-23T00:00", "2026-12-10T00:00")
            .into_iter()
            .filter(|l| l.contains("desktop"))
            .map(|l| l[..6].to_owned())
            .collect();
        assert_eq!(days, ["Mon 23", "Wed 25", "Sat 28", "Sun 29", "Mon 30", "Sat 05"]);
    }

    #[test]
    fn hours_that_pass_midnight_belong_to_the_day_they_begin_on() {
        let text = "outside = \"off\"\n[[schedule.window]]\nmode = \"compute\"\ndays = [\"fri\"]\n\
                    start = \"20:00\"\nend = \"04:00\"\n";
        assert_eq!(
            lines(&site(text), "2026-11-27T12:00", "2026-11-29T12:00"),
            [
                "Fri 27 12:00 off outside the sessions and windows of schedule s",
                "Fri 27 20:00 compute compute window 20:00-04:00 of schedule s",
                "Sat 28 04:00 off outside the sessions and windows of schedule s",
            ]
        );
    }

    #[test]
    fn summer_time_begins_and_ends() {
        // Budapest skips 02:00-03:00 on 29 March 2026 and has it twice on 25 October.
        let site = site(&format!(
            "outside = \"off\"\nwake_before = \"0s\"\n{}",
            session("N", "sun", "01:30", "03:30")
        ));
        let hours = |from: &str, until: &str| {
            let line = lines(&site, from, until);
            let zone = site.timezone.clone();
            let at = |t: &str| {
                t.parse::<jiff::civil::DateTime>()
                    .expect("a time")
                    .to_zoned(zone.clone())
                    .expect("ok")
                    .timestamp()
            };
            let all = timeline(&site, &site.rooms[0], at(from), at(until));
            (line[1].clone(), (all[2].from.as_second() - all[1].from.as_second()) / 60)
        };
        let (line, minutes) = hours("2026-03-29T00:00", "2026-03-29T12:00");
        assert_eq!((line.starts_with("Sun 29 01:30 desktop"), minutes), (true, 60));
        let (line, minutes) = hours("2026-10-25T00:00", "2026-10-25T12:00");
        assert_eq!((line.starts_with("Sun 25 01:30 desktop"), minutes), (true, 180));
        let (_, minutes) = hours("2026-11-01T00:00", "2026-11-01T12:00");
        assert_eq!(minutes, 120);
    }

    #[test]
    fn a_session_inside_the_skipped_hour_still_takes_place() {
        let site = site(&format!(
            "outside = \"off\"\nwake_before = \"0s\"\n{}",
            session("N", "sun", "02:15", "02:45")
        ));
        let line = lines(&site, "2026-03-29T00:00", "2026-03-29T12:00");
        assert!(line[1].starts_with("Sun 29 03:15 desktop"), "{line:?}");
        assert!(line[2].starts_with("Sun 29 03:45 off"), "{line:?}");
    }

    proptest! {
        /// `mode_at` and `upcoming` agree with the timeline at any second of three years.
        #[test]
        fn asking_at_a_time_agrees_with_the_timeline(second in 1_767_225_600_i64..1_861_920_000) {
            let site = Site::parse("site.toml", EXAMPLE).expect("good");
            let now = Timestamp::from_second(second).expect("in range");
            for room in &site.rooms {
                let current = mode_at(&site, room, now);
                prop_assert!(current.from <= now);
                let next = upcoming(&site, room, now, 7, 1);
                let Some(next) = next.first() else { continue };
                prop_assert!(next.from > now);
                let just_before = next.from - 1.second();
                let same = mode_at(&site, room, just_before);
                prop_assert_eq!((same.mode, &same.cause), (current.mode, &current.cause));
                prop_assert_eq!(&mode_at(&site, room, next.from), next);
            }
        }
    }
}
