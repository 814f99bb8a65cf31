//! `tier-supervisor status`: asks the running supervisor over its control socket and shows the answer to a person, or as
//! JSON to a script. Holds no state and changes nothing.

mod remarks;
mod screen;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use assistant_proto::tier::tier_service_client::TierServiceClient;
use assistant_proto::tier::{ContainerState, WatchStackRequest, WatchStackResponse};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::desired::Role;

/// Where the supervisor listens unless it was told otherwise.
pub const SOCKET: &str = "/run/assistant/tier-supervisor.sock";

/// A line at least this often while waiting: silence looks like a hang.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often a supervisor that is only starting is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Without `--wait`: how long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What to show.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Wait until everything is up and healthy, showing progress; at most that many seconds. Without it, once.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    pub wait: Option<u64>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Control socket of the supervisor.
    #[arg(long, default_value = SOCKET)]
    pub socket: PathBuf,
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody serves the socket.
    #[error("no tier-supervisor answers at {path}; start the stack with: deploy/up.sh")]
    NotRunning {
        /// Where.
        path: PathBuf,
    },
    /// The user may not.
    #[error("{path} is for root and for the user who ran deploy/up.sh; ask that user, or use sudo")]
    NotAllowed {
        /// Where.
        path: PathBuf,
    },
    /// It answered with an error or went away.
    #[error("the supervisor does not answer: {0}")]
    NoAnswer(String),
    /// Standard output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// Whether everything is as it should be.
#[must_use]
pub fn is_healthy(stack: &WatchStackResponse) -> bool {
    stack.converged
        && stack.problem.is_empty()
        && stack.file_problems.is_empty()
        && stack.containers.iter().all(|container| container.state() == ContainerState::Healthy)
}

/// Shows the status. Exit status 0 only when everything is up and healthy.
///
/// # Errors
/// See [`StatusError`].
pub async fn run(arguments: &Arguments) -> Result<ExitCode, StatusError> {
    let mut shown = Shown::new(arguments.json);
    let mut stack = match arguments.wait {
        None => now(&arguments.socket).await?,
        Some(seconds) => wait(&arguments.socket, Duration::from_secs(seconds), &mut shown).await?,
    };
    let broker = Role::SecretBroker.as_str();
    if stack.containers.iter().any(|one| one.role == broker && one.state() == ContainerState::Healthy) {
        stack.remarks.extend(remarks::of_broker(&arguments.socket).await);
    }
    let text = if arguments.json { screen::json(&stack) } else { screen::table(&stack) };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(if is_healthy(&stack) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn now(socket: &Path) -> Result<WatchStackResponse, StatusError> {
    let first = async {
        let mut answers = watch(socket).await?;
        answers.message().await.map_err(|status| no_answer(&status))?.ok_or_else(|| ended(socket))
    };
    tokio::time::timeout(ANSWER_WITHIN, first)
        .await
        .unwrap_or_else(|_| Err(StatusError::NoAnswer(format!("not within {} s", ANSWER_WITHIN.as_secs()))))
}

async fn watch(socket: &Path) -> Result<Streaming<WatchStackResponse>, StatusError> {
    let channel = connect(socket).await?;
    let mut client = TierServiceClient::new(channel);
    Ok(client.watch_stack(WatchStackRequest {}).await.map_err(|status| no_answer(&status))?.into_inner())
}

pub(crate) async fn connect(socket: &Path) -> Result<Channel, StatusError> {
    // Asked first: the client library does not say why it cannot connect.
    if let Err(error) = tokio::net::UnixStream::connect(socket).await {
        return Err(match error.kind() {
            std::io::ErrorKind::PermissionDenied => StatusError::NotAllowed { path: socket.to_owned() },
            _ => StatusError::NotRunning { path: socket.to_owned() },
        });
    }
    Endpoint::try_from(format!("unix://{}", socket.display()))
        .map_err(|error| StatusError::NoAnswer(error.to_string()))?
        .connect()
        .await
        .map_err(|_| StatusError::NotRunning { path: socket.to_owned() })
}

/// Follows the stack until it is healthy or the time is over; then the last picture, whatever it is.
async fn wait(socket: &Path, patience: Duration, shown: &mut Shown) -> Result<WatchStackResponse, StatusError> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut last = None;
    let mut failure = StatusError::NotRunning { path: socket.to_owned() };
    while tokio::time::Instant::now() < deadline {
        let mut answers = match tokio::time::timeout_at(deadline, watch(socket)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error @ StatusError::NotAllowed { .. })) => return Err(error),
            Ok(Err(error)) => {
                shown.heartbeat("waiting for the supervisor")?;
                failure = error;
                tokio::time::sleep(ASK_AGAIN).await;
                continue;
            }
            Err(_) => break,
        };
        loop {
            let heard =
                tokio::time::timeout_at(deadline.min(tokio::time::Instant::now() + HEARTBEAT), answers.message()).await;
            match heard {
                Ok(Ok(Some(stack))) => {
                    shown.progress(&stack)?;
                    if is_healthy(&stack) {
                        return Ok(stack);
                    }
                    last = Some(stack);
                }
                // It ended or restarts; ask again.
                Ok(Ok(None) | Err(_)) => break,
                Err(_) if tokio::time::Instant::now() >= deadline => break,
                Err(_) => shown.still()?,
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    last.ok_or(failure)
}

fn no_answer(status: &tonic::Status) -> StatusError {
    StatusError::NoAnswer(service_kit::text::harmless_line(status.message(), 400))
}

fn ended(socket: &Path) -> StatusError {
    StatusError::NotRunning { path: socket.to_owned() }
}

/// What was said last, so that nothing is said twice and nothing is silent for long. Progress goes to standard error.
#[derive(Debug)]
struct Shown {
    quiet: bool,
    line: String,
    problem: String,
    since: Instant,
    said: Instant,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        let now = Instant::now();
        Self { quiet, line: String::new(), problem: String::new(), since: now, said: now }
    }

    fn progress(&mut self, stack: &WatchStackResponse) -> std::io::Result<()> {
        let line = screen::progress(stack);
        if line != self.line {
            self.line = line.clone();
            self.since = Instant::now();
            self.say(&line)?;
        }
        if stack.problem != self.problem {
            self.problem = stack.problem.clone();
            if !self.problem.is_empty() {
                // Its beginning: the whole of it is in the table at the end, if it is still there then.
                let first = self.problem.lines().next().unwrap_or_default();
                let problem = format!("problem: {}", service_kit::text::harmless_line(first, 300));
                self.say(&problem)?;
            }
        }
        Ok(())
    }

    /// Nothing has changed for a while.
    fn still(&mut self) -> std::io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let line = format!("{} ({} s)", self.line, self.since.elapsed().as_secs());
        self.say(&line)
    }

    fn heartbeat(&mut self, line: &str) -> std::io::Result<()> {
        if self.line != line {
            self.line = line.to_owned();
            self.since = Instant::now();
            return self.say(line);
        }
        if self.said.elapsed() >= HEARTBEAT { self.still() } else { Ok(()) }
    }

    fn say(&mut self, line: &str) -> std::io::Result<()> {
        self.said = Instant::now();
        if self.quiet || line.is_empty() {
            return Ok(());
        }
        writeln!(std::io::stderr().lock(), "{line}")
    }
}
