//! Supervised tasks. Every task has a name, a cancellation token it is expected to watch, and a policy for its end. A
//! panic becomes an error that somebody sees.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::metrics::Metrics;

/// First delay of a restarted task; doubles up to [`SLOWEST_RESTART`], with jitter.
const FIRST_RESTART: Duration = Duration::from_millis(200);
const SLOWEST_RESTART: Duration = Duration::from_secs(15);
/// A task that lived this long starts again with the first delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What the end of a task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEnd {
    /// The service cannot go on without it: its end, however it ends, starts the shutdown.
    Critical,
    /// It is expected to end; an error is logged.
    Expected,
}

/// Spawns and tracks the tasks of one service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: Arc<watch::Sender<Option<String>>>,
    ending: CancellationToken,
    metrics: Metrics,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new(CancellationToken::new())
    }
}

impl Tasks {
    /// Tasks that are dropped when `stop` is cancelled (the shutdown's deadline).
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self::counted(stop, Metrics::default())
    }

    /// The same, with restarts and panics counted. The host does this.
    #[must_use]
    pub fn counted(stop: CancellationToken, metrics: Metrics) -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop,
            failed: Arc::new(watch::channel(None).0),
            ending: CancellationToken::new(),
            metrics,
        }
    }

    /// Spawns a task. It is dropped at the shutdown's deadline; before that it has to watch `Shutdown::draining` itself.
    pub fn spawn<F>(&self, name: impl Into<String>, on_end: OnEnd, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let name = name.into();
        let tasks = self.clone();
        let span = tracing::debug_span!("task", task = %name);
        self.launch(
            async move {
                let outcome = tokio::select! {
                    biased;
                    () = tasks.stop.cancelled() => return,
                    outcome = AssertUnwindSafe(future).catch_unwind() => outcome,
                };
                let reason = match outcome {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{error:#}")),
                    Err(panic) => {
                        tasks.metrics.panicked(&name);
                        Some(format!("panicked: {}", panic_text(&*panic)))
                    }
                };
                match (on_end, reason) {
                    (OnEnd::Expected, None) => {}
                    (OnEnd::Expected, Some(reason)) => tracing::warn!(task = %name, %reason, "task failed"),
                    (OnEnd::Critical, reason) => {
                        let reason = reason.unwrap_or_else(|| "it returned".to_owned());
                        if tasks.ending.is_cancelled() {
                            tracing::debug!(task = %name, %reason, "critical task ended in the drain");
                            return;
                        }
                        tracing::error!(task = %name, %reason, "critical task ended");
                        tasks.failed.send_if_modified(|failed| {
                            let first = failed.is_none();
                            if first {
                                *failed = Some(format!("{name}: {reason}"));
                            }
                            first
                        });
                    }
                }
            }
            .instrument(span),
        );
    }

    /// Spawns a task that is made anew with jittered backoff when it fails or panics, until it returns `Ok`.
    pub fn spawn_restarting<M, F>(&self, name: impl Into<String>, mut make: M)
    where
        M: FnMut() -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let name = name.into();
        let label = name.clone();
        let metrics = self.metrics.clone();
        metrics.task(&label);
        self.spawn(name, OnEnd::Expected, async move {
            let mut delay = FIRST_RESTART;
            loop {
                let born = tokio::time::Instant::now();
                let reason = match AssertUnwindSafe(make()).catch_unwind().await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(panic) => {
                        metrics.panicked(&label);
                        format!("panicked: {}", panic_text(&*panic))
                    }
                };
                metrics.restarted(&label);
                if born.elapsed() > HEALTHY_AFTER {
                    delay = FIRST_RESTART;
                }
                let wait = delay.mul_f64(rand::random_range(0.5..1.5));
                tracing::warn!(task = %label, %reason, retry_in_ms = wait.as_millis(), "task failed; it will be restarted");
                tokio::time::sleep(wait).await;
                delay = delay.saturating_mul(2).min(SLOWEST_RESTART);
            }
        });
    }

    /// Resolves with the reason when a critical task has ended.
    pub async fn critical_end(&self) -> String {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Unreachable while `self` holds the sender.
            Err(_) => std::future::pending().await,
        }
    }

    /// From now on the end of a critical task is expected: the service is draining.
    pub fn end_is_expected(&self) {
        self.ending.cancel();
    }

    /// Waits until every task has ended. No task may be spawned afterwards.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that spawns: everything above gives it name and owner")]
    fn launch(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(future);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test may panic")]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_in_a_critical_task_is_seen() {
        let tasks = Tasks::default();
        tasks.spawn("boom", OnEnd::Critical, async { panic!("broken") });
        assert_eq!(tasks.critical_end().await, "boom: panicked: broken");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_task_is_made_again() {
        let tasks = Tasks::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&runs);
        tasks.spawn_restarting("flaky", move || {
            let run = counter.fetch_add(1, Ordering::SeqCst);
            async move { if run < 3 { anyhow::bail!("not yet") } else { Ok(()) } }
        });
        tasks.finished().await;
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_drops_what_does_not_end() {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        tasks.spawn("for ever", OnEnd::Critical, std::future::pending());
        stop.cancel();
        tasks.finished().await;
    }
}
