//! The MCP ingress against loopback peers: what reaches an MCP server, and what comes back of its answer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

#[allow(dead_code, reason = "shared with the tests of the model ingress")]
#[path = "../ingress/stand.rs"]
mod stand;

mod bench;
mod calls;
mod lists;
mod page;
mod requests;
