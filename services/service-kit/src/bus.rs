//! NATS. A service starts without it, queues what it has to say, and catches up when the server appears.
//!
//! Owned here: connection, CloudEvents headers, durable publication, subscriptions and consumers with supervision.
//! Not here: what an event means. The bus is transport, not a root of trust.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assistant_proto::event::{Event, EventId};
use assistant_proto::trace::TraceParent;
use async_nats::HeaderMap;
use async_nats::connection::State;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::files::{self, FileError};
use crate::metrics::Metrics;
use crate::task::{OnEnd, Tasks};

mod consume;
mod figures;
#[cfg(test)]
pub(crate) mod live;
mod publish;

pub use consume::{Raw, Received};

/// Events that may wait for the bus. At a few hundred bytes each this is tens of megabytes: hours of normal work, or
/// half a minute of the worst flood the doors let through, after which new events are counted as lost and logged.
const QUEUE: usize = 65_536;

/// Where answers go: to the inbox of the one service that asks. The sender of a message chooses its reply subject, and a
/// service that would publish to any could be made to speak in its own name wherever it may publish.
const ASKER_INBOX: &str = "_INBOX_channel-bridge.";

/// Header of a message whose sender collects the answers of services.
const WANTS_ANSWER: &str = "assistant-wants-answer";

/// Why the bus did not take or give something.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No connection.
    #[error("NATS does not answer")]
    Disconnected,
    /// No answer in time.
    #[error("no answer from NATS within {0:?}")]
    TimedOut(Duration),
    /// The server said no.
    #[error("NATS refused it: {0}")]
    Refused(String),
    /// The value could not be written as JSON.
    #[error("the event cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// There is nobody to answer.
    #[error("the message carries no reply subject")]
    NoReply,
    /// The one who asks wants the answer elsewhere.
    #[error("the message wants its answer outside of channel-bridge's inbox; it gets none")]
    ForeignReply,
    /// The nkey seed could not be read.
    #[error("the service's nkey cannot be used")]
    Seed(#[source] FileError),
    /// The connection options could not be used.
    #[error("the connection to NATS cannot be set up")]
    Options(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Acknowledgement of JetStream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Sequence in the stream.
    pub sequence: u64,
    /// The stream knew the id already: nothing was stored a second time.
    pub duplicate: bool,
}

/// What a stream holds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Sequence of the oldest message it has; one past the last where it is empty.
    pub first: u64,
    /// Sequence of the newest message it ever had.
    pub last: u64,
}

/// How patient the bus is.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// First pause before an event is sent again; doubles.
    first_retry: Duration,
    /// Longest pause while NATS is away or slow.
    slowest_retry: Duration,
    /// Longest pause for what NATS refuses.
    slowest_refused: Duration,
    /// So often NATS may refuse an event before it is given up.
    most_refusals: u32,
    /// How long JetStream may take to acknowledge.
    acknowledged: Duration,
    /// How often JetStream is told that a message is still being worked on; well below its acknowledgement wait.
    progress: Duration,
    /// A handler that failed gets its message again after this long.
    redelivery: Duration,
    /// What could not be set aside is tried again after this long.
    set_aside_again: Duration,
}

impl Pace {
    /// With these pauses an event is given up some six minutes after the first refusal: a stream that is missing because
    /// tier-supervisor is still at work is there long before.
    const SERVICE: Self = Self {
        first_retry: Duration::from_millis(100),
        slowest_retry: Duration::from_secs(5),
        slowest_refused: Duration::from_secs(30),
        most_refusals: 20,
        acknowledged: Duration::from_secs(5),
        progress: Duration::from_secs(10),
        redelivery: Duration::from_secs(2),
        set_aside_again: Duration::from_secs(30),
    };
}

/// The service's connection to NATS. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    inner: Arc<Inner>,
    metrics: Metrics,
}

#[derive(Debug)]
enum Inner {
    Connected(Box<Connected>),
    Detached(Mutex<Vec<(String, serde_json::Value)>>),
}

#[derive(Debug)]
struct Connected {
    service: &'static str,
    client: async_nats::Client,
    jetstream: async_nats::jetstream::Context,
    queue: mpsc::Sender<Outgoing>,
    receiver: Mutex<Option<mpsc::Receiver<Outgoing>>>,
    /// Events taken and not yet acknowledged by JetStream.
    waiting: watch::Sender<usize>,
    /// Lost because the queue was full.
    overflowed: AtomicU64,
    /// Lost because NATS refused them again and again.
    refused: AtomicU64,
    retries: AtomicU64,
    readings: figures::Readings,
    closed: CancellationToken,
    finished: CancellationToken,
    pace: Pace,
}

