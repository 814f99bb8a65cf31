//! The page about a tier's MCP servers, on its Unix socket.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use assistant_proto::secret::secret_service_server::SecretService as _;
use assistant_proto::secret::{ListRemarksRequest, ListToolsRequest};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use secret_broker::control::Control;
use secret_broker::page;
use serde_json::{Value, json};
use service_kit::task::OnEnd;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::bench::{Bench, Mood, bench};
use crate::stand::{MODEL_KEY, PATIENCE};

struct Page {
    socket: PathBuf,
    _draining: DropGuard,
}

struct Said {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Page {
    async fn of(bench: &Bench) -> Self {
        let socket = bench.stand.dir.path().join("tasks.sock");
        // What a dead process left behind.
        drop(UnixListener::bind(&socket).unwrap());
        let draining = CancellationToken::new();
        let (tier, tasks) = (Arc::clone(&bench.stand.tier), bench.stand.tasks.clone());
        let serving = page::serve(tier, socket.clone(), tasks, draining.clone());
        bench.stand.tasks.spawn("page", OnEnd::Expected, serving);
        let waited = tokio::time::timeout(PATIENCE, async {
            while UnixStream::connect(&socket).await.is_err() || mode(&socket) != 0o660 {
                tokio::task::yield_now().await;
            }
        });
        waited.await.expect("it listens, and its group may connect");
        Self { socket, _draining: draining.drop_guard() }
    }

    async fn ask(&self, method: &str, path: &str) -> Said {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "mcp-tasks.localhost:8811");
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let (head, body) =
            tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap().into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        Said { status: head.status, headers: head.headers, text: String::from_utf8(body.to_vec()).unwrap() }
    }

    async fn html(&self) -> String {
        let said = self.ask("GET", "/").await;
        assert_eq!(
            (said.status, &said.headers["content-type"]),
            (StatusCode::OK, &"text/html; charset=utf-8".parse().unwrap())
        );
        said.text
    }

    async fn data(&self) -> Value {
        let said = self.ask("GET", "/data.json").await;
        assert_eq!((said.status, said.headers["content-type"].to_str().unwrap()), (StatusCode::OK, "application/json"));
        serde_json::from_str(&said.text).unwrap()
    }
}

fn mode(socket: &Path) -> u32 {
    let metadata = std::fs::metadata(socket).unwrap();
    assert!(metadata.file_type().is_socket());
    metadata.permissions().mode() & 0o777
}

#[tokio::test]
async fn servers_tools_calls_and_refusals_are_shown_and_nothing_that_was_said() {
    let bench = bench(true).await;
    let page = Page::of(&bench).await;
    let before = page.data().await;
    assert_eq!(before["servers"][0]["accepts"], true);
    assert!(before["servers"][0]["standing"].as_str().unwrap().starts_with("not asked anything yet"), "{before}");
    assert_eq!((&before["calls"], &before["refusals"], &before["remarks"]), (&json!([]), &json!([]), &json!([])));
    assert_eq!(bench.server.count("initialize"), 0, "who looks asks nobody");

    bench.rpc("tools/list", json!({})).await;
    assert_eq!(bench.call("get_tasks").await["result"]["isError"], false);
    bench.call("fails").await;
    assert_eq!(bench.call("delete_all").await["error"]["data"]["reason"], "tool-not-allowed");

    let data = page.data().await;
    let server = &data["servers"][0];
    assert_eq!((&server["name"], &server["source"]), (&json!("marvin"), &json!("tiers.yaml:7")));
    assert!(server["standing"].as_str().unwrap().starts_with("answered at 20"), "{server}");
    assert_eq!(server["rule"], "may be called: get_tasks, fails, vanished");
    assert_eq!(
        server["tools"],
        json!([
            {"name": "get_tasks", "description": "Lists\\u{1b}[2J tasks.", "offered": true, "note": "the agent calls it get_tasks"},
            {"name": "delete_all", "description": "Deletes.", "offered": false, "note": "not among those that tiers.yaml allows"},
        ])
    );
    let row = |row: &Value, fields: &[&str]| fields.iter().map(|field| row[*field].clone()).collect::<Vec<_>>();
    let calls: Vec<_> =
        data["calls"].as_array().unwrap().iter().map(|call| row(call, &["server", "tool", "outcome"])).collect();
    assert_eq!(
        calls,
        [
            ["marvin", "fails", "the tool failed"],
            ["marvin", "get_tasks", "answered"],
            ["marvin", "tools/list", "answered"],
        ]
        .map(|row| row.map(Value::from).to_vec())
    );
    let event = &bench.stand.events("tool.called.tasks")[1];
    assert_eq!(data["calls"][1]["trace_id"], event["trace_id"]);
    let refusal = &data["refusals"][0];
    assert_eq!(
        row(refusal, &["who", "what", "reason"]),
        ["zeroclaw-tasks", "delete_all", "tool-not-allowed"].map(Value::from)
    );

    let html = page.html().await;
    for part in ["marvin", "tiers.yaml:7", "get_tasks", "tool-not-allowed", event["trace_id"].as_str().unwrap()] {
        assert!(html.contains(part), "{part}");
    }
    // Arguments, results and keys are nowhere.
    for text in [html, data.to_string()] {
        for said in ["today", "the key is", "no such task", MODEL_KEY, "wrapper-token"] {
            assert!(!text.contains(said), "{said} in {text}");
        }
    }
}

