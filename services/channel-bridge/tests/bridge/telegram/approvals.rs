//! Permissions, by people who type.

use assistant_proto::event::ApprovalOutcome;
use channel_bridge::post::Notice;
use serde_json::json;

use super::stand::{ANNA, BEN, Stand};
use crate::stack::until;

fn outcomes(stand: &Stand) -> Vec<ApprovalOutcome> {
    let notices = stand.post.notices.lock().unwrap();
    let decided = |notice: &Notice| match notice {
        Notice::ApprovalDecided(event) => Some(event.outcome),
        _ => None,
    };
    notices.iter().filter_map(decided).collect()
}

/// The code in a question.
fn code(question: &str) -> String {
    let (_, rest) = question.split_once("YES ").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_permission_is_asked_for_and_given_in_the_chat() {
    let stand = Stand::start().await;
    stand.write(ANNA, "ask curl https://evil.example/x");
    let question = stand.nth(1).await;
    assert!(question.text.starts_with("[tasks] The agent asks for permission:\nApprove shell?"), "{}", question.text);
    assert!(question.text.contains("Answer within 10 minutes with  YES "), "{}", question.text);
    // The person sees exactly what would be done, and no client makes a link of it.
    assert!(question.text.contains("command: curl https://evil.example/x"), "{}", question.text);
    assert!(question.links.is_empty() && question.fetched.is_empty(), "{question:?}");
    stand.write(ANNA, "yes");
    assert!(stand.nth(2).await.text.contains("An answer needs the code"));
    // The chat may talk to another tier in the meantime.
    stand.write(ANNA, "/tier updates");
    stand.nth(3).await;
    stand.write(ANNA, &format!("yes {}", code(&question.text).to_lowercase()));
    assert_eq!(stand.nth(4).await.text, "[tasks] Approved, this once.");
    assert_eq!(stand.nth(5).await.text, "[tasks] allow-once");
    assert_eq!(outcomes(&stand), [ApprovalOutcome::Approved]);
    stand.write(ANNA, &format!("YES {}", code(&question.text)));
    assert!(stand.nth(6).await.text.contains("answered before (YES); a code works once"));
    assert_eq!(stand.tasks.texts().len(), 1);
    assert!(stand.updates.texts().is_empty());
}

#[tokio::test]
async fn only_the_person_in_the_chat_can_answer_and_only_in_their_own_words() {
    let stand = Stand::start().await;
    stand.write(ANNA, "ask ls");
    let yes = format!("YES {}", code(&stand.nth(1).await.text));
    // Somebody else who may write; somebody else's words; an edit; a group in which it was not asked; yesterday.
    stand.write(BEN, &yes);
    assert!(stand.nth(2).await.text.contains("did not count"));
    let forwarded = json!({"forward_origin": {"type": "hidden_user", "sender_user_name": "x"}});
    stand.post_message(json!({"user_id": ANNA, "text": yes, "message": forwarded}));
    assert!(stand.nth(3).await.text.contains("passed on does not count"));
    let edited = json!({"edited_message": {"message_id": 9, "date": 1, "chat": {"id": ANNA, "type": "private"},
        "from": {"id": ANNA}, "text": yes}});
    stand.ask("POST", "update", edited);
    let reply = json!({"reply_to_message": {"message_id": 1, "from": {"id": 4_200_000_042_i64, "is_bot": true}}});
    stand.post_message(json!({"user_id": ANNA, "chat_id": -5, "text": yes, "message": reply}));
    assert!(stand.nth(4).await.text.contains("did not count"));
    stand.post_message(json!({"user_id": ANNA, "text": yes, "message": {"date": 1_000_000}}));
    assert!(stand.nth(5).await.text.contains("too old to count"));
    assert!(outcomes(&stand).is_empty());
    // The control.
    stand.write(ANNA, &yes);
    assert_eq!(stand.nth(6).await.text, "[tasks] Approved, this once.");
    assert_eq!(stand.nth(7).await.text, "[tasks] allow-once");
    assert_eq!(stand.tasks.texts(), ["ask ls"]);
}

#[tokio::test]
async fn a_no_is_a_no() {
    let stand = Stand::start().await;
    stand.write(ANNA, "ask ls");
    let no = format!("no {}", code(&stand.nth(1).await.text));
    stand.write(ANNA, &no);
    assert_eq!(stand.nth(2).await.text, "[tasks] Denied.");
    assert_eq!(stand.nth(3).await.text, "[tasks] reject-once");
}

#[tokio::test]
async fn silence_is_a_no_and_is_said() {
    let stand = Stand::with(2, |_| {}).await;
    stand.write(ANNA, "ask ls");
    let code = code(&stand.nth(1).await.text);
    until("it is decided", || !outcomes(&stand).is_empty()).await;
    assert_eq!(outcomes(&stand), [ApprovalOutcome::TimedOut]);
    until("both are said", || stand.sent().len() >= 3).await;
    let said: Vec<String> = stand.sent().into_iter().skip(1).map(|sent| sent.text).collect();
    assert!(said.contains(&"[tasks] reject-once".to_owned()), "{said:?}");
    assert!(
        said.contains(&format!("[tasks] The question {code} was not answered in time; it is rejected.")),
        "{said:?}"
    );
    stand.write(ANNA, &format!("yes {code}"));
    assert!(stand.nth(4).await.text.contains("expired before the answer came"));
}

#[tokio::test]
async fn a_question_that_never_arrives_is_undeliverable() {
    let stand = Stand::with(1, |_| {}).await;
    stand.polling().await;
    stand.fault(json!({"method": "sendMessage", "status": 429, "retry_after": 3600}));
    stand.write(ANNA, "ask ls");
    until("it is decided", || !outcomes(&stand).is_empty()).await;
    assert_eq!(outcomes(&stand), [ApprovalOutcome::Undeliverable]);
    assert!(!stand.sent().iter().any(|sent| sent.text.contains("Approve shell?")));
}

#[tokio::test]
async fn a_restart_asks_again_with_another_code() {
    let mut stand = Stand::start().await;
    stand.write(ANNA, "ask ls");
    let old = code(&stand.nth(1).await.text);
    until("it is acknowledged", || stand.count("waiting") == 0).await;
    let received = stand.post.received.lock().unwrap()[0].clone();
    stand.crash().await;
    // JetStream delivers it again.
    let inbox = stand.bridge.inbox();
    let redelivered = tokio::spawn(async move { inbox.handle(received).await });
    let new = code(&stand.nth(2).await.text);
    assert_ne!(old, new);
    stand.write(ANNA, &format!("yes {old}"));
    assert!(stand.nth(3).await.text.contains("did not count"));
    stand.write(ANNA, &format!("yes {new}"));
    assert_eq!(stand.nth(4).await.text, "[tasks] Approved, this once.");
    assert_eq!(stand.nth(5).await.text, "[tasks] allow-once");
    assert_eq!(redelivered.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn stopping_withdraws_the_question() {
    let stand = Stand::start().await;
    stand.write(ANNA, "ask ls");
    stand.nth(1).await;
    stand.write(ANNA, "/stop");
    until("it is decided", || outcomes(&stand) == [ApprovalOutcome::Withdrawn]).await;
    until("it is said", || stand.sent().iter().any(|sent| sent.text == "[tasks] Stopping.")).await;
    // The control: the next message is answered.
    stand.write(ANNA, "say x");
    until("it is answered", || stand.sent().iter().any(|sent| sent.text == "[tasks] x")).await;
}
