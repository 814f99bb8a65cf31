//! The sending half of the bus.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use assistant_proto::event::{Event, EventId};
use assistant_proto::trace::TraceParent;
use async_nats::StatusCode;
use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Bus, BusError, Committed, Connected, Inner, Outgoing, WANTS_ANSWER};

/// Events under way at a time: enough to hide the round trip, few enough to send again.
const BATCH: usize = 256;
/// Events that wait to be sent again. When there are more, new ones stay in the queue.
const MOST_WAITING: usize = 4096;
/// How often a lost connection is looked at.
const LOOK: Duration = Duration::from_millis(100);

impl Bus {
    /// Publishes now and waits for JetStream's acknowledgement. For what must be stored before something else happens.
    ///
    /// # Errors
    /// Nothing is known to be stored then; the same id makes a retry safe.
    pub async fn commit<E: Event>(
        &self,
        event: &E,
        id: EventId,
        parent: Option<TraceParent>,
        deadline: Duration,
    ) -> Result<Committed, BusError> {
        let outgoing = self.outgoing(event, &id, parent)?;
        match &*self.inner {
            Inner::Detached(_) => {
                self.emit(event, id, parent);
                Ok(Committed { sequence: 0, duplicate: false })
            }
            Inner::Connected(bus) => {
                let stored = tokio::time::timeout(deadline, bus.publish(outgoing))
                    .await
                    .map_err(|_| BusError::TimedOut(deadline))??;
                // What is not stored is committed again, or never said.
                if !stored.duplicate {
                    self.metrics.said(event);
                }
                Ok(stored)
            }
        }
    }

    /// Publishes with a reply inbox and collects JSON answers until `enough` says so and JetStream has stored the message,
    /// or the deadline passes; returns what came. JetStream's own acknowledgement is not among them.
    ///
    /// # Errors
    /// When the message cannot be sent, or NATS says that nobody keeps it.
    pub async fn gather<E: Event>(
        &self,
        event: &E,
        id: EventId,
        parent: Option<TraceParent>,
        deadline: Duration,
        mut enough: impl FnMut(&[serde_json::Value]) -> bool + Send,
    ) -> Result<Vec<serde_json::Value>, BusError> {
        let mut outgoing = self.outgoing(event, &id, parent)?;
        // JetStream's acknowledgements have a reply inbox too: without the header nobody but JetStream answers.
        outgoing.headers.insert(WANTS_ANSWER, "yes");
        let bus = self.connected()?;
        if bus.client.connection_state() != State::Connected {
            return Err(BusError::Disconnected);
        }
        let inbox = bus.client.new_inbox();
        let mut answers =
            bus.client.subscribe(inbox.clone()).await.map_err(|error| BusError::Refused(error.to_string()))?;
        bus.client
            .publish_with_reply_and_headers(outgoing.subject, inbox, outgoing.headers, outgoing.payload)
            .await
            .map_err(|error| BusError::Refused(error.to_string()))?;
        self.metrics.said(event);
        let mut collected: Vec<serde_json::Value> = Vec::new();
        let collect = async {
            let mut stored = false;
            while let Some(message) = answers.next().await {
                if message.status == Some(StatusCode::NO_RESPONDERS) {
                    return Err(BusError::Refused("no stream and no service takes this subject".to_owned()));
                }
                match answer(&message.payload) {
                    Ok(Answer::Stored) => stored = true,
                    Ok(Answer::Refused(why)) => return Err(BusError::Refused(why)),
                    Ok(Answer::Service(value)) => collected.push(value),
                    Err(error) => tracing::warn!(%error, "an answer is not JSON"),
                }
                if stored && enough(&collected) {
                    break;
                }
            }
            Ok(())
        };
        match tokio::time::timeout(deadline, collect).await {
            Ok(outcome) => outcome?,
            // A passed deadline is an answer too: the caller sees who is missing.
            Err(_) => tracing::debug!(subject = event.subject(), "not everybody answered"),
        }
        Ok(collected)
    }

    /// Sends what is queued until the bus is finished. An event that NATS does not take waits aside and is sent again;
    /// it holds up no other. While NATS is away nothing is given up; what it refuses again and again is lost in the end,
    /// counted and said.
    pub(super) async fn publish_queue(&self, mut receiver: mpsc::Receiver<Outgoing>) -> anyhow::Result<()> {
        let bus = self.connected()?;
        let mut under_way = FuturesUnordered::new();
        let mut waiting = Waiting::default();
        // When the newest acknowledged event was sent.
        let mut answered: Option<Instant> = None;
        loop {
            let connected = bus.client.connection_state() == State::Connected;
            let room = connected && under_way.len() < BATCH;
            // Cancel-safe: every arm is.
            tokio::select! {
                biased;
                () = bus.finished.cancelled() => return Ok(()),
                Some(sent) = under_way.next(), if !under_way.is_empty() => {
                    let Sent { event, at, outcome } = sent;
                    match outcome {
                        Ok(_) => {
                            answered = answered.max(Some(at));
                            bus.done();
                        }
                        Err(error) => {
                            // Silence about one event while later ones were acknowledged is how a server refuses what
                            // this user may not say.
                            let silent = matches!(error, BusError::TimedOut(_)) && answered > Some(at);
                            let refused = silent || matches!(error, BusError::Refused(_));
                            bus.failed(event, &error, refused, &mut waiting);
                        }
                    }
                }
                () = until(waiting.due()), if room && waiting.due().is_some() => {
                    if let Some(event) = waiting.take() {
                        under_way.push(bus.send(event));
                    }
                }
                taken = receiver.recv(), if room && waiting.len() < MOST_WAITING => match taken {
                    Some(outgoing) => under_way.push(bus.send(Attempted { outgoing, failures: 0, refusals: 0 })),
                    None => return Ok(()),
                },
                () = tokio::time::sleep(LOOK), if !connected => {}
            }
        }
    }
}

