//! Directories of control sockets: who may reach a service's gRPC is decided by their owner, group and ACL.
//!
//! A directory belongs to the service's uid (it binds there), is setgid to the group `assistant`, and has an ACL entry
//! for the user who runs the stack, because a new group does not reach a shell that is already open. The service owns the
//! directory, so nothing in it is trusted: whoever connects opens the socket without following a link.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Group};

use crate::command::{self, CommandError};
use crate::desired::{ASSISTANT_GID, ContainerSpec, ControlDirectory};

/// Owner and group, nobody else; sockets inherit the group.
const DIRECTORY_MODE: u32 = 0o2770;
/// The directory of the directories: everybody may find the links.
pub(super) const RUN_MODE: u32 = 0o755;
/// Name of the socket in its directory.
pub(super) const SOCKET: &str = "api.sock";
const GROUP: &str = "assistant";

/// Why a socket directory is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `make`, `link` ...
        what: &'static str,
        /// The directory or link.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The ACL could not be set.
    #[error("the user who runs the stack cannot be let in to {}: {source}", path.display())]
    Acl {
        /// The directory.
        path: PathBuf,
        /// What happened.
        source: CommandError,
    },
    /// A tool is missing.
    #[error("{program} is not installed; install package {package} (deploy/up.sh does)")]
    Tool {
        /// Its name.
        program: &'static str,
        /// The Debian package it is in.
        package: &'static str,
    },
    /// The group could not be made.
    #[error("the group {GROUP} ({ASSISTANT_GID}) cannot be made: {source}")]
    Group {
        /// What happened.
        source: CommandError,
    },
    /// The group's number or name is somebody else's.
    #[error("group {found} has {taken}, which the group {GROUP} ({ASSISTANT_GID}) needs; rename or renumber it")]
    GroupTaken {
        /// The group that is in the way.
        found: String,
        /// The number or the name.
        taken: String,
    },
    /// The group database could not be read.
    #[error("the groups of this machine cannot be read: {source}")]
    Groups {
        /// The system's reason.
        source: nix::errno::Errno,
    },
}

pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SocketsError {
    move |source| SocketsError::Io { what, path: path.to_owned(), source }
}

fn tool(
    error: CommandError,
    package: &'static str,
    otherwise: impl FnOnce(CommandError) -> SocketsError,
) -> SocketsError {
    match error {
        CommandError::Missing { program } => SocketsError::Tool { program, package },
        error => otherwise(error),
    }
}

/// Makes the group if there is none.
///
/// # Errors
/// When its name or number is taken, or it cannot be made.
pub fn ensure_group() -> Result<(), SocketsError> {
    let groups = |source| SocketsError::Groups { source };
    let by_number = Group::from_gid(Gid::from_raw(ASSISTANT_GID)).map_err(groups)?;
    let by_name = Group::from_name(GROUP).map_err(groups)?;
    match (by_number, by_name) {
        (Some(group), _) if group.name == GROUP => Ok(()),
        (Some(group), _) => {
            Err(SocketsError::GroupTaken { found: group.name, taken: format!("the number {ASSISTANT_GID}") })
        }
        (None, Some(group)) => {
            Err(SocketsError::GroupTaken { found: format!("{GROUP} ({})", group.gid), taken: "the name".to_owned() })
        }
        (None, None) => {
            command::run("groupadd", &["--system", "-g", &ASSISTANT_GID.to_string(), GROUP], "")
                .map_err(|error| tool(error, "passwd", |source| SocketsError::Group { source }))?;
            Ok(())
        }
    }
}

