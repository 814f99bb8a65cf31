//! Lists of tools: when servers are asked for them, and what of their answers is offered.

use std::time::Duration;

use assistant_proto::config::ToolRule;
use serde_json::{Value, json};

use crate::bench::{Mood, bench, bench_ruled, bench_with};
use crate::stand::{self, Setup, ask, post};

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
