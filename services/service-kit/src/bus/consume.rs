//! The receiving half of the bus.

use std::future::Future;

use assistant_proto::event::Event;
use assistant_proto::trace::TraceParent;
use async_nats::HeaderMap;
use async_nats::connection::State;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;

use super::figures::{Fate, Reader};
use super::{ASKER_INBOX, Bus, BusError, Connected, Outgoing, Undecodable, WANTS_ANSWER, header};
use crate::text::harmless_line;
use backlog::Backlog;

mod backlog;

/// Subjects of messages that were set aside: `undecodable.<stream they were in>`. The stream UNDECODABLE keeps them.
const SET_ASIDE: &str = "undecodable";
/// Longest reason that goes with such a message.
const MOST_REASON_CHARS: usize = 512;

/// An event as it arrived.
#[derive(Debug)]
pub struct Received<E> {
    /// The event.
    pub event: E,
    /// `ce-id`.
    pub id: String,
    /// `traceparent`, where there was one.
    pub parent: Option<TraceParent>,
    /// How often JetStream has delivered it, 1 the first time; 0 for a core subscription.
    pub deliveries: u64,
    reply: Option<(async_nats::Client, async_nats::Subject)>,
}

impl<E> Received<E> {
    /// For tests of handlers.
    #[must_use]
    pub fn detached(event: E) -> Self {
        Self { event, id: "detached".to_owned(), parent: None, deliveries: 1, reply: None }
    }

    /// Whether the sender collects answers (`Bus::gather`).
    #[must_use]
    pub fn wants_answer(&self) -> bool {
        self.reply.is_some()
    }

    /// Answers the sender's inbox (core subscriptions only).
    ///
    /// # Errors
    /// [`BusError::NoReply`] when the sender asked for no answer, [`BusError::ForeignReply`] when it wants it elsewhere than
    /// in the inbox of the service that asks.
    pub async fn reply(&self, answer: &(impl Serialize + Sync)) -> Result<(), BusError> {
        let (client, subject) = self.reply.as_ref().ok_or(BusError::NoReply)?;
        if !subject.starts_with(ASKER_INBOX) {
            return Err(BusError::ForeignReply);
        }
        let payload = serde_json::to_vec(answer).map_err(BusError::Encode)?;
        client.publish(subject.clone(), payload.into()).await.map_err(|error| BusError::Refused(error.to_string()))
    }
}

/// A message of any type.
#[derive(Debug, Clone)]
pub struct Raw {
    /// Its subject.
    pub subject: String,
    /// `ce-type`, empty when missing.
    pub type_: String,
    /// `ce-id`, empty when missing.
    pub id: String,
    /// `ce-source`, empty when missing.
    pub source: String,
    /// `traceparent`, where there was one.
    pub parent: Option<TraceParent>,
    /// The body.
    pub payload: Bytes,
    /// Its sequence in the stream.
    pub stream_sequence: u64,
    /// How often it has been delivered, 1 the first time.
    pub deliveries: u64,
}

