//! secret-broker: the only door out of a tier. HTTPS proxy, model ingress and MCP ingress in one service, because they
//! share who may speak (`identity`), what is known about a request (`attempt`), how one leaves (`upstream`) and what may
//! come back (`rewrite`).
//!
//! It owns the secrets, the interception CA and the application of policy. It does not own policy itself (crate
//! `policy`, pure), the allowlist of the VM (Squid) or the record of what happened (egress-auditor). It lets nothing out
//! without a permit of [`policy`] that was stored first (`journal`), and never writes a secret into a log, an event or an error.

pub mod app;
pub mod attempt;
pub mod authority;
pub mod body;
pub mod config;
pub mod control;
pub mod credential;
pub mod denials;
pub mod framing;
pub mod headers;
pub mod identity;
mod ingress;
pub mod inject;
pub mod intercept;
pub mod journal;
pub mod listener;
pub mod mcp;
pub mod models;
pub mod proxy;
pub mod refusal;
pub mod relay;
pub mod rewrite;
pub mod routing;
pub mod secrets;
pub mod state;
pub mod upstream;

pub use app::Broker;
