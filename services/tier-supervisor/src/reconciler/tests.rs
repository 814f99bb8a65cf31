#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use assistant_proto::config::Mode;

use super::*;
use crate::desired::{ContainerSpec, NetworkSpec, VolumeSpec};
use crate::kernel::KernelError;
use crate::observed::{Endpoint, Network, Owner, Ownership, Volume};
use crate::plan::{network_hash, samples};
use crate::vm::NotReady;

/// One machine for both seams, so that the order across them is seen. Keeps a diary of what was done.
#[derive(Debug, Default)]
struct Machine {
    diary: Mutex<Vec<String>>,
    inventory: Mutex<Inventory>,
    table: Mutex<Table>,
    routes: AtomicBool,
    next: AtomicU32,
    /// Container that never becomes ready.
    mute: Mutex<Option<&'static str>>,
    /// The kernel refuses tables.
    no_table: AtomicBool,
    /// Docker does not answer.
    away: AtomicBool,
}

impl Machine {
    fn write(&self, line: impl Into<String>) {
        self.diary.lock().unwrap().push(line.into());
    }

    fn diary(&self) -> Vec<String> {
        self.diary.lock().unwrap().clone()
    }

    fn fresh(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn state(&self, id: &str, state: State) {
        let mut inventory = self.inventory.lock().unwrap();
        inventory.containers.iter_mut().filter(|found| found.id == id).for_each(|found| found.state = state);
        drop(inventory);
        self.outdate();
    }

    fn outdate(&self) {
        let mut table = self.table.lock().unwrap();
        if *table == Table::Stands {
            *table = Table::Outdated;
        }
    }
}

#[derive(Debug, Clone)]
struct Fake(Arc<Machine>);

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
        Ok(())
    }

    async fn stop_container(&self, id: &str) -> Result<(), EngineError> {
        self.0.write(format!("stop {id}"));
        self.0.state(id, State::Exited { code: 0 });
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

    async fn watch(&self, _: impl Fn() + Send) -> Result<(), EngineError> {
        std::future::pending().await
    }
}

impl Vm for Fake {
    async fn observe(&self, _: &Arc<Desired>, _: &Inventory) -> Result<Host, VmError> {
        Ok(Host {
            table: *self.0.table.lock().unwrap(),
            routes_stand: self.0.routes.load(Ordering::Relaxed),
            ..Host::default()
        })
    }

