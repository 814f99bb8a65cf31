//! Owners of volumes' top directories.
//!
//! A service runs as its own uid without any capability, so somebody has to give it the top directory of its fresh
//! volume. That is done here, from the VM, on the directory itself: its parent belongs to root and the last step follows
//! no symbolic link, so what a container later puts inside cannot lead anywhere else.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};

use crate::desired::VolumeSpec;
use crate::observed::Ownership;

/// Why a volume was not given to its user.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The system refused.
    #[error("cannot give {} to its user: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: Errno,
    },
    /// The path is no directory of a volume.
    #[error("{} is not the directory of a volume", path.display())]
    NotAVolume {
        /// The path.
        path: PathBuf,
    },
}

/// Owner and mode of the top directory.
pub(super) fn top(mountpoint: &Path) -> Option<Ownership> {
    let found = std::fs::symlink_metadata(mountpoint).ok().filter(std::fs::Metadata::is_dir)?;
    Some(Ownership { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o7777 })
}

/// Gives the top directory to its user, with the directories that must exist in it. The top comes last: its owner says
/// that everything was done.
pub(super) fn own(mountpoint: &Path, spec: &VolumeSpec) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Io { path: mountpoint.to_owned(), source };
    let not_a_volume = || VolumeError::NotAVolume { path: mountpoint.to_owned() };
    let (Some(parent), Some(name)) = (mountpoint.parent(), mountpoint.file_name()) else {
        return Err(not_a_volume());
    };
    // Docker's data root may lie behind a symbolic link that the administrator made; the last component may not.
    let directory = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let parent = open(parent, directory, Mode::empty()).map_err(failed)?;
    let top = beneath(&parent, Path::new(name)).map_err(failed)?;
    for name in &spec.directories {
        let path = Path::new(name);
        if path.components().count() != 1 || !matches!(path.components().next(), Some(std::path::Component::Normal(_)))
        {
            return Err(not_a_volume());
        }
        match mkdirat(&top, path, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        give(&beneath(&top, path).map_err(failed)?, spec).map_err(failed)?;
    }
    give(&top, spec).map_err(failed)
}

/// Opens a directory directly beneath another one, following nothing.
fn beneath(directory: &OwnedFd, name: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(directory.as_fd(), name, how)
}

/// Mode before owner: while it still belongs to root nobody else can change it back.
fn give(directory: &OwnedFd, spec: &VolumeSpec) -> Result<(), Errno> {
    fchmod(directory, Mode::from_bits_truncate(spec.mode))?;
    fchown(directory, Some(Uid::from_raw(spec.uid)), Some(Gid::from_raw(spec.gid)))?;
    // Without CAP_FSETID a change of owner clears setgid.
    let wanted = spec.mode & 0o7777;
    if fstat(directory)?.st_mode & 0o7777 != wanted {
        fchmod(directory, Mode::from_bits_truncate(wanted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn spec(directories: &[&str]) -> VolumeSpec {
        VolumeSpec {
            name: "assistant-drill-x".to_owned(),
            tier: None,
            // The tests' own user: a test cannot give things away.
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
            mode: 0o750,
            directories: directories.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn gives_the_top_and_its_directories() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("_data");
        std::fs::create_dir(&data).unwrap();
        own(&data, &spec(&["workspace"])).unwrap();
        assert_eq!(top(&data).unwrap().mode, 0o750);
        assert_eq!(top(&data.join("workspace")).unwrap().mode, 0o750);
        own(&data, &spec(&["workspace"])).unwrap();
    }

    #[test]
    fn follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let before = top(&elsewhere).unwrap();
        let data = dir.path().join("_data");
        std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
        assert!(own(&data, &spec(&[])).is_err());
        assert_eq!(top(&data), None);
        std::fs::remove_file(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&elsewhere, data.join("workspace")).unwrap();
        assert!(own(&data, &spec(&["workspace"])).is_err());
        assert_eq!(top(&elsewhere).unwrap(), before);
        for bad in ["..", "a/b", "/etc", ""] {
            assert!(own(&data, &spec(&[bad])).is_err(), "{bad}");
        }
    }
}
