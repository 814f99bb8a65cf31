//! The terminal channel: whoever can open the control socket is the operator, and writes as the sender `terminal`. The
//! dashboards are the same for whoever has logged in at the gate, with a kind and a sender of their own.
//!
//! Owned here: taking a message in (checks, root span, commit) and the stream of updates a client watches. Not here:
//! protobuf (`control`), a dashboard's frames (`dashboard`), the turn itself (`inbox`, `turn`). A message counts as accepted once it is committed; only then
//! does the client hear anything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use assistant_proto::event::ChannelReceived;
use assistant_proto::name::{TierName, TurnId};
use assistant_proto::trace::TraceParent;
use aws_lc_rs::digest;
use service_kit::bus::BusError;
use service_kit::clock;
use service_kit::host::Shutdown;
use service_kit::trace::{current_traceparent, fresh};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::acp::{AcpError, Gateway};
use crate::approvals::Rejection;
use crate::approvals::desk::{Answered, Desk};
use crate::envelope::{Conversation, Person, Update, keyed_turn};
use crate::post::Post;
use crate::record::{RecordError, Records, TurnRecord};
use crate::registry::Registry;
use crate::route::{self, Route, RouteError};

/// Channel kind.
pub const KIND: &str = "terminal";
/// The conversation of a message that names none.
pub const DEFAULT_CONVERSATION: &str = "terminal";

/// A message as it comes in.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// Name of a tier.
    pub tier: String,
    /// What was written.
    pub text: String,
    /// Name of the conversation; empty means [`DEFAULT_CONVERSATION`].
    pub conversation: String,
    /// Idempotency key; empty means none.
    pub key: String,
}

/// Why a message was not accepted. Nothing has happened then, except where it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The message itself.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The key belongs to another message.
    #[error("the idempotency key was used for another text; use a new one")]
    KeyReused,
    /// The bridge ends.
    #[error("the bridge is restarting; send the message again in a moment")]
    Draining,
    /// No bus, no inbox.
    #[error("NATS does not answer, so the message could not be kept; look at the container assistant-nats")]
    NoBus,
    /// No agent.
    #[error("the agent of tier {tier} is not there ({source}); look at the container zeroclaw-{tier}")]
    NoAgent {
        /// The tier.
        tier: TierName,
        /// Why.
        source: AcpError,
    },
    /// The commit failed. The message may be stored all the same.
    #[error("NATS did not confirm the message ({0}); send it again with the same idempotency key")]
    NotCommitted(#[source] BusError),
    /// The bridge's own records.
    #[error("the bridge's records cannot be used: {0}")]
    Record(#[from] RecordError),
}

/// The stream ended before the turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the bridge ended, or this client read too slowly; the turn goes on and its outcome is kept under its idempotency key"
)]
pub struct CutOff;

/// What a client watches: ends with exactly one last update, or with [`CutOff`].
#[derive(Debug)]
pub struct Updates {
    first: VecDeque<Update>,
    rest: Option<mpsc::Receiver<Update>>,
}

impl Updates {
    /// The next one; none after the last.
    pub async fn next(&mut self) -> Option<Result<Update, CutOff>> {
        let update = match self.first.pop_front() {
            Some(update) => Some(update),
            None => self.rest.as_mut()?.recv().await,
        };
        if update.as_ref().is_none_or(Update::is_last) {
            self.first.clear();
            self.rest = None;
        }
        Some(update.ok_or(CutOff))
    }

    /// Those of a turn that is under way.
    #[must_use]
    pub fn watched(updates: mpsc::Receiver<Update>) -> Self {
        Self { first: VecDeque::new(), rest: Some(updates) }
    }

    fn only(updates: impl IntoIterator<Item = Update>) -> Self {
        Self { first: updates.into_iter().collect(), rest: None }
    }
}

/// The channel.
#[derive(Debug)]
pub struct Terminal {
    /// Channel kind, and the sender on it: everybody there is the operator.
    pub kind: &'static str,
    /// The agents.
    pub gateways: BTreeMap<TierName, Gateway>,
    /// The bus.
    pub post: Arc<dyn Post>,
    /// What survives a restart.
    pub records: Records,
    /// Who watches.
    pub registry: Registry,
    /// Where answers go.
    pub desk: Desk,
    /// When nothing new is accepted.
    pub shutdown: Shutdown,
}

