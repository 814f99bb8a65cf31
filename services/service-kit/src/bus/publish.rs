//! The sending half of the bus.

use std::time::Duration;

use assistant_proto::event::{Event, EventId};
use assistant_proto::trace::TraceParent;
use async_nats::connection::State;
use futures::StreamExt;
use futures::future::join_all;
use tokio::sync::mpsc;

use super::{Bus, BusError, Committed, Connected, Inner, Outgoing};

/// Events sent before their acknowledgements are awaited: enough to hide the round trip, few enough to send again.
const BATCH: usize = 256;
/// How long JetStream may take to acknowledge a batch.
const ACK_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const SLOWEST_RETRY: Duration = Duration::from_secs(5);

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
                tokio::time::timeout(deadline, bus.publish(outgoing)).await.map_err(|_| BusError::TimedOut(deadline))?
            }
        }
    }

    /// Publishes with a reply inbox and collects JSON answers until `enough` says so or the deadline passes; returns
    /// what came. JetStream's own acknowledgement is not among them.
    ///
    /// # Errors
    /// When the message cannot be sent.
    pub async fn gather<E: Event>(
        &self,
        event: &E,
        id: EventId,
        parent: Option<TraceParent>,
        deadline: Duration,
        mut enough: impl FnMut(&[serde_json::Value]) -> bool + Send,
    ) -> Result<Vec<serde_json::Value>, BusError> {
        let outgoing = self.outgoing(event, &id, parent)?;
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
        let mut collected: Vec<serde_json::Value> = Vec::new();
        let collect = async {
            while let Some(message) = answers.next().await {
                match serde_json::from_slice::<serde_json::Value>(&message.payload) {
                    Ok(value) if value.get("stream").is_some() => {}
                    Ok(value) => collected.push(value),
                    Err(error) => tracing::warn!(%error, "an answer is not JSON"),
                }
                if enough(&collected) {
                    break;
                }
            }
        };
        // A passed deadline is an answer too: the caller sees who is missing.
        if tokio::time::timeout(deadline, collect).await.is_err() {
            tracing::debug!(subject = event.subject(), "not everybody answered");
        }
        Ok(collected)
    }

    pub(super) async fn publish_queue(&self, mut receiver: mpsc::Receiver<Outgoing>) -> anyhow::Result<()> {
        let bus = self.connected()?;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                // Cancel-safe: recv_many takes nothing when it is dropped.
                taken = receiver.recv_many(&mut batch, BATCH) => if taken == 0 { return Ok(()) },
                () = bus.finished.cancelled() => return Ok(()),
            }
            let mut delay = FIRST_RETRY;
            while !batch.is_empty() {
                let before = batch.len();
                batch = bus.publish_batch(batch).await;
                let sent = before.saturating_sub(batch.len());
                bus.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(sent));
                if batch.is_empty() {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(delay.mul_f64(rand::random_range(0.5..1.5))) => {}
                    () = bus.finished.cancelled() => return Ok(()),
                }
                delay = delay.saturating_mul(2).min(SLOWEST_RETRY);
            }
        }
    }
}

impl Connected {
    async fn publish(&self, outgoing: Outgoing) -> Result<Committed, BusError> {
        if self.client.connection_state() != State::Connected {
            return Err(BusError::Disconnected);
        }
        let refused = |error: async_nats::jetstream::context::PublishError| BusError::Refused(error.to_string());
        let ack = self
            .jetstream
            .publish_with_headers(outgoing.subject, outgoing.headers, outgoing.payload)
            .await
            .map_err(refused)?
            .await
            .map_err(refused)?;
        Ok(Committed { sequence: ack.sequence, duplicate: ack.duplicate })
    }

    /// Returns what was not acknowledged.
    async fn publish_batch(&self, batch: Vec<Outgoing>) -> Vec<Outgoing> {
        if self.client.connection_state() != State::Connected {
            return batch;
        }
        let results = join_all(batch.iter().map(|outgoing| {
            let outgoing = outgoing.clone();
            async move {
                match tokio::time::timeout(ACK_DEADLINE, self.publish(outgoing)).await {
                    Ok(Ok(_)) => true,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "an event waits for NATS");
                        false
                    }
                    Err(_) => false,
                }
            }
        }))
        .await;
        batch.into_iter().zip(results).filter_map(|(outgoing, stored)| (!stored).then_some(outgoing)).collect()
    }
}
