//! The file that is being read: what was read of it, and whether it is still the one that it was.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use aws_lc_rs::digest;

use super::{Found, Gap, Lost, Position, Read};
use crate::line::MOST_LINE_BYTES;

/// The first line tells a file from another that got its inode; so much of it.
const FINGERPRINT_BYTES: usize = 1024;

#[derive(Debug)]
pub(super) struct Current {
    pub(super) file: File,
    pub(super) inode: u64,
    pub(super) fingerprint: Option<String>,
    pub(super) offset: u64,
    /// Within a line that is too long, where it begins: its bytes are passed over up to the next line feed.
    pub(super) skipping: Option<u64>,
    /// The path was seen to name another file; what this one still holds is read first.
    pub(super) superseded: bool,
}

impl Current {
    pub(super) fn open(path: &Path, offset: u64) -> io::Result<Self> {
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
    pub(super) fn check_truncation(&mut self) -> io::Result<Option<Gap>> {
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
    pub(super) fn gap(&self, lost: Lost) -> Option<Gap> {
        let fingerprint = self.fingerprint.clone()?;
        Some(Gap { lost, after: Position { inode: self.inode, fingerprint, offset: self.offset } })
    }

    /// Takes the complete lines of what was read at the offset.
    pub(super) fn split(&mut self, bytes: &[u8]) -> Read {
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
    pub(super) fn rest(&mut self, bytes: &[u8]) -> Option<Found> {
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
