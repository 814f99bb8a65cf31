//! What comes back of LiteLLM's answers.

use std::sync::Mutex;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use service_kit::task::Tasks;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::stand::{DoubleBody, MODEL_KEY, PATIENCE, Setup, Stand, ask, content, http_double, post, send};
use crate::{CHAT, hello, reason, with_json};

/// A model whose answer is an event stream, said piece by piece.
async fn streaming() -> (mpsc::Sender<&'static str>, Stand) {
    let (feed, chunks) = mpsc::channel::<&'static str>(4);
    let chunks = Mutex::new(Some(chunks));
    let stand = Stand::new(Setup::default(), move |_| {
        let frames = ReceiverStream::new(chunks.lock().unwrap().take().unwrap())
            .map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
        Response::builder().header("content-type", "text/event-stream").body(StreamBody::new(frames).boxed()).unwrap()
    })
    .await;
    (feed, stand)
}

#[tokio::test]
async fn a_stream_passes_while_it_is_made() {
    let (feed, stand) = streaming().await;
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
    let (feed, stand) = streaming().await;
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
    assert_eq!(names, ["cache-control", "content-type", "date", "transfer-encoding"]);
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
        (|| Response::builder().status(500).body(content("")).unwrap(), 500, "model-failed"),
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
async fn of_an_error_only_its_status_passes() {
    const PROVIDERS_KEY: &str = "sk-provider-key-that-the-broker-does-not-know";
    for (status, said, expected) in [
        (400, "bad", "model-refused"),
        (400, "litellm.ContextWindowExceededError: too long", "model-context-exceeded"),
        (400, "context_length_exceeded", "model-context-exceeded"),
        (404, "no such model", "model-refused"),
        (429, "slow down", "model-busy"),
        (500, "context_length_exceeded", "model-failed"),
        (503, "overloaded", "model-failed"),
    ] {
        let stand = Stand::new(Setup::default(), move |_| {
            let said = format!("{said}, and your key is {PROVIDERS_KEY}");
            let mut response = with_json(status, &json!({"error": {"message": said, "code": PROVIDERS_KEY}}));
            for (name, value) in [("retry-after", "7"), ("x-key", PROVIDERS_KEY)] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        })
        .await;
        let answer = ask(stand.models().await, post(CHAT, hello().to_string())).await;
        assert_eq!((answer.status.as_u16(), reason(&answer).as_str()), (status, expected));
        assert!(!format!("{answer:?}").contains("provider-key"), "{answer:?}");
        assert_eq!(answer.headers["retry-after"], "7");
        assert_eq!(answer.headers["content-type"], "application/json");
        let called = stand.wait_for_events("model.called.tasks", 1).await;
        assert_eq!((called.len(), called[0]["status"].as_u64()), (1, Some(u64::from(status))));
        assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0], "nothing was refused: a peer failed");
    }
}

