//! What is done to the VM itself, beside the container engine: kernel table, routes, namespaces of containers, rendered
//! files, socket directories, owners of volumes, readiness.
//!
//! It owns the seam that `execute` and `reconciler` are written against, and the implementation for Linux, which joins the
//! modules that know how. It decides nothing: what is to be done stands in the desired state, when in the plan.

mod kernel_table;
pub(crate) mod pages;
mod ready;
mod rendered;
mod sockets;
mod squid_log;
mod subnets;
mod volumes;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::command::CommandError;
use crate::desired::{ContainerSpec, Desired, VolumeSpec};
use crate::engine::Inventory;
use crate::floor::{self, Verdict};
use crate::kernel::{KernelError, Standing};
use crate::netns::NetnsError;
use crate::nflog::Ledger;
use crate::observed::{Container, Host, Observed, Ownership, SquidLog, Table};
use crate::routes::RouteError;

pub use kernel_table::PortMap;
pub use ready::NotReady;
pub use rendered::FilesError;
pub use sockets::{SocketsError, ensure_group, open_directory};
pub use squid_log::SquidLogError;
pub use subnets::occupied;
pub use volumes::VolumeError;

/// What is asked of the VM.
pub trait Vm: Send + Sync + 'static {
    /// How table, routes, files and sockets stand.
    fn observe(
        &self,
        desired: &Arc<Desired>,
        inventory: &Inventory,
    ) -> impl Future<Output = Result<Host, VmError>> + Send;

    /// Owner of a volume's top directory; none when it cannot be looked at.
    fn volume_top(&self, mountpoint: &Path) -> Option<Ownership>;

    /// How Squid's log in this directory stands. Its reader keeps in `reader`, where there is such a volume, how far it
    /// came.
    fn squid_log(&self, directory: &Path, reader: Option<&Path>) -> SquidLog;

    /// Puts Squid's log aside; Squid is to be told.
    fn rotate_squid_log(&self, directory: &Path) -> impl Future<Output = Result<(), VmError>> + Send;

    /// Leads what leaves our bridges where it must go. Nothing to do in a live stack.
    fn claim_routes(&self, desired: &Arc<Desired>) -> impl Future<Output = Result<(), VmError>> + Send;

    /// Replaces the kernel table in one transaction and reads it back. Ports are named only for running containers that
    /// are made from today's specification.
    fn load_table(
        &self,
        desired: &Arc<Desired>,
        containers: &[Container],
    ) -> impl Future<Output = Result<(), VmError>> + Send;

    /// Gives a volume's top directory to its user.
    fn own_volume(&self, mountpoint: &Path, spec: &VolumeSpec) -> impl Future<Output = Result<(), VmError>> + Send;

    /// Writes a container's rendered files and removes strangers among them.
    fn write_files(&self, spec: &ContainerSpec) -> impl Future<Output = Result<(), VmError>> + Send;

    /// Makes the directories of a container's control socket and of its pages' sockets, and the link to the former.
    fn open_sockets(&self, spec: &ContainerSpec) -> impl Future<Output = Result<(), VmError>> + Send;

    /// Gives a running container's namespace what it needs.
    fn prepare(
        &self,
        pid: u32,
        desired: &Arc<Desired>,
        spec: &ContainerSpec,
    ) -> impl Future<Output = Result<(), VmError>> + Send;

    /// Asks once whether a container is ready. `Ready::LogLine` is not asked here: it is the engine's log.
    fn is_ready(&self, pid: u32, spec: &ContainerSpec) -> impl Future<Output = Result<(), NotReady>> + Send;

    /// Checks whether the walls stand.
    fn check_floor(
        &self,
        desired: &Arc<Desired>,
        observed: &Arc<Observed>,
    ) -> impl Future<Output = Result<Vec<Verdict>, VmError>> + Send;

    /// Whether a process exists.
    fn is_alive(&self, pid: u32) -> bool;
}

/// Why something could not be done to the VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The kernel table.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Routes.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// Rendered files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Socket directories.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// Volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Squid's log.
    #[error(transparent)]
    SquidLog(#[from] SquidLogError),
    /// A tool.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A blocking part panicked.
    #[error("a part of the supervisor panicked while working on the VM; this is a bug")]
    Panicked,
}

/// This machine.
#[derive(Debug)]
pub struct Linux {
    render_dir: PathBuf,
    engine_socket: PathBuf,
    sockets: Arc<sockets::Sockets>,
    table: Arc<kernel_table::Keeper>,
}

impl Linux {
    /// The VM: where state is kept, who gets at the control sockets, which socket no container may have, who is told which
    /// port is whose, and where the counters of a table go that is replaced.
    #[must_use]
    pub fn new(state_dir: &Path, operator_uid: u32, engine_socket: &Path, ports: PortMap, ledger: Ledger) -> Self {
        Self {
            engine_socket: engine_socket.to_owned(),
            render_dir: state_dir.join("render"),
            sockets: Arc::new(sockets::Sockets::new(operator_uid)),
            table: Arc::new(kernel_table::Keeper::new(ports, ledger)),
        }
    }

