#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod machine;

use std::sync::atomic::Ordering;

use service_kit::bus::Bus;
use tokio::sync::watch;

use super::*;
use crate::desired::{Mount, MountSource, NetworkKind, Role, SQUID_LOG_DIR};
use crate::observed::{Owner, READY_WITHIN, SquidLog};
use crate::plan::samples;
use crate::wanted::Wanted;
use machine::{Fake, Machine};

struct Bench {
    machine: Arc<Machine>,
    stack: Arc<Stack<Fake, Fake>>,
    wanted: watch::Sender<Wanted>,
    bus: Bus,
}

fn bench(desired: Desired) -> Bench {
    let machine = Arc::new(Machine::default());
    let (wanted, known) = watch::channel(Wanted::new(desired));
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

    fn id(&self, name: &str) -> String {
        let inventory = self.machine.inventory.lock().unwrap();
        inventory.containers.iter().find(|found| found.name == name).unwrap().id.clone()
    }

    fn running(&self) -> Vec<String> {
        let inventory = self.machine.inventory.lock().unwrap();
        let running = inventory.containers.iter().filter(|found| found.state.is_running());
        running.map(|found| found.name.clone()).collect()
    }

    /// As long as a container may take.
    fn let_time_pass(&self, name: &str) {
        self.stack.note(name, |history| history.prepared.as_mut().unwrap().since -= READY_WITHIN);
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
    assert_eq!(
        picture.progress.as_ref().map(|progress| progress.step.as_str()),
        Some("wait for container zeroclaw-tasks")
    );
    let agent = picture.desired.container("zeroclaw-tasks").unwrap().clone();
    assert_eq!(picture.standing(&agent).0, Standing::Starting);
    assert_eq!(bench.stack.look().await.unwrap().observed.history["zeroclaw-tasks"].failures, 0, "it has time left");
    bench.let_time_pass("zeroclaw-tasks");
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
async fn walls_are_seen_to_while_a_container_is_waited_for() {
    let bench = bench(samples::desired());
    *bench.machine.mute.lock().unwrap() = Some("assistant-nats");
    let mut reconciler = Reconciler::new(Arc::clone(&bench.stack));
    let began = tokio::time::Instant::now();
    let rest = reconciler.rounds(None, &CancellationToken::new()).await;
    assert!(began.elapsed() <= Duration::from_secs(5), "blind for {:?}", began.elapsed());
    assert!(rest.pending && rest.pause() < Duration::from_secs(1));
    // What may need it is not started yet; how far it is can be seen.
    assert!(!bench.machine.diary().iter().any(|line| line == "create assistant-squid"));
    let progress = bench.stack.watch().borrow().progress.clone().unwrap();
    assert_eq!(progress.step, "wait for container assistant-nats");
    assert!(progress.done > 0 && progress.done < progress.total, "{progress:?}");

    // The table goes while it is waited for.
    *bench.machine.table.lock().unwrap() = Table::Missing;
    reconciler.rounds(None, &CancellationToken::new()).await;
    assert_eq!(*bench.machine.table.lock().unwrap(), Table::Stands);
    assert_eq!(bench.stack.look().await.unwrap().observed.history["assistant-nats"].failures, 0);

    // Its time is over: that is its failure, and keeps the others no longer.
    bench.let_time_pass("assistant-nats");
    reconciler.rounds(None, &CancellationToken::new()).await;
    reconciler.rounds(None, &CancellationToken::new()).await;
    assert!(bench.machine.diary().iter().any(|line| line == "ready zeroclaw-tasks"), "{:#?}", bench.machine.diary());

    *bench.machine.mute.lock().unwrap() = None;
    bench.stack.note("assistant-nats", |history| history.failed_at = Some(SystemTime::UNIX_EPOCH));
    reconciler.rounds(None, &CancellationToken::new()).await;
    let picture = bench.stack.watch().borrow().clone();
    assert!(picture.converged && picture.progress.is_none(), "{:?}", picture.problem);
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_is_waited_for_keeps_no_other_tier() {
    let mut desired = samples::desired();
    let name: assistant_proto::name::TierName = "other".parse().unwrap();
    desired.networks.push(samples::network("assistant-tier-other", 18, NetworkKind::Isolated, Some(name.clone())));
    let on_it = [("assistant-tier-other", 18, 20)];
    desired.containers.push(samples::container("zeroclaw-other", Role::Agent, Some(name), "zeroclaw:1", &on_it, None));
    // The first tier's agent comes after a server of its own, which is the one that hangs.
    let at = desired.containers.len() - 2;
    let server = Role::McpServer("marvin".parse().unwrap());
    let server = samples::container(
        "mcp-tasks-marvin",
        server,
        Some(samples::tier()),
        "marvin:1",
        &[("assistant-tier-tasks", 16, 30)],
        None,
    );
    desired.containers.insert(at, server);
    let bench = bench(desired);
    *bench.machine.mute.lock().unwrap() = Some("mcp-tasks-marvin");
    bench.wake().await;
    let diary = bench.machine.diary();
    assert!(diary.iter().any(|line| line == "ready zeroclaw-other"), "{diary:#?}");
    assert!(!diary.iter().any(|line| line == "create zeroclaw-tasks"), "{diary:#?}");
    *bench.machine.mute.lock().unwrap() = None;
    assert!(bench.wake().await.converged);
}

/// A model route that cannot be verified, or is slow, is no reason for the stack not to come up.
#[tokio::test(start_paused = true)]
async fn a_model_route_that_is_waited_for_keeps_nobody() {
    let mut desired = samples::desired();
    let proxy = samples::container("assistant-privatemode", Role::TeeProxy, None, "tee:1", &[], None);
    desired.containers.insert(2, proxy);
    let bench = bench(desired);
    *bench.machine.mute.lock().unwrap() = Some("assistant-privatemode");
    assert!(!bench.wake().await.converged, "it is missed all the same");
    assert!(bench.machine.diary().iter().any(|line| line == "ready zeroclaw-tasks"), "{:#?}", bench.machine.diary());
    // Its failure is its own.
    bench.let_time_pass("assistant-privatemode");
    let picture = bench.wake().await;
    assert!(picture.problem.unwrap().contains("assistant-privatemode was not ready"));
    *bench.machine.mute.lock().unwrap() = None;
    bench.stack.note("assistant-privatemode", |history| history.failed_at = Some(SystemTime::UNIX_EPOCH));
    assert!(bench.wake().await.converged);
}

#[tokio::test(start_paused = true)]
async fn what_crashes_or_is_in_the_way_does_not_switch_the_check_of_the_floor_off() {
    let stranger = |machine: &Machine| {
        let spec = samples::desired();
        let name = spec.containers.last().unwrap().name.clone();
        machine.inventory.lock().unwrap().containers.push(Container {
            id: "foreign".to_owned(),
            name,
            owner: Owner::Foreign,
            state: State::Unknown,
            networks: BTreeMap::new(),
            image: "x".to_owned(),
        });
    };
    let crashes = |machine: &Machine| *machine.crashing.lock().unwrap() = Some("zeroclaw-tasks");
    for (what, harm) in [("a name that is taken", &stranger as &dyn Fn(&Machine)), ("a crash", &crashes)] {
        let bench = bench(samples::desired());
        harm(&bench.machine);
        let mut reconciler = Reconciler::new(Arc::clone(&bench.stack));
        reconciler.rounds(None, &CancellationToken::new()).await;
        reconciler.rounds(None, &CancellationToken::new()).await;
        let checks = || bench.machine.diary().iter().filter(|line| *line == "floor").count();
        assert_eq!(checks(), 1, "{what}: it is checked once the rest is up");
        assert!(!bench.stack.watch().borrow().converged, "{what}");
        // A minute later.
        reconciler.floor.checked_at -= CHECK_FLOOR_EVERY;
        reconciler.rounds(None, &CancellationToken::new()).await;
        assert_eq!(checks(), 2, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_never_ends_does_not_switch_the_check_of_the_floor_off() {
    let bench = bench(samples::desired());
    *bench.machine.mute.lock().unwrap() = Some("assistant-nats");
    let mut reconciler = Reconciler::new(Arc::clone(&bench.stack));
    reconciler.rounds(None, &CancellationToken::new()).await;
    assert!(!bench.machine.diary().contains(&"floor".to_owned()), "not while it comes up");
    reconciler.floor.checked_at -= CHECK_FLOOR_EVERY;
    reconciler.rounds(None, &CancellationToken::new()).await;
    assert!(bench.machine.diary().contains(&"floor".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_last_words_of_what_ended_are_shown() {
    let bench = bench(samples::desired());
    assert!(bench.wake().await.converged);
    let id = bench.id("zeroclaw-tasks");
    bench.machine.state(&id, State::Exited { code: 3 });
    let problem = bench.wake().await.problem.unwrap();
    assert!(problem.contains("zeroclaw-tasks ended with status 3") && problem.contains("the end"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_prepared_does_not_go_on_running() {
    let bench = bench(samples::desired());
    bench.machine.unpreparable.store(true, Ordering::Relaxed);
    let picture = bench.wake().await;
    assert!(picture.problem.is_some_and(|problem| problem.contains("could not be prepared")));
    assert!(bench.running().is_empty(), "{:?}", bench.running());

    // Nor does it when Docker goes away between start and preparation. It comes back in time to be told to stop.
    let bench = self::bench(samples::desired());
    bench.machine.away_after_start.store(true, Ordering::Relaxed);
    bench.wake().await;
    assert!(bench.running().is_empty(), "{:?}", bench.running());
    assert!(bench.machine.diary().iter().any(|line| line.starts_with("stop")));
    assert_eq!(bench.stack.history.lock().unwrap().get("assistant-nats"), None, "Docker's absence is no failure of it");
    bench.machine.away.store(false, Ordering::Relaxed);
    assert!(bench.wake().await.converged);
}

#[tokio::test(start_paused = true)]
async fn squid_is_told_that_its_log_was_put_aside_until_it_heard() {
    let mut desired = samples::desired();
    let squid = desired.containers.iter_mut().find(|spec| spec.role == Role::Squid).unwrap();
    squid.mounts.push(Mount {
        source: MountSource::Volume("assistant-drill-squid-log".to_owned()),
        target: SQUID_LOG_DIR.to_owned(),
        read_only: false,
    });
    desired.volumes.push(samples::volume("assistant-drill-squid-log", None));
    let bench = bench(desired);
    assert!(bench.wake().await.converged);
    *bench.machine.squid_log.lock().unwrap() = SquidLog::Full;
    bench.machine.deaf.store(true, Ordering::Relaxed);
    let problem = bench.wake().await.problem.unwrap();
    assert!(problem.contains("does not open a new log"), "{problem}");
    bench.machine.deaf.store(false, Ordering::Relaxed);
    assert!(bench.wake().await.converged);
    let squid = bench.id("assistant-squid");
    let diary = bench.machine.diary();
    let times = |line: &str| diary.iter().filter(|found| *found == line).count();
    assert_eq!(times("log put aside"), 1, "what was put aside is not put aside again");
    assert_eq!(times(&format!("SIGUSR1 to {squid}")), 2);
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
    assert_eq!(lines.last(), Some(&("wait for container zeroclaw-tasks".to_owned(), total, total)));
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
