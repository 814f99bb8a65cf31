//! Where a chat turn's time goes, from its trace in Jaeger: each moment of a turn belongs to the innermost part that had
//! work then, so the parts add up to the turn.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Context as _;
use assistant_proto::config::JAEGER_PORT;
use assistant_tests::harness::{TIER, agent, page, probe, until};
use serde_json::Value;

use super::series::{Series, millis};

/// Spans arrive after the turn: they are sent in batches.
const TRACED_WITHIN: Duration = Duration::from_secs(30);
/// The span of the whole turn.
const ROOT: &str = "turn";
/// The span of what is done about it; what comes before and after it in the turn is receipt and reply.
const RUN: &str = "turn.run";

/// What a turn is asked for.
pub(crate) const KINDS: [(&str, &str, &str); 2] =
    [("without a tool", "!say hi", "hi"), ("with one tool call", "!tool get_tasks {}", "Water the plants")];

/// Parts by the names of their spans, the innermost first: where two have work at the same time, the first one's counts.
/// Tunnels are left out: they stay open while nothing happens in them.
const PARTS: [(&str, &str); 10] = [
    ("broker.upstream", "broker: connection through Squid, and TLS with the task service"),
    ("broker.request", "broker: decision, journal, the task service's answer"),
    ("broker.litellm", "LiteLLM, Squid and the model: the whole call"),
    ("broker.model", "model ingress: decision, journal"),
    ("broker.tool", "MCP ingress and MCP server: the tool call"),
    ("broker.mcp", "MCP ingress: session and list of tools"),
    ("agent.prompt", "agent: the rest of the prompt"),
    ("agent.connect", "agent: the rest of connection and session"),
    ("turn.announce", "announcement to broker and auditor"),
    (RUN, "bridge: its records, and closing the connection"),
];
const RECEIPT: &str = "receipt: commit of the message, queue";
const REPLY: &str = "reply: commit, and telling who watches";
const WHOLE: &str = "the whole turn";

/// By part, for each kind of turn.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    parts: [BTreeMap<&'static str, Series>; 2],
    whole: [Series; 2],
}

/// A span, in microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    name: String,
    from: u64,
    to: u64,
}

/// Makes turns of both kinds in turn, each in a new conversation, and reads their traces.
///
/// # Errors
/// When a turn fails, or its trace does not come.
pub(crate) async fn measure(figures: &mut Figures, turns: u16) -> anyhow::Result<()> {
    let mut traces: [Vec<String>; 2] = Default::default();
    for _ in 0..turns {
        for ((_, order, expected), traces) in KINDS.iter().zip(&mut traces) {
            let turn = agent::say(TIER, order).await?;
            anyhow::ensure!(turn.reply.contains(expected), "the agent said something else: {turn:?}");
            traces.push(turn.trace_id);
        }
    }
    let jaeger = jaeger().await?;
    for ((traces, parts), whole) in traces.iter().zip(&mut figures.parts).zip(&mut figures.whole) {
        let mut rounds: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
        let mut totals = Vec::new();
        for trace in traces {
            let spans = spans(jaeger, trace).await?;
            let divided = divide(&spans).with_context(|| format!("trace {trace}"))?;
            totals.push(divided.values().sum());
            for (part, time) in divided {
                rounds.entry(part).or_default().push(time);
            }
        }
        rounds.into_iter().for_each(|(part, round)| parts.entry(part).or_default().add(round));
        whole.add(totals);
    }
    Ok(())
}

async fn jaeger() -> anyhow::Result<SocketAddrV4> {
    let addresses = probe::addresses("assistant-jaeger").await?;
    let (_, address) = addresses.first().context("Jaeger is on no network")?;
    Ok(SocketAddrV4::new(address.parse()?, JAEGER_PORT))
}

/// All spans of a trace, once the whole turn is among them.
async fn spans(jaeger: SocketAddrV4, trace: &str) -> anyhow::Result<Vec<Span>> {
    let path = format!("/api/traces/{trace}");
    until(&format!("the trace {trace}"), TRACED_WITHIN, || async {
        let spans = read(&page::json(jaeger, &path).await?);
        let whole = [ROOT, RUN].iter().all(|name| spans.iter().any(|span| span.name == *name));
        // The model's part is told by another service, which may be later.
        let answered = spans.iter().any(|span| span.name == "broker.litellm");
        Ok((whole && answered).then_some(spans))
    })
    .await
}

