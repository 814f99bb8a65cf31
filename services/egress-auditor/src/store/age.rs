//! What time it is, as far as letting go of records is concerned. A clock that is wrong by years must not empty the store, so
//! the clock is believed only where it is near what it should be by now; and of the record only a part goes by age in a day,
//! whatever the clock says. Days are days that the service has run, so no restart makes them shorter. Kept beside the chain.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use service_kit::clock;

pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS age (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    trusted INTEGER NOT NULL, leapt INTEGER NOT NULL, window INTEGER NOT NULL, gone INTEGER NOT NULL
) STRICT;";

/// A clock that is further ahead than this of what it should be is not believed at once. A stack may be off for long.
pub(super) const LEAP: Duration = Duration::from_secs(100 * 24 * 3600);
/// So long it must have stayed there, while the service ran.
pub(super) const SETTLED: Duration = Duration::from_secs(24 * 3600);
/// In as long as this ...
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// ... this part of the records goes by age at most ...
const SHARE: u64 = 10;
/// ... but for these, which go at any time.
const ANYWAY: u64 = super::MOST_AT_ONCE;

/// Times are milliseconds; of the epoch is `trusted` only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Age {
    /// What time it is.
    trusted: u64,
    /// How long the clock has been too far ahead.
    leapt: u64,
    /// How long this day has lasted.
    window: u64,
    /// Records that went by age in it.
    gone: u64,
}

impl Age {
    /// As it was kept; in a store that has none, by its newest record, or by the clock in an empty one.
    pub(super) fn load(connection: &Connection, now: u64) -> rusqlite::Result<Self> {
        let kept = connection
            .query_row("SELECT trusted, leapt, window, gone FROM age", [], |row| {
                Ok(Self { trusted: row.get(0)?, leapt: row.get(1)?, window: row.get(2)?, gone: row.get(3)? })
            })
            .optional()?;
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let newest: Option<String> = connection
            .query_row("SELECT recorded_at FROM record ORDER BY sequence DESC LIMIT 1", [], |row| row.get(0))
            .optional()?;
        let trusted = newest.and_then(|at| clock::millis(&at)).unwrap_or(now);
        Ok(Self { trusted, ..Self::default() })
    }

    pub(super) fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO age (one, trusted, leapt, window, gone) VALUES (1, ?1, ?2, ?3, ?4)",
            )?
            .execute((signed(self.trusted), signed(self.leapt), signed(self.window), signed(self.gone)))
            .map(drop)
    }

    /// The service has run for `elapsed` more, and the clock says `now`. Returns what time it is.
    pub(super) fn tick(&mut self, now: u64, elapsed: u64) -> u64 {
        self.window = self.window.saturating_add(elapsed);
        if self.window >= millis(WINDOW) {
            (self.window, self.gone) = (0, 0);
        }
        let expected = self.trusted.saturating_add(elapsed);
        let is_near = now <= expected.saturating_add(millis(LEAP));
        self.leapt = if is_near { 0 } else { self.leapt.saturating_add(elapsed) };
        if is_near || self.leapt >= millis(SETTLED) {
            (self.trusted, self.leapt) = (now, 0);
        } else {
            self.trusted = expected;
        }
        self.trusted
    }

    /// How many more of the records may go by age today.
    pub(super) fn left(&self, records: u64) -> u64 {
        (records / SHARE).max(ANYWAY).saturating_sub(self.gone)
    }

    /// So many went by age.
    pub(super) fn went(&mut self, records: u64) {
        self.gone = self.gone.saturating_add(records);
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    #[test]
    fn a_clock_that_leaps_is_believed_after_a_day_of_running() {
        let mut age = Age { trusted: 1000 * DAY, ..Age::default() };
        assert_eq!(age.tick(1090 * DAY, 0), 1090 * DAY, "off for a season");
        assert_eq!(age.tick(1090 * DAY + 5, 5), 1090 * DAY + 5);
        // Restarted again and again: no time passes.
        for _ in 0..100 {
            assert_eq!(age.tick(2000 * DAY, 0), 1090 * DAY + 5);
        }
        assert_eq!(age.tick(2000 * DAY, DAY - 1), 1091 * DAY + 4, "it goes on by what the service has run");
        let right_again = age.clone().tick(1091 * DAY + 4, 0);
        assert_eq!(right_again, 1091 * DAY + 4);
        assert_eq!(age.tick(2000 * DAY + 1, 1), 2000 * DAY + 1, "it stayed there for a day");
        assert_eq!(age.tick(1500 * DAY, 1), 1500 * DAY, "set back, less is too old");
    }

    #[test]
    fn a_tenth_goes_in_a_day_of_running() {
        let mut age = Age { trusted: DAY, ..Age::default() };
        assert_eq!((age.left(1_000_000), age.left(5)), (100_000, ANYWAY));
        age.went(99_999);
        age.tick(DAY, DAY - 1);
        assert_eq!((age.left(1_000_000), age.left(5)), (1, 0));
        age.tick(DAY, 1);
        assert_eq!(age.left(1_000_000), 100_000);
    }
}
