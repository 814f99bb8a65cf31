//! The model ingress against loopback peers: what reaches the model's host, and what comes back of its answer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

#[allow(dead_code, reason = "shared with the tests of the MCP ingress")]
#[path = "ingress/stand.rs"]
mod stand;

use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use serde_json::{Value, json};
use stand::{AGENT_TOKEN, Answer, DoubleBody, MODEL_HOST, MODEL_KEY, PATIENCE, Setup, Stand, ask, content, post, send};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

const CHAT: &str = "/v1/chat/completions";

fn hello() -> Value {
    json!({"model": "assistant", "messages": [{"role": "user", "content": "hello"}]})
}

fn with_json(status: u16, body: &Value) -> Response<DoubleBody> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(content(body.to_string()))
        .unwrap()
}

/// A model that says one thing.
async fn saying(setup: Setup, status: u16, body: Value) -> Stand {
    Stand::new(setup, move |_| with_json(status, &body)).await
}

fn reason(answer: &Answer) -> String {
    let body = answer.json();
    for field in ["error", "detail", "fix"] {
        assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {body}");
    }
    assert_eq!(body["trace_id"].as_str().map(str::len), Some(32), "{body}");
    body["reason"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_call_goes_out_as_made_anew_and_is_accounted_for() {
    let reply = json!({"choices": [{"message": {"role": "assistant", "content": "hi"}}]});
    let stand = saying(Setup { background: false, ..Setup::default() }, 200, reply.clone()).await;
    let turn = stand.begin_turn();
    let door = stand.models().await;
    let mut request = post(CHAT, hello().to_string());
    let headers = request.headers_mut();
    headers.insert("x-evil", "1".parse().unwrap());
    headers.insert("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
    headers.insert("accept-encoding", "gzip, br".parse().unwrap());
    headers.insert("cookie", "a=b".parse().unwrap());
    let answer = ask(door, request).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, reply));

    let arrived = stand.upstream.all();
    let [arrived] = arrived.as_slice() else { panic!("one request, not {arrived:?}") };
    assert_eq!((arrived.method.as_str(), arrived.path.as_str()), ("POST", "/v1/chat/completions"));
    assert_eq!(arrived.header("authorization"), format!("Bearer {MODEL_KEY}"));
    assert_eq!(arrived.header("accept-encoding"), "identity");
    let mut names: Vec<&str> = arrived.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["accept", "accept-encoding", "authorization", "content-length", "content-type", "host", "user-agent"]
    );
    assert_eq!(arrived.json(), json!({"model": "upstream-model", "messages": [{"role": "user", "content": "hello"}]}));
    let connects = stand.connects.all();
    let [connect] = connects.as_slice() else { panic!("one CONNECT, not {connects:?}") };
    assert!(connect.contains("\r\ntraceparent: 00-"), "{connect}");
    assert!(!connect.contains("4bf92f3577b34da6a3ce929d0e0e4736"), "a tier's own trace is dropped: {connect}");

    let called = stand.wait_for_events("model.called.tasks", 1).await;
    assert_eq!((called[0]["model"].as_str(), called[0]["status"].as_u64()), (Some("assistant"), Some(200)));
    assert_eq!(called[0]["turn"], json!(turn));
    let allowed = stand.wait_for_events("egress.allowed.tasks", 1).await;
    assert_eq!((allowed[0]["host"].as_str(), allowed[0]["layer"].as_str()), (Some(MODEL_HOST), Some("models")));
    assert_eq!(allowed[0]["principal"], "zeroclaw-tasks");
    assert_eq!(allowed[0]["bytes_in"].as_u64(), Some(answer.body.len() as u64));
    assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0]);
    let injected = stand.events("secret.injected.tasks");
    assert_eq!(injected.len(), 1);
    for (field, expected) in
        [("secret", "model_api_key"), ("host", MODEL_HOST), ("rule", "model-route"), ("principal", "zeroclaw-tasks")]
    {
        assert_eq!(injected[0][field], expected, "{field}");
    }
    assert_eq!(stand.state.injections(&"model_api_key".parse().unwrap()), 1);
    let permitted = stand.events("egress.permitted.tasks");
    assert_eq!(permitted.len(), 1);
    assert_eq!((&permitted[0]["secret"], &permitted[0]["host"]), (&json!("model_api_key"), &json!(MODEL_HOST)));
    let subjects: Vec<_> = stand.bus.emitted().into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects[0], "egress.permitted.tasks", "before anything else: {subjects:?}");
    assert!(!format!("{:?}", stand.bus.emitted()).contains(MODEL_KEY));
}

