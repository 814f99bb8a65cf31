//! Walking the chain. What stands at its beginning is either the first record there ever was, or the first behind a prefix
//! that was let go; then a tombstone further on in the same chain must name exactly that prefix's end.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::prune::{PRUNED, Tombstone};
use super::read::{COLUMNS, entry};
use super::{Head, chain};

/// What a walk along the chain found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Records that fit, from the first that is kept on.
    pub records: u64,
    /// Hash of the last of them.
    pub head: chain::Hash,
    /// Sequence of the first record that does not fit, or that is missing.
    pub broken_at: Option<u64>,
    /// Records that were let go before the first, as a tombstone in the chain says.
    pub pruned: u64,
}

/// A place in the chain: a record's sequence and hash.
type Place = (u64, chain::Hash);

pub(super) fn verify(connection: &Connection, head: Head) -> rusqlite::Result<Verified> {
    // One picture of the store: records are committed and let go while this walks.
    let picture = connection.unchecked_transaction()?;
    let mut statement = picture.prepare(&format!("SELECT {COLUMNS} FROM record ORDER BY sequence"))?;
    let mut rows = statement.query([])?;
    let mut base: Place = (0, chain::genesis());
    let mut at = base;
    let mut tombstone: Option<Place> = None;
    let broken = |base: Place, at: Place, sequence: u64| Verified {
        records: at.0.saturating_sub(base.0),
        head: at.1,
        broken_at: Some(sequence),
        pruned: base.0,
    };
    loop {
        let expected = at.0.saturating_add(1);
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            // A damaged page: what is on it does not fit.
            Err(_) => return Ok(broken(base, at, expected)),
        };
        if at.0 == 0
            && let Some(claimed) = claimed(row)
        {
            (base, at) = (claimed, claimed);
        }
        let expected = at.0.saturating_add(1);
        let Some(hash) = fits(row, expected, &at.1) else { return Ok(broken(base, at, expected)) };
        at = (expected, hash);
        if let Some(found) = tombstone_of(row)? {
            tombstone = Some(found);
        }
        if at.0 == head.sequence && at.1 != head.hash {
            // A whole new chain: consistent in itself, but not the one this process has written.
            return Ok(broken(base, at, head.sequence));
        }
    }
    if at.0 < head.sequence {
        // Records at the end are missing.
        return Ok(broken(base, at, at.0.saturating_add(1)));
    }
    if base.0 > 0 && tombstone != Some(base) {
        // The beginning is missing, and nobody has said that it was let go.
        let first_missing = tombstone.map_or(1, |(through, _)| through.saturating_add(1)).min(base.0);
        return Ok(Verified { records: 0, head: chain::genesis(), broken_at: Some(first_missing), pruned: 0 });
    }
    Ok(Verified { records: at.0.saturating_sub(base.0), head: at.1, broken_at: None, pruned: base.0 })
}

/// What the first record says stood before it; none where that would be the beginning.
fn claimed(row: &Row<'_>) -> Option<Place> {
    let sequence: u64 = row.get(0).ok()?;
    let before = sequence.checked_sub(1).filter(|before| *before > 0)?;
    Some((before, hash_in(row, 14)?))
}

fn tombstone_of(row: &Row<'_>) -> rusqlite::Result<Option<Place>> {
    if row.get_ref(3)?.as_str()? != PRUNED {
        return Ok(None);
    }
    let found = Tombstone::of(row.get_ref(13)?.as_str()?);
    Ok(found.map(|Tombstone { through, hash }| (through, hash)))
}

fn hash_in(row: &Row<'_>, column: usize) -> Option<chain::Hash> {
    match row.get_ref(column) {
        Ok(ValueRef::Blob(bytes)) => chain::Hash::try_from(bytes).ok(),
        _ => None,
    }
}

/// The record's hash, if it is the `expected` one and fits behind `previous`.
fn fits(row: &Row<'_>, expected: u64, previous: &chain::Hash) -> Option<chain::Hash> {
    let sequence: u64 = row.get(0).ok()?;
    let recorded_at: String = row.get(2).ok()?;
    let entry = entry(row).ok()?;
    let (stored_previous, stored_hash) = (hash_in(row, 14)?, hash_in(row, 15)?);
    let computed = chain::link(previous, sequence, &recorded_at, &entry);
    (sequence == expected && stored_previous == *previous && stored_hash == computed).then_some(computed)
}
