//! secret-broker: the only door out of a tier. HTTPS proxy, model ingress and MCP ingress in one service, because they
//! share who may speak (`identity`), what is known about a request (`attempt`), that nothing leaves unrecorded (`journal`,
//! `account`) and what may come back (`rewrite`).
//!
//! It owns the secrets, the interception CA and the application of policy. It does not own policy itself (crate
//! `policy`, pure), the allowlist of the VM (Squid) or the record of what happened (egress-auditor). It lets nothing out
//! without a permit of [`policy`] that was stored first (`journal`), and never writes a secret into a log, an event or an error.
//!
//! One credential it does not know: the key of the model's host is LiteLLM's. Should that host say its key back in an
//! answer that is not an error, nothing here recognises it. That is accepted: the host is one that the operator chose, and
//! it would have to mean it. Of errors, whose texts quote keys by habit, only the status passes (`models::answer`).

mod account;
pub mod app;
pub mod attempt;
pub mod authority;
pub mod body;
pub mod config;
pub mod connections;
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
pub mod page;
pub mod proxy;
pub mod refusal;
pub mod relay;
pub mod rewrite;
pub mod routing;
pub mod secrets;
pub mod state;
mod turn;
pub mod upstream;

pub use app::Broker;
