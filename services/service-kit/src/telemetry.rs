//! JSON logs on standard error, spans and metrics to the collector over OTLP/gRPC.
//!
//! Export never blocks the service: spans are batched in a bounded queue, metrics are collected by a thread of their own,
//! and both are dropped when the collector is away; the record of what happened is the audit store, not the trace.

use std::time::Duration;

use assistant_proto::config::{Mode, Telemetry};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::metrics::Metrics;
use quiet::{Dropped, Quiet};

mod quiet;

/// How long one export may take.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);
/// How often spans are sent: a person who asks for a trace right after a turn should find it.
const EXPORT_EVERY: Duration = Duration::from_millis(250);
/// How often metrics are sent. Prometheus asks the collector as often.
pub const PUSH_EVERY: Duration = Duration::from_secs(10);

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter in the configuration cannot be parsed.
    #[error("telemetry.log_filter is not a tracing filter (for example \"info\")")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The endpoint in the configuration cannot be used.
    #[error("telemetry.otlp_endpoint cannot be used")]
    Exporter(#[source] ExporterBuildError),
    /// Telemetry was started before in this process.
    #[error("telemetry was started twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Flushes what is left when the service ends.
#[derive(Debug)]
pub struct Guard {
    providers: Option<(SdkTracerProvider, SdkMeterProvider)>,
    metrics: Metrics,
}

impl Guard {
    /// What the service counts with.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Sends what is queued and counted, and stops. Call outside async code: it blocks for up to the export deadline.
    pub fn finish(self) {
        let Some((spans, meters)) = self.providers else { return };
        self.metrics.ending();
        // Side by side: a collector that does not answer costs its deadline once.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(error) = meters.shutdown_with_timeout(EXPORT_DEADLINE) {
                    tracing::debug!(%error, "the last metrics were not exported");
                }
            });
            if let Err(error) = spans.shutdown_with_timeout(EXPORT_DEADLINE) {
                tracing::debug!(%error, "the last spans were not exported");
            }
        });
    }
}

/// Starts logs, spans and metrics for the process. Needs a Tokio runtime for the exporters' channels.
///
/// # Errors
/// See [`TelemetryError`].
pub fn start(service: &'static str, mode: Mode, config: &Telemetry) -> Result<Guard, TelemetryError> {
    let filter = EnvFilter::try_new(&config.log_filter).map_err(TelemetryError::Filter)?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let (providers, metrics) = match &config.otlp_endpoint {
        None => (None, Metrics::default()),
        Some(endpoint) => {
            let resource = resource(service, mode);
            let (dropped_spans, dropped_metrics) = (Dropped::new("spans"), Dropped::new("metrics"));
            let spans = tracer(endpoint, resource.clone(), &dropped_spans).map_err(TelemetryError::Exporter)?;
            let meters = meters(endpoint, resource, &dropped_metrics).map_err(TelemetryError::Exporter)?;
            let metrics = Metrics::new(&meters.meter("assistant"));
            let dropped = [dropped_spans, dropped_metrics];
            metrics.counter(
                "assistant_telemetry_dropped_total",
                "Spans, and pushes of metrics, that the collector did not take.",
                move |observer| {
                    for dropped in &dropped {
                        observer.observe(dropped.count(), &[KeyValue::new("signal", dropped.signal())]);
                    }
                },
            );
            (Some((spans, meters)), metrics)
        }
    };
    let layer = providers.as_ref().map(|(spans, _)| {
        tracing_opentelemetry::layer()
            .with_tracer(spans.tracer(service))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
    });
    if let Some((spans, _)) = &providers {
        opentelemetry::global::set_tracer_provider(spans.clone());
    }
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .with(
            tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).with_target(true).flatten_event(true),
        )
        .try_init()
        .map_err(TelemetryError::Twice)?;
    Ok(Guard { providers, metrics })
}

fn resource(service: &'static str, mode: Mode) -> Resource {
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.namespace", "assistant"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("assistant.mode", mode.as_str()),
        ])
        .build()
}

fn tracer(endpoint: &str, resource: Resource, dropped: &Dropped) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_DEADLINE).build()?;
    let batch = BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).build();
    let processor = BatchSpanProcessor::builder(Quiet::new(exporter, dropped)).with_batch_config(batch).build();
    let provider = SdkTracerProvider::builder().with_span_processor(processor).with_sampler(Sampler::AlwaysOn);
    Ok(provider.with_resource(resource).build())
}

fn meters(endpoint: &str, resource: Resource, dropped: &Dropped) -> Result<SdkMeterProvider, ExporterBuildError> {
    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_DEADLINE)
        // What Prometheus understands; a push that is lost costs no count.
        .with_temporality(Temporality::Cumulative)
        .build()?;
    let reader = PeriodicReader::builder(Quiet::new(exporter, dropped)).with_interval(PUSH_EVERY).build();
    Ok(SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build())
}