#[tokio::test]
async fn a_stream_passes_while_it_is_made() {
    let (feed, chunks) = mpsc::channel::<&'static str>(4);
    let chunks = Mutex::new(Some(chunks));
    let stand = Stand::new(Setup::default(), move |_| {
        let frames = ReceiverStream::new(chunks.lock().unwrap().take().unwrap())
            .map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
        Response::builder().header("content-type", "text/event-stream").body(StreamBody::new(frames).boxed()).unwrap()
    })
    .await;
    let door = stand.models().await;
    let mut body = hello();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = send(door, post(CHAT, body.to_string())).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(stand.upstream.all()[0].header("accept"), "text/event-stream");
    let mut body = response.into_body();
    // Nothing but the first event exists when it has to arrive.
    for text in ["data: {\"a\":1}\n\n", "data: {\"b\":2}\n\n", "data: [DONE]\n\n"] {
        feed.send(text).await.unwrap();
        let mut got = Vec::new();
        while got.len() < text.len() {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("unbuffered").unwrap().unwrap();
            got.extend_from_slice(&frame.into_data().unwrap());
        }
        assert_eq!(got, text.as_bytes());
    }
    assert_eq!(stand.events("model.called.tasks"), [] as [Value; 0], "the call is not over");
    drop(feed);
    assert!(tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().is_none());
    stand.wait_for_events("model.called.tasks", 1).await;
}

#[tokio::test]
async fn a_caller_who_hangs_up_is_accounted_for() {
    let (feed, chunks) = mpsc::channel::<&'static str>(4);
    let chunks = Mutex::new(Some(chunks));
    let stand = Stand::new(Setup::default(), move |_| {
        let frames = ReceiverStream::new(chunks.lock().unwrap().take().unwrap())
            .map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
        Response::builder().header("content-type", "text/event-stream").body(StreamBody::new(frames).boxed()).unwrap()
    })
    .await;
    let door = stand.models().await;
    feed.send("data: 1\n\n").await.unwrap();
    let response = send(door, post(CHAT, hello().to_string())).await;
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    let called = stand.wait_for_events("model.called.tasks", 1).await;
    assert_eq!(called[0]["status"], 200);
}

#[tokio::test]
async fn the_key_never_comes_back() {
    let stand = Stand::new(Setup::default(), |arrived| {
        let authorization = arrived.header("authorization").to_owned();
        let (first, second) = authorization.split_at(20);
        let frames: Vec<Result<Frame<Bytes>, std::convert::Infallible>> = ["{\"echo\":\"", first, second, "\"}"]
            .iter()
            .map(|part| Ok(Frame::data(Bytes::from((*part).to_owned()))))
            .collect();
        Response::builder()
            .header("content-type", "application/json")
            .header("retry-after", &authorization)
            .header("x-request-id", "account-7")
            .header("set-cookie", "a=b")
            .body(StreamBody::new(tokio_stream::iter(frames)).boxed())
            .unwrap()
    })
    .await;
    let door = stand.models().await;
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text().starts_with("{\"echo\":\"Bearer ***"), "{}", answer.text());
    assert!(!format!("{answer:?}").contains("model-key"), "{answer:?}");
    let mut names: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "content-type", "date", "retry-after", "transfer-encoding"]);
}

