//! How a trace, a denial and a verification look on a terminal. Pure: values in, text out. The texts in the values were
//! made harmless by the service; this draws around them.

use std::fmt::Write;

use assistant_proto::egress::{ExplainResponse, Record, ShowTraceResponse, Standing, TraceLine, VerifyChainResponse};

/// Attributes that come first, in this order; others follow if their names have no dot (those are the services' own).
const FIRST: [&str; 20] = [
    "principal",
    "channel",
    "model",
    "tool",
    "http.request.method",
    "server.address",
    "server.port",
    "host",
    "port",
    "url.path",
    "http.response.status_code",
    "tls.server.name",
    "network.peer.address",
    "rule",
    "denied",
    "reason",
    "count",
    "outcome",
    "bytes_out",
    "bytes_in",
];
/// Said elsewhere in the picture, or the same on every line.
const SAID: [&str; 5] = ["tier", "turn", "layer", "attachment", "protocol"];
/// A value longer than this is cut in the picture.
const MOST_VALUE_CHARS: usize = 60;

/// A trace as a tree.
#[must_use]
pub fn trace(response: &ShowTraceResponse) -> String {
    let services: std::collections::BTreeSet<&str> = response.lines.iter().map(|line| line.service.as_str()).collect();
    let end =
        response.lines.iter().map(|line| line.start_micros.saturating_add(line.duration_micros)).max().unwrap_or(0);
    let errors = response.lines.iter().filter(|line| line.error).count();
    let mut out = String::new();
    let mut head = format!(
        "trace {}   {} from {}   {}",
        response.trace_id,
        counted(response.lines.len(), "span"),
        counted(services.len(), "service"),
        duration(end)
    );
    if errors > 0 {
        head.push_str(&format!("   {} failed", errors));
    }
    push_line(&mut out, &head);
    push_line(&mut out, "");
    let prefixes = prefixes(&response.lines);
    let labels: Vec<String> =
        response.lines.iter().zip(&prefixes).map(|(line, prefix)| format!("{prefix}{}", label(line))).collect();
    let widest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let mut tier_said = String::new();
    for (line, text) in response.lines.iter().zip(&labels) {
        let pad = widest.saturating_sub(text.chars().count());
        let when = format!("{:>9} {:>9}", format!("+{}", duration(line.start_micros)), duration(line.duration_micros));
        let attributes = attributes(line, &mut tier_said);
        push_line(&mut out, format!("{text}{}  {when}  {attributes}", " ".repeat(pad)).trim_end());
    }
    out
}

fn label(line: &TraceLine) -> String {
    let service = if line.service.is_empty() { "?" } else { &line.service };
    let failed = if line.error { "  !" } else { "" };
    format!("{service}  {}{failed}", line.name)
}

/// The lines to the left of each span: what is drawn depends on whether a sibling follows.
fn prefixes(lines: &[TraceLine]) -> Vec<String> {
    // From the last line up: at each depth, whether another span of that depth follows below the same parent.
    let mut follows: Vec<bool> = Vec::new();
    let mut prefixes = Vec::with_capacity(lines.len());
    for line in lines.iter().rev() {
        let depth = usize::try_from(line.depth).unwrap_or(usize::MAX).min(MOST_DEPTH);
        follows.resize(depth.saturating_add(1), false);
        let mut prefix = String::new();
        for level in 1..=depth {
            let more = follows.get(level).copied().unwrap_or(false);
            prefix.push_str(match (level == depth, more) {
                (true, true) => "├─ ",
                (true, false) => "└─ ",
                (false, true) => "│  ",
                (false, false) => "   ",
            });
        }
        if let Some(follow) = follows.get_mut(depth) {
            *follow = true;
        }
        prefixes.push(prefix);
    }
    prefixes.reverse();
    prefixes
}

/// Deeper than this is drawn at this depth: a terminal has an edge.
const MOST_DEPTH: usize = 40;

fn attributes(line: &TraceLine, tier_said: &mut String) -> String {
    let mut shown = Vec::new();
    if let Some(tier) = value(line, "tier").filter(|tier| *tier != tier_said.as_str()) {
        tier_said.clear();
        tier_said.push_str(tier);
        shown.push(format!("tier={}", cut(tier)));
    }
    // Only when it is not certain: most spans belong to the turn that was running.
    if let Some(attachment) = value(line, "attachment").filter(|attachment| *attachment != "active") {
        shown.push(cut(attachment));
    }
    for key in FIRST {
        if let Some(value) = value(line, key) {
            let short = key.rsplit('.').next().unwrap_or(key);
            shown.push(format!("{short}={}", cut(value)));
        }
    }
    for (key, value) in sorted(line) {
        if !key.contains('.') && !FIRST.contains(&key) && !SAID.contains(&key) && !value.is_empty() {
            shown.push(format!("{key}={}", cut(value)));
        }
    }
    if line.error
        && let Some(why) = value(line, "otel.status_description")
    {
        shown.push(format!("({})", cut(why)));
    }
    shown.join(" ")
}

