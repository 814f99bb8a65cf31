//! One turn: announce it, reach the agent, prompt it, come back with an outcome.
//!
//! A turn never prompts before every acknowledger knows of it: secret-broker and egress-auditor attach what the agent
//! does to the turn by time, and refuse what belongs to none. Whatever goes wrong becomes an outcome that says what
//! happened and what to do; a prompt that may have reached the agent is not repeated here.
//!
//! # Spans
//! The root span `turn` is made at receipt ([`crate::channels::terminal`]) and lasts until the process that made it is
//! done with the turn ([`Registry::end_root`]). Its identifiers travel in `channel.received`, so that a redelivery, also to
//! another process, is the same turn in the same trace. The span made here, `turn.run`, is its child and covers one
//! attempt at an answer, as the consumer's span of a message is a child of the producer's in OpenTelemetry's messaging
//! conventions. Spans of other services hang from the root. After a crash in the middle of a turn the root is missing
//! from the trace; what hangs from it still carries its id. (The next process cannot make the same span again:
//! opentelemetry 0.33 chooses ids itself, short of an id generator in the provider.)
//!
//! # The lease
//! While an attempt runs, `turn.started` is published again every [`Patience::beat`]; the other services take a turn of
//! which they hear nothing for over (`service_kit::turns`). A bridge that died in a turn leaves no tier open behind it.
//! Not here: queueing and redelivery (`inbox`), delivery (`outbox`), who may approve (`approvals`).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use assistant_proto::event::{ChannelReceived, TurnEnded, TurnStarted};
use assistant_proto::name::TierName;
use service_kit::bus::BusError;
use service_kit::clock;
use service_kit::trace::span_parent;
use service_kit::turns::{LONGEST_TURN, RENEWAL};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::acp::{self, AcpError, Gateway, Link, Session};
use crate::approvals::desk::Desk;
use crate::envelope::{Outcome, Person, Update};
use crate::post::{Notice, Post};
use crate::record::{RecordError, Records};
use crate::registry::Registry;

mod prompt;

/// First pause between attempts to reach an agent that is starting; doubles up to [`SLOWEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(200);
const SLOWEST_RETRY: Duration = Duration::from_secs(2);

/// How long a turn waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For an agent that does not answer before it was prompted: it may be restarting.
    pub agent: Duration,
    /// For the next word of an agent at work while nobody is asked: above ZeroClaw's model timeout of 300 s with retries.
    pub silence: Duration,
    /// For the whole turn: ends before the other services take it for over.
    pub whole: Duration,
    /// For the agent to stop after it was told to.
    pub stopping: Duration,
    /// Between two repetitions of `turn.started`.
    pub beat: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            agent: Duration::from_secs(30),
            silence: Duration::from_secs(15 * 60),
            whole: LONGEST_TURN.saturating_sub(Duration::from_secs(5 * 60)),
            stopping: Duration::from_secs(15),
            beat: RENEWAL,
        }
    }
}

