//! Who is answered, by whom, and who is not.

use serde_json::json;

use super::stand::{ANNA, BEN, MALLORY, Stand};
use crate::stack::until;

const GROUP: i64 = -1_001_000;

#[tokio::test]
async fn a_message_is_answered_by_the_first_tier() {
    let stand = Stand::start().await;
    stand.write(ANNA, "say **hello** there");
    let sent = stand.nth(1).await;
    assert_eq!((sent.chat_id, sent.text.as_str(), sent.html), (ANNA, "[tasks] hello there", true));
    assert_eq!(sent.source, "[tasks] <b>hello</b> there");
    assert_eq!(stand.tasks.texts(), ["say **hello** there"]);
    until("it is acknowledged", || stand.count("waiting") == 0).await;
    assert!(stand.count("typing") > 0);
    // Everything went through Squid, to one place.
    let connects = stand.squid.connects.lock().unwrap().clone();
    assert!(!connects.is_empty() && connects.iter().all(|target| target == "api.telegram.org:443"), "{connects:?}");
    until("it counts as sent", || stand.delivered().len() == 1).await;
    assert!(stand.delivered()[0].bytes > 0);
    assert_eq!(stand.post.received.lock().unwrap()[0].conversation, format!("telegram.{ANNA}"));
    assert_eq!(stand.post.received.lock().unwrap()[0].sender, ANNA.to_string());
}

#[tokio::test]
async fn strangers_get_silence_and_an_event() {
    let stand = Stand::start().await;
    for _ in 0..3 {
        // The name of somebody else helps nobody.
        let spoofed = json!({"from": {"id": MALLORY, "is_bot": false, "first_name": "Anna", "username": "anna"}});
        stand.post_message(json!({"user_id": MALLORY, "text": "/start", "message": spoofed}));
    }
    let admin =
        json!({"from": {"id": 1_087_968_824, "is_bot": true}, "sender_chat": {"id": GROUP, "type": "supergroup"}});
    stand.post_message(json!({"user_id": ANNA, "chat_id": GROUP, "text": "/help", "message": admin}));
    let forwarded = json!({"forward_origin": {"type": "user", "sender_user": {"id": ANNA}}});
    stand.post_message(json!({"user_id": MALLORY, "text": "say x", "message": forwarded}));
    stand.post_message(json!({"user_id": MALLORY, "message": {"photo": [{}]}}));
    stand.ask(
        "POST",
        "update",
        json!({"channel_post": {"message_id": 1, "chat": {"id": GROUP, "type": "channel"}, "text": "say x"}}),
    );
    // The control: somebody who may write is answered, after all of those.
    stand.write(ANNA, "say x");
    assert_eq!(stand.nth(1).await.chat_id, ANNA);
    assert_eq!((stand.tasks.texts().len(), stand.count("waiting")), (1, 0));
    until("they are told of", || stand.ignored().len() >= 2).await;
    let mut ignored = stand.ignored();
    ignored.sort_by(|a, b| a.reason.cmp(&b.reason));
    let seen: Vec<(&str, String, u64)> =
        ignored.iter().map(|event| (event.reason.as_str(), event.sender.clone(), event.count)).collect();
    assert_eq!(seen, [("anonymous", GROUP.to_string(), 1), ("not-allowed", MALLORY.to_string(), 5)]);
    assert!(ignored.iter().all(|event| event.account == "telegram" && event.tier.as_str() == "stack"));
    assert_eq!(stand.sent().len(), 1);
}

#[tokio::test]
async fn a_chat_belongs_to_a_tier_until_told_otherwise() {
    let mut stand = Stand::start().await;
    stand.write(ANNA, "/start");
    let help = stand.nth(1).await.text;
    assert!(help.starts_with("[tasks] You are talking to the tier tasks."), "{help}");
    stand.write(ANNA, "/tier");
    assert_eq!(
        stand.nth(2).await.text,
        "[tasks] This chat belongs to tasks. There are: tasks, updates. Change it with /tier and a name."
    );
    stand.write(ANNA, "/tier nosuch");
    assert_eq!(stand.nth(3).await.text, "[tasks] There is no tier of that name here. There are: tasks, updates.");
    stand.write(ANNA, "/tier updates");
    assert_eq!(stand.nth(4).await.text, "[updates] From now on this chat belongs to updates.");
    stand.write(ANNA, "say one");
    assert_eq!(stand.nth(5).await.text, "[updates] one");
    // Another chat is another matter.
    stand.write(BEN, "say two");
    assert_eq!(stand.nth(6).await.text, "[tasks] two");
    until("they count as sent", || stand.delivered().len() == 2).await;
    stand.crash().await;
    stand.write(ANNA, "say three");
    assert_eq!(stand.nth(7).await.text, "[updates] three");
    assert_eq!((stand.updates.texts().len(), stand.tasks.texts().len()), (2, 1));
}