impl Bus {
    /// Subscribes to `<TYPE>.*` until the bus is closed. Messages are handled one after the other. What cannot be
    /// decoded, or lies about its scope, is counted and logged. Run it in `Tasks::spawn_restarting`.
    ///
    /// # Errors
    /// When the subscription is refused or ends.
    pub async fn subscribe<E, H, F>(&self, handler: H) -> anyhow::Result<()>
    where
        E: Event,
        H: Fn(Received<E>) -> F + Send + Sync,
        F: Future<Output = ()> + Send,
    {
        let Ok(bus) = self.connected() else { return Ok(()) };
        let undecodable = Undecodable::default();
        let mut messages = bus.client.subscribe(format!("{}.*", E::TYPE)).await?;
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = bus.closed.cancelled() => return Ok(()),
            };
            let Some(message) = message else { anyhow::bail!("the subscription to {} ended", E::TYPE) };
            match decode::<E>(&message.subject, &message.payload) {
                Ok(event) => {
                    // The inbox of one who does not ask is JetStream's, which answers alone.
                    let asked = header(message.headers.as_ref(), WANTS_ANSWER).is_some();
                    let received = Received {
                        event,
                        id: header(message.headers.as_ref(), "ce-id").unwrap_or_default().to_owned(),
                        parent: header(message.headers.as_ref(), "traceparent").and_then(|text| text.parse().ok()),
                        deliveries: 0,
                        reply: message.reply.filter(|_| asked).map(|subject| (bus.client.clone(), subject)),
                    };
                    handler(received).await;
                }
                Err(error) => undecodable.count(&message.subject, &error, "passed over"),
            }
        }
    }

    /// Consumes a durable pull consumer until the bus is closed. Messages of one subject are handled in order, one at a
    /// time; different subjects side by side. `Ok` acknowledges, `Err` asks for redelivery. What cannot be decoded is
    /// published as it is on `undecodable.<stream>`, and only once that is stored taken from the stream. Run it in
    /// `Tasks::spawn_restarting`.
    ///
    /// # Errors
    /// When the consumer does not exist (yet) or its stream of messages ends.
    pub async fn consume<E, H, F>(&self, stream: &str, durable: &str, handler: H) -> anyhow::Result<()>
    where
        E: Event,
        H: Fn(Received<E>) -> F + Send + Sync,
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let handler = &handler;
        self.drive(stream, durable, true, 1, |raws: Vec<Raw>| async move {
            let mut outcome = Outcome::Done;
            // One at a time, as asked for.
            for raw in raws {
                outcome = match decode::<E>(&raw.subject, &raw.payload) {
                    Ok(event) => {
                        let received =
                            Received { event, id: raw.id, parent: raw.parent, deliveries: raw.deliveries, reply: None };
                        handled(&raw.subject, handler(received).await)
                    }
                    Err(error) => Outcome::Undecodable(error),
                };
            }
            outcome
        })
        .await
    }

    /// The same for messages of any type, all in the order of the stream.
    ///
    /// # Errors
    /// As [`Bus::consume`].
    pub async fn consume_raw<H, F>(&self, stream: &str, durable: &str, handler: H) -> anyhow::Result<()>
    where
        H: Fn(Raw) -> F + Send + Sync,
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let handler = &handler;
        self.drive(stream, durable, false, 1, |raws: Vec<Raw>| async move {
            let mut outcome = Outcome::Done;
            for raw in raws {
                let subject = raw.subject.clone();
                outcome = handled(&subject, handler(raw).await);
            }
            outcome
        })
        .await
    }

    /// As [`Bus::consume_raw`], but whatever waits, up to `most` messages, is handled together: one after the other as
    /// in the stream, acknowledged together or delivered again together.
    ///
    /// # Errors
    /// As [`Bus::consume`].
    pub async fn consume_raw_batch<H, F>(
        &self,
        stream: &str,
        durable: &str,
        most: usize,
        handler: H,
    ) -> anyhow::Result<()>
    where
        H: Fn(Vec<Raw>) -> F + Send + Sync,
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let handler = &handler;
        self.drive(stream, durable, false, most, |raws: Vec<Raw>| async move {
            let subject = raws.first().map(|raw| raw.subject.clone()).unwrap_or_default();
            handled(&subject, handler(raws).await)
        })
        .await
    }

    async fn drive<H, F>(
        &self,
        stream: &str,
        durable: &str,
        by_subject: bool,
        most: usize,
        handler: H,
    ) -> anyhow::Result<()>
    where
        H: Fn(Vec<Raw>) -> F + Send + Sync,
        F: Future<Output = Outcome> + Send,
    {
        let Ok(bus) = self.connected() else { return Ok(()) };
        let undecodable = Undecodable::default();
        let consumer: PullConsumer = bus
            .jetstream
            .get_consumer_from_stream(durable, stream)
            .await
            .map_err(|error| anyhow::anyhow!("consumer {durable} of stream {stream}: {error}"))?;
        let mut messages = consumer.messages().await?;
        let reader = Reader::begin(&bus.readings, stream, durable);
        // Bounded by the consumer's max_ack_pending: the server sends no more than that.
        let mut backlog: Backlog<Message> = Backlog::default();
        let mut running = FuturesUnordered::new();
        let run = |messages: Vec<Message>, lane: String| {
            let (handler, undecodable, reader) = (&handler, &undecodable, &reader);
            async move {
                handle(bus, stream, messages, handler, undecodable, reader).await;
                lane
            }
        };
        let mut progress = tokio::time::interval(bus.pace.progress);
        let mut open = true;
        loop {
            tokio::select! {
                message = messages.next(), if open => match message {
                    Some(Ok(message)) => {
                        let sequence = match message.info() {
                            Ok(info) => {
                                reader.delivered(info.stream_sequence, info.published.into(), info.pending);
                                info.stream_sequence
                            }
                            Err(error) => anyhow::bail!("consumer {durable} of stream {stream}: {error}"),
                        };
                        let lane = if by_subject { message.subject.to_string() } else { String::new() };
                        backlog.add(&lane, sequence, message);
                        if let Some(messages) = backlog.begin(&lane, most) {
                            running.push(run(messages, lane));
                        }
                    }
                    Some(Err(error)) => anyhow::bail!("consumer {durable} of stream {stream}: {error}"),
                    None => anyhow::bail!("consumer {durable} of stream {stream} ended"),
                },
                Some(lane) = running.next() => {
                    backlog.end(&lane);
                    if open {
                        if let Some(messages) = backlog.begin(&lane, most) {
                            running.push(run(messages, lane));
                        }
                    } else if running.is_empty() {
                        return Ok(());
                    }
                }
                // What waits behind a long one is not lost: without this it would be delivered again and again.
                _ = progress.tick(), if open => {
                    for message in backlog.waiting() {
                        still_at_it(bus, message).await;
                    }
                }
                () = bus.closed.cancelled(), if open => {
                    // What is being handled is finished; what only waits is delivered again later.
                    open = false;
                    if running.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

enum Outcome {
    Done,
    Again,
    Undecodable(String),
}

fn handled(subject: &str, outcome: anyhow::Result<()>) -> Outcome {
    match outcome {
        Ok(()) => Outcome::Done,
        Err(error) => {
            tracing::warn!(subject, error = format!("{error:#}"), "a message will be handled again");
            Outcome::Again
        }
    }
}

async fn handle<H, F>(
    bus: &Connected,
    stream: &str,
    messages: Vec<Message>,
    handler: &H,
    undecodable: &Undecodable,
    reader: &Reader<'_>,
) where
    H: Fn(Vec<Raw>) -> F,
    F: Future<Output = Outcome>,
{
    let work = handler(messages.iter().map(raw).collect());
    tokio::pin!(work);
    let mut progress = tokio::time::interval(bus.pace.progress);
    progress.tick().await;
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            _ = progress.tick() => {
                for message in &messages {
                    still_at_it(bus, message).await;
                }
            }
        }
    };
    for message in messages {
        let (kind, fate) = match &outcome {
            Outcome::Done => (AckKind::Ack, Fate::Done),
            Outcome::Again => (AckKind::Nak(Some(bus.pace.redelivery)), Fate::Again),
            Outcome::Undecodable(reason) => match set_aside(bus, stream, &message, reason).await {
                Ok(()) => {
                    undecodable.count(&message.subject, reason, "set aside in UNDECODABLE");
                    (AckKind::Term, Fate::SetAside)
                }
                Err(error) => {
                    undecodable.count(&message.subject, reason, "left in its stream");
                    tracing::error!(subject = %message.subject, %error, "a message cannot be set aside in UNDECODABLE");
                    (AckKind::Nak(Some(bus.pace.set_aside_again)), Fate::Again)
                }
            },
        };
        if let Ok(info) = message.info() {
            reader.handled(info.stream_sequence, fate);
        }
        // A lost acknowledgement means redelivery; handlers are idempotent.
        if let Err(error) = message.ack_with(kind).await {
            tracing::warn!(subject = %message.subject, %error, "a message was not acknowledged");
        }
    }
}

async fn still_at_it(bus: &Connected, message: &Message) {
    // While there is no connection it would wait for one, and the work with it.
    if bus.client.connection_state() == State::Connected
        && let Err(error) = message.ack_with(AckKind::Progress).await
    {
        tracing::debug!(%error, "progress was not acknowledged");
    }
}

fn raw(message: &Message) -> Raw {
    let (stream_sequence, deliveries) =
        message.info().map_or((0, 1), |info| (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)));
    Raw {
        subject: message.subject.to_string(),
        type_: header(message.headers.as_ref(), "ce-type").unwrap_or_default().to_owned(),
        id: header(message.headers.as_ref(), "ce-id").unwrap_or_default().to_owned(),
        source: header(message.headers.as_ref(), "ce-source").unwrap_or_default().to_owned(),
        parent: header(message.headers.as_ref(), "traceparent").and_then(|text| text.parse().ok()),
        payload: message.payload.clone(),
        stream_sequence,
        deliveries,
    }
}

/// Stores a message where it stays until a person looks at it: a work queue forgets what is terminated.
async fn set_aside(bus: &Connected, stream: &str, message: &Message, reason: &str) -> Result<(), BusError> {
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        // Those of NATS are orders to the server, meant for another stream.
        if name.get(..5).is_none_or(|prefix| !prefix.eq_ignore_ascii_case("nats-")) {
            for value in values {
                headers.append(name, value.clone());
            }
        }
    }
    let sequence = message.info().map_or(0, |info| info.stream_sequence);
    headers.insert("Nats-Msg-Id", format!("{SET_ASIDE}-{stream}-{sequence}").as_str());
    headers.insert("undecodable-subject", message.subject.as_str());
    headers.insert("undecodable-reason", harmless_line(reason, MOST_REASON_CHARS).as_str());
    let outgoing = Outgoing { subject: format!("{SET_ASIDE}.{stream}"), headers, payload: message.payload.clone() };
    let patience = bus.pace.acknowledged;
    tokio::time::timeout(patience, bus.publish(outgoing)).await.map_err(|_| BusError::TimedOut(patience))??;
    Ok(())
}

/// Decodes and checks that the subject is the one the value computes: a publisher with rights on one tier's subject
/// cannot speak for another tier in the body.
fn decode<E: Event>(subject: &str, payload: &[u8]) -> Result<E, String> {
    let event: E = serde_json::from_slice(payload)
        .map_err(|error| format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()))?;
    let computed = event.subject();
    if computed == subject { Ok(event) } else { Err(format!("the value belongs on {computed}")) }
}

#[cfg(test)]
mod tests;
