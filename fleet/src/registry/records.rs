//! What is written to the registry and read from it, as statements.

use std::collections::BTreeMap;

use jiff::Timestamp;
use labshift_model::api::{Boot, Event, EventKind, GuestReport, LogPart, WakeView};
use rusqlite::{Result, Row, Transaction, params, types::Type};
use serde::{Serialize, de::DeserializeOwned};

use crate::{boots::BootLog, keys::Hash};

/// One change.
#[derive(Debug, Clone)]
pub enum Write {
    /// A node or guest as the planner knows it.
    Record {
        /// `node` or `guest`.
        kind: &'static str,
        /// Name.
        name: String,
        /// `None` forgets it.
        json: Option<String>,
    },
    /// A boot, as far as it is known.
    Boot {
        /// Node.
        node: String,
        /// The boot.
        log: BootLog,
    },
    /// A node's log goes on.
    Log {
        /// Node.
        node: String,
        /// Its lines.
        part: LogPart,
    },
    /// Something the boot plane saw.
    Plane {
        /// When.
        at_real: Timestamp,
        /// Whom it is about, if that is a node.
        node: Option<String>,
        /// The event, JSON.
        json: String,
    },
    /// A magic packet.
    Wake {
        /// Node.
        node: String,
        /// The packet.
        wake: WakeView,
    },
    /// Something happened.
    Event(Event),
    /// A boot's token.
    Token {
        /// Its hash.
        hash: Hash,
        /// Node.
        node: String,
        /// Boot attempt.
        attempt: u64,
    },
    /// Tokens of earlier boots are over.
    EndTokens {
        /// Node.
        node: String,
        /// The boot that speaks now.
        attempt: u64,
    },
    /// A guest told something.
    Report {
        /// Guest.
        guest: String,
        /// What.
        report: GuestReport,
    },
    /// A file of a saved guest is in the store.
    Upload {
        /// Guest.
        guest: String,
        /// Revision.
        revision: u64,
        /// `memory` or `disk`.
        part: &'static str,
        /// Size and hash.
        entry: labshift_model::manifest::FileEntry,
        /// Node that sent it.
        node: String,
        /// When.
        at_real: Timestamp,
    },
    /// Saved states before this revision are not kept.
    EndUploads {
        /// Guest.
        guest: String,
        /// First revision that stays.
        revision: u64,
    },
    /// An admin asked for a change.
    Audit {
        /// Server's clock.
        at: Timestamp,
        /// Machine's clock.
        at_real: Timestamp,
        /// Who.
        who: String,
        /// Address it came from.
        peer: String,
        /// What was asked.
        request: String,
        /// How it ended.
        outcome: String,
    },
}

/// Everything the server starts from.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Records by kind and name.
    pub records: BTreeMap<(String, String), String>,
    /// Newest boot of each node.
    pub boots: BTreeMap<String, BootLog>,
    /// Node tokens.
    pub tokens: Vec<(Hash, String, u64)>,
    /// Last report of each guest, and how many there were.
    pub reports: BTreeMap<String, (GuestReport, u64)>,
    /// Highest event number.
    pub event: u64,
    /// Highest boot record.
    pub boot: u64,
    /// Highest attempt.
    pub attempt: u64,
}

/// Bytes of log that are kept of each node.
const LOG: u64 = 1 << 20;

/// Rows that are kept of what only serves looking back.
const HISTORY: u64 = 50_000;

