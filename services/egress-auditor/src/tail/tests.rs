#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{File, OpenOptions};
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
