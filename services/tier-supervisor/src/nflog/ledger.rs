//! How many frames the table dropped while nobody listened: its counters now, against those when somebody last did.
//!
//! It owns the file with that number. The kernel reports only to who listens at the time, so that is all that can be
//! known of those frames: how many, not whose. After an orderly end the number lacks only what died in the milliseconds
//! between a look at the counters and the beginning, or the end, of listening. After a crash it also holds what was reported since the last look
//! ([`NOTED_EVERY`]), because a frame too many is better than one too few. What is not counted at all: frames that a table
//! dropped which was replaced before anybody looked; nobody but tier-supervisor replaces it.
//!
//! It blocks; async callers go through `spawn_blocking`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::files;
use crate::kernel;

/// How often the counters are noted while somebody listens.
pub(super) const NOTED_EVERY: Duration = Duration::from_secs(10);

/// The number, in a file. Clones are one ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
    unheard: Arc<AtomicU64>,
}

impl Ledger {
    /// In this file.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), unheard: Arc::default() }
    }

    /// Looks at the counters while nobody listens, and keeps what nobody heard until it is taken. To be done before anything
    /// replaces the table. What cannot be read is reported in the log and counts as none.
    pub fn look(&self) {
        let Some(now) = counted() else { return };
        let noted = match files::read_if_present(&self.path) {
            Ok(text) => text.as_deref().map(str::trim).and_then(|text| text.parse().ok()),
            Err(error) => {
                tracing::warn!(%error, "what was counted before is not known");
                None
            }
        };
        // Never noted: the stack's first start, or everything since the table was loaded.
        self.unheard.fetch_add(since(noted.unwrap_or(0), now), Ordering::Relaxed);
        self.note();
    }

    /// What nobody heard; the next one to ask hears of it no more.
    pub(super) fn take(&self) -> u64 {
        self.unheard.swap(0, Ordering::Relaxed)
    }

    /// Notes what is counted by now.
    pub(super) fn note(&self) {
        let Some(now) = counted() else { return };
        if let Err(error) = files::write_atomically(&self.path, now.to_string().as_bytes(), 0o600) {
            tracing::warn!(%error, "what was counted cannot be noted; it may be reported twice");
        }
    }
}

fn counted() -> Option<u64> {
    kernel::reported_drops().unwrap_or_else(|error| {
        tracing::warn!(%error, "the counters of the kernel table cannot be read");
        None
    })
}

/// Counters begin at 0 when a table is loaded: fewer than before means another table.
fn since(noted: u64, now: u64) -> u64 {
    now.checked_sub(noted).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_began_anew() {
        for (noted, now, unheard) in [(0, 0, 0), (3, 3, 0), (3, 10, 7), (10, 2, 2), (10, 0, 0)] {
            assert_eq!(since(noted, now), unheard, "{noted} {now}");
        }
    }
}
