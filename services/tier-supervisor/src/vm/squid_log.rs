//! Squid's log, the record that the auditor reads: put aside when it is large, so that it does not fill the disk.
//!
//! It owns the sizes and the names, and waits, as long as there is room for it, until the reader has done with the file
//! that would be lost. Squid is told to begin a new one by whoever has the engine. The log's directory is Squid's own, so
//! nothing in it is opened or followed here: names in it are looked at and renamed. Of the reader's volume one small file is
//! read, which the reader replaces as a whole; whatever is wrong with it means that nothing is known to be read.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use assistant_proto::squid_log::{CHECKPOINT, Position, Progress};

use crate::observed::SquidLog;

/// At this size a new one is begun. At some 300 bytes a request that is close to a million requests.
const FULL_BYTES: u64 = 256 << 20;
/// At this size a new one is begun although a file will be lost that was not read: a log that waits for a reader who never
/// comes would fill the disk. With two old ones it is 3 GiB at most.
const MOST_BYTES: u64 = 1 << 30;
/// The log, as squid.conf names it.
const NAME: &str = "access.log";
/// Those put aside, the newest first; the auditor reads them by these names. The last is lost when another one comes.
const OLD: [&str; 2] = ["access.log.0", "access.log.1"];
/// The reader's file holds the lines of up to 8,192 open tunnels, of some hundred bytes each.
const MOST_CHECKPOINT_BYTES: u64 = 64 << 20;

/// Why it was not put aside.
#[derive(Debug, thiserror::Error)]
#[error("Squid's log could not be put aside: {0}")]
pub struct SquidLogError(#[from] io::Error);

/// Sizes at which something is done.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    full: u64,
    most: u64,
}

/// How the log in this directory stands, whose reader keeps in `reader` how far it came.
pub(super) fn standing(directory: &Path, reader: Option<&Path>) -> SquidLog {
    standing_at(directory, reader, Sizes { full: FULL_BYTES, most: MOST_BYTES })
}

fn standing_at(directory: &Path, reader: Option<&Path>, sizes: Sizes) -> SquidLog {
    match std::fs::symlink_metadata(directory.join(NAME)) {
        Ok(metadata) if metadata.is_file() && metadata.len() >= sizes.full => {
            if metadata.len() >= sizes.most || is_last_read(directory, reader) {
                SquidLog::Full
            } else {
                SquidLog::Fine
            }
        }
        Ok(_) => SquidLog::Fine,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let [newest, ..] = OLD;
            if directory.join(newest).symlink_metadata().is_ok() { SquidLog::Moved } else { SquidLog::Fine }
        }
        Err(_) => SquidLog::Fine,
    }
}

/// Whether the file that the next one would push out was read to its end, or is not there.
fn is_last_read(directory: &Path, reader: Option<&Path>) -> bool {
    let [newest, last] = OLD;
    let last = match directory.join(last).symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    let Some((position, saved)) = reader.and_then(place) else { return false };
    if is_of(&position, saved, &last) {
        return position.offset >= last.len();
    }
    // The reader goes from the oldest to the newest: in a later one it is done with this one.
    [newest, NAME]
        .iter()
        .any(|name| directory.join(name).symlink_metadata().is_ok_and(|metadata| is_of(&position, saved, &metadata)))
}

/// An inode is used again when its file is gone: a place that was noted before the file was made is of another one.
fn is_of(position: &Position, saved: SystemTime, file: &Metadata) -> bool {
    let may_be_of_it = match file.created() {
        Ok(made) => made <= saved,
        // Not every filesystem knows.
        Err(_) => true,
    };
    may_be_of_it && file.ino() == position.inode && position.offset <= file.len()
}

