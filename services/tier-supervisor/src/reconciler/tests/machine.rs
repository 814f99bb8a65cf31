//! A machine that exists in memory only: Docker and the VM, with what can go wrong with them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use assistant_proto::config::Mode;
use tokio::sync::mpsc;

use crate::desired::{ContainerSpec, Desired, NetworkSpec, VolumeSpec};
use crate::engine::{Engine, EngineError, Inventory, LogLine};
use crate::floor::Verdict;
use crate::kernel::KernelError;
use crate::observed::{Container, Endpoint, Host, Network, Observed, Owner, Ownership, SquidLog, State, Table, Volume};
use crate::plan::network_hash;
use crate::vm::{NotReady, Vm, VmError};

/// One machine for both seams, so that the order across them is seen. Keeps a diary of what was done.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) diary: Mutex<Vec<String>>,
    pub(super) inventory: Mutex<Inventory>,
    pub(super) table: Mutex<Table>,
    pub(super) routes: AtomicBool,
    pub(super) next: AtomicU32,
    /// Container that never becomes ready.
    pub(super) mute: Mutex<Option<&'static str>>,
    /// The kernel refuses tables.
    pub(super) no_table: AtomicBool,
    /// Docker does not answer.
    pub(super) away: AtomicBool,
    /// Docker does not answer as soon as it has started something.
    pub(super) away_after_start: AtomicBool,
    /// Namespaces cannot be prepared.
    pub(super) unpreparable: AtomicBool,
    pub(super) squid_log: Mutex<SquidLog>,
    /// Squid does not listen to signals.
    pub(super) deaf: AtomicBool,
    /// Container that ends as soon as it is started.
    pub(super) crashing: Mutex<Option<&'static str>>,
}

impl Machine {
    pub(super) fn write(&self, line: impl Into<String>) {
        self.diary.lock().unwrap().push(line.into());
    }

    pub(super) fn diary(&self) -> Vec<String> {
        self.diary.lock().unwrap().clone()
    }

