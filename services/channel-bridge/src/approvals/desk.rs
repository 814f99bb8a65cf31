//! Drives [`Approvals`]: asks, waits, answers, and tells the bus. Every question is closed exactly once, also when the
//! turn that asked is dropped in the middle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use assistant_proto::event::{ApprovalDecided, ApprovalOutcome, ApprovalRequested};
use assistant_proto::name::TurnId;
use assistant_proto::trace::TraceParent;
use service_kit::clock;
use service_kit::text::harmless_line;
use tokio::sync::oneshot;

use super::{Answer, ApprovalId, Approvals, Code, Question, Rejection, Verdict};
use crate::envelope::{Person, Update};
use crate::post::{Notice, Post};
use crate::registry::Registry;

/// Longest action on the bus, in characters. The person sees all of it.
const MOST_ACTION_ON_BUS: usize = 500;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The action of the question that was answered may happen, this once. With that question's fingerprint.
    Approved([u8; 32]),
    /// No action may happen.
    Rejected,
}

impl Decision {
    /// Whether it lets the action with this fingerprint happen.
    #[must_use]
    pub fn approves(&self, fingerprint: &[u8; 32]) -> bool {
        matches!(self, Self::Approved(approved) if approved == fingerprint)
    }
}

/// The turn a question belongs to.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Who is asked.
    pub person: Person,
    /// The turn that asks.
    pub turn: TurnId,
    /// Root span of the turn.
    pub traceparent: TraceParent,
}

/// What an answer did, for the one who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The question is decided.
    Decided {
        /// The turn that asked.
        turn: TurnId,
        /// Its trace.
        trace_id: String,
        /// The code, used up.
        code: Code,
        /// Approved or denied.
        outcome: ApprovalOutcome,
    },
    /// The answer counts for nothing.
    Rejected(Rejection),
}

/// The desk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    post: Arc<dyn Post>,
    registry: Registry,
    timeout: Duration,
}

#[derive(Debug, Default)]
struct State {
    approvals: Approvals,
    waiting: HashMap<ApprovalId, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    asker: Asker,
    code: Code,
    answer: oneshot::Sender<Decision>,
}

impl Desk {
    /// A desk that keeps questions open for `timeout`.
    #[must_use]
    pub fn new(post: Arc<dyn Post>, registry: Registry, timeout: Duration) -> Self {
        Self { inner: Arc::new(Inner { state: Mutex::default(), post, registry, timeout }) }
    }

    /// Asks and waits for the answer. Silence is NO. `action` is harmless and complete.
    pub async fn ask(&self, asker: Asker, action: String, fingerprint: [u8; 32]) -> Decision {
        let inner = &self.inner;
        let deadline = tokio::time::Instant::now() + inner.timeout;
        let on_bus = harmless_line(&action, MOST_ACTION_ON_BUS);
        let (answer, decided) = oneshot::channel();
        let (mut open, update) = {
            let mut state = inner.lock();
            let code = free_code(&state.approvals);
            let question =
                Question::new(asker.person.clone(), action.clone(), fingerprint, code.clone(), deadline.into_std());
            let id = question.id.clone();
            state.approvals.open(question);
            state.waiting.insert(id.clone(), Waiting { asker: asker.clone(), code: code.clone(), answer });
            let update = Update::Ask { approval: id.clone(), action, code, expires_in: inner.timeout };
            (Open { desk: self, id, expired: false }, update)
        };
        let requested = ApprovalRequested {
            tier: asker.person.conversation.tier.clone(),
            approval: open.id.as_str().to_owned(),
            turn: asker.turn.clone(),
            action: on_bus,
            trace_id: asker.traceparent.trace_id(),
            expires_at: clock::rfc3339(SystemTime::now() + inner.timeout),
        };
        inner.post.notify(&Notice::ApprovalRequested(requested), asker.traceparent);
        if inner.registry.say_in(&asker.person.conversation, &asker.turn, &update) {
            inner.lock().approvals.shown(&open.id);
        }
        match tokio::time::timeout_at(deadline, decided).await {
            Ok(decision) => decision.unwrap_or(Decision::Rejected),
            Err(_) => {
                open.expired = true;
                Decision::Rejected
            }
        }
    }

    /// Takes an answer of a person.
    #[must_use]
    pub fn answer(&self, person: &Person, answer: &Answer) -> Answered {
        let verdict = {
            let mut state = self.inner.lock();
            state.approvals.answer(person, answer, Instant::now())
        };
        match verdict {
            Verdict::Decided { question, approved } => {
                let outcome = if approved { ApprovalOutcome::Approved } else { ApprovalOutcome::Denied };
                match self.settle(&question, outcome) {
                    Some(asker) => Answered::Decided {
                        turn: asker.turn,
                        trace_id: asker.traceparent.trace_id(),
                        code: question.code,
                        outcome,
                    },
                    // The turn that asked ended in this very moment.
                    None => Answered::Rejected(Rejection::Withdrawn),
                }
            }
            Verdict::Rejected { why, denied } => {
                for question in denied {
                    self.settle(&question, ApprovalOutcome::Denied);
                }
                Answered::Rejected(why)
            }
        }
    }

