//! What comes back from the model's host: which statuses and headers pass, and a body that is measured on its way and
//! accounted for at its end, however it ends.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use assistant_proto::event::{EventId, ModelCalled};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use policy::{Denial, ModelPermit};
use service_kit::clock;

use crate::attempt::{Attempt, Left};
use crate::body::{Body, BodyError, bounded};
use crate::ingress::wire::is_media_type;
use crate::refusal::Refusal;
use crate::rewrite::{Scrubber, scrub_body, scrub_headers};

use crate::state::State;

/// Headers that pass. Everything else of a model's host stays here: request ids and rate limits say something about an
/// account that is not the tier's.
const PASSED: [HeaderName; 2] = [CONTENT_TYPE, RETRY_AFTER];
/// A streamed answer of a model has some megabytes at most.
const BODY_MOST: u64 = 64 * 1024 * 1024;

/// Makes the tier's answer from the host's.
///
/// # Errors
/// 502 for what cannot be passed on: a refused key (its error text may quote it), redirects, encoded or non-JSON content.
pub(super) fn pass(
    upstream: Response<Incoming>,
    scrubber: &Arc<Scrubber>,
    mut account: Account,
) -> Result<Response<Body>, Refusal> {
    let (head, body) = upstream.into_parts();
    account.status = head.status.as_u16();
    let failed = |reason, detail: String, fix: &str| {
        Err(Refusal::elsewhere(StatusCode::BAD_GATEWAY, Denial::new(reason, detail, fix)))
    };
    match head.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return failed(
                "model-key-refused",
                format!("the model's host refused the stack's key with status {}", head.status.as_u16()),
                "put a valid key into the secret that the model route names",
            );
        }
        StatusCode::OK => {}
        status if status.is_client_error() || status.is_server_error() => {}
        status => {
            return failed(
                "model-status",
                format!("the model's host answered with status {}, which is never passed on", status.as_u16()),
                "check model.base_url: it has to be the API itself",
            );
        }
    }
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let known = is_media_type(content_type, "application/json")
        || (head.status == StatusCode::OK && is_media_type(content_type, "text/event-stream"));
    if !known || head.headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        return failed(
            "model-content",
            format!(
                "the model's host answered with status {} and something other than plain JSON or events",
                head.status.as_u16()
            ),
            "check model.base_url: it has to be the API itself",
        );
    }
    let mut headers = http::HeaderMap::new();
    for name in PASSED {
        if let Some(value) = head.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    scrub_headers(scrubber, &mut headers);
    let body = Measured { body: scrub_body(scrubber, bounded(body)), account }.boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// What is known of one model call; published when it is dropped, so that a caller who hangs up is counted too.
pub(super) struct Account {
    pub(super) state: Arc<State>,
    pub(super) attempt: Attempt,
    pub(super) permit: ModelPermit,
    pub(super) path: String,
    /// Upstream status; 0 until it answers.
    pub(super) status: u16,
    pub(super) bytes_out: u64,
    pub(super) bytes_in: u64,
    pub(super) began: Instant,
    /// Whether the request may have left. What never left is no call.
    pub(super) left: bool,
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.left {
            return;
        }
        self.state.allowed(
            &self.attempt,
            &Left {
                method: "POST",
                path: &self.path,
                rule: self.permit.rule(),
                status: self.status,
                bytes_out: self.bytes_out,
                bytes_in: self.bytes_in,
            },
        );
        let event = ModelCalled {
            tier: self.attempt.tier.clone(),
            principal: self.permit.principal().clone(),
            model: self.permit.model().to_owned(),
            status: self.status,
            turn: self.attempt.turn.turn.clone(),
            trace_id: self.attempt.trace_id(),
            took_millis: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            observed_at: clock::now_rfc3339(),
        };
        self.state.bus.emit(&event, EventId::unique(), Some(self.attempt.traceparent()));
    }
}

/// A body that counts itself and ends at [`BODY_MOST`].
struct Measured {
    body: Body,
    account: Account,
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measured").finish_non_exhaustive()
    }
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            this.account.bytes_in = this.account.bytes_in.saturating_add(length);
            if this.account.bytes_in > BODY_MOST {
                return Poll::Ready(Some(Err(BodyError::TooLong)));
            }
        }
        // Trailers of a model's host carry nothing a tier needs.
        match frame {
            Some(Ok(frame)) if frame.is_trailers() => Poll::Ready(None),
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
