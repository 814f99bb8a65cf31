//! The line protocol between Squid and a helper: one request a line, one answer a line, in any order by channel.
//!
//! Squid waits for a helper without a limit of its own, and kills itself when helpers crash too often: so a helper
//! answers every line it can attribute to a channel at once, never blocks on anything but its input, and never panics.

use std::io::{self, BufRead, Write};

/// Longest request line. Squid's own names and credentials are far below it.
pub const LINE_MOST: usize = 8 * 1024;

/// Answers lines until the input ends. `answer` gets a line without its end; a line longer than [`LINE_MOST`] is handed
/// over cut, with `whole` false, so that its channel can still be refused. `None` writes nothing: there is no channel to
/// answer on.
///
/// # Errors
/// Where reading or writing fails: Squid is gone.
pub fn serve(
    mut input: impl BufRead,
    mut output: impl Write,
    mut answer: impl FnMut(&[u8], bool) -> Option<String>,
) -> io::Result<()> {
    let mut line = Vec::with_capacity(512);
    let mut whole = true;
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            // A last line without its end was never finished by Squid; nobody waits for it.
            return Ok(());
        }
        let end = chunk.iter().position(|&byte| byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
        let room = LINE_MOST.saturating_sub(line.len());
        whole &= part.len() <= room;
        line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        let used = part.len().saturating_add(usize::from(end.is_some()));
        input.consume(used);
        if end.is_some() {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if let Some(reply) = answer(&line, whole) {
                output.write_all(reply.as_bytes())?;
                output.write_all(b"\n")?;
                output.flush()?;
            }
            line.clear();
            whole = true;
        }
    }
}

/// A channel number exactly as Squid writes it: digits only.
#[must_use]
pub fn channel(field: &[u8]) -> Option<u64> {
    if field.is_empty() || field.len() > 19 || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;
    use std::io::BufReader;

    fn echo(input: &[u8], capacity: usize) -> Vec<(Vec<u8>, bool)> {
        let mut seen = Vec::new();
        serve(BufReader::with_capacity(capacity, input), io::sink(), |line, whole| {
            seen.push((line.to_vec(), whole));
            None
        })
        .unwrap();
        seen
    }

    #[test]
    fn lines_are_split_whatever_the_chunks() {
        for capacity in [1, 2, 3, 64] {
            assert_eq!(
                echo(b"0 a\n\n1 b\r\nunfinished", capacity),
                [(b"0 a".to_vec(), true), (Vec::new(), true), (b"1 b".to_vec(), true)],
                "capacity {capacity}"
            );
        }
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_is_whole() {
        let mut input = b"7 ".to_vec();
        input.extend(std::iter::repeat_n(b'x', LINE_MOST));
        input.extend_from_slice(b"\n8 y\n");
        let seen = echo(&input, 100);
        assert_eq!(seen.len(), 2);
        let (long, whole) = seen.first().unwrap();
        assert_eq!((long.len(), *whole), (LINE_MOST, false));
        assert_eq!(seen.get(1).unwrap(), &(b"8 y".to_vec(), true));
    }

    #[test]
    fn answers_are_written_with_their_end() {
        let mut out = Vec::new();
        serve(&b"3 x\n4 y\n"[..], &mut out, |line, _| Some(format!("{} OK", channel(line.get(..1).unwrap()).unwrap())))
            .unwrap();
        assert_eq!(out, b"3 OK\n4 OK\n");
    }

    #[test]
    fn channels_are_digits() {
        assert_eq!(channel(b"0"), Some(0));
        assert_eq!(channel(b"99"), Some(99));
        for bad in [&b""[..], b"-1", b"+1", b"1a", b" 1", b"99999999999999999999", b"\xff"] {
            assert_eq!(channel(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_finished_line_is_seen_once(bytes in proptest::collection::vec(any::<u8>(), 0..400), capacity in 1_usize..40) {
            let ends = bytes.iter().filter(|&&b| b == b'\n').count();
            prop_assert_eq!(echo(&bytes, capacity).len(), ends);
        }
    }
}
