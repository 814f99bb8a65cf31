//! The bus as the bridge uses it: a seam, so that inbox, turns and outbox can be tested without a server.

use std::collections::BTreeSet;
use std::time::Duration;

use assistant_proto::event::{
    ApprovalDecided, ApprovalRequested, ChannelIgnored, ChannelReceived, ChannelReplied, ChannelSent, EventId,
    TurnAcknowledged, TurnEnded, TurnStarted,
};
use assistant_proto::trace::TraceParent;
use futures::future::BoxFuture;
use service_kit::bus::{Bus, BusError};

use crate::envelope;

/// Stream of messages that arrived.
pub const INBOX: &str = "INBOX";
/// Stream of replies that are to be sent.
pub const OUTBOX: &str = "OUTBOX";
/// The bridge's durable consumer of both.
pub const CONSUMER: &str = "bridge";
/// How long JetStream may take to store a message.
const COMMIT_DEADLINE: Duration = Duration::from_secs(5);
/// How long the other services have to say that they know of a turn.
pub const ACKNOWLEDGE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a repetition of `turn.started` may take: well below the time between two.
const BEAT_DEADLINE: Duration = Duration::from_secs(2);

/// What is published without waiting; the bus keeps it until the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A turn is over. With the attempt it ends.
    TurnEnded(TurnEnded, u32),
    /// A person is asked.
    ApprovalRequested(ApprovalRequested),
    /// A question is closed.
    ApprovalDecided(ApprovalDecided),
    /// A reply went out.
    ChannelSent(ChannelSent),
    /// Somebody was ignored.
    ChannelIgnored(ChannelIgnored),
}

/// What the bridge needs of the bus.
pub trait Post: std::fmt::Debug + Send + Sync + 'static {
    /// Whether it answers at this moment.
    fn is_connected(&self) -> bool;

    /// Stores a message that arrived. The same turn twice is stored once.
    fn commit_received<'a>(&'a self, event: &'a ChannelReceived) -> BoxFuture<'a, Result<(), BusError>>;

    /// Stores a reply that is to be sent. The same turn twice is stored once.
    fn commit_replied<'a>(&'a self, event: &'a ChannelReplied) -> BoxFuture<'a, Result<(), BusError>>;

    /// Announces a turn and returns which of `expected` answered that they know of it.
    fn announce<'a>(
        &'a self,
        event: &'a TurnStarted,
        attempt: u32,
        expected: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<BTreeSet<String>, BusError>>;

    /// Says that an announced turn is still under way. Needs no answer, and is not tried again: the next beat is. Once
    /// this returns, or is dropped, nothing of it is published any more.
    fn beat<'a>(&'a self, event: &'a TurnStarted, attempt: u32, beat: u32) -> BoxFuture<'a, Result<(), BusError>>;

    /// Publishes without waiting.
    fn notify(&self, notice: &Notice, parent: TraceParent);
}

impl Post for Bus {
    fn is_connected(&self) -> bool {
        Bus::is_connected(self)
    }

    fn commit_received<'a>(&'a self, event: &'a ChannelReceived) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(async move {
            let id = envelope::received_id(&event.turn);
            self.commit(event, id, Some(event.traceparent), COMMIT_DEADLINE).await.map(|_| ())
        })
    }

    fn commit_replied<'a>(&'a self, event: &'a ChannelReplied) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(async move {
            let id = envelope::replied_id(&event.turn);
            self.commit(event, id, Some(event.traceparent), COMMIT_DEADLINE).await.map(|_| ())
        })
    }

    fn announce<'a>(
        &'a self,
        event: &'a TurnStarted,
        attempt: u32,
        expected: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<BTreeSet<String>, BusError>> {
        Box::pin(async move {
            let id = envelope::attempt_id("turn.started", &event.turn, attempt);
            let enough = |answers: &[serde_json::Value]| acknowledged(event, expected, answers).len() == expected.len();
            let answers = self.gather(event, id, Some(event.traceparent), ACKNOWLEDGE_DEADLINE, enough).await?;
            Ok(acknowledged(event, expected, &answers))
        })
    }

    fn beat<'a>(&'a self, event: &'a TurnStarted, attempt: u32, beat: u32) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(async move {
            let id = envelope::beat_id(&event.turn, attempt, beat);
            // Not `emit`: a beat that waited in the queue until the bus was back would speak for a time that is over.
            self.gather(event, id, Some(event.traceparent), BEAT_DEADLINE, |_| true).await.map(|_| ())
        })
    }

    fn notify(&self, notice: &Notice, parent: TraceParent) {
        let parent = Some(parent);
        match notice {
            Notice::TurnEnded(event, attempt) => {
                self.emit(event, envelope::attempt_id("turn.ended", &event.turn, *attempt), parent);
            }
            Notice::ApprovalRequested(event) => {
                self.emit(event, envelope::approval_id("approval.requested", &event.approval), parent);
            }
            Notice::ApprovalDecided(event) => {
                self.emit(event, envelope::approval_id("approval.decided", &event.approval), parent);
            }
            Notice::ChannelSent(event) => self.emit(event, envelope::sent_id(&event.turn), parent),
            Notice::ChannelIgnored(event) => self.emit(event, EventId::unique(), parent),
        }
    }
}

/// Which of the expected services acknowledged this turn. Anything else in the inbox is ignored.
fn acknowledged(turn: &TurnStarted, expected: &BTreeSet<String>, answers: &[serde_json::Value]) -> BTreeSet<String> {
    answers
        .iter()
        .filter_map(|answer| serde_json::from_value::<TurnAcknowledged>(answer.clone()).ok())
        .filter(|answer| answer.turn == turn.turn && expected.contains(&answer.service))
        .map(|answer| answer.service)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use assistant_proto::name::TurnId;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_expected_answers_to_this_turn_count() {
        let turn = TurnStarted {
            tier: "tasks".parse().unwrap(),
            turn: TurnId::generate(),
            traceparent: service_kit::trace::fresh(),
            channel: "terminal".to_owned(),
            conversation: "c".to_owned(),
            started_at: String::new(),
        };
        let expected = BTreeSet::from(["secret-broker".to_owned(), "egress-auditor".to_owned()]);
        let answers = [
            json!({"service": "secret-broker", "turn": turn.turn}),
            json!({"service": "secret-broker", "turn": turn.turn}),
            json!({"service": "egress-auditor", "turn": TurnId::generate()}),
            json!({"service": "somebody", "turn": turn.turn}),
            json!({"stream": "EVENTS", "seq": 1}),
        ];
        assert_eq!(acknowledged(&turn, &expected, &answers), BTreeSet::from(["secret-broker".to_owned()]));
    }
}
