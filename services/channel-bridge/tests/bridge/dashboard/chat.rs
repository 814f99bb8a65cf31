//! The chat: a message is a turn like any other, whatever the browser does.

use assistant_proto::event::ApprovalOutcome;
use channel_bridge::dashboard::KIND;
use channel_bridge::post::Notice;
use serde_json::{Value, json};

use super::browser::{Page, ask, get, json_of, request, send};
use crate::stack::{Stack, reply, until};

fn types(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect()
}

fn outcomes(stack: &Stack) -> Vec<ApprovalOutcome> {
    let notices = stack.post.notices.lock().unwrap();
    notices
        .iter()
        .filter_map(|notice| match notice {
            Notice::ApprovalDecided(decided) => Some(decided.outcome),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_message_is_a_turn_like_any_other() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "s-1").await;
    let (frames, trace) = page.turn("say two **tasks** [x](https://evil.example)").await;
    let done = frames.last().unwrap();
    assert_eq!(done["type"], "done");
    assert_eq!(done["full_response"], "two **tasks** x \\(`hxxps://evil[.]example`\\)");
    assert!(frames.iter().any(|frame| frame["type"] == "chunk" && frame["content"] == "two "), "{frames:?}");
    let received = stack.post.received.lock().unwrap()[0].clone();
    assert_eq!((received.channel.as_str(), received.sender.as_str()), (KIND, KIND));
    assert_eq!((received.conversation.as_str(), received.traceparent.trace_id()), ("s-1", trace.clone()));
    // Announced before it was prompted, and ended after.
    let journal = stack.journal.lock().unwrap().clone();
    assert_eq!(journal[0], "announced s-1");
    assert!(journal[1].starts_with("prompted say two") && journal[2] == format!("ended {}", received.turn));
    until("the reply is told", || {
        let notices = stack.post.notices.lock().unwrap();
        notices.iter().any(|notice| matches!(notice, Notice::ChannelSent(sent) if sent.trace_id == trace))
    })
    .await;
}

#[tokio::test]
async fn nobody_acknowledges_and_nothing_reaches_the_agent() {
    let stack = Stack::with_dashboard(600).await;
    stack.post.acknowledging.lock().unwrap().remove("secret-broker");
    let mut page = Page::open(stack.socket(), "s").await;
    let (frames, _trace) = page.turn("say x").await;
    let error = frames.last().unwrap();
    assert_eq!(error["type"], "error");
    assert!(error["message"].as_str().unwrap().starts_with("secret-broker did not acknowledge the turn"), "{error}");
    assert!(stack.agent.texts().is_empty());
    // The control: with both, the same message arrives.
    stack.post.acknowledging.lock().unwrap().insert("secret-broker".into());
    assert_eq!(page.turn("say x").await.0.last().unwrap()["full_response"], "x");
}

#[tokio::test]
async fn a_question_is_answered_with_the_buttons() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "s").await;
    for (decision, outcome) in [
        ("approve", ApprovalOutcome::Approved),
        ("deny", ApprovalOutcome::Denied),
        ("always", ApprovalOutcome::Approved),
    ] {
        page.say("ask shell ls").await;
        let question = page.until("approval_request").await.pop().unwrap();
        assert_eq!(question["timeout_secs"], 600);
        assert!(question["arguments_summary"].as_str().unwrap().contains("ls"), "{question}");
        page.send(json!({"type": "approval_response", "request_id": question["request_id"], "decision": decision}))
            .await;
        if decision == "always" {
            let note = page.until("message").await.pop().unwrap();
            assert!(note["content"].as_str().unwrap().starts_with("Allowed this once"), "{note}");
        }
        page.rest().await;
        assert_eq!(outcomes(&stack).last(), Some(&outcome), "{decision}");
        // A button works once.
        page.send(json!({"type": "approval_response", "request_id": question["request_id"], "decision": "approve"}))
            .await;
        assert_eq!(page.next().await["content"], "That question is no longer open.");
    }
    assert_eq!(outcomes(&stack).len(), 3);
}

#[tokio::test]
async fn nobody_answers_in_another_conversation() {
    let stack = Stack::with_dashboard(600).await;
    let (mut page, mut other) = (Page::open(stack.socket(), "a").await, Page::open(stack.socket(), "b").await);
    page.say("ask shell ls").await;
    let question = page.until("approval_request").await.pop().unwrap();
    let answer = json!({"type": "approval_response", "request_id": question["request_id"], "decision": "approve"});
    other.send(answer.clone()).await;
    assert_eq!(other.next().await["content"], "That question is no longer open.");
    assert!(outcomes(&stack).is_empty());
    // The control: the same frame in the conversation that was asked.
    page.send(answer).await;
    page.rest().await;
    assert_eq!(outcomes(&stack), [ApprovalOutcome::Approved]);
}

