//! Reading secret files: only where nobody else can.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// A secret longer than this is a mistake.
pub const MOST_SECRET_BYTES: u64 = 64 * 1024;

/// Why a secret file was not read. Never repeats any of its content.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Open or read failed.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others could read it.
    #[error("{path} has mode {mode:04o}: others can read a secret there; run: chmod 0600 {path}")]
    TooOpen {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a regular file of sensible size.
    #[error("{path} is not a regular file of 1 to {MOST_SECRET_BYTES} bytes of UTF-8 text")]
    NotASecret {
        /// Which file.
        path: PathBuf,
    },
}

/// Reads a secret: a regular file (no symlink at its last component), not readable by group or others, UTF-8, without
/// its one final line feed.
///
/// # Errors
/// See [`FileError`].
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let not_a_secret = || FileError::NotASecret { path: path.to_owned() };
    if !metadata.is_file() || metadata.len() > MOST_SECRET_BYTES {
        return Err(not_a_secret());
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    let mut text =
        Zeroizing::new(String::with_capacity(usize::try_from(metadata.len()).unwrap_or(0).saturating_add(1)));
    file.take(MOST_SECRET_BYTES).read_to_string(&mut text).map_err(|_| not_a_secret())?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.is_empty() { Err(not_a_secret()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_private_regular_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "value\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(read_secret(&path), Err(FileError::TooOpen { mode: 0o640, .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(read_secret(&path).unwrap().as_str(), "value");
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read_secret(&link), Err(FileError::Unreadable { .. })));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(read_secret(&path), Err(FileError::NotASecret { .. })));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read_secret(&path), Err(FileError::NotASecret { .. })));
        assert!(read_secret(&dir.path().join("none")).is_err());
    }
}
