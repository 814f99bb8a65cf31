//! What the reconciler and the control socket share: the seams, what is remembered between rounds, and the picture. Looks
//! and plans; changes nothing but what is remembered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use service_kit::bus::Bus;
use tokio::sync::watch;

use super::Picture;
use crate::desired::Desired;
use crate::engine::{Engine, EngineError, Inventory};
use crate::execute::{self, ExecuteError, Wait};
use crate::floor::Verdict;
use crate::observed::{Disk, History, Host, Observed, State};
use crate::plan::{self, Plan};
use crate::vm::{Vm, VmError};
use crate::wanted::Wanted;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// What one look found.
#[derive(Debug, Clone)]
pub struct Look {
    /// What should be.
    pub desired: Arc<Desired>,
    /// What is.
    pub observed: Arc<Observed>,
    /// What is to be done.
    pub plan: Plan,
}

/// What the reconciler and the control socket share.
#[derive(Debug)]
pub struct Stack<E, V> {
    pub(super) engine: E,
    pub(super) vm: V,
    pub(super) bus: Bus,
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) history: Mutex<BTreeMap<String, History>>,
    /// Containers that have ended by themselves and whose logs have not been read yet: name, id, exit status.
    ended: Mutex<Vec<(String, String, i64)>>,
    pub(super) picture: watch::Sender<Picture>,
    disk: Mutex<Disk>,
}

impl<E: Engine, V: Vm> Stack<E, V> {
    /// Everything that a round works with.
    #[must_use]
    pub fn new(engine: E, vm: V, bus: Bus, wanted: watch::Receiver<Wanted>) -> Self {
        let first = Picture::unseen(&wanted.borrow());
        let picture = watch::channel(first).0;
        let (history, ended, disk) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { engine, vm, bus, wanted, history, ended, picture, disk }
    }

    /// The engine.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// The VM.
    pub fn vm(&self) -> &V {
        &self.vm
    }

    /// How the disk stands, from now on. Whether that is new.
    pub fn note_disk(&self, disk: Disk) -> bool {
        let mut known = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *known, disk) != disk
    }

    /// The picture and every change of it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Picture> {
        self.picture.subscribe()
    }

    /// What should be, as the files last said it.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.wanted.borrow().clone()
    }

    /// Observes and plans, and changes nothing.
    ///
    /// # Errors
    /// When the engine or the VM cannot be looked at.
    pub async fn look(&self) -> Result<Look, LookError> {
        let desired = Arc::clone(&self.wanted.borrow().desired);
        let inventory = self.engine.inventory().await?;
        let host = self.vm.observe(&desired, &inventory).await?;
        let now = SystemTime::now();
        let observed = self.remember(inventory, host, now);
        self.report_ended().await;
        let plan = plan::plan(&desired, &observed, now);
        Ok(Look { desired, observed: Arc::new(observed), plan })
    }

    /// Joins what was found with what is remembered.
    pub(super) fn remember(&self, inventory: Inventory, host: Host, now: SystemTime) -> Observed {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, remembered) in history.iter_mut() {
            let found = inventory.containers.iter().find(|found| &found.name == name);
            if let (true, Some(found)) = (remembered.note_seen(found, now), found) {
                let code = if let State::Exited { code } = found.state { code } else { -1 };
                let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
                ended.push((name.clone(), found.id.clone(), code));
            }
        }
        let Inventory { networks, mut volumes, containers, restart_policies } = inventory;
        for volume in volumes.iter_mut().filter(|volume| volume.owner.is_ours()) {
            volume.top = self.vm.volume_top(&volume.mountpoint);
        }
        let disk = *self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        Observed { networks, volumes, containers, restart_policies, host, disk, history: history.clone() }
    }

    /// Says of each container that has ended what it said last.
    async fn report_ended(&self) {
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        for (container, id, code) in ended {
            let log = execute::log_end(&self.engine, &id, SystemTime::UNIX_EPOCH).await;
            let problem = ExecuteError::Ended { container, code, log }.to_string();
            tracing::error!("{problem}");
            self.picture.send_modify(|picture| picture.problem = Some(problem));
        }
    }

    /// What a wait for a container goes by.
    pub(super) fn wait(&self, name: Option<&str>, patience: Duration) -> Wait {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        Wait { run: name.and_then(|name| history.get(name)?.prepared.clone()), patience }
    }

    pub(crate) fn note(&self, name: &str, note: impl FnOnce(&mut History)) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        note(history.entry(name.to_owned()).or_default());
    }

    /// Checks the floor as it is now.
    ///
    /// # Errors
    /// When the engine cannot be looked at.
    pub async fn check_floor(&self) -> Result<Vec<Verdict>, LookError> {
        let desired = Arc::clone(&self.wanted.borrow().desired);
        let inventory = self.engine.inventory().await?;
        let host = self.vm.observe(&desired, &inventory).await?;
        let observed = Arc::new(self.remember(inventory, host, SystemTime::now()));
        Ok(self.vm.check_floor(&desired, &observed).await?)
    }
}
