//! Follows Squid's access log by inode and offset, through growth, rotation (`access.log` renamed to `access.log.0`, the
//! others shifted up), truncation and restarts. Blocking I/O: call it from a thread that may block.
//!
//! It returns complete lines as bytes; what they mean is not its business. It may return a line twice (after a
//! truncation, or when the checkpoint is older than what was read): a line's event has a deterministic id. It never
//! passes over one, as far as the file still has it; where it cannot tell whether lines are missing it says so.

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

pub use assistant_proto::squid_log::Position;

use crate::line::MOST_LINE_BYTES;
use current::Current;

mod current;
#[cfg(test)]
mod tests;

/// Read at a time; at least one line of the greatest length and its line feed.
const CHUNK: usize = 256 * 1024;
const _: () = assert!(CHUNK > MOST_LINE_BYTES + 1);

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

fn inode_of(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        // Renamed since the directory was read; the next look finds it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
