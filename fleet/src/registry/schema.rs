//! The registry's schema, as the list of changes that made it. `PRAGMA user_version` counts those that were done.

use rusqlite::Connection;

/// Never change an entry that was released: add one.
pub(super) const MIGRATIONS: &[&str] = &[
    "CREATE TABLE records (kind TEXT NOT NULL, name TEXT NOT NULL, json TEXT NOT NULL, PRIMARY KEY (kind, name));
     CREATE TABLE boots (
        id INTEGER PRIMARY KEY, node TEXT NOT NULL, attempt INTEGER NOT NULL, begun_real TEXT NOT NULL,
        json TEXT NOT NULL
     );
     CREATE INDEX boots_of_node ON boots (node, id);
     CREATE TABLE plane (id INTEGER PRIMARY KEY, at_real TEXT NOT NULL, node TEXT, json TEXT NOT NULL);
     CREATE TABLE wakes (
        id INTEGER PRIMARY KEY, node TEXT NOT NULL, at_real TEXT NOT NULL, means TEXT NOT NULL, number INTEGER NOT NULL,
        cause TEXT NOT NULL, failure TEXT
     );
     CREATE INDEX wakes_of_node ON wakes (node, id);
     CREATE TABLE events (
        id INTEGER PRIMARY KEY, at TEXT NOT NULL, at_real TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
        state TEXT NOT NULL, text TEXT NOT NULL, cause TEXT NOT NULL
     );
     CREATE INDEX events_of_subject ON events (subject, id);
     CREATE TABLE tokens (hash BLOB PRIMARY KEY, node TEXT NOT NULL, attempt INTEGER NOT NULL);
     CREATE TABLE uploads (
        guest TEXT NOT NULL, revision INTEGER NOT NULL, part TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
        node TEXT NOT NULL, at_real TEXT NOT NULL, PRIMARY KEY (guest, revision, part)
     );
     CREATE TABLE audit (
        id INTEGER PRIMARY KEY, at TEXT NOT NULL, at_real TEXT NOT NULL, who TEXT NOT NULL, peer TEXT NOT NULL,
        request TEXT NOT NULL, outcome TEXT NOT NULL
     );",
    "CREATE TABLE reports (
        id INTEGER PRIMARY KEY, guest TEXT NOT NULL, at TEXT NOT NULL, at_real TEXT NOT NULL, node TEXT,
        body TEXT NOT NULL
     );
     CREATE INDEX reports_of_guest ON reports (guest, id);",
    "CREATE TABLE logs (
        id INTEGER PRIMARY KEY, node TEXT NOT NULL, begun_real TEXT NOT NULL, at_real TEXT NOT NULL, bytes INTEGER NOT NULL,
        text TEXT NOT NULL
     );
     CREATE INDEX logs_of_node ON logs (node, id, bytes);",
];

pub(super) fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Does the changes that are missing, each in a transaction with its count.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let done = version(connection)?;
    for (sql, number) in migrations.iter().zip(1_u32..).skip(done as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(connection: &Connection) -> Vec<String> {
        let mut names = connection.prepare("SELECT sql FROM sqlite_schema ORDER BY name").expect("prepared");
        let rows = names.query_map([], |r| r.get::<_, Option<String>>(0)).expect("asked");
        rows.filter_map(|r| r.expect("read")).collect()
    }

    #[test]
    fn every_old_version_becomes_the_newest_with_its_data() {
        let mut fresh = Connection::open_in_memory().expect("opened");
        migrate(&mut fresh, MIGRATIONS).expect("made");
        for old in 1..=MIGRATIONS.len() {
            let mut connection = Connection::open_in_memory().expect("opened");
            migrate(&mut connection, &MIGRATIONS[..old]).expect("old");
            connection.execute("INSERT INTO records VALUES ('node', 'ws1', '{}')", []).expect("written");
            migrate(&mut connection, MIGRATIONS).expect("new");
            assert_eq!(version(&connection), Ok(MIGRATIONS.len() as u32));
            assert_eq!(tables(&connection), tables(&fresh));
            let kept: i64 =
                connection.query_row("SELECT count(*) FROM records", [], |r| r.get(0)).expect("kept");
            assert_eq!(kept, 1);
        }
    }
}
