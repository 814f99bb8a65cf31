#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;

use super::*;

const TOKEN: &str = "42:drill";

fn telegram() -> Telegram {
    Telegram::new(Zeroizing::new(TOKEN.to_owned()))
}

async fn call_as(telegram: &Telegram, token: &str, method: &str, params: Value) -> (u16, Value) {
    let asked = Asked {
        method: http::Method::POST,
        path: format!("/bot{token}/{method}"),
        headers: http::HeaderMap::new(),
        body: Bytes::from(params.to_string()),
    };
    let answer = telegram.answer(&asked).await;
    assert!(!answer.recorded_path.unwrap().contains(token));
    let status = answer.response.status().as_u16();
    let body = answer.response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn call(telegram: &Telegram, method: &str, params: Value) -> (u16, Value) {
    call_as(telegram, TOKEN, method, params).await
}

fn write(telegram: &Telegram, text: &str) -> i64 {
    let body = json!({"user_id": 7, "text": text}).to_string();
    telegram.control("POST", "/telegram/message", body.as_bytes()).unwrap()["update_id"].as_i64().unwrap()
}

fn sent(telegram: &Telegram) -> Vec<SentMessage> {
    let answer = telegram.control("GET", "/telegram/sent/0", b"").unwrap();
    serde_json::from_value(answer["messages"].clone()).unwrap()
}

#[tokio::test]
async fn updates_stay_until_they_are_acknowledged() {
    let telegram = telegram();
    let first = write(&telegram, "/tier@somebody x");
    let (_, got) = call(&telegram, "getUpdates", json!({"timeout": 0})).await;
    assert_eq!(got["result"][0]["update_id"], first);
    assert_eq!(got["result"][0]["message"]["from"]["id"], 7);
    assert_eq!(got["result"][0]["message"]["entities"][0]["type"], "bot_command");
    let (_, again) = call(&telegram, "getUpdates", json!({})).await;
    assert_eq!(again["result"][0]["update_id"], first);
    let (_, none) = call(&telegram, "getUpdates", json!({"offset": first + 1})).await;
    assert_eq!(none["result"], json!([]));
}

#[tokio::test]
async fn a_question_is_held_and_the_second_ends_the_first() {
    let telegram = telegram();
    let held = call(&telegram, "getUpdates", json!({"timeout": 50}));
    tokio::pin!(held);
    assert!(held.as_mut().now_or_never().is_none());
    let second = call(&telegram, "getUpdates", json!({"timeout": 50}));
    tokio::pin!(second);
    assert!(second.as_mut().now_or_never().is_none());
    let (status, body) = held.await;
    assert_eq!((status, body["error_code"].as_u64()), (409, Some(409)));
    let update = write(&telegram, "hello");
    assert_eq!(second.await.1["result"][0]["update_id"], update);
}

#[tokio::test]
async fn messages_and_their_errors() {
    let telegram = telegram();
    let send = |params: Value| call(&telegram, "sendMessage", params);
    let text = "<b>a &lt; b</b> https://x.example <code>y.example</code>";
    let (status, body) = send(json!({"chat_id": 7, "text": text, "parse_mode": "HTML"})).await;
    assert_eq!((status, body["result"]["text"].as_str()), (200, Some("a < b https://x.example y.example")));
    let first = &sent(&telegram)[0];
    assert_eq!((&first.links, &first.fetched), (&vec!["https://x.example".to_owned()], &first.links));
    let quiet = json!({"chat_id": 7, "text": "x.example @somebody 1.5 10.0.0.1", "link_preview_options": {"is_disabled": true}});
    send(quiet).await;
    assert_eq!(sent(&telegram)[1].links, ["x.example", "@somebody", "10.0.0.1"]);
    assert!(sent(&telegram)[1].fetched.is_empty());
    for bad in ["<x>a</x>", "<b>a", "a</b>", "<b><i>a</b></i>", "a < b"] {
        let (status, body) = send(json!({"chat_id": 7, "text": bad, "parse_mode": "HTML"})).await;
        assert_eq!(status, 400, "{bad}");
        assert!(body["description"].as_str().unwrap().contains("can't parse entities"), "{body}");
    }
    let long = "\u{1f600}".repeat(2049);
    assert!(send(json!({"chat_id": 7, "text": long})).await.1["description"].as_str().unwrap().contains("too long"));
    assert_eq!(send(json!({"chat_id": 7, "text": " "})).await.0, 400);
    let id = first.message_id;
    let edit = |text: &str| call(&telegram, "editMessageText", json!({"chat_id": 7, "message_id": id, "text": text}));
    assert_eq!(edit("new").await.0, 200);
    assert!(edit("new").await.1["description"].as_str().unwrap().contains("message is not modified"));
    assert_eq!(call_as(&telegram, "1:x", "getMe", json!({})).await.0, 401);
    assert_eq!(call(&telegram, "getMe", json!({})).await.1["result"]["username"], BOT_NAME);
}

#[tokio::test]
async fn what_is_scripted_goes_wrong_once() {
    let telegram = telegram();
    let fault = |fault: Value| {
        assert!(telegram.control("POST", "/telegram/fault", fault.to_string().as_bytes()).is_some(), "{fault}");
    };
    let message = json!({"chat_id": 7, "text": "x"});
    fault(json!({"method": "sendMessage", "status": 429, "retry_after": 3}));
    let (status, body) = call(&telegram, "sendMessage", message.clone()).await;
    assert_eq!((status, body["parameters"]["retry_after"].as_u64()), (429, Some(3)));
    assert!(sent(&telegram).is_empty());
    fault(json!({"method": "sendMessage", "status": 502, "garbage": true, "done": true, "times": 2}));
    for _ in 0..2 {
        assert_eq!(call(&telegram, "sendMessage", message.clone()).await, (502, Value::Null));
    }
    assert_eq!(sent(&telegram).len(), 2);
    assert_eq!(call(&telegram, "sendMessage", message).await.0, 200);
    assert!(telegram.control("POST", "/telegram/fault", b"{}").is_none());
    assert!(telegram.control("GET", "/since/0", b"").is_none());
}

#[tokio::test]
async fn a_person_writes_and_hears_over_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let telegram = std::sync::Arc::new(telegram());
    let tasks = service_kit::task::Tasks::default();
    let record = std::sync::Arc::new(crate::doubles::record::Record::default());
    crate::doubles::control::start(&tasks, &socket, record, Some(std::sync::Arc::clone(&telegram)), None).unwrap();
    let anna = person::Person { socket: socket.clone(), user: 7, chat: None };
    let update = anna.write("hello").await.unwrap();
    assert_eq!(call(&telegram, "getUpdates", json!({})).await.1["result"][0]["update_id"], update);
    call(&telegram, "sendMessage", json!({"chat_id": 8, "text": "not for her"})).await;
    call(&telegram, "sendMessage", json!({"chat_id": 7, "text": "for her"})).await;
    let heard = anna.hears(0, Duration::from_secs(5), |_| true).await.unwrap();
    assert_eq!((heard.text.as_str(), heard.sequence), ("for her", 2));
    assert!(anna.hears(heard.sequence, Duration::ZERO, |_| true).await.is_err());
    person::fault(&socket, &json!({"method": "getMe", "status": 500})).await.unwrap();
    assert!(person::fault(&socket, &json!({"method": 1})).await.is_err());
    let state = person::sent(&socket, 1).await.unwrap();
    assert_eq!((state.messages.len(), state.faults, state.waiting), (1, 1, 1));
}
