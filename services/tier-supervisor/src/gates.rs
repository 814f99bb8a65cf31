//! The loopback gates: `127.0.0.1:<port>` of the VM, joined to a container.
//!
//! A process of its own, as another user, with neither the Docker socket nor any capability: what listens where every
//! local user and every web page can knock must not be the process that can do everything. This module owns both halves:
//! [`supervise`] runs in tier-supervisor and keeps the process alive; [`main`] is the process
//! (`tier-supervisor gates --config -`).
//!
//! The gates' configuration is one line of JSON on standard input, which then stays open: when tier-supervisor ends,
//! however it ends, the gates see the end of their input and go too. It holds no secret.

mod holder;
mod join;
mod process;

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use service_kit::host::Health;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::desired::{Gate, GateKind};
use crate::kernel::GATES_UID;
use process::{Child, End};

pub use join::main;

/// A gate as its process is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    listen: SocketAddrV4,
    target: SocketAddrV4,
}

/// What the process says on standard output, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    /// Every gate listens.
    Ready,
    /// Somebody else listens there.
    Occupied { name: String, listen: SocketAddrV4 },
    /// It cannot listen there for another reason, or its configuration makes no sense.
    Failed { why: String },
}

const PART: &str = "gates";
const FIRST_RETRY: Duration = Duration::from_millis(500);
const SLOWEST_RETRY: Duration = Duration::from_secs(15);
/// A process that lived this long and then ended is started again at once.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// As whom the gates run, and what is run.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable, which that user can execute.
    pub path: PathBuf,
    /// User and group; none only in tests.
    pub uid: Option<u32>,
}

impl Program {
    /// This very executable, as the gates' user.
    ///
    /// # Errors
    /// When the system does not say which executable this is.
    pub fn this() -> std::io::Result<Self> {
        Ok(Self { path: std::env::current_exe()?, uid: Some(GATES_UID) })
    }
}

/// Keeps the gates' process running with the newest list of gates until `stop`. Health part `gates`: fine while every
/// gate listens; otherwise one sentence that names the port and who holds it.
///
/// # Errors
/// Never by itself; whatever goes wrong is reported and tried again.
pub async fn supervise(
    program: Program,
    mut gates: watch::Receiver<Vec<Gate>>,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut delay = FIRST_RETRY;
    loop {
        let wanted: Vec<Line> = gates.borrow_and_update().iter().map(Line::from).collect();
        if wanted.is_empty() {
            health.report(PART, Ok(()));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = gates.changed() => if changed.is_err() { return Ok(()) },
            }
            continue;
        }
        let born = tokio::time::Instant::now();
        let end = match Child::spawn(&program, &wanted).await {
            // Both arms besides the end are cancel-safe; the child is killed when it is dropped.
            Ok(mut child) => tokio::select! {
                () = stop.cancelled() => { child.end().await; return Ok(()) }
                changed = gates.changed() => {
                    child.end().await;
                    if changed.is_err() { return Ok(()) }
                    delay = FIRST_RETRY;
                    continue;
                }
                end = child.watch(|| health.report(PART, Ok(()))) => end,
            },
            Err(why) => End { why: format!("the gates' process cannot be started: {why}") },
        };
        health.report(PART, Err(end.why));
        if born.elapsed() > HEALTHY_AFTER {
            delay = FIRST_RETRY;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = gates.changed() => delay = FIRST_RETRY,
            () = tokio::time::sleep(delay) => delay = delay.saturating_mul(2).min(SLOWEST_RETRY),
        }
    }
}

impl From<&Gate> for Line {
    fn from(gate: &Gate) -> Self {
        match gate.kind {
            GateKind::Tcp => Self { name: gate.name.clone(), listen: gate.listen, target: gate.target },
        }
    }
}

/// Where the configuration comes from: `-` is standard input.
fn is_standard_input(config: &Path) -> bool {
    config.as_os_str() == "-"
}