#[tokio::test]
async fn what_is_refused_never_leaves() {
    let stand = saying(Setup::default(), 200, json!({})).await;
    let door = stand.models().await;
    let body = hello().to_string();
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
    let with = |field: &str, value: Value| {
        let mut body = hello();
        body[field] = value;
        body.to_string()
    };
    let image = with(
        "messages",
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://attacker.example"}}]}]),
    );
    let too_large = with("messages", json!([{"role": "user", "content": "x".repeat(8 * 1024 * 1024)}]));
    let table = [
        (request("POST", CHAT, &[kind], &body), 401, "no-token"),
        (request("POST", CHAT, &[kind, ("authorization", "Bearer wrong")], &body), 401, "wrong-token"),
        (request("GET", "/v1/models", &[], ""), 401, "no-token"),
        (request("POST", "/v1/completions", &[token, kind], &body), 404, "path-not-served"),
        (request("POST", "/v1/embeddings", &[token, kind], &body), 404, "path-not-served"),
        (request("POST", "/v1/responses", &[token, kind], &body), 404, "path-not-served"),
        (request("GET", CHAT, &[token], ""), 404, "path-not-served"),
        (request("POST", "/v1/chat/completions?api_base=x", &[token, kind], &body), 404, "path-not-served"),
        (request("POST", "/v1//chat/completions", &[token, kind], &body), 404, "path-not-served"),
        (request("POST", "/v1/chat/completions/", &[token, kind], &body), 404, "path-not-served"),
        (request("POST", "http://attacker.example/v1/chat/completions", &[token, kind], &body), 404, "path-not-served"),
        (request("POST", CHAT, &[token, kind, ("origin", "http://a.example")], &body), 404, "path-not-served"),
        (request("POST", CHAT, &[token], &body), 415, "not-json"),
        (request("POST", CHAT, &[token, ("content-type", "text/plain")], &body), 415, "not-json"),
        (request("POST", CHAT, &[token, kind, ("content-encoding", "gzip")], &body), 415, "encoded-body"),
        (request("POST", CHAT, &[token, kind], "not json"), 400, "not-json"),
        (request("POST", CHAT, &[token, kind], &with("fallbacks", json!(["x"]))), 400, "field-not-allowed"),
        (
            request("POST", CHAT, &[token, kind], &with("api_base", json!("https://a.example"))),
            400,
            "field-not-allowed",
        ),
        (request("POST", CHAT, &[token, kind], &with("model", json!("upstream-model"))), 403, "model-not-offered"),
        (request("POST", CHAT, &[token, kind], &with("tools", json!([{"type": "web_search"}]))), 403, "hosted-tool"),
        (request("POST", CHAT, &[token, kind], &image), 403, "url-not-allowed"),
        (request("POST", CHAT, &[token, kind], &too_large), 413, "body-too-large"),
    ];
    let mut reasons = Vec::new();
    for (request, status, expected) in table {
        let shown = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
        let answer = ask(door, request).await;
        assert_eq!((answer.status.as_u16(), reason(&answer).as_str()), (status, expected), "{shown}");
        reasons.push(expected);
    }
    let denied = stand.wait_for_denials(reasons.len() as u64).await;
    let mut counted = Vec::new();
    for event in &denied {
        counted.extend((0..event["count"].as_u64().unwrap()).map(|_| event["reason"].as_str().unwrap()));
    }
    counted.sort_unstable();
    reasons.sort_unstable();
    assert_eq!(counted, reasons, "each refusal is counted once");
    assert!(denied.iter().all(|event| event["layer"] == "models" && event["principal"] == "zeroclaw-tasks"));
    assert_eq!(stand.connects.all(), [] as [String; 0]);
    assert_eq!(stand.events("model.called.tasks"), [] as [Value; 0]);
    assert_eq!(stand.events("egress.permitted.tasks"), [] as [Value; 0]);

    // The control: nothing of the stand kept them from leaving.
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!((answer.status, stand.upstream.all().len()), (StatusCode::OK, 1));
}

