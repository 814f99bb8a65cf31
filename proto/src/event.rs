//! Events on NATS: one Rust type per subject, the subject computed from the value.
//!
//! On the wire an event is a CloudEvent in binary content mode (CloudEvents NATS protocol binding 1.0): the JSON body
//! is the value, attributes travel as `ce-*` headers. `ce-id` is deterministic ([`EventId::derive`]), so that a replay
//! is recognised as one. Fields that hold text from a tier or a peer carry it already made harmless; see
//! `service_kit::text`.

use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Confidentiality;
use crate::name::{HostName, NameError, PrincipalName, SCOPE_STACK, SecretName, TierName, TurnId};
use crate::trace::TraceParent;

/// A value that is published on `<TYPE>.<scope>`.
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// CloudEvents `type`, and the first two tokens of the subject.
    const TYPE: &'static str;

    /// Last token of the subject: the tier's name, or [`SCOPE_STACK`].
    fn scope(&self) -> &str;

    /// The subject it is published on.
    fn subject(&self) -> String {
        format!("{}.{}", Self::TYPE, self.scope())
    }

    /// What it carries that is worth measuring, besides that it happened.
    fn measure(&self) -> Measure<'_> {
        Measure::Nothing
    }
}

/// See [`Event::measure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure<'e> {
    /// Nothing.
    Nothing,
    /// A piece of work is over.
    Finished {
        /// What kind of work.
        work: Work,
        /// How long it took; none where that is not known.
        took: Option<Duration>,
        /// Whether it came to a good end.
        succeeded: bool,
    },
    /// Attempts died.
    Denied {
        /// Where.
        layer: Layer,
        /// The stable code.
        reason: &'e str,
        /// How many of them the event stands for.
        attempts: u64,
    },
}

/// Work that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// An answer to a message, from its start to its end.
    Turn,
    /// A call of the model.
    ModelCall,
    /// A call of a tool.
    ToolCall,
}

impl Work {
    /// As in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Turn => "turn",
            Self::ModelCall => "model-call",
            Self::ToolCall => "tool-call",
        }
    }
}

/// Deterministic identity of an event: 128 bits of SHA-256 over what makes it the same event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventId(String);

impl EventId {
    /// Derives an id from parts. Each part is length-prefixed, so that ("ab","c") and ("a","bc") differ.
    #[must_use]
    pub fn derive(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Self(hex::encode(context.finish().as_ref().get(..16).unwrap_or_default()))
    }

    /// An id nobody else has, for what happens once.
    #[must_use]
    pub fn unique() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }

    /// As text: 32 hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Back from where its text was stored, so that an event can be published again as the same event.
impl FromStr for EventId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Malformed { kind: "event id", rule: "32 lower-case hex digits" })
        }
    }
}

/// Either a tier or the stack as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// One tier.
    Tier(TierName),
    /// No tier in particular.
    Stack,
}

impl Scope {
    /// As the last token of a subject.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tier(tier) => tier.as_str(),
            Self::Stack => SCOPE_STACK,
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = crate::name::NameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == SCOPE_STACK { Ok(Self::Stack) } else { text.parse().map(Self::Tier) }
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> String {
        scope.as_str().to_owned()
    }
}

impl From<TierName> for Scope {
    fn from(tier: TierName) -> Self {
        Self::Tier(tier)
    }
}

/// The wall an attempt died at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// egress-auditor's resolver.
    Dns,
    /// secret-broker's HTTPS proxy.
    Broker,
    /// secret-broker's model ingress.
    Models,
    /// secret-broker's MCP ingress.
    Mcp,
    /// The kernel's packet table.
    Packet,
    /// Squid.
    Squid,
    /// The filter in front of a sandbox's Docker.
    Sandbox,
}

impl Layer {
    /// As in events and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Broker => "broker",
            Self::Models => "models",
            Self::Mcp => "mcp",
            Self::Packet => "packet",
            Self::Squid => "squid",
            Self::Sandbox => "sandbox",
        }
    }
}

