//! What is known of one attempt while it is being decided: whose, where to, in which turn, in which span. Events are
//! made from it, so that every event of an attempt says the same.

use assistant_proto::event::{EgressAllowed, EgressDenied, Layer, OfRequest, Scope};
use assistant_proto::name::{PrincipalName, TierName};
use assistant_proto::trace::TraceParent;
use aws_lc_rs::digest;
use http::{Method, Uri};
use policy::Denial;
use service_kit::text::harmless;
use service_kit::turns::{TurnContext, Turns};
use service_kit::{clock, trace};
use tracing::Span;
use tracing::field::Empty;

/// Longest host name that an event repeats; the longest valid one has 253 characters.
pub(crate) const MOST_HOST: usize = 256;
/// Longest path that an event repeats.
pub(crate) const MOST_PATH: usize = 1024;

/// Longest method that an event repeats.
const MOST_METHOD: usize = 32;

/// What tells a request target from all others, whatever its length: events repeat it shortened and without its query.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetDigest {
    /// SHA-256, in hex.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

impl TargetDigest {
    /// Of a target, query included.
    #[must_use]
    pub fn of(target: &str) -> Self {
        Self {
            sha256: hex::encode(digest::digest(&digest::SHA256, target.as_bytes())),
            bytes: u64::try_from(target.len()).unwrap_or(u64::MAX),
        }
    }
}

/// The line of a request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    method: String,
    target: TargetDigest,
}

/// One attempt of a container to get something out of a door.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Whose network it came from.
    pub tier: TierName,
    /// The container, once it is authenticated (or known by its address).
    pub principal: Option<PrincipalName>,
    /// Which door.
    pub layer: Layer,
    /// What was asked for; empty until it is known. Any text: made harmless when an event is made.
    pub host: String,
    /// Port that was asked for.
    pub port: Option<u16>,
    /// `https`, `mcp` ...
    pub protocol: &'static str,
    /// The request that was made, once its line was read.
    pub asked: Option<Asked>,
    /// The turn it is attached to, as of when it began.
    pub turn: TurnContext,
    /// Its span, child of the turn's.
    pub span: Span,
    trace: TraceParent,
}

impl Attempt {
    /// Begins an attempt now. `name` is the span's name, for example `broker.request`.
    #[must_use]
    pub fn begin(turns: &Turns, tier: &TierName, layer: Layer, protocol: &'static str, name: &'static str) -> Self {
        let turn = turns.current(tier);
        let span = tracing::info_span!(
            parent: None,
            "broker",
            otel.name = name,
            otel.kind = "server",
            otel.status_code = Empty,
            tier = %tier,
            layer = layer.as_str(),
            attachment = turn.attachment.as_str(),
            turn = turn.turn.as_ref().map(|turn| turn.as_str()),
            principal = Empty,
            server.address = Empty,
            http.request.method = Empty,
            http.response.status_code = Empty,
            rule = Empty,
            answer.credentials_dropped = Empty,
            model.api_base = Empty,
            denied = Empty,
        );
        trace::span_parent(&span, turn.parent);
        // Without telemetry the events still need an id by which they belong together.
        let trace = trace::current_traceparent(&span).or(turn.parent).unwrap_or_else(trace::fresh);
        Self {
            tier: tier.clone(),
            principal: None,
            layer,
            host: String::new(),
            port: None,
            protocol,
            asked: None,
            turn,
            span,
            trace,
        }
    }

    /// Who it is.
    pub fn authenticated(&mut self, principal: &PrincipalName) {
        self.span.record("principal", principal.as_str());
        self.principal = Some(principal.clone());
    }

    /// Where it wants to.
    pub fn aims_at(&mut self, host: &str, port: Option<u16>) {
        self.host = harmless(host, MOST_HOST);
        self.port = port;
        self.span.record("server.address", self.host.as_str());
    }

    /// Which request it is, as it came.
    pub fn asks(&mut self, method: &Method, target: &Uri) {
        self.asked = Some(Asked {
            method: harmless(method.as_str(), MOST_METHOD),
            target: TargetDigest::of(&target.to_string()),
        });
    }

    /// What its span has as identifiers; a fresh pair when telemetry is off.
    #[must_use]
    pub fn traceparent(&self) -> TraceParent {
        self.trace
    }

    /// 32 hex digits, for events and refusals.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.trace.trace_id()
    }

    /// The event of its refusal.
    #[must_use]
    pub fn denied(&self, denial: &Denial) -> OfRequest<EgressDenied> {
        let event = EgressDenied {
            tier: Scope::Tier(self.tier.clone()),
            principal: self.principal.clone(),
            layer: self.layer,
            host: harmless(&self.host, MOST_HOST),
            port: self.port,
            protocol: self.protocol.to_owned(),
            reason: denial.reason.to_owned(),
            detail: harmless(&denial.detail, MOST_PATH),
            fix: harmless(&denial.fix, MOST_PATH),
            count: 1,
            turn: self.turn.turn.clone(),
            attachment: self.turn.attachment,
            trace_id: self.trace_id(),
            observed_at: clock::now_rfc3339(),
        };
        let (asked_method, target) = match self.asked.clone() {
            Some(Asked { method, target }) => (Some(method), Some(target)),
            None => (None, None),
        };
        of_request(event, asked_method, target, None)
    }

    /// The event of its having left; `path` without query.
    #[must_use]
    pub fn allowed(&self, left: &Left<'_>) -> OfRequest<EgressAllowed> {
        let event = EgressAllowed {
            tier: Scope::Tier(self.tier.clone()),
            principal: self.principal.clone(),
            layer: self.layer,
            host: harmless(&self.host, MOST_HOST),
            port: self.port.unwrap_or_default(),
            method: harmless(left.method, MOST_METHOD),
            path: harmless(left.path, MOST_PATH),
            rule: left.rule.to_owned(),
            status: left.status,
            bytes_out: left.bytes_out,
            bytes_in: left.bytes_in,
            turn: self.turn.turn.clone(),
            attachment: self.turn.attachment,
            trace_id: self.trace_id(),
            observed_at: clock::now_rfc3339(),
        };
        of_request(event, None, Some(left.target.clone()), left.cut)
    }
}

fn of_request<E>(
    event: E,
    asked_method: Option<String>,
    target: Option<TargetDigest>,
    cut: Option<&str>,
) -> OfRequest<E> {
    let (target_sha256, target_bytes) = target.map(|target| (target.sha256, target.bytes)).unzip();
    OfRequest { event, asked_method, target_sha256, target_bytes, cut: cut.map(str::to_owned) }
}

/// What became of a request that left.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path, without query.
    pub path: &'a str,
    /// Its whole target, as it was sent.
    pub target: &'a TargetDigest,
    /// The rule that permitted it.
    pub rule: &'a str,
    /// Upstream status; 0 when it never answered.
    pub status: u16,
    /// Bytes of body sent.
    pub bytes_out: u64,
    /// Bytes of body received.
    pub bytes_in: u64,
    /// Why the broker ended it under way, if it did.
    pub cut: Option<&'a str>,
}
