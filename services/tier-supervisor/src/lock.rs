//! One supervisor at a time: two would undo each other's work.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file in the run directory.
const FILE: &str = "tier-supervisor.lock";

/// Held as long as it lives; the kernel lets go when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("another tier-supervisor is running on this machine; stop it first (deploy/down.sh does)")]
    Held,
    /// The file cannot be used.
    #[error("cannot lock {}: {source}; tier-supervisor runs as root", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Lock {
    /// Takes the lock, or says that another one has it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join(FILE);
        let failed = |source| LockError::Io { path: path.clone(), source };
        std::fs::create_dir_all(run_dir).map_err(failed)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(LockError::Held)));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
