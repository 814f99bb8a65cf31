//! The one body type that travels through the broker, and what bounds it in time.
//!
//! Bodies are streamed: at most one frame is in memory per direction. Nothing here looks at content; see `rewrite`.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep};

/// A request or answer body on its way through.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Nothing may stay silent for longer than this in the middle of a body.
pub const IDLE: Duration = Duration::from_secs(120);
/// No request or answer takes longer than this in all.
pub const LONGEST: Duration = Duration::from_secs(60 * 60);

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection it came from failed.
    #[error("the connection it came from failed")]
    Connection(#[source] hyper::Error),
    /// Its sender said nothing for [`IDLE`].
    #[error("nothing came for {} seconds", IDLE.as_secs())]
    Idle,
    /// It took longer than [`LONGEST`].
    #[error("it took longer than {} minutes", LONGEST.as_secs() / 60)]
    TooLong,
    /// It is larger than answers of its kind are.
    #[error("it is larger than allowed")]
    TooLarge,
    /// The turn it belongs to is over; see `turn`.
    #[error("the turn it belongs to is over")]
    TurnOver,
}

impl BodyError {
    /// Why the broker ended it, as records say it; none where it was the peer.
    #[must_use]
    pub fn cut(&self) -> Option<&'static str> {
        match self {
            Self::Connection(_) => None,
            Self::Idle => Some("idle"),
            Self::TooLong => Some("too-long"),
            Self::TooLarge => Some("too-large"),
            Self::TurnOver => Some(crate::turn::OVER),
        }
    }
}

/// A body of known content.
pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
#[must_use]
pub fn empty() -> Body {
    full(Bytes::new())
}

/// Bounds a body received from a peer by [`IDLE`] and [`LONGEST`].
#[must_use]
pub fn bounded(incoming: hyper::body::Incoming) -> Body {
    Bounded::new(incoming).boxed_unsync()
}

/// See [`bounded`].
struct Bounded {
    inner: hyper::body::Incoming,
    began: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl Bounded {
    fn new(inner: hyper::body::Incoming) -> Self {
        Self { inner, began: Instant::now(), alarm: Box::pin(tokio::time::sleep(IDLE)) }
    }
}

impl fmt::Debug for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").finish_non_exhaustive()
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            let now = Instant::now();
            if now.saturating_duration_since(this.began) > LONGEST {
                return Poll::Ready(Some(Err(BodyError::TooLong)));
            }
            this.alarm.as_mut().reset(now + IDLE);
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Connection)));
        }
        ready!(this.alarm.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError::Idle)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
