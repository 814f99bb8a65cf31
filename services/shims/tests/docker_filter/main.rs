//! `docker-filter` as it runs in its container: the real program between raw clients and a stand-in for the daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod clients;
mod daemon;
mod filter;
mod hostile;
mod presence;
