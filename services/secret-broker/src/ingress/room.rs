//! How much memory the JSON of all tiers may take at once: bodies on their way in, answers of MCP servers on their way
//! back, and what is parsed from them. Every one of them has its own bounds, but tiers have many connections, and the
//! broker as a whole has 512 MiB, which one tier must not be able to use up.
//!
//! Room is taken *before* anything is read, for the most that may come, and given back as it turns out to be less. A tier
//! has a share, so that it keeps others out of a part only. What holds a request gives its room back before it takes some
//! for the answer. Where somebody has to wait while holding some, because a server has to be asked for something else
//! first, it is until a deadline, as all waiting here is.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use policy::Denial;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::exact::STRUCTURE_MOST;
use crate::body::{Body, BodyError};
use crate::refusal::Refusal;

/// Of all tiers together.
const ALL: usize = 192 * 1024 * 1024;
/// Of one tier: two of the largest prompts, or a dozen of usual ones.
const OF_TIER: usize = 64 * 1024 * 1024;
/// Room is counted in pieces of this size.
const PIECE: usize = 1024;
/// An answer that its reader takes slowly is handed over in parts of this size, so that what was not taken is still held
/// here, and counted.
const PART: usize = 32 * 1024;

/// What a body of `length` bytes may take: as it comes, put together, and as text in what is parsed from it, besides the
/// structure of that. The densest structure, lists in lists, takes two hundred bytes for one on the wire (`exact`).
fn weight(length: usize) -> usize {
    length.saturating_mul(3).saturating_add(length.saturating_mul(256).min(STRUCTURE_MOST))
}

fn pieces(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX)
}

/// All the room there is.
#[derive(Debug)]
pub(crate) struct Rooms(Arc<Semaphore>);

impl Default for Rooms {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL / PIECE)))
    }
}

impl Rooms {
    /// A tier's share of it.
    pub(crate) fn share(&self) -> Room {
        Room { all: Arc::clone(&self.0), own: Arc::new(Semaphore::new(OF_TIER / PIECE)) }
    }
}

/// One tier's share, for its model and its MCP ingress.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// Room that was taken; free again when dropped.
#[derive(Debug)]
#[must_use = "the room is free again when this is dropped"]
pub(crate) struct Held {
    all: OwnedSemaphorePermit,
    own: OwnedSemaphorePermit,
}

impl Room {
    /// Takes room for a JSON body of at most `most` bytes.
    ///
    /// # Errors
    /// 503 `no-room` when there is none before the deadline.
    pub(crate) async fn take(&self, most: usize, deadline: Instant) -> Result<Held, Refusal> {
        let pieces = pieces(weight(most));
        let both = async {
            // The own share first: who has used it up waits without keeping anything from others.
            let own = Arc::clone(&self.own).acquire_many_owned(pieces).await.ok()?;
            let all = Arc::clone(&self.all).acquire_many_owned(pieces).await.ok()?;
            Some(Held { all, own })
        };
        timeout_at(deadline, both).await.ok().flatten().ok_or_else(no_room)
    }
}

impl Held {
    /// Gives back what a body of `length` bytes does not need.
    pub(crate) fn shrink(&mut self, length: usize) {
        self.keep(pieces(weight(length)));
    }

    /// Keeps room for `length` bytes of text, when nothing parsed is left.
    pub(crate) fn shrink_to_text(&mut self, length: usize) {
        self.keep(pieces(length));
    }

    fn keep(&mut self, pieces: u32) {
        for permit in [&mut self.all, &mut self.own] {
            let spare = permit.num_permits().saturating_sub(usize::try_from(pieces).unwrap_or(usize::MAX));
            drop(permit.split(spare));
        }
    }
}

fn no_room() -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        Denial::new(
            "no-room",
            "so many or so large requests are under way that there is no memory left for this one",
            "wait for some of them, or send less at once; the limits are fixed",
        ),
    )
}

/// A body of known content that holds something, such as [`Held`], until its last part was asked for.
pub(crate) fn held(content: Vec<u8>, held: impl Send + 'static) -> Body {
    HeldBody { rest: content, at: 0, held: Some(held) }.boxed_unsync()
}

struct HeldBody<H> {
    rest: Vec<u8>,
    at: usize,
    held: Option<H>,
}

impl<H> HeldBody<H> {
    fn left(&self) -> usize {
        self.rest.len().saturating_sub(self.at)
    }
}

impl<H> fmt::Debug for HeldBody<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldBody").field("left", &self.left()).finish_non_exhaustive()
    }
}

impl<H> Unpin for HeldBody<H> {}

impl<H: Send + 'static> http_body::Body for HeldBody<H> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let end = this.at.saturating_add(PART).min(this.rest.len());
        // Copied: a part must not keep the whole of it alive.
        let part = this.rest.get(this.at..end).map(Bytes::copy_from_slice).unwrap_or_default();
        this.at = end;
        if this.left() == 0 {
            this.rest = Vec::new();
            this.at = 0;
            this.held = None;
        }
        Poll::Ready((!part.is_empty()).then(|| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.left()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_tier_has_its_share_and_all_tiers_have_what_there_is() {
        const MOST: usize = 8 * 1024 * 1024;
        let rooms = Rooms::default();
        let mut held = Vec::new();
        let mut tiers = 0;
        // Each tier takes what it can; some tier gets nothing because others have it all.
        loop {
            let (room, before) = (rooms.share(), held.len());
            while let Ok(one) = room.take(MOST, soon()).await {
                held.push(one);
            }
            if held.len() == before {
                break;
            }
            assert!(held.len() - before <= OF_TIER / weight(MOST), "a tier took more than its share");
            tiers += 1;
        }
        assert!(tiers >= 3, "one tier, or two, keep nobody out: {tiers}");
        assert!(held.len() * weight(MOST) <= ALL);
        let refused = rooms.share().take(MOST, soon()).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.denial.reason), (503, "no-room"));
        // What is given back can be taken again.
        held.iter_mut().for_each(|held| held.shrink(1024));
        assert!(rooms.share().take(MOST, soon()).await.is_ok());
        drop(held);
        assert_eq!(rooms.0.available_permits(), ALL / PIECE);
    }

    #[tokio::test]
    async fn an_answer_holds_its_room_until_it_was_taken() {
        let rooms = Rooms::default();
        let held_room = rooms.share().take(PART * 2, soon()).await.unwrap();
        let content: Vec<u8> = (0..PART * 2 + 5).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let mut body = held(content.clone(), held_room);
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            assert!(got.len() < content.len());
            got.extend_from_slice(&frame.unwrap().into_data().unwrap());
            assert_eq!(rooms.0.available_permits() == ALL / PIECE, got.len() == content.len());
        }
        assert_eq!(got, content);
        assert!(held(Vec::new(), ()).frame().await.is_none());
    }
}