/// An event on its way.
#[derive(Debug)]
struct Attempted {
    outgoing: Outgoing,
    failures: u32,
    refusals: u32,
}

#[derive(Debug)]
struct Sent {
    event: Attempted,
    at: Instant,
    outcome: Result<Committed, BusError>,
}

/// Events that are sent again, by when and in the order in which they failed.
#[derive(Debug, Default)]
struct Waiting {
    events: BTreeMap<(Instant, u64), Attempted>,
    count: u64,
}

impl Waiting {
    fn len(&self) -> usize {
        self.events.len()
    }

    fn due(&self) -> Option<Instant> {
        self.events.first_key_value().map(|((due, _), _)| *due)
    }

    fn add(&mut self, due: Instant, event: Attempted) {
        self.count = self.count.wrapping_add(1);
        self.events.insert((due, self.count), event);
    }

    fn take(&mut self) -> Option<Attempted> {
        self.events.pop_first().map(|(_, event)| event)
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What came to the inbox of a [`Bus::gather`].
enum Answer {
    /// JetStream has the message.
    Stored,
    /// JetStream does not keep it, and why.
    Refused(String),
    /// A service answered.
    Service(serde_json::Value),
}

fn answer(payload: &[u8]) -> Result<Answer, serde_json::Error> {
    let value: serde_json::Value = serde_json::from_slice(payload)?;
    // An error comes with or without the name of the stream, so it is looked for first. (NATS: JSPubAckResponse.)
    if let Some(error) = value.get("error").filter(|error| error.get("code").is_some()) {
        let why = error.get("description").and_then(serde_json::Value::as_str).unwrap_or("no reason given");
        return Ok(Answer::Refused(why.to_owned()));
    }
    Ok(if value.get("stream").is_some() { Answer::Stored } else { Answer::Service(value) })
}

impl Connected {
    pub(super) async fn publish(&self, outgoing: Outgoing) -> Result<Committed, BusError> {
        if self.client.connection_state() != State::Connected {
            return Err(BusError::Disconnected);
        }
        let failed = |error: PublishError| match error.kind() {
            PublishErrorKind::TimedOut => BusError::TimedOut(self.pace.acknowledged),
            PublishErrorKind::BrokenPipe => BusError::Disconnected,
            _ => BusError::Refused(error.to_string()),
        };
        let ack = self
            .jetstream
            .publish_with_headers(outgoing.subject, outgoing.headers, outgoing.payload)
            .await
            .map_err(failed)?
            .await
            .map_err(failed)?;
        Ok(Committed { sequence: ack.sequence, duplicate: ack.duplicate })
    }

    async fn send(&self, event: Attempted) -> Sent {
        let at = Instant::now();
        let patience = self.pace.acknowledged;
        let outcome = match tokio::time::timeout(patience, self.publish(event.outgoing.clone())).await {
            Ok(outcome) => outcome,
            Err(_) => Err(BusError::TimedOut(patience)),
        };
        Sent { event, at, outcome }
    }

    /// Puts an event aside, or gives it up.
    fn failed(&self, mut event: Attempted, error: &BusError, refused: bool, waiting: &mut Waiting) {
        let subject = event.outgoing.subject.as_str();
        let (count, slowest) = if refused {
            event.refusals = event.refusals.saturating_add(1);
            (event.refusals, self.pace.slowest_refused)
        } else {
            event.failures = event.failures.saturating_add(1);
            (event.failures, self.pace.slowest_retry)
        };
        if event.refusals >= self.pace.most_refusals {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let lost = self.lost();
            tracing::error!(subject, %error, refusals = event.refusals, lost, "NATS refuses an event for ever: it is lost");
            self.done();
            return;
        }
        if count == 1 {
            tracing::warn!(subject, %error, "an event waits for NATS");
        }
        self.retries.fetch_add(1, Ordering::Relaxed);
        let doublings = count.saturating_sub(1).min(16);
        let delay = self.pace.first_retry.saturating_mul(1 << doublings).min(slowest);
        waiting.add(Instant::now() + delay.mul_f64(rand::random_range(0.5..1.5)), event);
    }

    fn done(&self) {
        self.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

    use std::sync::{Arc, Mutex};

    use assistant_proto::event::TurnStarted;
    use assistant_proto::name::TurnId;

    use super::super::live::{Live, PATIENCE, checked, eventually};
    use super::*;
    use crate::bus::Received;
    use crate::task::{OnEnd, Tasks};

    fn started() -> TurnStarted {
        TurnStarted {
            tier: "tasks".parse().unwrap(),
            turn: TurnId::generate(),
            traceparent: crate::trace::fresh(),
            channel: "terminal".to_owned(),
            conversation: "c".to_owned(),
            started_at: String::new(),
        }
    }

    #[tokio::test]
    async fn what_is_refused_for_ever_holds_up_nothing_and_is_given_up() {
        let server = Live::start().await;
        server.stream("EVENTS", "floor.>").await;
        let (bus, tasks) = (server.bus().await, Tasks::default());
        bus.start(&tasks);
        // No stream has this subject.
        bus.emit(&started(), EventId::unique(), None);
        for n in 1..=3 {
            bus.emit(&checked(), EventId::unique(), None);
            eventually("stored behind the refused one", async || server.stored("EVENTS").await == n).await;
        }
        eventually("given up", async || bus.lost() == 1).await;
        bus.flush(PATIENCE).await;
        tasks.finished().await;
        assert_eq!(bus.lost(), 1, "and nothing else");
    }

    #[tokio::test]
    async fn what_only_waits_for_its_stream_is_stored_in_the_end() {
        let server = Live::start().await;
        let (bus, tasks) = (server.bus().await, Tasks::default());
        bus.start(&tasks);
        let ids: Vec<EventId> = (0..1000).map(|_| EventId::unique()).collect();
        for id in &ids {
            bus.emit(&checked(), id.clone(), None);
        }
        server.stream("EVENTS", "floor.>").await;
        bus.flush(PATIENCE).await;
        tasks.finished().await;
        assert_eq!((server.stored("EVENTS").await, bus.lost()), (1000, 0));
    }

    #[tokio::test]
    async fn nothing_is_given_up_while_the_server_is_away() {
        let mut server = Live::start().await;
        server.stream("EVENTS", "floor.>").await;
        let (bus, tasks) = (server.bus().await, Tasks::default());
        bus.start(&tasks);
        server.stop();
        eventually("noticed", async || !bus.is_connected()).await;
        bus.emit(&checked(), EventId::unique(), None);
        // Longer than all the refusals of the tests' pace together.
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.start_again().await;
        bus.flush(PATIENCE).await;
        tasks.finished().await;
        assert_eq!((server.stored("EVENTS").await, bus.lost()), (1, 0));
    }

    #[tokio::test]
    async fn answers_are_gathered_and_a_refusal_is_an_error() {
        let server = Live::start().await;
        let bus = server.bus().await;
        let gather = |event: TurnStarted| {
            let bus = bus.clone();
            let soon = Duration::from_secs(1);
            async move { bus.gather(&event, EventId::unique(), None, soon, |answers| !answers.is_empty()).await }
        };
        let nobody = gather(started()).await;
        assert!(matches!(nobody, Err(BusError::Refused(_))), "{nobody:?}");

        server.stream("EVENTS", "turn.>").await;
        let tasks = Tasks::default();
        let (listener, replied) = (bus.clone(), Arc::new(Mutex::new(Vec::new())));
        let replies = Arc::clone(&replied);
        tasks.spawn("listener", OnEnd::Expected, async move {
            let handler = |received: Received<TurnStarted>| {
                let replies = Arc::clone(&replies);
                async move {
                    let answered = received.reply(&serde_json::json!({ "service": "test" })).await.is_ok();
                    replies.lock().unwrap().push((received.wants_answer(), answered));
                }
            };
            listener.subscribe(handler).await
        });
        eventually("answered", async || {
            matches!(gather(started()).await, Ok(answers) if answers[..] == [serde_json::json!({ "service": "test" })])
        })
        .await;
        let before = replied.lock().unwrap().len();
        assert!(replied.lock().unwrap().iter().all(|reply| *reply == (true, true)));
        // Nobody but JetStream answers an event that asks for nothing.
        bus.commit(&started(), EventId::unique(), None, PATIENCE).await.unwrap();
        eventually("heard", async || replied.lock().unwrap().len() > before).await;
        assert_eq!(replied.lock().unwrap().last(), Some(&(false, false)));

        // A stream that takes nothing more: the services answer, but nobody keeps it.
        server.narrow("EVENTS", "turn.>").await;
        let refused = gather(started()).await;
        assert!(matches!(&refused, Err(BusError::Refused(why)) if why.contains("maximum")), "{refused:?}");
        bus.close();
        tasks.finished().await;
    }

    #[test]
    fn what_jetstream_answers_is_told_from_what_services_answer() {
        let of = |text: &str| answer(text.as_bytes()).unwrap();
        assert!(matches!(of(r#"{"stream":"EVENTS","seq":3}"#), Answer::Stored));
        for text in [
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"EVENTS","seq":0}"#,
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}"#,
        ] {
            assert!(matches!(of(text), Answer::Refused(why) if why == "maximum bytes exceeded"));
        }
        assert!(matches!(of(r#"{"service":"x","error":"none"}"#), Answer::Service(_)));
        assert!(answer(b"").is_err());
    }
}
