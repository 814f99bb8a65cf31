//! Watches the space left for the audit store. Before it is used up the service says that it is not healthy, and goes on
//! recording: what is left then is the reserve in which a person can act, and in which only what matters is recorded one by
//! one (see `reserve`). It deletes nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use service_kit::host::Health;
use tokio_util::sync::CancellationToken;

use crate::figures::Figures;
use crate::reserve::Reserve;

/// Less than this is said. Five days of the worst flood of one client, or weeks of normal work.
pub const RESERVE: u64 = 512 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(10);
const HEALTH_PART: &str = "audit-disk";

/// Looks again and again until `draining`. Run it in `Tasks::spawn_restarting`.
///
/// # Errors
/// When the blocking pool is gone.
pub async fn watch(
    directory: PathBuf,
    reserve: u64,
    reached: Reserve,
    figures: Figures,
    health: Health,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let looked_at = directory.clone();
        let free = tokio::task::spawn_blocking(move || free(&looked_at)).await?;
        // Where it cannot be found out nothing is folded.
        reached.set(free.as_ref().is_ok_and(|free| *free < reserve));
        if let Ok(free) = &free {
            figures.free(*free);
        }
        health.report(HEALTH_PART, judge(&directory, free, reserve));
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = draining.cancelled() => return Ok(()),
        }
    }
}

/// Bytes an unprivileged process may still write.
fn free(directory: &Path) -> io::Result<u64> {
    let found = nix::sys::statvfs::statvfs(directory)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// The sentence names no exact number, so that it is said once and not at every look.
fn judge(directory: &Path, free: io::Result<u64>, reserve: u64) -> Result<(), String> {
    let directory = directory.display();
    match free {
        Ok(free) if free >= reserve => Ok(()),
        Ok(_) => Err(format!(
            "less than {} MiB are left on the filesystem of the audit store ({directory}); denials and decisions are still \
             recorded, of other events only number and hash: make the volume larger or free space on it",
            reserve >> 20
        )),
        Err(error) => Err(format!("the space left for the audit store ({directory}) cannot be found out: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use super::*;

    #[test]
    fn little_space_is_said() {
        let here = Path::new("/store");
        assert_eq!(judge(here, Ok(RESERVE), RESERVE), Ok(()));
        let said = judge(here, Ok(RESERVE - 1), RESERVE).unwrap_err();
        assert!(said.contains("512 MiB") && said.contains("/store") && said.contains("free space"), "{said}");
        assert!(judge(here, Err(io::Error::from(io::ErrorKind::NotFound)), RESERVE).is_err());
    }

    #[tokio::test]
    async fn the_filesystem_is_looked_at_and_recovery_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        assert!(free(directory.path()).unwrap() > 0);
        assert!(free(Path::new("/nonexistent")).is_err());
        let health = Health::detached();
        for (reserve, problems) in [(u64::MAX, 1), (0, 0)] {
            let draining = CancellationToken::new();
            draining.cancel();
            let (at, reached) = (directory.path().to_owned(), Reserve::default());
            watch(at, reserve, reached.clone(), Figures::default(), health.clone(), draining).await.unwrap();
            assert_eq!((health.problems().len(), reached.is_reached()), (problems, problems > 0));
        }
    }
}
