//! What became of a request that left. An [`Account`] is opened when a request may leave and tells the bus when it is
//! dropped, exactly once: at the end of the answer's body, or when whoever waited for it hung up.
//!
//! That it may leave was stored before (`journal`); this is the other half, and need not be waited for.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use assistant_proto::event::{EventId, ModelCalled};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use policy::{ModelPermit, Permit};
use service_kit::clock;
use service_kit::trace::current_traceparent;
use tracing::Span;

use crate::attempt::{Attempt, Left, TargetDigest};
use crate::body::{Body, BodyError};
use crate::state::{State, Tier};
use crate::turn::InTurn;

/// What is known of a request's body while it goes.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    bytes: AtomicU64,
    cut: OnceLock<&'static str>,
}

impl Sent {
    /// So many bytes more.
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The broker ended it, for this reason; the first one counts.
    pub(crate) fn end(&self, why: &'static str) {
        self.cut.get_or_init(|| why);
    }

    /// Why the broker ended it, if it did.
    pub(crate) fn cut(&self) -> Option<&'static str> {
        self.cut.get().copied()
    }
}

/// See the module's description.
pub(crate) struct Account {
    state: Arc<State>,
    tier: Arc<Tier>,
    attempt: Attempt,
    method: String,
    path: String,
    target: TargetDigest,
    rule: String,
    model: Option<ModelCall>,
    /// Whether anything may have left. What never left is not told.
    pub(crate) left: bool,
    /// Upstream status; 0 until it answers.
    pub(crate) status: u16,
    /// Why the broker ended it under way, if it did; else its request's body may know.
    pub(crate) cut: Option<&'static str>,
    sent: Arc<Sent>,
    received: u64,
}

/// What is told of a model call besides.
struct ModelCall {
    permit: ModelPermit,
    api_base: String,
    began: Instant,
    /// `broker.litellm`: as long as the call, with its bytes.
    span: Span,
}

impl Account {
    /// Of a request that a rule permits. `sent` counts its body while it goes.
    pub(crate) fn of_request(
        state: &Arc<State>,
        tier: &Arc<Tier>,
        attempt: &Attempt,
        permit: &Permit,
        sent: Arc<Sent>,
    ) -> Self {
        let request = permit.request();
        Self {
            state: Arc::clone(state),
            tier: Arc::clone(tier),
            attempt: attempt.clone(),
            method: request.method.to_string(),
            path: request.path.to_string(),
            target: TargetDigest::of(&request.origin_form()),
            rule: permit.rule().to_owned(),
            model: None,
            left: true,
            status: 0,
            cut: None,
            sent,
            received: 0,
        }
    }

    /// Of a model call with a body of `length` bytes, which began then; its span ends with it.
    pub(crate) fn of_model(
        state: &Arc<State>,
        tier: &Arc<Tier>,
        attempt: &Attempt,
        permit: &ModelPermit,
        length: usize,
        began: Instant,
        span: Span,
    ) -> Self {
        let sent = Sent::default();
        sent.add(u64::try_from(length).unwrap_or(u64::MAX));
        Self {
            state: Arc::clone(state),
            tier: Arc::clone(tier),
            attempt: attempt.clone(),
            method: "POST".to_owned(),
            path: crate::models::COMPLETIONS.to_owned(),
            target: TargetDigest::of(crate::models::COMPLETIONS),
            rule: permit.rule().to_owned(),
            model: Some(ModelCall { permit: permit.clone(), api_base: String::new(), began, span }),
            left: true,
            status: 0,
            cut: None,
            sent: Arc::new(sent),
            received: 0,
        }
    }

    /// The attempt it is of.
    pub(crate) fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// Where a model call went, as LiteLLM says; made harmless already.
    pub(crate) fn went_to(&mut self, api_base: &str) {
        self.attempt.span.record("model.api_base", api_base);
        if let Some(call) = &mut self.model {
            api_base.clone_into(&mut call.api_base);
        }
    }

    /// Stays open while an answer flows, which ends with an error beyond `most` bytes, and when its turn is over. Passes
    /// data only: trailers say nothing that is awaited, and none was announced.
    pub(crate) fn follow(self, body: Body, most: u64) -> Body {
        let within = InTurn::of(&self.state.turns, &self.tier, &self.attempt);
        Followed { body, account: self, within, most }.boxed_unsync()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.left {
            return;
        }
        self.state.allowed(
            &self.attempt,
            &Left {
                method: &self.method,
                path: &self.path,
                target: &self.target,
                rule: &self.rule,
                status: self.status,
                bytes_out: self.sent.bytes.load(Ordering::Relaxed),
                bytes_in: self.received,
                cut: self.cut.or_else(|| self.sent.cut()),
            },
        );
        let Some(call) = &mut self.model else { return };
        call.span.record("bytes_out", self.sent.bytes.load(Ordering::Relaxed));
        call.span.record("bytes_in", self.received);
        call.span.record("http.response.status_code", self.status);
        let event = ModelCalled {
            tier: self.attempt.tier.clone(),
            principal: call.permit.principal().clone(),
            model: call.permit.model().to_owned(),
            confidential: Some(call.permit.confidential()),
            api_base: std::mem::take(&mut call.api_base),
            status: self.status,
            turn: self.attempt.turn.turn.clone(),
            trace_id: self.attempt.trace_id(),
            took_millis: u64::try_from(call.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            observed_at: clock::now_rfc3339(),
        };
        let span = current_traceparent(&call.span).unwrap_or_else(|| self.attempt.traceparent());
        self.state.bus.emit(&event, EventId::unique(), Some(span));
    }
}

struct Followed {
    body: Body,
    account: Account,
    within: InTurn,
    most: u64,
}

impl Followed {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if self.within.poll_over(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyError::TurnOver)));
        }
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            let Ok(data) = frame.into_data() else { continue };
            self.account.received = self.account.received.saturating_add(length(&data));
            if self.account.received > self.most {
                return Poll::Ready(Some(Err(BodyError::TooLarge)));
            }
            return Poll::Ready(Some(Ok(data)));
        }
    }
}

impl fmt::Debug for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").finish_non_exhaustive()
    }
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let data = ready!(this.poll_data(cx));
        if let Some(Err(error)) = &data {
            this.account.cut = this.account.cut.or_else(|| error.cut());
        }
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body's part in bytes, as events count them.
pub(crate) fn length(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}