/// How sure we are that a request belongs to the turn it is attached to. ZeroClaw carries no trace context, so the
/// attachment is by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// A turn of the tier was running.
    Active,
    /// No turn was running; the tier is allowed background work or the attempt was refused for it.
    Background,
    /// Just after a turn ended.
    Late,
}

impl Attachment {
    /// As in events, records and spans.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Background => "background",
            Self::Late => "late",
        }
    }
}

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

/// `turn.started.<tier>`: published with a reply inbox; secret-broker and egress-auditor answer [`TurnAcknowledged`]
/// before the prompt goes to the agent. While the turn runs it is published again every few seconds, the same but for
/// the event's id: who hears nothing more takes the turn for over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnStarted {
    /// The tier that will answer.
    pub tier: TierName,
    /// The turn.
    pub turn: TurnId,
    /// Root span of the turn: what every other span of it hangs from.
    pub traceparent: TraceParent,
    /// Channel kind, for example `terminal`.
    pub channel: String,
    /// Conversation within the channel.
    pub conversation: String,
    /// RFC 3339, UTC. The same in every repetition; a later attempt at the same turn has its own.
    pub started_at: String,
}

impl Event for TurnStarted {
    const TYPE: &'static str = "turn.started";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// The answer of a service to [`TurnStarted`]. Not an event: it goes to the reply inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnAcknowledged {
    /// `secret-broker` or `egress-auditor`.
    pub service: String,
    /// The turn it now knows.
    pub turn: TurnId,
}

/// `turn.ended.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnEnded {
    /// The tier that answered.
    pub tier: TierName,
    /// The turn.
    pub turn: TurnId,
    /// `end_turn`, `cancelled`, `failed` ...
    pub outcome: String,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub ended_at: String,
    /// How long it took, in milliseconds; 0 where the turn had ended, or broken off, before this was published.
    pub took_millis: u64,
}

impl Event for TurnEnded {
    const TYPE: &'static str = "turn.ended";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }

    fn measure(&self) -> Measure<'_> {
        Measure::Finished {
            work: Work::Turn,
            took: (self.took_millis > 0).then(|| Duration::from_millis(self.took_millis)),
            succeeded: self.outcome == "end_turn",
        }
    }
}

/// `approval.requested.<tier>`. The code is not part of it: who can read the bus must not be able to approve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRequested {
    /// Whose agent asks.
    pub tier: TierName,
    /// Identifies the request, not the code.
    pub approval: String,
    /// The turn that asks.
    pub turn: TurnId,
    /// What would be done, made harmless.
    pub action: String,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub expires_at: String,
}

impl Event for ApprovalRequested {
    const TYPE: &'static str = "approval.requested";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// What became of an approval request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalOutcome {
    /// The right person said YES with the right code in time.
    Approved,
    /// They said NO.
    Denied,
    /// Nobody answered in time.
    TimedOut,
    /// The question never reached anybody.
    Undeliverable,
    /// The turn that asked was stopped, or ended otherwise, before anybody answered.
    Withdrawn,
}

/// `approval.decided.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDecided {
    /// Whose agent asked.
    pub tier: TierName,
    /// Identifies the request.
    pub approval: String,
    /// The turn that asked.
    pub turn: TurnId,
    /// What came of it.
    pub outcome: ApprovalOutcome,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub decided_at: String,
}

impl Event for ApprovalDecided {
    const TYPE: &'static str = "approval.decided";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `channel.received.<tier>`: the inbox. Committed before the channel is told that the message arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReceived {
    /// The tier it is for.
    pub tier: TierName,
    /// The turn that will answer it; chosen at receipt, so that redelivery means the same turn.
    pub turn: TurnId,
    /// Channel kind.
    pub channel: String,
    /// Conversation within the channel.
    pub conversation: String,
    /// Who wrote it, as the channel identifies people.
    pub sender: String,
    /// What they wrote.
    pub text: String,
    /// Root span of the turn.
    pub traceparent: TraceParent,
    /// RFC 3339, UTC.
    pub received_at: String,
}

