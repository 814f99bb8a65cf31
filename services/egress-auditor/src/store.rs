//! The audit store: an append-only table in SQLite with a hash chain over it.
//!
//! One writer task owns the only connection that writes. It commits in batches (one fsync for many events), and keeps
//! trying while the disk refuses: the service is NOT_SERVING meanwhile, the senders wait, and no event is dropped. The
//! same event (by id) is stored once. Readers have connections of their own and never wait for the writer (WAL).
//!
//! The same writer lets go of the oldest records when it is asked to (see `retention`), and leaves a tombstone in the
//! chain. Not here: what an event means, and publishing it (see `ledger`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use service_kit::clock;
use service_kit::host::Health;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::chain::{self, Hash};
use crate::record::Entry;

mod age;
mod permits;
mod prune;
mod read;
mod verify;

pub use permits::{Matched, Used, Wanted};
pub use prune::{Limits, Look, MOST_AT_ONCE};
pub use read::{Filter, ReadError, Reader};
pub use verify::Verified;

/// Requests that may wait for the writer. A request is a handful of events of about a kilobyte; at the few hundred
/// commits a second of a modest disk this is some seconds of the worst flood, after which senders wait: the DNS window
/// goes on folding, the log file waits on disk, the bus redelivers.
const QUEUE: usize = 1024;
/// Requests in one commit.
const MOST_BATCH: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const SLOWEST_RETRY: Duration = Duration::from_secs(5);
/// How long the writer waits for a lock that somebody outside holds, before it is a failure that is reported.
const BUSY: Duration = Duration::from_millis(250);
/// Version of the schema below, in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 1;
const HEALTH_PART: &str = "audit-store";

const SCHEMA: &str = "
CREATE TABLE record (
    sequence INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    recorded_at TEXT NOT NULL,
    type TEXT NOT NULL,
    tier TEXT NOT NULL,
    principal TEXT NOT NULL,
    layer TEXT NOT NULL,
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    reason TEXT NOT NULL,
    fix TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    count INTEGER NOT NULL,
    payload TEXT NOT NULL,
    previous BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX record_by_type ON record (type, tier, sequence);
CREATE INDEX record_by_tier ON record (tier, sequence);
CREATE TABLE outbox (event_id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

/// Apart from the chain: how far the streams of the bus were taken. Stores written before there was this table get it.
const PLACES: &str =
    "CREATE TABLE IF NOT EXISTS place (stream TEXT PRIMARY KEY, sequence INTEGER NOT NULL) STRICT, WITHOUT ROWID;";

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or the file cannot be used.
    #[error("cannot use {path} as audit store; the volume must exist and belong to this service's uid")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("cannot open the audit store {path}; keep the file for inspection, and start with an empty volume")]
    Database {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Written by another version.
    #[error(
        "the audit store {path} has schema version {found}, this program knows {SCHEMA_VERSION}; use the program that wrote it"
    )]
    Version {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: i64,
    },
}

/// The writer has ended: the service is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit store is closed")]
pub struct Closed;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is a new record.
    New {
        /// Its sequence.
        sequence: u64,
    },
    /// The store had it already.
    Known,
    /// The id was known with *another* content. Both are kept, this one under an id of its own.
    Conflict {
        /// Its sequence.
        sequence: u64,
    },
}

/// The last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// 0 while the store is empty.
    pub sequence: u64,
    /// Its hash; the genesis hash while the store is empty.
    pub hash: Hash,
}

/// How far a stream of the bus was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The stream.
    pub stream: &'static str,
    /// Sequence of the last message taken.
    pub sequence: u64,
}

#[derive(Debug)]
struct Request {
    entries: Vec<Entry>,
    place: Option<Place>,
    done: oneshot::Sender<Vec<Stored>>,
}

/// Why nothing was let go.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The service is stopping.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// SQLite refused.
    #[error("the audit store cannot be written")]
    Database(#[from] rusqlite::Error),
}

#[derive(Debug)]
struct PruneRequest {
    limits: Limits,
    done: oneshot::Sender<rusqlite::Result<Look>>,
}

/// Appends to the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    queue: mpsc::Sender<Request>,
    prunes: mpsc::Sender<PruneRequest>,
}

