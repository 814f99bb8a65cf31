//! The newest usable desired state, and what is wrong with the files when they are not usable.
//!
//! It looks at the files' times once a second and reads them when one has changed, and every half minute in any case:
//! tiers.yaml names further files. A file that cannot be used changes nothing that runs; it is reported until it can.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::desired::Desired;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const READ_EVERY: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The last state that could be used.
    pub desired: Arc<Desired>,
    /// When it was first read.
    pub since: SystemTime,
    /// Every problem of the files as they are now; empty when `desired` is what they say.
    pub problems: Vec<String>,
}

impl Wanted {
    /// Read a moment ago, and usable.
    #[must_use]
    pub fn new(desired: Desired) -> Self {
        Self { desired: Arc::new(desired), since: SystemTime::now(), problems: Vec::new() }
    }
}

/// Reads every file and computes the desired state, or says everything that is wrong. Blocks.
pub type Load = Arc<dyn Fn() -> Result<Desired, Vec<String>> + Send + Sync>;

/// Follows the files until `draining`.
///
/// # Errors
/// When the reading panics.
pub async fn follow(
    load: Load,
    paths: Vec<PathBuf>,
    wanted: &watch::Sender<Wanted>,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let mut known = fingerprint(&paths);
    let mut read_at = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = draining.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = fingerprint(&paths);
        if now == known && read_at.elapsed() < READ_EVERY {
            continue;
        }
        known = now;
        read_at = tokio::time::Instant::now();
        let load = Arc::clone(&load);
        let outcome = tokio::task::spawn_blocking(move || load()).await?;
        take(wanted, outcome);
    }
}

/// Takes the outcome of a reading; wakes those who wait only when something is different.
fn take(wanted: &watch::Sender<Wanted>, outcome: Result<Desired, Vec<String>>) {
    wanted.send_if_modified(|wanted| match outcome {
        Ok(desired) => {
            let mended = !std::mem::take(&mut wanted.problems).is_empty();
            let changed = *wanted.desired != desired;
            if changed {
                tracing::info!("the configuration has changed");
                *wanted = Wanted::new(desired);
            } else if mended {
                tracing::info!("the configuration can be used again, and is what runs");
            }
            changed || mended
        }
        Err(problems) => {
            let changed = wanted.problems != problems;
            if changed {
                for problem in &problems {
                    tracing::error!(%problem, "the configuration cannot be used; what runs stays as it is");
                }
                wanted.problems = problems;
            }
            changed
        }
    });
}

/// Size and time of each file, and of what lies directly in each directory.
fn fingerprint(paths: &[PathBuf]) -> BTreeMap<PathBuf, (u64, Option<SystemTime>)> {
    let mut found = BTreeMap::new();
    let mut note = |path: &Path| {
        let Ok(metadata) = std::fs::metadata(path) else { return false };
        found.insert(path.to_owned(), (metadata.len(), metadata.modified().ok()));
        metadata.is_dir()
    };
    for path in paths {
        if note(path) {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                note(&entry.path());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn changes_are_seen_and_bad_files_change_nothing_that_runs() {
        let desired = crate::plan::samples::desired();
        let first = Wanted::new(desired.clone());
        let (sender, mut receiver) = watch::channel(first.clone());
        take(&sender, Ok(desired.clone()));
        assert!(!receiver.has_changed().unwrap(), "equal states wake nobody");
        take(&sender, Err(vec!["tiers.yaml:1:1: no".to_owned()]));
        let bad = receiver.borrow_and_update().clone();
        assert_eq!((&bad.desired, bad.problems.len(), bad.since), (&first.desired, 1, first.since));
        take(&sender, Ok(desired.clone()));
        assert_eq!(*receiver.borrow_and_update(), first, "what runs is as old as before");
        take(&sender, Ok(Desired { remarks: vec!["another".to_owned()], ..desired }));
        let another = receiver.borrow_and_update().clone();
        assert!(another.desired.remarks == ["another"] && another.since >= first.since);
    }

    #[test]
    fn files_and_what_lies_in_directories() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiers.yaml");
        let paths = vec![file.clone(), dir.path().to_owned()];
        let before = fingerprint(&paths);
        std::fs::write(&file, "a").unwrap();
        let made = fingerprint(&paths);
        assert_ne!(before, made);
        std::fs::write(&file, "ab").unwrap();
        assert_ne!(made, fingerprint(&paths));
        assert_eq!(fingerprint(&paths), fingerprint(&paths));
    }
}
