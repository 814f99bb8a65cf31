//! Letting go of the oldest records, so that the store does not grow for ever. In one commit with their end a record
//! `audit.pruned` is appended, a tombstone: up to where, the hash of the last of them, and how many of what kind there
//! were. With it the chain still proves that nothing else is missing (see `verify`).
//!
//! What this service saw itself stays until it has come back from the bus, and everything after it: a record that nobody
//! else ever had is not let go. The file does not become smaller; its room is used again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assistant_proto::event::{EgressDenied, Event, EventId};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use serde::{Deserialize, Serialize};
use service_kit::clock;

use super::age::{Age, millis};
use super::{Head, insert};
use crate::chain::Hash;
use crate::line::Millis;
use crate::record::Entry;

/// Type of a tombstone.
pub(crate) const PRUNED: &str = "audit.pruned";
/// Records in one commit: some ten megabytes, and well below a second for which the writer does nothing else.
pub const MOST_AT_ONCE: u64 = 10_000;
/// Of the allowed size, so much is made free at a time.
const STEP: u64 = 10;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in use.
    pub most_bytes: u64,
    /// Older records are too old, and are let go once there is one a day older than that: now and then many, rather than
    /// always a few.
    pub age: Duration,
    /// What the clock says.
    pub now: SystemTime,
    /// How long the service has run since the last look.
    pub elapsed: Duration,
}

/// How the store stands after a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Bytes in use.
    pub bytes: u64,
    /// How many records were let go.
    pub pruned: u64,
    /// Some had to be let go and could not, because one has not come back from the bus.
    pub held: bool,
    /// Some would be too old by the clock, and stay for now: the clock leapt, or enough went today.
    pub spared: bool,
}

/// What a tombstone says of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tombstone {
    /// Sequence of the last record that was let go.
    pub(super) through: u64,
    /// Its hash.
    pub(super) hash: Hash,
}

impl Tombstone {
    /// Out of a record's payload.
    pub(super) fn of(payload: &str) -> Option<Self> {
        let body: Body = serde_json::from_str(payload).ok()?;
        let mut hash = Hash::default();
        hex::decode_to_slice(&body.hash, &mut hash).ok()?;
        Some(Self { through: body.through, hash })
    }
}

/// What was let go, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tally {
    records: u64,
    /// Records by type.
    by_type: BTreeMap<String, u64>,
    /// Denied attempts by tier.
    denied: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, kind: &str, tier: &str, attempts: u64) {
        self.records = self.records.saturating_add(1);
        let records = self.by_type.entry(kind.to_owned()).or_default();
        *records = records.saturating_add(1);
        if kind == EgressDenied::TYPE {
            let denied = self.denied.entry(tier.to_owned()).or_default();
            *denied = denied.saturating_add(attempts);
        }
    }

    fn join(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        for (into, from) in [(&mut self.by_type, &other.by_type), (&mut self.denied, &other.denied)] {
            for (name, number) in from {
                let sum = into.entry(name.clone()).or_default();
                *sum = sum.saturating_add(*number);
            }
        }
    }
}

/// A tombstone's payload.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    reason: String,
    through: u64,
    hash: String,
    /// How many this one stands for.
    count: u64,
    first_recorded_at: String,
    last_recorded_at: String,
    /// What this one stands for.
    these: Tally,
    /// The same with all before it.
    all: Tally,
    detail: String,
    fix: String,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Lets go of at most [`MOST_AT_ONCE`] records that are beyond the limits.
pub(super) fn prune(connection: &mut Connection, head: Head, limits: &Limits) -> rusqlite::Result<(Head, Look)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let bytes = bytes_in_use(&transaction)?;
    let now = limits.now.duration_since(UNIX_EPOCH).map_or(0, millis);
    let mut age = Age::load(&transaction, now)?;
    let trusted = age.tick(now, millis(limits.elapsed));
    let (before, overdue) = (too_old_at(trusted, limits.age), too_old_at(trusted, limits.age.saturating_add(DAY)));
    let mut nothing = Look { bytes, ..Look::default() };
    let oldest = transaction
        .query_row("SELECT sequence, recorded_at FROM record ORDER BY sequence LIMIT 1", [], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    let Some((first, recorded_at)) = oldest else {
        age.save(&transaction)?;
        transaction.commit()?;
        return Ok((head, nothing));
    };
    let records = head.sequence.saturating_sub(first).saturating_add(1);
    let too_large = beyond_size(bytes, limits.most_bytes, records);
    let too_old = if recorded_at < overdue { beyond_age(&transaction, first, &before)? } else { 0 };
    let may_go = too_old.min(age.left(records));
    nothing.spared = may_go < too_old
        || (trusted < now && recorded_at < too_old_at(now, limits.age.saturating_add(DAY)) && too_old == 0);
    let wanted = too_large.max(may_go).min(MOST_AT_ONCE);
    if wanted == 0 {
        age.save(&transaction)?;
        transaction.commit()?;
        return Ok((head, nothing));
    }
    let mut through = first.saturating_add(wanted.saturating_sub(1)).min(head.sequence);
    let waiting: Option<u64> = transaction.query_row(
        "SELECT MIN(sequence) FROM record WHERE event_id IN (SELECT event_id FROM outbox)",
        [],
        |row| row.get(0),
    )?;
    let held = waiting.is_some_and(|waiting| waiting <= through);
    if let Some(waiting) = waiting {
        through = through.min(waiting.saturating_sub(1));
    }
    if through < first {
        age.save(&transaction)?;
        transaction.commit()?;
        return Ok((head, Look { held, ..nothing }));
    }
    let reason = if too_large > may_go { "retention-size" } else { "retention-age" };
    let entry = tombstone(&transaction, first, through, reason)?;
    let pruned = entry.count;
    let recorded_at = clock::now_rfc3339();
    let head = insert(&transaction, head, &recorded_at, &entry)?;
    transaction.execute("DELETE FROM record WHERE sequence <= ?1", [through])?;
    if reason == "retention-age" {
        age.went(pruned);
    }
    age.save(&transaction)?;
    let bytes = bytes_in_use(&transaction)?;
    transaction.commit()?;
    tracing::info!(through, pruned, reason, payload = entry.payload, "the oldest records were let go");
    Ok((head, Look { bytes, pruned, held, spared: nothing.spared }))
}

