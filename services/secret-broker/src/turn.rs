//! Whether what an attempt began may go on: only while the turn it belongs to is still its tier's. What is decided at a
//! request's head holds for its body and its answer no longer than that, or a request that trickles would be a way out
//! long after anybody was asked.
//!
//! The turn is over when another one began, or when its end is so long ago that nothing is attached to it any more
//! (`service_kit::turns`). Part of that is told and part is time that passes, so it is looked at with every piece of data
//! and, while none comes, every [`LOOK`]. A tier with `background: true` may always go on.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use assistant_proto::name::{TierName, TurnId};
use http::StatusCode;
use policy::Denial;
use service_kit::turns::Turns;
use tokio::time::{Instant, Sleep};

use crate::attempt::Attempt;
use crate::refusal::Refusal;
use crate::state::Tier;

/// How soon a request on which nothing moves notices that its turn is over.
const LOOK: Duration = Duration::from_millis(250);

/// What records say of a request that was ended for it, and the reason of its refusal.
pub(crate) const OVER: &str = "turn-over";

/// Follows the turn of one attempt.
pub(crate) struct InTurn {
    turns: Turns,
    tier: TierName,
    turn: Option<TurnId>,
    background: bool,
    look: Pin<Box<Sleep>>,
}

impl InTurn {
    pub(crate) fn of(turns: &Turns, tier: &Tier, attempt: &Attempt) -> Self {
        Self {
            turns: turns.clone(),
            tier: tier.name.clone(),
            turn: attempt.turn.turn.clone(),
            background: tier.background,
            look: Box::pin(tokio::time::sleep(LOOK)),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.background && self.turns.current(&self.tier).turn != self.turn
    }

    /// Ready once it is over.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.background {
            return Poll::Pending;
        }
        while !self.is_over() {
            ready!(self.look.as_mut().poll(cx));
            self.look.as_mut().reset(Instant::now() + LOOK);
        }
        Poll::Ready(())
    }

    /// Waits until it is over. Cancel-safe.
    pub(crate) async fn over(&mut self) {
        poll_fn(|cx| self.poll_over(cx)).await;
    }
}

impl fmt::Debug for InTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTurn").field("tier", &self.tier).field("turn", &self.turn).finish_non_exhaustive()
    }
}

/// Of a request that had not left yet.
pub(crate) fn over() -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, denial("before the request could leave"))
}

/// Of a request that had: the record of it says so, and it is not counted a second time.
pub(crate) fn cut() -> Refusal {
    Refusal::elsewhere(StatusCode::FORBIDDEN, denial("while the request was under way, and it was ended"))
}

fn denial(when: &str) -> Denial {
    Denial::new(
        OVER,
        format!("the message that was being answered was answered, or another one came, {when}"),
        "begin anew in the next turn; a tier that is meant to act on its own needs `background: true` in tiers.yaml",
    )
}
