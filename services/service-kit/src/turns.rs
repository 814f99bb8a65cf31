//! Which turn a tier is in, as told by `turn.started` and `turn.ended`.
//!
//! ZeroClaw carries no trace context, so requests are attached to turns by time, and say how sure that is. Shared by
//! secret-broker (which also *decides* by it) and egress-auditor.
//!
//! A turn is held open by a lease: the bridge says `turn.started` again and again while it runs. When it falls silent, by
//! a crash or because NATS is away, the turn is over after [`LEASE`], whether or not its end is ever told.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use assistant_proto::event::{Attachment, TurnAcknowledged, TurnEnded, TurnStarted};
use assistant_proto::name::{TierName, TurnId};
use assistant_proto::trace::TraceParent;

use crate::bus::Received;
use crate::host::Context;

/// What comes within this time after the end of a turn is attached to it as late.
pub const LATE: Duration = Duration::from_secs(10);

/// The bridge repeats `turn.started` this often while a turn runs.
pub const RENEWAL: Duration = Duration::from_secs(10);

/// A turn of which nothing was heard for this long is over: three renewals and a little.
pub const LEASE: Duration = Duration::from_secs(35);

/// A turn counts as over after this time, however often it is renewed; longer than ZeroClaw's own request timeout of
/// 10 minutes plus the longest approval.
pub const LONGEST_TURN: Duration = Duration::from_secs(45 * 60);

/// Ended turns remembered per tier, so that a renewal that was under way does not open one again. It is under way for
/// seconds, and a tier has one turn at a time.
const MOST_ENDED: usize = 64;

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
    /// The last start or renewal.
    heard: Instant,
    ended: Option<Instant>,
}

impl Known {
    /// When it is or was over.
    fn over(&self) -> Instant {
        let silent = (self.heard + LEASE).min(self.started + LONGEST_TURN);
        self.ended.map_or(silent, |ended| ended.min(silent))
    }
}

/// The turns of one tier.
#[derive(Debug, Default)]
struct Tier {
    /// The current or last one.
    known: Option<Known>,
    /// Those whose end was told, the newest last.
    ended: VecDeque<TurnId>,
}

/// The current or last turn of each tier. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    tiers: Arc<Mutex<HashMap<TierName, Tier>>>,
}

impl Turns {
    /// Knows no turn yet: everything is background.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A turn began, or still runs. Returns whether it is open now: a turn whose end was told stays closed.
    pub fn started(&self, event: &TurnStarted) -> bool {
        self.started_at(event, Instant::now())
    }

    fn started_at(&self, event: &TurnStarted, now: Instant) -> bool {
        let mut tiers = self.lock();
        let tier = tiers.entry(event.tier.clone()).or_default();
        if tier.ended.contains(&event.turn) {
            return false;
        }
        if let Some(known) = &mut tier.known
            && known.turn == event.turn
            && now.saturating_duration_since(known.heard) < LEASE
        {
            // What was learned first stays: a renewal moves no request to another trace.
            known.heard = known.heard.max(now);
            return now < known.over();
        }
        // A new turn; or one that fell silent and is heard of again, because its bridge was started anew, or NATS was.
        let (turn, parent) = (event.turn.clone(), event.traceparent);
        tier.known = Some(Known { turn, parent, started: now, heard: now, ended: None });
        true
    }

    /// A turn ended. An end for another turn than the current one changes nothing but that this one cannot begin again.
    pub fn ended(&self, event: &TurnEnded) {
        self.ended_at(event, Instant::now());
    }

    fn ended_at(&self, event: &TurnEnded, now: Instant) {
        let mut tiers = self.lock();
        let tier = tiers.entry(event.tier.clone()).or_default();
        if !tier.ended.contains(&event.turn) {
            tier.ended.push_back(event.turn.clone());
            if tier.ended.len() > MOST_ENDED {
                tier.ended.pop_front();
            }
        }
        if let Some(known) = &mut tier.known
            && known.turn == event.turn
        {
            known.ended.get_or_insert(now);
        }
    }

    /// What a request of the tier made now is attached to.
    #[must_use]
    pub fn current(&self, tier: &TierName) -> TurnContext {
        self.at(tier, Instant::now())
    }

    fn at(&self, tier: &TierName, now: Instant) -> TurnContext {
        let background = TurnContext { turn: None, attachment: Attachment::Background, parent: None };
        let tiers = self.lock();
        let Some(known) = tiers.get(tier).and_then(|tier| tier.known.as_ref()) else { return background };
        let over = known.over();
        let attachment = if now < over {
            Attachment::Active
        } else if now.saturating_duration_since(over) < LATE {
            Attachment::Late
        } else {
            return background;
        };
        TurnContext { turn: Some(known.turn.clone()), attachment, parent: Some(known.parent) }
    }

