//! Everything that can be wrong between the bridge and Telegram.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assistant_tests::doubles::web::Asked;
use channel_bridge::channels::Pace;
use channel_bridge::channels::terminal::Message;
use serde_json::json;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};

use super::stand::{ANNA, BOT_TOKEN, Stand, pace};
use crate::squid_double::{Manner, PASSWORD};
use crate::stack::{reply, rest, until};

#[tokio::test]
async fn telegram_is_left_alone_for_as_long_as_it_wants() {
    let stand = Stand::start().await;
    stand.polling().await;
    stand.fault(json!({"method": "sendMessage", "status": 429, "retry_after": 1}));
    stand.write(ANNA, "say x");
    until("the reply is committed", || !stand.post.replied.lock().unwrap().is_empty()).await;
    let begun = Instant::now();
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    until("it counts as sent", || stand.delivered().len() == 1).await;
    assert_eq!(stand.sent().len(), 1);
}

#[tokio::test]
async fn a_refusal_for_good_ends_it() {
    let stand = Stand::start().await;
    stand.polling().await;
    stand.fault(json!({"method": "sendMessage", "status": 403}));
    stand.write(ANNA, "say lost");
    until("it counts as done", || stand.delivered().len() == 1).await;
    assert_eq!((stand.delivered()[0].bytes, stand.sent().len()), (0, 0));
    stand.write(ANNA, "say x");
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
}

#[tokio::test]
async fn a_second_poller_is_told_of_and_outlived() {
    let stand = Stand::start().await;
    stand.polling().await;
    let other = Asked {
        method: "POST".parse().unwrap(),
        path: format!("/bot{BOT_TOKEN}/getUpdates"),
        headers: Default::default(),
        body: json!({"timeout": 30}).to_string().into(),
    };
    let telegram = Arc::clone(&stand.telegram);
    let other = tokio::spawn(async move { telegram.answer(&other).await.response.status().as_u16() });
    until("it is told of", || stand.problem().is_some_and(|problem| problem.contains("another program asks"))).await;
    // Whoever asks last wins; the other is gone after its 409 and does not come back.
    assert_eq!(other.await.unwrap(), 409);
    until("it recovers", || stand.problem().is_none()).await;
    stand.write(ANNA, "say x");
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
}

#[tokio::test]
async fn squid_refuses_or_is_gone_and_comes_back() {
    let stand = Stand::start().await;
    stand.polling().await;
    for manner in [Manner::Refuse(407), Manner::Refuse(403), Manner::Drop] {
        stand.squid.be(manner);
        until("it is told of", || {
            stand.problem().is_some_and(|problem| problem.contains("cannot be reached through Squid"))
        })
        .await;
        let before = stand.sent().len();
        stand.write(ANNA, "say x");
        stand.squid.be(Manner::Allow);
        assert_eq!(stand.nth(before + 1).await.text, "[tasks] x", "{manner:?}");
        until("it recovers", || stand.problem().is_none()).await;
    }
    assert_eq!(stand.sent().len(), 3);
}

#[tokio::test]
async fn a_question_on_a_connection_that_is_dead_behind_squid_is_asked_anew() {
    let mut stand = Stand::start().await;
    stand.end().await;
    let pace = pace();
    stand.begin_at(Pace { poll: Duration::from_secs(1), poll_slack: Duration::from_secs(1), ..pace }).await;
    stand.polling().await;
    stand.squid.be(Manner::Silence);
    until("it is told of", || stand.problem().is_some_and(|problem| problem.contains("did not answer"))).await;
    stand.squid.be(Manner::Allow);
    until("it recovers", || stand.problem().is_none()).await;
    stand.write(ANNA, "say x");
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
}

#[tokio::test]
async fn nobody_at_the_terminal_notices() {
    let stand = Stand::start().await;
    stand.polling().await;
    stand.squid.be(Manner::Refuse(503));
    until("it is told of", || stand.problem().is_some()).await;
    let message = Message { tier: "tasks".to_owned(), text: "say x".to_owned(), ..Message::default() };
    let mut updates = stand.bridge.terminal().send(message).await.unwrap();
    assert_eq!(reply(&rest(&mut updates).await).0, "x");
    assert!(stand.problem().is_some(), "and the health still says it");
}