#[tokio::test]
async fn a_page_that_leaves_changes_nothing() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "s").await;
    page.say("ask shell ls").await;
    let question = page.until("approval_request").await.pop().unwrap();
    drop(page);
    // The next page finds what runs and what is asked.
    let mut page = Page::open(stack.socket(), "s").await;
    assert_eq!(page.next().await, json!({"type": "thinking", "content": ""}));
    let again = page.next().await;
    assert_eq!((&again["type"], &again["request_id"]), (&json!("approval_request"), &question["request_id"]));
    page.send(json!({"type": "approval_response", "request_id": again["request_id"], "decision": "approve"})).await;
    let (frames, trace) = page.rest().await;
    assert_eq!(frames.last().unwrap()["type"], "done");
    drop(page);
    // What was said is there for a page that is loaded later.
    let messages = json_of(&get(&stack.socket(), "/api/sessions/s/messages").await);
    let roles: Vec<&str> =
        messages["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "assistant"]);
    assert_eq!(messages["messages"][0]["content"], "ask shell ls");
    assert_eq!(messages["messages"][2]["content"], format!("Trace `{trace}`"));
    assert_eq!(messages["session_persistence"], true);
}

#[tokio::test]
async fn a_message_is_taken_in_also_when_its_page_leaves_at_once() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "s").await;
    page.say("say x").await;
    drop(page);
    until("the message is answered", || stack.post.replied.lock().unwrap().len() == 1).await;
    assert_eq!(stack.agent.texts(), ["say x"]);
}

#[tokio::test]
async fn one_turn_at_a_time_and_stop_ends_it() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "a").await;
    let mut other = Page::open(stack.socket(), "b").await;
    page.say("hang").await;
    page.until("chunk").await;
    other.say("say x").await;
    let queued = other.next().await;
    assert!(queued["content"].as_str().unwrap().contains("busy with another message"), "{queued}");
    assert_eq!(stack.agent.texts(), ["hang"]);
    let stopped = json_of(&ask(&stack.socket(), "POST", "/api/sessions/a/abort").await);
    assert_eq!(stopped["status"], "aborted");
    let (frames, _) = page.rest().await;
    assert_eq!(types(&frames).last(), Some(&"done"));
    let (frames, _) = other.rest().await;
    assert_eq!(frames.last().unwrap()["full_response"], "x");
    assert_eq!(json_of(&ask(&stack.socket(), "POST", "/api/sessions/a/abort").await)["status"], "no_active_response");
}

#[tokio::test]
async fn conversations_have_names_and_an_end() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "s").await;
    page.turn("say x").await;
    let body = json!({"name": " my\u{202e} tasks "}).to_string();
    let renamed = send(&stack.socket(), request("PUT", "/api/sessions/s").body(body.into()).unwrap()).await;
    assert_eq!(renamed.status(), 200);
    let sessions = json_of(&get(&stack.socket(), "/api/sessions").await);
    let session = &sessions["sessions"][0];
    assert_eq!((&session["session_key"], &session["name"]), (&json!("gw_s"), &json!("my\\u{202e} tasks")));
    assert_eq!((&session["agent_alias"], &session["channel_id"]), (&json!("default"), &Value::Null));
    page.turn("say y").await;
    assert_eq!(json_of(&ask(&stack.socket(), "DELETE", "/api/sessions/s").await)["deleted"], true);
    assert_eq!(json_of(&get(&stack.socket(), "/api/sessions").await)["sessions"], json!([]));
    // The next message begins another session with the agent.
    page.turn("say z").await;
    let prompts = stack.agent.prompts.lock().unwrap().clone();
    assert_eq!(prompts[0].0, prompts[1].0);
    assert_ne!(prompts[1].0, prompts[2].0);
}

#[tokio::test]
async fn what_is_no_message_starts_nothing() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "s").await;
    for frame in [json!({"type": "steer", "content": "say x"}), json!([]), json!({"type": "message", "content": 1})] {
        page.send(frame).await;
        assert_eq!(page.next().await["code"], "UNKNOWN_MESSAGE_TYPE");
    }
    page.say("  ").await;
    assert_eq!(page.next().await["message"], "the message is empty");
    assert!(stack.post.received.lock().unwrap().is_empty());
    // The control: the same chat takes a message.
    assert_eq!(page.turn("say x").await.0.last().unwrap()["full_response"], "x");
    // And the terminal goes on beside it, in a conversation of its own.
    assert_eq!(reply(&stack.say("say y").await), ("y", "end_turn"));
}

#[tokio::test]
async fn a_drain_sends_the_page_to_the_next_process() {
    let stack = Stack::with_dashboard(600).await;
    let mut page = Page::open(stack.socket(), "s").await;
    stack.cx.shutdown.draining().cancel();
    assert_eq!(page.maybe_next().await, None);
}
