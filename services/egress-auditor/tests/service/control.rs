//! What operators ask, over a real socket, with the real binary where a person would use it.

use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use assistant_proto::config::Retention;
use assistant_proto::egress::egress_service_client::EgressServiceClient;
use assistant_proto::egress::egress_service_server::EgressServiceServer;
use assistant_proto::egress::{ListRecordsRequest, ShowTraceRequest, WatchDeniedRequest};
use serde_json::{Value, json};
use service_kit::host::ServiceConfig;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};

use crate::stage::{Place, Stage};

const TRACE: &str = "00112233445566778899aabbccddeeff";

fn denied(n: u64, host: &str, tier: &str) -> String {
    format!(
        r#"{{"ts":1795364{n:03}.500,"start":1795364{n:03}.000,"seq":{n},"mx":{n},"src":"10.87.3.2","sport":{n},"host":"{host}","port":"443","dst":"-","st":200,"ss":"TCP_DENIED","in":1,"out":0,"ms":0,"sni":"-","mode":"bump","err":"TCP_RESET","tier":"-","user":"{tier}","tp":"-"}}"#
    )
}

/// Serves the stage's control plane as the host does.
fn serve(place: &Place, stage: &Stage) {
    let listener = UnixListener::bind(place.path("api.sock")).unwrap();
    let service = EgressServiceServer::new(stage.control.clone());
    let stop = stage.cx.shutdown.draining();
    stage.cx.tasks.spawn("control", service_kit::task::OnEnd::Expected, async move {
        Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
            .await?;
        Ok(())
    });
}

async fn client(place: &Place) -> EgressServiceClient<Channel> {
    let uri = format!("unix://{}", place.path("api.sock").display());
    EgressServiceClient::new(Endpoint::from_shared(uri).unwrap().connect().await.unwrap())
}

