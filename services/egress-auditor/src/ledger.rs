//! What this service saw itself: into the audit store first, then on the bus and into the trace.
//!
//! The order matters. The record is on disk before anybody hears of it; whoever hears of it can find it. The event's id
//! is chosen before the store is asked, so a crash in between means that it is published later, not twice and not never:
//! what was stored stays in the outbox until it has come back from the stream.

use std::time::SystemTime;

use assistant_proto::event::{Attachment, EventId};
use assistant_proto::trace::TraceParent;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span, SpanKind, Status, Tracer};
use service_kit::bus::Bus;

use crate::record::{Entry, Own};
use crate::store::{Closed, Reader, Store, Stored};

/// What is published again at a start; more than that waits for the next one.
const MOST_REPUBLISHED: u32 = 10_000;

/// A span whose times are those of what was seen, not of when it was understood.
#[derive(Debug, Clone)]
pub struct SpanDraft {
    /// For example `squid.tunnel`.
    pub name: &'static str,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// Whether it is shown as failed, and why.
    pub error: Option<String>,
    /// What is known about it.
    pub attributes: Vec<(&'static str, String)>,
}

/// How sure the attachment to a turn is, as every span says it.
#[must_use]
pub fn attached(attachment: Attachment) -> (&'static str, String) {
    ("attachment", attachment.as_str().to_owned())
}

/// Something this service saw.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Deterministic where it can be seen twice.
    pub id: EventId,
    /// The event.
    pub event: Own,
    /// What its span hangs from.
    pub parent: Option<TraceParent>,
    /// Its span.
    pub span: SpanDraft,
}

/// The trace a sighting belongs to: its parent's, or one of its own that its id determines, so that the same line read
/// twice does not start two traces.
#[must_use]
pub fn trace_of(parent: Option<TraceParent>, id: &EventId) -> TraceParent {
    parent.unwrap_or_else(|| {
        let mut own = TraceParent { trace: [1; 16], span: [1; 8] };
        // An id is 32 hex digits, so this cannot fail; if it did, a constant trace would be wrong but valid.
        if hex::decode_to_slice(id.as_str(), &mut own.trace).is_err() {
            tracing::error!("an event id is not 32 hex digits; this is a bug");
        }
        for (to, from) in own.span.iter_mut().zip(own.trace.iter().rev()) {
            *to = *from | 1;
        }
        own
    })
}

/// Records and publishes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    store: Store,
    bus: Bus,
}

impl Ledger {
    /// Over a store and a bus.
    #[must_use]
    pub fn new(store: Store, bus: Bus) -> Self {
        Self { store, bus }
    }

    /// Stores the sightings, then publishes those that were new. Waits as long as the disk refuses.
    ///
    /// # Errors
    /// [`Closed`] when the service is stopping: nothing of it may count as recorded.
    pub async fn record(&self, sightings: Vec<Sighting>) -> Result<(), Closed> {
        let mut entries = Vec::with_capacity(sightings.len());
        let mut kept = Vec::with_capacity(sightings.len());
        for sighting in sightings {
            match sighting.event.entry(&sighting.id) {
                Ok(entry) => {
                    entries.push(entry);
                    kept.push(sighting);
                }
                Err(error) => tracing::error!(%error, "an event cannot be written as JSON; this is a bug"),
            }
        }
        let stored = self.store.append(entries).await?;
        for (sighting, stored) in kept.into_iter().zip(stored) {
            if matches!(stored, Stored::New { .. }) {
                let parent = trace_of(sighting.parent, &sighting.id);
                draw(&sighting.span, parent);
                self.publish(&sighting.event, sighting.id, Some(parent));
            }
        }
        Ok(())
    }

    /// Stores that something is missing. Waits as long as the disk refuses; the same id is stored once.
    ///
    /// # Errors
    /// [`Closed`] when the service is stopping: it may not count as recorded.
    pub async fn record_incomplete(&self, entry: Entry) -> Result<(), Closed> {
        self.store.append(vec![entry]).await.map(drop)
    }

    /// Publishes again what was stored up to `through`, the head at the start, and never came back: what is stored after
    /// it is being published already. The same ids: whoever has an event already sees a replay.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn republish(&self, reader: &Reader, through: u64) -> anyhow::Result<()> {
        let waiting = reader.unpublished(through, MOST_REPUBLISHED).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        tracing::info!(count = waiting.len(), "publishing again what was stored before the last end");
        for record in waiting {
            let event = Own::from_stored(&record.entry.kind, &record.entry.payload);
            match (event, record.entry.event_id.parse()) {
                (Some(event), Ok(id)) => self.publish(&event, id, None),
                _ => tracing::error!(sequence = record.sequence, "a record of the outbox cannot be published"),
            }
        }
        Ok(())
    }

    fn publish(&self, event: &Own, id: EventId, parent: Option<TraceParent>) {
        match event {
            Own::Denied(event) => self.bus.emit(event, id, parent),
            Own::Allowed(event) => self.bus.emit(event, id, parent),
            Own::Breached(event) => self.bus.emit(event, id, parent),
        }
    }
}

/// Made with the tracer rather than as a `tracing` span: those begin and end when code runs.
fn draw(draft: &SpanDraft, parent: TraceParent) {
    let tracer = opentelemetry::global::tracer("egress-auditor");
    let attributes = draft.attributes.iter().map(|(name, value)| KeyValue::new(*name, value.clone()));
    let builder = tracer
        .span_builder(draft.name)
        .with_kind(SpanKind::Internal)
        .with_start_time(draft.start)
        .with_attributes(attributes);
    let mut span = tracer.build_with_context(builder, &service_kit::trace::context(parent));
    if let Some(error) = &draft.error {
        span.set_status(Status::error(error.clone()));
    }
    span.end_with_timestamp(draft.end.max(draft.start));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_of_its_own_is_determined_by_the_id() {
        let id = EventId::derive(&[b"x"]);
        let own = trace_of(None, &id);
        assert_eq!(own.trace_id(), id.as_str());
        assert_eq!(own, trace_of(None, &id));
        assert_ne!(own.span, [0; 8]);
        let parent = TraceParent { trace: [2; 16], span: [3; 8] };
        assert_eq!(trace_of(Some(parent), &id), parent);
    }
}
