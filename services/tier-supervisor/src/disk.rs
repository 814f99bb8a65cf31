//! The disk on which the bus and the audit record lie, so that both go on when it is nearly full.
//!
//! Two measures. When little is left, what runs in tiers is stopped (`plan` does it): agents, MCP servers and sandboxes are
//! those who write as much as they like. And a file of a fixed size is kept beside the bus's volume, which is given up
//! when the rest is gone all the same: what others of this machine have filled is then no longer in the way of the last
//! records, of the answers that wait, and of a start. Both end by themselves when there is room again.
//!
//! It owns the sizes, the file, and the start of a bus whose store was full, which takes connections and stores nothing
//! until it is started anew. It removes nothing else.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use service_kit::host::Health;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::desired::{Desired, MountSource, Role};
use crate::engine::Engine;
use crate::observed::{Disk, History, Observed};
use crate::reconciler::Stack;
use crate::vm::Vm;

/// How often it is looked at: what fills a disk in less can only be mended.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const HEALTH_PART: &str = "disk";
/// Beside the volume's own directory: it belongs to root, and no container has it.
const FILE: &str = "disk-reserve";

/// Amounts of free space at which something is done, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// With less than this, tiers are stopped.
    pub low: u64,
    /// With this much they may run again.
    pub enough: u64,
    /// With less than this the file is given up.
    pub last: u64,
    /// Size of the file. It is made where `enough` is left beside it.
    pub kept: u64,
}

/// What `low` is, the audit store calls its reserve too: below it, it keeps of harmless events only their number.
pub const SIZES: Sizes = Sizes { low: 512 << 20, enough: 768 << 20, last: 64 << 20, kept: 256 << 20 };

/// Why the disk could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A directory.
    #[error("the space left at {} cannot be found out: {source}", path.display())]
    Unknown {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: nix::errno::Errno,
    },
    /// The file.
    #[error("the reserve {} cannot be kept: {source}", path.display())]
    Reserve {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// How the disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What that means for the tiers.
    pub disk: Disk,
    /// Bytes that an unprivileged process may still write, on the fullest of the filesystems.
    pub free: u64,
    /// Whether the file is there in its whole size.
    pub reserved: bool,
}

/// Keeps the file.
#[derive(Debug)]
pub struct Keeper {
    file: PathBuf,
    sizes: Sizes,
    disk: Disk,
}

impl Keeper {
    /// Of a file, which need not be there.
    #[must_use]
    pub fn new(file: PathBuf, sizes: Sizes) -> Self {
        Self { file, sizes, disk: Disk::Enough }
    }

    /// Looks at the filesystems of these directories, and makes or gives up the file. Blocks.
    ///
    /// # Errors
    /// When one cannot be looked at, or the file not be made or removed.
    pub fn look(&mut self, directories: &[PathBuf]) -> Result<Standing, DiskError> {
        let failed = |source| DiskError::Reserve { path: self.file.clone(), source };
        let Sizes { low, enough, last, kept } = self.sizes;
        let mut free = fullest(directories)?;
        let mut held = held(&self.file).map_err(failed)?;
        if free < last && held > 0 {
            std::fs::remove_file(&self.file).map_err(failed)?;
            tracing::warn!(bytes = held, "the disk is full: the reserve was given up");
            held = 0;
            free = fullest(directories)?;
        } else if held < kept && free >= enough.saturating_add(kept) {
            fill(&self.file, kept).map_err(failed)?;
            held = kept;
            free = fullest(directories)?;
        }
        self.disk = match free {
            free if free < low => Disk::Low,
            free if free >= enough => Disk::Enough,
            _ => self.disk,
        };
        Ok(Standing { disk: self.disk, free, reserved: held >= kept })
    }
}

fn fullest(directories: &[PathBuf]) -> Result<u64, DiskError> {
    let mut least = u64::MAX;
    for path in directories {
        let found = statvfs(path).map_err(|source| DiskError::Unknown { path: path.clone(), source })?;
        least = least.min(found.blocks_available().saturating_mul(found.fragment_size()));
    }
    Ok(least)
}

