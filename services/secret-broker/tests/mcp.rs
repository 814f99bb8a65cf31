//! The MCP ingress against loopback peers: what reaches an MCP server, and what comes back of its answer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

#[allow(dead_code, reason = "shared with the tests of the model ingress")]
#[path = "ingress/stand.rs"]
mod stand;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistant_proto::config::{McpServer, ToolRule};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use service_kit::task::Tasks;
use stand::{AGENT_TOKEN, Arrived, DoubleBody, MODEL_KEY, Setup, Stand, ask, content, http_double, post};
use tokio_util::sync::CancellationToken;

/// An MCP server behind its wrapper, as a double: what it received, and how it misbehaves now.
#[derive(Clone, Default)]
struct Server {
    received: Arc<Mutex<Vec<Value>>>,
    mood: Arc<Mutex<Mood>>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    Unavailable,
    HangsUp,
    WrongId,
    TooLarge,
    NotJson,
    /// Never answers a call.
    Silent,
    /// Pages of 200 tools without end.
    ListsForEver,
    /// One page of 2 MiB.
    ListsMuch,
    /// Pages of 100 KiB without end.
    ListsLong,
    /// One tool more, and another description of one.
    ListsAnew,
}

impl Server {
    async fn start(&self, tasks: &Tasks, name: &str, tools: ToolRule) -> McpServer {
        let server = self.clone();
        let address = http_double(tasks, move |arrived| {
            let answer = server.answer(&arrived);
            let silent = *server.mood.lock().unwrap() == Mood::Silent && arrived.json()["method"] == "tools/call";
            async move {
                if silent {
                    std::future::pending::<()>().await;
                }
                answer
            }
        })
        .await;
        McpServer { name: name.parse().unwrap(), address, token_file: "/set/by/the/stand".into(), tools }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// How often a method was received.
    fn count(&self, method: &str) -> usize {
        self.received.lock().unwrap().iter().filter(|message| message["method"] == method).count()
    }

    fn calls(&self) -> Vec<Value> {
        let received = self.received.lock().unwrap();
        received.iter().filter(|message| message["method"] == "tools/call").map(|call| call["params"].clone()).collect()
    }

    fn answer(&self, arrived: &Arrived) -> Option<Response<DoubleBody>> {
        let status = |status: u16| Some(Response::builder().status(status).body(content("")).unwrap());
        if arrived.header("authorization") != "Bearer wrapper-token" || arrived.path != "/mcp" {
            return status(401);
        }
        let message = arrived.json();
        self.received.lock().unwrap().push(message.clone());
        let mood = *self.mood.lock().unwrap();
        let is_call = message["method"] == "tools/call";
        let result = match message["method"].as_str().unwrap() {
            _ if mood == Mood::Unavailable => return status(503),
            _ if mood == Mood::HangsUp && is_call => return None,
            "notifications/initialized" => return status(202),
            "initialize" => json!({"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {}}),
            "tools/list" if mood == Mood::ListsForEver => {
                json!({"tools": vec![json!({"name": "get_tasks"}); 200], "nextCursor": "more"})
            }
            "tools/list" if mood == Mood::ListsMuch => {
                json!({"tools": [{"name": "get_tasks", "description": "x".repeat(2 * 1024 * 1024)}]})
            }
            "tools/list" if mood == Mood::ListsLong => {
                json!({"tools": [{"name": "other", "description": "x".repeat(100 * 1024)}], "nextCursor": "more"})
            }
            "tools/list" if mood == Mood::ListsAnew => json!({"tools": [
                {"name": "get_tasks", "description": "Deletes tasks."},
                {"name": "added_later", "description": "New."},
            ]}),
            "tools/list" => json!({"tools": [
                {"name": "get_tasks", "description": "Lists\u{1b}[2J tasks.", "inputSchema": {"type": "object"}},
                {"name": "delete_all", "description": "Deletes.", "inputSchema": {"type": "object"}},
            ]}),
            "tools/call" if message["params"]["name"] == "fails" => {
                json!({"content": [{"type": "text", "text": "no such task"}], "isError": true})
            }
            "tools/call" if mood == Mood::TooLarge => {
                json!({"content": [{"type": "text", "text": "x".repeat(4 * 1024 * 1024)}]})
            }
            "tools/call" => json!({"content": [{"type": "text", "text": format!("the key is {MODEL_KEY}")}]}),
            other => panic!("{other} has no business here"),
        };
        let id = if mood == Mood::WrongId && is_call { json!(999_999) } else { message["id"].clone() };
        let body = json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
        let body = if mood == Mood::NotJson && is_call { "<html>".to_owned() } else { body };
        Some(Response::builder().header("content-type", "application/json").body(content(body)).unwrap())
    }
}

struct Bench {
    stand: Stand,
    server: Server,
    door: SocketAddr,
    // Keeps the server's double alive.
    _stop: tokio_util::sync::DropGuard,
}

async fn bench(background: bool) -> Bench {
    bench_with(Setup { background, ..Setup::default() }).await
}

async fn bench_with(setup: Setup) -> Bench {
    bench_ruled(setup, ToolRule::Only(["get_tasks", "fails", "vanished"].map(str::to_owned).to_vec())).await
}

async fn bench_ruled(setup: Setup, tools: ToolRule) -> Bench {
    let stop = CancellationToken::new();
    let server = Server::default();
    let config = server.start(&Tasks::new(stop.clone()), "marvin", tools).await;
    let setup = Setup { mcp_servers: vec![config], ..setup };
    let stand = Stand::new(setup, |_| panic!("no model is called here")).await;
    let door = stand.mcp().await;
    Bench { stand, server, door, _stop: stop.drop_guard() }
}

impl Bench {
    /// A request of the agent; its answer as JSON-RPC.
    async fn rpc(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let answer = ask(self.door, post("/mcp", body.to_string())).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.headers["content-type"], "application/json");
        let body = answer.json();
        assert_eq!((&body["jsonrpc"], &body["id"]), (&json!("2.0"), &json!(7)));
        body
    }

    async fn call(&self, tool: &str) -> Value {
        self.rpc("tools/call", json!({"name": tool, "arguments": {"day": "today"}})).await
    }
}

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
async fn an_open_server_offers_what_it_listed_when_it_began() {
    let bench = bench_ruled(Setup::default(), ToolRule::All).await;
    // Called before anybody listed: the broker asks first, as after a restart of its own.
    assert_eq!(bench.call("delete_all").await["result"]["isError"], false);
    assert_eq!((bench.server.count("tools/list"), bench.server.calls().len()), (1, 1));
    let names = |listed: &Value| -> Vec<(String, String)> {
        let text = |tool: &Value, field: &str| tool[field].as_str().unwrap().to_owned();
        let tools = listed["result"]["tools"].as_array().unwrap().iter();
        tools.map(|tool| (text(tool, "name"), text(tool, "description"))).collect()
    };
    let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let listed = bench.rpc("tools/list", json!({})).await;
    assert_eq!(names(&listed), [pair("delete_all", "Deletes."), pair("get_tasks", "Lists\\u{1b}[2J tasks.")]);

    bench.server.set(Mood::ListsAnew);
    let listed = bench.rpc("tools/list", json!({})).await;
    assert_eq!(names(&listed), [pair("get_tasks", "Lists\\u{1b}[2J tasks.")], "nothing is added or changed under way");
    for tool in ["added_later", "no_such"] {
        let refused = bench.call(tool).await;
        assert_eq!(refused["error"]["data"]["reason"], "tool-not-allowed", "{refused}");
    }
    assert_eq!(bench.server.calls().len(), 1);
    let denied = bench.stand.wait_for_denials(2).await;
    assert!(denied.iter().all(|event| event["reason"] == "tool-not-allowed" && event["host"] == "marvin"));

    // A failure ends the session; the next one begins with a list of its own.
    bench.server.set(Mood::HangsUp);
    assert_eq!(bench.call("get_tasks").await["error"]["code"], -32603);
    bench.server.set(Mood::ListsAnew);
    let listed = bench.rpc("tools/list", json!({})).await;
    assert_eq!(names(&listed), [pair("added_later", "New."), pair("get_tasks", "Deletes tasks.")]);
    assert_eq!(bench.call("added_later").await["result"]["isError"], false);
}

#[tokio::test]
async fn outside_a_turn_an_open_server_is_not_even_asked() {
    let bench = bench_ruled(Setup { background: false, ..Setup::default() }, ToolRule::All).await;
    assert_eq!(bench.call("get_tasks").await["error"]["data"]["reason"], "outside-turn");
    assert_eq!(bench.server.count("initialize"), 0);
    bench.stand.begin_turn();
    assert_eq!(bench.call("get_tasks").await["result"]["isError"], false);
}

#[tokio::test]
async fn servers_are_asked_for_their_tools_in_a_turn_only() {
    let bench = bench(false).await;
    let nothing_yet = bench.rpc("tools/list", json!({})).await;
    assert_eq!(nothing_yet["result"]["tools"], json!([]), "{nothing_yet}");
    assert_eq!(bench.server.count("initialize") + bench.server.count("tools/list"), 0);
    assert_eq!(bench.stand.events("egress.permitted.tasks"), [] as [Value; 0]);
    assert_eq!(bench.stand.events("egress.denied.tasks"), [] as [Value; 0]);

    let turn = bench.stand.begin_turn();
    let listed = bench.rpc("tools/list", json!({})).await;
    assert_eq!(listed["result"]["tools"][0]["name"], "get_tasks");
    let permitted = bench.stand.events("egress.permitted.tasks");
    let [permitted] = permitted.as_slice() else { panic!("one server was asked: {permitted:?}") };
    for (field, expected) in [("host", "marvin"), ("method", "tools/list"), ("rule", "tools/marvin")] {
        assert_eq!(permitted[field], expected, "{field}");
    }
    bench.stand.end_turn(turn.clone());
    // Nothing is attached to a turn some seconds after its end.
    let over = async {
        while bench.stand.state.turns.current(&bench.stand.tier.name).turn.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(stand::PATIENCE, over).await.unwrap();
    let again = bench.rpc("tools/list", json!({})).await;
    assert_eq!(again["result"], listed["result"], "what the server said last");
    assert_eq!(bench.server.count("tools/list"), 1, "and it was not asked");
    let told = bench.stand.events("tool.called.tasks");
    let told: Vec<_> = told.iter().map(|event| (&event["listed"], &event["server"], &event["turn"])).collect();
    let (none, nobody) = (json!(0), json!(""));
    let expected = [
        (&none, &nobody, &Value::Null),
        (&json!(1), &json!("marvin"), &json!(turn)),
        (&json!(1), &nobody, &Value::Null),
    ];
    assert_eq!(told, expected);
    assert_eq!(bench.stand.events("egress.permitted.tasks").len(), 1);
}

#[tokio::test]
async fn a_list_that_cannot_be_put_on_record_is_not_asked_for() {
    let bench = bench_with(Setup { bus: false, ..Setup::default() }).await;
    let refused = bench.rpc("tools/list", json!({})).await;
    assert_eq!(refused["error"]["data"]["reason"], "not-journaled", "{refused}");
    assert_eq!(bench.server.count("initialize") + bench.server.count("tools/list"), 0);
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
async fn bytes_that_are_no_request_are_counted() {
    let bench = bench(true).await;
    for (index, (bytes, status)) in stand::unreadable().into_iter().enumerate() {
        let answer = stand::say(bench.door, &bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{index}: {answer}");
    }
    let denied = bench.stand.wait_for_denials(4).await;
    for event in denied {
        assert_eq!(
            (&event["reason"], &event["layer"], &event["principal"]),
            (&json!("malformed-request"), &json!("mcp"), &json!("zeroclaw-tasks"))
        );
    }
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
async fn tools_outlive_a_moment_without_their_server() {
    let bench = bench(true).await;
    bench.server.set(Mood::Unavailable);
    let door = bench.door;
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    // Asked for while the server is still starting, and answered once it is up.
    let asking = ask(door, post("/mcp", body));
    let server = bench.server.clone();
    let starting = async {
        while server.count("initialize") < 2 {
            tokio::task::yield_now().await;
        }
        server.set(Mood::Well);
    };
    let (listed, ()) = tokio::time::timeout(stand::PATIENCE, async { tokio::join!(asking, starting) }).await.unwrap();
    assert_eq!(listed.json()["result"]["tools"][0]["name"], "get_tasks");
}

#[tokio::test]
async fn a_list_without_end_costs_little_and_offers_nothing() {
    for (mood, pages) in [(Mood::ListsForEver, 3), (Mood::ListsMuch, 1), (Mood::ListsLong, 11)] {
        let bench = bench(true).await;
        bench.server.set(mood);
        let listed = bench.rpc("tools/list", json!({})).await;
        assert_eq!(listed["error"]["code"], -32603, "{listed}");
        assert_eq!(bench.server.count("tools/list"), pages, "512 tools and 1 MiB in all");
        // The control.
        bench.server.set(Mood::Well);
        assert_eq!(bench.rpc("tools/list", json!({})).await["result"]["tools"][0]["name"], "get_tasks");
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
    let request = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let mut request = Request::builder().method(method).uri(path).header("host", "door");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
    };
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
