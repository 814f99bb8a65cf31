//! What goes through the bridge: conversations, people, what a channel is shown, how a turn came out, and the identities
//! that make a repetition recognisable. Values only; no I/O.

use std::time::Duration;

use assistant_proto::event::{ApprovalOutcome, ChannelReceived, EventId};
use assistant_proto::name::{TierName, TurnId};
use serde::{Deserialize, Serialize};

use crate::acp::message::ToolStatus;
use crate::approvals::{ApprovalId, Code};

/// Longest reply that is kept, in bytes after it was made harmless. JSON may double it, which still fits a NATS message
/// of 1 MiB.
pub const MOST_REPLY: usize = 256 * 1024;

/// A conversation of a tier on a channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conversation {
    /// The tier that answers.
    pub tier: TierName,
    /// Channel kind, for example `terminal`.
    pub channel: String,
    /// Name within the channel.
    pub name: String,
}

/// Somebody in a conversation. Approvals are bound to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Person {
    /// Where they are.
    pub conversation: Conversation,
    /// Who they are, as the channel identifies people.
    pub sender: String,
}

impl Person {
    /// Who wrote a message.
    #[must_use]
    pub fn of(received: &ChannelReceived) -> Self {
        Self {
            conversation: Conversation {
                tier: received.tier.clone(),
                channel: received.channel.clone(),
                name: received.conversation.clone(),
            },
            sender: received.sender.clone(),
        }
    }
}

/// What a channel is shown of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The message is committed.
    Accepted {
        /// The turn that will answer it.
        turn: TurnId,
        /// Its trace, 32 hex digits.
        trace_id: String,
    },
    /// It waits: the tier is busy with another message.
    Queued,
    /// A piece of the answer, made harmless.
    Text(String),
    /// A tool call began or went on.
    ToolCall {
        /// Name of the tool, made harmless.
        title: String,
        /// Where it stands.
        status: ToolStatus,
    },
    /// The agent asks for permission.
    Ask {
        /// Which question it is; says nothing about the code.
        approval: ApprovalId,
        /// What it wants to do, made harmless.
        action: String,
        /// To be typed after YES or NO.
        code: Code,
        /// How long the question stays open.
        expires_in: Duration,
    },
    /// A question was decided.
    Decided {
        /// Its code, now used up.
        code: Code,
        /// What came of it.
        outcome: ApprovalOutcome,
    },
    /// The turn is over, or the message was none that starts one.
    Ended {
        /// The turn, empty where there was none.
        turn: String,
        /// Its trace, empty where there was none.
        trace_id: String,
        /// Everything that was said.
        reply: String,
        /// ACP's stop reason, or the bridge's own.
        stop_reason: String,
    },
    /// The turn failed, or the message was refused.
    Failed {
        /// The turn, empty where there was none.
        turn: String,
        /// Its trace, empty where there was none.
        trace_id: String,
        /// What happened.
        reason: String,
        /// What to do.
        fix: String,
    },
}

impl Update {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Failed { .. })
    }

    /// The last update of a turn.
    #[must_use]
    pub fn last(turn: &TurnId, trace_id: String, outcome: Outcome) -> Self {
        let turn = turn.to_string();
        match outcome {
            Outcome::Answered { reply, stop_reason } => Self::Ended { turn, trace_id, reply, stop_reason },
            Outcome::Failed { reason, fix } => Self::Failed { turn, trace_id, reason, fix },
        }
    }

    /// A message that was refused and belongs to no turn.
    #[must_use]
    pub fn refused(reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Failed { turn: String::new(), trace_id: String::new(), reason: reason.into(), fix: fix.into() }
    }
}

/// How a turn came out. Kept before it is sent, so that a restart sends the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// The agent answered.
    Answered {
        /// Everything it said, made harmless.
        reply: String,
        /// ACP's stop reason, made harmless.
        stop_reason: String,
    },
    /// It did not.
    Failed {
        /// What happened, one sentence.
        reason: String,
        /// What to do.
        fix: String,
    },
}

impl Outcome {
    /// As a messenger would show it.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Answered { reply, .. } => reply.clone(),
            Self::Failed { reason, fix } => format!("This did not work: {reason}. {fix}"),
        }
    }

    /// As `turn.ended` carries it.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::Answered { stop_reason, .. } => stop_reason,
            Self::Failed { .. } => "failed",
        }
    }
}

/// Identity of `channel.received` of a turn: the same message committed twice is one.
#[must_use]
pub fn received_id(turn: &TurnId) -> EventId {
    EventId::derive(&[b"channel.received", turn.as_str().as_bytes()])
}

