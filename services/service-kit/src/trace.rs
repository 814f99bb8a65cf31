//! Joins `tracing` spans and the W3C identifiers that travel on the bus and in headers.

use assistant_proto::trace::TraceParent;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes `parent` the parent of the span. Must come before the span is first entered. Without a parent the span starts
/// a trace of its own.
pub fn span_parent(span: &tracing::Span, parent: Option<TraceParent>) {
    if let Some(parent) = parent {
        // Fails only when the span is disabled or no OpenTelemetry layer is installed: then there is no span to hang up.
        if let Err(error) = span.set_parent(context(parent)) {
            tracing::trace!(?error, "span without a parent");
        }
    }
}

/// The identifiers of the span, to hand on; none when telemetry is off.
#[must_use]
pub fn current_traceparent(span: &tracing::Span) -> Option<TraceParent> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| TraceParent { trace: context.trace_id().to_bytes(), span: context.span_id().to_bytes() })
}

/// An OpenTelemetry context whose span is remote and sampled.
#[must_use]
pub fn context(parent: TraceParent) -> opentelemetry::Context {
    opentelemetry::Context::new().with_remote_span_context(SpanContext::new(
        TraceId::from_bytes(parent.trace),
        SpanId::from_bytes(parent.span),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    ))
}

/// Fresh identifiers, for work that must be traceable even while telemetry is off.
#[must_use]
pub fn fresh() -> TraceParent {
    let mut value = TraceParent { trace: rand::random(), span: rand::random() };
    // All zero is invalid in both; the odds do not matter, validity does.
    value.trace[0] |= 1;
    value.span[0] |= 1;
    value
}
