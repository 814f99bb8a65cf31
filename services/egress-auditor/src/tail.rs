//! Follows Squid's access log by inode and offset, through growth, rotation (`access.log` renamed to `access.log.0`, the
//! others shifted up), truncation and restarts. Blocking I/O: call it from a thread that may block.
//!
//! It returns complete lines as bytes; what they mean is not its business. It may return a line twice (after a
//! truncation, or when the checkpoint is older than what was read): a line's event has a deterministic id. It never
//! passes over one, as far as the file still has it; where it cannot tell whether lines are missing it says so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::line::MOST_LINE_BYTES;

/// Read at a time; at least one line of the greatest length and its line feed.
const CHUNK: usize = 256 * 1024;
const _: () = assert!(CHUNK > MOST_LINE_BYTES + 1);
/// The first line tells a file from another that got its inode; so much of it.
const FINGERPRINT_BYTES: usize = 1024;

/// How far a file was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Inode of the file.
    pub inode: u64,
    /// Hex SHA-256 of the beginning of its first line: inodes are used again.
    pub fingerprint: String,
    /// The first byte not yet taken.
    pub offset: u64,
}

/// A complete line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Inode of its file.
    pub inode: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes without line feed; `None` for a line too long to be one.
    pub bytes: Option<Vec<u8>>,
}

/// Why lines may be missing before those of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The file of the checkpoint is not there any more.
    CheckpointedFile,
    /// The file that was being read was taken away, and perhaps others after it.
    CurrentFile,
    /// The file that was being read was truncated.
    Truncated,
}

/// A place in the log after which lines may be missing. How many is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub lost: Lost,
    /// The last place before it.
    pub after: Position,
}

/// What a read found.
#[derive(Debug, Default)]
pub struct Read {
    /// Lines may be missing before these.
    pub gap: Option<Gap>,
    /// Lines, in the order of the file.
    pub lines: Vec<Found>,
    /// There was nothing more at that moment.
    pub at_end: bool,
}

/// The log as one stream of lines.
#[derive(Debug)]
pub struct Tail {
    directory: PathBuf,
    name: String,
    resume: Option<Position>,
    current: Option<Current>,
    /// Found, and not handed out yet.
    gap: Option<Gap>,
}

#[derive(Debug)]
struct Current {
    file: File,
    inode: u64,
    fingerprint: Option<String>,
    offset: u64,
    /// Within a line that is too long, where it begins: its bytes are passed over up to the next line feed.
    skipping: Option<u64>,
    /// The path was seen to name another file; what this one still holds is read first.
    superseded: bool,
}

impl Tail {
    /// Follows `directory/name` from `resume`, or from the oldest file there is.
    #[must_use]
    pub fn new(directory: &Path, name: &str, resume: Option<Position>) -> Self {
        Self { directory: directory.to_owned(), name: name.to_owned(), resume, current: None, gap: None }
    }