fn read(page: &Value) -> Vec<Span> {
    let spans = page.pointer("/data/0/spans").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    spans
        .iter()
        .filter_map(|span| {
            let number = |field: &str| span.get(field).and_then(Value::as_u64);
            let (name, from, took) = (span.get("operationName")?.as_str()?, number("startTime")?, number("duration")?);
            Some(Span { name: name.to_owned(), from, to: from.saturating_add(took) })
        })
        .collect()
}

/// How long each part was the innermost that had work. Every part is named, also one that had none.
fn divide(spans: &[Span]) -> anyhow::Result<BTreeMap<&'static str, Duration>> {
    let named = |name: &str| spans.iter().find(|span| span.name == name).with_context(|| format!("no span {name}"));
    let (root, run) = (named(ROOT)?, named(RUN)?);
    let mut borders: Vec<u64> = spans.iter().flat_map(|span| [span.from, span.to]).collect();
    borders.retain(|border| (root.from..=root.to).contains(border));
    borders.sort_unstable();
    borders.dedup();
    let all = PARTS.iter().map(|(_, part)| *part).chain([RECEIPT, REPLY]);
    let mut divided: BTreeMap<&'static str, Duration> = all.map(|part| (part, Duration::ZERO)).collect();
    for (from, to) in borders.iter().zip(borders.iter().skip(1)) {
        let works = |name: &str| spans.iter().any(|span| span.name == name && span.from <= *from && span.to >= *to);
        let innermost = PARTS.iter().find(|(name, _)| works(name)).map(|(_, part)| *part);
        let part = innermost.unwrap_or(if *from < run.from { RECEIPT } else { REPLY });
        *divided.entry(part).or_default() += Duration::from_micros(to.saturating_sub(*from));
    }
    Ok(divided)
}

/// As a table.
pub(crate) fn table(figures: &Figures) -> String {
    let mut table = "| part |".to_owned();
    for (kind, ..) in KINDS {
        table.push_str(&format!(" {kind}, p50 ms | p99 ms |"));
    }
    table.push_str("\n|---|---:|---:|---:|---:|\n");
    // In the order of a turn.
    let order = [RECEIPT].into_iter().chain(PARTS.iter().rev().map(|(_, part)| *part)).chain([REPLY]);
    for part in order {
        let series = figures.parts.iter().map(|parts| parts.get(part));
        table.push_str(&row(part, series));
    }
    table.push_str(&row(WHOLE, figures.whole.iter().map(Some)));
    table
}

fn row<'a>(part: &str, series: impl Iterator<Item = Option<&'a Series>>) -> String {
    let cells = series.map(|series| match series {
        Some(series) => format!(" {} | {} |", millis(series.p50()), millis(series.p99())),
        None => " - | - |".to_owned(),
    });
    format!("| {part} |{}\n", cells.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, from: u64, to: u64) -> Span {
        Span { name: name.to_owned(), from, to }
    }

    #[test]
    fn every_moment_belongs_to_the_innermost_part() {
        let spans = [
            span(ROOT, 0, 100),
            span(RUN, 10, 90),
            span("turn.announce", 12, 20),
            span("agent.prompt", 30, 80),
            span("broker.model", 40, 60),
            span("broker.litellm", 45, 55),
            // An open tunnel says nothing; what came after the turn is not of it.
            span("squid.tunnel", 0, 200),
            span("broker.mcp", 95, 300),
        ];
        let divided = divide(&spans).unwrap_or_default();
        let micros = |part: &str| divided.get(part).map_or(0, Duration::as_micros);
        let of = |name: &str| PARTS.iter().find(|(span, _)| *span == name).map_or(0, |(_, part)| micros(part));
        let parts =
            [RUN, "turn.announce", "agent.prompt", "broker.model", "broker.litellm", "broker.mcp", "broker.tool"];
        assert_eq!(parts.map(of), [80 - 8 - 50, 8, 50 - 20, 10, 10, 5, 0]);
        assert_eq!((micros(RECEIPT), micros(REPLY)), (10, 5));
        assert_eq!(divided.values().sum::<Duration>(), Duration::from_micros(100), "the parts add up");
    }

    #[test]
    fn a_trace_without_the_turn_is_none() {
        assert!(divide(&[span(RUN, 1, 2)]).is_err());
        assert!(read(&serde_json::json!({"data": []})).is_empty());
        let page = serde_json::json!({"data": [{"spans": [
            {"operationName": "turn", "startTime": 5, "duration": 7}, {"operationName": "broken"}
        ]}]});
        assert_eq!(read(&page), [span(ROOT, 5, 12)]);
    }
}
