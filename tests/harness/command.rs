//! Commands, with everything they said.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt, BufReader};

/// How long any one command may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; -1 when it was killed.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// Standard output of a command that must succeed.
    ///
    /// # Errors
    /// When it did not; says all it said.
    pub fn ok(self) -> anyhow::Result<String> {
        anyhow::ensure!(self.status == 0, "exit status {}\n{}{}", self.status, self.out, self.err);
        Ok(self.out)
    }

    /// Both streams.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Runs a program.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    run_within(DEADLINE, program, arguments, None).await
}

/// Runs a program with standard input and a deadline.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub async fn run_within(
    deadline: Duration,
    program: &str,
    arguments: &[&str],
    input: Option<&str>,
) -> anyhow::Result<Output> {
    let what = || format!("{program} {}", arguments.join(" "));
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(what)?;
    if let Some(input) = input {
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(input.as_bytes()).await.with_context(what)?;
    }
    let output = tokio::time::timeout(deadline, child.wait_with_output())
        .await
        .with_context(|| format!("{} did not end within {deadline:?}", what()))??;
    Ok(Output {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a program that a person watches: what it said on standard output, and the longest time it said nothing.
///
/// # Errors
/// When it cannot be started, does not end in time or fails.
pub async fn run_watched(
    deadline: Duration,
    program: &str,
    arguments: &[&str],
) -> anyhow::Result<(Vec<String>, Duration)> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.to_owned())?;
    let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let (mut said, mut silence, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    let watch = async {
        while let Some(line) = lines.next_line().await? {
            silence = silence.max(last.elapsed());
            last = Instant::now();
            said.push(line);
        }
        silence = silence.max(last.elapsed());
        child.wait().await
    };
    let status = tokio::time::timeout(deadline, watch)
        .await
        .with_context(|| format!("{program} did not end within {deadline:?}"))??;
    anyhow::ensure!(status.success(), "{program}: {status}\n{}", said.join("\n"));
    Ok((said, silence))
}

/// Runs a command inside a container, as the container's own user.
///
/// # Errors
/// As [`run`].
pub async fn inside(container: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut all = vec!["exec", container];
    all.extend_from_slice(arguments);
    run("docker", &all).await
}