#[tokio::test]
async fn connections_that_break_again_and_again_leave_one_loop() {
    let stand = Stand::start().await;
    stand.polling().await;
    for _ in 0..50 {
        let connects = stand.squid.connects.lock().unwrap().len();
        stand.squid.be(Manner::Allow);
        until("it connects again", || stand.squid.connects.lock().unwrap().len() > connects).await;
    }
    until("it recovers", || stand.problem().is_none()).await;
    stand.write(ANNA, "say x");
    assert_eq!(stand.nth(1).await.text, "[tasks] x");
    // Two loops would answer each other with 409.
    let calls = stand.count("calls");
    stand.write(ANNA, "say y");
    stand.nth(2).await;
    assert!(stand.problem().is_none());
    assert!(stand.count("calls") < calls + 50);
}

#[tokio::test]
async fn a_wrong_token_is_said_without_it() {
    let wrong = "4200000042:another-token";
    let stand = Stand::with(600, |config| {
        let path = config["telegram"][0]["token_file"].as_str().unwrap().to_owned();
        std::fs::write(path, wrong).unwrap();
    })
    .await;
    until("it is told of", || {
        stand.problem().is_some_and(|problem| problem.contains("does not accept the bot's token"))
    })
    .await;
    assert!(!stand.problem().unwrap().contains("another-token"));
}

#[tokio::test]
async fn somebody_elses_certificate_is_not_believed() {
    let stand = Stand::with(600, |config| {
        let dir = tempfile::tempdir().unwrap().keep();
        assistant_tests::doubles::authority::Authority::load_or_make(&dir).unwrap();
        config["egress"]["upstream_roots"] = json!([dir.join("ca.pem")]);
    })
    .await;
    until("it is told of", || stand.problem().is_some_and(|problem| problem.contains("ertificate"))).await;
    assert_eq!(stand.count("calls"), 0);
}

#[tokio::test]
async fn the_wrong_password_does_not_get_out() {
    let stand = Stand::with(600, |config| {
        let path = config["egress"]["squid_password_file"].as_str().unwrap().to_owned();
        std::fs::write(path, "wrong").unwrap();
    })
    .await;
    until("it is told of", || stand.problem().is_some_and(|problem| problem.contains("through Squid"))).await;
    assert_eq!(stand.count("calls"), 0);
}

thread_local! {
    /// What is written down by this thread, while anybody wants to know.
    static WRITTEN: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct Log;

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        WRITTEN.with_borrow_mut(|written| written.iter_mut().for_each(|written| written.extend_from_slice(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// For the whole process: what a thread of another test does first would else decide what this one hears.
fn listen() {
    let wanted = dynamic_filter_fn(|_, _| WRITTEN.with_borrow(Option::is_some));
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| Log).with_filter(wanted);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
    WRITTEN.set(Some(Vec::new()));
}

#[tokio::test]
async fn no_secret_is_written_down() {
    // The runtime of the test has one thread: everything it does is heard.
    listen();
    let stand = Stand::start().await;
    stand.polling().await;
    for fault in [
        json!({"method": "sendMessage", "status": 502, "garbage": true}),
        json!({"method": "getMe", "status": 0}),
        json!({"method": "sendChatAction", "status": 500}),
        json!({"method": "getUpdates", "status": 0}),
    ] {
        stand.fault(fault);
    }
    stand.squid.be(Manner::Drop);
    until("it is told of", || stand.problem().is_some()).await;
    stand.write(ANNA, "say x");
    stand.squid.be(Manner::Allow);
    stand.nth(1).await;
    let everything = format!("{:?} {:?} {:?}", stand.bridge, stand.post.notices.lock().unwrap(), stand.problem());
    stand.end().await;
    let written = String::from_utf8(WRITTEN.take().unwrap()).unwrap();
    assert!(written.contains("a message to a messenger waits"), "the log is heard");
    let secret = BOT_TOKEN.split_once(':').unwrap().1;
    for (place, text) in [("the log", &written), ("what is shown", &everything)] {
        assert!(!text.contains(secret), "the token is in {place}");
        assert!(!text.contains(PASSWORD), "the password is in {place}");
    }
}
