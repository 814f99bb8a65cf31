//! A request leaves only after the decision on it was stored. Owns that order: [`record`] commits `egress.permitted` and
//! gives [`Recorded`], and nothing can be sent without one.
//!
//! One commit a request, about a millisecond on the machine's own NATS. Without an acknowledgement in time nothing leaves,
//! which also holds while NATS is away. What became of the request is told later and need not be waited for (`attempt`).

use std::time::Duration;

use assistant_proto::event::{EgressPermitted, EventId};
use assistant_proto::name::{PrincipalName, SecretName};
use assistant_proto::trace::TraceParent;
use http::StatusCode;
use policy::{Denial, Injection, ModelPermit, Permit};
use service_kit::bus::Bus;
use service_kit::clock;
use service_kit::text::harmless;
use service_kit::trace::current_traceparent;
use tracing::Span;

use crate::attempt::{Attempt, MOST_HOST, MOST_PATH, TargetDigest};
use crate::refusal::Refusal;

/// How long NATS may take to store a decision.
const DEADLINE: Duration = Duration::from_secs(2);

/// Proof that the decision on a request is stored.
#[derive(Debug)]
#[must_use = "a decision is recorded so that something may be sent"]
pub struct Recorded {
    _only_here: (),
}

/// What is about to leave.
#[derive(Debug)]
pub struct Departure<'a> {
    principal: &'a PrincipalName,
    host: &'a str,
    port: u16,
    method: &'a str,
    path: &'a str,
    /// None where there is no request target that could differ.
    target: Option<TargetDigest>,
    rule: &'a str,
    secret: Option<&'a SecretName>,
    /// The span of what leaves, where it has one before it leaves.
    span: Option<TraceParent>,
}

impl<'a> Departure<'a> {
    /// A request that a rule permits.
    #[must_use]
    pub fn of_request(permit: &'a Permit) -> Self {
        let request = permit.request();
        Self {
            principal: permit.principal(),
            host: request.target.host().as_str(),
            port: request.target.port(),
            method: request.method.as_str(),
            path: request.path.as_str(),
            target: Some(TargetDigest::of(&request.origin_form())),
            rule: permit.rule(),
            secret: permit.injection().map(Injection::secret),
            span: None,
        }
    }

    /// A call that the model route permits, to a LiteLLM.
    #[must_use]
    pub fn of_model(permit: &'a ModelPermit, litellm: &'a str, port: u16, path: &'a str, span: &Span) -> Self {
        let (principal, rule) = (permit.principal(), permit.rule());
        let target = Some(TargetDigest::of(path));
        let span = current_traceparent(span);
        Self { principal, host: litellm, port, method: "POST", path, target, rule, secret: None, span }
    }

    /// A call of a tool that the tier's allow-list names.
    #[must_use]
    pub fn of_tool(principal: &'a PrincipalName, server: &'a str, port: u16, tool: &'a str, rule: &'a str) -> Self {
        Self {
            principal,
            host: server,
            port,
            method: "tools/call",
            path: tool,
            target: None,
            rule,
            secret: None,
            span: None,
        }
    }

    /// Asking a server of the tier which tools it has.
    #[must_use]
    pub fn of_list(principal: &'a PrincipalName, server: &'a str, port: u16, rule: &'a str) -> Self {
        Self {
            principal,
            host: server,
            port,
            method: "tools/list",
            path: "",
            target: None,
            rule,
            secret: None,
            span: None,
        }
    }
}

/// Stores that something is about to leave.
///
/// # Errors
/// 503 `not-journaled`: nothing may leave then.
pub async fn record(bus: &Bus, attempt: &Attempt, departure: &Departure<'_>) -> Result<Recorded, Refusal> {
    let event = EgressPermitted {
        tier: attempt.tier.clone(),
        principal: departure.principal.clone(),
        layer: attempt.layer,
        host: harmless(departure.host, MOST_HOST),
        port: departure.port,
        method: departure.method.to_owned(),
        path: harmless(departure.path, MOST_PATH),
        target_sha256: departure.target.as_ref().map(|target| target.sha256.clone()),
        target_bytes: departure.target.as_ref().map(|target| target.bytes),
        rule: harmless(departure.rule, MOST_HOST),
        secret: departure.secret.cloned(),
        turn: attempt.turn.turn.clone(),
        attachment: attempt.turn.attachment,
        trace_id: attempt.trace_id(),
        observed_at: clock::now_rfc3339(),
    };
    let span = departure.span.unwrap_or_else(|| attempt.traceparent());
    match bus.commit(&event, EventId::unique(), Some(span), DEADLINE).await {
        Ok(_) => Ok(Recorded { _only_here: () }),
        Err(error) => {
            tracing::warn!(parent: &attempt.span, %error, "the decision could not be stored, so nothing leaves");
            Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                Denial::new(
                    "not-journaled",
                    "the request is permitted, but the decision could not be stored, and nothing leaves unrecorded",
                    "see whether the containers assistant-nats and assistant-egress-auditor run and have room on their disk; it recovers by \
                     itself",
                ),
            ))
        }
    }
}