/// Bytes that the file takes up; none where it is not there.
fn held(file: &Path) -> io::Result<u64> {
    match file.symlink_metadata() {
        Ok(metadata) => Ok(metadata.blocks().saturating_mul(512)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Takes the space up, rather than a size without blocks. What could not be had whole is given back.
fn fill(file: &Path, bytes: u64) -> io::Result<()> {
    let open = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(file)?;
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    posix_fallocate(&open, 0, length).map_err(|error| {
        drop(std::fs::remove_file(file));
        io::Error::from(error)
    })
}

/// Directories of the volumes of bus and record, as far as they exist; that of the bus first.
fn directories(desired: &Desired, observed: &Observed) -> Vec<PathBuf> {
    let bus = desired.containers.iter().find(|spec| spec.role == Role::Nats).and_then(|nats| {
        nats.mounts.iter().find_map(|mount| match &mount.source {
            MountSource::Volume(name) if !mount.read_only => Some(name.as_str()),
            _ => None,
        })
    });
    let of = |name: &str| observed.volumes.iter().find(|found| found.name == name && found.owner.is_of(desired.mode));
    let volumes = [bus, desired.audit_volume()].into_iter().flatten().filter_map(of);
    volumes.map(|volume| volume.mountpoint.clone()).collect()
}

/// Looks again and again until `draining`. Run it in `Tasks::spawn_restarting`.
///
/// # Errors
/// When the blocking pool is gone.
pub async fn watch<E: Engine, V: Vm>(
    stack: Arc<Stack<E, V>>,
    health: Health,
    wake: Arc<Notify>,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let mut keeper: Option<Keeper> = None;
    let mut was_full = false;
    loop {
        // Cancel-safe: nothing is under way while it waits.
        tokio::select! {
            () = draining.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let (desired, observed) = {
            let picture = stack.watch();
            let picture = picture.borrow();
            (Arc::clone(&picture.desired), Arc::clone(&picture.observed))
        };
        let directories = directories(&desired, &observed);
        let Some(beside) = directories.first().and_then(|bus| bus.parent()) else { continue };
        let mut looking = keeper.take().unwrap_or_else(|| Keeper::new(beside.join(FILE), SIZES));
        let (looked, standing) = tokio::task::spawn_blocking(move || {
            let standing = looking.look(&directories);
            (looking, standing)
        })
        .await?;
        keeper = Some(looked);
        if let Ok(standing) = &standing {
            was_full |= standing.free < SIZES.last || (standing.disk == Disk::Low && !standing.reserved);
            if stack.note_disk(standing.disk) {
                wake.notify_one();
            }
        }
        health.report(HEALTH_PART, judge(&standing));
        if was_full && standing.is_ok_and(|standing| standing.free >= SIZES.last) {
            was_full = !start_bus_anew(&stack, &desired, &observed, &wake).await;
        }
    }
}

/// The sentence names no exact number, so that it is said once and not at every look.
fn judge(standing: &Result<Standing, DiskError>) -> Result<(), String> {
    match standing {
        Ok(Standing { disk: Disk::Enough, .. }) => Ok(()),
        Ok(Standing { disk: Disk::Low, .. }) => Err(Disk::problem().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Stops the bus where it does not do its work; the reconciler starts it. Whether nothing is left to do.
async fn start_bus_anew<E: Engine, V: Vm>(
    stack: &Stack<E, V>,
    desired: &Desired,
    observed: &Observed,
    wake: &Notify,
) -> bool {
    let spec = desired.containers.iter().find(|spec| spec.role == Role::Nats);
    let found = spec.and_then(|spec| observed.containers.iter().find(|found| found.name == spec.name));
    let (Some(spec), Some(found)) = (spec, found) else { return true };
    // One that is only starting is asked by the reconciler.
    let settled = observed.history.get(&spec.name).is_some_and(|history| history.has_settled(found));
    let (Some(pid), true) = (found.pid(), settled) else { return false };
    let Err(why) = stack.vm().is_ready(pid, spec).await else { return true };
    tracing::warn!(container = %spec.name, %why, "the disk was full, and the bus is started anew");
    match stack.engine().stop_container(&found.id).await {
        Ok(()) => stack.note(&spec.name, History::forget_run),
        Err(error) => tracing::error!(container = %spec.name, %error, "it could not be stopped"),
    }
    wake.notify_one();
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn what_is_known_of_a_disk_is_said() {
        let standing = |disk| Ok(Standing { disk, free: 0, reserved: true });
        assert_eq!(judge(&standing(Disk::Enough)), Ok(()));
        let said = judge(&standing(Disk::Low)).unwrap_err();
        assert!(said.contains("512 MiB") && said.contains("free space"), "{said}");
        let unknown = DiskError::Unknown { path: "/there".into(), source: nix::errno::Errno::ENOENT };
        assert!(judge(&Err(unknown)).unwrap_err().contains("/there"));
    }

    #[test]
    fn the_file_is_made_where_there_is_room_and_given_up_where_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let directories = [directory.path().to_owned()];
        let free = fullest(&directories).unwrap();
        let file = directory.path().join(FILE);
        let kept = 1 << 20;
        let keeper = |sizes| Keeper::new(file.clone(), sizes);
        let none = Sizes { low: 0, enough: free.saturating_mul(2), last: 0, kept };
        assert!(!keeper(none).look(&directories).unwrap().reserved, "no room beside it");
        let plenty = Sizes { low: 1, enough: 1, last: 0, kept };
        let standing = keeper(plenty).look(&directories).unwrap();
        assert!(standing.reserved && standing.disk == Disk::Enough, "{standing:?}");
        assert!(held(&file).unwrap() >= kept);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        let full = Sizes { low: u64::MAX, enough: u64::MAX, last: u64::MAX, kept };
        let standing = keeper(full).look(&directories).unwrap();
        assert!(!standing.reserved && standing.disk == Disk::Low && !file.exists(), "{standing:?}");
    }

    #[test]
    fn between_little_and_enough_it_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let directories = [directory.path().to_owned()];
        let file = directory.path().join(FILE);
        let between = Sizes { low: 0, enough: u64::MAX, last: 0, kept: u64::MAX };
        for disk in [Disk::Low, Disk::Enough] {
            let mut keeper = Keeper { file: file.clone(), sizes: between, disk };
            assert_eq!(keeper.look(&directories).unwrap().disk, disk);
        }
        assert!(Keeper::new(file, between).look(&["/nonexistent".into()]).is_err());
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (file, elsewhere) = (directory.path().join(FILE), directory.path().join("elsewhere"));
        std::fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        let sizes = Sizes { low: 0, enough: 0, last: 0, kept: 4096 };
        assert!(Keeper::new(file, sizes).look(&[directory.path().to_owned()]).is_err());
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "precious");
    }
}
