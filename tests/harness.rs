//! Drives the stack the way an operator does: its scripts, `grpcurl`, `nats`, `docker`, gRPC on the Unix sockets.

pub mod agent;
pub mod bus;
pub mod command;
pub mod metrics;
pub mod page;
pub mod parts;
pub mod person;
pub mod place;
pub mod plain;
pub mod probe;
pub mod prober;
pub mod search;
pub mod sink;
pub mod site;
pub mod telegram;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where the control sockets are linked.
pub const SOCKETS: &str = "/run/assistant";
/// State of the drill.
pub const STATE: &str = "/var/lib/assistant/drill";
/// The drill's first tier.
pub const TIER: &str = "tasks";
/// Its agent.
pub const AGENT: &str = "zeroclaw-tasks";
/// Its MCP server.
pub const SERVER: &str = "mcp-tasks-marvin";
/// The tier with a second identity.
pub const UPDATES: &str = "updates";
/// Its agent.
pub const UPDATES_AGENT: &str = "zeroclaw-updates";
/// Its MCP server.
pub const UPDATES_SERVER: &str = "mcp-updates-marvin";
/// The tier without an identity, whose commands run in a sandbox.
pub const SANDBOXED: &str = "unrestricted";
/// Its agent.
pub const SANDBOXED_AGENT: &str = "zeroclaw-unrestricted";
/// The engine of its sandbox.
pub const SANDBOX: &str = "sandbox-unrestricted";

/// The root of the project.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Waits until `check` gives something; fails with what was waited for.
///
/// # Errors
/// When the deadline passes.
pub async fn until<T, F>(what: &str, deadline: Duration, mut check: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let started = Instant::now();
    let mut last = None;
    loop {
        match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if started.elapsed() > deadline {
            match last {
                Some(error) => return Err(error.context(format!("waited {deadline:?} for {what}"))),
                None => anyhow::bail!("waited {deadline:?} for {what}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
