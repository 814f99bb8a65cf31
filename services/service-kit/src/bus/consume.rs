//! The receiving half of the bus.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::time::Duration;

use assistant_proto::event::Event;
use assistant_proto::trace::TraceParent;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;

use super::{Bus, BusError, Undecodable, header};

/// A handler that failed gets its message again after this long.
const REDELIVERY: Duration = Duration::from_secs(2);
/// How often JetStream is told that a handler is still at it; well below its acknowledgement wait of 30 s.
const PROGRESS: Duration = Duration::from_secs(10);

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

    /// Answers the sender's inbox (core subscriptions only).
    ///
    /// # Errors
    /// [`BusError::NoReply`] when the sender asked for no answer.
    pub async fn reply(&self, answer: &(impl Serialize + Sync)) -> Result<(), BusError> {
        let (client, subject) = self.reply.as_ref().ok_or(BusError::NoReply)?;
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
                    let received = Received {
                        event,
                        id: header(message.headers.as_ref(), "ce-id").unwrap_or_default().to_owned(),
                        parent: header(message.headers.as_ref(), "traceparent").and_then(|text| text.parse().ok()),
                        deliveries: 0,
                        reply: message.reply.map(|subject| (bus.client.clone(), subject)),
                    };
                    handler(received).await;
                }
                Err(error) => undecodable.count(&message.subject, &error),
            }
        }
    }

    /// Consumes a durable pull consumer until the bus is closed. Messages of one subject are handled in order, one at a
    /// time; different subjects side by side. `Ok` acknowledges, `Err` asks for redelivery, what cannot be decoded is
    /// terminated, counted and logged. Run it in `Tasks::spawn_restarting`.
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
        self.drive(stream, durable, true, |raw: Raw| {
            let decoded = decode::<E>(&raw.subject, &raw.payload);
            async move {
                match decoded {
                    Ok(event) => {
                        let received =
                            Received { event, id: raw.id, parent: raw.parent, deliveries: raw.deliveries, reply: None };
                        match handler(received).await {
                            Ok(()) => Outcome::Done,
                            Err(error) => {
                                tracing::warn!(
                                    subject = raw.subject,
                                    error = format!("{error:#}"),
                                    "a message will be handled again"
                                );
                                Outcome::Again
                            }
                        }
                    }
                    Err(error) => Outcome::Undecodable(error),
                }
            }
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
        self.drive(stream, durable, false, |raw: Raw| async move {
            let subject = raw.subject.clone();
            match handler(raw).await {
                Ok(()) => Outcome::Done,
                Err(error) => {
                    tracing::warn!(subject, error = format!("{error:#}"), "a message will be handled again");
                    Outcome::Again
                }
            }
        })
        .await
    }

    async fn drive<H, F>(&self, stream: &str, durable: &str, by_subject: bool, handler: H) -> anyhow::Result<()>
    where
        H: Fn(Raw) -> F + Send + Sync,
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
        // Bounded by the consumer's max_ack_pending: the server sends no more than that.
        let mut queued: HashMap<String, VecDeque<async_nats::jetstream::Message>> = HashMap::new();
        let mut running = FuturesUnordered::new();
        let run = |message: async_nats::jetstream::Message, key: String| {
            let handler = &handler;
            let undecodable = &undecodable;
            async move {
                handle(message, handler, undecodable).await;
                key
            }
        };
        let mut open = true;
        loop {
            tokio::select! {
                message = messages.next(), if open => match message {
                    Some(Ok(message)) => {
                        let key = if by_subject { message.subject.to_string() } else { String::new() };
                        match queued.get_mut(&key) {
                            Some(queue) => queue.push_back(message),
                            None => {
                                queued.insert(key.clone(), VecDeque::new());
                                running.push(run(message, key));
                            }
                        }
                    }
                    Some(Err(error)) => anyhow::bail!("consumer {durable} of stream {stream}: {error}"),
                    None => anyhow::bail!("consumer {durable} of stream {stream} ended"),
                },
                Some(key) = running.next() => {
                    match queued.get_mut(&key).and_then(VecDeque::pop_front) {
                        Some(message) if open => running.push(run(message, key)),
                        _ => {
                            queued.remove(&key);
                        }
                    }
                    if !open && running.is_empty() {
                        return Ok(());
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

async fn handle<H, F>(message: async_nats::jetstream::Message, handler: &H, undecodable: &Undecodable)
where
    H: Fn(Raw) -> F,
    F: Future<Output = Outcome>,
{
    let (stream_sequence, deliveries) =
        message.info().map_or((0, 1), |info| (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)));
    let raw = Raw {
        subject: message.subject.to_string(),
        type_: header(message.headers.as_ref(), "ce-type").unwrap_or_default().to_owned(),
        id: header(message.headers.as_ref(), "ce-id").unwrap_or_default().to_owned(),
        source: header(message.headers.as_ref(), "ce-source").unwrap_or_default().to_owned(),
        parent: header(message.headers.as_ref(), "traceparent").and_then(|text| text.parse().ok()),
        payload: message.payload.clone(),
        stream_sequence,
        deliveries,
    };
    let work = handler(raw);
    tokio::pin!(work);
    let mut progress = tokio::time::interval(PROGRESS);
    progress.tick().await;
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            _ = progress.tick() => {
                if let Err(error) = message.ack_with(AckKind::Progress).await {
                    tracing::debug!(%error, "progress was not acknowledged");
                }
            }
        }
    };
    let kind = match outcome {
        Outcome::Done => AckKind::Ack,
        Outcome::Again => AckKind::Nak(Some(REDELIVERY)),
        Outcome::Undecodable(error) => {
            undecodable.count(&message.subject, &error);
            AckKind::Term
        }
    };
    // A lost acknowledgement means redelivery; handlers are idempotent.
    if let Err(error) = message.ack_with(kind).await {
        tracing::warn!(subject = %message.subject, %error, "a message was not acknowledged");
    }
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
mod tests {
    use assistant_proto::event::FloorChecked;

    use super::*;

    #[test]
    fn the_subject_must_fit_the_value() {
        let body = br#"{"passed":1,"failed":0,"checked_at":""}"#;
        assert!(decode::<FloorChecked>("floor.checked.stack", body).is_ok());
        assert!(decode::<FloorChecked>("floor.checked.tasks", body).is_err());
        assert!(decode::<FloorChecked>("floor.checked.stack", b"{}").is_err());
    }
}
