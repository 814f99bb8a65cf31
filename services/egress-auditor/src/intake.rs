//! What comes from the bus: events of every service go into the store, many in one commit, with the place in the stream
//! up to which they were taken. A stream keeps so much and so long; what it had to forget before it was read here is
//! recorded as lost, with how many there were. Own events coming back leave the outbox.

use std::sync::{Arc, Mutex, PoisonError};

use service_kit::bus::{Bus, BusError, Extent, Raw};

use crate::compare::Matching;
use crate::figures::Figures;
use crate::record::Entry;
use crate::reserve::{self, Reserve};
use crate::store::{Closed, Place, ReadError, Reader, Store};

/// Events in one commit.
pub const MOST_BATCH: usize = 256;

/// Why a batch was not taken; it must not be acknowledged then.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The service is stopping.
    #[error("the batch was not stored")]
    Closed(#[from] Closed),
    /// Whether events are missing could not be found out.
    #[error("the stream cannot be looked at")]
    Stream(#[from] BusError),
    /// Where it stopped could not be found out.
    #[error("the place in the stream cannot be read")]
    Place(#[from] ReadError),
}

/// Takes the events of one stream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake {
    store: Store,
    stream: &'static str,
    reserve: Reserve,
    figures: Figures,
    matching: Matching,
    /// Sequence up to which everything was taken; none while nothing ever was.
    taken: Arc<Mutex<Option<u64>>>,
}

impl Intake {
    /// Goes on where the store says.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn resume(
        store: Store,
        reader: &Reader,
        stream: &'static str,
        reserve: Reserve,
        figures: Figures,
        matching: Matching,
    ) -> Result<Self, IntakeError> {
        let taken = reader.place(stream).await?;
        Ok(Self { store, stream, reserve, figures, matching, taken: Arc::new(Mutex::new(taken)) })
    }

    /// Takes what comes over the bus until the bus is closed. Run it in `Tasks::spawn_restarting`.
    ///
    /// # Errors
    /// As [`Bus::consume`].
    pub async fn run(&self, bus: &Bus, durable: &str) -> anyhow::Result<()> {
        if bus.jetstream().is_some() {
            self.recognise(bus.extent(self.stream).await?).await?;
        }
        bus.consume_raw_batch(self.stream, durable, MOST_BATCH, |raws| {
            let (intake, bus) = (self.clone(), bus.clone());
            async move {
                let extent = if intake.jumps(&raws) { Some(bus.extent(intake.stream).await?) } else { None };
                intake.take(&raws, extent).await?;
                Ok(())
            }
        })
        .await
    }

    /// A stream that has never come as far as this store has read is not the one it read: it was made anew, and counts
    /// from 1 again.
    async fn recognise(&self, extent: Extent) -> Result<(), IntakeError> {
        let Some(taken) = self.taken().filter(|taken| extent.last < *taken) else { return Ok(()) };
        tracing::error!(
            stream = self.stream,
            taken,
            last = extent.last,
            "the stream was made anew; events may be lost"
        );
        let id = format!("stream-replaced-{}-{taken}-{}", self.stream, extent.last);
        let detail = format!(
            "the stream {} was made anew: it had been read up to {taken}; how many events were lost is not known",
            self.stream
        );
        self.append(vec![notice(&id, "stream-replaced", 1, &detail)], 0).await
    }

    /// Whether sequences are missing between what was taken and these, or among these.
    fn jumps(&self, raws: &[Raw]) -> bool {
        !gaps(self.taken(), raws).is_empty()
    }

    /// Stores a batch. Of what is missing before or in it, `extent` tells what the stream has forgotten from what is
    /// only delivered later.
    async fn take(&self, raws: &[Raw], extent: Option<Extent>) -> Result<(), IntakeError> {
        let taken = self.taken();
        let first = extent.map_or(0, |extent| extent.first);
        let mut entries = Vec::with_capacity(raws.len().saturating_add(1));
        for (after, before) in gaps(taken, raws) {
            // Forgotten are those before the first that the stream still has.
            let lost = before.min(first).saturating_sub(after.saturating_add(1));
            if lost > 0 {
                let (from, to) = (after.saturating_add(1), after.saturating_add(lost));
                tracing::error!(stream = self.stream, from, to, lost, "the stream forgot events before they were read");
                let id = format!("events-lost-{}-{from}-{to}", self.stream);
                let detail =
                    format!("the stream {} forgot the events {from} to {to} before they were read", self.stream);
                entries.push(notice(&id, "events-lost", lost, &detail));
            }
        }
        let mut folded = 0;
        if self.reserve.is_reached() {
            let (some, of_many) = reserve::fold(self.stream, raws);
            entries.extend(some);
            folded = of_many;
        } else {
            entries.extend(raws.iter().map(|raw| Entry::from_bus(&raw.subject, &raw.id, &raw.payload)));
        }
        let newest = raws.iter().map(|raw| raw.stream_sequence).max().unwrap_or(0);
        self.append(entries, taken.unwrap_or(0).max(newest)).await?;
        self.figures.folded(folded);
        self.matching.stored(raws);
        Ok(())
    }

    async fn append(&self, entries: Vec<Entry>, sequence: u64) -> Result<(), IntakeError> {
        self.store.append_from(entries, Place { stream: self.stream, sequence }).await?;
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(sequence);
        Ok(())
    }

    fn taken(&self) -> Option<u64> {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pairs of sequences with something missing between them. What is delivered again lies below what was taken.
fn gaps(taken: Option<u64>, raws: &[Raw]) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut last = taken;
    for raw in raws {
        let sequence = raw.stream_sequence;
        if let Some(last) = last
            && sequence > last.saturating_add(1)
        {
            gaps.push((last, sequence));
        }
        last = last.max(Some(sequence));
    }
    gaps
}

fn notice(id: &str, reason: &str, count: u64, detail: &str) -> Entry {
    let fix = "look at why egress-auditor was away so long, and at the limits of the stream in tier-supervisor";
    Entry::incomplete(id, reason, count, detail, fix)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use service_kit::host::Context;
    use service_kit::task::OnEnd;

    use super::*;
    use crate::record::Record;
    use crate::store::{self, Filter};

    fn raw(sequence: u64) -> Raw {
        Raw {
            subject: "tier.changed.tasks".to_owned(),
            type_: "tier.changed".to_owned(),
            id: format!("event-{sequence}"),
            source: String::new(),
            parent: None,
            payload: "{}".into(),
            stream_sequence: sequence,
            deliveries: 1,
        }
    }

    struct Opened {
        cx: Context,
        reader: Reader,
        intake: Intake,
    }

    async fn open(directory: &std::path::Path) -> Opened {
        let cx = Context::detached();
        let (store, writer, reader) = store::open(directory).unwrap();
        let (health, draining, deadline) = (cx.health.clone(), cx.shutdown.draining(), cx.shutdown.deadline());
        cx.tasks.spawn("writer", OnEnd::Critical, writer.run(health, draining, deadline));
        let intake = {
            let (reserve, figures) = (Reserve::default(), Figures::default());
            let matching = Matching::new(crate::compare::PATIENCE, figures.clone());
            Intake::resume(store, &reader, "EVENTS", reserve, figures, matching).await.unwrap()
        };
        Opened { cx, reader, intake }
    }

    impl Opened {
        async fn take(&self, sequences: impl IntoIterator<Item = u64>, extent: Extent) {
            let raws: Vec<Raw> = sequences.into_iter().map(raw).collect();
            let extent = self.intake.jumps(&raws).then_some(extent);
            self.intake.take(&raws, extent).await.unwrap();
        }

        async fn records(&self) -> Vec<Record> {
            self.reader.after(Filter::default(), 0, 10_000).await.unwrap()
        }

        async fn notices(&self) -> Vec<(String, u64)> {
            let notices = self.records().await.into_iter().filter(|record| record.entry.kind == "audit.incomplete");
            notices.map(|record| (record.entry.reason, record.entry.count)).collect()
        }

        async fn close(self) {
            self.cx.shutdown.draining().cancel();
            drop(self.intake);
            self.cx.tasks.finished().await;
        }
    }

    fn extent(first: u64, last: u64) -> Extent {
        Extent { first, last }
    }

    #[tokio::test]
    async fn a_batch_is_one_commit() {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(directory.path()).await;
        let mut head = opened.reader.head();
        head.mark_unchanged();
        opened.take(1..=256, extent(1, 256)).await;
        assert_eq!(head.borrow_and_update().sequence, 256);
        let times: std::collections::BTreeSet<String> =
            opened.records().await.into_iter().map(|record| record.recorded_at).collect();
        assert_eq!(times.len(), 1, "each commit has one time");
        assert!(!head.has_changed().unwrap());
        opened.close().await;
    }

    #[tokio::test]
    async fn in_the_reserve_only_what_matters_is_recorded_one_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(directory.path()).await;
        let batch = || (1..=9).map(raw).chain([Raw { subject: "egress.denied.tasks".to_owned(), ..raw(10) }]);
        opened.intake.reserve.set(true);
        let raws: Vec<Raw> = batch().collect();
        // Delivered again, because the acknowledgement was lost: nothing is added.
        for _ in 0..2 {
            opened.intake.take(&raws, None).await.unwrap();
            let records = opened.records().await;
            let told: Vec<_> = records.iter().map(|record| (record.entry.kind.as_str(), record.entry.count)).collect();
            assert_eq!(told, [("audit.folded", 9), ("egress.denied", 1)]);
        }
        opened.intake.reserve.set(false);
        opened.take(11..=13, extent(1, 13)).await;
        assert_eq!(opened.records().await.len(), 5, "with room again each is a record");
        assert_eq!(opened.notices().await, []);
        opened.close().await;
    }

    #[tokio::test]
    async fn what_the_stream_forgot_is_recorded_once_and_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(directory.path()).await;
        // The first that this store ever sees is no loss.
        opened.take([5, 6], extent(5, 6)).await;
        assert_eq!(opened.notices().await, []);
        opened.close().await;

        // While nobody read, 7 to 99 were forgotten.
        let opened = open(directory.path()).await;
        opened.take([100, 101], extent(100, 300)).await;
        let lost = vec![("events-lost".to_owned(), 93)];
        assert_eq!(opened.notices().await, lost);
        assert_eq!(opened.records().await.len(), 5);
        // Delivered again, and delivered out of order: missing for the moment, but the stream has it.
        opened.take([100, 101], extent(100, 300)).await;
        opened.take([110], extent(100, 300)).await;
        opened.take([102, 103], extent(100, 300)).await;
        opened.take([111, 113], extent(100, 300)).await;
        assert_eq!(opened.notices().await, lost);
        // Some are forgotten, some are still to come.
        opened.take([200], extent(150, 300)).await;
        assert_eq!(opened.notices().await[1], ("events-lost".to_owned(), 36));
        assert_eq!(opened.reader.verify().await.unwrap().broken_at, None);
        opened.close().await;
    }

    #[tokio::test]
    async fn a_stream_that_was_made_anew_is_recognised() {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(directory.path()).await;
        opened.intake.recognise(extent(1, 0)).await.unwrap();
        opened.take(1..=50, extent(1, 50)).await;
        opened.intake.recognise(extent(51, 50)).await.unwrap();
        assert_eq!(opened.notices().await, []);
        opened.close().await;
        let opened = open(directory.path()).await;
        opened.intake.recognise(extent(3, 7)).await.unwrap();
        opened.take(3..=7, extent(3, 7)).await;
        let notices = opened.notices().await;
        assert_eq!(notices, [("stream-replaced".to_owned(), 1), ("events-lost".to_owned(), 2)]);
        opened.close().await;
    }
}
