//! Which turn a tier is in, as told by `turn.started` and `turn.ended`.
//!
//! ZeroClaw carries no trace context, so requests are attached to turns by time, and say how sure that is. Shared by
//! secret-broker (which also *decides* by it) and egress-auditor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use assistant_proto::event::{Attachment, TurnAcknowledged, TurnEnded, TurnStarted};
use assistant_proto::name::{TierName, TurnId};
use assistant_proto::trace::TraceParent;

use crate::bus::Received;
use crate::host::Context;

/// What comes within this time after the end of a turn is attached to it as late.
pub const LATE: Duration = Duration::from_secs(10);

/// A turn that never ended counts as over after this time; longer than ZeroClaw's own request timeout of 10 minutes
/// plus the longest approval.
pub const LONGEST_TURN: Duration = Duration::from_secs(45 * 60);

/// What a request is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnContext {
    /// The turn, unless it is background.
    pub turn: Option<TurnId>,
    /// How sure that is.
    pub attachment: Attachment,
    /// Root span of the turn, or none for background work.
    pub parent: Option<TraceParent>,
}

#[derive(Debug)]
struct Known {
    turn: TurnId,
    parent: TraceParent,
    started: Instant,
    ended: Option<Instant>,
}

/// The current or last turn of each tier. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    known: Arc<Mutex<HashMap<TierName, Known>>>,
}

impl Turns {
    /// Knows no turn yet: everything is background.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A turn began.
    pub fn started(&self, event: &TurnStarted) {
        self.lock().insert(
            event.tier.clone(),
            Known { turn: event.turn.clone(), parent: event.traceparent, started: Instant::now(), ended: None },
        );
    }

    /// A turn ended. An end for another turn than the current one is ignored.
    pub fn ended(&self, event: &TurnEnded) {
        if let Some(known) = self.lock().get_mut(&event.tier)
            && known.turn == event.turn
        {
            known.ended.get_or_insert_with(Instant::now);
        }
    }

    /// What a request of the tier made now is attached to.
    #[must_use]
    pub fn current(&self, tier: &TierName) -> TurnContext {
        self.at(tier, Instant::now())
    }

    fn at(&self, tier: &TierName, now: Instant) -> TurnContext {
        let background = TurnContext { turn: None, attachment: Attachment::Background, parent: None };
        let known = self.lock();
        let Some(known) = known.get(tier) else { return background };
        let attachment = match known.ended {
            None if now.saturating_duration_since(known.started) < LONGEST_TURN => Attachment::Active,
            Some(ended) if now.saturating_duration_since(ended) < LATE => Attachment::Late,
            _ => return background,
        };
        TurnContext { turn: Some(known.turn.clone()), attachment, parent: Some(known.parent) }
    }

    /// Follows both subjects for ever, and acknowledges each start: the bridge waits for that before it lets the agent
    /// see the prompt, so no request of a turn is taken for background work.
    pub fn follow(&self, cx: &Context, service: &'static str) {
        let (turns, bus) = (self.clone(), cx.bus.clone());
        cx.tasks.spawn_restarting("turn-started", move || {
            let (turns, bus) = (turns.clone(), bus.clone());
            async move {
                bus.subscribe(|received: Received<TurnStarted>| {
                    let turns = turns.clone();
                    async move {
                        turns.started(&received.event);
                        let answer =
                            TurnAcknowledged { service: service.to_owned(), turn: received.event.turn.clone() };
                        if let Err(error) = received.reply(&answer).await {
                            tracing::warn!(%error, "a turn could not be acknowledged");
                        }
                    }
                })
                .await
            }
        });
        let (turns, bus) = (self.clone(), cx.bus.clone());
        cx.tasks.spawn_restarting("turn-ended", move || {
            let (turns, bus) = (turns.clone(), bus.clone());
            async move {
                bus.subscribe(|received: Received<TurnEnded>| {
                    turns.ended(&received.event);
                    std::future::ready(())
                })
                .await
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TierName, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn attached_by_time() {
        let turns = Turns::new();
        let tier: TierName = "tasks".parse().unwrap();
        let turn = TurnId::generate();
        assert_eq!(turns.current(&tier).attachment, Attachment::Background);
        turns.started(&TurnStarted {
            tier: tier.clone(),
            turn: turn.clone(),
            traceparent: crate::trace::fresh(),
            channel: "terminal".to_owned(),
            conversation: "c".to_owned(),
            started_at: String::new(),
        });
        let now = Instant::now();
        assert_eq!(turns.at(&tier, now).attachment, Attachment::Active);
        assert_eq!(turns.at(&tier, now + LONGEST_TURN).attachment, Attachment::Background);
        let end = |turn: TurnId| TurnEnded {
            tier: tier.clone(),
            turn,
            outcome: String::new(),
            trace_id: String::new(),
            ended_at: String::new(),
            took_millis: 0,
        };
        turns.ended(&end(TurnId::generate()));
        assert_eq!(turns.at(&tier, now).attachment, Attachment::Active);
        turns.ended(&end(turn.clone()));
        let now = Instant::now();
        assert_eq!(turns.at(&tier, now).attachment, Attachment::Late);
        assert_eq!(turns.at(&tier, now).turn, Some(turn));
        assert_eq!(turns.at(&tier, now + LATE).attachment, Attachment::Background);
        assert_eq!(turns.at(&tier, now + LATE).parent, None);
    }
}
