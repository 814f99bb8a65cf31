//! The life of a service: arguments, telemetry, configuration, control socket, readiness, drain.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use assistant_proto::config::Common;
use clap::{Parser, Subcommand};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::bus::Bus;
use crate::metrics::Metrics;
use crate::task::Tasks;
use crate::telemetry;

mod control;
mod health;

pub use control::{ControlError, Listener};
pub use health::Health;

/// Exit status for a configuration that cannot be used.
const EXIT_CONFIG: u8 = 2;
/// From the first signal until what is still running is dropped.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// The bus gets this long to take what is queued.
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);
/// Control connections get this long to end by themselves; a watcher that does not is cut off.
const CONTROL_DEADLINE: Duration = Duration::from_secs(2);

/// A service of the stack.
pub trait Service: Sized + Send + 'static {
    /// For example `secret-broker`.
    const NAME: &'static str;
    /// Full names of its gRPC services, for health.
    const GRPC_SERVICES: &'static [&'static str];
    /// Its configuration file.
    type Config: ServiceConfig;

    /// Binds sockets, opens stores, reads files. Spawns nothing.
    fn build(config: Self::Config, cx: &Context) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Its gRPC services. Health and reflection are added by the host.
    fn control(&self) -> Routes;

    /// Spawns its named tasks and returns when it is ready for work.
    fn start(self, cx: &Context) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// A configuration file.
pub trait ServiceConfig: DeserializeOwned + Send + 'static {
    /// The part every service has.
    fn common(&self) -> &Common;

    /// Every problem beyond the shape: one sentence each, with where and what to do. No value of the file is repeated.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a service works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Spawns tasks.
    pub tasks: Tasks,
    /// The bus; connected or not.
    pub bus: Bus,
    /// What the service says of itself.
    pub health: Health,
    /// When to stop.
    pub shutdown: Shutdown,
    /// What the service counts beyond what every service does.
    pub metrics: Metrics,
}

impl Context {
    /// A context without bus and control socket, for tests of one service.
    #[must_use]
    pub fn detached() -> Self {
        let shutdown = Shutdown::default();
        let tasks = Tasks::new(shutdown.deadline());
        Self { tasks, bus: Bus::detached(), health: Health::detached(), shutdown, metrics: Metrics::default() }
    }
}

/// The two moments of an end: first accept nothing new, later give up what still runs.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    deadline: CancellationToken,
}

impl Shutdown {
    /// Cancelled when nothing new may be accepted.
    #[must_use]
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Cancelled when what still runs is dropped.
    #[must_use]
    pub fn deadline(&self) -> CancellationToken {
        self.deadline.clone()
    }
}

#[derive(Debug, Parser)]
#[command(version, about = "A service of the assistant stack")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service until SIGTERM.
    Run(ConfigArgument),
    /// Checks the configuration, prints every problem, exits 2 if there is one.
    CheckConfig(ConfigArgument),
}

/// `--config PATH`
#[derive(Debug, clap::Args)]
pub struct ConfigArgument {
    /// The service's configuration, rendered by tier-supervisor.
    #[arg(long, default_value = "/etc/assistant/config.json")]
    pub config: PathBuf,
}

/// The whole of a `main` that has no further subcommands.
#[must_use]
pub fn main<S: Service>() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(argument) => run::<S>(&argument.config),
        Command::CheckConfig(argument) => check_config::<S>(&argument.config),
    }
}