impl Store {
    /// Appends entries, in order, and returns when they are on disk. Waits as long as the disk refuses.
    ///
    /// # Errors
    /// [`Closed`] when the service is stopping.
    pub async fn append(&self, entries: Vec<Entry>) -> Result<Vec<Stored>, Closed> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        self.request(entries, None).await
    }

    /// The same for entries that came from the bus: they and the place are on disk together or not at all.
    ///
    /// # Errors
    /// [`Closed`] when the service is stopping: then nothing may be acknowledged.
    pub async fn append_from(&self, entries: Vec<Entry>, place: Place) -> Result<Vec<Stored>, Closed> {
        self.request(entries, Some(place)).await
    }

    /// Lets go of records that are beyond the limits, at most [`MOST_AT_ONCE`]; ask again until none was.
    ///
    /// # Errors
    /// See [`PruneError`]; then nothing was let go.
    pub async fn prune(&self, limits: Limits) -> Result<Look, PruneError> {
        let (done, looked) = oneshot::channel();
        self.prunes.send(PruneRequest { limits, done }).await.map_err(|_| Closed)?;
        Ok(looked.await.map_err(|_| Closed)??)
    }

    async fn request(&self, entries: Vec<Entry>, place: Option<Place>) -> Result<Vec<Stored>, Closed> {
        let (done, stored) = oneshot::channel();
        self.queue.send(Request { entries, place, done }).await.map_err(|_| Closed)?;
        stored.await.map_err(|_| Closed)
    }
}

/// The part that owns the writing connection. Run it as a critical task.
#[derive(Debug)]
pub struct Writer {
    connection: Connection,
    queue: mpsc::Receiver<Request>,
    prunes: mpsc::Receiver<PruneRequest>,
    head: watch::Sender<Head>,
}

/// Opens or creates the store in `directory`.
///
/// # Errors
/// See [`OpenError`].
pub fn open(directory: &Path) -> Result<(Store, Writer, Reader), OpenError> {
    let path = directory.join("audit.sqlite");
    create_private(&path).map_err(|source| OpenError::File { path: path.clone(), source })?;
    let failed = |source| OpenError::Database { path: path.clone(), source };
    let connection = Connection::open(&path).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    // FULL: a commit that was acknowledged survives the loss of power.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    match version {
        0 => {
            let all = format!("BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
            connection.execute_batch(&all).map_err(failed)?;
        }
        SCHEMA_VERSION => {}
        found => return Err(OpenError::Version { path, found }),
    }
    connection.execute_batch(PLACES).map_err(failed)?;
    connection.execute_batch(age::TABLE).map_err(failed)?;
    let head = last(&connection).map_err(failed)?;
    let (head, head_seen) = watch::channel(head);
    let (sender, queue) = mpsc::channel(QUEUE);
    // One at a time: whoever asks waits for the answer.
    let (pruner, prunes) = mpsc::channel(1);
    let store = Store { queue: sender, prunes: pruner };
    Ok((store, Writer { connection, queue, prunes, head }, Reader::new(path, head_seen)))
}

fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    // SQLite gives its -wal and -shm files the mode of the database.
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(|_| ())
}

fn last(connection: &Connection) -> rusqlite::Result<Head> {
    let found = connection
        .query_row("SELECT sequence, hash FROM record ORDER BY sequence DESC LIMIT 1", [], |row| {
            Ok(Head { sequence: row.get(0)?, hash: row.get(1)? })
        })
        .optional()?;
    Ok(found.unwrap_or_else(|| Head { sequence: 0, hash: chain::genesis() }))
}

impl Writer {
    /// Commits what comes until every [`Store`] is gone, or until `deadline`. The tokens are the shutdown's: between
    /// `draining` and `deadline` the queue is still emptied.
    ///
    /// # Errors
    /// When the blocking pool is gone, which ends the process anyway.
    pub async fn run(
        mut self,
        health: Health,
        draining: CancellationToken,
        deadline: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut head = *self.head.borrow();
        tracing::info!(sequence = head.sequence, hash = hex::encode(head.hash), "audit store: head at start");
        let mut connection = self.connection;
        let mut failing = false;
        loop {
            let mut batch = Vec::with_capacity(MOST_BATCH);
            // Cancel-safe: `recv_many` and `recv` lose nothing when another arm wins.
            tokio::select! {
                Some(PruneRequest { limits, done }) = self.prunes.recv() => {
                    let attempt = tokio::task::spawn_blocking(move || {
                        let outcome = prune::prune(&mut connection, head, &limits);
                        (connection, outcome)
                    })
                    .await?;
                    let outcome;
                    (connection, outcome) = attempt;
                    let looked = outcome.map(|(new_head, look)| {
                        head = new_head;
                        self.head.send_replace(head);
                        look
                    });
                    if done.send(looked).is_err() {
                        tracing::debug!("nobody waits for this look any more");
                    }
                    continue;
                }
                count = self.queue.recv_many(&mut batch, MOST_BATCH) => if count == 0 { break },
                () = deadline.cancelled() => break,
            }
            let mut retry = FIRST_RETRY;
            loop {
                let attempt = tokio::task::spawn_blocking(move || {
                    let outcome = commit(&mut connection, head, &batch);
                    (connection, batch, outcome)
                })
                .await?;
                let outcome;
                (connection, batch, outcome) = attempt;
                match outcome {
                    Ok((new_head, stored)) => {
                        if std::mem::take(&mut failing) {
                            health.report(HEALTH_PART, Ok(()));
                        }
                        head = new_head;
                        self.head.send_replace(head);
                        for (request, stored) in batch.into_iter().zip(stored) {
                            // The sender may have given up waiting; the record stands.
                            if request.done.send(stored).is_err() {
                                tracing::debug!("nobody waits for this commit any more");
                            }
                        }
                        break;
                    }
                    Err(error) => {
                        failing = true;
                        tracing::error!(%error, waiting = batch.len(), "the audit store cannot be written; will try again");
                        health.report(
                            HEALTH_PART,
                            Err(format!(
                                "the audit store cannot be written ({error}); free space or repair its volume"
                            )),
                        );
                        tokio::select! {
                            () = tokio::time::sleep(retry) => retry = retry.saturating_mul(2).min(SLOWEST_RETRY),
                            () = deadline.cancelled() => {
                                tracing::error!(lost = batch.len(), "the service ends before the audit store could be written");
                                return Ok(());
                            }
                        }
                    }
                }
            }
        }
        tracing::info!(sequence = head.sequence, hash = hex::encode(head.hash), "audit store: head at end");
        // The end of a critical task stops the service; at the end of the service that is no failure.
        if draining.is_cancelled() { Ok(()) } else { anyhow::bail!("every sender of the audit store is gone") }
    }
}

