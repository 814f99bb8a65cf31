//! What the bus knows of itself, as metrics: the connection, the queue, and how far each consumer is behind.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;

use super::{Bus, Connected, Inner};
use crate::metrics::Metrics;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Handled.
    Done,
    /// To be delivered again.
    Again,
    /// Not to be decoded, and set aside.
    SetAside,
}

impl Fate {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Done, "done"), (Self::Again, "again"), (Self::SetAside, "set-aside")];
}

/// Every consumer there ever was in this process, by stream and name.
pub(super) type Readings = Mutex<BTreeMap<(String, String), Reading>>;

/// How a consumer is doing.
#[derive(Debug, Default)]
pub(super) struct Reading {
    running: bool,
    /// What the server had left when it delivered the newest message.
    behind: u64,
    /// When what is here and not handled yet was published, by its sequence.
    here: BTreeMap<u64, SystemTime>,
    /// By [`Fate`].
    handled: [u64; 3],
}

impl Reading {
    fn backlog(&self) -> u64 {
        self.behind.saturating_add(self.here.len() as u64)
    }

    /// How old the oldest is. What the server still has is younger.
    fn lag(&self, now: SystemTime) -> Duration {
        let oldest = self.here.values().min();
        oldest.and_then(|published| now.duration_since(*published).ok()).unwrap_or_default()
    }
}

/// A consumer at work; no longer running when dropped.
#[derive(Debug)]
pub(super) struct Reader<'b> {
    readings: &'b Readings,
    key: (String, String),
}

impl<'b> Reader<'b> {
    pub(super) fn begin(readings: &'b Readings, stream: &str, durable: &str) -> Self {
        let reader = Self { readings, key: (stream.to_owned(), durable.to_owned()) };
        reader.change(|reading| reading.running = true);
        reader
    }

    /// A message came, published then, and the server has so many more.
    pub(super) fn delivered(&self, sequence: u64, published: SystemTime, pending: u64) {
        self.change(|reading| {
            reading.behind = pending;
            reading.here.insert(sequence, published);
        });
    }

    /// What became of it. One that comes again is counted as here again when it does.
    pub(super) fn handled(&self, sequence: u64, fate: Fate) {
        self.change(|reading| {
            reading.here.remove(&sequence);
            for ((known, _), count) in Fate::ALL.iter().zip(&mut reading.handled) {
                *count = count.saturating_add(u64::from(*known == fate));
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Reading)) {
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        match readings.get_mut(&self.key) {
            Some(reading) => change(reading),
            None => change(readings.entry(self.key.clone()).or_default()),
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.change(|reading| {
            reading.running = false;
            // Delivered again to whoever comes next.
            reading.here.clear();
        });
    }
}

impl Bus {
    /// Adds the bus's figures to what is sent. They end with the bus. A detached bus has none.
    pub(crate) fn register(&self, metrics: &Metrics) {
        let Inner::Connected(_) = &*self.inner else { return };
        let bus = || Arc::downgrade(&self.inner);

        let looked = bus();
        metrics.gauge("assistant_bus_connected", "1 while NATS answers.", move |observer| {
            with(&looked, |bus| observer.observe(u64::from(bus.is_connected()), &[]));
        });
        let looked = bus();
        metrics.gauge(
            "assistant_bus_queue_depth",
            "Events taken and not yet acknowledged by JetStream.",
            move |observer| with(&looked, |bus| observer.observe(*bus.waiting.borrow() as u64, &[])),
        );
        let looked = bus();
        metrics.counter(
            "assistant_bus_retries_total",
            "Publications that failed and were tried again.",
            move |observer| {
                with(&looked, |bus| observer.observe(bus.retries.load(Ordering::Relaxed), &[]));
            },
        );
        let looked = bus();
        metrics.counter(
            "assistant_bus_lost_total",
            "Events lost: the queue was full, or NATS refused them again and again.",
            move |observer| {
                with(&looked, |bus| {
                    for (cause, count) in [("overflow", &bus.overflowed), ("refused", &bus.refused)] {
                        observer.observe(count.load(Ordering::Relaxed), &[KeyValue::new("cause", cause)]);
                    }
                });
            },
        );

        let looked = bus();
        metrics.gauge("assistant_bus_consumer_running", "1 while a consumer is read.", move |observer| {
            each(&looked, |labels, reading| observer.observe(u64::from(reading.running), labels));
        });
        let looked = bus();
        metrics.gauge(
            "assistant_bus_consumer_backlog",
            "Messages of a consumer that are not handled yet.",
            move |observer| each(&looked, |labels, reading| observer.observe(reading.backlog(), labels)),
        );
        let looked = bus();
        metrics.fraction(
            "assistant_bus_consumer_lag_seconds",
            "Age of a consumer's oldest message that was delivered and is not handled yet.",
            move |observer| {
                let now = SystemTime::now();
                each(&looked, |labels, reading| observer.observe(reading.lag(now).as_secs_f64(), labels));
            },
        );
        let looked = bus();
        metrics.counter(
            "assistant_bus_consumer_handled_total",
            "Messages of a consumer, by what became of them.",
            move |observer| {
                each(&looked, |labels, reading| {
                    for ((_, fate), count) in Fate::ALL.iter().zip(reading.handled) {
                        let labels = [labels, &[KeyValue::new("fate", *fate)]].concat();
                        observer.observe(count, &labels);
                    }
                });
            },
        );
    }
}

fn with(bus: &Weak<Inner>, tell: impl FnOnce(&Connected)) {
    if let Some(inner) = bus.upgrade()
        && let Inner::Connected(bus) = &*inner
    {
        tell(bus);
    }
}

fn each(bus: &Weak<Inner>, mut tell: impl FnMut(&[KeyValue], &Reading)) {
    with(bus, |bus| {
        let readings = bus.readings.lock().unwrap_or_else(PoisonError::into_inner);
        for ((stream, consumer), reading) in readings.iter() {
            let labels = [KeyValue::new("stream", stream.clone()), KeyValue::new("consumer", consumer.clone())];
            tell(&labels, reading);
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_consumer_is_as_late_as_its_oldest_message() {
        let readings = Readings::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let seen = |look: fn(&Reading) -> u64| {
            let readings = readings.lock().unwrap();
            look(&readings[&("EVENTS".to_owned(), "auditor".to_owned())])
        };
        let lag = || readings.lock().unwrap().values().next().unwrap().lag(at(100)).as_secs();
        let reader = Reader::begin(&readings, "EVENTS", "auditor");
        assert_eq!((seen(Reading::backlog), lag()), (0, 0));
        reader.delivered(7, at(40), 3);
        reader.delivered(8, at(90), 2);
        assert_eq!((seen(Reading::backlog), lag()), (4, 60));
        reader.handled(7, Fate::Again);
        assert_eq!((seen(Reading::backlog), lag()), (3, 10));
        reader.delivered(7, at(40), 2);
        assert_eq!(lag(), 60, "it comes again, as old as before");
        reader.handled(7, Fate::SetAside);
        reader.handled(8, Fate::Done);
        assert_eq!((seen(Reading::backlog), lag()), (2, 0));
        reader.delivered(9, at(200), 0);
        assert_eq!(lag(), 0, "a clock that goes back makes no age");
        assert_eq!(readings.lock().unwrap().values().next().unwrap().handled, [1, 1, 1]);
        assert_eq!(seen(|reading| u64::from(reading.running)), 1);
        drop(reader);
        assert_eq!((seen(|reading| u64::from(reading.running)), seen(Reading::backlog)), (0, 0));
    }
}
