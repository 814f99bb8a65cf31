//! Does one step of a plan. Dull on purpose: what to do and in which order is `plan`'s affair.
//!
//! It owns what a step consists of where that is more than one call, above all the start of a container: started, named
//! in the kernel table by the ports it got, its namespace prepared, waited for. Until the table names it, a container
//! reaches nothing; if its namespace cannot be prepared, it does not go on running.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use service_kit::text::harmless_line;

use crate::desired::{ContainerSpec, Desired, Ready, VolumeSpec};
use crate::engine::{Engine, EngineError};
use crate::observed::{Container, State};
use crate::plan::Action;
use crate::vm::{NotReady, Vm, VmError};

/// How long a container may take until it is ready. ZeroClaw and Jaeger take seconds on a busy two-core machine.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Lines of a container's log that go into an error.
const LOG_LINES: u16 = 20;
/// Characters of each of them.
const MOST_LINE: usize = 300;
/// Lines of a log in which a word is looked for that says a container is ready.
const NEEDLE_LINES: u16 = 1000;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The desired state does not know the name any more: the plan is of yesterday.
    #[error("nothing asks for {name} any more; the plan is made again")]
    Outdated {
        /// The name.
        name: String,
    },
    /// A volume vanished, or never came.
    #[error("volume {name} is not there; it is made again")]
    NoVolume {
        /// Which volume.
        name: String,
    },
    /// It ended.
    #[error("{container} ended with status {code} while it was waited for{}", shown(log))]
    Ended {
        /// Which container.
        container: String,
        /// Exit status.
        code: i64,
        /// The end of its log, made harmless.
        log: Vec<String>,
    },
    /// It did not become ready.
    #[error("{container} was not ready within {} s: {why}{}", READY_WITHIN.as_secs(), shown(log))]
    NotReady {
        /// Which container.
        container: String,
        /// What it was waited for.
        why: NotReady,
        /// The end of its log, made harmless.
        log: Vec<String>,
    },
    /// Its namespace could not be prepared.
    #[error("{container} was stopped because its namespace could not be prepared: {source}")]
    NotPrepared {
        /// Which container.
        container: String,
        /// Why.
        source: VmError,
    },
}

fn shown(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; the end of its log:\n    {}", log.join("\n    ")) }
}

/// What a step brought about beyond itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Nothing to remember.
    Plainly,
    /// A container is prepared and ready.
    Settled {
        /// Its name.
        name: String,
        /// The engine's id.
        id: String,
        /// Its first process.
        pid: u32,
    },
}

/// Does steps for one desired state.
#[derive(Debug)]
pub struct Executor<'a, E, V> {
    engine: &'a E,
    vm: &'a V,
    desired: &'a Arc<Desired>,
}

impl<'a, E: Engine, V: Vm> Executor<'a, E, V> {
    /// An executor.
    #[must_use]
    pub fn new(engine: &'a E, vm: &'a V, desired: &'a Arc<Desired>) -> Self {
        Self { engine, vm, desired }
    }

    /// Does one step.
    ///
    /// # Errors
    /// See [`ExecuteError`]. A step that failed may be repeated.
    pub async fn execute(&self, action: &Action) -> Result<Done, ExecuteError> {
        let mode = self.desired.mode;
        match action {
            Action::LoadTable => self.load_table().await?,
            Action::ClaimRoutes => self.vm.claim_routes(self.desired).await?,
            Action::Detach { container_id, network, .. } => self.engine.detach(network, container_id).await?,
            Action::StopContainer { id, .. } => self.engine.stop_container(id).await?,
            Action::RemoveContainer { id, .. } => self.engine.remove_container(id).await?,
            Action::RemoveNetwork { id, .. } => self.engine.remove_network(id).await?,
            Action::CreateNetwork { name } => {
                let spec = self.desired.network(name).ok_or_else(|| outdated(name))?;
                self.engine.create_network(mode, spec).await?;
            }
            Action::CreateVolume { name } => {
                let spec = self.volume(name)?;
                let mountpoint = self.engine.create_volume(mode, spec).await?;
                self.vm.own_volume(&mountpoint, spec).await?;
            }
            Action::OwnVolume { name } => {
                let spec = self.volume(name)?;
                let inventory = self.engine.inventory().await?;
                let found = inventory.volumes.iter().find(|found| &found.name == name && found.owner.is_of(mode));
                let found = found.ok_or_else(|| ExecuteError::NoVolume { name: name.clone() })?;
                self.vm.own_volume(&found.mountpoint, spec).await?;
            }
            Action::WriteFiles { name } => self.vm.write_files(self.container(name)?).await?,
            Action::OpenSocketDirectory { name } => self.vm.open_sockets(self.container(name)?).await?,
            Action::CreateContainer { name } => {
                self.engine.create_container(mode, self.container(name)?).await?;
            }
            Action::StartContainer { name } => {
                let spec = self.container(name)?;
                let id = self.find(name).await?.id;
                self.engine.start_container(&id).await?;
                return self.bring_up(spec, &id).await;
            }
            Action::AdoptContainer { name } => {
                let spec = self.container(name)?;
                let id = self.find(name).await?.id;
                return self.bring_up(spec, &id).await;
            }
        }
        Ok(Done::Plainly)
    }

