//! `drill-bench`: what the stack costs, measured on a drill that is up. Started by `tests/bench.sh`.
//!
//! Owns: the order of the measures. Every figure has its baseline in the same run, and they take turns round by round, so
//! that a busy neighbour hits both. Does not: start, stop or change anything of the stack, or judge a figure.

mod chat;
mod denied;
mod request;
mod series;
mod stack;
mod turn;
mod up_times;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use assistant_tests::harness::{agent, parts};
use clap::Parser;
use service_kit::task::Tasks;

use crate::chat::Acknowledging;
use crate::denied::{Subscriber, WALLS};
use crate::request::Route;
use crate::series::{HEAD, Series, row};
use crate::stack::Stack;

/// Requests whose processor time is counted; the clock behind it ticks every 10 ms.
const COUNTED: u16 = 1000;

#[derive(Debug, Parser)]
#[command(version, about = "Measures a drill that is up, and prints tables. Needs root")]
struct Arguments {
    /// Rounds; in each, every measure has its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: u8,
    /// Requests of a route in one round. A block must end within 10 s: requests outside a turn are refused.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=1000))]
    requests: u16,
    /// New connections of a route in one round.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    connections: u16,
    /// Chat turns of either kind in one round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    turns: u16,
    /// Refused attempts at each wall in one round.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=50))]
    denials: u16,
}

/// The three routes to one host.
#[derive(Debug, Default)]
struct Routes {
    fresh: [Series; 3],
    kept: [Series; 3],
}

#[derive(Debug, Default)]
struct Figures {
    task_service: Routes,
    model: Routes,
    bridge_first: Series,
    bridge_end: Series,
    direct_session: Series,
    direct_first: Series,
    direct_end: Series,
    at_once_end: Series,
    turn_parts: turn::Figures,
    denied: [Series; 4],
    load: Vec<String>,
    /// For one request, by part: to the task service, to the model.
    processor: [BTreeMap<String, Duration>; 2],
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    match bench(&Arguments::parse()).await {
        Ok(report) if std::io::stdout().write_all(report.as_bytes()).is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(arguments: &Arguments) -> anyhow::Result<String> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("a TLS provider was installed twice");
    }
    let stack = Stack::find().await?;
    let tasks = Tasks::default();
    let mut subscriber = Subscriber::start(&tasks).await?;
    let bridge = agent::connect("channel-bridge").await?;
    let (to_task_service, to_model) = (stack.to_task_service()?, stack.to_model()?);
    let mut figures = Figures::default();
    for round in 1..=arguments.rounds {
        figures.load.push(load());
        tracing::info!("round {round} of {}, load {}", arguments.rounds, load());
        measure_routes(&to_task_service, &mut figures.task_service, arguments, round).await?;
        measure_routes(&to_model, &mut figures.model, arguments, round).await?;
        measure_turns(&stack, &bridge, &mut figures, arguments.turns).await?;
        turn::measure(&mut figures.turn_parts, arguments.turns).await?;
        for ((wall, _), series) in WALLS.iter().zip(&mut figures.denied) {
            chat::open_the_door().await?;
            series.add(subscriber.measure(&stack, *wall, usize::from(arguments.denials)).await?);
        }
    }
    for (figures, [_, _, route]) in figures.processor.iter_mut().zip([&to_task_service, &to_model]) {
        tracing::info!("processor time of {COUNTED} requests, load {}", load());
        *figures = processor_time(route).await?;
    }
    report(&figures, &to_task_service, &to_model).await
}

async fn measure_routes(routes: &[Route; 3], to: &mut Routes, arguments: &Arguments, round: u8) -> anyhow::Result<()> {
    // Another one begins each round: the first after something else finds colder caches.
    for turn in 0..routes.len() {
        let at = (turn + usize::from(round)) % routes.len();
        let (Some(route), Some(fresh), Some(kept)) = (routes.get(at), to.fresh.get_mut(at), to.kept.get_mut(at)) else {
            continue;
        };
        chat::open_the_door().await?;
        fresh.add(route.fresh(usize::from(arguments.connections)).await?);
        chat::open_the_door().await?;
        kept.add(route.kept(usize::from(arguments.requests)).await?);
    }
    Ok(())
}