/// Loads a configuration, or says everything that is wrong with it.
fn load<C: ServiceConfig>(path: &Path) -> Result<C, Vec<String>> {
    let text = std::fs::read(path).map_err(|error| vec![format!("cannot read {}: {error}", path.display())])?;
    let config: C = serde_json::from_slice(&text).map_err(|error| {
        // serde_json's own message may repeat a value; category and place are enough to find it.
        vec![format!(
            "{}:{}:{}: not the expected shape ({:?} error); tier-supervisor renders this file, apply again",
            path.display(),
            error.line(),
            error.column(),
            error.classify()
        )]
    })?;
    let problems = config.problems();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// Checks a configuration; exit status 2 with every problem on standard error.
#[must_use]
pub fn check_config<S: Service>(path: &Path) -> ExitCode {
    match load::<S::Config>(path) {
        Ok(_) => ExitCode::SUCCESS,
        Err(problems) => report(&problems),
    }
}

#[allow(clippy::print_stderr, reason = "before telemetry, standard error is where a person looks")]
fn report(problems: &[String]) -> ExitCode {
    for problem in problems {
        eprintln!("error: {problem}");
    }
    ExitCode::from(EXIT_CONFIG)
}

/// Runs a service until it is told to stop or a critical task ends.
#[must_use]
pub fn run<S: Service>(path: &Path) -> ExitCode {
    let config = match load::<S::Config>(path) {
        Ok(config) => config,
        Err(problems) => return report(&problems),
    };
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return report(&["a TLS provider was installed twice; this is a bug".to_owned()]);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&[format!("cannot start the runtime: {error}")]),
    };
    let guard =
        match runtime.block_on(async { telemetry::start(S::NAME, config.common().mode, &config.common().telemetry) }) {
            Ok(guard) => guard,
            Err(error) => return report(&[format!("{:#}", anyhow::Error::from(error))]),
        };
    let outcome = runtime.block_on(live::<S>(config, guard.metrics()));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "{} ends with an error", S::NAME);
    }
    guard.finish();
    runtime.shutdown_timeout(Duration::from_secs(1));
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn live<S: Service>(config: S::Config, metrics: Metrics) -> anyhow::Result<()> {
    let common = config.common().clone();
    let shutdown = Shutdown::default();
    let tasks = Tasks::counted(shutdown.deadline(), metrics.clone());
    // What the service itself runs on ends last, so it is tracked apart and has an end of its own: a task that is dropped
    // at the deadline may still have something to say, and the publisher must be there to take it.
    let foundation_end = CancellationToken::new();
    let foundation = Tasks::counted(foundation_end.clone(), metrics.clone());
    let bus = Bus::connect(S::NAME, &common.bus).await.context("the bus cannot be used")?.counted(metrics.clone());
    let (health, health_service) = Health::new(S::GRPC_SERVICES);
    metrics.watch_bus(&bus);
    metrics.watch_health(&health);
    let cx = Context { tasks, bus, health, shutdown, metrics };
    // Signals are taken before anything is built: a stop during a slow start must not be lost.
    let signals = Signals::new()?;

    let service = S::build(config, &cx).await?;
    let listener = Listener::bind(&common.control_socket).await?;
    let control_stop = CancellationToken::new();
    control::serve(&foundation, listener, service.control(), S::GRPC_SERVICES, health_service, control_stop.clone())?;
    cx.bus.start(&foundation);
    cx.health.follow_bus(&cx.bus);
    cx.health.spawn(&foundation, control_stop.clone());
    service.start(&cx).await?;
    cx.health.ready();
    tracing::info!(service = S::NAME, mode = common.mode.as_str(), "ready");

    let reason = tokio::select! {
        reason = cx.tasks.critical_end() => Some(reason),
        reason = foundation.critical_end() => Some(reason),
        () = signals.next() => None,
    };
    tracing::info!(service = S::NAME, reason = reason.as_deref().unwrap_or("signal"), "draining");
    cx.health.draining();
    cx.tasks.end_is_expected();
    foundation.end_is_expected();
    let end = End { foundation, foundation_end, control_stop, drain: DRAIN_DEADLINE, flush: FLUSH_DEADLINE };
    end.wind_down(&cx, || signals.next()).await;
    match reason {
        None => Ok(()),
        Some(reason) => Err(anyhow::anyhow!("a critical task ended: {reason}")),
    }
}

/// What ends after the service's own tasks.
struct End {
    foundation: Tasks,
    foundation_end: CancellationToken,
    control_stop: CancellationToken,
    drain: Duration,
    flush: Duration,
}