#[tokio::test]
async fn a_tier_that_is_gone_is_not_spoken_to() {
    let mut stand = Stand::start().await;
    stand.write(ANNA, "/tier updates");
    stand.nth(1).await;
    until("it is acknowledged", || stand.count("waiting") == 0).await;
    stand.end().await;
    let chosen = stand.dir.path().join("state/chosen.json");
    let text = std::fs::read_to_string(&chosen).unwrap().replace("updates", "former");
    std::fs::write(&chosen, text).unwrap();
    stand.begin().await;
    stand.write(ANNA, "say x");
    assert_eq!(stand.nth(2).await.text, "[tasks] x");
}

#[tokio::test]
async fn groups_are_answered_when_they_ask() {
    let stand = Stand::start().await;
    let group = |who: i64, text: &str| stand.post_message(json!({"user_id": who, "chat_id": GROUP, "text": text}));
    group(ANNA, "say one");
    group(ANNA, "@other_bot say two");
    group(MALLORY, "just talking");
    group(ANNA, "@assistant_drill_bot say three");
    let sent = stand.nth(1).await;
    assert_eq!((sent.chat_id, sent.text.as_str()), (GROUP, "[tasks] three"));
    group(ANNA, "/tier@assistant_drill_bot updates");
    assert_eq!(stand.nth(2).await.text, "[updates] From now on this chat belongs to updates.");
    group(ANNA, "/tier@other_bot tasks");
    group(MALLORY, "@assistant_drill_bot say four");
    let reply = json!({"reply_to_message": {"message_id": 1, "from": {"id": 4_200_000_042_i64, "is_bot": true}}});
    stand.post_message(json!({"user_id": BEN, "chat_id": GROUP, "text": "say five", "message": reply}));
    assert_eq!(stand.nth(3).await.text, "[updates] five");
    until("the stranger is told of", || stand.ignored().len() == 1).await;
    assert_eq!(stand.ignored()[0].sender, MALLORY.to_string());
    assert_eq!(
        (stand.tasks.texts(), stand.updates.texts()),
        (vec!["say three".to_owned()], vec!["say five".to_owned()])
    );
}

#[tokio::test]
async fn what_is_no_text_is_declined_and_what_others_wrote_is_marked() {
    let stand = Stand::start().await;
    stand.post_message(json!({"user_id": ANNA, "message": {"voice": {"file_id": "x"}}}));
    assert!(stand.nth(1).await.text.contains("I cannot take files, pictures, voice messages"));
    let forwarded = json!({"forward_origin": {"type": "hidden_user", "sender_user_name": "Anna"}});
    stand.post_message(json!({"user_id": ANNA, "text": "/tier updates", "message": forwarded}));
    stand.nth(2).await;
    assert!(stand.tasks.texts()[0].starts_with("[Note of the system: the person passes on this message"));
    assert!(stand.tasks.texts()[0].ends_with("\n\n/tier updates"));
    // Edits, and things that are no messages, are nothing.
    let edited = json!({"edited_message": {"message_id": 1, "date": 1, "chat": {"id": ANNA, "type": "private"},
        "from": {"id": ANNA}, "text": "say edited"}});
    stand.ask("POST", "update", edited);
    stand.post_message(json!({"user_id": ANNA, "message": {"new_chat_title": "x"}}));
    stand.ask("POST", "update", json!({"message": {"what": "ever"}}));
    stand.write(ANNA, "say after");
    assert_eq!(stand.nth(3).await.text, "[tasks] after");
    assert_eq!(stand.tasks.texts().len(), 2);
}
