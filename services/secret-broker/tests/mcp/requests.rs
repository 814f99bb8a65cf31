//! What is said at the door: the protocol as ZeroClaw speaks it, and what is not understood.

use http::StatusCode;
use serde_json::{Value, json};

use crate::bench::bench;
use crate::stand::{self, AGENT_TOKEN, ask, post, request};

#[tokio::test]
async fn a_conversation_as_zeroclaw_has_it() {
    let bench = bench(false).await;
    let hello = bench
        .rpc(
            "initialize",
            json!({"protocolVersion": "2024-11-05", "capabilities": {"resources": {}, "prompts": {}}, "clientInfo": {"name": "zeroclaw", "version": "0.8.7"}}),
        )
        .await;
    assert_eq!(hello["result"]["protocolVersion"], "2024-11-05");
    assert_eq!(hello["result"]["capabilities"], json!({"tools": {}}));
    let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized", "params": {}});
    let noted = ask(bench.door, post("/mcp", note.to_string())).await;
    assert_eq!((noted.status, noted.body.len()), (StatusCode::ACCEPTED, 0));

    // ZeroClaw asks for tools when it builds an agent, which it does in the turn.
    let turn = bench.stand.begin_turn();
    let listed = bench.rpc("tools/list", json!({})).await;
    assert_eq!(
        listed["result"],
        json!({"tools": [{"name": "get_tasks", "description": "Lists\\u{1b}[2J tasks.", "inputSchema": {"type": "object"}}]}),
        "only what is allowed, harmless"
    );

    let called = bench.call("get_tasks").await;
    assert_eq!(called["result"]["isError"], false);
    assert_eq!(bench.server.calls(), [json!({"name": "get_tasks", "arguments": {"day": "today"}})]);
    let failed = bench.call("fails").await;
    assert_eq!(failed["result"], json!({"content": [{"type": "text", "text": "no such task"}], "isError": true}));
    assert_eq!(bench.server.count("initialize"), 1, "one session for all of it");

    let events = bench.stand.events("tool.called.tasks");
    let told: Vec<_> =
        events.iter().map(|event| (event["tool"].as_str().unwrap(), event["succeeded"] == true)).collect();
    assert_eq!(told, [("tools/list", true), ("get_tasks", true), ("fails", false)]);
    assert_eq!((&events[0]["listed"], events[1].get("listed")), (&json!(1), None));
    assert!(events.iter().all(|event| event["turn"] == json!(turn) && event["server"] == "marvin"));
    assert_eq!(bench.stand.events("egress.denied.tasks"), [] as [Value; 0]);
}

#[tokio::test]
async fn bytes_that_are_no_request_are_counted() {
    let bench = bench(true).await;
    stand::say_what_is_no_request(&bench.stand, bench.door, "mcp").await;
}

#[tokio::test]
async fn what_is_small_on_the_wire_and_large_in_memory_is_refused() {
    let bench = bench(true).await;
    let call = |arguments: &str| {
        post(
            "/mcp",
            format!(
                r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"get_tasks","arguments":{{"x":{arguments}}}}}}}"#
            ),
        )
    };
    let dense = format!("[{}0]", r#"{"":0},"#.repeat(100_000));
    let answer = ask(bench.door, call(&dense)).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["reason"]), (400, &json!("not-json-rpc")));
    assert_eq!(bench.server.calls(), [] as [Value; 0]);
    // The control: as many bytes of text.
    let text = format!("\"{}\"", "x".repeat(dense.len()));
    assert_eq!(ask(bench.door, call(&text)).await.json()["result"]["isError"], false);
    assert_eq!(bench.server.calls()[0]["arguments"]["x"].as_str().map(str::len), Some(dense.len()));
}

#[tokio::test]
async fn only_what_is_understood_is_served() {
    let bench = bench(true).await;
    let mut counted = 0;
    for method in
        ["resources/list", "prompts/list", "sampling/createMessage", "completion/complete", "logging/setLevel", ""]
    {
        let refused = bench.rpc(method, json!({})).await;
        assert_eq!(
            (&refused["error"]["code"], &refused["error"]["data"]["reason"]),
            (&json!(-32601), &json!("method-not-served"))
        );
        counted += 1;
    }
    for params in [
        json!({}),
        json!({"name": 1}),
        json!({"name": "get_tasks", "arguments": []}),
        json!({"name": "get_tasks", "url": "x"}),
    ] {
        let refused = bench.rpc("tools/call", params.clone()).await;
        assert_eq!(refused["error"]["code"], -32602, "{params}");
        assert_eq!(refused["error"]["data"]["reason"], "malformed-call", "{params}");
        counted += 1;
    }
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let bearer = format!("Bearer {AGENT_TOKEN}");
    let token = ("authorization", bearer.as_str());
    let kind = ("content-type", "application/json");
    let large =
        json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "x".repeat(1024 * 1024)}}).to_string();
    for (request, status, reason, is_event) in [
        (request("POST", "/mcp", &[token, kind], &ping), 200, None, false),
        (request("POST", "/mcp", &[kind], &ping), 401, Some("no-token"), true),
        (
            request("POST", "/mcp", &[("authorization", "Bearer wrapper-token"), kind], &ping),
            401,
            Some("wrong-token"),
            true,
        ),
        (request("GET", "/mcp", &[token], ""), 405, Some("no-event-stream"), false),
        (request("POST", "/", &[token, kind], &ping), 404, Some("path-not-served"), true),
        (request("POST", "/mcp?x", &[token, kind], &ping), 404, Some("path-not-served"), true),
        (
            request("POST", "/mcp", &[token, kind, ("origin", "http://a.example")], &ping),
            404,
            Some("path-not-served"),
            true,
        ),
        (request("POST", "/mcp", &[token], &ping), 415, Some("not-json"), true),
        (request("POST", "/mcp", &[token, kind], &format!("[{ping}]")), 400, Some("not-json-rpc"), true),
        (request("POST", "/mcp", &[token, kind], &large), 413, Some("body-too-large"), true),
        (
            request("POST", "/mcp", &[token, kind], r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}"#),
            400,
            Some("unknown-notification"),
            true,
        ),
    ] {
        let shown = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
        let answer = ask(bench.door, request).await;
        assert_eq!(answer.status.as_u16(), status, "{shown}");
        if let Some(reason) = reason {
            assert_eq!(answer.json()["reason"], reason, "{shown}");
        }
        counted += u64::from(is_event);
    }
    let denied = bench.stand.wait_for_denials(counted).await;
    assert!(denied.iter().all(|event| event["principal"] == "zeroclaw-tasks"));
    assert_eq!(bench.server.calls(), [] as [Value; 0]);
}
