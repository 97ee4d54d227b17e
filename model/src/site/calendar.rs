//! `[[schedule]]`: when a room's machines show desktops, compute, or are off.
//!
//! ```toml
//! [[schedule]]
//! name = "weekdays"
//! outside = "off"            # what machines do when nothing below applies
//! wake_before = "10m"        # be up so long before a session that begins from off
//! terms = ["2026-09-07..2026-12-18"]
//! holidays = ["2026-10-23", "2026-11-02..2026-11-06"]
//!
//! [[schedule.session]]       # desktop hours
//! title = "Algorithms"
//! days = ["mon-fri"]         # mon..sun, ranges, dates (2026-11-28), or daily
//! start = "08:00"
//! end = "10:00"
//! except = ["2026-11-25"]
//!
//! [[schedule.window]]        # what to do outside sessions, at these hours; the first that applies wins
//! mode = "compute"
//! days = ["daily"]
//! start = "18:00"
//! end = "06:00"              # passes midnight
//! ```

use jiff::civil::{Date, Time, Weekday};
use toml::Spanned;

use crate::{fault::Section, node::Mode};

use super::read::{duration, name, text};

/// When a room's machines do what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// `name`: unique among schedules.
    pub name: String,
    /// `outside = "compute"`: the mode when no session and no window applies: `compute` or `off`.
    pub outside: Mode,
    /// `wake_before = "10m"`: how long before a session its machines are woken when they would be off, in seconds.
    pub wake_before_seconds: u32,
    /// `switch_before = "0s"`: how long before a session machines leave compute mode, in seconds.
    pub switch_before_seconds: u32,
    /// `bridge_breaks = "30m"`: two sessions with at most so long a break between them keep their desktops
    /// through it, in seconds.
    pub bridge_breaks_seconds: u32,
    /// `terms`: sessions on weekdays take place on these dates only; always when there are none. Sessions on a
    /// named date don't need a term.
    pub terms: Vec<DateSpan>,
    /// `holidays`: dates without sessions.
    pub holidays: Vec<DateSpan>,
    /// `[[schedule.session]]`.
    pub sessions: Vec<Session>,
    /// `[[schedule.window]]`.
    pub windows: Vec<Window>,
}

/// `[[schedule.session]]`: desktop hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// `title`: shown to people as the cause.
    pub title: String,
    /// `days`.
    pub days: Days,
    /// `start` and `end`.
    pub hours: Hours,
    /// `except`: dates on which this session does not take place.
    pub except: Vec<DateSpan>,
}

/// `[[schedule.window]]`: what machines do at these hours outside sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// `mode`: `compute` or `off`.
    pub mode: Mode,
    /// `days`; every day when absent. A window that passes midnight belongs to the day it begins on.
    pub days: Days,
    /// `start` and `end`.
    pub hours: Hours,
}

/// Local hours of a day. An end that is not after the start lies on the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// Begin, inclusive.
    pub start: Time,
    /// End, exclusive. `24:00` is read as `00:00`.
    pub end: Time,
}

/// Days of the week and single dates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Days {
    /// Monday first.
    pub weekdays: [bool; 7],
    /// Single dates.
    pub dates: Vec<Date>,
}

/// Dates from one to another, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateSpan {
    /// First date.
    pub from: Date,
    /// Last date.
    pub until: Date,
}

impl DateSpan {
    /// Whether the date is one of them.
    pub fn contains(&self, date: Date) -> bool {
        (self.from..=self.until).contains(&date)
    }
}

impl Schedule {
    /// Whether a session takes place on a date (as the date it begins on).
    pub fn takes_place(&self, session: &Session, date: Date) -> bool {
        let spans = |spans: &[DateSpan]| spans.iter().any(|s| s.contains(date));
        if spans(&session.except) || spans(&self.holidays) {
            return false;
        }
        session.days.dates.contains(&date)
            || (session.days.has_weekday(date.weekday()) && (self.terms.is_empty() || spans(&self.terms)))
    }
}

impl Days {
    /// Every day of the week.
    pub fn daily() -> Self {
        Days { weekdays: [true; 7], dates: vec![] }
    }

    /// Whether this day of the week is one of them.
    pub fn has_weekday(&self, day: Weekday) -> bool {
        self.weekdays.get(day.to_monday_zero_offset() as usize).copied().unwrap_or(false)
    }

    /// Whether a date is one of them, by its day of the week or by itself.
    pub fn contains(&self, date: Date) -> bool {
        self.has_weekday(date.weekday()) || self.dates.contains(&date)
    }
}

impl std::fmt::Display for Hours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = self.end.strftime("%H:%M").to_string();
        let end = if end == "00:00" { "24:00" } else { &end };
        write!(f, "{}-{end}", self.start.strftime("%H:%M"))
    }
}

