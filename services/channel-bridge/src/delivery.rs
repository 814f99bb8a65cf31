//! Sends to messengers: replies, which are kept until they are there, and notes of the bridge, which are not.
//!
//! What goes to one conversation goes in order, one message at a time; conversations do not wait for each other, and no
//! tier waits for a messenger that is away. A part that certainly did not arrive is sent again, for as long as it takes.
//! A part of unknown fate (the connection broke, the bridge died) is sent a second time where the messenger has no key
//! that makes the two one, and not before the messenger answers again; after that it counts as sent. A note of unknown
//! fate is not repeated, a question is: its code makes it the same.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assistant_proto::event::{ChannelReplied, ChannelSent, EventId};
use futures::future::BoxFuture;
use service_kit::clock;
use service_kit::host::Shutdown;
use service_kit::task::{OnEnd, Tasks};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::channels::{Backoff, Channel, Channels, Pace, SendKey, Sending, Trouble};
use crate::outgoing::{Outgoing, Store};
use crate::post::{Notice, Post};
use crate::record::{RecordError, Records, TurnRecord};
use crate::reply::Part;

/// Attempts of unknown fate at one part, where the messenger has no key of its own.
const MOST_UNKNOWN: u8 = 2;
/// Notes that may wait in one conversation. Only who may write there causes any; more say nothing new.
const MOST_NOTES: usize = 64;

/// Sends. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Delivery {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    channels: Channels,
    store: Store,
    records: Records,
    post: Arc<dyn Post>,
    tasks: Tasks,
    shutdown: Shutdown,
    pace: Pace,
    sequence: AtomicU64,
    lanes: Mutex<HashMap<String, VecDeque<Item>>>,
}

#[derive(Debug)]
enum Item {
    Reply(Box<Outgoing>),
    Note(Note),
}

#[derive(Debug)]
struct Note {
    parts: Vec<Part>,
    until: Instant,
    /// For a question: whether it was shown in full.
    shown: Option<oneshot::Sender<bool>>,
}

/// The bridge is ending: what is left is left to the next process.
struct Ending;

impl Delivery {
    /// Takes up what the process before left behind.
    ///
    /// # Errors
    /// When its records cannot be read.
    pub async fn open(
        channels: Channels,
        store: Store,
        records: Records,
        post: Arc<dyn Post>,
        (tasks, shutdown): (Tasks, Shutdown),
        pace: Pace,
    ) -> Result<(Self, Vec<Outgoing>), RecordError> {
        let left = store.all().await?;
        let sequence = left.iter().map(|outgoing| outgoing.sequence).max().unwrap_or_default();
        let inner = Inner {
            channels,
            store,
            records,
            post,
            tasks,
            shutdown,
            pace,
            sequence: AtomicU64::new(sequence),
            lanes: Mutex::default(),
        };
        Ok((Self { inner: Arc::new(inner) }, left))
    }

    /// Goes on with what the process before left behind.
    pub fn resume(&self, left: Vec<Outgoing>) {
        for outgoing in left {
            self.add(outgoing.conversation.clone(), outgoing.channel.clone(), Item::Reply(Box::new(outgoing)));
        }
    }

    /// The messengers.
    #[must_use]
    pub fn channels(&self) -> &Channels {
        &self.inner.channels
    }

    /// Takes a reply with its plan. Once this returns it is kept and will be sent. The same reply twice is one.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub async fn reply(&self, replied: &ChannelReplied, parts: Vec<Part>) -> Result<(), RecordError> {
        if self.inner.store.of(&replied.turn).await?.is_some() {
            return Ok(());
        }
        let outgoing = Outgoing {
            sequence: self.inner.sequence.fetch_add(1, Ordering::SeqCst).saturating_add(1),
            tier: replied.tier.clone(),
            turn: replied.turn.clone(),
            channel: replied.channel.clone(),
            conversation: replied.conversation.clone(),
            traceparent: replied.traceparent,
            parts,
            next: 0,
            sending: false,
            unknown: 0,
            bytes: 0,
        };
        self.inner.store.keep(&outgoing).await?;
        self.resume(vec![outgoing]);
        Ok(())
    }

    /// Says something for the bridge, if the messenger takes it within the time that notes have.
    pub fn note(&self, kind: &str, conversation: &str, part: Part) {
        let note = Note { parts: vec![part], until: Instant::now() + self.inner.pace.note, shown: None };
        self.add(conversation.to_owned(), kind.to_owned(), Item::Note(note));
    }

    /// Shows a question; resolves with whether it was shown in full before `until`.
    pub async fn question(&self, kind: &str, conversation: &str, parts: Vec<Part>, until: Instant) -> bool {
        let (shown, answer) = oneshot::channel();
        self.add(conversation.to_owned(), kind.to_owned(), Item::Note(Note { parts, until, shown: Some(shown) }));
        answer.await.unwrap_or(false)
    }

    fn add(&self, conversation: String, kind: String, item: Item) {
        // Left to the next process, which sends it after what this one leaves unsent.
        if self.inner.shutdown.draining().is_cancelled() {
            return;
        }
        let lane = format!("{kind}/{conversation}");
        let mut lanes = self.inner.lock();
        let begins = !lanes.contains_key(&lane);
        let queue = lanes.entry(lane.clone()).or_default();
        if matches!(item, Item::Note(_)) && queue.len() >= MOST_NOTES {
            tracing::warn!(conversation, "a note of the bridge is not sent: too many wait");
            return;
        }
        queue.push_back(item);
        drop(lanes);
        if begins {
            let inner = Arc::clone(&self.inner);
            self.inner.tasks.spawn(format!("delivery {lane}"), OnEnd::Expected, async move {
                let mut end = LaneEnd { inner: &inner, lane: &lane, gone: false };
                end.gone = inner.drive(&kind, &conversation, &lane).await;
                drop(end);
                Ok(())
            });
        }
    }
}

