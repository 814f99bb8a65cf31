//! What a service counts and measures of itself, the same for every service: events it says on the bus and what they
//! carry, the bus, tasks, health, the process. `telemetry` sends it to the collector.
//!
//! Owned here: the instruments, their names and their labels. Not here: when they are sent, and what a number means; that is
//! the alerts' and the dashboards' to say. A label is one of our own enums, the name of a tier, a stream or a task, or a
//! code in kebab case, and of each kind there are only so many (see [`Tally`]): whatever an agent does, it makes no new
//! series.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use assistant_proto::event::{Event, Measure, Work};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Histogram, Meter, MeterProvider, NoopMeterProvider};

use crate::bus::Bus;
use crate::host::Health;
use tally::{Tally, code};

mod process;
mod tally;
#[cfg(test)]
mod tests;

/// Counts and measures. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    meter: Meter,
    events: Arc<Tally<3>>,
    denied: Arc<Tally<3>>,
    finished: Arc<Tally<3>>,
    restarts: Arc<Tally<1>>,
    panics: Arc<Tally<1>>,
    turns: Histogram<f64>,
    model_calls: Histogram<f64>,
    tool_calls: Histogram<f64>,
    ending: Arc<AtomicBool>,
}

impl Default for Metrics {
    /// Counts for nobody: where telemetry is off, and in tests.
    fn default() -> Self {
        Self::new(&NoopMeterProvider::new().meter("none"))
    }
}

impl Metrics {
    /// Makes the instruments that need nothing but the process.
    pub(crate) fn new(meter: &Meter) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let seconds = |name: &'static str, what: &'static str, bounds: &[f64]| {
            meter.f64_histogram(name).with_unit("s").with_description(what).with_boundaries(bounds.to_vec()).build()
        };
        let inner = Inner {
            events: Tally::register(
                meter,
                "assistant_events_total",
                "Events said on the bus.",
                ["area", "verb", "tier"],
                &ending,
            ),
            denied: Tally::register(
                meter,
                "assistant_denied_attempts_total",
                "Attempts that died, at the wall where they died.",
                ["tier", "layer", "reason"],
                &ending,
            ),
            finished: Tally::register(
                meter,
                "assistant_finished_total",
                "Turns, model calls and tool calls that are over.",
                ["work", "tier", "outcome"],
                &ending,
            ),
            restarts: Tally::register(
                meter,
                "assistant_task_restarts_total",
                "Tasks that failed or panicked and were made again.",
                ["task"],
                &ending,
            ),
            panics: Tally::register(meter, "assistant_task_panics_total", "Tasks that panicked.", ["task"], &ending),
            turns: seconds(
                "assistant_turn_duration_seconds",
                "Turns, from their start to their end.",
                &[0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0],
            ),
            model_calls: seconds(
                "assistant_model_call_duration_seconds",
                "Model calls, until the last byte.",
                &[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0],
            ),
            tool_calls: seconds(
                "assistant_tool_call_duration_seconds",
                "Tool calls, until the last byte.",
                &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0],
            ),
            ending,
            meter: meter.clone(),
        };
        process::register(meter);
        Self { inner: Arc::new(inner) }
    }

    /// An event was said. The bus calls this for every one it takes.
    pub(crate) fn said<E: Event>(&self, event: &E) {
        let inner = &*self.inner;
        let tier = event.scope();
        let (area, verb) = E::TYPE.split_once('.').unwrap_or((E::TYPE, ""));
        inner.events.add([area, verb, tier], 1);
        match event.measure() {
            Measure::Nothing => {}
            Measure::Denied { layer, reason, attempts } => {
                inner.denied.add([tier, layer.as_str(), code(reason)], attempts);
            }
            Measure::Finished { work, took, succeeded } => {
                let outcome = if succeeded { "ok" } else { "failed" };
                inner.finished.add([work.as_str(), tier, outcome], 1);
                let histogram = match work {
                    Work::Turn => &inner.turns,
                    Work::ModelCall => &inner.model_calls,
                    Work::ToolCall => &inner.tool_calls,
                };
                if let Some(took) = took {
                    let labels = [KeyValue::new("tier", tier.to_owned()), KeyValue::new("outcome", outcome)];
                    histogram.record(took.as_secs_f64(), &labels);
                }
            }
        }
    }

    /// A task of this name is there, though nothing has happened to it.
    pub(crate) fn task(&self, name: &str) {
        self.inner.restarts.add([tally::stem(name)], 0);
        self.inner.panics.add([tally::stem(name)], 0);
    }

    /// A task is made again.
    pub(crate) fn restarted(&self, name: &str) {
        self.inner.restarts.add([tally::stem(name)], 1);
    }

    /// A task panicked.
    pub(crate) fn panicked(&self, name: &str) {
        self.inner.panics.add([tally::stem(name)], 1);
    }

    /// From the next export on every count is told as it is: there may be no other.
    pub(crate) fn ending(&self) {
        self.inner.ending.store(true, Ordering::Relaxed);
    }

    /// Adds a counter that is kept elsewhere. The callback must not block.
    pub fn counter(
        &self,
        name: &'static str,
        what: &'static str,
        callback: impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static,
    ) {
        self.inner.meter.u64_observable_counter(name).with_description(what).with_callback(callback).build();
    }

    /// Adds a number that is looked up when it is sent. The callback must not block.
    pub fn gauge(
        &self,
        name: &'static str,
        what: &'static str,
        callback: impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static,
    ) {
        self.inner.meter.u64_observable_gauge(name).with_description(what).with_callback(callback).build();
    }

    /// The same for fractions.
    pub(crate) fn fraction(
        &self,
        name: &'static str,
        what: &'static str,
        callback: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    ) {
        self.inner.meter.f64_observable_gauge(name).with_description(what).with_callback(callback).build();
    }

    /// Adds what the bus knows of itself.
    pub(crate) fn watch_bus(&self, bus: &Bus) {
        bus.register(self);
    }

    /// Adds what the service says of its health.
    pub(crate) fn watch_health(&self, health: &Health) {
        let asked = health.clone();
        self.gauge("assistant_serving", "1 while the service is ready and every part of it is.", move |observer| {
            observer.observe(u64::from(asked.serving()), &[]);
        });
        let asked = health.clone();
        self.gauge("assistant_health_problem", "1 while a part of the service is not healthy.", move |observer| {
            for (part, problem) in asked.parts() {
                observer.observe(u64::from(problem), &[KeyValue::new("part", part)]);
            }
        });
    }
}
