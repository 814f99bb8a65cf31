//! Tool calls: which are made, and what comes of them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::{Mood, bench, bench_with};
use crate::stand::{MODEL_KEY, Setup};

#[tokio::test]
async fn a_tool_that_is_not_allowed_is_never_called() {
    let bench = bench(true).await;
    for tool in ["delete_all", "", "get_tasks ", "marvin_get_tasks", "Get_Tasks", "\u{1b}[2J"] {
        let refused = bench.call(tool).await;
        assert_eq!(
            (&refused["error"]["code"], &refused["error"]["data"]["reason"]),
            (&json!(-32001), &json!("tool-not-allowed")),
            "{tool}"
        );
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("tiers.yaml") && !message.contains('\u{1b}'), "{message}");
    }
    assert_eq!(bench.server.calls(), [] as [Value; 0]);
    let denied = bench.stand.events("egress.denied.tasks");
    assert_eq!(denied.len(), 6);
    assert!(denied.iter().all(|event| event["layer"] == "mcp" && event["reason"] == "tool-not-allowed"));
    assert!(denied.iter().all(|event| event["fix"].as_str().unwrap().contains("tools section")));
    assert_eq!(bench.stand.events("tool.called.tasks"), [] as [Value; 0]);
    // The control.
    assert_eq!(bench.call("get_tasks").await["result"]["isError"], false);
}

#[tokio::test]
async fn a_call_ends_with_its_turn() {
    let bench = bench(false).await;
    bench.stand.begin_turn();
    bench.server.set(Mood::Silent);
    let (answer, ()) = tokio::join!(bench.call("get_tasks"), async {
        while bench.server.calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.stand.begin_turn();
    });
    assert_eq!(answer["error"]["data"]["reason"], "turn-over", "{answer}");
    let called = bench.stand.wait_for_events("tool.called.tasks", 1).await;
    assert_eq!((called.len(), &called[0]["succeeded"]), (1, &json!(false)));
    assert_eq!(bench.stand.events("egress.denied.tasks"), [] as [Value; 0], "it had left, and is on record as that");
}

#[tokio::test]
async fn outside_a_turn_no_tool_is_called() {
    let bench = bench(false).await;
    let refused = bench.call("get_tasks").await;
    assert_eq!(refused["error"]["data"]["reason"], "outside-turn");
    assert_eq!(bench.server.calls(), [] as [Value; 0]);
    assert_eq!(bench.stand.events("egress.denied.tasks").len(), 1);
    bench.stand.begin_turn();
    assert_eq!(bench.call("get_tasks").await["result"]["isError"], false);
}

#[tokio::test]
async fn results_hold_no_secret_of_the_tier() {
    let bench = bench(true).await;
    let called = bench.call("get_tasks").await;
    let text = called["result"]["content"][0]["text"].as_str().unwrap();
    assert_eq!(text, format!("the key is {}", "*".repeat(MODEL_KEY.len())));
}

#[tokio::test]
async fn a_server_that_misbehaves_costs_one_call_and_is_tried_again() {
    for (mood, said) in [
        (Mood::Unavailable, "status 503"),
        (Mood::HangsUp, "broke"),
        (Mood::WrongId, "not JSON-RPC"),
        (Mood::TooLarge, "above 4 MiB"),
        (Mood::NotJson, "not JSON-RPC"),
    ] {
        let bench = bench(true).await;
        assert_eq!(bench.call("get_tasks").await["result"]["isError"], false);
        bench.server.set(mood);
        let failed = bench.call("get_tasks").await;
        let message = failed["error"]["message"].as_str().unwrap();
        assert_eq!(failed["error"]["code"], -32603, "{failed}");
        assert!(message.contains(said) && message.contains("not known"), "{message}");
        assert_eq!(bench.server.calls().len(), 2, "a call is never sent twice");
        bench.server.set(Mood::Well);
        assert_eq!(bench.call("get_tasks").await["result"]["isError"], false);
        assert_eq!(bench.server.count("initialize"), 2, "initialised again after a failure");
        let succeeded: Vec<_> =
            bench.stand.events("tool.called.tasks").iter().map(|event| event["succeeded"] == true).collect();
        assert_eq!(succeeded, [true, false, true]);
        assert_eq!(bench.stand.events("egress.denied.tasks"), [] as [Value; 0], "nothing was refused");
    }
}

#[tokio::test]
async fn a_call_is_on_record_before_it_reaches_the_server() {
    let there = bench(true).await;
    assert_eq!(there.call("get_tasks").await["result"]["isError"], false);
    let permitted = there.stand.events("egress.permitted.tasks");
    assert_eq!(permitted.len(), 1);
    for (field, expected) in
        [("host", "marvin"), ("method", "tools/call"), ("path", "get_tasks"), ("rule", "tools/marvin/get_tasks")]
    {
        assert_eq!(permitted[0][field], expected, "{field}");
    }
    let away = bench_with(Setup { bus: false, ..Setup::default() }).await;
    let refused = away.call("get_tasks").await;
    assert_eq!(refused["error"]["data"]["reason"], "not-journaled", "{refused}");
    assert_eq!(away.server.calls(), [] as [Value; 0]);
}
