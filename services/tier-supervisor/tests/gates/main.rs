//! The gates for real: the executable, its supervisor's half, real ports on loopback, and something behind each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod browser;
mod login;
mod process;
mod requests;
mod streams;
mod upstream;
mod world;