#[tokio::test]
async fn no_header_passes_as_it_came() {
    let stand = Stand::new(Setup::default(), |_| {
        let mut response = with_json(200, &json!({}));
        for (name, value) in [("content-type", "application/json; x=sk-provider"), ("retry-after", "sk-provider")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let answer = ask(stand.models().await, post(CHAT, hello().to_string())).await;
    assert_eq!(
        (answer.status, &answer.headers["content-type"]),
        (StatusCode::OK, &"application/json".parse().unwrap())
    );
    assert!(!format!("{answer:?}").contains("sk-provider"), "{answer:?}");
}

#[tokio::test]
async fn an_answer_ends_with_its_turn() {
    for (background, silent) in [(false, false), (false, true), (true, false)] {
        let (feed, chunks) = mpsc::channel::<&'static str>(4);
        let chunks = Mutex::new(Some(chunks));
        let stand = Stand::new(Setup { background, ..Setup::default() }, move |_| {
            let frames = ReceiverStream::new(chunks.lock().unwrap().take().unwrap())
                .map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(StreamBody::new(frames).boxed()).unwrap()
        })
        .await;
        stand.begin_turn();
        let mut body = send(stand.models().await, post(CHAT, hello().to_string())).await.into_body();
        feed.send("data: 1\n\n").await.unwrap();
        assert!(tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().is_ok());
        stand.begin_turn();
        if !silent {
            feed.send("data: 2\n\n").await.unwrap();
        }
        let next = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap();
        assert_eq!(next.is_ok(), background, "{next:?}");
        drop(feed);
        drop(body);
        let allowed = stand.wait_for_events("egress.allowed.tasks", 1).await;
        let cut = if background { Value::Null } else { json!("turn-over") };
        assert_eq!((allowed.len(), &allowed[0]["cut"]), (1, &cut));
        assert_eq!(stand.wait_for_events("model.called.tasks", 1).await.len(), 1);
        assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0]);
    }
}

#[tokio::test]
async fn a_call_ends_with_its_turn_before_it_is_answered() {
    let (arrived, mut arrives) = mpsc::channel::<()>(1);
    let stop = tokio_util::sync::CancellationToken::new();
    let litellm = http_double(&Tasks::new(stop.clone()), move |_| {
        let arrived = arrived.clone();
        async move {
            arrived.send(()).await.unwrap();
            std::future::pending().await
        }
    })
    .await;
    let setup = Setup { background: false, litellm: Some(litellm), ..Setup::default() };
    let stand = Stand::new(setup, |_| panic!("nobody asks it")).await;
    stand.begin_turn();
    let door = stand.models().await;
    let (answer, ()) = tokio::join!(ask(door, post(CHAT, hello().to_string())), async {
        arrives.recv().await.unwrap();
        stand.begin_turn();
    });
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::FORBIDDEN, "turn-over"));
    let allowed = stand.wait_for_events("egress.allowed.tasks", 1).await;
    assert_eq!((allowed.len(), &allowed[0]["cut"], &allowed[0]["status"]), (1, &json!("turn-over"), &json!(0)));
    assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0]);
    stop.cancel();
}

#[tokio::test]
async fn an_answer_that_came_by_another_way_is_refused() {
    for (name, value, expected) in [
        ("x-litellm-attempted-fallbacks", "1", Some("model-fallback")),
        ("x-litellm-attempted-fallbacks", "0", None),
        ("privatemode-encrypted", "false", Some("answer-not-encrypted")),
        ("llm_provider-privatemode-encrypted", "false", Some("answer-not-encrypted")),
        ("privatemode-encrypted", "true", None),
    ] {
        for status in [200, 500] {
            let stand = Stand::new(Setup::default(), move |_| {
                let mut response = with_json(status, &json!({"secret": "plans"}));
                response.headers_mut().insert(name, value.parse().unwrap());
                response
            })
            .await;
            let door = stand.models().await;
            let answer = ask(door, post(CHAT, hello().to_string())).await;
            match expected {
                Some(expected) => {
                    assert_eq!((answer.status.as_u16(), reason(&answer).as_str()), (502, expected));
                    assert!(!answer.text().contains("plans"));
                    assert_eq!(stand.wait_for_denials(1).await[0]["reason"], expected);
                }
                None => {
                    assert_eq!(answer.status.as_u16(), status);
                    assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0]);
                }
            }
            // The prompt had left all the same.
            assert_eq!(stand.wait_for_events("model.called.tasks", 1).await[0]["status"], status);
        }
    }
}

#[tokio::test]
async fn what_litellm_says_of_itself_stays_here() {
    let stand = Stand::new(Setup::default(), |_| {
        let mut response = with_json(200, &json!({}));
        for (name, value) in [
            ("x-litellm-model-api-base", "https://user:pw@model.example/v1?key=k"),
            ("x-litellm-model-group", "assistant"),
            ("x-litellm-call-id", "c"),
            ("x-litellm-response-cost", "0.1"),
            ("llm_provider-x-request-id", "r"),
            ("server", "uvicorn"),
            ("set-cookie", "a=b"),
        ] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let answer = ask(stand.models().await, post(CHAT, hello().to_string())).await;
    let mut names: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "content-length", "content-type", "date"]);
    let called = stand.wait_for_events("model.called.tasks", 1).await;
    assert_eq!(called[0]["api_base"], "https://model.example/v1");
}