    /// The kernel table as it should stand, for who keeps it standing.
    #[must_use]
    pub fn standing(&self) -> Arc<Standing> {
        self.table.standing()
    }
}

async fn blocking<T, Error>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, VmError>
where
    T: Send + 'static,
    Error: Into<VmError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(VmError::Panicked),
    }
}

impl Vm for Linux {
    async fn observe(&self, desired: &Arc<Desired>, inventory: &Inventory) -> Result<Host, VmError> {
        let desired = Arc::clone(desired);
        let containers = inventory.containers.clone();
        let volume = |name: Option<&str>| {
            let found = inventory.volumes.iter().find(|found| Some(found.name.as_str()) == name);
            found.filter(|found| found.owner.is_of(desired.mode)).map(|found| found.mountpoint.as_path())
        };
        let reader = volume(desired.audit_volume());
        let log = volume(desired.squid_log_volume());
        let squid_log = log.map_or(SquidLog::Fine, |directory| squid_log::standing(directory, reader));
        let render_dir = self.render_dir.clone();
        let (sockets, table) = (Arc::clone(&self.sockets), Arc::clone(&self.table));
        blocking(move || -> Result<Host, VmError> {
            let names = |is_stale: &dyn Fn(&ContainerSpec) -> bool| -> BTreeSet<String> {
                desired.containers.iter().filter(|spec| is_stale(spec)).map(|spec| spec.name.clone()).collect()
            };
            Ok(Host {
                table: table.compare(&desired, &containers),
                routes_stand: kernel_table::routes_stand(&desired),
                stale_files: names(&|spec| rendered::is_stale(&render_dir, spec)),
                stale_sockets: names(&|spec| sockets.is_stale(spec) || pages::is_stale(spec)),
                squid_log,
            })
        })
        .await
    }

    fn volume_top(&self, mountpoint: &Path) -> Option<Ownership> {
        volumes::top(mountpoint)
    }

    fn squid_log(&self, directory: &Path, reader: Option<&Path>) -> SquidLog {
        squid_log::standing(directory, reader)
    }

    async fn rotate_squid_log(&self, directory: &Path) -> Result<(), VmError> {
        let directory = directory.to_owned();
        blocking(move || squid_log::put_aside(&directory)).await
    }

    async fn claim_routes(&self, desired: &Arc<Desired>) -> Result<(), VmError> {
        let desired = Arc::clone(desired);
        blocking(move || crate::routes::claim(&desired)).await
    }

    async fn load_table(&self, desired: &Arc<Desired>, containers: &[Container]) -> Result<(), VmError> {
        let (desired, containers, table) = (Arc::clone(desired), containers.to_vec(), Arc::clone(&self.table));
        blocking(move || table.load(&desired, &containers)).await
    }

    async fn own_volume(&self, mountpoint: &Path, spec: &VolumeSpec) -> Result<(), VmError> {
        let (mountpoint, spec) = (mountpoint.to_owned(), spec.clone());
        blocking(move || volumes::own(&mountpoint, &spec)).await
    }

    async fn write_files(&self, spec: &ContainerSpec) -> Result<(), VmError> {
        let (render_dir, spec) = (self.render_dir.clone(), spec.clone());
        blocking(move || rendered::write(&render_dir, &spec)).await
    }

    async fn open_sockets(&self, spec: &ContainerSpec) -> Result<(), VmError> {
        let (sockets, spec) = (Arc::clone(&self.sockets), spec.clone());
        blocking(move || sockets.open(&spec).and_then(|()| pages::open(&spec))).await
    }

    async fn prepare(&self, pid: u32, desired: &Arc<Desired>, spec: &ContainerSpec) -> Result<(), VmError> {
        let (desired, spec) = (Arc::clone(desired), spec.clone());
        blocking(move || kernel_table::prepare(pid, &desired, &spec)).await
    }

    async fn check_floor(&self, desired: &Arc<Desired>, observed: &Arc<Observed>) -> Result<Vec<Verdict>, VmError> {
        let (desired, observed, table) = (Arc::clone(desired), Arc::clone(observed), Arc::clone(&self.table));
        let socket = self.engine_socket.clone();
        blocking(move || -> Result<Vec<Verdict>, VmError> {
            let ports = table.ports(&desired, &observed.containers);
            let engine = floor::Engine {
                containers: &observed.containers,
                restart_policies: &observed.restart_policies,
                socket: &socket,
            };
            Ok(floor::check(&desired, &ports, engine))
        })
        .await
    }

    async fn is_ready(&self, pid: u32, spec: &ContainerSpec) -> Result<(), NotReady> {
        ready::ask(pid, spec).await
    }

    fn is_alive(&self, pid: u32) -> bool {
        Path::new("/proc").join(pid.to_string()).exists()
    }
}

/// Whether a table stands that holds something.
#[must_use]
pub fn holds(table: Table) -> bool {
    matches!(table, Table::Outdated | Table::Stands)
}