fn command(place: &Place, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_egress-auditor"));
    command.arg(arguments[0]).arg("--socket").arg(place.path("api.sock")).args(&arguments[1..]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run(place: &Place, arguments: &[&str]) -> (bool, String, String) {
    let Output { status, stdout, stderr } =
        tokio::time::timeout(Duration::from_secs(30), command(place, arguments).output()).await.unwrap().unwrap();
    (status.success(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn watching_gives_the_backlog_oldest_first_and_then_what_happens() {
    let place = Place::new();
    place.log(&[denied(1, "one.example", "tasks"), denied(2, "two.example", "tasks"), denied(3, "three.example", "x")]);
    let stage = place.start().await;
    serve(&place, &stage);
    stage.denials("three", |events| events.len() == 3).await;
    let mut client = client(&place).await;

    let mut all =
        client.watch_denied(WatchDeniedRequest { tier: String::new(), backlog: 2 }).await.unwrap().into_inner();
    let mut tasks =
        client.watch_denied(WatchDeniedRequest { tier: "tasks".to_owned(), backlog: 0 }).await.unwrap().into_inner();
    let mut host = async || all.message().await.unwrap().unwrap().record.unwrap().host;
    assert_eq!([host().await, host().await], ["two.example", "three.example"]);
    // More than a page, to see that none is left out.
    let many: Vec<_> =
        (4..504).map(|n| denied(n, &format!("{n}.example"), if n == 503 { "tasks" } else { "x" })).collect();
    place.log(&many);
    for n in 4..504 {
        assert_eq!(host().await, format!("{n}.example"));
    }
    let record = tasks.message().await.unwrap().unwrap().record.unwrap();
    assert_eq!((record.host.as_str(), record.tier.as_str(), record.layer.as_str()), ("503.example", "tasks", "squid"));
    assert_eq!((record.port, record.count, record.hash.len(), record.trace_id.len()), (443, 1, 64, 32));

    let records = client
        .list_records(ListRecordsRequest { tier: "tasks".to_owned(), r#type: "egress.denied".to_owned(), limit: 2 })
        .await
        .unwrap()
        .into_inner()
        .records;
    assert_eq!(records.iter().map(|r| r.host.as_str()).collect::<Vec<_>>(), ["503.example", "two.example"]);
    assert_eq!(records[0].detail, "Squid's floor does not let tasks reach 503.example");
    let error = client.list_records(ListRecordsRequest { limit: 10_001, ..Default::default() }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = client.watch_denied(WatchDeniedRequest { backlog: 1001, ..Default::default() }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);

    stage.cx.shutdown.draining().cancel();
    assert_eq!(all.message().await.unwrap_err().code(), Code::Unavailable);
    drop(client);
    stage.stop().await;
}

/// Stands where Jaeger stands: answers `/api/traces/<id>` from a script, one answer per request, the last for ever.
async fn jaeger(answers: Vec<(u16, Vec<u8>)>) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    #[allow(clippy::disallowed_methods, reason = "a peer of the service, not a part of it")]
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            assert!(request.starts_with(&format!("GET /api/traces/{TRACE} HTTP/1.1\r\n")), "{request}");
            let (status, body) = &answers[count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            // A client that gave up is its own business.
            let _sent: std::io::Result<()> = stream.write_all(body).await;
        }
    });
    (address, asked)
}

fn not_found() -> (u16, Vec<u8>) {
    (404, br#"{"data":null,"total":0,"errors":[{"code":404,"msg":"trace not found"}]}"#.to_vec())
}

fn found(spans: &[Value]) -> (u16, Vec<u8>) {
    let body = json!({"data": [{"traceID": TRACE, "spans": spans, "processes": {
        "p1": {"serviceName": "channel-bridge", "tags": []}, "p2": {"serviceName": "egress-auditor", "tags": []}}}],
        "total": 0, "limit": 0, "offset": 0, "errors": null});
    (200, serde_json::to_vec(&body).unwrap())
}

fn turn() -> Value {
    json!({"traceID": TRACE, "spanID": "a", "operationName": "turn", "references": [], "startTime": 1000,
           "duration": 2_000_000, "processID": "p1", "tags": [{"key": "tier", "type": "string", "value": "tasks"}]})
}

fn tunnel() -> Value {
    json!({"traceID": TRACE, "spanID": "b", "operationName": "squid.denied\u{1b}[2J", "startTime": 2000, "duration": 30,
           "references": [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": "a"}], "processID": "p2",
           "tags": [{"key": "server.address", "type": "string", "value": "evil\u{202e}.example"},
                    {"key": "error", "type": "bool", "value": true}]})
}

#[tokio::test]
async fn a_trace_is_a_tree_without_anything_that_acts_on_a_terminal() {
    let mut place = Place::new();
    place.jaeger = jaeger(vec![found(&[tunnel(), turn()])]).await.0;
    let stage = place.start().await;
    serve(&place, &stage);
    let mut client = client(&place).await;
    let shown = client.show_trace(ShowTraceRequest { trace_id: TRACE.to_uppercase() }).await.unwrap().into_inner();
    assert_eq!(shown.trace_id, TRACE);
    let lines: Vec<_> =
        shown.lines.iter().map(|l| (l.depth, l.service.as_str(), l.name.as_str(), l.start_micros, l.error)).collect();
    assert_eq!(
        lines,
        [(0, "channel-bridge", "turn", 0, false), (1, "egress-auditor", "squid.denied\\u{1b}[2J", 1000, true)]
    );
    assert_eq!(shown.lines[1].attributes["server.address"], "evil\\u{202e}.example");
    let bad = client.show_trace(ShowTraceRequest { trace_id: "../services".to_owned() }).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    drop(client);
    stage.stop().await;
}

#[tokio::test]
async fn every_failure_of_jaeger_has_its_code() {
    for (answer, code) in [
        (not_found(), Code::NotFound),
        (found(&[]), Code::NotFound),
        ((200, b"<html>".to_vec()), Code::Unavailable),
        ((500, Vec::new()), Code::Unavailable),
        ((301, Vec::new()), Code::Unavailable),
        ((200, vec![b' '; 65 * 1024 * 1024]), Code::Unavailable),
    ] {
        let mut place = Place::new();
        let what = format!("{} with {} bytes", answer.0, answer.1.len());
        place.jaeger = jaeger(vec![answer]).await.0;
        let stage = place.start().await;
        serve(&place, &stage);
        let mut client = client(&place).await;
        let error = client.show_trace(ShowTraceRequest { trace_id: TRACE.to_owned() }).await.unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error}");
        drop(client);
        stage.stop().await;
    }
    let place = Place::new();
    let stage = place.start().await;
    serve(&place, &stage);
    let error = client(&place).await.show_trace(ShowTraceRequest { trace_id: TRACE.to_owned() }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "nobody there");
    stage.stop().await;
}

#[tokio::test]
async fn the_trace_command_waits_for_spans_that_are_on_their_way() {
    let mut place = Place::new();
    let (address, asked) = jaeger(vec![not_found(), found(&[turn()]), found(&[turn(), tunnel()])]).await;
    place.jaeger = address;
    let stage = place.start().await;
    serve(&place, &stage);
    let (fine, out, err) = run(&place, &["trace", "--wait", "20", TRACE]).await;
    assert!(fine, "{err}");
    assert!(asked.load(Ordering::SeqCst) > 3, "it looks until the trace has stopped growing");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].contains("2 spans from 2 services") && lines[0].contains("1 failed"), "{out}");
    assert!(lines[2].starts_with("channel-bridge  turn") && lines[2].ends_with("tier=tasks"), "{out}");
    assert!(lines[3].starts_with("└─ egress-auditor  squid.denied\\u{1b}[2J  !"), "{out}");
    assert!(!out.contains('\u{1b}') && !out.contains('\u{202e}'));
    stage.stop().await;
}

#[tokio::test]
async fn the_commands_speak_to_a_person() {
    let place = Place::new();
    let (fine, _, err) = run(&place, &["verify"]).await;
    assert!(!fine && err.contains("api.sock") && err.contains("up.sh"), "{err}");

    let stage = place.start().await;
    serve(&place, &stage);
    assert_eq!(run(&place, &["denied"]).await.1, "nothing was denied yet\n");
    place.log(&[denied(1, "news.example", "tasks")]);
    stage.denials("one", |events| events.len() == 1).await;
    let (fine, out, _) = run(&place, &["denied", "--tier", "tasks"]).await;
    assert!(fine && out.contains("tasks  news.example:443  denied by squid: host-not-allowed"), "{out}");
    assert!(out.contains("    what   Squid's floor does not let tasks reach news.example"), "{out}");
    assert!(out.contains("    fix    add news.example to squid/allowlist.txt"), "{out}");
    assert_eq!(run(&place, &["denied", "--tier", "other"]).await.1, "nothing was denied yet\n");

    let mut following = command(&place, &["denied", "--follow"]).spawn().unwrap();
    let mut out = BufReader::new(following.stdout.take().unwrap()).lines();
    assert!(out.next_line().await.unwrap().unwrap().contains("news.example"));
    place.log(&[denied(2, "more.example", "tasks")]);
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.contains("more.example:443")) {
        seen.push(tokio::time::timeout(Duration::from_secs(20), out.next_line()).await.unwrap().unwrap().unwrap());
    }
    following.kill().await.unwrap();

    let (fine, out, _) = run(&place, &["verify"]).await;
    assert!(fine && out.starts_with("intact: 2 records, head "), "{out}");
    let tamper = rusqlite::Connection::open(place.database()).unwrap();
    tamper.execute("UPDATE record SET host = 'x' WHERE sequence = 1", []).unwrap();
    let (fine, out, _) = run(&place, &["verify"]).await;
    assert!(!fine && out.starts_with("BROKEN at record 1"), "{out}");

    let (fine, _, err) = run(&place, &["trace", "--wait", "0", TRACE]).await;
    assert!(!fine && err.contains("Jaeger does not answer"), "{err}");
    stage.stop().await;
}

#[test]
fn every_problem_of_a_configuration_is_told_at_once() {
    let place = Place::new();
    let good = egress_auditor::service::Config(place.config());
    assert_eq!(good.problems(), Vec::<String>::new());
    let mut bad = place.config();
    let mut second = bad.zones[0].clone();
    second.names.insert("two.labels".to_owned(), crate::stage::BROKER);
    second.names.insert("MODELS".to_owned(), crate::stage::BROKER);
    second.clients.clear();
    bad.zones.push(second);
    bad.squid_address = *bad.squid_feed.ip();
    bad.jaeger_url = "https://jaeger/".to_owned();
    bad.store_dir = "relative".into();
    bad.retention = Retention { most_mib: 1, days: 30 };
    let path = place.path("config.json");
    std::fs::write(&path, serde_json::to_vec(&bad).unwrap()).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_egress-auditor"))
        .args(["check-config", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    for part in [
        "zones[1].listen",
        "not one label",
        "case only",
        "zones[1].clients",
        "squid_address",
        "jaeger_url",
        "store_dir",
        "retention.most_mib",
        "retention.days",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    std::fs::write(&path, serde_json::to_vec(&place.config()).unwrap()).unwrap();
    let fine = std::process::Command::new(env!("CARGO_BIN_EXE_egress-auditor"))
        .args(["check-config", "--config"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(fine.success());
}