    pub(super) fn fresh(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn state(&self, id: &str, state: State) {
        let mut inventory = self.inventory.lock().unwrap();
        inventory.containers.iter_mut().filter(|found| found.id == id).for_each(|found| found.state = state);
        drop(inventory);
        self.outdate();
    }

    pub(super) fn outdate(&self) {
        let mut table = self.table.lock().unwrap();
        if *table == Table::Stands {
            *table = Table::Outdated;
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Fake(pub(super) Arc<Machine>);

impl Engine for Fake {
    async fn inventory(&self) -> Result<Inventory, EngineError> {
        if self.0.away.load(Ordering::Relaxed) {
            return Err(EngineError::Unreachable { socket: PathBuf::from("/d.sock"), why: "refused".to_owned() });
        }
        Ok(self.0.inventory.lock().unwrap().clone())
    }

    async fn create_network(&self, mode: Mode, spec: &NetworkSpec) -> Result<(), EngineError> {
        self.0.write(format!("network {}", spec.name));
        let owner = Owner::Ours { mode: Some(mode), spec: network_hash(spec) };
        let id = format!("n{}", self.0.fresh());
        self.0.inventory.lock().unwrap().networks.push(Network { id, name: spec.name.clone(), owner });
        self.0.outdate();
        Ok(())
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        self.0.inventory.lock().unwrap().networks.retain(|found| found.id != id);
        Ok(())
    }

    async fn detach(&self, network: &str, container_id: &str) -> Result<(), EngineError> {
        self.0.write(format!("detach {container_id} from {network}"));
        for found in &mut self.0.inventory.lock().unwrap().containers {
            if found.id == container_id {
                found.networks.remove(network);
            }
        }
        Ok(())
    }

    async fn create_volume(&self, mode: Mode, spec: &VolumeSpec) -> Result<PathBuf, EngineError> {
        self.0.write(format!("volume {}", spec.name));
        let owner = Owner::Ours { mode: Some(mode), spec: String::new() };
        let mountpoint = PathBuf::from(format!("/volumes/{}/{}", spec.uid, spec.gid));
        let volume = Volume { name: spec.name.clone(), owner, mountpoint: mountpoint.clone(), top: None };
        self.0.inventory.lock().unwrap().volumes.push(volume);
        Ok(mountpoint)
    }

    async fn remove_volume(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }

    async fn create_container(&self, mode: Mode, spec: &ContainerSpec) -> Result<String, EngineError> {
        self.0.write(format!("create {}", spec.name));
        let id = format!("c{}", self.0.fresh());
        let mut inventory = self.0.inventory.lock().unwrap();
        let networks = spec.networks.iter().map(|at| {
            let network = inventory.networks.iter().find(|found| found.name == at.network).expect("the network exists");
            (at.network.clone(), Endpoint { network_id: network.id.clone(), address: Some(at.address) })
        });
        let container = Container {
            id: id.clone(),
            name: spec.name.clone(),
            owner: Owner::Ours { mode: Some(mode), spec: spec.spec_hash() },
            state: State::Created,
            networks: networks.collect(),
            image: spec.image.clone(),
        };
        inventory.containers.push(container);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<(), EngineError> {
        self.0.write(format!("start {id} with table {:?}", *self.0.table.lock().unwrap()));
        self.0.state(id, State::Running { pid: self.0.fresh(), started_at: SystemTime::UNIX_EPOCH });
        if self.0.away_after_start.swap(false, Ordering::Relaxed) {
            self.0.away.store(true, Ordering::Relaxed);
        }
        let crashing = *self.0.crashing.lock().unwrap();
        let found = self.0.inventory.lock().unwrap().containers.iter().find(|found| found.id == id).cloned();
        if found.is_some_and(|found| Some(found.name.as_str()) == crashing) {
            self.0.state(id, State::Exited { code: 7 });
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str) -> Result<(), EngineError> {
        self.0.write(format!("stop {id}"));
        self.0.state(id, State::Exited { code: 0 });
        Ok(())
    }

    async fn signal_container(&self, id: &str, signal: &str) -> Result<(), EngineError> {
        self.0.write(format!("{signal} to {id}"));
        if !self.0.deaf.load(Ordering::Relaxed) {
            *self.0.squid_log.lock().unwrap() = SquidLog::Fine;
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<(), EngineError> {
        self.0.write(format!("remove {id}"));
        self.0.inventory.lock().unwrap().containers.retain(|found| found.id != id);
        Ok(())
    }

    async fn log_tail(&self, _: &str, _: SystemTime, _: u16) -> Result<Vec<String>, EngineError> {
        Ok(vec!["the end \u{1b}[31m".to_owned()])
    }

    async fn follow_log(&self, _: &str, _: u64, _: &mpsc::Sender<LogLine>) -> Result<(), EngineError> {
        Ok(())
    }

    async fn watch(&self, _: impl Fn() + Send) -> Result<(), EngineError> {
        std::future::pending().await
    }
}

impl Vm for Fake {
    async fn observe(&self, _: &Arc<Desired>, _: &Inventory) -> Result<Host, VmError> {
        Ok(Host {
            table: *self.0.table.lock().unwrap(),
            routes_stand: self.0.routes.load(Ordering::Relaxed),
            squid_log: *self.0.squid_log.lock().unwrap(),
            ..Host::default()
        })
    }

    fn volume_top(&self, mountpoint: &Path) -> Option<Ownership> {
        let mut parts = mountpoint.iter().skip(2).map(|part| part.to_str().unwrap().parse().unwrap());
        Some(Ownership { uid: parts.next().unwrap(), gid: parts.next().unwrap(), mode: 0o700 })
    }

    fn squid_log(&self, _: &Path, _: Option<&Path>) -> SquidLog {
        *self.0.squid_log.lock().unwrap()
    }

    async fn rotate_squid_log(&self, _: &Path) -> Result<(), VmError> {
        self.0.write("log put aside");
        *self.0.squid_log.lock().unwrap() = SquidLog::Moved;
        Ok(())
    }

    async fn claim_routes(&self, _: &Arc<Desired>) -> Result<(), VmError> {
        self.0.write("routes");
        self.0.routes.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn load_table(&self, _: &Arc<Desired>, containers: &[Container]) -> Result<(), VmError> {
        if self.0.no_table.load(Ordering::Relaxed) {
            return Err(VmError::Kernel(KernelError::NotAsLoaded));
        }
        let running = containers.iter().filter(|found| found.state.is_running()).count();
        self.0.write(format!("table for {running}"));
        *self.0.table.lock().unwrap() = Table::Stands;
        Ok(())
    }

    async fn own_volume(&self, _: &Path, spec: &VolumeSpec) -> Result<(), VmError> {
        self.0.write(format!("own {}", spec.name));
        Ok(())
    }

    async fn write_files(&self, _: &ContainerSpec) -> Result<(), VmError> {
        Ok(())
    }

    async fn open_sockets(&self, _: &ContainerSpec) -> Result<(), VmError> {
        Ok(())
    }

    async fn prepare(&self, _: u32, _: &Arc<Desired>, spec: &ContainerSpec) -> Result<(), VmError> {
        if self.0.unpreparable.load(Ordering::Relaxed) {
            return Err(VmError::Panicked);
        }
        self.0.write(format!("prepare {}", spec.name));
        Ok(())
    }

    async fn is_ready(&self, _: u32, spec: &ContainerSpec) -> Result<(), NotReady> {
        if *self.0.mute.lock().unwrap() == Some(spec.name.as_str()) {
            return Err(NotReady::NobodyListens { at: "port 1".to_owned() });
        }
        self.0.write(format!("ready {}", spec.name));
        Ok(())
    }

    async fn check_floor(&self, _: &Arc<Desired>, _: &Arc<Observed>) -> Result<Vec<Verdict>, VmError> {
        self.0.write("floor");
        Ok(vec![Verdict { check: "egress-alone", passed: true, detail: String::new(), fix: String::new() }])
    }

    fn is_alive(&self, pid: u32) -> bool {
        self.0.inventory.lock().unwrap().containers.iter().any(|found| found.pid() == Some(pid))
    }
}