/// Reads everything, and forgets the oldest history.
pub fn remember(t: &Transaction<'_>) -> Result<Remembered> {
    for table in ["plane", "wakes", "events", "reports", "audit"] {
        let sql = format!("DELETE FROM {table} WHERE id < (SELECT max(id) FROM {table}) - ?1");
        t.execute(&sql, [HISTORY])?;
    }
    let mut all = Remembered::default();
    let mut rows = t.prepare("SELECT kind, name, json FROM records")?;
    for row in rows.query_map([], |r| Ok(((r.get(0)?, r.get(1)?), r.get(2)?)))? {
        let (key, json) = row?;
        all.records.insert(key, json);
    }
    let mut rows =
        t.prepare("SELECT node, json FROM boots WHERE id IN (SELECT max(id) FROM boots GROUP BY node)")?;
    for row in rows.query_map([], |r| Ok((r.get::<_, String>(0)?, json_at::<BootLog>(r, 1)?)))? {
        let (node, log) = row?;
        all.boots.insert(node, log);
    }
    let mut rows = t.prepare("SELECT hash, node, attempt FROM tokens")?;
    for row in rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))? {
        all.tokens.push(row?);
    }
    let mut rows = t.prepare(
        "SELECT guest, at, at_real, node, body, (SELECT count(*) FROM reports AS all_of WHERE all_of.guest = r.guest)
         FROM reports AS r WHERE id IN (SELECT max(id) FROM reports GROUP BY guest)",
    )?;
    for row in rows.query_map([], |r| Ok((r.get::<_, String>(0)?, report(r)?, r.get(5)?)))? {
        let (guest, report, count) = row?;
        all.reports.insert(guest, (report, count));
    }
    let highest =
        |sql: &str| t.query_row(sql, [], |r| r.get::<_, Option<u64>>(0)).map(Option::unwrap_or_default);
    all.event = highest("SELECT max(id) FROM events")?;
    all.boot = highest("SELECT max(id) FROM boots")?;
    all.attempt = highest("SELECT max(attempt) FROM boots")?.max(highest("SELECT max(attempt) FROM tokens")?);
    Ok(all)
}

/// Writes changes, in order.
pub fn write(t: &Transaction<'_>, writes: &[Write]) -> Result<()> {
    for change in writes {
        write_one(t, change)?;
    }
    Ok(())
}

fn write_one(t: &Transaction<'_>, change: &Write) -> Result<()> {
    match change {
        Write::Record { kind, name, json: Some(json) } => t
            .prepare_cached("INSERT OR REPLACE INTO records (kind, name, json) VALUES (?1, ?2, ?3)")?
            .execute(params![kind, name, json]),
        Write::Record { kind, name, json: None } => {
            t.execute("DELETE FROM records WHERE kind = ?1 AND name = ?2", params![kind, name])
        }
        Write::Boot { node, log } => t
            .prepare_cached(
                "INSERT OR REPLACE INTO boots (id, node, attempt, begun_real, json) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![log.id, node, log.boot.attempt, log.boot.begun_real.to_string(), json_of(log)]),
        Write::Log { node, part } => {
            t.prepare_cached("INSERT INTO logs (node, begun_real, at_real, bytes, text) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![
                    node,
                    part.begun_real.to_string(),
                    part.at_real.to_string(),
                    part.text.len(),
                    part.text
                ])?;
            t.prepare_cached(
                "DELETE FROM logs WHERE node = ?1 AND id <= (
                    SELECT max(id) FROM (
                        SELECT id, sum(bytes) OVER (ORDER BY id DESC) AS from_here FROM logs WHERE node = ?1
                    ) WHERE from_here > ?2
                 )",
            )?
            .execute(params![node, LOG])
        }
        Write::Plane { at_real, node, json } => t
            .prepare_cached("INSERT INTO plane (at_real, node, json) VALUES (?1, ?2, ?3)")?
            .execute(params![at_real.to_string(), node, json]),
        Write::Wake { node, wake } => t.execute(
            "INSERT INTO wakes (node, at_real, means, number, cause, failure) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![node, wake.at_real.to_string(), wake.means.to_string(), wake.number, wake.cause, wake.failure],
        ),
        Write::Event(e) => t
            .prepare_cached(
                "INSERT INTO events (id, at, at_real, kind, subject, state, text, cause)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                e.id,
                e.at.to_string(),
                e.at_real.to_string(),
                json_of(&e.kind),
                e.subject,
                e.state,
                e.text,
                e.cause
            ]),
        Write::Token { hash, node, attempt } => t.execute(
            "INSERT OR REPLACE INTO tokens (hash, node, attempt) VALUES (?1, ?2, ?3)",
            params![hash, node, attempt],
        ),
        Write::EndTokens { node, attempt } => {
            t.execute("DELETE FROM tokens WHERE node = ?1 AND attempt < ?2", params![node, attempt])
        }
        Write::Report { guest, report } => t.execute(
            "INSERT INTO reports (guest, at, at_real, node, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                guest,
                report.at.to_string(),
                report.at_real.to_string(),
                report.node,
                report.body.to_string()
            ],
        ),
        Write::Upload { guest, revision, part, entry, node, at_real } => t.execute(
            "INSERT OR REPLACE INTO uploads (guest, revision, part, size, sha256, node, at_real)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![guest, revision, part, entry.size, entry.sha256, node, at_real.to_string()],
        ),
        Write::EndUploads { guest, revision } => {
            t.execute("DELETE FROM uploads WHERE guest = ?1 AND revision < ?2", params![guest, revision])
        }
        Write::Audit { at, at_real, who, peer, request, outcome } => t.execute(
            "INSERT INTO audit (at, at_real, who, peer, request, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![at.to_string(), at_real.to_string(), who, peer, request, outcome],
        ),
    }?;
    Ok(())
}

