//! One bridge in process against a double of the agent's gateway, with the bus replaced at the bridge's own seam.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "what a double spawns ends with the runtime of its test")]

mod agent_double;
mod approvals;
mod chat;
mod dashboard;
mod delivery;
mod lease;
mod live_bus;
mod memory_post;
mod real_agent;
mod squid_double;
mod stack;
mod telegram;
mod turns;
