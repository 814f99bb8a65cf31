//! What becomes of requests that want to leave, at whatever wall or door, and of the secrets they carry.

use serde::{Deserialize, Serialize};

use super::{Attachment, Event, Layer, Measure, Scope};
use crate::name::{HostName, PrincipalName, SecretName, TierName, TurnId};

/// `egress.denied.<tier>`: an attempt died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressDenied {
    /// Whose attempt it was.
    pub tier: Scope,
    /// The container, where it is known.
    pub principal: Option<PrincipalName>,
    /// Where it died.
    pub layer: Layer,
    /// Host name, address or DNS name that was asked for, made harmless; empty where there was none.
    pub host: String,
    /// Port, where there is one.
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `https`, `dns`, `mcp` ...
    pub protocol: String,
    /// Stable code in kebab case, for example `host-not-allowed`.
    pub reason: String,
    /// One sentence for a person: what was attempted and why it was refused.
    pub detail: String,
    /// The smallest change that would allow it, or why nothing will.
    pub fix: String,
    /// Equal attempts counted in this event.
    pub count: u64,
    /// The turn it was attached to.
    pub turn: Option<TurnId>,
    /// How sure the attachment is.
    pub attachment: Attachment,
    /// 32 hex digits, for `deploy/trace.sh`.
    pub trace_id: String,
    /// RFC 3339, UTC, milliseconds.
    pub observed_at: String,
}

impl Event for EgressDenied {
    const TYPE: &'static str = "egress.denied";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }

    fn measure(&self) -> Measure<'_> {
        Measure::Denied { layer: self.layer, reason: &self.reason, attempts: self.count }
    }
}

/// `egress.permitted.<tier>`: a request may leave. Committed before its first byte does, so whatever left is on record
/// even if the broker ends in between; [`EgressAllowed`] says later what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPermitted {
    /// Whose request it is.
    pub tier: TierName,
    /// The container.
    pub principal: PrincipalName,
    /// Which door lets it out.
    pub layer: Layer,
    /// Where it goes: a host name, or the name of an MCP server.
    pub host: String,
    /// Port it goes to.
    pub port: u16,
    /// HTTP method, or `tools/call`.
    pub method: String,
    /// Path without query, or the tool's name; made harmless.
    pub path: String,
    /// SHA-256 of the whole request target as it is sent, query included, in hex; none where there is no target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_sha256: Option<String>,
    /// Length of that target, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<u64>,
    /// Rule that permits it.
    pub rule: String,
    /// Secret that is put in on the way, if any. Never the value.
    pub secret: Option<SecretName>,
    /// The turn it is attached to.
    pub turn: Option<TurnId>,
    /// How sure the attachment is.
    pub attachment: Attachment,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub observed_at: String,
}

impl Event for EgressPermitted {
    const TYPE: &'static str = "egress.permitted";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `egress.allowed.<tier>`: a request left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressAllowed {
    /// Whose request it was.
    pub tier: Scope,
    /// The container.
    pub principal: Option<PrincipalName>,
    /// Which door let it out.
    pub layer: Layer,
    /// Where it went.
    pub host: String,
    /// Port it went to.
    pub port: u16,
    /// HTTP method, or `CONNECT` for Squid's line.
    pub method: String,
    /// Path without query, made harmless; empty for Squid's line.
    pub path: String,
    /// Rule that permitted it; empty for Squid's line.
    pub rule: String,
    /// Upstream status; 0 when it never answered.
    pub status: u16,
    /// Bytes sent to the peer, as far as this layer counts them.
    pub bytes_out: u64,
    /// Bytes received from the peer.
    pub bytes_in: u64,
    /// The turn it was attached to.
    pub turn: Option<TurnId>,
    /// How sure the attachment is.
    pub attachment: Attachment,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub observed_at: String,
}

impl Event for EgressAllowed {
    const TYPE: &'static str = "egress.allowed";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// An event about one HTTP request, by a door that read the request: the same event on the same subject, with what tells
/// it from other requests whose shortened descriptions are equal. Whoever reads `E` itself does not see the difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfRequest<E> {
    /// The event.
    #[serde(flatten)]
    pub event: E,
    /// Method that was asked for, made harmless; only where the event itself has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_method: Option<String>,
    /// SHA-256 of the whole request target, query included, in hex: of one that left as it was sent, of one that was
    /// refused as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_sha256: Option<String>,
    /// Length of that target, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<u64>,
    /// Why the door ended a request or its answer that was under way, a stable code in kebab case such as `turn-over`;
    /// none where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
}

impl<E: Event> Event for OfRequest<E> {
    const TYPE: &'static str = E::TYPE;

    fn scope(&self) -> &str {
        self.event.scope()
    }

    fn measure(&self) -> Measure<'_> {
        self.event.measure()
    }
}

/// `secret.injected.<tier>`: a placeholder became a secret on its way out. Never the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretInjected {
    /// Whose rule it was.
    pub tier: TierName,
    /// The container that sent the placeholder.
    pub principal: PrincipalName,
    /// Name of the secret.
    pub secret: SecretName,
    /// Where it went.
    pub host: HostName,
    /// The rule that permitted it.
    pub rule: String,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub observed_at: String,
}

impl Event for SecretInjected {
    const TYPE: &'static str = "secret.injected";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}
