//! Observe, plan, execute, again and again. Level-triggered: a changed file, an event of the engine, a request and a timer
//! all mean the same, "look again".
//!
//! It owns the order of a round, what is remembered between rounds (failures, what is settled), the picture that `control`
//! shows, and the events `tier.changed` and `floor.*`. It needs no bus: events wait for it in a queue.

mod picture;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use assistant_proto::event::{EventId, FloorBreached, FloorChecked, TierChanged};
use futures::future::join_all;
use service_kit::bus::Bus;
use service_kit::clock;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::desired::Desired;
use crate::engine::{Engine, EngineError, Inventory};
use crate::execute::{self, Done, ExecuteError, Executor};
use crate::floor::Verdict;
use crate::observed::{Container, History, Host, Observed, State, Table};
use crate::plan::{self, Action, Plan, Step, Weight};
use crate::vm::{self, Vm, VmError};
use crate::wanted::Wanted;

pub use picture::{Picture, Progress, Standing};

/// Nothing happened: look all the same.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the floor is checked while nothing changes.
const CHECK_FLOOR_EVERY: Duration = Duration::from_secs(60);
/// Rounds that follow one another without a pause while each of them did something.
const MOST_ROUNDS: u32 = 5;

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

/// What became of a step, for whoever asked for the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepReport {
    /// The step.
    pub step: Step,
    /// Steps ended so far, this one included.
    pub done: u32,
    /// Steps of this round.
    pub total: u32,
    /// Why it failed.
    pub error: Option<String>,
    /// How long it took.
    pub took: Duration,
}

/// A request for a round now; its reports go to the sender, which is dropped when the round is over.
#[derive(Debug)]
pub struct Apply {
    /// Where reports go. Bounded: a reader that does not read slows nobody down, reports are dropped.
    pub reports: mpsc::Sender<Result<StepReport, String>>,
}

/// What the reconciler and the control socket share.
#[derive(Debug)]
pub struct Stack<E, V> {
    engine: E,
    vm: V,
    bus: Bus,
    wanted: watch::Receiver<Wanted>,
    history: Mutex<BTreeMap<String, History>>,
    picture: watch::Sender<Picture>,
}

impl<E: Engine, V: Vm> Stack<E, V> {
    /// Everything that a round works with.
    #[must_use]
    pub fn new(engine: E, vm: V, bus: Bus, wanted: watch::Receiver<Wanted>) -> Self {
        let first = Picture::unseen(Arc::clone(&wanted.borrow().desired));
        Self { engine, vm, bus, wanted, history: Mutex::default(), picture: watch::channel(first).0 }
    }

    /// The engine.
    pub fn engine(&self) -> &E {
        &self.engine
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
        let plan = plan::plan(&desired, &observed, now);
        Ok(Look { desired, observed: Arc::new(observed), plan })
    }

