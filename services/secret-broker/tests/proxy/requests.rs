//! What leaves through a tunnel: the brokered request, and everything that must not become one.

use http::Request;
use serde_json::Value;

use crate::peers::text;
use crate::world::{AGENT, HOST, Odd, PLACEHOLDER, PRINCIPAL, SECRET, TRACE, World, body_of, json_of, rest_of, usual};

#[tokio::test]
async fn the_placeholder_becomes_the_secret_on_its_way_out() {
    let world = World::new().await;
    world.origin.answers(|seen| http::Response::new(text(format!("got {}", seen.body.len()))));
    let mut tunnel = world.tunnel().await;
    let request = usual("POST", "/x/../api/%61ddTask?b=2&a=1")
        .header("range", "bytes=0-3")
        .header("accept-encoding", "gzip")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("proxy-authorization", "Basic leak")
        .header("traceparent", "00-11111111111111111111111111111111-2222222222222222-01");
    let response = tunnel.send(request, "{\"title\":\"x\"}").await;
    assert_eq!(response.status(), 200);
    assert_eq!(body_of(response).await, "got 13");

    let [seen] = &world.origin.seen()[..] else { panic!("one request") };
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/api/addTask?b=2&a=1"));
    assert_eq!(seen.header("x-api-token"), Some(SECRET));
    assert_eq!(seen.header("host"), Some(HOST));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(seen.header("content-length"), Some("13"));
    for gone in ["range", "x-hop", "connection", "proxy-authorization", "traceparent"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    let [connect] = &world.gate.connects()[..] else { panic!("one CONNECT") };
    assert!(connect.starts_with(&format!("CONNECT {HOST}:443 HTTP/1.1\r\n")), "{connect}");
    assert!(connect.contains(&format!("\r\ntraceparent: 00-{TRACE}-")), "{connect}");
    // base64 of tasks:squid-password
    assert!(connect.contains("\r\nProxy-Authorization: Basic dGFza3M6c3F1aWQtcGFzc3dvcmQ=\r\n"), "{connect}");

    let allowed = world.wait_for("egress.allowed", 1).await;
    assert_eq!(allowed.len(), 1);
    for (field, expected) in [
        ("host", Value::from(HOST)),
        ("principal", PRINCIPAL.into()),
        ("method", "POST".into()),
        ("path", "/api/addTask".into()),
        ("rule", "marvin".into()),
        ("status", 200.into()),
        ("bytes_out", 13.into()),
        ("bytes_in", 6.into()),
        ("attachment", "active".into()),
        ("trace_id", TRACE.into()),
    ] {
        assert_eq!(allowed[0][field], expected, "{field}");
    }
    let injected = world.events("secret.injected");
    assert_eq!(injected.len(), 1);
    assert_eq!(injected[0]["secret"], "marvin_token");
    assert!(world.events("egress.denied").is_empty());
    assert!(!serde_json::to_string(&world.bus().emitted()).unwrap().contains("r3al"));
    assert_eq!(world.state.injections(&"marvin_token".parse().unwrap()), 1);
}

#[tokio::test]
async fn what_is_not_permitted_reaches_nobody() {
    let usual_get = || usual("GET", "/api/x");
    let with = |name: &'static str, value: &'static str| usual("GET", "/api/x").header(name, value);
    let bare = || Request::builder().method("GET").uri("/api/x").header("host", HOST);
    let table = [
        ("wrong credential", bare().header("x-api-token", "attacker"), "", 403, "foreign-credential"),
        ("second credential", with("authorization", "Bearer attacker"), "", 403, "foreign-credential"),
        ("no placeholder", bare(), "", 403, "placeholder-missing"),
        ("hidden placeholder", with("connection", "x-api-token"), "", 403, "placeholder-missing"),
        ("path", usual("GET", "/other"), "", 403, "path-not-allowed"),
        ("dots", usual("GET", "/api/%2e%2e/other"), "", 403, "path-not-allowed"),
        ("slash", usual("GET", "/api%2fx"), "", 400, "malformed-path"),
        ("method", usual("DELETE", "/api/x"), "", 403, "method-not-allowed"),
        ("lower case", usual("post", "/api/x"), "", 400, "malformed-method"),
        ("trace", usual("TRACE", "/api/x"), "", 400, "method-trace"),
        ("upgrade", with("upgrade", "websocket"), "", 403, "upgrade-refused"),
        ("method override", with("x-http-method-override", "DELETE"), "", 403, "foreign-routing"),
        ("other URL", with("x-original-url", "/other"), "", 403, "foreign-routing"),
        ("forwarded", with("x-forwarded-host", "evil.example"), "", 403, "foreign-routing"),
        ("method in query", usual("GET", "/api/x?_method=DELETE"), "", 403, "foreign-routing"),
        ("method in query, plainly", usual("GET", "/api/x?method=delete"), "", 403, "foreign-routing"),
        ("other upstream", with("x-backend-host", "evil.example"), "", 403, "foreign-routing"),
        ("other object", with("x-goog-copy-source", "b/o"), "", 403, "header-not-allowed"),
        ("other account", with("sudo", "root"), "", 403, "header-not-allowed"),
        ("credential in query", usual("GET", "/api/x?key=attacker"), "", 403, "foreign-credential"),
        ("body of GET", usual_get(), "secret plans", 400, "body-not-allowed"),
        ("absolute", usual("GET", "https://api.allowed.example/api/x"), "", 400, "absolute-form-refused"),
        (
            "host",
            Request::builder().uri("/api/x").header("host", "evil.example").header("x-api-token", PLACEHOLDER),
            "",
            421,
            "host-mismatch",
        ),
        ("no host", Request::builder().uri("/api/x").header("x-api-token", PLACEHOLDER), "", 421, "host-mismatch"),
        ("two hosts", with("host", "evil.example"), "", 421, "host-mismatch"),
    ];
    for (what, request, body, status, reason) in table {
        let world = World::new().await;
        let mut tunnel = world.tunnel().await;
        let response = tunnel.send(request, body).await;
        assert_eq!(response.status(), status, "{what}");
        let answer = json_of(response).await;
        assert_eq!(answer["reason"], reason, "{what}");
        for field in ["error", "detail", "fix", "trace_id"] {
            assert!(answer[field].as_str().is_some_and(|text| !text.is_empty()), "{what}: {field} of {answer}");
        }
        let event = world.only_denial().await;
        assert_eq!(event["reason"], reason, "{what}");
        assert_eq!(event["host"], HOST);
        assert!(world.gate.connects().is_empty() && world.origin.seen().is_empty(), "{what}");
        assert!(world.events("egress.allowed").is_empty() && world.events("secret.injected").is_empty(), "{what}");
        assert!(world.events("egress.permitted").is_empty(), "{what}");
    }
}

#[tokio::test]
async fn who_may_only_read_gets_a_page_and_says_little() {
    let world = World::new().await;
    let mut tunnel = world.agents_tunnel().await;
    let request = Request::get("/page?q=1")
        .header("host", HOST)
        .header("user-agent", "curl/8.5.0")
        .header("accept", "text/html")
        .header("accept-encoding", "gzip, br")
        .header("if-none-match", "\"e\"")
        .header("range", "bytes=0-9")
        .header("referer", "https://elsewhere.example/secret")
        .header("sec-fetch-mode", "navigate")
        .header("connection", "keep-alive");
    let response = tunnel.send(request, "").await;
    assert_eq!(response.status(), 200);
    assert_eq!(body_of(response).await, "ok");
    assert_eq!(tunnel.send(Request::head("/").header("host", HOST), "").await.status(), 200);
    let seen = world.origin.seen();
    assert_eq!((seen[0].target.as_str(), seen[0].header("user-agent")), ("/page?q=1", Some("secure-assistant-stack")));
    let mut names: Vec<&str> = seen[0].headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "accept-encoding", "host", "if-none-match", "user-agent"]);
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert_eq!(world.events("egress.permitted")[0]["rule"], "floor");

    let get = || Request::get("/page").header("host", HOST);
    let long = format!("/page?{}", "x".repeat(3_000));
    for (request, body, reason) in [
        (Request::post("/page").header("host", HOST), "", "method-not-allowed"),
        (Request::delete("/page").header("host", HOST), "", "method-not-allowed"),
        (get(), "plans", "body-not-allowed"),
        (get().header("transfer-encoding", "chunked"), "plans", "body-not-allowed"),
        (get().header("cookie", "plans"), "", "header-not-allowed"),
        (get().header("authorization", "Bearer plans"), "", "header-not-allowed"),
        (get().header("x-odd", "plans"), "", "header-not-allowed"),
        (get().header("accept", "x".repeat(600)), "", "header-too-long"),
        (Request::get(&long).header("host", HOST), "", "target-too-long"),
    ] {
        let world = World::new().await;
        let response = world.agents_tunnel().await.send(request, body).await;
        assert_eq!(response.status(), 403, "{reason}");
        assert_eq!(json_of(response).await["reason"], reason);
        let event = world.only_denial().await;
        assert_eq!((event["reason"].as_str(), event["principal"].as_str()), (Some(reason), Some(AGENT)));
        assert!(world.gate.connects().is_empty() && world.events("egress.permitted").is_empty(), "{reason}");
    }
}