/// Why a turn has no answer.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// tiers.yaml no longer has it.
    #[error("the tier {0} does not exist any more")]
    NoTier(TierName),
    /// The person said stop before anything happened.
    #[error("it was stopped before it began")]
    StoppedEarly,
    /// The agent did not stop when it was told to.
    #[error("it was stopped; the agent did not confirm that within {} seconds", .0.as_secs())]
    StoppedHard(Duration),
    /// The turn could not be announced.
    #[error("the turn could not be announced: {0}")]
    Announce(#[source] BusError),
    /// Somebody who must watch did not answer.
    #[error("{} did not acknowledge the turn, so the agent was not prompted", listed(.0))]
    NotAcknowledged(BTreeSet<String>),
    /// The agent could not be prompted.
    #[error("{0}")]
    Agent(AcpError),
    /// The connection broke after the prompt went out.
    #[error("the connection to the agent broke in the middle of the turn")]
    BrokeOff,
    /// The agent said nothing for too long.
    #[error("the agent said nothing for {} minutes", .0.as_secs() / 60)]
    Silent(Duration),
    /// The turn took too long.
    #[error("the turn took longer than {} minutes", .0.as_secs() / 60)]
    TooLong(Duration),
    /// The bridge's own records.
    #[error("the bridge's records cannot be used: {0}")]
    Record(#[from] RecordError),
    /// The bridge was interrupted in the middle of every attempt.
    #[error("the bridge was interrupted in the middle of {0} attempts to answer this")]
    Interrupted(u32),
}

fn listed(services: &BTreeSet<String>) -> String {
    services.iter().map(String::as_str).collect::<Vec<_>>().join(" and ")
}

impl From<AcpError> for TurnError {
    fn from(error: AcpError) -> Self {
        Self::Agent(error)
    }
}

impl TurnError {
    /// What to do about it, for the person who wrote the message.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::NoTier(_) => "Talk to a tier of tiers.yaml.".to_owned(),
            Self::StoppedEarly => "Nothing was done.".to_owned(),
            Self::StoppedHard(_) | Self::BrokeOff | Self::Silent(_) | Self::TooLong(_) | Self::Interrupted(_) => {
                "What the agent had already done stays done: ask it how far it came before you repeat anything."
                    .to_owned()
            }
            Self::Announce(_) => "Look at NATS, then send the message again.".to_owned(),
            Self::NotAcknowledged(missing) => {
                format!("Look at the health and the log of {}, then send the message again.", listed(missing))
            }
            Self::Agent(AcpError::Refused { status: 401 | 403, .. }) => {
                "The agent does not accept the bridge's token: run deploy/up.sh again, it renders both sides."
                    .to_owned()
            }
            Self::Agent(AcpError::Unreachable { .. } | AcpError::Disconnected | AcpError::Refused { .. }) => {
                "Look at the log of the tier's zeroclaw container, then send the message again.".to_owned()
            }
            Self::Agent(
                AcpError::Handshake { .. } | AcpError::Malformed(_) | AcpError::Incomplete(_) | AcpError::TooMuch,
            ) => "The agent is not the pinned ZeroClaw, or is not itself any more: look at its container.".to_owned(),
            Self::Agent(AcpError::Rpc { .. } | AcpError::Silent { .. }) => {
                "deploy/trace.sh with the trace id shows which of its calls failed; then send the message again."
                    .to_owned()
            }
            Self::Record(_) => "Free some space in the bridge's data volume, or remove the damaged file.".to_owned(),
        }
    }
}

impl From<TurnError> for Outcome {
    fn from(error: TurnError) -> Self {
        Self::Failed { reason: error.to_string(), fix: error.fix() }
    }
}

/// How an attempt came out.
#[derive(Debug)]
pub struct Ran {
    /// The outcome of the turn.
    pub outcome: Outcome,
    /// Whether anybody may have heard of the start of the turn, in this attempt or one before: they have to hear of its
    /// end ([`Runner::end`]).
    pub heard_of: bool,
    /// How long the attempt took.
    pub took: Duration,
}

/// Runs turns.
#[derive(Debug)]
pub struct Runner {
    /// The agents.
    pub gateways: BTreeMap<TierName, Gateway>,
    /// The bus.
    pub post: Arc<dyn Post>,
    /// What survives a restart.
    pub records: Records,
    /// Where questions are asked.
    pub desk: Desk,
    /// Who watches.
    pub registry: Registry,
    /// Who must know of a turn before its prompt goes out.
    pub acknowledgers: BTreeSet<String>,
    /// How long to wait for what.
    pub patience: Patience,
}

impl Runner {
    /// Runs one attempt at a turn. Does not fail: what goes wrong is the outcome.
    pub async fn run(&self, received: &ChannelReceived, attempt: u32, stop: CancellationToken) -> Ran {
        let span = tracing::info_span!(
            parent: None,
            "turn.run",
            otel.kind = "consumer",
            otel.status_code = tracing::field::Empty,
            tier = %received.tier,
            turn = %received.turn,
            channel = received.channel,
            conversation = received.conversation,
            attempt,
            outcome = tracing::field::Empty,
        );
        span_parent(&span, Some(received.traceparent));
        let started = Instant::now();
        let (outcome, announced) = self.attempt(received, attempt, stop).instrument(span.clone()).await;
        span.record("outcome", outcome.label());
        if let Outcome::Failed { reason, .. } = &outcome {
            span.record("otel.status_code", "ERROR");
            span.in_scope(|| tracing::warn!(turn = %received.turn, %reason, "a turn failed"));
        }
        Ran { outcome, heard_of: announced || attempt > 1, took: started.elapsed() }
    }

