//! Once and only once, whoever dies when. The bus is the double; `live_bus` has the real one.

use std::sync::atomic::Ordering;

use channel_bridge::outgoing::{Outgoing, Store};
use channel_bridge::reply::Part;
use serde_json::json;

use super::stand::{ANNA, Stand};
use crate::stack::until;

#[tokio::test]
async fn nothing_is_acknowledged_while_the_bus_is_away() {
    let stand = Stand::start().await;
    stand.polling().await;
    stand.post.away.store(true, Ordering::SeqCst);
    stand.write(ANNA, "say x");
    until("it is told of", || stand.problem().is_some_and(|problem| problem.contains("messages wait at Telegram")))
        .await;
    assert_eq!((stand.count("waiting"), stand.sent().len()), (1, 0));
    stand.post.away.store(false, Ordering::SeqCst);
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
    until("it is acknowledged", || stand.count("waiting") == 0).await;
    until("it recovers", || stand.problem().is_none()).await;
    assert_eq!(stand.tasks.texts().len(), 1);
}

#[tokio::test]
async fn a_crash_before_the_commit_loses_nothing() {
    let mut stand = Stand::start().await;
    stand.polling().await;
    stand.post.away.store(true, Ordering::SeqCst);
    stand.write(ANNA, "say x");
    until("it is told of", || stand.problem().is_some()).await;
    stand.crash().await;
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
    assert_eq!(stand.tasks.texts().len(), 1);
}

/// A process that answers and dies before it can acknowledge.
async fn answered_and_not_acknowledged() -> Stand {
    let stand = Stand::start().await;
    stand.polling().await;
    // From here on Telegram hears nothing any more; the question for messages that is open is still answered.
    stand.fault(json!({"method": "getUpdates", "status": 502, "garbage": true, "times": 1_000_000}));
    stand.write(ANNA, "say x");
    stand.nth(1).await;
    until("it counts as sent", || stand.delivered().len() == 1).await;
    assert_eq!(stand.count("waiting"), 1);
    stand.end().await;
    stand.calm();
    stand
}

#[tokio::test]
async fn a_message_that_comes_again_is_not_answered_again() {
    let mut stand = answered_and_not_acknowledged().await;
    stand.begin().await;
    until("it is acknowledged", || stand.count("waiting") == 0).await;
    stand.write(ANNA, "say y");
    assert_eq!(stand.nth(2).await.text, "[tasks] y");
    assert_eq!(stand.tasks.texts(), ["say x", "say y"]);
}

#[tokio::test]
async fn not_even_where_the_ids_are_lost_and_the_bus_has_forgotten() {
    let mut stand = answered_and_not_acknowledged().await;
    std::fs::remove_file(stand.dir.path().join("state/seen.json")).unwrap();
    stand.begin().await;
    until("it is acknowledged", || stand.count("waiting") == 0).await;
    // The bus delivers it once more, beyond any window.
    stand.write(ANNA, "say y");
    assert_eq!(stand.nth(2).await.text, "[tasks] y");
    assert_eq!(stand.tasks.texts(), ["say x", "say y"]);
}

#[tokio::test]
async fn an_answer_of_unknown_fate_is_sent_a_second_time_and_no_third() {
    let stand = Stand::start().await;
    stand.polling().await;
    // It arrived, and the connection broke before that was said.
    stand.fault(json!({"method": "sendMessage", "status": 0, "done": true}));
    stand.write(ANNA, "say one");
    until("it counts as sent", || stand.delivered().len() == 1).await;
    assert_eq!(stand.sent().iter().filter(|sent| sent.text == "[tasks] one").count(), 2);
    // It did not arrive.
    stand.fault(json!({"method": "sendMessage", "status": 502, "garbage": true}));
    stand.write(ANNA, "say two");
    until("it counts as sent", || stand.delivered().len() == 2).await;
    assert_eq!(stand.sent().iter().filter(|sent| sent.text == "[tasks] two").count(), 1);
    // Twice unknown.
    stand.fault(json!({"method": "sendMessage", "status": 0, "done": true, "times": 2}));
    stand.write(ANNA, "say three");
    until("it counts as sent", || stand.delivered().len() == 3).await;
    assert_eq!(stand.sent().iter().filter(|sent| sent.text == "[tasks] three").count(), 2);
    stand.write(ANNA, "say four");
    until("the next is sent", || stand.sent().iter().any(|sent| sent.text == "[tasks] four")).await;
}