/// An encoded message.
#[derive(Debug, Clone)]
struct Outgoing {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Bus {
    /// Sets up the connection and returns at once; it is made, and made again, in the background.
    ///
    /// # Errors
    /// When the seed or the CA file cannot be used. A server that does not answer is not an error.
    pub async fn connect(service: &'static str, config: &assistant_proto::config::Bus) -> Result<Self, BusError> {
        let seed = files::read_secret(&config.nkey_seed_file).map_err(BusError::Seed)?;
        let client = async_nats::ConnectOptions::with_nkey(seed.to_string())
            .name(service)
            .add_root_certificates(config.ca_file.clone())
            .require_tls(true)
            .custom_inbox_prefix(config.inbox_prefix.clone())
            .connection_timeout(Duration::from_secs(5))
            .ping_interval(Duration::from_secs(10))
            .retry_on_initial_connect()
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(100_u64.saturating_mul(1 << attempts.min(5)).min(2000))
            })
            .event_callback(move |event| async move {
                match event {
                    async_nats::Event::Connected => tracing::info!("connected to NATS"),
                    other => tracing::warn!(event = %other, "NATS"),
                }
            })
            .connect(config.url.clone())
            .await
            .map_err(|error| BusError::Options(Box::new(error)))?;
        Ok(Self::over(service, client, Pace::SERVICE))
    }

    fn over(service: &'static str, client: async_nats::Client, pace: Pace) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        Self {
            inner: Arc::new(Inner::Connected(Box::new(Connected {
                service,
                jetstream: async_nats::jetstream::new(client.clone()),
                client,
                queue,
                receiver: Mutex::new(Some(receiver)),
                waiting: watch::channel(0).0,
                overflowed: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                retries: AtomicU64::new(0),
                readings: figures::Readings::default(),
                closed: CancellationToken::new(),
                finished: CancellationToken::new(),
                pace,
            }))),
            metrics: Metrics::default(),
        }
    }

    /// The same bus, with what it says counted. The host does this.
    #[must_use]
    pub fn counted(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// A bus without a server, for tests of one service: what is emitted can be read back.
    #[must_use]
    pub fn detached() -> Self {
        Self { inner: Arc::new(Inner::Detached(Mutex::default())), metrics: Metrics::default() }
    }

    /// What was emitted on a detached bus, as (subject, body).
    #[must_use]
    pub fn emitted(&self) -> Vec<(String, serde_json::Value)> {
        match &*self.inner {
            Inner::Detached(emitted) => emitted.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Inner::Connected(_) => Vec::new(),
        }
    }

    /// Whether the server answers at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &*self.inner {
            Inner::Connected(bus) => bus.is_connected(),
            Inner::Detached(_) => true,
        }
    }

    /// The client below, for what only tier-supervisor does (streams and consumers). None when detached.
    #[must_use]
    pub fn jetstream(&self) -> Option<async_nats::jetstream::Context> {
        match &*self.inner {
            Inner::Connected(bus) => Some(bus.jetstream.clone()),
            Inner::Detached(_) => None,
        }
    }

    /// What a stream holds.
    ///
    /// # Errors
    /// When NATS does not answer, or has no such stream.
    pub async fn extent(&self, stream: &str) -> Result<Extent, BusError> {
        let bus = self.connected()?;
        let found = tokio::time::timeout(bus.pace.acknowledged, bus.jetstream.get_stream(stream))
            .await
            .map_err(|_| BusError::TimedOut(bus.pace.acknowledged))?
            .map_err(|error| BusError::Refused(error.to_string()))?;
        let state = &found.cached_info().state;
        Ok(Extent { first: state.first_sequence, last: state.last_sequence })
    }

    /// Events that were lost, because the queue was full or because NATS refused them again and again.
    #[must_use]
    pub fn lost(&self) -> u64 {
        match &*self.inner {
            Inner::Connected(bus) => bus.lost(),
            Inner::Detached(_) => 0,
        }
    }

    /// Spawns the publisher. The host does this.
    pub fn start(&self, tasks: &Tasks) {
        if let Inner::Connected(bus) = &*self.inner
            && let Some(receiver) = bus.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            let this = self.clone();
            tasks.spawn("bus-publisher", OnEnd::Critical, async move { this.publish_queue(receiver).await });
        }
    }

    /// Queues an event for durable publication. Never blocks. When the queue is full the event is counted as lost and
    /// logged as an error.
    pub fn emit<E: Event>(&self, event: &E, id: EventId, parent: Option<TraceParent>) {
        // Also while NATS is away: what happened happened.
        if self.enqueue(event, &id, parent) {
            self.metrics.said(event);
        }
    }

    /// The same for an event that was said before, and counted then.
    pub fn emit_again<E: Event>(&self, event: &E, id: EventId) {
        self.enqueue(event, &id, None);
    }

    /// Events taken that NATS has neither acknowledged nor refused for good.
    #[must_use]
    pub fn waiting(&self) -> usize {
        match &*self.inner {
            Inner::Connected(bus) => *bus.waiting.borrow(),
            Inner::Detached(_) => 0,
        }
    }

    /// Returns whether it was an event at all; one that finds the queue full is lost, and said to be.
    fn enqueue<E: Event>(&self, event: &E, id: &EventId, parent: Option<TraceParent>) -> bool {
        let outgoing = match self.outgoing(event, id, parent) {
            Ok(outgoing) => outgoing,
            Err(error) => {
                tracing::error!(event_type = E::TYPE, %error, "an event was not published");
                return false;
            }
        };
        match &*self.inner {
            Inner::Detached(emitted) => {
                let body = serde_json::from_slice(&outgoing.payload).unwrap_or_default();
                emitted.lock().unwrap_or_else(PoisonError::into_inner).push((outgoing.subject, body));
            }
            Inner::Connected(bus) => {
                bus.waiting.send_modify(|waiting| *waiting = waiting.saturating_add(1));
                if bus.queue.try_send(outgoing).is_err() {
                    bus.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
                    bus.overflowed.fetch_add(1, Ordering::Relaxed);
                    let lost = bus.lost();
                    tracing::error!(event_type = E::TYPE, lost, "the queue for NATS is full: an event is lost");
                }
            }
        }
        true
    }

    /// Ends subscriptions and consumers; what is queued still goes out.
    pub fn close(&self) {
        if let Inner::Connected(bus) = &*self.inner {
            bus.closed.cancel();
        }
    }

    /// Waits until everything queued is acknowledged, at most `deadline`, then ends the publisher.
    pub async fn flush(&self, deadline: Duration) {
        if let Inner::Connected(bus) = &*self.inner {
            let mut waiting = bus.waiting.subscribe();
            let left = match tokio::time::timeout(deadline, waiting.wait_for(|waiting| *waiting == 0)).await {
                Ok(_) => 0,
                Err(_) => *bus.waiting.borrow(),
            };
            if left > 0 {
                tracing::error!(left, "the service ends with events that NATS did not take");
            }
            bus.finished.cancel();
        }
    }

    fn outgoing<E: Event>(&self, event: &E, id: &EventId, parent: Option<TraceParent>) -> Result<Outgoing, BusError> {
        let payload = Bytes::from(serde_json::to_vec(event).map_err(BusError::Encode)?);
        let service = match &*self.inner {
            Inner::Connected(bus) => bus.service,
            Inner::Detached(_) => "detached",
        };
        let mut headers = HeaderMap::new();
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-type", E::TYPE);
        headers.insert("ce-source", format!("/assistant/{service}").as_str());
        headers.insert("ce-id", id.as_str());
        headers.insert("ce-time", clock::now_rfc3339().as_str());
        headers.insert("content-type", "application/json");
        headers.insert("Nats-Msg-Id", id.as_str());
        if let Some(parent) = parent {
            headers.insert("traceparent", parent.to_string().as_str());
        }
        Ok(Outgoing { subject: event.subject(), headers, payload })
    }

    fn connected(&self) -> Result<&Connected, BusError> {
        match &*self.inner {
            Inner::Connected(bus) => Ok(bus),
            Inner::Detached(_) => Err(BusError::Disconnected),
        }
    }
}

impl Connected {
    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn lost(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed).saturating_add(self.refused.load(Ordering::Relaxed))
    }
}

/// Header values of a received message that matter here.
fn header<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    headers.and_then(|headers| headers.get(name)).map(async_nats::HeaderValue::as_str)
}

/// Counts what could not be decoded, by subject, for the log.
#[derive(Debug, Default)]
struct Undecodable(Mutex<HashMap<String, u64>>);

impl Undecodable {
    /// `fate` says what becomes of the message.
    fn count(&self, subject: &str, error: &str, fate: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(subject.to_owned()).or_default();
        *count = count.saturating_add(1);
        tracing::error!(subject, error, count = *count, fate, "a message cannot be decoded");
    }
}