/// A lane whose task ends, however it ends, is forgotten: replies in it are on disk, and come back with the next process.
struct LaneEnd<'a> {
    inner: &'a Inner,
    lane: &'a str,
    /// It was removed when it was found empty; what has that name by now is another.
    gone: bool,
}

impl Drop for LaneEnd<'_> {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        let left = self.inner.lock().remove(self.lane).map_or(0, |queue| queue.len());
        if left > 0 {
            tracing::info!(left, "messages to a messenger are left to the next process");
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Item>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is in a lane. True when there is nothing left and the lane is removed.
    async fn drive(&self, kind: &str, conversation: &str, lane: &str) -> bool {
        let Some((channel, address)) = self.channels.find(kind, conversation) else {
            tracing::error!(kind, conversation, "there is no account any more for what is to be sent; it is kept");
            return false;
        };
        loop {
            let item = {
                let mut lanes = self.lock();
                match lanes.get_mut(lane).and_then(VecDeque::pop_front) {
                    Some(item) => item,
                    None => {
                        // The next item makes a new lane.
                        lanes.remove(lane);
                        return true;
                    }
                }
            };
            let done = match item {
                Item::Reply(outgoing) => self.send_reply(&*channel, address, *outgoing).await,
                Item::Note(note) => self.send_note(&*channel, address, note).await,
            };
            if let Err(Ending) = done {
                return false;
            }
        }
    }

    async fn send_reply(&self, channel: &dyn Channel, address: &str, mut outgoing: Outgoing) -> Result<(), Ending> {
        // Finished, and the file outlived the process that had.
        let known = self.patiently("read", || Box::pin(self.records.turn(&outgoing.turn))).await?;
        if known.is_some_and(|record| record.sent) {
            return self.forget(&outgoing).await;
        }
        let mut backoff = Backoff::new(self.pace);
        let mut refused = None;
        while let Some(part) = outgoing.part().cloned() {
            if outgoing.sending {
                outgoing.unknown = outgoing.unknown.saturating_add(1);
                if outgoing.unknown >= MOST_UNKNOWN && !channel.capabilities().native_key {
                    tracing::warn!(turn = %outgoing.turn, part = outgoing.next, "nobody knows whether a part of a reply arrived; it counts as sent");
                    outgoing.advance();
                    self.keep(&outgoing).await?;
                    continue;
                }
                // Where it is away it would only be unknown once more.
                while let Err(why) = channel.probe().await {
                    self.wait(&mut backoff, Trouble::Away, &why).await?;
                }
            }
            outgoing.sending = true;
            self.keep(&outgoing).await?;
            match channel.send(address, &part, &send_key(&outgoing)).await {
                Sending::Receipt(id) => {
                    tracing::debug!(turn = %outgoing.turn, part = outgoing.next, id, "sent");
                    outgoing.bytes = outgoing.bytes.saturating_add(u64::try_from(part.plain.len()).unwrap_or(u64::MAX));
                    outgoing.advance();
                    self.keep(&outgoing).await?;
                    backoff.reset();
                    if outgoing.part().is_some() {
                        self.pause(self.pace.between_parts).await?;
                    }
                }
                Sending::NotSent { retry_after, why } => {
                    outgoing.sending = false;
                    self.keep(&outgoing).await?;
                    self.wait(&mut backoff, trouble(retry_after), &why).await?;
                }
                // `sending` stays: the next round counts it.
                Sending::Unknown(why) => self.wait(&mut backoff, Trouble::Away, &why).await?,
                Sending::Permanent(why) => {
                    refused = Some(why);
                    break;
                }
            }
        }
        if let Some(why) = refused {
            tracing::error!(turn = %outgoing.turn, conversation = outgoing.conversation, why, "a reply cannot be sent");
        }
        self.finish(&outgoing).await
    }

    /// Marks the turn as sent, tells the bus, and forgets the plan; in this order, so that a crash in between repeats
    /// what can be repeated.
    async fn finish(&self, outgoing: &Outgoing) -> Result<(), Ending> {
        let sent = ChannelSent {
            tier: outgoing.tier.clone(),
            turn: outgoing.turn.clone(),
            channel: outgoing.channel.clone(),
            bytes: outgoing.bytes,
            trace_id: outgoing.traceparent.trace_id(),
            sent_at: clock::now_rfc3339(),
        };
        self.post.notify(&Notice::ChannelSent(sent), outgoing.traceparent);
        self.patiently("write", || {
            let change = |known: Option<TurnRecord>| match known {
                Some(known) => TurnRecord { sent: true, ..known },
                None => TurnRecord {
                    traceparent: outgoing.traceparent,
                    text_sha256: String::new(),
                    attempts: 0,
                    outcome: None,
                    sent: true,
                },
            };
            Box::pin(self.records.change_turn(&outgoing.turn, change))
        })
        .await?;
        self.forget(outgoing).await
    }

    async fn forget(&self, outgoing: &Outgoing) -> Result<(), Ending> {
        self.patiently("remove", || Box::pin(self.store.forget(&outgoing.turn))).await
    }

    async fn keep(&self, outgoing: &Outgoing) -> Result<(), Ending> {
        self.patiently("write", || Box::pin(self.store.keep(outgoing))).await
    }

    /// Does something with a record as often as it takes: without the record nothing may be sent.
    async fn patiently<'a, T>(
        &self,
        what: &str,
        work: impl Fn() -> BoxFuture<'a, Result<T, RecordError>> + Send + Sync,
    ) -> Result<T, Ending>
    where
        T: Send,
    {
        let mut backoff = Backoff::new(self.pace);
        loop {
            match work().await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    tracing::error!(%error, what, "a reply waits for the bridge's own records");
                    self.pause(backoff.pause(Trouble::No(None))).await?;
                }
            }
        }
    }

    async fn send_note(&self, channel: &dyn Channel, address: &str, note: Note) -> Result<(), Ending> {
        let Note { parts, until, shown } = note;
        let question = shown.is_some();
        let sent = tokio::time::timeout_at(until, self.send_parts(channel, address, &parts, question)).await;
        let sent = match sent {
            Ok(sent) => sent?,
            Err(_) => false,
        };
        if !sent {
            tracing::warn!(question, "a note of the bridge did not arrive");
        }
        if let Some(shown) = shown
            && shown.send(sent).is_err()
        {
            tracing::debug!("the question is closed");
        }
        Ok(())
    }

    async fn send_parts(
        &self,
        channel: &dyn Channel,
        address: &str,
        parts: &[Part],
        question: bool,
    ) -> Result<bool, Ending> {
        let mut backoff = Backoff::new(self.pace);
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                self.pause(self.pace.between_parts).await?;
            }
            let key = SendKey(EventId::unique().as_str().to_owned());
            loop {
                match channel.send(address, part, &key).await {
                    Sending::Receipt(_) => break,
                    Sending::NotSent { retry_after, why } => {
                        self.wait(&mut backoff, trouble(retry_after), &why).await?
                    }
                    Sending::Unknown(why) if question => self.wait(&mut backoff, Trouble::Away, &why).await?,
                    Sending::Unknown(_) | Sending::Permanent(_) => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    async fn wait(&self, backoff: &mut Backoff, trouble: Trouble, why: &str) -> Result<(), Ending> {
        let pause = backoff.pause(trouble);
        tracing::warn!(why, retry_in_ms = pause.as_millis(), "a message to a messenger waits");
        self.pause(pause).await
    }

    async fn pause(&self, pause: Duration) -> Result<(), Ending> {
        let draining = self.shutdown.draining();
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = draining.cancelled() => Err(Ending),
        }
    }
}

/// A messenger that wants to be left alone says for how long; one that says nothing is not there.
fn trouble(retry_after: Option<Duration>) -> Trouble {
    retry_after.map_or(Trouble::Away, |wait| Trouble::No(Some(wait)))
}

/// From what makes it the same part, whoever sends it.
fn send_key(outgoing: &Outgoing) -> SendKey {
    let part = u64::try_from(outgoing.next).unwrap_or(u64::MAX).to_be_bytes();
    let id = EventId::derive(&[
        b"send",
        outgoing.tier.as_str().as_bytes(),
        outgoing.conversation.as_bytes(),
        outgoing.turn.as_str().as_bytes(),
        &part,
    ]);
    SendKey(id.as_str().to_owned())
}