/// Identity of `channel.replied` of a turn: a turn is answered once.
#[must_use]
pub fn replied_id(turn: &TurnId) -> EventId {
    EventId::derive(&[b"channel.replied", turn.as_str().as_bytes()])
}

/// Identity of `channel.sent` of a turn.
#[must_use]
pub fn sent_id(turn: &TurnId) -> EventId {
    EventId::derive(&[b"channel.sent", turn.as_str().as_bytes()])
}

/// Identity of `turn.started` and `turn.ended` of one attempt at a turn.
#[must_use]
pub fn attempt_id(kind: &'static str, turn: &TurnId, attempt: u32) -> EventId {
    EventId::derive(&[kind.as_bytes(), turn.as_str().as_bytes(), &attempt.to_be_bytes()])
}

/// Identity of a repetition of `turn.started` while an attempt runs.
#[must_use]
pub fn beat_id(turn: &TurnId, attempt: u32, beat: u32) -> EventId {
    EventId::derive(&[b"turn.started", turn.as_str().as_bytes(), &attempt.to_be_bytes(), &beat.to_be_bytes()])
}

/// Identity of an approval's events.
#[must_use]
pub fn approval_id(kind: &'static str, approval: &str) -> EventId {
    EventId::derive(&[kind.as_bytes(), approval.as_bytes()])
}

/// The turn that a message with an idempotency key belongs to: the same key in the same conversation, the same turn.
#[must_use]
pub fn keyed_turn(person: &Person, key: &str) -> Option<TurnId> {
    let conversation = &person.conversation;
    let id = EventId::derive(&[
        b"turn",
        conversation.tier.as_str().as_bytes(),
        conversation.channel.as_bytes(),
        conversation.name.as_bytes(),
        person.sender.as_bytes(),
        key.as_bytes(),
    ]);
    as_turn(&id)
}

/// The turn of a message on a messenger: the same message, the same turn, whichever tier it is for by now. `identity` is
/// the account's identity with the messenger, `key` the messenger's identity of the message.
#[must_use]
pub fn arrived_turn(channel: &str, identity: &str, key: &str) -> Option<TurnId> {
    as_turn(&EventId::derive(&[b"arrived", channel.as_bytes(), identity.as_bytes(), key.as_bytes()]))
}

/// 32 hex digits are a UUID without its hyphens; the value is opaque, so version bits do not matter.
fn as_turn(id: &EventId) -> Option<TurnId> {
    uuid::Uuid::parse_str(id.as_str()).ok().and_then(|id| id.hyphenated().to_string().parse().ok())
}

/// Cuts text to a number of bytes, at a character, and shows that it was cut.
#[must_use]
pub fn clip(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('\u{2026}');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn person(name: &str) -> Person {
        Person {
            conversation: Conversation {
                tier: "tasks".parse().unwrap(),
                channel: "terminal".to_owned(),
                name: name.to_owned(),
            },
            sender: "terminal".to_owned(),
        }
    }

    #[test]
    fn a_key_names_one_turn_of_one_conversation() {
        assert_eq!(keyed_turn(&person("a"), "k"), keyed_turn(&person("a"), "k"));
        assert!(keyed_turn(&person("a"), "k").is_some());
        assert_ne!(keyed_turn(&person("a"), "k"), keyed_turn(&person("b"), "k"));
        assert_ne!(keyed_turn(&person("a"), "k"), keyed_turn(&person("a"), "l"));
        assert_eq!(arrived_turn("telegram", "42", "7"), arrived_turn("telegram", "42", "7"));
        assert!(arrived_turn("telegram", "42", "7").is_some());
        assert_ne!(arrived_turn("telegram", "42", "7"), arrived_turn("telegram", "4", "27"));
    }

    #[test]
    fn identities_differ_by_kind_and_attempt() {
        let turn = TurnId::generate();
        assert_ne!(received_id(&turn), replied_id(&turn));
        assert_ne!(attempt_id("turn.started", &turn, 1), attempt_id("turn.started", &turn, 2));
        assert_ne!(attempt_id("turn.started", &turn, 1), attempt_id("turn.ended", &turn, 1));
        let beats = [beat_id(&turn, 1, 1), beat_id(&turn, 1, 2), beat_id(&turn, 2, 1), beat_id(&turn, 1, 1)];
        assert!(beats[0] == beats[3] && beats[0] != beats[1] && beats[0] != beats[2] && beats[1] != beats[2]);
        assert!(!beats.contains(&attempt_id("turn.started", &turn, 1)));
    }

    #[test]
    fn clipping_keeps_characters_whole() {
        assert_eq!(clip("abc".to_owned(), 3), "abc");
        assert_eq!(clip("a\u{1f600}b".to_owned(), 3), "a\u{2026}");
    }
}
