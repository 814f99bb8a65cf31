//! Does one step of a plan. Dull on purpose: what to do and in which order is `plan`'s affair.
//!
//! It owns what a step consists of where that is more than one call, above all the start of a container: started, named
//! in the kernel table by the ports it got, its namespace prepared. Until the table names it, a container reaches nothing;
//! if it cannot be prepared, for whatever reason, it does not go on running. Whether it is ready is asked in a step of its
//! own, briefly: nobody looks after the walls while a step runs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use service_kit::text::harmless_line;

use crate::desired::{ContainerSpec, Desired, Ready, VolumeSpec};
use crate::engine::{Engine, EngineError, Inventory};
use crate::observed::{Container, Incarnation, READY_WITHIN, SquidLog, State};
use crate::plan::Action;
use crate::vm::{NotReady, Vm, VmError};

/// How long one step waits for a container. Most are ready by then, which spares a look at everything.
pub const WAIT_AT_ONCE: Duration = Duration::from_secs(2);
/// How long Squid may take to open its log anew.
const REOPENED_WITHIN: Duration = Duration::from_secs(5);
/// What tells Squid to open its logs anew. With `logfile_rotate 0` it renames nothing itself.
const REOPEN: &str = "SIGUSR1";
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
    /// Squid's log was renamed, and Squid did not open a new one.
    #[error("{container} does not open a new log within {} s; it is told again", REOPENED_WITHIN.as_secs())]
    NotReopened {
        /// Which container.
        container: String,
    },
    /// It ended.
    #[error("{container} ended with status {code}{}", shown(log))]
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
    /// It could not be prepared.
    #[error("{container} was stopped because its namespace could not be prepared: {source}")]
    NotPrepared {
        /// Which container.
        container: String,
        /// Why.
        source: PrepareError,
    },
    /// It could not be prepared, and could not be stopped either.
    #[error("{container} could not be prepared ({source}), nor stopped: {stop}; it reaches only what the table names")]
    NotStopped {
        /// Which container.
        container: String,
        /// Why it was to be stopped.
        source: PrepareError,
        /// Why it was not.
        stop: Box<EngineError>,
    },
}

/// Why a container that was started could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The engine did not say which process it is.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The table or its namespace.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl ExecuteError {
    /// Whether the engine as a whole is away, which is no container's failure.
    #[must_use]
    pub fn is_engine_away(&self) -> bool {
        match self {
            Self::Engine(error)
            | Self::NotPrepared { source: PrepareError::Engine(error), .. }
            | Self::NotStopped { source: PrepareError::Engine(error), .. } => error.is_unavailable(),
            _ => false,
        }
    }
}

fn shown(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; the end of its log:\n    {}", log.join("\n    ")) }
}

/// What a step brought about beyond itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Nothing to remember.
    Plainly,
    /// A container runs and is prepared.
    Prepared {
        /// Its name.
        name: String,
        /// The run that was prepared.
        run: Incarnation,
    },
    /// A container is ready.
    Ready {
        /// Its name.
        name: String,
    },
    /// A container is not ready yet, and has time left.
    NotYet {
        /// Its name.
        name: String,
        /// What it was asked.
        why: NotReady,
    },
}

/// What is known of a container that is to be waited for.
#[derive(Debug, Clone, Default)]
pub struct Wait {
    /// The run that was prepared.
    pub run: Option<Incarnation>,
    /// How long the step may take.
    pub patience: Duration,
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

