//! Reading bytes through an encoding, with the way back: which source bytes made a decoded one.
//!
//! One decoded byte stands for one *unit* of the source: a plain byte or a whole escape. Units are cut left to right,
//! so that decoding from any unit's beginning gives the same units as decoding from the start of the stream.

use std::borrow::Cow;

/// An encoding whose escapes are undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// `%2F` (RFC 3986, section 2.1).
    Percent,
    /// `\u002f`, `\/` (RFC 8259, section 7).
    Json,
}

impl Encoding {
    fn introducer(self) -> u8 {
        match self {
            Self::Percent => b'%',
            Self::Json => b'\\',
        }
    }
}

/// Stands for a character that is in no secret.
const FOREIGN: u8 = 0xff;

/// Bytes as an encoding reads them.
#[derive(Debug)]
pub(super) struct View<'a> {
    bytes: Cow<'a, [u8]>,
    /// Source position of each decoded byte; none when it is its own.
    starts: Option<Vec<usize>>,
    /// Where an escape begins that is not complete; the end of the source otherwise.
    pending_from: usize,
}

impl<'a> View<'a> {
    /// The bytes themselves.
    pub(super) fn plain(bytes: &'a [u8]) -> Self {
        Self { bytes: Cow::Borrowed(bytes), starts: None, pending_from: bytes.len() }
    }

    /// The bytes with escapes undone; `None` when there are none.
    pub(super) fn decoded(source: &'a [u8], encoding: Encoding) -> Option<Self> {
        memchr::memchr(encoding.introducer(), source)?;
        let mut bytes = Vec::with_capacity(source.len());
        let mut starts = Vec::with_capacity(source.len());
        let mut at = 0;
        while let Some(rest) = source.get(at..).filter(|rest| !rest.is_empty()) {
            let Some((byte, length)) = unit(rest, encoding) else { break };
            bytes.push(byte);
            starts.push(at);
            at = at.saturating_add(length);
        }
        Some(Self { bytes: Cow::Owned(bytes), starts: Some(starts), pending_from: at })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn pending_from(&self) -> usize {
        self.pending_from
    }

    /// Source position of a decoded byte.
    pub(super) fn source_of(&self, index: usize) -> usize {
        match &self.starts {
            None => index.min(self.pending_from),
            Some(starts) => starts.get(index).copied().unwrap_or(self.pending_from),
        }
    }

    /// Source positions of decoded bytes `start..end`.
    pub(super) fn source_range(&self, start: usize, end: usize) -> (usize, usize) {
        (self.source_of(start), self.source_of(end))
    }

    /// The last beginning of a unit that is not after `position`.
    pub(super) fn boundary_at_or_before(&self, position: usize) -> usize {
        match &self.starts {
            None => position,
            Some(_) if position >= self.pending_from => self.pending_from,
            Some(starts) => {
                let after = starts.partition_point(|start| *start <= position);
                after.checked_sub(1).and_then(|index| starts.get(index)).copied().unwrap_or(0)
            }
        }
    }
}

/// The first unit of `rest` (not empty): its decoded byte and its length. `None` when more bytes are needed to tell.
fn unit(rest: &[u8], encoding: Encoding) -> Option<(u8, usize)> {
    match (encoding, rest) {
        (Encoding::Percent, [b'%', tail @ ..]) => match tail {
            [high, low, ..] => Some(match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high.saturating_mul(16).saturating_add(low), 3),
                _ => (b'%', 1),
            }),
            [high] if digit(*high).is_none() => Some((b'%', 1)),
            _ => None,
        },
        (Encoding::Json, [b'\\', tail @ ..]) => match tail {
            [] => None,
            [b'u', digits @ ..] => unicode(digits),
            [byte, ..] => Some(match byte {
                b'"' | b'\\' | b'/' => (*byte, 2),
                b'b' | b'f' | b'n' | b'r' | b't' => (FOREIGN, 2),
                _ => (b'\\', 1),
            }),
        },
        (_, [byte, ..]) => Some((*byte, 1)),
        (_, []) => None,
    }
}

/// What follows `\u`. Anything outside ASCII is in no secret.
fn unicode(digits: &[u8]) -> Option<(u8, usize)> {
    let mut value = 0_u32;
    for index in 0..4_usize {
        match digits.get(index) {
            None => return None,
            Some(byte) => match digit(*byte) {
                Some(digit) => value = value.saturating_mul(16).saturating_add(u32::from(digit)),
                None => return Some((b'\\', 1)),
            },
        }
    }
    Some((u8::try_from(value).ok().filter(u8::is_ascii).unwrap_or(FOREIGN), 6))
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => byte.checked_sub(b'0'),
        b'a'..=b'f' => byte.checked_sub(b'a').map(|value| value.saturating_add(10)),
        b'A'..=b'F' => byte.checked_sub(b'A').map(|value| value.saturating_add(10)),
        _ => None,
    }
}
