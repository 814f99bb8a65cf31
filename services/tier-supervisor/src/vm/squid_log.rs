//! Squid's log, the record that the auditor reads: put aside when it is large, so that it does not fill the disk.
//!
//! It owns the sizes and the names. Squid is told to begin a new one by whoever has the engine. The directory is Squid's
//! own, so nothing in it is opened or followed here: names in it are looked at and renamed.

use std::io;
use std::path::Path;

use crate::observed::SquidLog;

/// At this size a new one is begun. At some 300 bytes a request that is close to a million requests.
const FULL_BYTES: u64 = 256 << 20;
/// The log, as squid.conf names it.
const NAME: &str = "access.log";
/// Those put aside, the newest first; the auditor reads them by these names. The last is lost when another one comes,
/// read or not: a log that waits for a reader who never comes would fill the disk. The auditor records what it missed.
const OLD: [&str; 2] = ["access.log.0", "access.log.1"];

/// Why it was not put aside.
#[derive(Debug, thiserror::Error)]
#[error("Squid's log could not be put aside: {0}")]
pub struct SquidLogError(#[from] io::Error);

/// How the log in this directory stands.
pub(super) fn standing(directory: &Path) -> SquidLog {
    standing_at(directory, FULL_BYTES)
}

fn standing_at(directory: &Path, full: u64) -> SquidLog {
    match std::fs::symlink_metadata(directory.join(NAME)) {
        Ok(metadata) if metadata.is_file() && metadata.len() >= full => SquidLog::Full,
        Ok(_) => SquidLog::Fine,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let [newest, ..] = OLD;
            if directory.join(newest).symlink_metadata().is_ok() { SquidLog::Moved } else { SquidLog::Fine }
        }
        Err(_) => SquidLog::Fine,
    }
}

/// Renames the log. Squid goes on writing to it until it is told to begin a new one.
pub(super) fn put_aside(directory: &Path) -> Result<(), SquidLogError> {
    let [newest, older] = OLD;
    match std::fs::rename(directory.join(newest), directory.join(older)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(std::fs::rename(directory.join(NAME), directory.join(newest))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn two_old_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, at) = (dir.path(), |name: &str| dir.path().join(name));
        assert_eq!(standing_at(dir, 2), SquidLog::Fine, "there is none yet");
        for (written, old) in
            [("aa", [Some("aa"), None]), ("bb", [Some("bb"), Some("aa")]), ("cc", [Some("cc"), Some("bb")])]
        {
            std::fs::write(at(NAME), "a").unwrap();
            assert_eq!(standing_at(dir, 2), SquidLog::Fine);
            std::fs::write(at(NAME), written).unwrap();
            assert_eq!(standing_at(dir, 2), SquidLog::Full);
            put_aside(dir).unwrap();
            assert_eq!(standing_at(dir, 2), SquidLog::Moved);
            let found = OLD.map(|name| std::fs::read_to_string(at(name)).ok());
            assert_eq!(found, old.map(|text| text.map(str::to_owned)));
            assert_eq!(std::fs::read_dir(dir).unwrap().count(), old.iter().flatten().count());
        }
        assert!(put_aside(dir).is_err(), "there is none to put aside");
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        std::fs::write(&large, "aaaa").unwrap();
        std::os::unix::fs::symlink(&large, dir.path().join(NAME)).unwrap();
        assert_eq!(standing_at(dir.path(), 2), SquidLog::Fine);
    }
}
