//! Exporters that make no noise: what the collector does not take is dropped and counted, and an outage is said once when
//! it begins and once when it ends. The record of what happened is the audit store; a log line for each lost push would
//! only bury it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// What was dropped of one kind. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Dropped {
    signal: &'static str,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    count: AtomicU64,
    away: AtomicBool,
}

impl Dropped {
    /// `spans` or `metrics`.
    pub(super) fn new(signal: &'static str) -> Self {
        Self { signal, state: Arc::default() }
    }

    /// Its kind.
    pub(super) fn signal(&self) -> &'static str {
        self.signal
    }

    /// How many spans, or pushes of metrics.
    pub(super) fn count(&self) -> u64 {
        self.state.count.load(Ordering::Relaxed)
    }

    fn settle(&self, outcome: OTelSdkResult, lost: u64) {
        let signal = self.signal;
        match outcome {
            Ok(()) => {
                if self.state.away.swap(false, Ordering::Relaxed) {
                    tracing::info!(signal, dropped = self.count(), "the collector takes telemetry again");
                }
            }
            Err(error) => {
                self.state.count.fetch_add(lost, Ordering::Relaxed);
                if !self.state.away.swap(true, Ordering::Relaxed) {
                    tracing::info!(signal, %error, "the collector takes no telemetry: it is dropped until it does");
                }
            }
        }
    }
}

/// An exporter whose failures are counted and not told to the SDK.
#[derive(Debug)]
pub(super) struct Quiet<E> {
    exporter: E,
    dropped: Dropped,
}

impl<E> Quiet<E> {
    /// Around an exporter.
    pub(super) fn new(exporter: E, dropped: &Dropped) -> Self {
        Self { exporter, dropped: dropped.clone() }
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Quiet<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.dropped.settle(self.exporter.export(metrics).await, 1);
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

impl<E: SpanExporter> SpanExporter for Quiet<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        self.dropped.settle(self.exporter.export(batch).await, spans);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn what_is_lost_is_counted() {
        let dropped = Dropped::new("spans");
        let lost = || Err(OTelSdkError::InternalFailure("away".to_owned()));
        dropped.settle(Ok(()), 5);
        assert_eq!(dropped.count(), 0);
        dropped.settle(lost(), 5);
        dropped.settle(lost(), 2);
        assert!(dropped.state.away.load(Ordering::Relaxed));
        dropped.settle(Ok(()), 9);
        assert!(!dropped.state.away.load(Ordering::Relaxed));
        assert_eq!((dropped.signal(), dropped.count()), ("spans", 7));
    }
}