    /// Joins what was found with what is remembered.
    fn remember(&self, inventory: Inventory, host: Host, now: SystemTime) -> Observed {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, remembered) in history.iter_mut() {
            remembered.note_seen(inventory.containers.iter().find(|found| &found.name == name), now);
        }
        let Inventory { networks, mut volumes, containers, restart_policies } = inventory;
        for volume in volumes.iter_mut().filter(|volume| volume.owner.is_ours()) {
            volume.top = self.vm.volume_top(&volume.mountpoint);
        }
        Observed { networks, volumes, containers, restart_policies, host, history: history.clone() }
    }

    fn note(&self, name: &str, note: impl FnOnce(&mut History)) {
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

/// Makes rounds.
#[derive(Debug)]
pub struct Reconciler<E, V> {
    stack: Arc<Stack<E, V>>,
    floor: Option<(Instant, Vec<Verdict>)>,
}

/// What a round came to.
#[derive(Debug, Default)]
struct Round {
    /// Steps that succeeded.
    done: u32,
    /// The first failure.
    failure: Option<String>,
    /// Nothing is left to do.
    settled: bool,
    /// When something is to be tried again.
    next_try: Option<SystemTime>,
}

impl<E: Engine, V: Vm> Reconciler<E, V> {
    /// A reconciler.
    #[must_use]
    pub fn new(stack: Arc<Stack<E, V>>) -> Self {
        Self { stack, floor: None }
    }

    /// Goes round until `draining`. What runs goes on running: the walls do not depend on this process.
    ///
    /// # Errors
    /// When the configuration's task has ended.
    pub async fn run(
        mut self,
        wake: Arc<Notify>,
        mut applies: mpsc::Receiver<Apply>,
        draining: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut wanted = self.stack.wanted.clone();
        let mut apply: Option<Apply> = None;
        loop {
            let reports = apply.take().map(|apply| apply.reports);
            // Not cancelled in the middle of a step: a start that is cut off would leave a container without its routes.
            let next_try = self.rounds(reports.as_ref(), &draining).await;
            drop(reports);
            if draining.is_cancelled() {
                return Ok(());
            }
            let pause = next_try
                .and_then(|at| at.duration_since(SystemTime::now()).ok())
                .map_or(LOOK_EVERY, |until| until.clamp(Duration::from_millis(100), LOOK_EVERY));
            // All four are cancel-safe; what is lost by none of them is at most one of several reasons to look again.
            tokio::select! {
                () = draining.cancelled() => return Ok(()),
                () = wake.notified() => {}
                changed = wanted.changed() => changed?,
                request = applies.recv() => apply = request,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Rounds until nothing is left to do, or nothing can be done now.
    async fn rounds(
        &mut self,
        reports: Option<&mpsc::Sender<Result<StepReport, String>>>,
        draining: &CancellationToken,
    ) -> Option<SystemTime> {
        for _ in 0..MOST_ROUNDS {
            let round = match self.stack.look().await {
                Ok(look) => self.round(&look, reports, draining).await,
                Err(error) => {
                    let problem = error.to_string();
                    if let Some(reports) = reports {
                        // A reader that went away wants no report.
                        drop(reports.try_send(Err(problem.clone())));
                    }
                    self.show(|picture| {
                        picture.converged = false;
                        picture.progress = None;
                        picture.problem = Some(problem.clone());
                    });
                    return None;
                }
            };
            if round.settled || round.failure.is_some() || round.done == 0 || draining.is_cancelled() {
                return round.next_try;
            }
        }
        None
    }

    async fn round(
        &mut self,
        look: &Look,
        reports: Option<&mpsc::Sender<Result<StepReport, String>>>,
        draining: &CancellationToken,
    ) -> Round {
        let Look { desired, observed, plan } = look;
        let total = u32::try_from(plan.steps.len()).unwrap_or(u32::MAX);
        self.show(|picture| {
            picture.desired = Arc::clone(desired);
            picture.observed = Arc::clone(observed);
            if total > 0 {
                picture.converged = false;
            }
        });
        let mut round = Round { next_try: plan.next_try(), ..Round::default() };
        let mut failed: BTreeSet<&str> = BTreeSet::new();
        let executor = Executor::new(&self.stack.engine, &self.stack.vm, desired);
        for (step, index) in plan.steps.iter().zip(0_u32..) {
            if draining.is_cancelled() {
                break;
            }
            if step.action.container().is_some_and(|name| failed.contains(name)) {
                continue;
            }
            self.show(|picture| {
                picture.progress = Some(Progress { step: step.action.to_string(), done: index, total });
            });
            let began = Instant::now();
            let outcome = executor.execute(&step.action).await;
            let error = outcome.as_ref().err().map(ToString::to_string);
            self.after(step, desired, &outcome);
            if step.action.container().is_some() {
                self.refresh(&observed.host).await;
            }
            if let Some(reports) = reports {
                let report = StepReport {
                    step: step.clone(),
                    done: index.saturating_add(1),
                    total,
                    error: error.clone(),
                    took: began.elapsed(),
                };
                drop(reports.try_send(Ok(report)));
            }
            let Err(cause) = outcome else {
                round.done = round.done.saturating_add(1);
                continue;
            };
            let problem = format!("{}: {cause}", step.action);
            tracing::error!(action = %step.action, reason = %step.reason, error = %cause, "a step failed");
            round.failure.get_or_insert_with(|| problem.clone());
            self.show(|picture| picture.problem = Some(problem.clone()));
            if step.action == Action::LoadTable {
                self.hold_without_table(desired).await;
            }
            match step.action.weight(desired) {
                Weight::Tier => failed.extend(step.action.containers(desired)),
                Weight::Stack | Weight::Wall => break,
            }
        }
        self.conclude(look, round).await
    }

    /// A round takes minutes the first time; people see what runs meanwhile.
    async fn refresh(&self, host: &Host) {
        if let Ok(inventory) = self.stack.engine.inventory().await {
            let observed = Arc::new(self.stack.remember(inventory, host.clone(), SystemTime::now()));
            self.show(|picture| picture.observed = observed);
        }
    }

    /// Remembers and reports what became of a step.
    fn after(&self, step: &Step, desired: &Desired, outcome: &Result<Done, ExecuteError>) {
        let now = SystemTime::now();
        match outcome {
            Ok(Done::Settled { name, id, pid }) => self.stack.note(name, |history| history.note_settled(id, *pid, now)),
            Ok(Done::Plainly) => {}
            Err(error) => {
                if let (
                    Action::CreateContainer { name }
                    | Action::StartContainer { name }
                    | Action::AdoptContainer { name },
                    false,
                ) = (&step.action, is_engine_away(error))
                {
                    self.stack.note(name, |history| history.note_failure(now));
                }
                return;
            }
        }
        tracing::info!(action = %step.action, reason = %step.reason, "done");
        let event = TierChanged {
            tier: step.action.scope(desired),
            action: step.action.to_string(),
            reason: step.reason.clone(),
            changed_at: clock::now_rfc3339(),
        };
        self.stack.bus.emit(&event, EventId::unique(), None);
    }

    /// The table could not be loaded. Where none stands, nothing of ours may go on running.
    async fn hold_without_table(&self, desired: &Arc<Desired>) {
        let Ok(inventory) = self.stack.engine.inventory().await else { return };
        let table = self.stack.vm.observe(desired, &inventory).await.map_or(Table::Missing, |host| host.table);
        if vm::holds(table) {
            return;
        }
        let running = |container: &&Container| container.state.is_running() && container.owner.is_of(desired.mode);
        let stops = inventory.containers.iter().filter(running).map(|container| async move {
            tracing::error!(container = %container.name, "stopped: there is no kernel table that holds it");
            if let Err(error) = self.stack.engine.stop_container(&container.id).await {
                tracing::error!(container = %container.name, %error, "it could not be stopped");
            }
        });
        join_all(stops).await;
    }

    /// After the steps: what runs, is it ready, does the floor hold.
    async fn conclude(&mut self, look: &Look, mut round: Round) -> Round {
        round.settled = look.plan.is_settled();
        if round.done > 0 {
            // Another round follows and shows what came of it.
            self.floor = None;
            self.show(|picture| picture.progress = None);
            return round;
        }
        let not_ready = self.not_ready(look).await;
        if round.settled && self.floor.as_ref().is_none_or(|(at, _)| at.elapsed() >= CHECK_FLOOR_EVERY) {
            self.check_floor(look).await;
        }
        let problem = self.problem(look, &round, &not_ready);
        let verdicts = self.floor.as_ref().map(|(_, verdicts)| verdicts.clone());
        let checked = round.settled && verdicts.as_ref().is_some_and(|verdicts| verdicts.iter().all(|v| v.passed));
        let converged = checked && not_ready.is_empty() && self.stack.wanted.borrow().problems.is_empty();
        self.show(|picture| {
            if converged && !picture.converged {
                tracing::info!("converged");
            }
            picture.not_ready = not_ready;
            picture.waiting = look.plan.waiting.iter().map(|waiting| waiting.container.clone()).collect();
            picture.floor = verdicts.unwrap_or_default();
            picture.progress = None;
            picture.problem = problem;
            picture.converged = converged;
        });
        round
    }

    /// Settled containers that run and are not ready at this moment.
    async fn not_ready(&self, look: &Look) -> BTreeMap<String, String> {
        let asked = look.desired.containers.iter().filter_map(|spec| {
            let found = look.observed.containers.iter().find(|found| found.name == spec.name)?;
            let State::Running { pid, started_at } = found.state else { return None };
            let settled = look.observed.history.get(&spec.name).is_some_and(|history| history.has_settled(found));
            // A word in the log was said once and for all.
            let asks = settled && !matches!(spec.ready, crate::desired::Ready::LogLine { .. });
            asks.then_some(async move {
                match execute::is_ready(&self.stack.engine, &self.stack.vm, spec, &found.id, pid, started_at).await {
                    Ok(Ok(())) => None,
                    Ok(Err(why)) => Some((spec.name.clone(), why.to_string())),
                    Err(error) => Some((spec.name.clone(), error.to_string())),
                }
            })
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn check_floor(&mut self, look: &Look) {
        let verdicts = match self.stack.vm.check_floor(&look.desired, &look.observed).await {
            Ok(verdicts) => verdicts,
            Err(error) => {
                tracing::error!(%error, "the floor cannot be checked");
                self.floor = None;
                return;
            }
        };
        let checked_at = clock::now_rfc3339();
        let failed: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.passed).collect();
        for verdict in &failed {
            tracing::error!(check = %verdict.check, detail = %verdict.detail, fix = %verdict.fix, "a wall does not stand");
            let event = FloorBreached {
                check: verdict.check.to_string(),
                detail: verdict.detail.clone(),
                fix: verdict.fix.clone(),
                checked_at: checked_at.clone(),
            };
            self.stack.bus.emit(&event, EventId::unique(), None);
        }
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let event = FloorChecked {
            passed: count(verdicts.len().saturating_sub(failed.len())),
            failed: count(failed.len()),
            checked_at,
        };
        self.stack.bus.emit(&event, EventId::unique(), None);
        self.floor = Some((Instant::now(), verdicts));
    }

    /// The one problem a person should solve first.
    fn problem(&self, look: &Look, round: &Round, not_ready: &BTreeMap<String, String>) -> Option<String> {
        if let Some(conflict) = look.plan.conflicts.first() {
            return Some(conflict.to_string());
        }
        if let Some(failure) = &round.failure {
            return Some(failure.clone());
        }
        if let Some(problem) = self.stack.wanted.borrow().problems.first() {
            return Some(problem.clone());
        }
        if let Some(waiting) = look.plan.waiting.first() {
            // The last failure says more than the fact that it is waited for.
            let known = self.stack.picture.borrow().problem.clone().filter(|known| known.contains(&waiting.container));
            return Some(known.unwrap_or_else(|| waiting.to_string()));
        }
        if let Some(verdict) = self.floor.iter().flat_map(|(_, verdicts)| verdicts).find(|verdict| !verdict.passed) {
            return Some(format!("a wall does not stand: {}: {}; {}", verdict.check, verdict.detail, verdict.fix));
        }
        not_ready.iter().next().map(|(name, why)| format!("{name} runs, but is not ready: {why}"))
    }

    fn show(&self, change: impl FnOnce(&mut Picture)) {
        self.stack.picture.send_if_modified(|picture| {
            let before = picture.clone();
            change(picture);
            *picture != before
        });
    }
}

fn is_engine_away(error: &ExecuteError) -> bool {
    matches!(error, ExecuteError::Engine(error) if error.is_unavailable())
}