impl Event for ChannelReceived {
    const TYPE: &'static str = "channel.received";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `channel.replied.<tier>`: the outbox. Committed before anything is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReplied {
    /// The tier that answered.
    pub tier: TierName,
    /// The turn that was answered.
    pub turn: TurnId,
    /// Channel kind.
    pub channel: String,
    /// Conversation within the channel.
    pub conversation: String,
    /// What to send, made harmless.
    pub text: String,
    /// Root span of the turn.
    pub traceparent: TraceParent,
}

impl Event for ChannelReplied {
    const TYPE: &'static str = "channel.replied";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `channel.sent.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSent {
    /// The tier that answered.
    pub tier: TierName,
    /// The turn that was answered.
    pub turn: TurnId,
    /// Channel kind.
    pub channel: String,
    /// How many bytes of text went out.
    pub bytes: u64,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub sent_at: String,
}

impl Event for ChannelSent {
    const TYPE: &'static str = "channel.sent";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `channel.ignored.<tier>`, or `channel.ignored.stack` where an account serves several tiers: somebody wrote who is not
/// allowed to, and got no answer of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelIgnored {
    /// The tier they would have reached, where there is just one.
    pub tier: Scope,
    /// Channel kind.
    pub channel: String,
    /// The account they wrote to, by its name in tiers.yaml.
    pub account: String,
    /// Who wrote, by the messenger's number for them; never a name they chose. Empty where several did, see `reason`.
    pub sender: String,
    /// Stable code in kebab case: `not-allowed`, `anonymous`, `bot`, `not-a-chat`; `too-many` for messages of several
    /// senders that came too fast to be told apart.
    pub reason: String,
    /// Equal attempts counted in this event.
    pub count: u64,
    /// RFC 3339, UTC, milliseconds: the first of them.
    pub observed_at: String,
}

impl Event for ChannelIgnored {
    const TYPE: &'static str = "channel.ignored";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `model.called.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCalled {
    /// Whose call it was.
    pub tier: TierName,
    /// The container.
    pub principal: PrincipalName,
    /// Model name as the tier knows it.
    pub model: String,
    /// The class of the route it went by; none in events from before there were classes.
    #[serde(default)]
    pub confidential: Option<Confidentiality>,
    /// Where LiteLLM says it went (`x-litellm-model-api-base`), made harmless; empty where it does not say.
    #[serde(default)]
    pub api_base: String,
    /// Upstream status; 0 when it never answered.
    pub status: u16,
    /// The turn it was attached to.
    pub turn: Option<TurnId>,
    /// 32 hex digits.
    pub trace_id: String,
    /// How long until the last byte, in milliseconds.
    pub took_millis: u64,
    /// RFC 3339, UTC.
    pub observed_at: String,
}

impl Event for ModelCalled {
    const TYPE: &'static str = "model.called";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }

    fn measure(&self) -> Measure<'_> {
        Measure::Finished {
            work: Work::ModelCall,
            took: Some(Duration::from_millis(self.took_millis)),
            succeeded: (200..300).contains(&self.status),
        }
    }
}

/// `tool.called.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCalled {
    /// Whose call it was.
    pub tier: TierName,
    /// The container.
    pub principal: PrincipalName,
    /// MCP server.
    pub server: String,
    /// Tool name.
    pub tool: String,
    /// Whether the server answered without an error.
    pub succeeded: bool,
    /// The turn it was attached to.
    pub turn: Option<TurnId>,
    /// 32 hex digits.
    pub trace_id: String,
    /// How long it took, in milliseconds.
    pub took_millis: u64,
    /// Of a list of tools that was asked for, how many were told; none of a call. `tool` is `tools/list` then, and
    /// `server` has the names of all servers that were asked, separated by blanks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<u64>,
    /// RFC 3339, UTC.
    pub observed_at: String,
}

impl Event for ToolCalled {
    const TYPE: &'static str = "tool.called";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }

    fn measure(&self) -> Measure<'_> {
        if self.listed.is_some() {
            return Measure::Nothing;
        }
        Measure::Finished {
            work: Work::ToolCall,
            took: Some(Duration::from_millis(self.took_millis)),
            succeeded: self.succeeded,
        }
    }
}