async fn measure_turns(
    stack: &Stack,
    bridge: &tonic::transport::Channel,
    figures: &mut Figures,
    turns: u16,
) -> anyhow::Result<()> {
    let (mut bridged, mut direct, mut at_once) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..turns {
        bridged.push(chat::by_bridge(bridge).await?);
        // Within 10 s of that turn, so that what the agent asks of the broker still belongs to one.
        direct.push(chat::direct(stack, Acknowledging::Lazily).await?);
        at_once.push(chat::direct(stack, Acknowledging::AtOnce).await?.end);
    }
    figures.bridge_first.add(bridged.iter().map(|turn| turn.first_text).collect());
    figures.bridge_end.add(bridged.iter().map(|turn| turn.end).collect());
    figures.direct_session.add(direct.iter().map(|turn| turn.session).collect());
    figures.direct_first.add(direct.iter().map(|turn| turn.first_text).collect());
    figures.direct_end.add(direct.iter().map(|turn| turn.end).collect());
    figures.at_once_end.add(at_once);
    Ok(())
}

/// What each part spends on one request of a kept connection, with all that comes of it later.
async fn processor_time(route: &Route) -> anyhow::Result<BTreeMap<String, Duration>> {
    chat::open_the_door().await?;
    let before = parts::processor_time().await?;
    route.kept(usize::from(COUNTED)).await?;
    let mut spent = parts::processor_time().await?;
    for (part, time) in &mut spent {
        let of_all = time.saturating_sub(before.get(part).copied().unwrap_or_default());
        *time = of_all / u32::from(COUNTED);
    }
    Ok(spent)
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

async fn report(figures: &Figures, to_task_service: &[Route; 3], to_model: &[Route; 3]) -> anyhow::Result<String> {
    let mut page = String::new();
    writeln!(page, "Load of the machine (1 minute) when each round began: {}\n", figures.load.join(", "))?;
    for (host, routes, figures) in
        [("the task service", to_task_service, &figures.task_service), ("the model", to_model, &figures.model)]
    {
        for (kind, series) in [("a new connection each", &figures.fresh), ("one kept connection", &figures.kept)] {
            writeln!(page, "Request to {host}, {kind}; each row against the one above\n")?;
            page.push_str(HEAD);
            let mut above = None;
            for (route, series) in routes.iter().zip(series) {
                page.push_str(&row(route.name, series, above));
                above = Some(series);
            }
            page.push('\n');
        }
    }
    writeln!(
        page,
        "Chat turn in a new conversation\n\n{HEAD}{}{}{}{}{}{}",
        row("direct: session stands", &figures.direct_session, None),
        row("direct: first text", &figures.direct_first, None),
        row("bridge: first text", &figures.bridge_first, Some(&figures.direct_first)),
        row("direct: end", &figures.direct_end, None),
        row("direct, acknowledging at once: end", &figures.at_once_end, Some(&figures.direct_end)),
        row("bridge: end", &figures.bridge_end, Some(&figures.direct_end))
    )?;
    writeln!(page, "Where the time of a turn goes, by its trace\n\n{}", turn::table(&figures.turn_parts))?;
    page.push_str("From a refused attempt to its event at a subscriber\n\n");
    page.push_str(HEAD);
    for ((_, name), series) in WALLS.iter().zip(&figures.denied) {
        page.push_str(&row(name, series, None));
    }
    page.push_str("\nProcessor time of one request on a kept connection, in microseconds\n\n");
    page.push_str("| part | to the task service | to the model |\n|---|---:|---:|\n");
    let [to_task_service, to_model] = &figures.processor;
    for (part, time) in to_task_service {
        let model = to_model.get(part).copied().unwrap_or_default();
        writeln!(page, "| {part} | {} | {} |", time.as_micros(), model.as_micros())?;
    }
    let all = |times: &BTreeMap<String, Duration>| times.values().sum::<Duration>().as_micros();
    writeln!(page, "| all | {} | {} |", all(to_task_service), all(to_model))?;
    page.push_str("\nMemory after that\n\n| part | processes | RSS MiB | PSS MiB |\n|---|---:|---:|---:|\n");
    let (mut resident, mut proportional) = (0, 0);
    for (part, used) in parts::by_part().await? {
        resident += used.resident;
        proportional += used.proportional;
        writeln!(page, "| {part} | {} | {} | {} |", used.processes, used.resident / 1024, used.proportional / 1024)?;
    }
    writeln!(page, "| all | | {} | {} |\n\n{}", resident / 1024, proportional / 1024, up_times::table()?)?;
    Ok(page)
}
