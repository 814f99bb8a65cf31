//! What leaves, and what must not.

use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::stand::{self, AGENT_TOKEN, LITELLM, MODEL_KEY, Setup, ask, post, request};
use crate::{CHAT, hello, reason, saying};

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
    assert_eq!(arrived.json(), hello());

    let called = stand.wait_for_events("model.called.tasks", 1).await;
    assert_eq!((called[0]["model"].as_str(), called[0]["status"].as_u64()), (Some("assistant"), Some(200)));
    assert_eq!((&called[0]["turn"], &called[0]["confidential"]), (&json!(turn), &json!("none")));
    let allowed = stand.wait_for_events("egress.allowed.tasks", 1).await;
    assert_eq!((allowed[0]["host"].as_str(), allowed[0]["layer"].as_str()), (Some(LITELLM), Some("models")));
    assert_eq!(allowed[0]["principal"], "zeroclaw-tasks");
    assert_eq!(allowed[0]["bytes_in"].as_u64(), Some(answer.body.len() as u64));
    assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0]);
    let permitted = stand.events("egress.permitted.tasks");
    assert_eq!(permitted.len(), 1);
    for (field, expected) in [("host", LITELLM), ("path", CHAT), ("rule", "model-route"), ("layer", "models")] {
        assert_eq!(permitted[0][field], expected, "{field}");
    }
    let subjects: Vec<_> = stand.bus.emitted().into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects[0], "egress.permitted.tasks", "before anything else: {subjects:?}");
    assert!(!format!("{:?}", stand.bus.emitted()).contains(MODEL_KEY));
}

#[tokio::test]
async fn what_is_refused_never_leaves() {
    let stand = saying(Setup::default(), 200, json!({})).await;
    let door = stand.models().await;
    let body = hello().to_string();
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
        (request("POST", CHAT, &[token, kind], &with("model", json!("gpt-5"))), 404, "model-not-offered"),
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
    assert_eq!(stand.connects(), 0);
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
    assert_eq!(stand.connects(), 0);
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
    let ids: Vec<_> = answer.json()["data"].as_array().unwrap().iter().map(|entry| entry["id"].clone()).collect();
    assert_eq!(ids, ["assistant", "thinker"], "exactly the names of the route");
    assert_eq!(stand.connects(), 0);
}

#[tokio::test]
async fn what_cannot_be_put_on_record_does_not_leave() {
    let stand = saying(Setup { bus: false, ..Setup::default() }, 200, json!({})).await;
    let door = stand.models().await;
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not-journaled"));
    assert_eq!(stand.connects(), 0);
}

#[tokio::test]
async fn without_its_key_nothing_leaves() {
    let stand = saying(Setup { key_file: false, ..Setup::default() }, 200, json!({})).await;
    let door = stand.models().await;
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::SERVICE_UNAVAILABLE, "litellm-key-missing"));
    assert!(answer.text().contains("litellm.key"), "{}", answer.text());
    assert_eq!(stand.events("egress.permitted.tasks"), [] as [Value; 0]);
    assert_eq!(stand.connects(), 0);
}

#[tokio::test]
async fn an_unknown_model_is_told_which_there_are() {
    let stand = saying(Setup::default(), 200, json!({})).await;
    let door = stand.models().await;
    let mut body = hello();
    body["model"] = json!("gpt-5");
    let answer = ask(door, post(CHAT, body.to_string())).await;
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::NOT_FOUND, "model-not-offered"));
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("assistant, thinker"), "{message}");
    for model in ["assistant", "thinker"] {
        body["model"] = json!(model);
        assert_eq!(ask(door, post(CHAT, body.to_string())).await.status, StatusCode::OK);
        assert_eq!(stand.upstream.all().last().unwrap().json()["model"], model);
    }
}

#[tokio::test]
async fn a_tier_never_takes_the_route_of_another_class() {
    for (confidential, routes) in [("required", &["none"][..]), ("none", &["required"]), ("required", &[])] {
        let stand = saying(Setup { confidential, routes, ..Setup::default() }, 200, json!({})).await;
        let door = stand.models().await;
        let list = Request::get("/v1/models").header("host", "door");
        let list = list.header("authorization", format!("Bearer {AGENT_TOKEN}")).body(Full::default()).unwrap();
        for request in [post(CHAT, hello().to_string()), list] {
            let answer = ask(door, request).await;
            assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::SERVICE_UNAVAILABLE, "no-model-route"));
            let fix = answer.json()["fix"].as_str().unwrap().to_owned();
            assert!(fix.contains(".env") && fix.contains("tier tasks"), "{fix}");
        }
        let denied = stand.wait_for_denials(2).await;
        assert!(denied.iter().all(|event| event["reason"] == "no-model-route"));
        assert_eq!((stand.connects(), stand.events("egress.permitted.tasks").len()), (0, 0));
    }
    // The control.
    let setup = Setup { confidential: "required", routes: &["none", "required"], ..Setup::default() };
    let stand = saying(setup, 200, json!({})).await;
    assert_eq!(ask(stand.models().await, post(CHAT, hello().to_string())).await.status, StatusCode::OK);
    let called = stand.wait_for_events("model.called.tasks", 1).await;
    assert_eq!(called[0]["confidential"], "required");
    assert_eq!(stand.events("egress.permitted.tasks")[0]["host"], "assistant-litellm-confidential");
}

#[tokio::test]
async fn bytes_that_are_no_request_are_counted() {
    let stand = saying(Setup::default(), 200, json!({})).await;
    let door = stand.models().await;
    stand::say_what_is_no_request(&stand, door, "models").await;
    // The control: a peer that says nothing and leaves tried nothing.
    drop(tokio::net::TcpStream::connect(door).await.unwrap());
    assert_eq!(ask(door, post(CHAT, hello().to_string())).await.status, StatusCode::OK);
    stand.wait_for_denials(4).await;
}

#[tokio::test]
async fn no_more_is_taken_in_than_there_is_room_for() {
    let stand = saying(Setup::default(), 200, json!({})).await;
    let door = stand.models().await;
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: door\r\nauthorization: Bearer {AGENT_TOKEN}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        8 * 1024 * 1024
    );
    // From here on time passes as soon as everybody waits.
    tokio::time::pause();
    let asking = (0..3).map(|_| stand::say(door, head.as_bytes()));
    let mut statuses: Vec<String> =
        futures::future::join_all(asking).await.iter().map(|answer| answer[9..12].to_owned()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, ["408", "408", "503"], "there is room for two");
    let reasons: Vec<Value> = stand.wait_for_denials(3).await.iter().map(|event| event["reason"].clone()).collect();
    assert_eq!(reasons.iter().filter(|reason| **reason == "no-room").count(), 1, "{reasons:?}");
    assert_eq!(stand.connects(), 0);
}
