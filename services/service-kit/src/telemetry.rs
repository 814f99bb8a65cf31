//! JSON logs on standard error, spans to the collector over OTLP/gRPC.
//!
//! Export never blocks the service: spans are batched in a bounded queue and dropped when the collector is away; the
//! record of what happened is the audit store, not the trace.

use std::time::Duration;

use assistant_proto::config::Telemetry;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How long one export may take.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);
/// How often spans are sent: a person who asks for a trace right after a turn should find it.
const EXPORT_EVERY: Duration = Duration::from_millis(250);

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter in the configuration cannot be parsed.
    #[error("telemetry.log_filter is not a tracing filter (for example \"info\")")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The endpoint in the configuration cannot be used.
    #[error("telemetry.otlp_endpoint cannot be used")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// Telemetry was started before in this process.
    #[error("telemetry was started twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Flushes what is left when the service ends.
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends what is queued and stops. Call outside async code: it blocks for up to the export deadline.
    pub fn finish(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(EXPORT_DEADLINE)
        {
            tracing::debug!(%error, "the last spans were not exported");
        }
    }
}

/// Starts logs and spans for the process. Needs a Tokio runtime for the exporter's channel.
///
/// # Errors
/// See [`TelemetryError`].
pub fn start(service: &'static str, config: &Telemetry) -> Result<Guard, TelemetryError> {
    let filter = EnvFilter::try_new(&config.log_filter).map_err(TelemetryError::Filter)?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = match &config.otlp_endpoint {
        None => None,
        Some(endpoint) => {
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint.clone())
                .with_timeout(EXPORT_DEADLINE)
                .build()
                .map_err(TelemetryError::Exporter)?;
            let batch = BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).build();
            Some(
                SdkTracerProvider::builder()
                    .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batch).build())
                    .with_sampler(Sampler::AlwaysOn)
                    .with_resource(
                        Resource::builder_empty()
                            .with_attributes([
                                KeyValue::new("service.name", service),
                                KeyValue::new("service.namespace", "assistant"),
                                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                            ])
                            .build(),
                    )
                    .build(),
            )
        }
    };
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(service))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
    });
    if let Some(provider) = &provider {
        opentelemetry::global::set_tracer_provider(provider.clone());
    }
    tracing_subscriber::registry()
        .with(filter)
        .with(spans)
        .with(
            tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).with_target(true).flatten_event(true),
        )
        .try_init()
        .map_err(TelemetryError::Twice)?;
    Ok(Guard { provider })
}
