//! Drives the turns of committed messages: one at a time per tier, in the order of the stream, each prompted once.
//!
//! JetStream delivers at least once. What makes it one answer is the record of the turn: attempts are counted before a
//! prompt goes out, the outcome is kept before the reply is committed, the commit is deduplicated by the turn. A turn
//! whose bridge died in its middle is tried once more, and the agent is told so; a second such death ends it with a
//! clear failure instead of a third prompt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assistant_proto::event::{ChannelReceived, ChannelReplied};
use assistant_proto::name::{TierName, TurnId};
use service_kit::host::Shutdown;
use service_kit::task::{OnEnd, Tasks};
use tokio::sync::watch;

use crate::attendant::Attendants;
use crate::dashboard::history::History;
use crate::envelope::{Outcome, Person, Update};
use crate::post::Post;
use crate::record::{RecordError, Records, TurnRecord};
use crate::registry::Registry;
use crate::turn::{Ran, Runner, TurnError};

/// How often a prompt may reach the agent for one message.
const MOST_ATTEMPTS: u32 = 2;
/// Stands for the attempt where the record that counts them cannot be used. Attempts count from 1.
const UNKNOWN_ATTEMPT: u32 = 0;
/// First pause between attempts to commit a reply; doubles up to [`SLOWEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(200);
const SLOWEST_RETRY: Duration = Duration::from_secs(5);

/// Why a message has to be delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InboxError {
    /// The bridge is ending and the turn has not begun.
    #[error("the bridge is ending; the turn has not begun")]
    Draining,
    /// The bridge ended in the middle.
    #[error("the bridge is ending in the middle of the turn")]
    Unfinished,
}

/// None while the turn runs.
type Progress = watch::Receiver<Option<Result<(), InboxError>>>;

/// Drives turns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runner: Runner,
    attendants: Attendants,
    post: Arc<dyn Post>,
    records: Records,
    registry: Registry,
    history: History,
    tasks: Tasks,
    shutdown: Shutdown,
    /// Fair: waiting turns get their tier in the order they came.
    tiers: Mutex<HashMap<TierName, Arc<tokio::sync::Mutex<()>>>>,
    running: Mutex<HashMap<TurnId, Progress>>,
}

impl Inbox {
    /// An inbox that spawns its turns on `tasks`.
    #[must_use]
    pub fn new(runner: Runner, attendants: Attendants, history: History, tasks: Tasks, shutdown: Shutdown) -> Self {
        Self {
            inner: Arc::new(Inner {
                post: Arc::clone(&runner.post),
                records: runner.records.clone(),
                registry: runner.registry.clone(),
                runner,
                attendants,
                history,
                tasks,
                shutdown,
                tiers: Mutex::default(),
                running: Mutex::default(),
            }),
        }
    }

    /// Handles one message and returns when its reply is committed. The turn is a task of its own: when the consumer
    /// fails in the meantime and this future is dropped, the turn goes on, and the redelivered message joins it.
    ///
    /// # Errors
    /// The message must be delivered again then.
    pub async fn handle(&self, received: ChannelReceived) -> Result<(), InboxError> {
        let mut result = self.join_or_start(received);
        match result.wait_for(Option::is_some).await {
            Ok(result) => result.unwrap_or(Err(InboxError::Unfinished)),
            Err(_) => Err(InboxError::Unfinished),
        }
    }

    fn join_or_start(&self, received: ChannelReceived) -> Progress {
        let turn = received.turn.clone();
        let mut running = lock(&self.inner.running);
        if let Some(result) = running.get(&turn) {
            return result.clone();
        }
        let (sender, receiver) = watch::channel(None);
        running.insert(turn.clone(), receiver.clone());
        drop(running);
        self.inner.attendants.attend(&received, receiver.clone());
        let (inner, name) = (Arc::clone(&self.inner), format!("turn {turn}"));
        let entry = Entry { inner: Arc::clone(&self.inner), turn };
        self.inner.tasks.spawn(name, OnEnd::Expected, async move {
            let result = inner.process(&received).await;
            // The entry goes first: whoever sees the result may deliver the message again at once.
            drop(entry);
            sender.send_replace(Some(result));
            Ok(())
        });
        receiver
    }
}

/// A running turn; removed when its task ends, however it ends.
struct Entry {
    inner: Arc<Inner>,
    turn: TurnId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.inner.running).remove(&self.turn);
        self.inner.registry.end_root(&self.turn);
    }
}

