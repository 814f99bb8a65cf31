//! `tests/run.sh soak --turns N`: N real turns in all three tiers of a drill that is up, and a verdict on what grew.
//!
//! A test program of its own rather than a test: it has arguments, and takes as long as it is told to.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use assistant_proto::event::EgressDenied;
use assistant_tests::harness::bus::Watch;
use assistant_tests::harness::{command, sink};
use assistant_tests::soak::drive::{self, Talker};
use assistant_tests::soak::judge::{self, Traces};
use assistant_tests::soak::sample::{self, Sample};
use clap::Parser;
use futures::future::try_join_all;
use service_kit::task::Tasks;

/// Samples after the warm-up: three thirds of three.
const SAMPLES: u32 = 9;

#[derive(Debug, Parser)]
#[command(version, about = "Makes many turns in a drill that is up, and says what grew. Needs root")]
struct Arguments {
    /// Turns that are judged; a warm-up of a fifth of it, at most 100, comes before.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(27..=1_000_000))]
    turns: u32,
    /// Where all figures go, for a closer look.
    #[arg(long, default_value = "/var/log/assistant/soak.tsv")]
    figures: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    match soak(&Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything went well.
async fn soak(arguments: &Arguments) -> anyhow::Result<bool> {
    sink::now().await.context("the drill is not up; run deploy/up.sh --drill first")?;
    let traces = traces().await?;
    let tasks = Tasks::default();
    let denials = Watch::<EgressDenied>::watch(&tasks).await?;
    let mut talkers = drive::talkers().await?;
    let began = Instant::now();
    let warm_up = (arguments.turns / 5).min(100);
    talk(&mut talkers, warm_up).await?;
    let mut samples = vec![Sample::take(0).await?];
    for number in 1..=SAMPLES {
        let until = |number: u32| arguments.turns / SAMPLES * number + arguments.turns % SAMPLES * number / SAMPLES;
        talk(&mut talkers, until(number).saturating_sub(until(number.saturating_sub(1)))).await?;
        samples.push(Sample::take(until(number)).await?);
        tracing::info!("{} of {} turns, {} s", until(number), arguments.turns, began.elapsed().as_secs());
    }
    std::fs::write(&arguments.figures, judge::figures(&samples))
        .with_context(|| arguments.figures.display().to_string())?;
    // The first sample is only for the closer look: what the warm-up left to be swept is still there.
    let rows = judge::judge(samples.get(1..).unwrap_or_default(), traces)?;
    let mut problems: Vec<String> = rows
        .iter()
        .filter(|row| !row.fine)
        .map(|row| format!("{}: {} grew: {} (allowed: {})", row.part, row.what, row.figures, row.bound))
        .collect();
    problems.extend(sample::endless().await?);
    problems.extend(talkers.iter().flat_map(|talker| talker.failures.iter().cloned()));
    // A share of the turns had something refused; without it this would have been a walk in the park.
    let told = denials.seen().len();
    let refused: usize = talkers.iter().map(|talker| usize::try_from(talker.refused).unwrap_or(usize::MAX)).sum();
    if told < refused || refused == 0 {
        problems.push(format!("{refused} attempts were refused, and {told} denials were told"));
    }
    let mut out = std::io::stdout();
    writeln!(out, "{} turns and {warm_up} before them in {} s\n", arguments.turns, began.elapsed().as_secs())?;
    writeln!(out, "{}\n{refused} attempts were refused, {told} denials told", judge::table(&rows))?;
    writeln!(out, "all figures: {}", arguments.figures.display())?;
    for problem in &problems {
        writeln!(out, "FAILED: {problem}")?;
    }
    Ok(problems.is_empty())
}

/// Shares turns among the tiers, which talk at the same time.
async fn talk(talkers: &mut [Talker], turns: u32) -> anyhow::Result<()> {
    let count = u32::try_from(talkers.len()).unwrap_or(1).max(1);
    let shares = talkers.iter_mut().zip(0..).map(|(talker, at)| {
        let share = turns / count + u32::from(at < turns % count);
        talker.talk(share)
    });
    try_join_all(shares).await.map(|_| ())
}

/// How many traces Jaeger keeps, and the memory that it has for them, from its container.
async fn traces() -> anyhow::Result<Traces> {
    let format = "{{.HostConfig.Memory}} {{json .Config.Cmd}}";
    let said = command::run("docker", &["container", "inspect", "--format", format, "assistant-jaeger"]).await?.ok()?;
    let (memory, arguments) = said.trim().split_once(' ').with_context(|| said.clone())?;
    let arguments: Vec<String> = serde_json::from_str(arguments).with_context(|| said.clone())?;
    let most = arguments.iter().find_map(|argument| argument.strip_prefix("--memory.max-traces="));
    Ok(Traces { most: most.with_context(|| said.clone())?.parse()?, memory: memory.parse()? })
}