    /// Follows both subjects for ever, and acknowledges each start that asks for it: the bridge waits for that before it
    /// lets the agent see the prompt, so no request of a turn is taken for background work. A start that opens nothing is
    /// not acknowledged.
    pub fn follow(&self, cx: &Context, service: &'static str) {
        let (turns, bus) = (self.clone(), cx.bus.clone());
        cx.tasks.spawn_restarting("turn-started", move || {
            let (turns, bus) = (turns.clone(), bus.clone());
            async move {
                bus.subscribe(|received: Received<TurnStarted>| {
                    let turns = turns.clone();
                    async move {
                        if !turns.started(&received.event) {
                            tracing::warn!(turn = %received.event.turn, "a turn that has ended was announced again");
                            return;
                        }
                        if !received.wants_answer() {
                            return;
                        }
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TierName, Tier>> {
        self.tiers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn tier() -> TierName {
        "tasks".parse().unwrap()
    }

    fn start(turn: &TurnId) -> TurnStarted {
        TurnStarted {
            tier: tier(),
            turn: turn.clone(),
            traceparent: crate::trace::fresh(),
            channel: "terminal".to_owned(),
            conversation: "c".to_owned(),
            started_at: String::new(),
        }
    }

    fn end(turn: &TurnId) -> TurnEnded {
        TurnEnded {
            tier: tier(),
            turn: turn.clone(),
            outcome: String::new(),
            trace_id: String::new(),
            ended_at: String::new(),
            took_millis: 0,
        }
    }

    #[test]
    fn attached_by_time() {
        let (turns, turn, now) = (Turns::new(), TurnId::generate(), Instant::now());
        assert_eq!(turns.at(&tier(), now).attachment, Attachment::Background);
        assert!(turns.started_at(&start(&turn), now));
        assert_eq!(turns.at(&tier(), now).attachment, Attachment::Active);
        turns.ended_at(&end(&TurnId::generate()), now);
        assert_eq!(turns.at(&tier(), now).attachment, Attachment::Active, "another turn ended");
        turns.ended_at(&end(&turn), now);
        turns.ended_at(&end(&turn), now + LATE);
        assert_eq!(turns.at(&tier(), now).attachment, Attachment::Late);
        assert_eq!(turns.at(&tier(), now).turn, Some(turn));
        assert_eq!(turns.at(&tier(), now + LATE).attachment, Attachment::Background);
        assert_eq!(turns.at(&tier(), now + LATE).parent, None);
    }

    #[test]
    fn a_turn_that_is_not_renewed_is_over() {
        let (turns, turn, now) = (Turns::new(), TurnId::generate(), Instant::now());
        let first = start(&turn);
        turns.started_at(&first, now);
        let just_before = LEASE - Duration::from_millis(1);
        assert_eq!(turns.at(&tier(), now + just_before).attachment, Attachment::Active);
        assert_eq!(turns.at(&tier(), now + LEASE).attachment, Attachment::Late);
        assert_eq!(turns.at(&tier(), now + LEASE + LATE).attachment, Attachment::Background);

        let renewed = now + RENEWAL;
        assert!(turns.started_at(&start(&turn), renewed));
        let context = turns.at(&tier(), now + LEASE);
        assert_eq!((context.attachment, context.parent), (Attachment::Active, Some(first.traceparent)));
        assert_eq!(turns.at(&tier(), renewed + LEASE).attachment, Attachment::Late);
        // The end comes after the lease: it is not late for longer.
        turns.ended_at(&end(&turn), renewed + LEASE + LATE);
        assert_eq!(turns.at(&tier(), renewed + LEASE + LATE).attachment, Attachment::Background);
    }

    #[test]
    fn renewals_do_not_hold_a_turn_open_for_ever() {
        let (turns, turn, begin) = (Turns::new(), TurnId::generate(), Instant::now());
        let mut now = begin;
        while now < begin + LONGEST_TURN {
            turns.started_at(&start(&turn), now);
            assert_eq!(turns.at(&tier(), now).attachment, Attachment::Active);
            now += RENEWAL;
        }
        assert!(!turns.started_at(&start(&turn), now));
        assert_eq!(turns.at(&tier(), begin + LONGEST_TURN).attachment, Attachment::Late);
    }

    #[test]
    fn a_turn_that_has_ended_does_not_begin_again() {
        let (turns, old, new, now) = (Turns::new(), TurnId::generate(), TurnId::generate(), Instant::now());
        turns.started_at(&start(&old), now);
        turns.ended_at(&end(&old), now);
        assert!(!turns.started_at(&start(&old), now));
        assert_eq!(turns.at(&tier(), now).attachment, Attachment::Late);
        assert!(turns.started_at(&start(&new), now));
        assert!(!turns.started_at(&start(&old), now), "nor does it take the place of the next");
        assert_eq!(turns.at(&tier(), now).turn, Some(new.clone()));
        // Its end is told although it never was current here.
        let missed = TurnId::generate();
        turns.ended_at(&end(&missed), now);
        assert!(!turns.started_at(&start(&missed), now));
        // A turn that only fell silent is heard of again when its bridge has been started anew.
        assert!(turns.started_at(&start(&new), now + LEASE + LATE));
        assert_eq!(turns.at(&tier(), now + LEASE + LATE).attachment, Attachment::Active);
    }
}