/// Where the reader is, and when it noted that.
fn place(reader: &Path) -> Option<(Position, SystemTime)> {
    // The volume is the auditor's. A link or a pipe in place of its file is not followed, and does not block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(reader.join(CHECKPOINT)).ok()?;
    let metadata = file.metadata().ok().filter(|found| found.is_file() && found.len() <= MOST_CHECKPOINT_BYTES)?;
    let mut text = Vec::new();
    file.take(MOST_CHECKPOINT_BYTES).read_to_end(&mut text).ok()?;
    let progress: Progress = serde_json::from_slice(&text).ok()?;
    Some((progress.position?, metadata.modified().ok()?))
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

    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    const SIZES: Sizes = Sizes { full: 2, most: 4 };

    /// A log and the volume of its reader.
    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["log", "reader"] {
                std::fs::create_dir(directory.path().join(name)).unwrap();
            }
            Self { directory }
        }

        fn log(&self) -> PathBuf {
            self.directory.path().join("log")
        }

        fn reader(&self) -> PathBuf {
            self.directory.path().join("reader")
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.log().join(name), text).unwrap();
        }

        /// The reader came so far in a file of the log.
        fn read(&self, name: &str, offset: u64) {
            let inode = self.log().join(name).symlink_metadata().unwrap().ino();
            let position = format!(r#"{{"inode":{inode},"fingerprint":"ab","offset":{offset}}}"#);
            let text = format!(r#"{{"version":1,"position":{position},"open":[]}}"#);
            std::fs::write(self.reader().join(CHECKPOINT), text).unwrap();
        }

        fn standing(&self) -> SquidLog {
            standing_at(&self.log(), Some(&self.reader()), SIZES)
        }
    }

    #[test]
    fn two_old_ones_are_kept() {
        let place = Place::new();
        let (dir, at) = (place.log(), |name: &str| place.log().join(name));
        assert_eq!(place.standing(), SquidLog::Fine, "there is none yet");
        for (written, old) in
            [("aa", [Some("aa"), None]), ("bb", [Some("bb"), Some("aa")]), ("cc", [Some("cc"), Some("bb")])]
        {
            place.write(NAME, "a");
            assert_eq!(place.standing(), SquidLog::Fine);
            place.write(NAME, written);
            place.read(NAME, 0);
            assert_eq!(place.standing(), SquidLog::Full);
            put_aside(&dir).unwrap();
            assert_eq!(place.standing(), SquidLog::Moved);
            let found = OLD.map(|name| std::fs::read_to_string(at(name)).ok());
            assert_eq!(found, old.map(|text| text.map(str::to_owned)));
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), old.iter().flatten().count());
        }
        assert!(put_aside(&dir).is_err(), "there is none to put aside");
    }

    #[test]
    fn nothing_unread_is_lost_while_there_is_room() {
        let place = Place::new();
        let [newest, last] = OLD;
        place.write(NAME, "cc");
        assert_eq!(place.standing(), SquidLog::Full, "nothing is lost by the first");
        place.write(newest, "bb");
        assert_eq!(place.standing(), SquidLog::Full, "nor by the second");
        place.write(last, "aa");
        assert_eq!(place.standing(), SquidLog::Fine, "the reader never came");
        place.read(last, 1);
        assert_eq!(place.standing(), SquidLog::Fine, "it is in the middle of it");
        place.read(last, 2);
        assert_eq!(place.standing(), SquidLog::Full, "it has read it");
        place.read(newest, 0);
        assert_eq!(place.standing(), SquidLog::Full, "it is beyond it");
        place.read(NAME, 1);
        assert_eq!(place.standing(), SquidLog::Full);
        // What cannot be understood says nothing.
        for damage in ["", "{", r#"{"position":null}"#] {
            std::fs::write(place.reader().join(CHECKPOINT), damage).unwrap();
            assert_eq!(place.standing(), SquidLog::Fine, "{damage}");
        }
        assert_eq!(standing_at(&place.log(), None, SIZES), SquidLog::Fine);
        // Bounded: the disk is not filled for a reader who never comes.
        place.write(NAME, "cccc");
        assert_eq!(place.standing(), SquidLog::Full);
    }

    #[test]
    fn an_inode_that_is_used_again_is_another_file() {
        let place = Place::new();
        let [newest, last] = OLD;
        for name in [last, newest, NAME] {
            place.write(name, "aa");
        }
        place.read(NAME, 1);
        assert_eq!(place.standing(), SquidLog::Full, "the control");
        if place.log().join(NAME).metadata().unwrap().created().is_err() {
            return; // this filesystem does not know when a file was made
        }
        let noted = std::fs::File::options().append(true).open(place.reader().join(CHECKPOINT)).unwrap();
        noted.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        assert_eq!(place.standing(), SquidLog::Fine, "noted before the file was made");
    }

    #[test]
    fn links_are_not_followed() {
        let place = Place::new();
        let large = place.log().join("large");
        std::fs::write(&large, "aaaa").unwrap();
        std::os::unix::fs::symlink(&large, place.log().join(NAME)).unwrap();
        assert_eq!(place.standing(), SquidLog::Fine);
        std::fs::remove_file(place.log().join(NAME)).unwrap();
        for name in [NAME, OLD[0], OLD[1]] {
            place.write(name, "aa");
        }
        place.read(NAME, 1);
        assert_eq!(place.standing(), SquidLog::Full, "the control");
        std::fs::rename(place.reader().join(CHECKPOINT), place.reader().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", place.reader().join(CHECKPOINT)).unwrap();
        assert_eq!(place.standing(), SquidLog::Fine);
    }
}