#[tokio::test]
async fn an_allowed_tool_that_the_server_does_not_have_is_told_everywhere() {
    let bench = bench(true).await;
    let control = Control::new(Arc::clone(&bench.stand.state));
    let remarks =
        async || control.list_remarks(tonic::Request::new(ListRemarksRequest {})).await.unwrap().into_inner().remarks;
    assert_eq!(remarks().await, [] as [&str; 0], "nothing is claimed of a server that was not asked");
    bench.rpc("tools/list", json!({})).await;
    let sentence = "tiers.yaml:7: tier tasks allows what MCP server marvin does not have: fails, vanished; write its tools as it \
                    calls them, or remove these";
    assert_eq!(remarks().await, [sentence]);
    let listed = control.list_tools(tonic::Request::new(ListToolsRequest { tier: "tasks".to_owned() })).await.unwrap();
    assert_eq!(listed.into_inner().servers[0].missing, ["fails", "vanished"]);
    let page = Page::of(&bench).await;
    assert_eq!(page.data().await["remarks"], json!([sentence]));
    let html = page.html().await;
    assert!(html.contains(sentence) && html.contains("allowed, and not there"), "{html}");
    let unknown = control.list_tools(tonic::Request::new(ListToolsRequest { tier: "nobody".to_owned() })).await;
    assert_eq!(unknown.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn what_a_server_says_of_itself_cannot_act() {
    let bench = bench(true).await;
    bench.server.set(Mood::ListsHostile);
    bench.rpc("tools/list", json!({})).await;
    // An agent's words are shown as well.
    bench.call("<svg onload=alert(1)>\u{202e}\u{1b}[2J").await;
    let page = Page::of(&bench).await;
    let html = page.html().await;
    assert!(html.contains("&#60;script&#62;") || html.contains("&lt;script&gt;"), "{html}");
    assert!(
        html.contains("\\u{202e}evil\\u{0}") && html.contains("onload=alert(1)"),
        "control: they are shown: {html}"
    );
    for acting in ["<script", "<img", "<svg", "\u{1b}", "\u{202e}", "\u{0}", "javascript:"] {
        assert!(!html.contains(acting), "{acting:?} in {html}");
    }
    let tools = page.data().await["servers"][0]["tools"].clone();
    for tool in tools.as_array().unwrap() {
        assert!(tool["description"].as_str().unwrap().chars().count() <= 501, "{tool}");
    }
    assert_eq!((tools[0]["offered"].clone(), tools[1]["offered"].clone()), (json!(true), json!(false)));
}

#[tokio::test]
async fn the_page_can_be_read_and_nothing_else() {
    let bench = bench(true).await;
    let page = Page::of(&bench).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
        let said = page.ask(method, "/").await;
        assert_eq!(
            (said.status, said.headers["allow"].to_str().unwrap()),
            (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD")
        );
    }
    assert_eq!(page.ask("GET", "/../etc/passwd").await.status, StatusCode::NOT_FOUND);
    let head = page.ask("HEAD", "/").await;
    assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""));
    for path in ["/", "/data.json", "/nowhere"] {
        let headers = page.ask("GET", path).await.headers;
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
        assert!(!policy.contains("script-src") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(
            (headers["x-content-type-options"].as_bytes(), headers["cache-control"].as_bytes()),
            (&b"nosniff"[..], &b"no-store"[..])
        );
    }
    // Nothing of it is elsewhere.
    let html = page.html().await;
    for elsewhere in ["http:", "https:", "src=", "<link", "<script", "<form", "<a "] {
        assert!(!html.contains(elsewhere), "{elsewhere}");
    }
}
