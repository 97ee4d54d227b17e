//! What the server remembers: one SQLite file, owned by one thread. Others send it a closure and get its result.
//!
//! | table | holds |
//! |---|---|
//! | `records` | nodes and guests as the planner knows them, JSON |
//! | `boots` | boot attempts with their stages |
//! | `logs` | what nodes logged, the newest of each |
//! | `plane` | what the boot plane saw of each machine |
//! | `wakes` | magic packets |
//! | `events` | every change with its cause: what `explain` prints |
//! | `reports` | what guests told of their work |
//! | `tokens` | hashes of node tokens |
//! | `uploads` | files of saved guests that the store verified |
//! | `audit` | who asked for a change, and how it ended |

pub mod records;
mod schema;

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use rusqlite::{Connection, Transaction};
use tokio::sync::oneshot;

/// The registry refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// SQLite says no.
    #[error("registry {path}: {source}")]
    Database {
        /// File.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Written by a newer version of labshift.
    #[error(
        "registry {path} has schema {found}, this version reads up to {known}; start the newer labshift again"
    )]
    Newer {
        /// File.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest one that we know.
        known: u32,
    },
    /// Its thread is gone.
    #[error("the registry is closed")]
    Closed,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the registry's thread.
#[derive(Debug, Clone)]
pub struct Registry {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
}

impl Registry {
    /// Opens the database file, brings its schema up to date, and starts its thread. The thread ends with the last
    /// handle.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let failed = |source| RegistryError::Database { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "full").map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        let found = schema::version(&connection).map_err(failed)?;
        let known = schema::MIGRATIONS.len() as u32;
        if found > known {
            return Err(RegistryError::Newer { path: path.to_owned(), found, known });
        }
        schema::migrate(&mut connection, schema::MIGRATIONS).map_err(failed)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("registry".into())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            })
            .map_err(|_| RegistryError::Closed)?;
        Ok(Registry { jobs, path: path.to_owned() })
    }

    /// Runs one transaction on the registry's thread; it is durable when this returns.
    pub async fn run<T, F>(&self, work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.jobs
            .send(Box::new(move |connection| {
                let _ = reply.send(transact(connection, work));
            }))
            .map_err(|_| RegistryError::Closed)?;
        let failed = |source| RegistryError::Database { path: self.path.clone(), source };
        answer.await.map_err(|_| RegistryError::Closed)?.map_err(failed)
    }

    /// The same for a caller that is no task; blocks its thread.
    pub fn run_now<T, F>(&self, work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = mpsc::channel();
        self.jobs
            .send(Box::new(move |connection| {
                let _ = reply.send(transact(connection, work));
            }))
            .map_err(|_| RegistryError::Closed)?;
        let failed = |source| RegistryError::Database { path: self.path.clone(), source };
        answer.recv().map_err(|_| RegistryError::Closed)?.map_err(failed)
    }
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction()?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_there_after_opening_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.db");
        let registry = Registry::open(&path).expect("opened");
        let put = |t: &Transaction<'_>| {
            t.execute("INSERT INTO records(kind, name, json) VALUES ('node', 'ws1', '{}')", [])
        };
        registry.run(put).await.expect("written");
        let broken = registry
            .run(|t| {
                t.execute("INSERT INTO records(kind, name, json) VALUES ('node', 'ws2', '{}')", [])?;
                t.execute("INSERT INTO nowhere VALUES (1)", [])
            })
            .await;
        assert!(broken.expect_err("no such table").to_string().contains("x.db"));
        drop(registry);
        let registry = Registry::open(&path).expect("opened again");
        let count =
            |t: &Transaction<'_>| t.query_row("SELECT count(*) FROM records", [], |r| r.get::<_, i64>(0));
        assert_eq!(registry.run(count).await.expect("read"), 1_i64, "a failed transaction leaves nothing");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.db");
        Connection::open(&path).and_then(|c| c.pragma_update(None, "user_version", 99)).expect("written");
        let error = Registry::open(&path).expect_err("refused");
        assert!(matches!(error, RegistryError::Newer { found: 99, .. }), "{error}");
    }
}
