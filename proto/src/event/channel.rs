//! Messages: taken, answered, sent, and those of strangers.

use serde::{Deserialize, Serialize};

use super::{Event, Scope};
use crate::name::{TierName, TurnId};
use crate::trace::TraceParent;

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