impl End {
    /// In this order: nothing new is accepted and consumers end; tasks end by themselves or are dropped at the deadline;
    /// the bus gets what is queued, what they said when they were dropped included; gRPC and the publisher end. `hurry`
    /// (a second signal) cuts every wait short, but not the dropping of tasks.
    async fn wind_down<H: Future<Output = ()>>(self, cx: &Context, hurry: impl Fn() -> H) {
        cx.shutdown.draining.cancel();
        cx.bus.close();
        let mut hurried = false;
        tokio::select! {
            () = cx.tasks.finished() => {}
            () = hurry() => {
                hurried = true;
                tracing::warn!("second signal: not waiting any longer");
            }
            () = tokio::time::sleep(self.drain) => tracing::warn!("drain deadline: dropping what still runs"),
        }
        cx.shutdown.deadline.cancel();
        cx.tasks.finished().await;
        // Without a wait nothing is sent any more, but what is left is counted and said.
        let flush = if hurried { Duration::ZERO } else { self.flush };
        tokio::select! {
            () = cx.bus.flush(flush) => {}
            () = hurry() => tracing::warn!("second signal: events that NATS did not take are lost"),
        }
        self.control_stop.cancel();
        tokio::select! {
            () = self.foundation.finished() => {}
            () = hurry() => {}
            () = tokio::time::sleep(CONTROL_DEADLINE) => {}
        }
        self.foundation_end.cancel();
        self.foundation.finished().await;
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    pair: tokio::sync::Mutex<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let pair = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { pair: tokio::sync::Mutex::new(pair) })
    }

    async fn next(&self) {
        let mut pair = self.pair.lock().await;
        let (terminate, interrupt) = &mut *pair;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

    use assistant_proto::event::EventId;

    use super::*;
    use crate::bus::live::{self, Live};
    use crate::task::OnEnd;

    /// Says something when it is dropped, as a connection does that is cut off.
    struct LastWords(Bus);

    impl Drop for LastWords {
        fn drop(&mut self) {
            self.0.emit(&live::checked(), EventId::unique(), None);
        }
    }

    fn end_of(control_stop: CancellationToken) -> End {
        let foundation_end = CancellationToken::new();
        End {
            foundation: Tasks::new(foundation_end.clone()),
            foundation_end,
            control_stop,
            drain: Duration::from_millis(50),
            flush: Duration::from_secs(10),
        }
    }

    #[tokio::test]
    async fn what_a_task_says_when_the_deadline_drops_it_is_published() {
        let server = Live::start().await;
        server.stream("EVENTS", "floor.>").await;
        let shutdown = Shutdown::default();
        let tasks = Tasks::new(shutdown.deadline());
        let bus = server.bus().await;
        let cx = Context { tasks, bus, health: Health::detached(), shutdown, metrics: Metrics::default() };
        let end = end_of(CancellationToken::new());
        cx.bus.start(&end.foundation);
        let words = LastWords(cx.bus.clone());
        cx.tasks.spawn("for ever", OnEnd::Expected, async move {
            let _words = words;
            std::future::pending().await
        });
        // A consumer ends in the drain, before the deadline.
        let (consumer, consumed) = (cx.bus.clone(), CancellationToken::new());
        let seen = consumed.clone();
        server.consumer("EVENTS", "reader", |_| {}).await;
        cx.tasks.spawn("consumer", OnEnd::Expected, async move {
            consumer.consume_raw("EVENTS", "reader", async |_| Ok(())).await?;
            seen.cancel();
            Ok(())
        });
        let foundation = end.foundation.clone();
        end.wind_down(&cx, std::future::pending::<()>).await;
        assert_eq!(server.stored("EVENTS").await, 1);
        assert!(consumed.is_cancelled());
        // Nothing of the foundation is left.
        foundation.finished().await;
        assert_eq!(cx.bus.lost(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_connection_that_stays_open_is_cut_off_in_the_end() {
        let cx = Context::detached();
        let stop = CancellationToken::new();
        let end = end_of(stop.clone());
        end.foundation.spawn("watcher", OnEnd::Critical, std::future::pending());
        end.wind_down(&cx, std::future::pending::<()>).await;
        assert!(stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_does_not_wait() {
        let cx = Context::detached();
        cx.tasks.spawn("for ever", OnEnd::Expected, std::future::pending());
        let end = End { drain: Duration::from_secs(3600), ..end_of(CancellationToken::new()) };
        let before = tokio::time::Instant::now();
        end.wind_down(&cx, || std::future::ready(())).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