    /// Says that a turn is over. It may be said more than once, also by the next process: the event is the same, and an
    /// end of a turn nobody believes to be running is ignored. An ended turn is not acknowledged again, so its outcome
    /// is kept first.
    pub fn end(&self, received: &ChannelReceived, attempt: u32, outcome: &Outcome, took: Duration) {
        let ended = TurnEnded {
            tier: received.tier.clone(),
            turn: received.turn.clone(),
            outcome: outcome.label().to_owned(),
            trace_id: received.traceparent.trace_id(),
            ended_at: clock::now_rfc3339(),
            took_millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        self.post.notify(&Notice::TurnEnded(ended, attempt), received.traceparent);
    }

    /// The outcome, and whether the turn was announced.
    async fn attempt(&self, received: &ChannelReceived, attempt: u32, stop: CancellationToken) -> (Outcome, bool) {
        match self.gateways.get(&received.tier) {
            None => (TurnError::NoTier(received.tier.clone()).into(), false),
            Some(_) if stop.is_cancelled() => (TurnError::StoppedEarly.into(), false),
            // Announced also where the announcement failed half way.
            Some(gateway) => (self.announced(gateway, received, attempt, &stop).await, true),
        }
    }

    async fn announced(
        &self,
        gateway: &Gateway,
        received: &ChannelReceived,
        attempt: u32,
        stop: &CancellationToken,
    ) -> Outcome {
        let deadline = Instant::now() + self.patience.whole;
        let event = TurnStarted {
            tier: received.tier.clone(),
            turn: received.turn.clone(),
            traceparent: received.traceparent,
            channel: received.channel.clone(),
            conversation: received.conversation.clone(),
            started_at: clock::now_rfc3339(),
        };
        let work = async {
            self.announce(&event, attempt).await?;
            self.answer(gateway, received, attempt, deadline, stop).await
        };
        tokio::select! {
            outcome = work => outcome.unwrap_or_else(Outcome::from),
            // Dropped with the work: no beat follows the end of the turn.
            never = self.beat(&event, attempt) => match never {},
        }
    }

    /// Keeps the lease of an announced turn.
    async fn beat(&self, event: &TurnStarted, attempt: u32) -> Infallible {
        let mut ticks = interval_at(Instant::now() + self.patience.beat, self.patience.beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat = 0_u32;
        loop {
            ticks.tick().await;
            beat = beat.saturating_add(1);
            if let Err(error) = self.post.beat(event, attempt, beat).await {
                tracing::warn!(%error, turn = %event.turn, "the other services were not told that the turn still runs");
            }
        }
    }

    async fn announce(&self, event: &TurnStarted, attempt: u32) -> Result<(), TurnError> {
        let acknowledged = self
            .post
            .announce(event, attempt, &self.acknowledgers)
            .instrument(tracing::info_span!("turn.announce"))
            .await
            .map_err(TurnError::Announce)?;
        let missing: BTreeSet<String> = self.acknowledgers.difference(&acknowledged).cloned().collect();
        if missing.is_empty() { Ok(()) } else { Err(TurnError::NotAcknowledged(missing)) }
    }

    async fn answer(
        &self,
        gateway: &Gateway,
        received: &ChannelReceived,
        attempt: u32,
        deadline: Instant,
        stop: &CancellationToken,
    ) -> Result<Outcome, TurnError> {
        let conversation = Person::of(received).conversation;
        let known = self.records.session(&conversation).await?;
        let reach = self.reach(gateway, known.clone()).instrument(tracing::info_span!("agent.connect"));
        let (mut link, session) = tokio::select! {
            reached = reach => reached?,
            () = stop.cancelled() => return Err(TurnError::StoppedEarly),
            // Nothing was prompted: there is nothing to cancel.
            () = sleep_until(deadline) => return Err(TurnError::TooLong(self.patience.whole)),
        };
        if !session.resumed {
            // Kept before the prompt: should the bridge die in between, the next attempt finds this session again.
            self.records.keep_session(&conversation, &session.id).await?;
            if known.is_some() {
                let note = "(The agent no longer has the history of this conversation and starts afresh.)\n";
                self.registry.say(&received.turn, &Update::Text(note.to_owned()));
            }
        }
        let span = tracing::info_span!("agent.prompt", otel.kind = "client", resumed = session.resumed);
        let repeated = attempt > 1;
        let prompt = self.prompt(&mut link, &session.id, received, repeated, deadline, stop).instrument(span);
        // The link closes in either case; without a goodbye the agent also notices, only later.
        let outcome = prompt.await;
        link.close().await;
        outcome
    }

    /// Connects and finds the session. Nothing has been prompted yet, so an agent that is just starting is tried again.
    async fn reach(&self, gateway: &Gateway, known: Option<String>) -> Result<(Link, Session), AcpError> {
        let deadline = Instant::now() + self.patience.agent;
        let mut pause = FIRST_RETRY;
        loop {
            let opened = async {
                let (mut link, features) = gateway.connect().await?;
                let session = acp::session(&mut link, features, known.clone()).await?;
                Ok((link, session))
            };
            match opened.await {
                Err(error) if AcpError::is_passing(&error) && Instant::now() + pause < deadline => {
                    tracing::debug!(%error, "the agent is not there yet");
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2).min(SLOWEST_RETRY);
                }
                outcome => return outcome,
            }
        }
    }
}