/// Makes one directory and its link, from nothing or from whatever is there.
///
/// # Errors
/// When the system refuses or `setfacl` is missing.
pub fn open_directory(control: &ControlDirectory, operator_uid: u32) -> Result<(), SocketsError> {
    if let Some(run) = control.path.parent() {
        make(run, RUN_MODE)?;
    }
    make(&control.path, 0o700)?;
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
        .open(&control.path)
        .map_err(io("open", &control.path))?;
    fchown(&directory, Some(control.uid), Some(control.gid)).map_err(io("give away", &control.path))?;
    let path = control.path.to_string_lossy();
    // Also of whoever ran `up.sh` before.
    forget_acl(control, &["-b", "-k", "--", &path])?;
    directory
        .set_permissions(Permissions::from_mode(DIRECTORY_MODE))
        .map_err(io("change the mode of", &control.path))?;
    if operator_uid != 0 {
        // The first entry lets the user in, the second one lets him write to sockets that are bound later.
        let entries = format!("u:{operator_uid}:rwx,d:u:{operator_uid}:rwx,d:g::rwx,d:m::rwx");
        acl(control, &["-m", &entries, "--", &path])?;
    }
    open_socket(control, &directory, operator_uid)?;
    link(control)
}

/// The socket that a running service has bound already: what a directory says is for those that come.
fn open_socket(control: &ControlDirectory, directory: &File, operator_uid: u32) -> Result<(), SocketsError> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let socket = match openat(directory, SOCKET, flags, Mode::empty()) {
        Ok(socket) => File::from(socket),
        Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(io("look at the socket in", &control.path)(error.into())),
    };
    // The directory is the service's: what lies there may be anything, and only the thing that was looked at is changed.
    if !socket.metadata().map_err(io("look at the socket in", &control.path))?.file_type().is_socket() {
        return Ok(());
    }
    let held = format!("/proc/{}/fd/{}", std::process::id(), socket.as_raw_fd());
    let entry = format!("u:{operator_uid}:rw");
    match operator_uid {
        0 => forget_acl(control, &["-b", "--", &held]),
        _ => acl(control, &["-b", "-m", &entry, "--", &held]),
    }
}

fn acl(control: &ControlDirectory, arguments: &[&str]) -> Result<(), SocketsError> {
    command::run("setfacl", arguments, "")
        .map_err(|error| tool(error, "acl", |source| SocketsError::Acl { path: control.path.clone(), source }))?;
    Ok(())
}

/// Without the tool nothing was ever set.
fn forget_acl(control: &ControlDirectory, arguments: &[&str]) -> Result<(), SocketsError> {
    match acl(control, arguments) {
        Err(SocketsError::Tool { .. }) => Ok(()),
        outcome => outcome,
    }
}

pub(super) fn make(path: &Path, mode: u32) -> Result<(), SocketsError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => std::fs::remove_file(path).map_err(io("remove", path))?,
        Err(_) => {}
    }
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io("make", path))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io("change the mode of", path))
}

/// Relative, so that it means the same from a bind mount of the directory.
fn link_target(control: &ControlDirectory) -> PathBuf {
    Path::new(control.path.file_name().unwrap_or_default()).join(SOCKET)
}