impl Inner {
    async fn process(&self, received: &ChannelReceived) -> Result<(), InboxError> {
        let tier = Arc::clone(lock(&self.tiers).entry(received.tier.clone()).or_default());
        let draining = self.shutdown.draining();
        self.history.asked(received).await;
        if tier.try_lock().is_err() {
            self.registry.say(&received.turn, &Update::Queued);
        }
        let _turn_of_the_tier = tokio::select! {
            biased;
            () = draining.cancelled() => return Err(InboxError::Draining),
            guard = tier.lock() => guard,
        };
        let (outcome, end) = match self.records.turn(&received.turn).await {
            Ok(Some(TurnRecord { sent: true, .. })) => return Ok(()),
            // The process that kept it may have died before the bus took the end of the turn.
            Ok(Some(TurnRecord { outcome: Some(outcome), attempts, .. })) => {
                (outcome, Some(End { attempt: attempts, took: Duration::ZERO }))
            }
            Ok(_) => {
                let (outcome, end) = self.answer(received).await;
                if let Err(error) = self.keep(received, &outcome).await {
                    tracing::error!(%error, turn = %received.turn, "an outcome is not recorded; it is committed all the same");
                }
                (outcome, end)
            }
            // Unreadable is not the same as unknown: without the record nobody knows whether it was prompted.
            Err(error) => not_attempted(error.into(), UNKNOWN_ATTEMPT),
        };
        self.history.answered(received, &outcome).await;
        // After it is kept: a turn whose end was told is not begun again.
        if let Some(End { attempt, took }) = end {
            self.runner.end(received, attempt, &outcome, took);
        }
        self.commit(received, &outcome).await
    }

    /// Counts the attempt, then makes it.
    async fn answer(&self, received: &ChannelReceived) -> (Outcome, Option<End>) {
        let stop = self.registry.take_up(&received.turn, &Person::of(received), &received.traceparent.trace_id());
        let counted = self
            .records
            .change_turn(&received.turn, |known| {
                let known = known.unwrap_or_else(|| new_record(received));
                TurnRecord { attempts: known.attempts.saturating_add(1), ..known }
            })
            .await;
        match counted {
            Ok(TurnRecord { attempts, .. }) if attempts > MOST_ATTEMPTS => {
                not_attempted(TurnError::Interrupted(MOST_ATTEMPTS), attempts)
            }
            Ok(TurnRecord { attempts: attempt, .. }) => {
                let Ran { outcome, heard_of, took } = self.runner.run(received, attempt, stop).await;
                (outcome, heard_of.then_some(End { attempt, took }))
            }
            Err(error) => not_attempted(error.into(), UNKNOWN_ATTEMPT),
        }
    }

    async fn keep(&self, received: &ChannelReceived, outcome: &Outcome) -> Result<(), RecordError> {
        let change = |known: Option<TurnRecord>| {
            let known = known.unwrap_or_else(|| new_record(received));
            TurnRecord { outcome: Some(outcome.clone()), ..known }
        };
        self.records.change_turn(&received.turn, change).await.map(|_| ())
    }

    /// Commits the reply, as often as it takes.
    async fn commit(&self, received: &ChannelReceived, outcome: &Outcome) -> Result<(), InboxError> {
        let replied = ChannelReplied {
            tier: received.tier.clone(),
            turn: received.turn.clone(),
            channel: received.channel.clone(),
            conversation: received.conversation.clone(),
            text: outcome.message(),
            traceparent: received.traceparent,
        };
        let deadline = self.shutdown.deadline();
        let mut pause = FIRST_RETRY;
        loop {
            match self.post.commit_replied(&replied).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, turn = %received.turn, "a reply waits for NATS"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = pause.saturating_mul(2).min(SLOWEST_RETRY),
                () = deadline.cancelled() => return Err(InboxError::Unfinished),
            }
        }
    }
}

/// What there is to say of the end of a turn besides its outcome.
struct End {
    attempt: u32,
    took: Duration,
}

/// A turn that is not attempted, but may have been before: whoever heard of its start hears of its end.
fn not_attempted(error: TurnError, attempt: u32) -> (Outcome, Option<End>) {
    (error.into(), Some(End { attempt, took: Duration::ZERO }))
}

fn new_record(received: &ChannelReceived) -> TurnRecord {
    TurnRecord {
        traceparent: received.traceparent,
        text_sha256: crate::channels::terminal::text_sha256(&received.text),
        attempts: 0,
        outcome: None,
        sent: false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
