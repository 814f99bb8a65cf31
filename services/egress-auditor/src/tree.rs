//! A trace from Jaeger's JSON (`/api/traces/<id>`) to lines of a tree. Pure. Every text in it is made harmless: span
//! names and attributes hold what tiers and peers said.
//!
//! Robust against any shape: spans without parent are roots, spans whose parents form a ring are shown as roots once,
//! and nothing recurses.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use service_kit::text::harmless_line;

/// Spans shown. A turn has some dozens.
pub const MOST_SPANS: usize = 10_000;
const MOST_ATTRIBUTES: usize = 64;
const MOST_NAME_CHARS: usize = 200;
const MOST_VALUE_CHARS: usize = 500;

/// One span in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 0 for a root.
    pub depth: u32,
    /// Service that drew it.
    pub service: String,
    /// Name of the operation.
    pub name: String,
    /// Microseconds after the first span's start.
    pub start_micros: u64,
    /// Microseconds it took.
    pub duration_micros: u64,
    /// What is known about it.
    pub attributes: BTreeMap<String, String>,
    /// It failed.
    pub error: bool,
}

/// Jaeger's answer is not what Jaeger 1.x answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Jaeger's answer is not a trace (line {line} column {column})")]
pub struct MalformedTrace {
    line: usize,
    column: usize,
}

#[derive(Deserialize)]
struct Answer {
    data: Option<Vec<Trace>>,
}

#[derive(Deserialize)]
struct Trace {
    #[serde(default)]
    spans: Vec<Span>,
    #[serde(default)]
    processes: HashMap<String, Process>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    #[serde(rename = "spanID")]
    span_id: String,
    #[serde(default)]
    operation_name: String,
    #[serde(default)]
    references: Vec<Reference>,
    start_time: u64,
    duration: u64,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(default, rename = "processID")]
    process_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: String,
    #[serde(rename = "spanID")]
    span_id: String,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: String,
}

/// Parses an answer and puts its spans in order: depth first, siblings by start.
///
/// # Errors
/// [`MalformedTrace`] when it is not the expected shape.
pub fn parse(body: &[u8]) -> Result<Vec<Node>, MalformedTrace> {
    let answer: Answer =
        serde_json::from_slice(body).map_err(|error| MalformedTrace { line: error.line(), column: error.column() })?;
    let mut spans = Vec::new();
    let mut services = HashMap::new();
    for trace in answer.data.unwrap_or_default() {
        for (id, process) in trace.processes {
            services.insert(id, process.service_name);
        }
        spans.extend(trace.spans);
    }
    spans.sort_by_key(|span| span.start_time);
    // Jaeger may hold a span twice after a retried export.
    let mut known = HashSet::new();
    spans.retain(|span| known.insert(span.span_id.clone()));
    spans.truncate(MOST_SPANS);
    Ok(order(&spans, &services))
}

fn order(spans: &[Span], services: &HashMap<String, String>) -> Vec<Node> {
    let index: HashMap<&str, usize> = spans.iter().enumerate().map(|(at, span)| (span.span_id.as_str(), at)).collect();
    let parent_of = |at: usize| {
        let span = spans.get(at)?;
        let parent = span.references.iter().find(|reference| reference.ref_type == "CHILD_OF")?;
        index.get(parent.span_id.as_str()).copied().filter(|parent| *parent != at)
    };
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    let mut roots = Vec::new();
    for at in 0..spans.len() {
        match parent_of(at).and_then(|parent| children.get_mut(parent)) {
            Some(siblings) => siblings.push(at),
            None => roots.push(at),
        }
    }
    let first = spans.first().map_or(0, |span| span.start_time);
    let mut shown = vec![false; spans.len()];
    let mut nodes = Vec::with_capacity(spans.len());
    // Roots first, then whatever they did not lead to: rings.
    for start in roots.into_iter().chain(0..spans.len()) {
        let mut stack = vec![(start, 0_u32)];
        while let Some((at, depth)) = stack.pop() {
            let (Some(span), Some(done)) = (spans.get(at), shown.get_mut(at)) else { continue };
            if std::mem::replace(done, true) {
                continue;
            }
            nodes.push(node(span, depth, first, services));
            for &child in children.get(at).into_iter().flatten().rev() {
                stack.push((child, depth.saturating_add(1)));
            }
        }
    }
    nodes
}

fn node(span: &Span, depth: u32, first: u64, services: &HashMap<String, String>) -> Node {
    let mut attributes = BTreeMap::new();
    let mut error = false;
    for tag in &span.tags {
        let value = match &tag.value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match tag.key.as_str() {
            "error" if matches!(value.as_str(), "" | "false") => {}
            "error" if value == "true" => error = true,
            "otel.status_code" => error |= value == "ERROR",
            key if is_plumbing(key) => {}
            key if attributes.len() < MOST_ATTRIBUTES => {
                // Some services say in `error` what went wrong.
                error |= key == "error";
                attributes.insert(harmless_line(key, MOST_NAME_CHARS), harmless_line(&value, MOST_VALUE_CHARS));
            }
            _ => {}
        }
    }
    Node {
        depth,
        service: harmless_line(services.get(&span.process_id).map_or("", String::as_str), MOST_NAME_CHARS),
        name: harmless_line(&span.operation_name, MOST_NAME_CHARS),
        start_micros: span.start_time.saturating_sub(first),
        duration_micros: span.duration,
        attributes,
        error,
    }
}