pub(super) fn schedule(table: Section<'_, '_>) -> Option<(Schedule, Spanned<String>)> {
    let name = name(&table, "a name that rooms refer to");
    let outside = mode(&table, "outside").unwrap_or(Mode::Compute);
    let schedule = Schedule {
        name: name.as_ref().map(|n| n.get_ref().clone()).unwrap_or_default(),
        outside,
        wake_before_seconds: duration(&table, "wake_before", 0..=24 * 3600).unwrap_or(600),
        switch_before_seconds: duration(&table, "switch_before", 0..=3600).unwrap_or(0),
        bridge_breaks_seconds: duration(&table, "bridge_breaks", 0..=24 * 3600).unwrap_or(1800),
        terms: spans(&table, "terms"),
        holidays: spans(&table, "holidays"),
        sessions: table.sections("session").into_iter().filter_map(session).collect(),
        windows: table.sections("window").into_iter().filter_map(window).collect(),
    };
    table.close();
    Some((schedule, name?))
}

fn session(table: Section<'_, '_>) -> Option<Session> {
    let title = text(&table, "title", "what the students know it by, for example \"Algorithms\"");
    let days = days(&table, "write, for example, days = [\"mon-fri\"] or days = [\"2026-11-28\"]");
    let hours = hours(&table);
    if let Some(hours) = &hours
        && hours.start == hours.end
    {
        let message = "this session begins and ends at the same time";
        table.source().fault(table.span(), message, "give it an end after its start");
    }
    let except = spans(&table, "except");
    table.close();
    Some(Session { title: title?, days: days?, hours: hours?, except })
}

fn window(table: Section<'_, '_>) -> Option<Window> {
    let mode = mode(&table, "mode");
    if mode.is_none() && table.string("mode").is_none() {
        table.missing("mode", "write mode = \"compute\" or mode = \"off\"");
    }
    let days = days(&table, "").unwrap_or_else(Days::daily);
    let hours = hours(&table);
    table.close();
    Some(Window { mode: mode?, days, hours: hours? })
}

fn mode(table: &Section<'_, '_>, key: &'static str) -> Option<Mode> {
    let found = table.string(key)?;
    match *found.get_ref() {
        "compute" => Some(Mode::Compute),
        "off" => Some(Mode::Off),
        other => {
            let message = format!("\"{key}\" must be \"compute\" or \"off\", but this is \"{other}\"");
            let help = if other == "desktop" { "write desktop hours as [[schedule.session]]" } else { "" };
            table.source().fault(found.span(), message, help);
            None
        }
    }
}

fn hours(table: &Section<'_, '_>) -> Option<Hours> {
    let start = time(table, "start");
    let end = time(table, "end");
    Some(Hours { start: start?, end: end? })
}

fn time(table: &Section<'_, '_>, key: &'static str) -> Option<Time> {
    let help = "write a time of day like \"08:00\"";
    let found = table.required(key, help)?;
    let text = *found.get_ref();
    if key == "end" && text == "24:00" {
        return Some(Time::midnight());
    }
    let parsed = (text.len() == 5).then(|| Time::strptime("%H:%M", text).ok()).flatten();
    if parsed.is_none() {
        table.source().fault(found.span(), format!("\"{text}\" is not a time of day"), help);
    }
    parsed
}

const WEEKDAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn days(table: &Section<'_, '_>, required: &str) -> Option<Days> {
    let items = table.strings("days");
    if items.is_empty() {
        if !required.is_empty() {
            table.missing("days", required);
        }
        return None;
    }
    let mut days = Days::default();
    for item in items {
        let text = *item.get_ref();
        let index = |day: &str| WEEKDAYS.iter().position(|w| *w == day);
        if text == "daily" {
            days.weekdays = [true; 7];
        } else if let Some(day) = index(text) {
            days.weekdays[day] = true;
        } else if let Some((from, to)) = text.split_once('-').and_then(|(a, b)| Some((index(a)?, index(b)?)))
        {
            let mut day = from;
            days.weekdays[day] = true;
            while day != to {
                day = (day + 1) % 7;
                days.weekdays[day] = true;
            }
        } else if let Some(date) = date(text) {
            days.dates.push(date);
        } else {
            let message = format!("\"{text}\" is not a day");
            let help = "write mon, tue, wed, thu, fri, sat, sun, a range like mon-fri, a date like 2026-11-28, or daily";
            table.source().fault(item.span(), message, help);
        }
    }
    Some(days)
}

fn spans(table: &Section<'_, '_>, key: &'static str) -> Vec<DateSpan> {
    let mut spans = vec![];
    for item in table.strings(key) {
        let text = *item.get_ref();
        let (from, until) = text.split_once("..").unwrap_or((text, text));
        match (date(from), date(until)) {
            (Some(from), Some(until)) if from <= until => spans.push(DateSpan { from, until }),
            (Some(_), Some(_)) => {
                table.source().fault(
                    item.span(),
                    format!("\"{text}\" ends before it begins"),
                    "swap the two dates",
                );
            }
            _ => {
                let help = "write a date like 2026-12-24, or two like 2026-12-24..2027-01-02";
                table.source().fault(item.span(), format!("\"{text}\" is not a date"), help);
            }
        }
    }
    spans
}

fn date(text: &str) -> Option<Date> {
    (text.len() == 10).then(|| Date::strptime("%Y-%m-%d", text).ok()).flatten()
}
