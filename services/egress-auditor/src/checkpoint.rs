//! How far Squid's log was taken, and which tunnels were open there. A small JSON file beside the audit store, replaced
//! atomically after the events of what it covers are in the store. If it is lost or older than the store nothing is lost
//! and nothing is counted twice, it only takes longer: events have deterministic ids. tier-supervisor reads the position, to
//! keep files of the log until they were read.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use assistant_proto::squid_log::CHECKPOINT as NAME;
use serde::{Deserialize, Serialize};

use crate::compare::Tunnel;
use crate::line::Line;
use crate::store::Used;
use crate::tail::Position;

const VERSION: u32 = 1;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    version: u32,
    /// How far the log was taken.
    pub position: Option<Position>,
    /// Decision lines of tunnels that were not closed yet.
    pub open: Vec<Line>,
    /// Tunnels whose permits were not looked for yet. Absent in files of earlier versions.
    #[serde(default)]
    pub waiting: Vec<Tunnel>,
    /// Permits that tunnels have used not long ago. Absent in files of earlier versions.
    #[serde(default)]
    pub used: Vec<Used>,
}

impl Checkpoint {
    /// At a position, with open tunnels, those whose permits were not looked for, and permits that were used.
    #[must_use]
    pub fn new(position: Option<Position>, open: Vec<Line>, waiting: Vec<Tunnel>, used: Vec<Used>) -> Self {
        Self { version: VERSION, position, open, waiting, used }
    }

    /// Loads the checkpoint of a directory. What cannot be read or understood is said and treated as absent: reading
    /// the log from its beginning is always right.
    #[must_use]
    pub fn load(directory: &Path) -> Option<Self> {
        let path = directory.join(NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the checkpoint cannot be read; reading the log from its beginning");
                return None;
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(checkpoint) if checkpoint.version == VERSION => Some(checkpoint),
            _ => {
                tracing::error!(path = %path.display(), "the checkpoint is damaged; reading the log from its beginning");
                None
            }
        }
    }

    /// Replaces the checkpoint of a directory, durably.
    ///
    /// # Errors
    /// When the disk refuses; the old checkpoint stands then.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        let temporary: PathBuf = directory.join(format!("{NAME}.new"));
        let mut file =
            std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, directory.join(NAME))?;
        // The rename itself is durable only once the directory is.
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn saved_and_loaded_or_absent() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::load(directory.path()), None);
        let position = Position { inode: 7, fingerprint: "ab".to_owned(), offset: 12 };
        let checkpoint = Checkpoint::new(Some(position), Vec::new(), Vec::new(), Vec::new());
        checkpoint.save(directory.path()).unwrap();
        assert_eq!(Checkpoint::load(directory.path()), Some(checkpoint.clone()));
        for damage in ["", "{", r#"{"version":2,"position":null,"open":[]}"#, r#"{"version":1}"#] {
            std::fs::write(directory.path().join(NAME), damage).unwrap();
            assert_eq!(Checkpoint::load(directory.path()), None, "{damage}");
        }
        checkpoint.save(directory.path()).unwrap();
        assert_eq!(Checkpoint::load(directory.path()), Some(checkpoint.clone()));
        // What tier-supervisor reads of it, and what an earlier version wrote.
        let text = std::fs::read(directory.path().join(NAME)).unwrap();
        let progress: assistant_proto::squid_log::Progress = serde_json::from_slice(&text).unwrap();
        assert_eq!(progress.position, checkpoint.position);
        let earlier = r#"{"version":1,"position":{"inode":7,"fingerprint":"ab","offset":12},"open":[]}"#;
        std::fs::write(directory.path().join(NAME), earlier).unwrap();
        assert_eq!(Checkpoint::load(directory.path()), Some(checkpoint));
    }
}