    async fn load_table(&self) -> Result<(), ExecuteError> {
        let inventory = self.engine.inventory().await?;
        self.vm.load_table(self.desired, &inventory.containers).await?;
        Ok(())
    }

    /// From started to ready.
    async fn bring_up(&self, spec: &ContainerSpec, id: &str) -> Result<Done, ExecuteError> {
        let inventory = self.engine.inventory().await?;
        let found = inventory.containers.iter().find(|found| found.id == id).ok_or_else(|| outdated(&spec.name))?;
        let State::Running { pid, started_at } = found.state else {
            let code = if let State::Exited { code } = found.state { code } else { -1 };
            return Err(self.ended(spec, id, code, SystemTime::UNIX_EPOCH).await);
        };
        let walls = async {
            self.vm.load_table(self.desired, &inventory.containers).await?;
            self.vm.prepare(pid, self.desired, spec).await
        };
        if let Err(source) = walls.await {
            if !self.vm.is_alive(pid) {
                // The process ended; that its namespace is gone is a consequence.
                return Err(self.ended(spec, id, self.exit_code(id).await, started_at).await);
            }
            self.engine.stop_container(id).await?;
            return Err(ExecuteError::NotPrepared { container: spec.name.clone(), source });
        }
        self.await_ready(spec, id, pid, started_at).await?;
        Ok(Done::Settled { name: spec.name.clone(), id: id.to_owned(), pid })
    }

    async fn await_ready(
        &self,
        spec: &ContainerSpec,
        id: &str,
        pid: u32,
        started_at: SystemTime,
    ) -> Result<(), ExecuteError> {
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            let why = match is_ready(self.engine, self.vm, spec, id, pid, started_at).await? {
                Ok(()) if self.vm.is_alive(pid) => return Ok(()),
                Ok(()) => return Err(self.ended(spec, id, self.exit_code(id).await, started_at).await),
                Err(why) => why,
            };
            if !self.vm.is_alive(pid) {
                return Err(self.ended(spec, id, self.exit_code(id).await, started_at).await);
            }
            if tokio::time::Instant::now() >= deadline {
                let log = log_end(self.engine, id, started_at).await;
                return Err(ExecuteError::NotReady { container: spec.name.clone(), why, log });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn ended(&self, spec: &ContainerSpec, id: &str, code: i64, since: SystemTime) -> ExecuteError {
        let log = log_end(self.engine, id, since).await;
        ExecuteError::Ended { container: spec.name.clone(), code, log }
    }

    async fn exit_code(&self, id: &str) -> i64 {
        let inventory = self.engine.inventory().await.unwrap_or_default();
        match inventory.containers.iter().find(|found| found.id == id).map(|found| found.state) {
            Some(State::Exited { code }) => code,
            _ => -1,
        }
    }

    /// A container of ours by name, made from today's specification.
    async fn find(&self, name: &str) -> Result<Container, ExecuteError> {
        let inventory = self.engine.inventory().await?;
        inventory
            .containers
            .into_iter()
            .find(|found| found.name == name && crate::plan::is_current(self.desired, found))
            .ok_or_else(|| outdated(name))
    }

    fn container(&self, name: &str) -> Result<&'a ContainerSpec, ExecuteError> {
        self.desired.container(name).ok_or_else(|| outdated(name))
    }

    fn volume(&self, name: &str) -> Result<&'a VolumeSpec, ExecuteError> {
        self.desired.volumes.iter().find(|volume| volume.name == name).ok_or_else(|| outdated(name))
    }
}

fn outdated(name: &str) -> ExecuteError {
    ExecuteError::Outdated { name: name.to_owned() }
}

/// Asks once whether a container is ready; the outer error is the engine's.
///
/// # Errors
/// When the engine cannot be asked for the log.
pub async fn is_ready(
    engine: &impl Engine,
    vm: &impl Vm,
    spec: &ContainerSpec,
    id: &str,
    pid: u32,
    started_at: SystemTime,
) -> Result<Result<(), NotReady>, EngineError> {
    match &spec.ready {
        Ready::LogLine { needle } => {
            let lines = engine.log_tail(id, started_at, NEEDLE_LINES).await?;
            let said = lines.iter().any(|line| line.contains(needle.as_str()));
            Ok(if said { Ok(()) } else { Err(NotReady::LogIsSilent { needle: needle.clone() }) })
        }
        _ => Ok(vm.is_ready(pid, spec).await),
    }
}

/// The end of a container's log, made harmless. A log that cannot be read is no error of its own.
pub async fn log_end(engine: &impl Engine, id: &str, since: SystemTime) -> Vec<String> {
    match engine.log_tail(id, since, LOG_LINES).await {
        Ok(lines) => {
            let skip = lines.len().saturating_sub(usize::from(LOG_LINES));
            lines.iter().skip(skip).map(|line| harmless_line(line, MOST_LINE)).collect()
        }
        Err(error) => vec![format!("(its log cannot be read: {error})")],
    }
}
