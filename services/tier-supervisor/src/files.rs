//! Reading and writing the supervisor's own files in the VM: bounded, whole, and never half-written.
//!
//! Knows nothing of what is in them. Files of containers and volumes are not its business.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// No file that the supervisor reads is larger. Bounds what an accidental or hostile file costs.
pub const MOST_BYTES: u64 = 1 << 20;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `read`, `write` ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Too large to be what it should be.
    #[error("{} is larger than {MOST_BYTES} bytes; that cannot be the right file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not text.
    #[error("{} is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// Not a regular file.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// A secret that others may read.
    #[error("{} can be read by others (mode {mode:o}); run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl FileError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    /// What a person should do about it; `absent` where the file is simply not there.
    #[must_use]
    pub fn fix(&self, absent: &str) -> String {
        match self {
            _ if self.is_absent() => absent.to_owned(),
            Self::Io { .. } => "see that root can read it".to_owned(),
            Self::TooLarge { .. } => "put the right file in its place".to_owned(),
            Self::NotText { .. } => "save it again as UTF-8 text".to_owned(),
            Self::NotRegular { .. } => "put a regular file in its place".to_owned(),
            // It says it itself.
            Self::TooOpen { .. } => String::new(),
        }
    }

    /// Whether the file is simply not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::NotFound)
    }
}

/// Reads bytes.
///
/// # Errors
/// When it cannot be read, is no regular file or is too large.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    // Without O_NONBLOCK a FIFO in the file's place would hang the supervisor.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits() | nix::fcntl::OFlag::O_CLOEXEC.bits())
        .open(path)
        .map_err(FileError::io("read", path))?;
    if !file.metadata().map_err(FileError::io("read", path))?.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES.saturating_add(1)).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MOST_BYTES {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Reads text.
///
/// # Errors
/// As [`read_bytes`], and when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    String::from_utf8(read_bytes(path)?).map_err(|_| FileError::NotText { path: path.to_owned() })
}

/// Reads text, or nothing when there is no such file.
///
/// # Errors
/// As [`read_text`].
pub fn read_if_present(path: &Path) -> Result<Option<String>, FileError> {
    match read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Refuses a secret's file that anyone but its owner may read.
///
/// # Errors
/// When it is too open, no regular file or cannot be looked at.
pub fn check_private(path: &Path) -> Result<(), FileError> {
    let metadata = std::fs::symlink_metadata(path).map_err(FileError::io("read", path))?;
    if !metadata.file_type().is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Names of what lies directly in a directory, sorted; none where there is no such directory. Other names than text are
/// left out.
///
/// # Errors
/// When it cannot be read.
pub fn names_in(path: &Path) -> Result<Vec<String>, FileError> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::io("read", path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FileError::io("read", path))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Replaces a file in one step, so that a reader or a crash sees the old bytes or the new ones. Durable on return.
///
/// # Errors
/// When the directory is not writable or the disk is full; the old file is then still there.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let io = || FileError::io("write", path);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{:08x}", rand::random::<u32>()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask may have taken bits away.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    written.map_err(|error| {
        // Best effort: what failed is reported, and a leftover is a dotfile in a private directory.
        drop(std::fs::remove_file(&temporary));
        io()(error)
    })
}

/// Makes a directory, and missing parents, that only its owner may enter.
///
/// # Errors
/// When it cannot be made.
pub fn private_directory(path: &Path) -> Result<(), FileError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::io("make", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn replaces_whole_files_with_the_mode_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomically(&path, b"one", 0o644).unwrap();
        write_atomically(&path, b"two", 0o600).unwrap();
        assert_eq!(read_text(&path).unwrap(), "two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no leftovers");
        let missing = dir.path().join("no").join("x");
        assert!(write_atomically(&missing, b"x", 0o600).is_err());
    }

    #[test]
    fn refuses_what_is_not_a_small_regular_text_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_text(dir.path()), Err(FileError::NotRegular { .. })));
        let path = dir.path().join("x");
        assert!(read_if_present(&path).unwrap().is_none());
        std::fs::write(&path, [0xff]).unwrap();
        assert!(matches!(read_text(&path), Err(FileError::NotText { .. })));
        File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(matches!(read_text(&path), Err(FileError::TooLarge { .. })));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        assert!(matches!(read_text(&fifo), Err(FileError::NotRegular { .. })));
    }

    #[test]
    fn secrets_must_be_private_and_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomically(&path, b"s", 0o640).unwrap();
        assert!(matches!(check_private(&path), Err(FileError::TooOpen { mode: 0o640, .. })));
        write_atomically(&path, b"s", 0o600).unwrap();
        check_private(&path).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(check_private(&link), Err(FileError::NotRegular { .. })));
    }
}
