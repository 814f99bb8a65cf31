//! What goes out.

use serde_json::json;

use super::stand::{ANNA, BEN, Stand};
use crate::stack::until;

#[tokio::test]
async fn links_to_where_the_tier_may_not_go_are_inert() {
    let stand = Stand::start().await;
    stand.write(
        ANNA,
        "say see https://evil.example/?d=secret [here](https://evil.example/p) evil.example @somebody tg://x?y=z",
    );
    let sent = stand.nth(1).await;
    assert!(sent.links.is_empty(), "{sent:?}");
    assert!(sent.text.contains("hxxps://evil[.]example/\u{2026}") && !sent.text.contains("secret"), "{}", sent.text);
    stand.write(ANNA, "say see https://serv.amazingmarvin.com/x or [this](https://serv.amazingmarvin.com/y)");
    let sent = stand.nth(2).await;
    assert_eq!(sent.links, ["https://serv.amazingmarvin.com/x", "https://serv.amazingmarvin.com/y"]);
    // Not even what may be reached is fetched by Telegram's servers.
    assert!(stand.sent().iter().all(|sent| sent.fetched.is_empty()));
    // What one tier may reach, another may not.
    stand.write(ANNA, "/tier updates");
    stand.write(ANNA, "say https://serv.amazingmarvin.com/x");
    assert!(stand.nth(4).await.links.is_empty());
}

#[tokio::test]
async fn what_an_agent_says_cannot_act() {
    let stand = Stand::start().await;
    stand.write(ANNA, "say a<b> &amp; \u{202e}x\u{1b}[31m");
    let sent = stand.nth(1).await;
    assert_eq!(sent.text, "[tasks] a<b> &amp; \\u{202e}x\\u{1b}[31m");
    assert!(sent.html);
}

#[tokio::test]
async fn long_replies_come_in_order_and_whole() {
    let stand = Stand::start().await;
    let text: String = (0..1500).map(|number| format!("n{number} ")).collect();
    stand.write(ANNA, &format!("say {text}"));
    until("all of it is sent", || stand.delivered().len() == 1).await;
    let sent = stand.sent();
    assert!(sent.len() >= 2 && sent[1].text.starts_with(&format!("[tasks 2/{}] ", sent.len())));
    let said: String = sent.iter().map(|sent| format!("{} ", sent.text.split_once("] ").unwrap().1)).collect();
    assert_eq!(said, text);
}

#[tokio::test]
async fn markup_that_is_refused_goes_out_plain_and_inert() {
    let stand = Stand::start().await;
    stand.polling().await;
    stand.fault(json!({"method": "sendMessage", "status": 400, "description": "Bad Request: can't parse entities: x"}));
    stand.write(ANNA, "say `evil.example` **x**");
    let sent = stand.nth(1).await;
    assert_eq!((sent.text.as_str(), sent.html), ("[tasks] evil[.]example x", false));
    assert!(sent.links.is_empty() && sent.fetched.is_empty());
    until("it counts as sent", || stand.delivered().len() == 1).await;
    assert_eq!(stand.sent().len(), 1);
}

#[tokio::test]
async fn messages_of_a_chat_are_answered_in_order() {
    let stand = Stand::start().await;
    for number in 0..5 {
        stand.write(ANNA, &format!("say {number}"));
    }
    stand.nth(5).await;
    let texts: Vec<String> = stand.sent().into_iter().map(|sent| sent.text).collect();
    assert_eq!(texts, (0..5).map(|number| format!("[tasks] {number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn nobody_waits_for_somebody_elses_chat() {
    let stand = Stand::start().await;
    stand.polling().await;
    stand.fault(json!({"method": "sendMessage", "status": 429, "retry_after": 3600}));
    stand.write(ANNA, "say stuck");
    until("the outbox has taken it", || !stand.post.replied.lock().unwrap().is_empty()).await;
    until("it was tried", || stand.dir.path().join("state/outgoing").read_dir().unwrap().count() == 1).await;
    stand.write(BEN, "say x");
    until("the other is answered", || stand.sent().iter().any(|sent| sent.chat_id == BEN)).await;
    // A terminal of the same tier is not held up either.
    let message = channel_bridge::channels::terminal::Message {
        tier: "tasks".into(),
        text: "say y".into(),
        ..Default::default()
    };
    let mut updates = stand.bridge.terminal().send(message).await.unwrap();
    assert_eq!(crate::stack::reply(&crate::stack::rest(&mut updates).await).0, "y");
}
