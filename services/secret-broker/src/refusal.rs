//! A refusal on its way to the one who asked: an HTTP status around a [`policy::Denial`], and how it looks on the wire.
//!
//! Every refusal has a stable reason, a sentence for a person and the smallest change that would allow it; at the model
//! ingress in the form in which clients of OpenAI's API look for errors. Whether an
//! event is published for it is the refusal's own property, so that no layer counts an attempt twice.

use assistant_proto::event::Layer;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, PROXY_AUTHENTICATE, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use policy::Denial;
use service_kit::text::harmless;

use crate::body::{self, Body};

/// Longest text of a refusal that is repeated to a peer.
const MOST_TEXT: usize = 600;

/// A request that will not be answered as asked.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// HTTP status of the answer.
    pub status: StatusCode,
    /// Why, and what would allow it.
    pub denial: Denial,
    /// The wall that counts it.
    pub counted: Counted,
}

/// Which layer publishes `egress.denied` for a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// This one.
    Here,
    /// Squid refused: egress-auditor makes the event from Squid's log line. Also: nothing was refused, a peer failed.
    Elsewhere,
}

impl Refusal {
    /// A refusal that is counted here.
    #[must_use]
    pub fn new(status: StatusCode, denial: Denial) -> Self {
        Self { status, denial, counted: Counted::Here }
    }

    /// A failure that another layer counts, or that is no refusal.
    #[must_use]
    pub fn elsewhere(status: StatusCode, denial: Denial) -> Self {
        Self { status, denial, counted: Counted::Elsewhere }
    }

    /// 403 with a reason of this service's own.
    #[must_use]
    pub fn forbidden(reason: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Denial::new(reason, detail, fix))
    }

    /// 400 with a reason of this service's own.
    #[must_use]
    pub fn bad_request(reason: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Denial::new(reason, detail, fix))
    }

    /// The answer: `{error, reason, detail, fix, trace_id}`. At the model ingress `error` is an object as OpenAI's API
    /// has it, else a text.
    #[must_use]
    pub fn response(&self, layer: Layer, trace_id: &str) -> Response<Body> {
        let (detail, fix) = (harmless(&self.denial.detail, MOST_TEXT), harmless(&self.denial.fix, MOST_TEXT));
        let error = match layer {
            Layer::Models => serde_json::json!({
                "message": format!("{detail}; {fix}"),
                "type": "refused_by_secret_broker",
                "param": null,
                "code": self.denial.reason,
            }),
            _ => serde_json::json!("refused by secret-broker"),
        };
        let content = serde_json::json!({
            "error": error,
            "reason": self.denial.reason,
            "detail": detail,
            "fix": fix,
            "trace_id": trace_id,
        });
        let mut response = Response::new(body::full(Bytes::from(content.to_string())));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            headers.insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"assistant\""));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"assistant\""));
        }
        response
    }
}

impl From<Denial> for Refusal {
    /// What `policy` denies is 403.
    fn from(denial: Denial) -> Self {
        Self::new(StatusCode::FORBIDDEN, denial)
    }
}