    fn volume_top(&self, mountpoint: &Path) -> Option<Ownership> {
        let mut parts = mountpoint.iter().skip(2).map(|part| part.to_str().unwrap().parse().unwrap());
        Some(Ownership { uid: parts.next().unwrap(), gid: parts.next().unwrap(), mode: 0o700 })
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

struct Bench {
    machine: Arc<Machine>,
    stack: Arc<Stack<Fake, Fake>>,
    wanted: watch::Sender<Wanted>,
    bus: Bus,
}

fn bench(desired: Desired) -> Bench {
    let machine = Arc::new(Machine::default());
    let (wanted, known) = watch::channel(Wanted { desired: Arc::new(desired), problems: Vec::new() });
    let bus = Bus::detached();
    let stack = Stack::new(Fake(Arc::clone(&machine)), Fake(Arc::clone(&machine)), bus.clone(), known);
    Bench { machine, stack: Arc::new(stack), wanted, bus }
}

impl Bench {
    /// As many rounds as one wake makes.
    async fn wake(&self) -> Picture {
        let mut reconciler = Reconciler::new(Arc::clone(&self.stack));
        reconciler.rounds(None, &CancellationToken::new()).await;
        self.stack.watch().borrow().clone()
    }

    fn position(&self, line: &str) -> usize {
        self.machine.diary().iter().position(|found| found.starts_with(line)).unwrap_or_else(|| panic!("no {line:?}"))
    }
}

#[tokio::test(start_paused = true)]
async fn the_walls_stand_before_anything_starts() {
    let bench = bench(samples::desired());
    let picture = bench.wake().await;
    assert!(picture.converged, "{:?}", picture.problem);
    let diary = bench.machine.diary();
    let first_start = bench.position("start");
    assert!(bench.position("table for 0") < first_start);
    assert!(bench.position("routes") < first_start);
    assert!(bench.position("own assistant-drill-nats") < first_start);
    // Each start is followed by a table with its ports, then by its namespace, then by the question.
    for (spec, running) in samples::desired().containers.iter().zip(1..) {
        let table = bench.position(&format!("table for {running}"));
        let prepared = bench.position(&format!("prepare {}", spec.name));
        let ready = bench.position(&format!("ready {}", spec.name));
        assert!(
            bench.position(&format!("create {}", spec.name)) < table && table < prepared && prepared < ready,
            "{diary:#?}"
        );
    }
    assert!(
        diary.iter().filter(|line| line.starts_with("start")).all(|line| line.ends_with("table Stands")),
        "{diary:#?}"
    );
    let subjects: Vec<String> = bench.bus.emitted().into_iter().map(|(subject, _)| subject).collect();
    assert!(subjects.contains(&"tier.changed.stack".to_owned()) && subjects.contains(&"tier.changed.tasks".to_owned()));
    assert_eq!(subjects.last().map(String::as_str), Some("floor.checked.stack"));
}

#[tokio::test(start_paused = true)]
async fn a_second_wake_does_nothing() {
    let bench = bench(samples::desired());
    bench.wake().await;
    let before = bench.machine.diary().len();
    let picture = bench.wake().await;
    assert!(picture.converged);
    let after: Vec<String> = bench.machine.diary().split_off(before);
    assert!(after.iter().all(|line| line.starts_with("ready") || line == "floor"), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_table_nothing_starts_and_nothing_goes_on() {
    let bench = bench(samples::desired());
    bench.machine.no_table.store(true, Ordering::Relaxed);
    let picture = bench.wake().await;
    assert!(!picture.converged && picture.problem.is_some_and(|problem| problem.contains("kernel")));
    assert!(!bench.machine.diary().iter().any(|line| line.starts_with("create") || line.starts_with("start")));

    bench.machine.no_table.store(false, Ordering::Relaxed);
    assert!(bench.wake().await.converged);
    // The table is taken away and cannot be loaded again.
    *bench.machine.table.lock().unwrap() = Table::Missing;
    bench.machine.no_table.store(true, Ordering::Relaxed);
    bench.wake().await;
    let inventory = bench.machine.inventory.lock().unwrap().clone();
    assert!(inventory.containers.iter().all(|found| !found.state.is_running()), "{inventory:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ready_is_said_with_the_end_of_its_log() {
    let bench = bench(samples::desired());
    *bench.machine.mute.lock().unwrap() = Some("zeroclaw-tasks");
    let picture = bench.wake().await;
    let problem = picture.problem.clone().unwrap();
    assert!(problem.contains("zeroclaw-tasks was not ready within 90 s"), "{problem}");
    assert!(problem.contains("the end \\u{1b}[31m"), "{problem}");
    assert!(!picture.converged);
    // The stack's own parts are up all the same.
    let spec = picture.desired.container("assistant-secret-broker").unwrap().clone();
    assert_eq!(bench.stack.look().await.unwrap().observed.history["assistant-secret-broker"].failures, 0);
    assert!(picture.found(&spec).is_some());
    *bench.machine.mute.lock().unwrap() = None;
    bench.stack.note("zeroclaw-tasks", |history| history.failed_at = Some(SystemTime::UNIX_EPOCH));
    assert!(bench.wake().await.converged);
}

#[tokio::test(start_paused = true)]
async fn docker_away_is_a_problem_and_no_failure_of_any_container() {
    let bench = bench(samples::desired());
    bench.machine.away.store(true, Ordering::Relaxed);
    let picture = bench.wake().await;
    assert!(picture.problem.is_some_and(|problem| problem.contains("Docker does not answer")));
    bench.machine.away.store(false, Ordering::Relaxed);
    assert!(bench.wake().await.converged);
}

#[tokio::test(start_paused = true)]
async fn files_that_cannot_be_used_are_reported_and_change_nothing() {
    let bench = bench(samples::desired());
    bench.wake().await;
    let before = bench.machine.inventory.lock().unwrap().clone();
    bench.wanted.send_modify(|wanted| wanted.problems = vec!["tiers.yaml:3:1: unknown field".to_owned()]);
    let picture = bench.wake().await;
    assert_eq!(picture.problem.as_deref(), Some("tiers.yaml:3:1: unknown field"));
    assert!(!picture.converged);
    assert_eq!(*bench.machine.inventory.lock().unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn an_apply_hears_of_every_step() {
    let bench = bench(samples::desired());
    let (reports, mut heard) = mpsc::channel(256);
    let mut reconciler = Reconciler::new(Arc::clone(&bench.stack));
    reconciler.rounds(Some(&reports), &CancellationToken::new()).await;
    drop(reports);
    let mut lines = Vec::new();
    while let Some(report) = heard.recv().await {
        let report = report.unwrap();
        assert_eq!(report.error, None);
        lines.push((report.step.action.to_string(), report.done, report.total));
    }
    let total = u32::try_from(lines.len()).unwrap();
    assert_eq!(lines.last(), Some(&("start container zeroclaw-tasks".to_owned(), total, total)));
    assert!(lines.iter().zip(1..).all(|((_, done, of), number)| *done == number && *of == total), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_even_when_nothing_is_to_be_done() {
    let bench = bench(samples::desired());
    let (applies, received) = mpsc::channel(1);
    let draining = CancellationToken::new();
    let run = Reconciler::new(Arc::clone(&bench.stack)).run(Arc::new(Notify::new()), received, draining.clone());
    let asks = async {
        bench.stack.watch().wait_for(|picture| picture.converged).await.unwrap();
        let (reports, mut heard) = mpsc::channel(1);
        applies.send(Apply { reports }).await.unwrap();
        assert!(heard.recv().await.is_none());
        draining.cancel();
    };
    let (ended, ()) = tokio::join!(run, asks);
    ended.unwrap();
}
