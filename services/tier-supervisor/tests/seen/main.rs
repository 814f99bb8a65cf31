//! What a person sees, with the real parts: services push to the collector, Prometheus asks it, Jaeger gets the spans, all
//! with the configuration that tier-supervisor renders; then every query of every dashboard must have an answer, and every
//! alarm must be evaluated. The services are of the service kit, with a life of their own but nothing to do: they say one
//! event of each kind again and again.
//!
//! `ASSISTANT_NATS_SERVER_BIN`, `ASSISTANT_OTELCOL_BIN`, `ASSISTANT_JAEGER_BIN` and `ASSISTANT_PROMETHEUS_BIN` name the
//! programs; promtool is expected beside Prometheus. One that is named must work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod alarms;
mod boards;
mod peers;
mod probe;
mod rendered;

use std::io::Write;
use std::path::PathBuf;

#[allow(clippy::disallowed_methods, reason = "which programs are at hand is the environment's to say")]
fn program(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        // Past the capture of a test's output: nobody looks into a test that passed.
        std::io::stderr().write_all(format!("SKIPPED: {variable} is not set\n").as_bytes()).unwrap();
    }
    found
}