    /// How far it came; none before the first complete line.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        match &self.current {
            Some(current) => current.fingerprint.clone().map(|fingerprint| Position {
                inode: current.inode,
                fingerprint,
                // A line that is too long is taken as a whole or not at all.
                offset: current.skipping.unwrap_or(current.offset),
            }),
            None => self.resume.clone(),
        }
    }

    /// Reads on, at most one chunk. A log that does not exist yet is at its end.
    ///
    /// # Errors
    /// When a file cannot be opened or read. The next call tries again from the same place.
    pub fn read(&mut self) -> io::Result<Read> {
        let mut current = match self.current.take() {
            Some(current) => current,
            None => match self.open_first()? {
                Some(current) => current,
                None => return Ok(Read { at_end: true, ..Read::default() }),
            },
        };
        let outcome = self.read_on(&mut current);
        self.current = Some(current);
        // After an error it is handed out with the next read.
        outcome.map(|read| Read { gap: self.gap.take(), ..read })
    }

    fn read_on(&mut self, current: &mut Current) -> io::Result<Read> {
        let mut buffer = vec![0_u8; CHUNK];
        loop {
            let truncated = current.check_truncation()?;
            self.gap = self.gap.take().or(truncated);
            let length = current.file.read_at(&mut buffer, current.offset)?;
            let read = current.split(buffer.get(..length).unwrap_or_default());
            if !read.lines.is_empty() || length == CHUNK {
                return Ok(read);
            }
            let (next, is_gone) = self.next_after(current.inode)?;
            let Some(next) = next else { return Ok(Read { at_end: true, ..Read::default() }) };
            if !current.superseded {
                // Squid may have written to this file until just before it was renamed: read it once more.
                current.superseded = true;
                continue;
            }
            let opened = Current::open(&next, 0)?;
            if is_gone {
                tracing::warn!("the log file that was being read was taken away; lines of others may be lost");
                self.gap = self.gap.take().or(current.gap(Lost::CurrentFile));
            }
            let rest = current.rest(buffer.get(..length).unwrap_or_default());
            *current = opened;
            if let Some(rest) = rest {
                return Ok(Read { lines: vec![rest], ..Read::default() });
            }
        }
    }

    /// The file of the checkpoint, wherever rotation has moved it; without one the oldest.
    fn open_first(&mut self) -> io::Result<Option<Current>> {
        let files = self.files()?;
        if let Some(resume) = &self.resume {
            for path in &files {
                let current = Current::open(path, resume.offset)?;
                if current.inode == resume.inode
                    && current.fingerprint.as_deref() == Some(resume.fingerprint.as_str())
                    && current.file.metadata()?.len() >= resume.offset
                {
                    return Ok(Some(current));
                }
            }
            if !files.is_empty() {
                tracing::warn!(
                    "the checkpointed log file is gone; reading all that there is, known lines are recognised"
                );
                self.gap = Some(Gap { lost: Lost::CheckpointedFile, after: resume.clone() });
            }
        }
        files.first().map(|path| Current::open(path, 0)).transpose()
    }

    /// The file that follows the one with `inode`, if there is one, and whether that one is gone. One that rotation deleted is
    /// followed by the oldest.
    fn next_after(&self, inode: u64) -> io::Result<(Option<PathBuf>, bool)> {
        let files = self.files()?;
        let mut at = None;
        for (index, path) in files.iter().enumerate() {
            if inode_of(path)? == Some(inode) {
                at = Some(index);
            }
        }
        Ok(match at {
            Some(at) => (files.get(at.saturating_add(1)).cloned(), false),
            None => (files.first().cloned(), true),
        })
    }

    /// The log and its rotated forms, oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&self.name)) else { continue };
            let age = match rest.strip_prefix('.') {
                None if rest.is_empty() => 0,
                Some(number) => match number.parse::<u32>() {
                    Ok(number) => u64::from(number).saturating_add(1),
                    Err(_) => continue,
                },
                None => continue,
            };
            found.push((age, entry.path()));
        }
        found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }
}

