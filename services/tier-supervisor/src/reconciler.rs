//! Observe, plan, execute, again and again. Level-triggered: a changed file, an event of the engine, a request and a timer
//! all mean the same, "look again".
//!
//! It owns the order of a round, what is remembered between rounds (failures, what is settled), the picture that `control`
//! shows, and the events `tier.changed` and `floor.*`. It needs no bus: events wait for it in a queue.

mod picture;
mod round;
mod stack;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use assistant_proto::event::{EventId, FloorBreached, FloorChecked, TierChanged};
use futures::future::join_all;
use service_kit::clock;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::desired::Desired;
use crate::engine::Engine;
use crate::execute::{self, Done, ExecuteError, Executor};
use crate::floor::Verdict;
use crate::observed::{Container, History, Observed, State, Table};
use crate::plan::{Action, Step, Weight};
use crate::vm::{self, Vm};
use round::{Held, Rest, Round};

pub use picture::{Picture, Progress, Standing};
pub use stack::{Look, LookError, Stack};

/// Nothing happened: look all the same.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A container was asked whether it is ready, and was not.
const LOOK_WHILE_WAITING: Duration = Duration::from_millis(250);
/// How often the floor is checked at least, whatever else goes on or goes wrong.
const CHECK_FLOOR_EVERY: Duration = Duration::from_secs(60);
/// Rounds that follow one another without a pause while each of them did something.
const MOST_ROUNDS: u32 = 5;

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

/// Makes rounds.
#[derive(Debug)]
pub struct Reconciler<E, V> {
    stack: Arc<Stack<E, V>>,
    floor: Floor,
    /// Steps that succeeded in earlier rounds of the same effort: those that ended because something is waited for.
    carried: u32,
}

/// What is known of the floor.
#[derive(Debug)]
struct Floor {
    verdicts: Vec<Verdict>,
    /// Something was changed since, or it was never checked.
    is_stale: bool,
    /// When it was checked, or when there first was a reason to.
    checked_at: Instant,
}

