//! Up to where a filter's log was read, in a file.
//!
//! The engine gives a log from a second on; within that second, what was read is told by the line's own time, and by how
//! many lines of that very time there were.

use std::path::Path;

use assistant_proto::event::EgressDenied;
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

const NANOS: u64 = 1_000_000_000;

/// A place in a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The engine's id of the container whose log it is.
    pub(super) container: String,
    /// Time of the last line that was read: nanoseconds since the epoch, as the engine says it.
    at: u64,
    /// Lines of that time that were read.
    nth: u64,
    /// An event that was made from the last line, and that the bus may not have.
    pub(super) pending: Option<Pending>,
}

/// An event on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) id: String,
    pub(super) event: EgressDenied,
    /// Its `traceparent`.
    pub(super) trace: String,
}

impl Place {
    /// The beginning of a container's log.
    pub(super) fn of(container: &str) -> Self {
        Self { container: container.to_owned(), ..Self::default() }
    }

    /// What was stored last. A file that is damaged counts as none: then lines may be told again, as the same events.
    pub(super) fn load(path: &Path) -> Result<Self, FileError> {
        let text = files::read_if_present(path)?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    pub(super) fn store(&self, path: &Path) -> Result<(), FileError> {
        // A value of this shape has a spelling.
        let text = serde_json::to_vec(self).unwrap_or_default();
        files::write_atomically(path, &text, 0o600)
    }

    /// The second to begin at.
    pub(super) fn seconds(&self) -> u64 {
        self.at / NANOS
    }

    /// Goes on to a line of that time; says the how manieth of that time it is.
    pub(super) fn advance(&mut self, at: u64) -> u64 {
        self.nth = if self.at == at { self.nth.saturating_add(1) } else { 1 };
        self.at = at;
        self.nth
    }

    /// What the engine gives again of what was read.
    pub(super) fn replay(&self) -> Replay {
        Replay { at: self.at, left: self.nth }
    }
}

/// Lines that come again.
#[derive(Debug)]
pub(super) struct Replay {
    at: u64,
    left: u64,
}

impl Replay {
    /// Whether a line of that time was read before.
    pub(super) fn was_read(&mut self, at: u64) -> bool {
        if at == self.at && self.left > 0 {
            self.left -= 1;
            return true;
        }
        at < self.at
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn lines_of_one_time_are_told_apart_by_number() {
        let mut place = Place::default();
        assert_eq!([place.advance(5), place.advance(5), place.advance(7), place.advance(7)], [1, 2, 1, 2]);
        let mut replay = place.replay();
        let again: Vec<bool> = [5, 5, 7, 7, 7, 8].map(|at| replay.was_read(at)).to_vec();
        assert_eq!(again, [true, true, true, true, false, false]);
        place.advance(3 * NANOS + 1);
        assert_eq!(place.seconds(), 3);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(Place::load(&path).unwrap(), Place::default());
        let mut place = Place::of("c1");
        place.advance(9);
        place.store(&path).unwrap();
        assert_eq!(Place::load(&path).unwrap(), place);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Place::load(&path).unwrap(), Place::default());
    }
}