#[tokio::test]
async fn a_decision_is_on_record_before_its_request_leaves() {
    let world = World::new().await;
    let bus = world.bus().clone();
    world.origin.answers(move |_| {
        let recorded = bus.emitted().iter().filter(|(subject, _)| subject == "egress.permitted.tasks").count();
        http::Response::new(text(recorded.to_string()))
    });
    let mut tunnel = world.tunnel().await;
    for count in ["1", "2"] {
        assert_eq!(body_of(tunnel.fetch("GET", "/api/x?q=1", "").await).await, count, "on record when it arrives");
    }
    let event = &world.events("egress.permitted")[0];
    for (field, expected) in [
        ("tier", "tasks"),
        ("principal", PRINCIPAL),
        ("layer", "broker"),
        ("host", HOST),
        ("method", "GET"),
        ("path", "/api/x"),
        ("rule", "marvin"),
        ("secret", "marvin_token"),
        ("attachment", "active"),
        ("trace_id", TRACE),
    ] {
        assert_eq!(event[field], expected, "{field}");
    }
}

fn digest_of(target: &str) -> (Value, Value) {
    use aws_lc_rs::digest::{SHA256, digest};
    (hex::encode(digest(&SHA256, target.as_bytes())).into(), target.len().into())
}

#[tokio::test]
async fn different_requests_leave_different_records() {
    let world = World::new().await;
    let mut tunnel = world.tunnel().await;
    let long = format!("/api/{}", "x".repeat(1_100));
    let targets =
        ["/api/x?q=1".to_owned(), "/api/x?q=2".to_owned(), "/api/x".to_owned(), format!("{long}a"), format!("{long}b")];
    for target in &targets {
        assert_eq!(body_of(tunnel.fetch("GET", target, "").await).await, "ok");
    }
    world.wait_for("egress.allowed", targets.len()).await;
    for subject in ["egress.permitted", "egress.allowed"] {
        let events = world.events(subject);
        let told: Vec<_> =
            events.iter().map(|event| (event["target_sha256"].clone(), event["target_bytes"].clone())).collect();
        assert_eq!(told, targets.each_ref().map(|target| digest_of(target)), "{subject}");
    }
    // What is refused as well, and is not folded with what it is not equal to.
    for (method, target) in [("GET", "/no?a=1"), ("GET", "/no?a=2"), ("POST", "/no?a=2"), ("GET", "/no?a=1")] {
        assert_eq!(tunnel.fetch(method, target, "").await.status(), 403);
    }
    let denied = world.wait_for("egress.denied", 4).await;
    let told: Vec<_> = denied
        .iter()
        .map(|event| (event["asked_method"].as_str().unwrap(), event["target_sha256"].clone(), event["count"].as_u64()))
        .collect();
    let refused = |method, target| (method, digest_of(target).0, Some(1));
    let expected = [("GET", "/no?a=1"), ("GET", "/no?a=2"), ("POST", "/no?a=2"), ("GET", "/no?a=1")];
    assert_eq!(told, expected.map(|(method, target)| refused(method, target)));
}

