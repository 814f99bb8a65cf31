//! What this service saw itself: into the audit store first, then on the bus and into the trace.
//!
//! The order matters. The record is on disk before anybody hears of it; whoever hears of it can find it. The event's id
//! is chosen before the store is asked, so a crash in between means that it is published later and not never: what was
//! stored stays in the outbox until it has come back from the stream. What stays there although the bus has nothing more to
//! send and the store has all that the stream has, is published again, at the start and from then on; so it is not twice on
//! the stream either, but where a process ends just after it has sent it again.

use std::time::{Duration, SystemTime};

use assistant_proto::event::{Attachment, EventId};
use assistant_proto::trace::TraceParent;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span, SpanKind, Status, Tracer};
use service_kit::bus::Bus;

use crate::record::{Entry, Own};
use crate::store::{Closed, Reader, Store, Stored};

/// What is published again at a time; the bus has a queue of some times as many.
const MOST_REPUBLISHED: u32 = 10_000;
/// How often the outbox is looked at; more and more seldom while publishing again does not help.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const SLOWEST_LOOK: Duration = Duration::from_secs(30 * 60);
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The stream that own events come back from.
const EVENTS: &str = "EVENTS";

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

    /// Publishes again what does not come back, for ever. Run it in `Tasks::spawn_restarting`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn keep_publishing(self, reader: Reader) -> anyhow::Result<()> {
        let mut pause = LOOK_EVERY;
        loop {
            let found = self.republish(&reader).await?;
            pause = if found == 0 { LOOK_EVERY } else { pause.saturating_mul(2).min(SLOWEST_LOOK) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Publishes again what is stored by now and has not come back once everything else has; returns how much that was. The
    /// same ids: whoever has an event already sees a replay.
    async fn republish(&self, reader: &Reader) -> anyhow::Result<usize> {
        let through = reader.head().borrow().sequence;
        let (mut after, mut found) = (0, 0_usize);
        loop {
            self.settle(reader).await?;
            let lost = reader.unpublished(after, through, MOST_REPUBLISHED).await?;
            let Some(last) = lost.last() else { return Ok(found) };
            (after, found) = (last.sequence, found.saturating_add(lost.len()));
            tracing::info!(count = lost.len(), "publishing again what was stored and has not come back from the bus");
            for record in lost {
                let event = Own::from_stored(&record.entry.kind, &record.entry.payload);
                match (event, record.entry.event_id.parse()) {
                    (Some(event), Ok(id)) => self.publish_again(&event, id),
                    _ => tracing::error!(sequence = record.sequence, "a record of the outbox cannot be published"),
                }
            }
        }
    }

    /// Waits until nothing is on its way: the bus has no event left to send, and what it has sent is in the store.
    async fn settle(&self, reader: &Reader) -> anyhow::Result<()> {
        if self.bus.jetstream().is_none() {
            return Ok(());
        }
        let mut end = None;
        loop {
            match end {
                None if self.bus.waiting() == 0 => end = self.bus.extent(EVENTS).await.ok().map(|extent| extent.last),
                None => {}
                Some(end) if reader.place(EVENTS).await?.unwrap_or(0) >= end => return Ok(()),
                Some(_) => {}
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    fn publish(&self, event: &Own, id: EventId, parent: Option<TraceParent>) {
        match event {
            Own::Denied(event) => self.bus.emit(event, id, parent),
            Own::Allowed(event) => self.bus.emit(event, id, parent),
            Own::Breached(event) => self.bus.emit(event, id, parent),
        }
    }

    fn publish_again(&self, event: &Own, id: EventId) {
        match event {
            Own::Denied(event) => self.bus.emit_again(event, id),
            Own::Allowed(event) => self.bus.emit_again(event, id),
            Own::Breached(event) => self.bus.emit_again(event, id),
        }
    }
}

/// Made with the tracer rather than as a `tracing` span: those begin and end when code runs.
pub(crate) fn draw(draft: &SpanDraft, parent: TraceParent) {
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
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use assistant_proto::event::FloorBreached;
    use service_kit::host::Context;
    use service_kit::task::OnEnd;

    use super::*;
    use crate::store;

    fn sighting(text: &str) -> Sighting {
        let event = FloorBreached {
            check: text.to_owned(),
            detail: String::new(),
            fix: String::new(),
            checked_at: String::new(),
        };
        let now = SystemTime::now();
        let span = SpanDraft { name: "x", start: now, end: now, error: None, attributes: Vec::new() };
        Sighting { id: EventId::derive(&[text.as_bytes()]), event: Own::Breached(event), parent: None, span }
    }

    #[tokio::test]
    async fn what_does_not_come_back_is_published_again_and_again() {
        let (directory, cx) = (tempfile::tempdir().unwrap(), Context::detached());
        let (store, writer, reader) = store::open(directory.path()).unwrap();
        let (health, draining, deadline) = (cx.health.clone(), cx.shutdown.draining(), cx.shutdown.deadline());
        cx.tasks.spawn("writer", OnEnd::Critical, writer.run(health, draining, deadline));
        let ledger = Ledger::new(store.clone(), cx.bus.clone());
        let (one, two) = (sighting("one"), sighting("two"));
        ledger.record(vec![one.clone(), two]).await.unwrap();
        let told = || cx.bus.emitted().into_iter().map(|(_, body)| body["check"].clone()).collect::<Vec<_>>();
        assert_eq!(told(), ["one", "two"]);
        assert_eq!(ledger.republish(&reader).await.unwrap(), 2);
        assert_eq!(told(), ["one", "two", "one", "two"]);
        let back = |sighting: &Sighting| Entry { own: false, ..sighting.event.entry(&sighting.id).unwrap() };
        store.append(vec![back(&one)]).await.unwrap();
        assert_eq!(ledger.republish(&reader).await.unwrap(), 1);
        assert_eq!(told().last().unwrap(), "two");
        // The id of another event: kept beside it, and nobody's to publish.
        let mut other = sighting("three");
        other.id = one.id;
        assert!(matches!(
            store.append(vec![other.event.entry(&other.id).unwrap()]).await.unwrap()[..],
            [Stored::Conflict { .. }]
        ));
        assert_eq!(ledger.republish(&reader).await.unwrap(), 1, "still the second one alone");
    }

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
