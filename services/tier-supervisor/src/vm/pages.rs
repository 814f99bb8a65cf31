//! Directories in which services bind the sockets of their pages. Owner, group and mode decide who gets at a page: the
//! service binds, the gates connect, nobody else comes in.
//!
//! A directory belongs to the service, so nothing in it is trusted: whoever connects opens the socket without following a
//! link.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};

use super::SocketsError;
use super::sockets::{RUN_MODE, io, make};
use crate::desired::{ContainerSpec, PagesDirectory};

/// The service may do what it likes, the gates may connect; sockets inherit the group.
pub(crate) const MODE: u32 = 0o2750;

/// Whether a container's directory is not as it should be.
pub(super) fn is_stale(spec: &ContainerSpec) -> bool {
    spec.pages.as_ref().is_some_and(|pages| problem(pages).is_some())
}

/// What is wrong with a directory.
pub(crate) fn problem(pages: &PagesDirectory) -> Option<String> {
    let path = pages.path.display();
    let found = match std::fs::symlink_metadata(&pages.path) {
        Ok(found) => found,
        Err(error) => return Some(format!("{path} cannot be looked at: {error}")),
    };
    let (uid, gid, mode) = (found.uid(), found.gid(), found.mode() & 0o7777);
    let fine = found.is_dir() && (uid, gid, mode) == (pages.uid, pages.gid, MODE);
    (!fine).then(|| {
        let (wanted_uid, wanted_gid) = (pages.uid, pages.gid);
        format!(
            "{path} is not a directory of {wanted_uid}:{wanted_gid} with mode {MODE:o}, but of {uid}:{gid} with {mode:o}"
        )
    })
}

/// Makes a container's directory, from nothing or from whatever is there.
pub(super) fn open(spec: &ContainerSpec) -> Result<(), SocketsError> {
    let Some(pages) = &spec.pages else { return Ok(()) };
    if let Some(parent) = pages.path.parent() {
        make(parent, RUN_MODE)?;
    }
    make(&pages.path, 0o700)?;
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
        .open(&pages.path)
        .map_err(io("open", &pages.path))?;
    fchown(&directory, Some(pages.uid), Some(pages.gid)).map_err(io("give away", &pages.path))?;
    directory.set_permissions(Permissions::from_mode(MODE)).map_err(io("change the mode of", &pages.path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_directory_from_whatever_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::fs::metadata(dir.path()).unwrap();
        let mut spec = crate::plan::samples::desired().containers.remove(0);
        assert!(!is_stale(&spec), "no pages, no directory");
        let path = dir.path().join("pages/channel-bridge");
        // A test cannot give directories away.
        spec.pages = Some(PagesDirectory { path: path.clone(), uid: own.uid(), gid: own.gid() });
        assert!(is_stale(&spec));
        std::fs::create_dir(dir.path().join("pages")).unwrap();
        std::fs::write(&path, "in the way").unwrap();
        assert!(is_stale(&spec));
        open(&spec).unwrap();
        assert!(!is_stale(&spec));
        // As a service that was taken over could: let everybody in.
        std::fs::set_permissions(&path, Permissions::from_mode(0o2755)).unwrap();
        assert!(is_stale(&spec));
        assert!(problem(spec.pages.as_ref().unwrap()).unwrap().contains("2755"));
        // What is in it stays: the service listens there.
        std::fs::write(path.join("tasks.sock"), "").unwrap();
        open(&spec).unwrap();
        assert!(!is_stale(&spec) && path.join("tasks.sock").exists());
    }
}