/// Attributes about the program rather than about what it did.
fn is_plumbing(key: &str) -> bool {
    matches!(key, "busy_ns" | "idle_ns" | "target" | "level" | "span.kind" | "internal.span.format" | "w3c.tracestate")
        || ["code.", "thread.", "otel.scope.", "otel.library."].iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn span(id: &str, parent: Option<&str>, start: u64) -> Value {
        let references: Vec<Value> =
            parent.iter().map(|p| json!({"refType": "CHILD_OF", "traceID": "t", "spanID": p})).collect();
        json!({"traceID": "t", "spanID": id, "operationName": format!("op-{id}"), "references": references,
               "startTime": start, "duration": 5, "processID": "p1", "warnings": null,
               "tags": [{"key": "k", "type": "string", "value": "v"}, {"key": "busy_ns", "type": "int64", "value": 7}]})
    }

    fn tree(spans: Vec<Value>) -> Vec<Node> {
        let answer = json!({"data": [{"traceID": "t", "spans": spans,
                            "processes": {"p1": {"serviceName": "broker", "tags": []}}}], "errors": null});
        parse(&serde_json::to_vec(&answer).unwrap()).unwrap()
    }

    fn shape(nodes: &[Node]) -> Vec<(u32, &str)> {
        nodes.iter().map(|node| (node.depth, node.name.as_str())).collect()
    }

    #[test]
    fn depth_first_and_siblings_by_start() {
        let nodes = tree(vec![
            span("c", Some("a"), 130),
            span("b", Some("a"), 120),
            span("a", None, 100),
            span("d", Some("b"), 140),
            span("x", Some("not here"), 125),
        ]);
        assert_eq!(shape(&nodes), [(0, "op-a"), (1, "op-b"), (2, "op-d"), (1, "op-c"), (0, "op-x")]);
        let b = nodes.get(1).unwrap();
        assert_eq!((b.start_micros, b.duration_micros, b.service.as_str(), b.error), (20, 5, "broker", false));
        assert_eq!(b.attributes, [("k".to_owned(), "v".to_owned())].into());
    }

    #[test]
    fn rings_and_doubles_are_shown_once() {
        let nodes = tree(vec![
            span("a", Some("b"), 1),
            span("b", Some("a"), 2),
            span("s", Some("s"), 3),
            span("s", Some("s"), 4),
        ]);
        assert_eq!(shape(&nodes), [(0, "op-s"), (0, "op-a"), (1, "op-b")]);
    }

    #[test]
    fn hostile_text_is_harmless() {
        let mut evil = span("a", None, 1);
        evil["operationName"] = json!("\u{1b}[2Jx\nfake line");
        evil["tags"] =
            json!([{"key": "a\u{202e}b", "value": "x\r\ny"}, {"key": "error", "type": "bool", "value": true}]);
        let nodes = tree(vec![evil]);
        let node = nodes.first().unwrap();
        assert_eq!(node.name, "\\u{1b}[2Jx\\nfake line");
        assert_eq!(node.attributes, [("a\\u{202e}b".to_owned(), "x\\u{d}\\ny".to_owned())].into());
        assert!(node.error);
    }

    #[test]
    fn an_error_may_be_a_flag_or_a_sentence() {
        for (value, failed, kept) in [
            (json!(true), true, None),
            (json!("true"), true, None),
            (json!(false), false, None),
            (json!("no route"), true, Some("no route")),
        ] {
            let mut span = span("a", None, 1);
            span["tags"] = json!([{"key": "error", "value": value}]);
            let nodes = tree(vec![span]);
            let node = nodes.first().unwrap();
            assert_eq!((node.error, node.attributes.get("error").map(String::as_str)), (failed, kept), "{value}");
        }
    }

    #[test]
    fn what_is_no_trace_is_an_error_and_nothing_is_empty() {
        assert_eq!(parse(br#"{"data":null,"errors":[{"code":404}]}"#), Ok(Vec::new()));
        for bad in ["", "[]", "{\"data\":[{\"spans\":[{}]}]}", "<html>"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_graph_is_shown_whole(parents in proptest::collection::vec(proptest::option::of(0usize..40), 0..40)) {
            let spans: Vec<Value> = parents.iter().enumerate()
                .map(|(at, parent)| span(&at.to_string(), parent.map(|p| p.to_string()).as_deref(), at as u64)).collect();
            let nodes = tree(spans);
            let names: HashSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            prop_assert_eq!((nodes.len(), names.len()), (parents.len(), parents.len()));
            // A line is at most one deeper than the line before: it can be drawn.
            let mut depth = 0;
            for (at, node) in nodes.iter().enumerate() {
                let deepest = if at == 0 { 0 } else { depth + 1 };
                prop_assert!(node.depth <= deepest);
                depth = node.depth;
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _outcome: Result<_, MalformedTrace> = parse(&bytes);
        }
    }
}