    /// Does one step. `wait` is for [`Action::AwaitReady`].
    ///
    /// # Errors
    /// See [`ExecuteError`]. A step that failed may be repeated.
    pub async fn execute(&self, action: &Action, wait: Wait) -> Result<Done, ExecuteError> {
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
                return self.start(spec, &id).await;
            }
            Action::AdoptContainer { name } => {
                let spec = self.container(name)?;
                let id = self.find(name).await?.id;
                let inventory = self.engine.inventory().await?;
                return match self.prepare(spec, &id, &inventory).await {
                    Err(Unprepared::Failed(source)) => Err(self.stop_unprepared(spec, &id, source).await),
                    Err(Unprepared::Ended(error)) => Err(error),
                    Ok(done) => Ok(done),
                };
            }
            Action::AwaitReady { name } => return self.await_ready(self.container(name)?, wait).await,
            Action::RotateLog { id, name } => self.rotate_log(self.container(name)?, id).await?,
        }
        Ok(Done::Plainly)
    }

    async fn load_table(&self) -> Result<(), ExecuteError> {
        let inventory = self.engine.inventory().await?;
        self.vm.load_table(self.desired, &inventory.containers).await?;
        Ok(())
    }

    /// From made to prepared. Whatever fails on the way: it does not go on running, even if only the answer to the start
    /// was lost.
    async fn start(&self, spec: &ContainerSpec, id: &str) -> Result<Done, ExecuteError> {
        if let Err(error) = self.engine.start_container(id).await {
            if let Err(stop) = self.engine.stop_container(id).await {
                tracing::error!(container = %spec.name, %stop, "its start failed, and it could not be stopped");
            }
            return Err(error.into());
        }
        let inventory = match self.engine.inventory().await {
            Ok(inventory) => inventory,
            Err(error) => return Err(self.stop_unprepared(spec, id, error.into()).await),
        };
        match self.prepare(spec, id, &inventory).await {
            Ok(done) => Ok(done),
            Err(Unprepared::Failed(source)) => Err(self.stop_unprepared(spec, id, source).await),
            Err(Unprepared::Ended(error)) => Err(error),
        }
    }

    async fn stop_unprepared(&self, spec: &ContainerSpec, id: &str, source: PrepareError) -> ExecuteError {
        let container = spec.name.clone();
        match self.engine.stop_container(id).await {
            Ok(()) => ExecuteError::NotPrepared { container, source },
            Err(stop) => ExecuteError::NotStopped { container, source, stop: Box::new(stop) },
        }
    }

    /// Names a running container's ports in the table and prepares its namespace.
    async fn prepare(&self, spec: &ContainerSpec, id: &str, inventory: &Inventory) -> Result<Done, Unprepared> {
        let Some(found) = inventory.containers.iter().find(|found| found.id == id) else {
            return Err(Unprepared::Ended(outdated(&spec.name)));
        };
        let State::Running { pid, started_at } = found.state else {
            let code = if let State::Exited { code } = found.state { code } else { -1 };
            return Err(Unprepared::Ended(self.ended(spec, id, code, SystemTime::UNIX_EPOCH).await));
        };
        let walls = async {
            self.vm.load_table(self.desired, &inventory.containers).await?;
            self.vm.prepare(pid, self.desired, spec).await
        };
        if let Err(source) = walls.await {
            if self.vm.is_alive(pid) {
                return Err(Unprepared::Failed(source.into()));
            }
            // The process ended; that its namespace is gone is a consequence.
            return Err(Unprepared::Ended(self.ended(spec, id, self.exit_code(id).await, started_at).await));
        }
        let run = Incarnation { id: id.to_owned(), pid, started_at, since: SystemTime::now() };
        Ok(Done::Prepared { name: spec.name.clone(), run })
    }

    /// Asks for a moment whether a prepared container is ready.
    async fn await_ready(&self, spec: &ContainerSpec, wait: Wait) -> Result<Done, ExecuteError> {
        let Incarnation { id, pid, started_at, .. } = wait.run.as_ref().ok_or_else(|| outdated(&spec.name))?;
        let until = tokio::time::Instant::now() + wait.patience;
        loop {
            let answer = is_ready(self.engine, self.vm, spec, id, *pid, *started_at).await?;
            if !self.vm.is_alive(*pid) {
                return Err(self.ended(spec, id, self.exit_code(id).await, *started_at).await);
            }
            let Err(why) = answer else { return Ok(Done::Ready { name: spec.name.clone() }) };
            if wait.run.as_ref().is_some_and(|run| run.is_overdue(SystemTime::now())) {
                let log = log_end(self.engine, id, *started_at).await;
                return Err(ExecuteError::NotReady { container: spec.name.clone(), why, log });
            }
            if tokio::time::Instant::now() >= until {
                return Ok(Done::NotYet { name: spec.name.clone(), why });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn rotate_log(&self, spec: &ContainerSpec, id: &str) -> Result<(), ExecuteError> {
        let name = self.desired.squid_log_volume().ok_or_else(|| outdated(&spec.name))?;
        let inventory = self.engine.inventory().await?;
        let ours = || inventory.volumes.iter().filter(|found| found.owner.is_of(self.desired.mode));
        let volume = ours().find(|found| found.name == name);
        let volume = volume.ok_or_else(|| ExecuteError::NoVolume { name: name.to_owned() })?;
        let reader = ours().find(|found| Some(found.name.as_str()) == self.desired.audit_volume());
        let reader = reader.map(|found| found.mountpoint.as_path());
        if self.vm.squid_log(&volume.mountpoint, reader) == SquidLog::Full {
            self.vm.rotate_squid_log(&volume.mountpoint).await?;
        }
        self.engine.signal_container(id, REOPEN).await?;
        let until = tokio::time::Instant::now() + REOPENED_WITHIN;
        while self.vm.squid_log(&volume.mountpoint, reader) == SquidLog::Moved {
            if tokio::time::Instant::now() >= until {
                return Err(ExecuteError::NotReopened { container: spec.name.clone() });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok(())
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

/// Why a container is not prepared.
enum Unprepared {
    /// It does not run any more.
    Ended(ExecuteError),
    /// It runs, and must not.
    Failed(PrepareError),
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