#[tokio::test]
async fn a_crash_between_two_parts_goes_on_with_the_second() {
    let mut stand = Stand::start().await;
    stand.polling().await;
    let text = "word ".repeat(2000);
    // The second part is to wait for an hour.
    stand.fault(json!({"method": "sendMessage", "status": 429, "retry_after": 3600, "after": 1}));
    stand.write(ANNA, &format!("say {text}"));
    stand.nth(1).await;
    until("the second part was tried", || stand.count("faults") == 0).await;
    assert_eq!(stand.sent().len(), 1);
    stand.crash().await;
    until("all of it is sent", || stand.delivered().len() == 1).await;
    let starts: Vec<String> =
        stand.sent().iter().map(|sent| sent.text.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(starts, ["[tasks 1/3]", "[tasks 2/3]", "[tasks 3/3]"]);
    let outgoing = stand.dir.path().join("state/outgoing");
    until("its plan is forgotten", || std::fs::read_dir(&outgoing).unwrap().count() == 0).await;
}

/// Leaves a reply on its way as a process that died leaves it.
async fn left_behind(stand: &Stand, sequence: u64, text: &str, sending: bool, unknown: u8) {
    let store = Store::open(&stand.dir.path().join("state")).await.unwrap();
    let outgoing = Outgoing {
        sequence,
        tier: "tasks".parse().unwrap(),
        turn: assistant_proto::name::TurnId::generate(),
        channel: "telegram".to_owned(),
        conversation: format!("telegram.{ANNA}"),
        traceparent: service_kit::trace::fresh(),
        parts: vec![Part { html: text.to_owned(), plain: text.to_owned() }],
        next: 0,
        sending,
        unknown,
        bytes: 0,
    };
    store.keep(&outgoing).await.unwrap();
}

#[tokio::test]
async fn what_was_left_behind_is_sent_in_its_order() {
    let mut stand = Stand::start().await;
    stand.end().await;
    // Not yet begun; begun, and nobody knows; begun twice already: that one counts as sent.
    left_behind(&stand, 12, "third", false, 0).await;
    left_behind(&stand, 10, "first", false, 0).await;
    left_behind(&stand, 11, "second", true, 0).await;
    left_behind(&stand, 9, "never", true, 1).await;
    stand.begin().await;
    until("all of it is done", || stand.delivered().len() == 4).await;
    let texts: Vec<String> = stand.sent().into_iter().map(|sent| sent.text).collect();
    assert_eq!(texts, ["first", "second", "third"]);
    // And what comes later comes after it.
    stand.write(ANNA, "say x");
    assert_eq!(stand.nth(4).await.text, "[tasks] x");
}

#[tokio::test]
async fn a_reply_the_bus_delivers_again_is_sent_once() {
    let mut stand = Stand::start().await;
    stand.write(ANNA, "say x");
    stand.nth(1).await;
    until("it counts as sent", || stand.delivered().len() == 1).await;
    let replied = stand.post.replied.lock().unwrap()[0].clone();
    stand.bridge.outbox().deliver(replied.clone()).await.unwrap();
    stand.crash().await;
    stand.bridge.outbox().deliver(replied).await.unwrap();
    stand.write(ANNA, "say y");
    assert_eq!(stand.nth(2).await.text, "[tasks] y");
    assert_eq!(stand.sent().len(), 2);
}

#[tokio::test]
async fn records_that_cannot_be_written_stop_everything_and_lose_nothing() {
    let stand = Stand::start().await;
    stand.polling().await;
    // A directory where the file should be.
    let seen = stand.dir.path().join("state/seen.json");
    std::fs::create_dir(&seen).unwrap();
    stand.write(ANNA, "say x");
    until("it is told of", || stand.problem().is_some_and(|problem| problem.contains("records"))).await;
    assert_eq!(stand.count("waiting"), 1);
    std::fs::remove_dir(&seen).unwrap();
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
    until("it is acknowledged", || stand.count("waiting") == 0).await;
    assert_eq!(stand.sent().len(), 1);
}