impl Terminal {
    /// Takes a message in.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, message: Message) -> Result<Updates, SendError> {
        let tier = route::tier(&message.tier, self.gateways.keys())?;
        route::usable_text(&message.text)?;
        let name = route::conversation(&message.conversation, DEFAULT_CONVERSATION)?;
        let key = route::key(&message.key)?;
        let conversation = Conversation { tier, channel: self.kind.to_owned(), name };
        let person = Person { conversation, sender: self.kind.to_owned() };
        match route::classify(&message.text) {
            Route::Answer(answer) => Ok(answered(self.desk.answer(&person, &answer))),
            Route::BareAnswer if self.desk.has_open(&person) => Ok(Updates::only([Update::refused(
                "an answer needs the code that was shown",
                "Type YES or NO, a space, and the code.",
            )])),
            Route::Stop => Ok(self.stopped(&person)),
            Route::BareAnswer | Route::Turn => self.begin(person, message.text.clone(), key).await,
        }
    }

    fn stopped(&self, person: &Person) -> Updates {
        match self.registry.stop(person).into_iter().next() {
            Some(stopped) => Updates::only([Update::Ended {
                turn: stopped.turn.to_string(),
                trace_id: stopped.trace_id,
                reply: "Stopping.".to_owned(),
                stop_reason: "stop_requested".to_owned(),
            }]),
            None => {
                Updates::only([Update::refused("nothing is running in this conversation", "There is nothing to stop.")])
            }
        }
    }

    async fn begin(&self, person: Person, text: String, key: Option<&str>) -> Result<Updates, SendError> {
        if self.shutdown.draining().is_cancelled() {
            return Err(SendError::Draining);
        }
        if !self.post.is_connected() {
            return Err(SendError::NoBus);
        }
        let tier = person.conversation.tier.clone();
        if let Some(gateway) = self.gateways.get(&tier) {
            gateway.healthy().await.map_err(|source| SendError::NoAgent { tier: tier.clone(), source })?;
        }
        let keyed = key.and_then(|key| keyed_turn(&person, key));
        let known = match &keyed {
            Some(turn) => self.records.turn(turn).await?,
            None => None,
        };
        let turn = keyed.clone().unwrap_or_else(TurnId::generate);
        // A message that is known has its root span already.
        let root = match &known {
            Some(_) => tracing::Span::none(),
            None => tracing::info_span!(
                parent: None,
                "turn",
                otel.kind = "server",
                tier = %tier,
                turn = %turn,
                channel = self.kind,
                conversation = person.conversation.name,
            ),
        };
        let mut traceparent = current_traceparent(&root).unwrap_or_else(fresh);
        if keyed.is_some() {
            let record = self.first_record(&turn, &text, traceparent).await?;
            traceparent = record.traceparent;
        }
        self.commit(person, turn, text, traceparent, root.clone()).instrument(root).await
    }

    /// The record of a message with a key, made by the first who sent it.
    async fn first_record(&self, turn: &TurnId, text: &str, traceparent: TraceParent) -> Result<TurnRecord, SendError> {
        let text_sha256 = text_sha256(text);
        let new = TurnRecord { traceparent, text_sha256: text_sha256.clone(), attempts: 0, outcome: None, sent: false };
        let record = self.records.change_turn(turn, |known| known.unwrap_or(new)).await?;
        if record.text_sha256 == text_sha256 { Ok(record) } else { Err(SendError::KeyReused) }
    }

    async fn commit(
        &self,
        person: Person,
        turn: TurnId,
        text: String,
        traceparent: TraceParent,
        root: tracing::Span,
    ) -> Result<Updates, SendError> {
        let trace_id = traceparent.trace_id();
        let accepted = Update::Accepted { turn: turn.clone(), trace_id: trace_id.clone() };
        // Watching begins before the commit: the turn may be under way before the commit returns.
        let rest = Watching::begin(&self.registry, &turn, &person, &trace_id);
        self.registry.hold_root(&turn, root);
        if let Some(TurnRecord { outcome: Some(outcome), sent: true, .. }) = self.records.turn(&turn).await? {
            // It is over; nobody will say anything any more.
            return Ok(Updates::only([accepted, Update::last(&turn, trace_id, outcome)]));
        }
        let received = ChannelReceived {
            tier: person.conversation.tier.clone(),
            turn,
            channel: self.kind.to_owned(),
            conversation: person.conversation.name.clone(),
            sender: person.sender.clone(),
            text,
            traceparent,
            received_at: clock::now_rfc3339(),
        };
        if let Err(error) = self.post.commit_received(&received).await {
            // Should it be stored after all, the turn runs and its outcome is kept; only this client is told no.
            return Err(SendError::NotCommitted(error));
        }
        let mut first = VecDeque::from([accepted]);
        first.extend(self.desk.open_for(&person));
        Ok(Updates { first, rest: rest.keep() })
    }
}

fn answered(answered: Answered) -> Updates {
    match answered {
        Answered::Decided { turn, trace_id, code, outcome } => Updates::only([
            Update::Decided { code, outcome },
            Update::Ended {
                turn: turn.to_string(),
                trace_id,
                reply: String::new(),
                stop_reason: "approval_answered".to_owned(),
            },
        ]),
        Answered::Rejected(why) => {
            let fix = match why {
                Rejection::Wrong { left: Some(0) } => {
                    "That was one wrong code too many: what was asked counts as denied.".to_owned()
                }
                Rejection::Wrong { left: Some(left) } => {
                    format!("Look at the code again; after {left} more wrong ones it counts as denied.")
                }
                Rejection::Wrong { left: None } => {
                    "A code works once, for a few minutes, and only in the conversation in which it was shown."
                        .to_owned()
                }
                Rejection::Replayed { .. } | Rejection::Withdrawn => "Nothing more is needed.".to_owned(),
                Rejection::Expired => "Ask the agent to try again if it should still happen.".to_owned(),
            };
            Updates::only([Update::refused(why.to_string(), fix)])
        }
    }
}

/// Watching a turn that is not accepted yet. Dropped before it is, also because the client left, it leaves no trace.
struct Watching<'a> {
    registry: &'a Registry,
    turn: TurnId,
    updates: Option<mpsc::Receiver<Update>>,
}

impl<'a> Watching<'a> {
    fn begin(registry: &'a Registry, turn: &TurnId, person: &Person, trace_id: &str) -> Self {
        Self { registry, turn: turn.clone(), updates: Some(registry.watch(turn, person, trace_id)) }
    }

    fn keep(mut self) -> Option<mpsc::Receiver<Update>> {
        self.updates.take()
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        if self.updates.take().is_some() {
            self.registry.give_up(&self.turn);
        }
    }
}

/// Hex SHA-256 of a message.
#[must_use]
pub fn text_sha256(text: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}
