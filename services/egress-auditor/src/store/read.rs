//! Reading the audit store: newest records, records as they come, verification, what was not yet published.

use std::path::PathBuf;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use tokio::sync::watch;

use super::Head;
use super::permits::{Matched, Used, Wanted, permits};
use super::verify::{Verified, verify};
use crate::record::{Entry, Record};

pub(super) const COLUMNS: &str = "sequence, event_id, recorded_at, type, tier, principal, layer, host, port, reason, fix, trace_id, \
                       count, payload, previous, hash";

/// Which records; empty text means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// A tier's name.
    pub tier: String,
    /// A CloudEvents type.
    pub kind: String,
}

/// Why the store was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// SQLite refused.
    #[error("the audit store cannot be read")]
    Database(#[from] rusqlite::Error),
    /// The reading thread ended.
    #[error("the service is stopping")]
    Stopping(#[from] tokio::task::JoinError),
}

/// Reads the store. Cheap to clone. Each call has its own read-only connection, in a thread that may block.
#[derive(Debug, Clone)]
pub struct Reader {
    path: PathBuf,
    head: watch::Receiver<Head>,
}

impl Reader {
    pub(super) fn new(path: PathBuf, head: watch::Receiver<Head>) -> Self {
        Self { path, head }
    }

    /// Changes whenever records were committed.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }

    /// The newest `limit` records up to and including `until`, newest first.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn newest(&self, filter: Filter, until: u64, limit: u32) -> Result<Vec<Record>, ReadError> {
        self.blocking(move |connection| select(connection, &filter, "sequence <= ?1", "sequence DESC", until, limit))
            .await
    }

    /// The first `limit` records behind `after`, oldest first.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn after(&self, filter: Filter, after: u64, limit: u32) -> Result<Vec<Record>, ReadError> {
        self.blocking(move |connection| select(connection, &filter, "sequence > ?1", "sequence ASC", after, limit))
            .await
    }

    /// Own events behind `after`, up to `through`, that never came back from the bus, oldest first.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn unpublished(&self, after: u64, through: u64, limit: u32) -> Result<Vec<Record>, ReadError> {
        self.blocking(move |connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM record WHERE sequence > ?1 AND sequence <= ?2
                 AND event_id IN (SELECT event_id FROM outbox) ORDER BY sequence LIMIT ?3"
            );
            let mut statement = connection.prepare(&sql)?;
            let rows = statement.query_map((after, through, limit), record)?;
            rows.collect()
        })
        .await
    }

    /// How far a stream of the bus was taken; none if nothing of it ever was.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn place(&self, stream: &'static str) -> Result<Option<u64>, ReadError> {
        self.blocking(move |connection| {
            connection.query_row("SELECT sequence FROM place WHERE stream = ?1", [stream], |row| row.get(0)).optional()
        })
        .await
    }

    /// Walks the chain from the first record that is kept to the last committed one.
    ///
    /// # Errors
    /// When the database as a whole cannot be read. A record that cannot be read is an answer.
    pub async fn verify(&self) -> Result<Verified, ReadError> {
        let head = *self.head.borrow();
        self.blocking(move |connection| verify(connection, head)).await
    }

    /// Permits in the store for these tunnels, where some are used already; see [`permits`](super::permits).
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn permits(&self, wanted: Vec<Wanted>, used: Vec<Used>) -> Result<Matched, ReadError> {
        self.blocking(move |connection| permits(connection, &wanted, &used)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let path = self.path.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.busy_timeout(super::BUSY)?;
            work(&connection)
        })
        .await?;
        Ok(outcome?)
    }
}

fn select(
    connection: &Connection,
    filter: &Filter,
    range: &str,
    order: &str,
    bound: u64,
    limit: u32,
) -> rusqlite::Result<Vec<Record>> {
    // `range` and `order` are literals of this module; what comes from outside is bound.
    let mut sql = format!("SELECT {COLUMNS} FROM record WHERE {range}");
    let bound = bound.min(i64::MAX.unsigned_abs());
    let mut bindings: Vec<&dyn rusqlite::ToSql> = vec![&bound, &limit];
    for (column, value) in [("tier", &filter.tier), ("type", &filter.kind)] {
        if !value.is_empty() {
            bindings.push(value);
            sql.push_str(&format!(" AND {column} = ?{}", bindings.len()));
        }
    }
    sql.push_str(&format!(" ORDER BY {order} LIMIT ?2"));
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map(bindings.as_slice(), record)?;
    rows.collect()
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record { sequence: row.get(0)?, recorded_at: row.get(2)?, entry: entry(row)?, hash: row.get(15)? })
}

pub(super) fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        event_id: row.get(1)?,
        kind: row.get(3)?,
        tier: row.get(4)?,
        principal: row.get(5)?,
        layer: row.get(6)?,
        host: row.get(7)?,
        port: row.get(8)?,
        reason: row.get(9)?,
        fix: row.get(10)?,
        trace_id: row.get(11)?,
        count: row.get(12)?,
        payload: row.get(13)?,
        own: false,
    })
}
