//! Each field of tiers.yaml and its effect: on a real ZeroClaw 0.8.7 that runs with what is rendered for the tier, driven
//! over `/acp` as the bridge does it, with a double of the model behind it. Loopback only. Where an effect needs containers
//! and a kernel, its test is a scenario (`tests/scenarios/`). `fields` holds the list of all of them.
//!
//! The binary is `$ASSISTANT_ZEROCLAW_BIN`; where that is not set the tests say SKIPPED, which `tests/run.sh` takes for a
//! failure: it sets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod agent;
mod approval;
mod commands;
mod fields;
mod older;
mod process;
mod sandbox;
#[path = "../../services/tier-supervisor/tests/inputs/sets.rs"]
#[allow(dead_code, reason = "shared with the tests of the inputs, which use more of it")]
mod sets;
#[path = "../../services/tier-supervisor/tests/inputs/stack.rs"]
#[allow(dead_code, reason = "shared with the tests of the inputs, which use more of it")]
mod stack;
