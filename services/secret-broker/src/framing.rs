//! Reading along with hyper: whether the bytes of a connection can be cut into requests in only one way.
//!
//! hyper resolves what RFC 9112 says how to resolve: with both `transfer-encoding` and `content-length` it drops the
//! latter, equal lengths become one, a bare line feed ends a line. The broker frames every request anew, so nothing
//! ambiguous is ever passed on; but who sends such bytes is trying something, and is refused and counted. hyper does not
//! tell, hence this: it follows the bytes, changes none, and raises a flag that the request is refused by.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::listener::MOST_HEAD;

/// Raised once, for the rest of the connection.
#[derive(Debug, Clone, Default)]
pub struct Ambiguity(Arc<AtomicBool>);

impl Ambiguity {
    /// Whether anything so far could be read in two ways.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A connection whose incoming bytes are followed.
#[derive(Debug)]
pub struct Followed<S> {
    stream: S,
    framing: Framing,
    ambiguity: Ambiguity,
}

impl<S> Followed<S> {
    /// Follows `stream` from its first byte.
    #[must_use]
    pub fn new(stream: S) -> Self {
        Self { stream, framing: Framing::default(), ambiguity: Ambiguity::default() }
    }

    /// The flag, to keep.
    #[must_use]
    pub fn ambiguity(&self) -> Ambiguity {
        self.ambiguity.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Followed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let fresh = buffer.filled().get(before..).unwrap_or_default();
        if !this.framing.follow(fresh) {
            this.ambiguity.raise();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Followed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Where in the stream of requests we are.
#[derive(Debug)]
enum Framing {
    /// In a head; its lines so far say this.
    Head { line: Vec<u8>, bytes: usize, lengths: Vec<u64>, chunked: bool },
    /// So many bytes of a body remain.
    Body(u64),
    /// In the line that announces a chunk.
    ChunkSize(Vec<u8>),
    /// So many bytes of a chunk remain, its final CRLF included.
    Chunk(u64),
    /// In the trailers.
    Trailers { line: Vec<u8>, bytes: usize },
    /// Ambiguous; nothing further is looked at.
    Lost,
}

impl Default for Framing {
    fn default() -> Self {
        Self::Head { line: Vec::new(), bytes: 0, lengths: Vec::new(), chunked: false }
    }
}

impl Framing {
    /// Takes the next bytes; false once they are ambiguous.
    fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((first, rest)) = bytes.split_first() {
            bytes = match self {
                Self::Lost => return false,
                Self::Body(left) | Self::Chunk(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left = left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
                    let after = bytes.get(here..).unwrap_or_default();
                    if *left == 0 {
                        *self =
                            if matches!(self, Self::Chunk(_)) { Self::ChunkSize(Vec::new()) } else { Self::default() };
                    }
                    after
                }
                Self::Head { .. } | Self::ChunkSize(_) | Self::Trailers { .. } => {
                    if !self.take(*first) {
                        *self = Self::Lost;
                        return false;
                    }
                    rest
                }
            };
        }
        !matches!(self, Self::Lost)
    }

    /// One byte of a line.
    fn take(&mut self, byte: u8) -> bool {
        let line = match self {
            Self::Head { line, bytes, .. } | Self::Trailers { line, bytes } => {
                *bytes = bytes.saturating_add(1);
                // hyper refuses a longer head by itself.
                if *bytes > MOST_HEAD.saturating_mul(2) {
                    return false;
                }
                line
            }
            Self::ChunkSize(line) if line.len() < 256 => line,
            Self::ChunkSize(_) | Self::Body(_) | Self::Chunk(_) | Self::Lost => return false,
        };
        match (byte, line.last()) {
            (b'\n', Some(b'\r')) => {
                line.pop();
                let line = std::mem::take(line);
                self.line(&line)
            }
            // Bare CR or LF ends a line for some and not for others.
            (b'\n', _) | (_, Some(b'\r')) => false,
            _ => {
                line.push(byte);
                true
            }
        }
    }

    /// A whole line, without its CRLF.
    fn line(&mut self, line: &[u8]) -> bool {
        match self {
            Self::Head { bytes, lengths, chunked, .. } => {
                if !line.is_empty() {
                    return header(line, lengths, chunked);
                }
                // An empty line before a request line is tolerated (RFC 9112, section 2.2).
                if *bytes == 2 {
                    *self = Self::default();
                    return true;
                }
                let (lengths, chunked) = (std::mem::take(lengths), *chunked);
                *self = match (lengths.as_slice(), chunked) {
                    ([], false) | ([0], false) => Self::default(),
                    ([length], false) => Self::Body(*length),
                    ([], true) => Self::ChunkSize(Vec::new()),
                    _ => return false,
                };
                true
            }
            Self::ChunkSize(_) => {
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(digits)
                    .ok()
                    .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .and_then(|digits| u64::from_str_radix(digits, 16).ok());
                *self = match size {
                    None => return false,
                    Some(0) => Self::Trailers { line: Vec::new(), bytes: 0 },
                    Some(size) => Self::Chunk(size.saturating_add(2)),
                };
                true
            }
            Self::Trailers { .. } => {
                if line.is_empty() {
                    *self = Self::default();
                }
                true
            }
            Self::Body(_) | Self::Chunk(_) | Self::Lost => false,
        }
    }
}

/// Notes what a header line says about length; false when it says so in an unusual way.
fn header(line: &[u8], lengths: &mut Vec<u64>, chunked: &mut bool) -> bool {
    // A line that continues the one before (obsolete folding, RFC 9112, section 5.2).
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return false;
    }
    // The request line, or something that hyper refuses by itself.
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return true };
    let (name, value) = line.split_at(colon);
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    if name.eq_ignore_ascii_case(b"content-length") {
        let digits = std::str::from_utf8(value).ok().filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(length) = digits.and_then(|digits| digits.parse().ok()) else { return false };
        lengths.push(length);
        return lengths.len() == 1;
    }
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        let again = std::mem::replace(chunked, true);
        return !again && value.eq_ignore_ascii_case(b"chunked");
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLEAR: &[&str] = &[
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab\ncd",
        "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\na\nb\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\n\r\n",
    ];

    const AMBIGUOUS: &[&str] = &[
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    ];

    #[test]
    fn clear_and_ambiguous() {
        for text in CLEAR {
            assert!(Framing::default().follow(text.as_bytes()), "{text:?}");
        }
        for text in AMBIGUOUS {
            assert!(!Framing::default().follow(text.as_bytes()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn requests_are_found_one_after_the_other_however_they_are_cut(
            requests in proptest::collection::vec(0..CLEAR.len(), 0..5),
            last in 0..AMBIGUOUS.len(),
            size in 1_usize..40,
        ) {
            let clear: String = requests.iter().filter_map(|index| CLEAR.get(*index)).copied().collect();
            let mut framing = Framing::default();
            prop_assert!(clear.as_bytes().chunks(size).all(|part| framing.follow(part)));
            let ambiguous = AMBIGUOUS.get(last).copied().unwrap_or_default();
            prop_assert!(!ambiguous.as_bytes().chunks(size).all(|part| framing.follow(part)));
        }
    }
}