/// Events after a number, oldest first; those about one subject, if one is given.
pub fn events_after(t: &Transaction<'_>, after: u64, limit: usize) -> Result<Vec<Event>> {
    let mut rows = t.prepare(
        "SELECT id, at, at_real, kind, subject, state, text, cause FROM events WHERE id > ?1 ORDER BY id LIMIT ?2",
    )?;
    rows.query_map(params![after, limit as i64], event)?.collect()
}

/// The newest events, newest first; those about one subject, if one is given.
pub fn newest_events(t: &Transaction<'_>, subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
    let mut rows = t.prepare(
        "SELECT id, at, at_real, kind, subject, state, text, cause FROM events
         WHERE ?1 IS NULL OR subject = ?1 ORDER BY id DESC LIMIT ?2",
    )?;
    rows.query_map(params![subject, limit as i64], event)?.collect()
}

/// A node's boots, newest first.
pub fn boots(t: &Transaction<'_>, node: &str, limit: usize) -> Result<Vec<Boot>> {
    let mut rows = t.prepare("SELECT json FROM boots WHERE node = ?1 ORDER BY id DESC LIMIT ?2")?;
    rows.query_map(params![node, limit as i64], |r| json_at::<BootLog>(r, 0).map(|l| l.boot))?.collect()
}

/// What is kept of a node's log, oldest first.
pub fn log(t: &Transaction<'_>, node: &str) -> Result<Vec<LogPart>> {
    let mut rows = t.prepare("SELECT begun_real, at_real, text FROM logs WHERE node = ?1 ORDER BY id")?;
    let part =
        |r: &Row<'_>| Ok(LogPart { begun_real: time_at(r, 0)?, at_real: time_at(r, 1)?, text: r.get(2)? });
    rows.query_map([node], part)?.collect()
}

fn event(r: &Row<'_>) -> Result<Event> {
    Ok(Event {
        id: r.get(0)?,
        at: time_at(r, 1)?,
        at_real: time_at(r, 2)?,
        kind: json_at::<EventKind>(r, 3)?,
        subject: r.get(4)?,
        state: r.get(5)?,
        text: r.get(6)?,
        cause: r.get(7)?,
    })
}

fn report(r: &Row<'_>) -> Result<GuestReport> {
    Ok(GuestReport { at: time_at(r, 1)?, at_real: time_at(r, 2)?, node: r.get(3)?, body: json_at(r, 4)? })
}

fn time_at(r: &Row<'_>, column: usize) -> Result<Timestamp> {
    let text: String = r.get(column)?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn json_at<T: DeserializeOwned>(r: &Row<'_>, column: usize) -> Result<T> {
    let text: String = r.get(column)?;
    serde_json::from_str(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn json_of<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