    /// Takes an answer of somebody who talks to several tiers in the same place, and so is several persons here. It is
    /// the answer of the one to whom its code means something, else of one who was asked something. Says whose it was.
    #[must_use]
    pub fn answer_among<'a>(&self, persons: &'a [Person], answer: &Answer) -> (Option<&'a Person>, Answered) {
        let now = Instant::now();
        let whose = {
            let state = self.inner.lock();
            let known = persons.iter().find(|person| state.approvals.knows(person, &answer.code));
            known.or_else(|| persons.iter().find(|person| !state.approvals.open_for(person, now).is_empty()))
        };
        match whose {
            Some(person) => (Some(person), self.answer(person, answer)),
            None => (None, Answered::Rejected(Rejection::Wrong { left: None })),
        }
    }

    /// A question was shown in full to the person who was asked.
    pub fn shown(&self, approval: &ApprovalId) {
        self.inner.lock().approvals.shown(approval);
    }

    /// The open questions of a person, to be shown to a client that has just come.
    #[must_use]
    pub fn open_for(&self, person: &Person) -> Vec<Update> {
        let now = Instant::now();
        let mut state = self.inner.lock();
        let questions = state.approvals.open_for(person, now);
        for question in &questions {
            state.approvals.shown(&question.id);
        }
        questions
            .into_iter()
            .map(|question| Update::Ask {
                approval: question.id,
                expires_in: question.expires.saturating_duration_since(now),
                action: question.action,
                code: question.code,
            })
            .collect()
    }

    /// Whether a person has something to answer.
    #[must_use]
    pub fn has_open(&self, person: &Person) -> bool {
        !self.inner.lock().approvals.open_for(person, Instant::now()).is_empty()
    }

    /// Hands the decision to the turn that waits, and tells bus and conversation. None when nobody waits any more.
    /// What a YES lets happen is what stands in the closed question, not what the turn that waits believes it asked.
    fn settle(&self, question: &Question, outcome: ApprovalOutcome) -> Option<Asker> {
        let id = &question.id;
        let Waiting { asker, code, answer } = self.inner.lock().waiting.remove(id)?;
        let decided = ApprovalDecided {
            tier: asker.person.conversation.tier.clone(),
            approval: id.as_str().to_owned(),
            turn: asker.turn.clone(),
            outcome,
            trace_id: asker.traceparent.trace_id(),
            decided_at: clock::now_rfc3339(),
        };
        tracing::info!(approval = id.as_str(), turn = %asker.turn, ?outcome, "approval decided");
        self.inner.post.notify(&Notice::ApprovalDecided(decided), asker.traceparent);
        let update = Update::Decided { code, outcome };
        if !self.inner.registry.say_in(&asker.person.conversation, &asker.turn, &update) {
            tracing::debug!("nobody watches the conversation");
        }
        let decision = match outcome {
            ApprovalOutcome::Approved => Decision::Approved(question.fingerprint),
            ApprovalOutcome::Denied
            | ApprovalOutcome::TimedOut
            | ApprovalOutcome::Undeliverable
            | ApprovalOutcome::Withdrawn => Decision::Rejected,
        };
        if answer.send(decision).is_err() {
            tracing::debug!("the turn that asked is over");
        }
        Some(asker)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question whose turn waits. Dropped without an answer, for whatever reason, it is closed.
struct Open<'a> {
    desk: &'a Desk,
    id: ApprovalId,
    /// Its time is up; where it is not, the turn was stopped or has ended.
    expired: bool,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let closed = {
            let approvals = &mut self.desk.inner.lock().approvals;
            if self.expired { approvals.expire(&self.id) } else { approvals.withdraw(&self.id) }
        };
        if let Some((question, outcome)) = closed {
            self.desk.settle(&question, outcome);
        }
    }
}

/// A code that is not in use. Three of ten draws have no digit from 2 to 9 and are drawn again.
fn free_code(approvals: &Approvals) -> Code {
    loop {
        if let Some(code) = Code::from_bits(rand::random()).filter(|code| approvals.is_free(code)) {
            return code;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use service_kit::bus::Bus;

    use super::*;
    use crate::envelope::Conversation;

    const ASKED: [u8; 32] = [7; 32];

    /// Asks, lets `meddle` at the open question, says YES with its code, and returns what the turn is told.
    async fn decided(meddle: impl FnOnce(&mut Question)) -> Decision {
        let desk = Desk::new(Arc::new(Bus::detached()), Registry::default(), Duration::from_secs(60));
        let conversation =
            Conversation { tier: "tasks".parse().unwrap(), channel: "terminal".to_owned(), name: "c".to_owned() };
        let person = Person { conversation, sender: "me".to_owned() };
        let asker =
            Asker { person: person.clone(), turn: TurnId::generate(), traceparent: service_kit::trace::fresh() };
        let answer = async {
            let code = {
                let mut state = desk.inner.lock();
                let question = &mut state.approvals.open[0];
                meddle(question);
                question.code.clone()
            };
            assert!(matches!(desk.answer(&person, &Answer { yes: true, code }), Answered::Decided { .. }));
        };
        tokio::join!(desk.ask(asker, "shell".to_owned(), ASKED), answer).0
    }

    #[tokio::test]
    async fn a_yes_is_for_the_question_that_was_answered() {
        assert!(decided(|_| {}).await.approves(&ASKED));
        let swapped = decided(|question| question.fingerprint = [8; 32]).await;
        assert_eq!(swapped, Decision::Approved([8; 32]));
        assert!(!swapped.approves(&ASKED));
        assert!(!Decision::Rejected.approves(&ASKED));
    }
}
