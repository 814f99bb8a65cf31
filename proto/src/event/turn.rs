//! Turns: the life of an answer to a message.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Event, Measure, Work};
use crate::name::{TierName, TurnId};
use crate::trace::TraceParent;

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
