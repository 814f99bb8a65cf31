//! `tier-supervisor down`: takes the stack away. Works without a running supervisor, without tiers.yaml and, except for
//! what `--purge` deletes, without any file at all: labels say what is ours.
//!
//! The order keeps every wall up until nothing is left behind it: containers, networks, and only then table and routes.

use std::io::Write;
use std::path::{Path, PathBuf};

use assistant_proto::config::Mode;
use serde::Deserialize;

use crate::engine::{Engine, EngineError};
use crate::kernel::{self, KernelError};
use crate::lock::{Lock, LockError};
use crate::observed::Owner;
use crate::routes::{self, RouteError};

/// What to take away.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Delete volumes, keys, tokens and everything else the stack remembers, too. Asks nothing.
    #[arg(long)]
    pub purge: bool,
    /// The supervisor's configuration; says which stack `--purge` is about.
    #[arg(long, default_value = "/etc/assistant/supervisor.json")]
    pub config: PathBuf,
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// A supervisor that runs would bring everything up again.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The kernel table.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Routes.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// `--purge` does not know what to delete.
    #[error("{} does not say which stack to purge: {why}", path.display())]
    Unknown {
        /// The configuration.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A directory could not be deleted.
    #[error("cannot delete {}: {source}", path.display())]
    Delete {
        /// Which one.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A part of it panicked.
    #[error("a part of the supervisor panicked; this is a bug")]
    Panicked,
    /// Standard output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// As much of supervisor.json as this needs: whatever else is wrong with it must not keep anything up.
#[derive(Debug, Deserialize)]
struct Which {
    mode: Mode,
    state_dir: PathBuf,
}

/// Takes everything away.
///
/// # Errors
/// With the first thing that could not be; running it again goes on from there.
pub async fn run(engine: &impl Engine, arguments: &Arguments) -> Result<(), DownError> {
    let _held = Lock::take(&run_dir(&arguments.config))?;
    let purged = if arguments.purge { Some(which(&arguments.config)?) } else { None };
    let inventory = engine.inventory().await?;
    for container in inventory.containers.iter().filter(|container| container.owner.is_ours()) {
        say(&format!("stop and remove container {}", container.name))?;
        if container.state.is_running() {
            engine.stop_container(&container.id).await?;
        }
        engine.remove_container(&container.id).await?;
    }
    for network in inventory.networks.iter().filter(|network| network.owner.is_ours()) {
        // A foreign container would keep the network; it is only taken off.
        let on_it = inventory
            .containers
            .iter()
            .filter(|container| container.owner == Owner::Foreign && container.networks.contains_key(&network.name));
        for container in on_it {
            say(&format!("disconnect {} from network {}", container.name, network.name))?;
            engine.detach(&network.id, &container.id).await?;
        }
        say(&format!("remove network {}", network.name))?;
        engine.remove_network(&network.id).await?;
    }
    say("remove the kernel table and the drill's routes")?;
    tokio::task::spawn_blocking(|| -> Result<(), DownError> {
        kernel::unload()?;
        routes::release()?;
        Ok(())
    })
    .await
    .map_err(|_| DownError::Panicked)??;
    let Some(Which { mode, state_dir }) = purged else { return Ok(()) };
    for volume in inventory.volumes.iter().filter(|volume| volume.owner.is_of(mode)) {
        say(&format!("delete volume {}", volume.name))?;
        engine.remove_volume(&volume.name).await?;
    }
    say(&format!("delete {}", state_dir.display()))?;
    match std::fs::remove_dir_all(&state_dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(DownError::Delete { path: state_dir, source })
        }
        _ => Ok(()),
    }
}

fn which(config: &Path) -> Result<Which, DownError> {
    let unknown = |why: String| DownError::Unknown { path: config.to_owned(), why };
    let text = crate::files::read_text(config).map_err(|error| unknown(error.to_string()))?;
    let which: Which = serde_json::from_str(&text).map_err(|error| unknown(error.to_string()))?;
    // A mistake in a file must not delete a system: only a directory named after the mode, at least three levels down.
    let deep = which.state_dir.is_absolute() && which.state_dir.components().count() >= 4;
    if deep && which.state_dir.file_name().is_some_and(|name| name == which.mode.as_str()) {
        Ok(which)
    } else {
        Err(unknown("\"state_dir\" must be an absolute path that ends with the mode".to_owned()))
    }
}

/// Where the running supervisor would hold its lock.
fn run_dir(config: &Path) -> PathBuf {
    #[derive(Deserialize)]
    struct Where {
        run_dir: PathBuf,
    }
    let said = crate::files::read_text(config).ok().and_then(|text| serde_json::from_str::<Where>(&text).ok());
    said.map_or_else(|| PathBuf::from("/run/assistant"), |said| said.run_dir)
}

fn say(line: &str) -> Result<(), DownError> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn purge_deletes_only_what_looks_like_a_stack() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("supervisor.json");
        for (text, fine) in [
            (r#"{"mode":"drill","state_dir":"/var/lib/assistant/drill","more":1}"#, true),
            (r#"{"mode":"live","state_dir":"/var/lib/assistant/live"}"#, true),
            (r#"{"mode":"live","state_dir":"/var/lib/assistant/drill"}"#, false),
            (r#"{"mode":"live","state_dir":"/live"}"#, false),
            (r#"{"mode":"live","state_dir":"var/lib/assistant/live"}"#, false),
            (r#"{"mode":"live","state_dir":"/"}"#, false),
            ("", false),
        ] {
            std::fs::write(&config, text).unwrap();
            assert_eq!(which(&config).is_ok(), fine, "{text}");
        }
        assert!(which(&dir.path().join("none")).is_err());
    }
}