#[tokio::test]
async fn what_cannot_be_put_on_record_does_not_leave() {
    let world = World::odd(Odd { no_bus: true, ..Odd::default() }).await;
    let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
    assert_eq!(response.status(), 503);
    assert_eq!(json_of(response).await["reason"], "not-journaled");
    assert!(world.gate.connects().is_empty() && world.origin.seen().is_empty());
    assert_eq!(world.state.injections(&"marvin_token".parse().unwrap()), 0);
}

#[tokio::test]
async fn requests_with_two_readings_are_refused() {
    use tokio::io::AsyncWriteExt;
    for lengths in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
        "X-Line: ends\n\r\n",
    ] {
        let world = World::new().await;
        let (stream, _, _) = world.connect(&format!("{HOST}:443")).await;
        let mut stream = world.tls(stream, HOST).await.unwrap();
        let head = format!("POST /api/x HTTP/1.1\r\nHost: {HOST}\r\nX-Api-Token: {PLACEHOLDER}\r\n{lengths}");
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = String::from_utf8(rest_of(&mut stream).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("conflicting-length"), "{answer}");
        assert_eq!(world.only_denial().await["reason"], "conflicting-length");
        assert!(world.gate.connects().is_empty());
    }
}

#[tokio::test]
async fn without_its_secret_a_rule_lets_nothing_out() {
    let world = World::odd(Odd { no_secret: true, ..Odd::default() }).await;
    let mut tunnel = world.tunnel().await;
    let response = tunnel.fetch("GET", "/api/x", "").await;
    assert_eq!(response.status(), 503);
    assert_eq!(json_of(response).await["reason"], "secret-missing");
    assert_eq!(world.only_denial().await["reason"], "secret-missing");
    assert!(world.gate.connects().is_empty());
}