/// `tier.changed.<tier>`: tier-supervisor made something different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierChanged {
    /// What it belongs to.
    pub tier: Scope,
    /// What was done, for example `create container zeroclaw-tasks`.
    pub action: String,
    /// Why.
    pub reason: String,
    /// RFC 3339, UTC.
    pub changed_at: String,
}

impl Event for TierChanged {
    const TYPE: &'static str = "tier.changed";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `floor.checked.stack`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorChecked {
    /// How many checks passed.
    pub passed: u32,
    /// How many failed.
    pub failed: u32,
    /// RFC 3339, UTC.
    pub checked_at: String,
}

impl Event for FloorChecked {
    const TYPE: &'static str = "floor.checked";
    fn scope(&self) -> &str {
        SCOPE_STACK
    }
}

/// `floor.breached.stack`: a wall does not stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorBreached {
    /// The check that failed.
    pub check: String,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub fix: String,
    /// RFC 3339, UTC.
    pub checked_at: String,
}

impl Event for FloorBreached {
    const TYPE: &'static str = "floor.breached";
    fn scope(&self) -> &str {
        SCOPE_STACK
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn ids_depend_on_the_split() {
        assert_eq!(EventId::derive(&[b"ab", b"c"]), EventId::derive(&[b"ab", b"c"]));
        assert_ne!(EventId::derive(&[b"ab", b"c"]), EventId::derive(&[b"a", b"bc"]));
        for id in [EventId::derive(&[b"a"]), EventId::unique()] {
            assert_eq!(id.as_str().parse(), Ok(id));
        }
        assert!("00-".parse::<EventId>().is_err());
    }

    #[test]
    fn layers_are_spelled_alike_everywhere() {
        for (layer, text) in [
            (Layer::Dns, "dns"),
            (Layer::Broker, "broker"),
            (Layer::Models, "models"),
            (Layer::Mcp, "mcp"),
            (Layer::Packet, "packet"),
            (Layer::Squid, "squid"),
            (Layer::Sandbox, "sandbox"),
        ] {
            assert_eq!(layer.as_str(), text);
            assert_eq!(serde_json::to_value(layer).unwrap(), text);
            assert_eq!(serde_json::from_value::<Layer>(text.into()).unwrap(), layer);
        }
        assert!(serde_json::from_str::<Layer>("\"vm\"").is_err());
    }

    #[test]
    fn what_identifies_a_request_is_the_same_event_with_more_fields() {
        let denied = EgressDenied {
            tier: Scope::Stack,
            principal: None,
            layer: Layer::Broker,
            host: "a.example".to_owned(),
            port: Some(443),
            protocol: "https".to_owned(),
            reason: "r".to_owned(),
            detail: "d".to_owned(),
            fix: "f".to_owned(),
            count: 2,
            turn: None,
            attachment: Attachment::Late,
            trace_id: String::new(),
            observed_at: String::new(),
        };
        let event = OfRequest {
            event: denied.clone(),
            asked_method: Some("GET".to_owned()),
            target_sha256: Some("00".to_owned()),
            target_bytes: Some(7),
            cut: None,
        };
        assert_eq!((event.subject(), event.measure()), (denied.subject(), denied.measure()));
        let wire = serde_json::to_value(&event).unwrap();
        assert_eq!((&wire["host"], &wire["target_bytes"], wire.get("cut")), (&"a.example".into(), &7.into(), None));
        assert_eq!(serde_json::from_value::<EgressDenied>(wire.clone()).unwrap(), denied);
        assert_eq!(serde_json::from_value::<OfRequest<EgressDenied>>(wire).unwrap(), event);
    }

    #[test]
    fn subject_comes_from_the_value() {
        let event = FloorChecked { passed: 1, failed: 0, checked_at: String::new() };
        assert_eq!(event.subject(), "floor.checked.stack");
        let scope: Result<Scope, _> = serde_json::from_str("\"a.b\"");
        assert!(scope.is_err());
    }
}