fn link(control: &ControlDirectory) -> Result<(), SocketsError> {
    let target = link_target(control);
    if std::fs::read_link(&control.link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let name = control.link.file_name().unwrap_or_default().to_string_lossy();
    let temporary = control.link.with_file_name(format!(".{name}.{:08x}", rand::random::<u32>()));
    std::os::unix::fs::symlink(&target, &temporary).map_err(io("link", &temporary))?;
    std::fs::rename(&temporary, &control.link).map_err(|error| {
        // Best effort: what failed is reported.
        drop(std::fs::remove_file(&temporary));
        io("link", &control.link)(error)
    })
}

/// Which directories were opened by this process. An ACL cannot be read back cheaply, so it is set once for each
/// directory (by inode) in the life of the process.
#[derive(Debug)]
pub(super) struct Sockets {
    operator_uid: u32,
    opened: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Sockets {
    pub(super) fn new(operator_uid: u32) -> Self {
        Self { operator_uid, opened: Mutex::default() }
    }

    pub(super) fn is_stale(&self, spec: &ContainerSpec) -> bool {
        let Some(control) = &spec.control else { return false };
        let Ok(found) = std::fs::symlink_metadata(&control.path) else { return true };
        let opened =
            self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&control.path) == Some(&found.ino());
        !opened
            || !found.is_dir()
            || found.uid() != control.uid
            || found.gid() != control.gid
            || found.mode() & 0o7777 != DIRECTORY_MODE
            || std::fs::read_link(&control.link).ok() != Some(link_target(control))
    }

    pub(super) fn open(&self, spec: &ContainerSpec) -> Result<(), SocketsError> {
        let Some(control) = &spec.control else { return Ok(()) };
        open_directory(control, self.operator_uid)?;
        let inode = std::fs::symlink_metadata(&control.path).map_err(io("look at", &control.path))?.ino();
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert(control.path.clone(), inode);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn control(run: &Path) -> ControlDirectory {
        let metadata = std::fs::metadata(run).unwrap();
        ControlDirectory {
            path: run.join("secret-broker"),
            // A test cannot give directories away.
            uid: metadata.uid(),
            gid: metadata.gid(),
            link: run.join("secret-broker.sock"),
        }
    }

    #[test]
    fn a_directory_and_a_link_from_whatever_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(dir.path());
        let mut spec = crate::plan::samples::desired().containers.remove(0);
        spec.control = Some(control.clone());
        let sockets = Sockets::new(0);
        assert!(sockets.is_stale(&spec));
        std::fs::write(&control.link, "in the way").unwrap();
        sockets.open(&spec).unwrap();
        assert!(!sockets.is_stale(&spec));
        assert_eq!(std::fs::metadata(&control.path).unwrap().mode() & 0o7777, DIRECTORY_MODE);
        assert_eq!(std::fs::read_link(&control.link).unwrap(), Path::new("secret-broker/api.sock"));
        // As a service that was taken over could: its own directory, and nothing beyond it.
        std::fs::set_permissions(&control.path, Permissions::from_mode(0o777)).unwrap();
        assert!(sockets.is_stale(&spec));
        sockets.open(&spec).unwrap();
        assert!(!sockets.is_stale(&spec));
        std::fs::remove_file(&control.link).unwrap();
        assert!(sockets.is_stale(&spec));
        // Another process does not know whether the ACL is there.
        assert!(Sockets::new(0).is_stale(&spec));
    }

    #[test]
    fn whoever_runs_the_stack_now_gets_in_and_whoever_did_before_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(dir.path());
        let entries = |path: &Path| command::run("getfacl", &["-n", "-p", &path.to_string_lossy()], "").unwrap();
        let socket = control.path.join(SOCKET);
        open_directory(&control, 0).unwrap();
        let running = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, Permissions::from_mode(0o660)).unwrap();
        for (now, before) in [(60_001, 60_002), (60_002, 60_001)] {
            open_directory(&control, now).unwrap();
            for (path, rights) in [(&control.path, "rwx"), (&socket, "rw-")] {
                let said = entries(path);
                assert!(said.contains(&format!("\nuser:{now}:{rights}\n")), "{said}");
                assert!(!said.contains(&before.to_string()) && said.contains("other::---"), "{said}");
            }
            assert!(entries(&control.path).contains(&format!("\ndefault:user:{now}:rwx\n")));
        }
        open_directory(&control, 0).unwrap();
        for path in [&control.path, &socket] {
            assert!(!entries(path).contains("user:6000"), "{}", entries(path));
        }
        assert_eq!(std::fs::metadata(&control.path).unwrap().mode() & 0o7777, DIRECTORY_MODE);
        // A service that was taken over puts something else into its place: what that leads to is not touched.
        drop(running);
        std::fs::remove_file(&socket).unwrap();
        let aim = dir.path().join("aim");
        std::fs::write(&aim, "").unwrap();
        std::os::unix::fs::symlink(&aim, &socket).unwrap();
        open_directory(&control, 60_001).unwrap();
        assert!(!entries(&aim).contains("60001"), "{}", entries(&aim));
    }
}
