//! What `explain` says beforehand is what happens: the sentences of a real denial, and a real request that passes.

use assistant_proto::event::Layer;
use assistant_tests::doubles::record::Arrival;
use assistant_tests::doubles::{MARVIN_HOST, OUTSIDE_HOST};
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::run;
use assistant_tests::harness::{TIER, agent, sink};
use serde_json::Value;
use service_kit::task::Tasks;

const AUDITOR: &str = "/usr/local/lib/assistant/bin/egress-auditor";

/// Exit status and answer.
async fn explain(arguments: &[&str]) -> (i32, Value) {
    let arguments: Vec<&str> = ["explain", "--json"].into_iter().chain(arguments.iter().copied()).collect();
    let said = run(AUDITOR, &arguments).await.unwrap();
    (said.status, serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}")))
}

fn at<'v>(answer: &'v Value, layer: &str) -> &'v Value {
    answer["verdicts"].as_array().unwrap().iter().find(|verdict| verdict["layer"] == layer).unwrap()
}

#[tokio::test]
async fn a_denial_is_explained_in_the_words_of_its_event() {
    let url = format!("https://{OUTSIDE_HOST}/?q=explain");
    let (status, answer) = explain(&[TIER, "GET", &url]).await;
    assert_eq!((status, answer["allowed"].as_bool()), (1, Some(false)), "{answer}");
    assert_eq!(at(&answer, "squid")["standing"], "refuses", "Squid would deny it on its own: {answer}");
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let turn = agent::say(TIER, &format!("fetch {url} for me")).await.unwrap();
    assert_eq!(turn.failure, "");
    let event = denials
        .wait("the denial", |e| e.host == OUTSIDE_HOST && e.layer == Layer::Broker && e.trace_id == turn.trace_id)
        .await
        .unwrap();
    let said = at(&answer, "broker");
    assert_eq!(said["reason"], event.reason.as_str());
    assert_eq!(said["detail"], event.detail.as_str());
    assert_eq!(said["fix"], event.fix.as_str());
    assert_eq!(answer["fix"], event.fix.as_str());
    let changes = answer["changes"].as_array().unwrap();
    assert!(changes.iter().any(|change| change["file"] == "squid/allowlist.txt" && change["text"] == OUTSIDE_HOST));
}

#[tokio::test]
async fn what_is_allowed_passes() {
    let url = format!("https://{MARVIN_HOST}/api/todayItems");
    let (status, answer) = explain(&[TIER, "GET", &url, "--as", "marvin"]).await;
    assert_eq!((status, answer["allowed"].as_bool()), (0, Some(true)), "{answer}");
    assert_eq!(answer["changes"], Value::Array(Vec::new()));
    let cursor = sink::now().await.unwrap();
    let turn = agent::say(TIER, "what are my tasks?").await.unwrap();
    assert_eq!(turn.failure, "");
    let arrived = sink::since(cursor).await.unwrap();
    let came = arrived.iter().any(|entry| {
        matches!(&entry.arrival, Arrival::Request { host, path, authorized, .. }
            if host == MARVIN_HOST && path.starts_with("/api/todayItems") && *authorized)
    });
    assert!(came, "{arrived:?}");
    // Control: the same from the agent is not allowed, and no such tier is no answer.
    assert_eq!(explain(&[TIER, "GET", &url]).await.0, 1);
    let nobody = run(AUDITOR, &["explain", "nosuch", "GET", &url]).await.unwrap();
    assert_eq!(nobody.status, 2, "{nobody:?}");
}