impl<E: Engine, V: Vm> Reconciler<E, V> {
    /// A reconciler.
    #[must_use]
    pub fn new(stack: Arc<Stack<E, V>>) -> Self {
        let floor = Floor { verdicts: Vec::new(), is_stale: true, checked_at: Instant::now() };
        Self { stack, floor, carried: 0 }
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
            // Not cancelled in the middle of a step: a start that is cut off would leave a container without its routes.
            let rest = self.rounds(apply.as_ref().map(|apply| &apply.reports), &draining).await;
            if draining.is_cancelled() {
                return Ok(());
            }
            if !rest.pending {
                apply = None;
            }
            // All are cancel-safe; what is lost by none of them is at most one of several reasons to look again.
            tokio::select! {
                () = draining.cancelled() => return Ok(()),
                () = wake.notified() => {}
                changed = wanted.changed() => changed?,
                // One after the other: each hears of its own effort to its end.
                request = applies.recv(), if apply.is_none() => apply = request,
                () = tokio::time::sleep(rest.pause()) => {}
            }
        }
    }

    /// Rounds until nothing is left to do, or nothing can be done now.
    async fn rounds(
        &mut self,
        reports: Option<&mpsc::Sender<Result<StepReport, String>>>,
        draining: &CancellationToken,
    ) -> Rest {
        let mut rest = Rest::default();
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
                    return Rest::default();
                }
            };
            rest = Rest { pending: round.pending.is_some(), next_try: round.next_try };
            if round.settled || round.failure.is_some() || round.done == 0 || draining.is_cancelled() {
                break;
            }
        }
        rest
    }

    async fn round(
        &mut self,
        look: &Look,
        reports: Option<&mpsc::Sender<Result<StepReport, String>>>,
        draining: &CancellationToken,
    ) -> Round {
        let Look { desired, observed, plan } = look;
        let carried = self.carried;
        let total = u32::try_from(plan.steps.len()).unwrap_or(u32::MAX).saturating_add(carried);
        self.show(|picture| {
            picture.desired = Arc::clone(desired);
            picture.observed = Arc::clone(observed);
            if !plan.steps.is_empty() {
                picture.converged = false;
            }
        });
        let (file_problems, since) = {
            let wanted = self.stack.wanted.borrow();
            (wanted.problems.clone(), wanted.since)
        };
        self.show(|picture| {
            picture.file_problems = file_problems;
            picture.configured_at = since;
        });
        let mut round = Round { next_try: plan.next_try(), ..Round::default() };
        // Containers whose further steps wait for another round.
        let mut left: BTreeSet<&str> = BTreeSet::new();
        let mut held = Held::default();
        let executor = Executor::new(&self.stack.engine, &self.stack.vm, desired);
        for (step, index) in plan.steps.iter().zip(carried..) {
            if draining.is_cancelled() {
                break;
            }
            if step.action.container().is_some_and(|name| left.contains(name)) {
                continue;
            }
            if held.keeps(&step.action, desired) {
                left.extend(step.action.container());
                continue;
            }
            let progress = Progress { step: step.action.to_string(), done: index, total };
            if round.pending.is_none() {
                self.show(|picture| picture.progress = Some(progress.clone()));
            }
            let began = Instant::now();
            // Once is enough while something else is waited for: the walls want to be looked at.
            let patience = if round.pending.is_none() { execute::WAIT_AT_ONCE } else { Duration::ZERO };
            let outcome = executor.execute(&step.action, self.stack.wait(step.action.container(), patience)).await;
            self.after(step, desired, &outcome);
            if let Ok(Done::NotYet { name, why }) = &outcome {
                tracing::debug!(container = %name, %why, "not ready yet");
                round.pending.get_or_insert(progress);
                held.note(name, desired);
                continue;
            }
            self.refresh(&step.action, observed).await;
            if let Some(reports) = reports {
                let report = StepReport {
                    step: step.clone(),
                    done: index.saturating_add(1),
                    total,
                    error: outcome.as_ref().err().map(ToString::to_string),
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
                Weight::Part => left.extend(step.action.containers(desired)),
                Weight::Stack | Weight::Wall => break,
            }
        }
        self.conclude(look, round).await
    }

    /// Rounds take minutes the first time; people see what runs meanwhile.
    async fn refresh(&self, action: &Action, before: &Observed) {
        let observed = match action {
            _ if action.container().is_none() => return,
            // Nothing but what is remembered has changed.
            Action::AwaitReady { .. } => {
                let shown = Arc::clone(&self.stack.picture.borrow().observed);
                let history = self.stack.history.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Observed { history, ..Observed::clone(&shown) }
            }
            _ => match self.stack.engine.inventory().await {
                Ok(inventory) => self.stack.remember(inventory, before.host.clone(), SystemTime::now()),
                Err(_) => return,
            },
        };
        self.show(|picture| picture.observed = Arc::new(observed));
    }

    /// Remembers and reports what became of a step.
    fn after(&self, step: &Step, desired: &Desired, outcome: &Result<Done, ExecuteError>) {
        let now = SystemTime::now();
        match outcome {
            Ok(Done::Prepared { name, run }) => self.stack.note(name, |history| history.note_prepared(run.clone())),
            Ok(Done::Ready { name }) => {
                self.stack.note(name, |history| history.note_ready(now));
                tracing::info!(container = %name, "ready");
                return;
            }
            Ok(Done::NotYet { .. }) => return,
            Ok(Done::Plainly) => {
                if let Action::StopContainer { name, .. } = &step.action {
                    self.stack.note(name, History::forget_run);
                }
            }
            Err(error) => {
                if let (
                    Action::CreateContainer { name }
                    | Action::StartContainer { name }
                    | Action::AdoptContainer { name }
                    | Action::AwaitReady { name },
                    false,
                ) = (&step.action, error.is_engine_away())
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
            match self.stack.engine.stop_container(&container.id).await {
                Ok(()) => self.stack.note(&container.name, History::forget_run),
                Err(error) => tracing::error!(container = %container.name, %error, "it could not be stopped"),
            }
        });
        join_all(stops).await;
    }

    /// After the steps: what runs, is it ready, does the floor hold.
    async fn conclude(&mut self, look: &Look, mut round: Round) -> Round {
        round.settled = look.plan.is_settled();
        self.carried = if round.pending.is_some() { self.carried.saturating_add(round.done) } else { 0 };
        let moved = round.done > 0;
        self.floor.is_stale |= moved;
        self.watch_floor(look, moved || round.pending.is_some()).await;
        if moved {
            // Another round follows and shows what came of it.
            self.show(|picture| picture.progress = round.pending.clone());
            return round;
        }
        let not_ready = self.not_ready(look).await;
        let problem = self.problem(look, &round, &not_ready);
        let verdicts = self.floor.verdicts.clone();
        let checked = !self.floor.is_stale && !verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.passed);
        let fine = round.settled && not_ready.is_empty() && self.stack.wanted.borrow().problems.is_empty();
        let converged = fine && checked;
        self.show(|picture| {
            if converged && !picture.converged {
                tracing::info!("converged");
            }
            picture.not_ready = not_ready;
            picture.waiting = look.plan.waiting.iter().map(|waiting| waiting.container.clone()).collect();
            picture.floor = verdicts;
            picture.progress = round.pending.clone();
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

    /// Checks the floor when it is time. What fails, is waited for or stands in a conflict is no reason not to: a container
    /// that crashes for ever must not switch the watch off. Between steps (`restless`) it is not looked at afresh, lest
    /// every step of a start be reported; but never longer than the period.
    async fn watch_floor(&mut self, look: &Look, restless: bool) {
        let is_due = self.floor.checked_at.elapsed() >= CHECK_FLOOR_EVERY || (self.floor.is_stale && !restless);
        // While the other stack runs its walls stand, and none of ours.
        if !is_due || look.plan.is_of_the_other() {
            return;
        }
        let checked = match restless {
            // What was observed is of before the steps.
            true => self.stack.check_floor().await,
            false => self.stack.vm.check_floor(&look.desired, &look.observed).await.map_err(LookError::from),
        };
        let verdicts = match checked {
            Ok(verdicts) => verdicts,
            Err(error) => {
                tracing::error!(%error, "the floor cannot be checked");
                self.floor.verdicts = Vec::new();
                self.floor.is_stale = true;
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
        self.floor = Floor { verdicts, is_stale: restless, checked_at: Instant::now() };
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
        if let Some(verdict) = self.floor.verdicts.iter().find(|verdict| !verdict.passed) {
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