#[tokio::test]
async fn a_turn_that_ends_ends_what_a_tunnel_may_do() {
    use assistant_proto::event::TurnEnded;
    use assistant_proto::name::TierName;
    let world = World::new().await;
    let mut tunnel = world.tunnel().await;
    assert_eq!(tunnel.fetch("GET", "/api/x", "").await.status(), 200);
    let tier: TierName = "tasks".parse().unwrap();
    let turn = world.state.turns.current(&tier).turn.unwrap();
    world.state.turns.ended(&TurnEnded {
        tier,
        turn,
        outcome: "end_turn".to_owned(),
        trace_id: TRACE.to_owned(),
        ended_at: String::new(),
        took_millis: 1,
    });
    // Just after its end a request still belongs to the turn, and says so.
    assert_eq!(tunnel.fetch("GET", "/api/y", "").await.status(), 200);
    let allowed = world.wait_for("egress.allowed", 2).await;
    assert_eq!(allowed[1]["attachment"], "late");
}

#[tokio::test]
async fn big_bodies_flow_both_ways_unchanged() {
    const SIZE: usize = 8 * 1024 * 1024;
    let world = World::new().await;
    world.origin.answers(|seen| http::Response::new(text(seen.body.clone())));
    let body: Vec<u8> = (0..SIZE).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect();
    let mut tunnel = world.tunnel().await;
    let response = tunnel.fetch("POST", "/api/echo", body.clone()).await;
    assert_eq!(response.headers()["content-length"], SIZE.to_string());
    assert!(body_of(response).await == body);
    let allowed = world.wait_for("egress.allowed", 1).await;
    assert_eq!((allowed[0]["bytes_in"].as_u64(), allowed[0]["bytes_out"].as_u64()), (Some(8_388_608), Some(8_388_608)));
}
