//! Events on NATS: one Rust type per subject, the subject computed from the value.
//!
//! On the wire an event is a CloudEvent in binary content mode (CloudEvents NATS protocol binding 1.0): the JSON body
//! is the value, attributes travel as `ce-*` headers. `ce-id` is deterministic ([`EventId::derive`]), so that a replay
//! is recognised as one. Fields that hold text from a tier or a peer carry it already made harmless; see
//! `service_kit::text`.
//!
//! Here is what all of them have in common; the events themselves stand in the files of their areas and are named from
//! here.

use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::name::{NameError, SCOPE_STACK, TierName};

mod approval;
mod call;
mod channel;
mod egress;
mod stack;
#[cfg(test)]
mod tests;
mod turn;

pub use approval::{ApprovalDecided, ApprovalOutcome, ApprovalRequested};
pub use call::{ModelCalled, ToolCalled};
pub use channel::{ChannelIgnored, ChannelReceived, ChannelReplied, ChannelSent};
pub use egress::{EgressAllowed, EgressDenied, EgressPermitted, OfRequest, SecretInjected};
pub use stack::{FloorBreached, FloorChecked, TierChanged};
pub use turn::{TurnAcknowledged, TurnEnded, TurnStarted};

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
