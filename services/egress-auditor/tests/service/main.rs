//! egress-auditor in process, against real peers on loopback: DNS clients over UDP and TCP, a log file that is written,
//! rotated and truncated, Squid's feed, SQLite's file, an HTTP peer where Jaeger stands, and its own binary as client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod control;
mod dns;
mod squid_log;
mod stage;
mod store;
