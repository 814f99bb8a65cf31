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
pub struct Decision {
    /// Whether the action may happen, this once.
    pub approved: bool,
    /// SHA-256 of the action that was decided on; to be compared with the one that is about to happen.
    pub fingerprint: [u8; 32],
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
    answer: oneshot::Sender<bool>,
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
        let (open, update) = {
            let mut state = inner.lock();
            let code = free_code(&state.approvals);
            let question =
                Question::new(asker.person.clone(), action.clone(), fingerprint, code.clone(), deadline.into_std());
            let id = question.id.clone();
            state.approvals.open(question);
            state.waiting.insert(id.clone(), Waiting { asker: asker.clone(), code: code.clone(), answer });
            (Open { desk: self, id }, Update::Ask { action, code, expires_in: inner.timeout })
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
        if inner.registry.say_in(&asker.person.conversation, &update) {
            inner.lock().approvals.shown(&open.id);
        }
        // Timed out, or the sender was dropped because too many wrong codes closed it: both are NO.
        let approved = matches!(tokio::time::timeout_at(deadline, decided).await, Ok(Ok(true)));
        drop(open);
        Decision { approved, fingerprint }
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
                match self.settle(&question.id, outcome) {
                    Some(asker) => Answered::Decided {
                        turn: asker.turn,
                        trace_id: asker.traceparent.trace_id(),
                        code: question.code,
                        outcome,
                    },
                    // The turn that asked ended in this very moment.
                    None => Answered::Rejected(Rejection::Expired),
                }
            }
            Verdict::Rejected { why, denied } => {
                for question in denied {
                    self.settle(&question.id, ApprovalOutcome::Denied);
                }
                Answered::Rejected(why)
            }
        }
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
    fn settle(&self, id: &ApprovalId, outcome: ApprovalOutcome) -> Option<Asker> {
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
        if !self.inner.registry.say_in(&asker.person.conversation, &update) {
            tracing::debug!("nobody watches the conversation");
        }
        if answer.send(outcome == ApprovalOutcome::Approved).is_err() {
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
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let closed = self.desk.inner.lock().approvals.close(&self.id);
        if let Some(outcome) = closed {
            self.desk.settle(&self.id, outcome);
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