fn commit(
    connection: &mut Connection,
    mut head: Head,
    batch: &[Request],
) -> rusqlite::Result<(Head, Vec<Vec<Stored>>)> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut all = Vec::with_capacity(batch.len());
    {
        let recorded_at = clock::now_rfc3339();
        let mut known = transaction.prepare_cached("SELECT payload FROM record WHERE event_id = ?1")?;
        let mut confirm = transaction.prepare_cached("DELETE FROM outbox WHERE event_id = ?1")?;
        for request in batch {
            let mut stored = Vec::with_capacity(request.entries.len());
            for entry in &request.entries {
                let payload: Option<String> = known.query_row([&entry.event_id], |row| row.get(0)).optional()?;
                stored.push(match payload {
                    None => {
                        head = insert(&transaction, head, &recorded_at, entry)?;
                        Stored::New { sequence: head.sequence }
                    }
                    Some(payload) if payload == entry.payload => {
                        if !entry.own {
                            confirm.execute([&entry.event_id])?;
                        }
                        Stored::Known
                    }
                    // Seen again by this service itself, at another moment.
                    Some(payload) if entry.own && entry.tells_the_same(&payload) => Stored::Known,
                    Some(_) => match conflict(&transaction, &mut known, head, &recorded_at, entry)? {
                        Some(new_head) => {
                            head = new_head;
                            Stored::Conflict { sequence: head.sequence }
                        }
                        None => Stored::Known,
                    },
                });
            }
            if let Some(place) = request.place {
                let sequence = i64::try_from(place.sequence).unwrap_or(i64::MAX);
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO place (stream, sequence) VALUES (?1, ?2)")?
                    .execute(params![place.stream, sequence])?;
            }
            all.push(stored);
        }
    }
    transaction.commit()?;
    Ok((head, all))
}

/// Somebody used the id of another event: an attempt to make two events look like one, or a bug. Stored beside it.
fn conflict(
    transaction: &Connection,
    known: &mut rusqlite::CachedStatement<'_>,
    head: Head,
    recorded_at: &str,
    entry: &Entry,
) -> rusqlite::Result<Option<Head>> {
    let id =
        assistant_proto::event::EventId::derive(&[b"conflict", entry.event_id.as_bytes(), entry.payload.as_bytes()]);
    if known.exists([id.as_str()])? {
        return Ok(None);
    }
    tracing::error!(event_id = %entry.event_id, "an event id was used for two different events; both are recorded");
    // Nobody publishes it: whoever listens to the bus has the first one, and it would never come back.
    let entry = Entry { event_id: id.as_str().to_owned(), own: false, ..entry.clone() };
    insert(transaction, head, recorded_at, &entry).map(Some)
}

fn insert(transaction: &Connection, head: Head, recorded_at: &str, entry: &Entry) -> rusqlite::Result<Head> {
    let sequence = head.sequence.saturating_add(1);
    let hash = chain::link(&head.hash, sequence, recorded_at, entry);
    transaction
        .prepare_cached(
            "INSERT INTO record (sequence, event_id, recorded_at, type, tier, principal, layer, host, port, reason, fix,
                                 trace_id, count, payload, previous, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?
        .execute(params![
            sequence,
            entry.event_id,
            recorded_at,
            entry.kind,
            entry.tier,
            entry.principal,
            entry.layer,
            entry.host,
            entry.port,
            entry.reason,
            entry.fix,
            entry.trace_id,
            entry.count,
            entry.payload,
            head.hash,
            hash,
        ])?;
    if entry.own {
        transaction.prepare_cached("INSERT INTO outbox (event_id) VALUES (?1)")?.execute([&entry.event_id])?;
    }
    Ok(Head { sequence, hash })
}
