//! The stack for real, brought up by `deploy/up.sh --drill` (tests/run.sh does it). Scored by what the drill's internet
//! *received* and by what the bus *said*, never by a client's exit code alone. Every "is blocked" has a control that
//! shows the same thing arriving where it is allowed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod approval;
mod bad_input;
mod brokered;
mod denied;
mod effects;
mod explain;
mod gates;
mod killed;
mod models;
mod neighbours;
mod newcomer;
mod operator;
mod packets;
mod sandbox;
mod seen;
mod telegram;
mod tiers;