#[tokio::test]
async fn outside_a_turn_nothing_leaves() {
    let stand = saying(Setup { background: false, ..Setup::default() }, 200, json!({})).await;
    let door = stand.models().await;
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::FORBIDDEN, "outside-turn"));
    assert_eq!(stand.connects.all(), [] as [String; 0]);
    assert_eq!(stand.events("egress.denied.tasks").len(), 1);
    stand.begin_turn();
    assert_eq!(ask(door, post(CHAT, hello().to_string())).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_list_is_answered_here() {
    let stand = saying(Setup { background: false, ..Setup::default() }, 200, json!({})).await;
    let door = stand.models().await;
    let request = Request::get("/v1/models")
        .header("host", "door")
        .header("authorization", format!("Bearer {AGENT_TOKEN}"))
        .body(Full::default())
        .unwrap();
    let answer = ask(door, request).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["data"][0]["id"], "assistant");
    assert!(!answer.text().contains("upstream-model"));
    assert_eq!(stand.connects.all(), [] as [String; 0]);
}

#[tokio::test]
async fn answers_that_cannot_be_passed_on_are_replaced() {
    type Make = fn() -> Response<DoubleBody>;
    let table: [(Make, u16, &str); 7] = [
        (|| with_json(401, &json!({"error": format!("bad key {MODEL_KEY}")})), 502, "model-key-refused"),
        (|| with_json(403, &json!({"error": "no"})), 502, "model-key-refused"),
        (
            || {
                Response::builder()
                    .status(302)
                    .header("location", "https://attacker.example")
                    .body(content(""))
                    .unwrap()
            },
            502,
            "model-status",
        ),
        (|| with_json(201, &json!({})), 502, "model-status"),
        (
            || Response::builder().header("content-type", "text/html").body(content("<html>")).unwrap(),
            502,
            "model-content",
        ),
        (
            || {
                let mut response = with_json(200, &json!({}));
                response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
                response
            },
            502,
            "model-content",
        ),
        (|| Response::builder().status(500).body(content("")).unwrap(), 502, "model-content"),
    ];
    for (make, status, expected) in table {
        let stand = Stand::new(Setup::default(), move |_| make()).await;
        let door = stand.models().await;
        let answer = ask(door, post(CHAT, hello().to_string())).await;
        assert_eq!((answer.status.as_u16(), reason(&answer).as_str()), (status, expected));
        assert!(!answer.headers.contains_key("location"));
        assert!(!answer.text().contains("sk-model"));
        assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0], "nothing was refused: a peer failed");
        stand.wait_for_events("model.called.tasks", 1).await;
    }
}

#[tokio::test]
async fn errors_of_the_model_pass() {
    for status in [400, 404, 429, 500, 503] {
        let stand = saying(Setup::default(), status, json!({"error": {"message": "says the model"}})).await;
        let door = stand.models().await;
        let answer = ask(door, post(CHAT, hello().to_string())).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"]["message"].as_str()),
            (status, Some("says the model"))
        );
    }
}

#[tokio::test]
async fn what_cannot_be_put_on_record_does_not_leave() {
    let stand = saying(Setup { bus: false, ..Setup::default() }, 200, json!({})).await;
    let door = stand.models().await;
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not-journaled"));
    assert_eq!(stand.connects.all(), [] as [String; 0]);
    assert_eq!(stand.state.injections(&"model_api_key".parse().unwrap()), 0);
}

#[tokio::test]
async fn without_its_key_nothing_leaves() {
    let stand = saying(Setup { key_file: false, ..Setup::default() }, 200, json!({})).await;
    let door = stand.models().await;
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::SERVICE_UNAVAILABLE, "secret-missing"));
    assert!(answer.text().contains("model_api_key"));
    assert_eq!(stand.connects.all(), [] as [String; 0]);
}