fn value<'a>(line: &'a TraceLine, key: &str) -> Option<&'a str> {
    line.attributes.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

fn sorted(line: &TraceLine) -> Vec<(&str, &str)> {
    let mut all: Vec<(&str, &str)> =
        line.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    all.sort_unstable();
    all
}

fn cut(value: &str) -> String {
    service_kit::text::harmless_line(value, MOST_VALUE_CHARS)
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// `812 µs`, `45.3 ms`, `3.21 s`, `2 min 5 s`.
#[must_use]
pub fn duration(micros: u64) -> String {
    let whole_and = |unit: u64| (micros / unit, micros % unit);
    match micros {
        0..=999 => format!("{micros} µs"),
        1_000..=999_999 => {
            let (whole, rest) = whole_and(1_000);
            format!("{whole}.{} ms", rest / 100)
        }
        1_000_000..=59_999_999 => {
            let (whole, rest) = whole_and(1_000_000);
            format!("{whole}.{:02} s", rest / 10_000)
        }
        _ => {
            let (minutes, rest) = whole_and(60_000_000);
            format!("{minutes} min {} s", rest / 1_000_000)
        }
    }
}

/// An explanation: the answer, a line for each wall, what to do.
#[must_use]
pub fn explained(asked: &str, response: &ExplainResponse) -> String {
    let mut out = String::new();
    let answer = if response.allowed { "allowed" } else { "denied" };
    push_line(&mut out, &format!("{answer}   {}   {asked}", response.principal));
    push_line(&mut out, "");
    for verdict in &response.verdicts {
        let place = [&verdict.rule, &verdict.source].map(String::as_str).into_iter().filter(|text| !text.is_empty());
        let place = place.collect::<Vec<_>>().join(", ");
        let place = if place.is_empty() { place } else { format!("  ({place})") };
        let reason = if verdict.reason.is_empty() { String::new() } else { format!("{}: ", verdict.reason) };
        let mark = standing(verdict.standing());
        push_line(&mut out, &format!("  {:<7} {mark:<8} {reason}{}{place}", verdict.layer, verdict.detail));
    }
    if !response.fix.is_empty() {
        push_line(&mut out, "");
        push_line(&mut out, &format!("to allow it: {}", response.fix));
    }
    for change in &response.changes {
        push_line(&mut out, &format!("  {}:{}", change.file, change.line));
        for line in change.text.lines() {
            push_line(&mut out, &format!("      {line}"));
        }
    }
    out
}

/// The same for programs.
#[must_use]
pub fn explained_json(response: &ExplainResponse) -> String {
    let verdicts = response.verdicts.iter().map(|verdict| {
        serde_json::json!({
            "layer": verdict.layer, "standing": standing(verdict.standing()), "reason": verdict.reason,
            "detail": verdict.detail, "fix": verdict.fix, "rule": verdict.rule, "source": verdict.source,
        })
    });
    let changes = response
        .changes
        .iter()
        .map(|change| serde_json::json!({"file": change.file, "line": change.line, "text": change.text}));
    let value = serde_json::json!({
        "allowed": response.allowed, "principal": response.principal, "fix": response.fix,
        "verdicts": verdicts.collect::<Vec<_>>(), "changes": changes.collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Unspecified => "unknown",
        Standing::Passes => "passes",
        Standing::Refuses => "refuses",
        Standing::Aside => "aside",
    }
}

/// A denial: what and why on one line, what would allow it and how to look closer below.
#[must_use]
pub fn denied(record: &Record) -> String {
    let mut out = String::new();
    let host = if record.host.is_empty() { "(no host)" } else { &record.host };
    let port = if record.port == 0 { String::new() } else { format!(":{}", record.port) };
    let times = if record.count > 1 { format!("   {} times", record.count) } else { String::new() };
    let who = if record.principal.is_empty() { String::new() } else { format!(" ({})", record.principal) };
    push_line(
        &mut out,
        &format!(
            "{}  {}{who}  {host}{port}  denied by {}: {}{times}",
            record.recorded_at, record.tier, record.layer, record.reason
        ),
    );
    if !record.detail.is_empty() {
        push_line(&mut out, &format!("    what   {}", record.detail));
    }
    if !record.fix.is_empty() {
        push_line(&mut out, &format!("    fix    {}", record.fix));
    }
    if !record.trace_id.is_empty() {
        push_line(&mut out, &format!("    trace  {}", record.trace_id));
    }
    out
}

/// The outcome of a verification.
#[must_use]
pub fn verified(response: &VerifyChainResponse) -> String {
    if response.intact {
        let pruned = match response.pruned {
            0 => String::new(),
            count => format!(" behind {count} that were let go"),
        };
        format!("intact: {} records{pruned}, head {}\n", response.records, response.head)
    } else {
        format!(
            "BROKEN at record {}: the {} records before it are intact, this one was changed, removed or put in\n\
             keep a copy of the volume of egress-auditor for inspection, and start with an empty one\n",
            response.broken_at, response.records
        )
    }
}

fn push_line(out: &mut String, line: &str) {
    // Writing to a String cannot fail.
    if writeln!(out, "{line}").is_err() {
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(depth: u32, service: &str, name: &str, start: u64, took: u64, attributes: &[(&str, &str)]) -> TraceLine {
        TraceLine {
            depth,
            service: service.to_owned(),
            name: name.to_owned(),
            start_micros: start,
            duration_micros: took,
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            error: name.ends_with("denied"),
        }
    }

    #[test]
    fn a_tree_a_person_can_read() {
        let response = ShowTraceResponse {
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
            lines: vec![
                line(0, "channel-bridge", "turn", 0, 3_214_000, &[("tier", "tasks"), ("busy", "")]),
                line(1, "secret-broker", "models.request", 12_300, 812_000, &[("model", "assistant")]),
                line(
                    2,
                    "egress-auditor",
                    "squid.tunnel",
                    15_000,
                    45_300,
                    &[
                        ("server.address", "model.drill.example"),
                        ("bytes_in", "1895"),
                        ("tier", "tasks"),
                        ("attachment", "late"),
                    ],
                ),
                line(1, "secret-broker", "proxy.request", 1_000_000, 900, &[]),
                line(
                    2,
                    "egress-auditor",
                    "squid.denied",
                    1_000_100,
                    0,
                    &[
                        ("otel.status_description", "Squid's floor"),
                        ("reason", "host-not-allowed"),
                        ("attachment", "active"),
                    ],
                ),
            ],
        };
        let expected = "\
trace 4bf92f3577b34da6a3ce929d0e0e4736   5 spans from 3 services   3.21 s   1 failed

channel-bridge  turn                       +0 µs    3.21 s  tier=tasks
├─ secret-broker  models.request        +12.3 ms  812.0 ms  model=assistant
│  └─ egress-auditor  squid.tunnel      +15.0 ms   45.3 ms  late address=model.drill.example bytes_in=1895
└─ secret-broker  proxy.request          +1.00 s    900 µs
   └─ egress-auditor  squid.denied  !    +1.00 s      0 µs  reason=host-not-allowed (Squid's floor)
";
        assert_eq!(trace(&response), expected);
    }

    #[test]
    fn forests_and_returns_are_drawn_right() {
        let depths = [0, 1, 2, 3, 1, 2, 0, 1];
        let lines: Vec<_> = depths.iter().map(|depth| line(*depth, "s", "n", 0, 0, &[])).collect();
        let expected = ["", "├─ ", "│  └─ ", "│     └─ ", "└─ ", "   └─ ", "", "└─ "];
        assert_eq!(prefixes(&lines), expected);
    }

    #[test]
    fn durations() {
        let cases = [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_050, "1.0 ms"),
            (999_999, "999.9 ms"),
            (1_234_567, "1.23 s"),
            (125_000_000, "2 min 5 s"),
        ];
        for (micros, text) in cases {
            assert_eq!(duration(micros), text);
        }
    }

    #[test]
    fn a_denial_says_what_would_allow_it() {
        let record = Record {
            recorded_at: "2026-01-31T12:00:00.123Z".to_owned(),
            tier: "tasks".to_owned(),
            principal: "zeroclaw-tasks".to_owned(),
            layer: "broker".to_owned(),
            host: "news.example".to_owned(),
            port: 443,
            reason: "no-rule".to_owned(),
            fix: "add it".to_owned(),
            detail: "no rule".to_owned(),
            trace_id: "ab".to_owned(),
            count: 3,
            ..Record::default()
        };
        assert_eq!(
            denied(&record),
            "2026-01-31T12:00:00.123Z  tasks (zeroclaw-tasks)  news.example:443  denied by broker: no-rule   3 times\n    \
             what   no rule\n    fix    add it\n    trace  ab\n"
        );
    }
}
