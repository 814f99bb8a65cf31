//! The scrubber on HTTP: headers, trailers, and a body that is scrubbed as it flows.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use super::{Scrubber, Stream};
use crate::body::{Body, BodyError};

/// See [`scrub_text`].
const PIECE: usize = 64 * 1024;

/// Masks secrets in header values, and drops headers whose very name is made of one. True when there was anything.
pub fn scrub_headers(scrubber: &Scrubber, headers: &mut HeaderMap) -> bool {
    let hidden: Vec<_> = headers.keys().filter(|name| scrubber.is_in_name(name.as_str())).cloned().collect();
    let mut found = !hidden.is_empty();
    for name in hidden {
        while headers.remove(&name).is_some() {}
    }
    for value in headers.values_mut() {
        if let Some(clean) = scrubber.scrub(value.as_bytes()) {
            found = true;
            // Masking puts `*` for bytes, which is valid wherever a header value was; the fallback never runs.
            *value = HeaderValue::from_bytes(&clean).unwrap_or_else(|_| HeaderValue::from_static("*"));
        }
    }
    found
}

/// Masks secrets in a whole text. In pieces: what the search needs besides is many times the size of what it searches.
#[must_use]
pub fn scrub_text(scrubber: &Arc<Scrubber>, text: Vec<u8>) -> Vec<u8> {
    let mut stream = Stream::new(Arc::clone(scrubber));
    let mut clean = Vec::with_capacity(text.len());
    for piece in text.chunks(PIECE) {
        clean.extend_from_slice(&stream.push(piece));
    }
    clean.extend_from_slice(&stream.finish());
    if stream.found() { clean } else { text }
}

/// A body without the secrets. Its length stays what it was.
#[must_use]
pub fn scrub_body(scrubber: &Arc<Scrubber>, body: Body) -> Body {
    Scrubbed { stream: Stream::new(Arc::clone(scrubber)), body, end: End::NotYet }.boxed_unsync()
}

struct Scrubbed {
    stream: Stream,
    body: Body,
    end: End,
}

enum End {
    NotYet,
    /// Trailers that wait until what was held back is out.
    Trailers(HeaderMap),
    Reached,
}

impl fmt::Debug for Scrubbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubbed").finish_non_exhaustive()
    }
}

impl http_body::Body for Scrubbed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.end, End::Reached) {
                End::Reached => return Poll::Ready(None),
                End::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                End::NotYet => {}
            }
            this.end = End::NotYet;
            let data = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.stream.push(&data),
                    Err(frame) => {
                        let Ok(mut trailers) = frame.into_trailers() else { continue };
                        scrub_headers(&this.stream.scrubber, &mut trailers);
                        this.end = End::Trailers(trailers);
                        this.stream.finish()
                    }
                },
                // What is held back of a broken answer stays back: the peer sees it break, not end.
                Some(Err(error)) => {
                    this.end = End::Reached;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.end = End::Reached;
                    this.stream.finish()
                }
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(data)))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.end {
            End::Reached => true,
            End::Trailers(_) => false,
            End::NotYet => self.stream.held() == 0 && self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if matches!(self.end, End::Reached) {
            return SizeHint::with_exact(0);
        }
        let held = u64::try_from(self.stream.held()).unwrap_or(u64::MAX);
        let inner = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(inner.lower().saturating_add(held));
        hint
    }
}
