//! `docker-filter`: the part of the Docker API that a sandboxed agent needs, and nothing else of it.
//!
//! Stands between the agent's docker client and the sandbox's own rootless daemon, in a container of its own without
//! network. Every call is parsed into a closed type ([`call`], [`create`]); what reaches the daemon is written anew from
//! that type. Owns the list of the containers it created and ends those that have no client any more. Does not run
//! anything, and publishes nothing: refusals are lines on standard output ([`refusal`]), which tier-supervisor reads.

mod attachment;
pub mod call;
pub mod containers;
pub mod create;
pub mod daemon;
mod ingress;
pub mod json;
pub mod refusal;

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::call::ContainerId;
use self::containers::Containers;
use self::daemon::{Daemon, Failed};
use self::ingress::Desk;
use self::refusal::{FOLD_WITHIN, Ledger};
use crate::visible::visible;

const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What is being created at the end may take this long to be entered, or else it is removed at the next start.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// What one filter needs to run.
#[derive(Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: PathBuf,
    /// The daemon's socket.
    pub upstream: PathBuf,
    /// What every container has in common.
    pub policy: create::Policy,
}

/// Whether containers may be created: only after what an earlier filter left behind is removed.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    swept: Arc<AtomicBool>,
    upstream: PathBuf,
    tasks: TaskTracker,
}

impl Ready {
    pub(crate) fn check(&self) -> Result<(), Failed> {
        if self.swept.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Failed::Down { socket: self.upstream.clone(), why: "it has not been cleared yet".to_owned() })
    }

    /// Work that outlives its client.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }
}

/// Runs until `stop`. Refusals are written to `out`.
///
/// # Errors
/// Where the socket cannot be made, or a refusal cannot be recorded. A daemon that is down is no error here: clients are told, and it is asked again.
pub async fn run(settings: Settings, out: Box<dyn Write + Send>, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = listen(&settings.listen)?;
    note(&format!("listening on {}", settings.listen.display()));
    let daemon = Daemon::new(settings.upstream.clone());
    let (containers, leaving) = Containers::new();
    let ready = Ready { swept: Arc::default(), upstream: settings.upstream, tasks: TaskTracker::new() };
    let ledger = Ledger::new(out, stop.clone());
    let desk = Arc::new(Desk::new(settings.policy, daemon.clone(), containers.clone(), ledger, ready.clone()));
    let served = ingress::serve(listener, Arc::clone(&desk), stop.clone());
    let removed = remove_those_left(&daemon, &containers, &ready, leaving);
    // Both sides work until the end; none of them ends by itself.
    tokio::select! {
        () = served => {}
        () = removed => {}
        () = tell(&desk.ledger) => {}
    }
    ready.tasks.close();
    drop(timeout(FINISH_WITHIN, ready.tasks.wait()).await);
    drop(std::fs::remove_file(&settings.listen));
    anyhow::ensure!(desk.ledger.close(), "refusals could not be written to standard output");
    Ok(())
}

/// A socket that the owner and the group may use. One that an earlier process left is taken away, nothing else is.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path).with_context(|| format!("cannot take away the old {}", path.display()))?;
        }
        Ok(_) => anyhow::bail!("{} is there and is no socket; take it away", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!("cannot listen on {}; its directory must exist and belong to this user", path.display())
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

/// First all that an earlier filter left: no client can be present at those. Then, one by one, those that lost theirs.
async fn remove_those_left(
    daemon: &Daemon,
    containers: &Containers,
    ready: &Ready,
    mut leaving: mpsc::Receiver<ContainerId>,
) {
    let mut quiet = false;
    while let Err(error) = sweep(daemon).await {
        if !quiet {
            note(&format!("{error}; asking again every second"));
        }
        quiet = true;
        tokio::time::sleep(RETRY_AFTER).await;
    }
    ready.swept.store(true, Ordering::Release);
    note("the sandbox is ready");
    // One that cannot be removed at the moment must not keep the others: it goes to the end of the line.
    let mut line = VecDeque::new();
    loop {
        while let Ok(id) = leaving.try_recv() {
            line.push_back(id);
        }
        let id = match line.pop_front() {
            Some(id) => id,
            None => match leaving.recv().await {
                Some(id) => id,
                None => return,
            },
        };
        match daemon.remove(&id).await {
            Ok(()) => containers.gone(&id),
            Err(error) => {
                note(&format!("container {id} has no client and cannot be removed: {error}; trying again"));
                line.push_back(id);
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

async fn sweep(daemon: &Daemon) -> Result<(), Failed> {
    for id in daemon.list().await? {
        note(&format!("removing container {id}, left over"));
        daemon.remove(&id).await?;
    }
    Ok(())
}

/// Has folded refusals written within two seconds.
async fn tell(ledger: &Ledger) {
    let mut often = tokio::time::interval(FOLD_WITHIN);
    loop {
        often.tick().await;
        ledger.flush();
    }
}

/// A line of the filter's own on standard error. Standard output is the ledger's.
pub(crate) fn note(text: &str) {
    eprintln!("docker-filter: {}", visible(text.as_bytes(), 2_000));
}
