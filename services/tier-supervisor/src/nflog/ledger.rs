//! What the table dropped and nobody was told of: its counters now, against those when somebody last looked.
//!
//! Two kinds of frames are not reported. Those that died while nobody listened: of them it is known how many, not whose;
//! the number is kept in a file. After an orderly end it lacks only what died in the milliseconds between a look at the
//! counters and the beginning, or the end, of listening. After a crash it also holds what was reported since the last look
//! ([`NOTED_EVERY`]), because a frame too many is better than one too few. And those beyond what the table reports of one
//! container: it counts them by container. What is not counted at all: frames that a table dropped between the last look at
//! it and its replacement; tier-supervisor looks right before it replaces one.
//!
//! It blocks; async callers go through `spawn_blocking`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::files;
use crate::kernel::{self, Drops};

/// How often the counters are noted while somebody listens.
pub(super) const NOTED_EVERY: Duration = Duration::from_secs(10);

/// The counters, and the file with their sum. Clones are one ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    listening: bool,
    unheard: u64,
    /// By container, and not told yet.
    unreported: BTreeMap<String, u64>,
    last: Option<Drops>,
}

/// Somebody listens as long as it lives.
#[derive(Debug)]
pub(super) struct Listening(Ledger);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.state().listening = false;
    }
}

impl Ledger {
    /// In this file.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), state: Arc::default() }
    }

    /// Looks at the counters, and keeps what nobody was told of until it is taken. To be done before anything replaces the
    /// table. What cannot be read is reported in the log and counts as none.
    pub fn look(&self) {
        let mut state = self.state();
        let Some(now) = counted() else { return };
        let total = now.total();
        if state.listening {
            let State { unreported, last, .. } = &mut *state;
            add_growth(unreported, last.as_ref(), &now);
        } else {
            let noted = match files::read_if_present(&self.path) {
                Ok(text) => text.as_deref().map(str::trim).and_then(|text| text.parse().ok()),
                Err(error) => {
                    tracing::warn!(%error, "what was counted before is not known");
                    None
                }
            };
            // Never noted: the stack's first start, or everything since the table was loaded.
            state.unheard = state.unheard.saturating_add(since(noted.unwrap_or(0), total));
        }
        state.last = Some(now);
        if let Err(error) = files::write_atomically(&self.path, total.to_string().as_bytes(), 0o600) {
            tracing::warn!(%error, "what was counted cannot be noted; it may be reported twice");
        }
    }

    /// From now on somebody listens: what is reported is heard.
    pub(super) fn listen(&self) -> Listening {
        self.state().listening = true;
        Listening(self.clone())
    }

    /// What nobody heard; the next one to ask hears of it no more.
    pub(super) fn take_unheard(&self) -> u64 {
        std::mem::take(&mut self.state().unheard)
    }

    /// What was not reported, by container, as far as it was looked at; the next one to ask hears of it no more.
    pub(super) fn take_unreported(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.state().unreported)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds by how much the counters have grown.
fn add_growth(unreported: &mut BTreeMap<String, u64>, last: Option<&Drops>, now: &Drops) {
    let same = last.filter(|last| last.tables == now.tables);
    for (container, &packets) in &now.unreported {
        let before = same.and_then(|last| last.unreported.get(container)).copied().unwrap_or(0);
        let grown = packets.saturating_sub(before);
        if grown > 0 {
            let sum = unreported.entry(container.clone()).or_default();
            *sum = sum.saturating_add(grown);
        }
    }
}

fn counted() -> Option<Drops> {
    kernel::drops().unwrap_or_else(|error| {
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
    fn what_grew_is_told_by_container_and_a_new_table_begins_at_nothing() {
        let drops = |table: u64, counts: &[(&str, u64)]| Drops {
            tables: vec![table],
            unreported: counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            ..Drops::default()
        };
        let mut grown = BTreeMap::new();
        let (first, second) = (drops(1, &[("a", 5), ("b", 0)]), drops(1, &[("a", 9), ("b", 0), ("c", 1)]));
        add_growth(&mut grown, None, &first);
        add_growth(&mut grown, Some(&first), &second);
        // Another table, though it has counted more already.
        add_growth(&mut grown, Some(&second), &drops(2, &[("a", 20)]));
        assert_eq!(grown, BTreeMap::from([("a".to_owned(), 29), ("c".to_owned(), 1)]));
    }

    #[test]
    fn counters_that_began_anew() {
        for (noted, now, unheard) in [(0, 0, 0), (3, 3, 0), (3, 10, 7), (10, 2, 2), (10, 0, 0)] {
            assert_eq!(since(noted, now), unheard, "{noted} {now}");
        }
    }
}