/// What was recorded before this is older than `age` at `now`.
fn too_old_at(now: u64, age: Duration) -> String {
    clock::rfc3339(Millis(now.saturating_sub(millis(age))).system_time())
}

/// How many of the records must go for the size; a tenth is made free then.
fn beyond_size(bytes: u64, most: u64, records: u64) -> u64 {
    if bytes <= most {
        return 0;
    }
    let excess = u128::from(bytes.saturating_sub(most)).saturating_add(u128::from(most / STEP));
    let share = u128::from(records).saturating_mul(excess) / u128::from(bytes.max(1));
    u64::try_from(share).unwrap_or(u64::MAX).clamp(1, records)
}

/// How many from the first on are from before that time; records are in the order of their times but for a clock that was
/// set.
fn beyond_age(connection: &Connection, first: u64, before: &str) -> rusqlite::Result<u64> {
    let mut statement =
        connection.prepare_cached("SELECT recorded_at FROM record WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2")?;
    let mut rows = statement.query([first, MOST_AT_ONCE])?;
    let mut old = 0_u64;
    while let Some(row) = rows.next()? {
        if row.get::<_, String>(0)?.as_str() >= before {
            break;
        }
        old = old.saturating_add(1);
    }
    Ok(old)
}

fn tombstone(connection: &Connection, first: u64, through: u64, reason: &str) -> rusqlite::Result<Entry> {
    let mut these = Tally::default();
    let (mut hash, mut first_recorded_at, mut last_recorded_at) = (Hash::default(), String::new(), String::new());
    let mut statement = connection.prepare_cached(
        "SELECT type, tier, count, recorded_at, hash FROM record WHERE sequence <= ?1 ORDER BY sequence",
    )?;
    let mut rows = statement.query([through])?;
    while let Some(row) = rows.next()? {
        these.add(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?, row.get(2)?);
        last_recorded_at = row.get(3)?;
        if first_recorded_at.is_empty() {
            first_recorded_at.clone_from(&last_recorded_at);
        }
        hash = row.get(4)?;
    }
    let before: Option<String> = connection
        .query_row(
            "SELECT payload FROM record WHERE type = ?1 AND tier = 'stack' ORDER BY sequence DESC LIMIT 1",
            [PRUNED],
            |row| row.get(0),
        )
        .optional()?;
    let mut all = before.and_then(|text| serde_json::from_str::<Body>(&text).ok()).map(|b| b.all).unwrap_or_default();
    all.join(&these);
    let count = these.records;
    let why = if reason == "retention-size" { "the store was larger than it may be" } else { "they were too old" };
    let body = Body {
        reason: reason.to_owned(),
        through,
        hash: hex::encode(hash),
        count,
        detail: format!(
            "the oldest {count} records ({first} to {through}, of {first_recorded_at} to {last_recorded_at}) were let go, \
             because {why}"
        ),
        first_recorded_at,
        last_recorded_at,
        these,
        all,
        fix: "who needs records for longer copies the audit volume in time".to_owned(),
    };
    let id = EventId::derive(&[PRUNED.as_bytes(), &through.to_be_bytes(), &hash]);
    // A map of text and numbers is always JSON; were it not, a tombstone without its hash would be worse than none.
    let payload =
        serde_json::to_string(&body).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    Ok(Entry::from_bus(&format!("{PRUNED}.stack"), id.as_str(), payload.as_bytes()))
}

fn bytes_in_use(connection: &Connection) -> rusqlite::Result<u64> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok(pages.saturating_mul(pragma("page_size")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_for_the_size_is_the_excess_and_a_tenth() {
        for (bytes, most, records, expected) in [
            (100, 100, 1000, 0),
            (110, 100, 1100, 200),
            (200, 100, 10, 5),
            (101, 100, 1, 1),
            (u64::MAX, 1, 7, 6),
            (5, 0, 3, 3),
        ] {
            assert_eq!(beyond_size(bytes, most, records), expected, "{bytes} {most} {records}");
        }
    }

    #[test]
    fn sums_are_carried_on() {
        let (mut all, mut these) = (Tally::default(), Tally::default());
        these.add("egress.denied", "tasks", 7);
        these.add("egress.denied", "tasks", u64::MAX);
        these.add("turn.started", "tasks", 1);
        all.join(&these);
        all.join(&these);
        assert_eq!((all.records, all.by_type["egress.denied"], all.denied["tasks"]), (6, 4, u64::MAX));
        assert_eq!(all.by_type["turn.started"], 2);
    }
}