impl Current {
    fn open(path: &Path, offset: u64) -> io::Result<Self> {
        // The volume is Squid's. A symlink or a pipe in place of the log is not followed, and does not block.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a file", path.display())));
        }
        let fingerprint = fingerprint(&file)?;
        Ok(Self { file, inode: metadata.ino(), fingerprint, offset, skipping: None, superseded: false })
    }

    /// A file that is shorter than what was read of it, or begins differently, was truncated: it is read anew.
    fn check_truncation(&mut self) -> io::Result<Option<Gap>> {
        let now = fingerprint(&self.file)?;
        let shorter = self.file.metadata()?.len() < self.offset;
        let mut gap = None;
        if shorter || (self.fingerprint.is_some() && now != self.fingerprint) {
            tracing::warn!(offset = self.offset, "Squid's log was truncated; reading it from its beginning");
            gap = self.gap(Lost::Truncated);
            self.offset = 0;
            self.skipping = None;
        }
        self.fingerprint = now;
        Ok(gap)
    }

    /// None where nothing was read of it that tells it from others: then nothing of it was taken either.
    fn gap(&self, lost: Lost) -> Option<Gap> {
        let fingerprint = self.fingerprint.clone()?;
        Some(Gap { lost, after: Position { inode: self.inode, fingerprint, offset: self.offset } })
    }

    /// Takes the complete lines of what was read at the offset.
    fn split(&mut self, bytes: &[u8]) -> Read {
        let mut read = Read::default();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            let found = self.found(line);
            self.advance(end.saturating_add(1));
            read.lines.push(found);
        }
        if rest.len() > MOST_LINE_BYTES {
            self.skipping.get_or_insert(self.offset);
            self.advance(rest.len());
        }
        read
    }

    /// What a file ends with that has no line feed: Squid was killed while it wrote.
    fn rest(&mut self, bytes: &[u8]) -> Option<Found> {
        (self.skipping.is_some() || !bytes.is_empty()).then(|| self.found(bytes))
    }

    /// The line that ends with `end`, which stands at the offset.
    fn found(&mut self, end: &[u8]) -> Found {
        let skipped = self.skipping.take();
        let too_long = skipped.is_some() || end.len() > MOST_LINE_BYTES;
        Found { inode: self.inode, offset: skipped.unwrap_or(self.offset), bytes: (!too_long).then(|| end.to_vec()) }
    }

    fn advance(&mut self, count: usize) {
        self.offset = self.offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

fn inode_of(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        // Renamed since the directory was read; the next look finds it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn fingerprint(file: &File) -> io::Result<Option<String>> {
    let mut buffer = [0_u8; FINGERPRINT_BYTES];
    let length = file.read_at(&mut buffer, 0)?;
    let bytes = buffer.get(..length).unwrap_or_default();
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => bytes.get(..end).unwrap_or_default(),
        None if length == FINGERPRINT_BYTES => bytes,
        // It may still grow.
        None => return Ok(None),
    };
    Ok(Some(hex::encode(digest::digest(&digest::SHA256, line))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    struct Log {
        directory: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn append(&self, text: &str) {
            let mut file = OpenOptions::new().create(true).append(true).open(self.path("access.log")).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self) {
            for number in (0..8).rev() {
                let from = self.path(&format!("access.log.{number}"));
                if from.exists() {
                    std::fs::rename(from, self.path(&format!("access.log.{}", number + 1))).unwrap();
                }
            }
            std::fs::rename(self.path("access.log"), self.path("access.log.0")).unwrap();
        }

        fn tail(&self, resume: Option<Position>) -> Tail {
            Tail::new(self.directory.path(), "access.log", resume)
        }
    }

    fn all(tail: &mut Tail) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let read = tail.read().unwrap();
            lines.extend(
                read.lines
                    .iter()
                    .map(|l| l.bytes.as_ref().map_or("TOO LONG".into(), |l| String::from_utf8(l.clone()).unwrap())),
            );
            if read.at_end {
                return lines;
            }
        }
    }

    #[test]
    fn growth_and_half_lines() {
        let log = Log::new();
        let mut tail = log.tail(None);
        assert!(all(&mut tail).is_empty(), "no log yet");
        assert_eq!(tail.position(), None);
        log.append("a\nb");
        assert_eq!(all(&mut tail), ["a"]);
        log.append("c\n\nd\n");
        assert_eq!(all(&mut tail), ["bc", "", "d"]);
        assert!(all(&mut tail).is_empty());
    }

    #[test]
    fn rotation_loses_and_repeats_nothing() {
        let log = Log::new();
        log.append("a\n");
        let mut tail = log.tail(None);
        assert_eq!(all(&mut tail), ["a"]);
        log.append("b\n");
        log.rotate();
        log.append("c\n");
        log.rotate();
        log.append("d\n");
        assert_eq!(all(&mut tail), ["b", "c", "d"]);
        // The half line of a killed Squid is handed out when its file is done with.
        log.append("half");
        log.rotate();
        log.append("e\n");
        assert_eq!(all(&mut tail), ["half", "e"]);
    }

    #[test]
    fn a_checkpoint_is_found_again_wherever_rotation_moved_it() {
        let log = Log::new();
        log.append("a\nb\n");
        let mut tail = log.tail(None);
        assert_eq!(all(&mut tail), ["a", "b"]);
        let position = tail.position();
        log.append("c\n");
        log.rotate();
        log.append("d\n");
        log.rotate();
        log.append("e\n");
        assert_eq!(all(&mut log.tail(position.clone())), ["c", "d", "e"]);
        // Gone altogether: everything there is, from the oldest on.
        std::fs::remove_file(log.path("access.log.1")).unwrap();
        assert_eq!(all(&mut log.tail(position)), ["d", "e"]);
    }

    #[test]
    fn what_may_be_missing_is_said_once() {
        fn gaps(tail: &mut Tail) -> Vec<Gap> {
            let mut gaps = Vec::new();
            loop {
                let read = tail.read().unwrap();
                gaps.extend(read.gap);
                if read.at_end {
                    return gaps;
                }
            }
        }
        let log = Log::new();
        log.append("a\n");
        let mut tail = log.tail(None);
        assert_eq!(gaps(&mut tail), []);
        let after = tail.position().unwrap();
        // Rotation alone loses nothing, for one who goes on nor for one who resumes.
        log.rotate();
        log.append("b\n");
        assert_eq!(gaps(&mut tail), []);
        assert_eq!(gaps(&mut log.tail(Some(after.clone()))), []);
        // The file of the checkpoint, and who knows what after it.
        std::fs::remove_file(log.path("access.log.0")).unwrap();
        let mut resumed = log.tail(Some(after.clone()));
        assert_eq!(gaps(&mut resumed), [Gap { lost: Lost::CheckpointedFile, after }]);
        assert_eq!(gaps(&mut resumed), []);
        // The file that is being read.
        let after = tail.position().unwrap();
        std::fs::remove_file(log.path("access.log")).unwrap();
        assert_eq!(gaps(&mut tail), [], "nothing came after it yet");
        log.append("c\n");
        assert_eq!(gaps(&mut tail), [Gap { lost: Lost::CurrentFile, after }]);
        assert_eq!(gaps(&mut tail), []);
    }

    #[test]
    fn truncation_is_noticed_even_when_the_file_has_grown_past_it() {
        let log = Log::new();
        log.append("first\nsecond\n");
        let mut tail = log.tail(None);
        assert_eq!(all(&mut tail).len(), 2);
        File::create(log.path("access.log")).unwrap();
        log.append("x\n");
        let read = tail.read().unwrap();
        assert_eq!(read.gap.map(|gap| (gap.lost, gap.after.offset)), Some((Lost::Truncated, 13)));
        assert_eq!(read.lines.first().and_then(|line| line.bytes.as_deref()), Some(b"x".as_slice()), "shorter");
        assert!(all(&mut tail).is_empty());
        File::create(log.path("access.log")).unwrap();
        log.append("yy\nlonger than before\n");
        assert_eq!(all(&mut tail), ["yy", "longer than before"]);
        // The same inode with another beginning is not the file of the checkpoint.
        let position = tail.position();
        File::create(log.path("access.log")).unwrap();
        log.append("zz\nlonger than ever before, by far\n");
        assert_eq!(all(&mut log.tail(position)).first().map(String::as_str), Some("zz"));
    }

    #[test]
    fn a_line_too_long_is_passed_over_and_said() {
        let log = Log::new();
        log.append("a\n");
        let mut tail = log.tail(None);
        assert_eq!(all(&mut tail), ["a"]);
        log.append(&"x".repeat(MOST_LINE_BYTES + CHUNK));
        assert!(all(&mut tail).is_empty());
        log.append("\nb\n");
        assert_eq!(all(&mut tail), ["TOO LONG", "b"]);
        log.append(&format!("{}\nc\n", "y".repeat(MOST_LINE_BYTES + 1)));
        assert_eq!(all(&mut tail), ["TOO LONG", "c"]);
    }

    #[test]
    fn each_line_has_a_place_of_its_own() {
        let log = Log::new();
        log.append("same\nsame\n");
        let long = "x".repeat(MOST_LINE_BYTES + CHUNK);
        let mut tail = log.tail(None);
        let mut places = |expected: &[u64]| {
            let mut lines = Vec::new();
            loop {
                let read = tail.read().unwrap();
                lines.extend(read.lines);
                if read.at_end {
                    break;
                }
            }
            let inode = std::fs::metadata(log.path("access.log")).unwrap().ino();
            assert!(lines.iter().all(|line| line.inode == inode));
            assert_eq!(lines.iter().map(|line| line.offset).collect::<Vec<_>>(), expected);
            tail.position().unwrap().offset
        };
        assert_eq!(places(&[0, 5]), 10);
        log.append(&long);
        assert_eq!(places(&[]), 10, "a checkpoint in the middle of a line would make two of it");
        log.append("\nend\n");
        let after = 10 + u64::try_from(long.len()).unwrap() + 1;
        assert_eq!(places(&[10, after]), after + 4);
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let log = Log::new();
        std::os::unix::fs::symlink("/etc/hostname", log.path("access.log")).unwrap();
        assert!(log.tail(None).read().is_err());
        let none = Tail::new(Path::new("/nonexistent"), "access.log", None).read();
        assert!(none.is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whatever is done to the log between reads and restarts, each line comes out once and in order.
        #[test]
        fn each_line_once(steps in proptest::collection::vec(0u8..5, 1..40)) {
            let log = Log::new();
            let mut tail = log.tail(None);
            let (mut written, mut seen) = (0, Vec::new());
            let rotations = steps.iter().filter(|step| **step == 2).count();
            for step in steps {
                match step {
                    0 | 1 => { log.append(&format!("{written}\n")); written += 1; }
                    2 if rotations < 8 && log.path("access.log").exists() => log.rotate(),
                    3 => seen.extend(all(&mut tail)),
                    _ => { let position = tail.position(); if position.is_some() || seen.is_empty() { tail = log.tail(position); } }
                }
            }
            seen.extend(all(&mut tail));
            prop_assert_eq!(seen, (0..written).map(|n| n.to_string()).collect::<Vec<_>>());
        }
    }
}
