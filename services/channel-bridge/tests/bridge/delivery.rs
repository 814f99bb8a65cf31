//! At-least-once delivery, restarts and retries: one answer, one prompt.

use assistant_proto::event::ChannelReplied;
use channel_bridge::channels::terminal::{Message, SendError, Updates};
use channel_bridge::envelope::Update;
use channel_bridge::inbox::InboxError;
use channel_bridge::service::ChannelBridge;
use futures::FutureExt;

use crate::stack::{Stack, next, reply, rest, until};

async fn keyed(bridge: &ChannelBridge, text: &str, key: &str) -> Result<Updates, SendError> {
    let message = Message { tier: "tasks".into(), text: text.into(), key: key.into(), ..Message::default() };
    bridge.terminal().send(message).await
}

#[tokio::test]
async fn a_redelivered_message_is_prompted_once() {
    let stack = Stack::start().await;
    let mut turn = stack.open("hang", "c").await;
    until("it is prompted", || stack.agent.texts().len() == 1).await;
    // While it runs: the second delivery joins the first.
    let received = stack.post.received.lock().unwrap()[0].clone();
    let inbox = stack.bridge.inbox();
    let joined = inbox.handle(received.clone());
    let stop = async { rest(&mut stack.open("/stop", "c").await).await };
    let (joined, _) = tokio::join!(joined, stop);
    assert_eq!(joined, Ok(()));
    rest(&mut turn).await;
    // Afterwards, in the same process and in the next.
    assert_eq!(stack.bridge.inbox().handle(received.clone()).await, Ok(()));
    let (bridge, _cx, post) = stack.reborn().await;
    assert_eq!(bridge.inbox().handle(received).await, Ok(()));
    assert_eq!(stack.agent.texts(), ["hang"]);
    // It was sent before, so it is not committed again.
    assert!(post.replied.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_reply_that_was_not_sent_is_committed_again_without_a_prompt() {
    let stack = Stack::start().await;
    // A bridge whose outbox is not consumed: the reply is committed and stays unsent.
    let (first, _cx, _post) = stack.reborn().await;
    let mut updates = keyed(&first, "say x", "k").await.unwrap();
    assert!(matches!(updates.next().await, Some(Ok(Update::Accepted { .. }))));
    let received = _post.received.lock().unwrap()[0].clone();
    assert_eq!(first.inbox().handle(received.clone()).await, Ok(()));
    let turn = received.turn.clone();
    let (second, _cx, post) = stack.reborn().await;
    assert_eq!(second.inbox().handle(received).await, Ok(()));
    let replied = post.replied.lock().unwrap()[0].clone();
    assert_eq!(replied.text, "x");
    // Sent twice over, it reaches a watcher once, with the stop reason of the first process.
    let mut watching = keyed(&second, "say x", "k").await.unwrap();
    second.outbox().deliver(replied.clone()).await.unwrap();
    second.outbox().deliver(replied).await.unwrap();
    assert_eq!(reply(&rest(&mut watching).await), ("x", "end_turn"));
    // The first process may have died before its end of the turn got through: it is said again.
    assert_eq!(post.ends(), [(turn, 1, "end_turn".to_owned())]);
    assert_eq!(post.notices.lock().unwrap().len(), 2);
    assert_eq!(stack.agent.texts(), ["say x"]);
}

#[tokio::test]
async fn a_crash_before_the_prompt_still_leads_to_an_answer() {
    let stack = Stack::start().await;
    let (first, _cx, post) = stack.reborn().await;
    let _client = keyed(&first, "say x", "k").await.unwrap();
    let received = post.received.lock().unwrap()[0].clone();
    let (second, _cx, post) = stack.reborn().await;
    assert_eq!(second.inbox().handle(received.clone()).await, Ok(()));
    assert_eq!(post.replied.lock().unwrap()[0].text, "x");
    assert_eq!(post.replied.lock().unwrap()[0].traceparent, received.traceparent);
    assert_eq!(stack.agent.texts(), ["say x"]);
}

#[tokio::test]
async fn a_crash_in_the_middle_is_told_to_the_agent_and_a_second_one_ends_it() {
    let stack = Stack::start().await;
    let mut turn = stack.open("hang", "c").await;
    assert!(matches!(next(&mut turn).await, Update::Accepted { .. }));
    assert_eq!(next(&mut turn).await, Update::Text("hanging".into()));
    let received = stack.post.received.lock().unwrap()[0].clone();
    // The deadline of a shutdown drops what runs, as a crash would.
    stack.cx.shutdown.deadline().cancel();
    stack.cx.tasks.finished().await;
    let (second, cx, interrupted) = stack.reborn().await;
    let inbox = second.inbox();
    let handling = inbox.handle(received.clone());
    let crash = async {
        until("it is prompted again", || stack.agent.texts().len() == 2).await;
        cx.shutdown.deadline().cancel();
    };
    let (handled, ()) = tokio::join!(handling, crash);
    assert_eq!(handled, Err(InboxError::Unfinished));
    assert!(stack.post.ends().is_empty() && interrupted.ends().is_empty());
    let (third, _cx, post) = stack.reborn().await;
    let ended = (received.turn.clone(), 3, "failed".to_owned());
    assert_eq!(third.inbox().handle(received).await, Ok(()));
    // It was announced twice and never ended: the process that gives it up ends it.
    assert_eq!(post.ends(), [ended]);
    let texts = stack.agent.texts();
    assert_eq!((texts.len(), texts[0].as_str()), (2, "hang"));
    assert!(texts[1].starts_with("hang\n\n[Note of the system: this message is delivered a second time"));
    let replied = post.replied.lock().unwrap()[0].text.clone();
    assert!(replied.contains("interrupted in the middle of 2 attempts"), "{replied}");
    // The client of the first process heard nothing more, and nothing that looks like an end.
    assert!(turn.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_draining_bridge_begins_no_turn() {
    let stack = Stack::start().await;
    let (first, _cx, post) = stack.reborn().await;
    let _client = keyed(&first, "say x", "k").await.unwrap();
    let received = post.received.lock().unwrap()[0].clone();
    let (second, cx, _post) = stack.reborn().await;
    cx.shutdown.draining().cancel();
    assert_eq!(second.inbox().handle(received).await, Err(InboxError::Draining));
    assert!(stack.agent.texts().is_empty());
}

#[tokio::test]
async fn a_key_is_accepted_once() {
    let stack = Stack::start().await;
    let one = rest(&mut keyed(&stack.bridge, "say x", "k").await.unwrap()).await;
    let two = rest(&mut keyed(&stack.bridge, "say x", "k").await.unwrap()).await;
    assert_eq!(one.first(), two.first());
    assert_eq!(one.last(), two.last());
    assert!(matches!(keyed(&stack.bridge, "say y", "k").await, Err(SendError::KeyReused)));
    let other = rest(&mut keyed(&stack.bridge, "say y", "l").await.unwrap()).await;
    assert_ne!(one.first(), other.first());
    assert_eq!(stack.agent.texts(), ["say x", "say y"]);
    // While it runs, a retry watches the same turn.
    let mut first = keyed(&stack.bridge, "hang", "m").await.unwrap();
    until("it is prompted", || stack.agent.texts().len() == 3).await;
    let mut second = keyed(&stack.bridge, "hang", "m").await.unwrap();
    rest(&mut stack.open("/stop", "").await).await;
    let (first, second) = (rest(&mut first).await, rest(&mut second).await);
    assert_eq!((first.first(), first.last()), (second.first(), second.last()));
    assert_eq!(stack.agent.texts().len(), 3);
    // The next process remembers.
    let (bridge, _cx, _post) = stack.reborn().await;
    assert_eq!(rest(&mut keyed(&bridge, "say x", "k").await.unwrap()).await.last(), one.last());
}

#[tokio::test]
async fn a_damaged_record_fails_the_turn_without_a_prompt() {
    let stack = Stack::start().await;
    let (first, _cx, post) = stack.reborn().await;
    let _client = keyed(&first, "say x", "k").await.unwrap();
    let received = post.received.lock().unwrap()[0].clone();
    stack.damage(&received.turn);
    let (second, _cx, post) = stack.reborn().await;
    let ended = (received.turn.clone(), 0, "failed".to_owned());
    assert_eq!(second.inbox().handle(received).await, Ok(()));
    assert_eq!(post.ends(), [ended]);
    assert!(post.replied.lock().unwrap()[0].text.contains("is damaged"));
    assert!(stack.agent.texts().is_empty());
}

#[tokio::test]
async fn a_second_attempt_that_is_stopped_before_it_begins_still_ends_the_turn() {
    let stack = Stack::start().await;
    let (first, cx, post) = stack.reborn().await;
    let _client = keyed(&first, "hang", "k").await.unwrap();
    let received = post.received.lock().unwrap()[0].clone();
    let inbox = first.inbox();
    let crash = async {
        until("it is prompted", || stack.agent.texts().len() == 1).await;
        cx.shutdown.deadline().cancel();
    };
    let (handled, ()) = tokio::join!(inbox.handle(received.clone()), crash);
    assert_eq!(handled, Err(InboxError::Unfinished));
    let (second, _cx, post) = stack.reborn().await;
    let _client = keyed(&second, "hang", "k").await.unwrap();
    let stop = Message { tier: "tasks".into(), text: "/stop".into(), ..Message::default() };
    rest(&mut second.terminal().send(stop).await.unwrap()).await;
    assert_eq!(second.inbox().handle(received.clone()).await, Ok(()));
    assert!(post.replied.lock().unwrap()[0].text.contains("stopped before it began"));
    assert_eq!(post.ends(), [(received.turn, 2, "failed".to_owned())]);
    assert_eq!(stack.agent.texts(), ["hang"]);
}

#[tokio::test]
async fn an_outcome_that_could_not_be_recorded_is_still_there_for_a_retry() {
    let stack = Stack::start().await;
    let (bridge, _cx, post) = stack.reborn().await;
    let mut first = keyed(&bridge, "say x", "k").await.unwrap();
    let received = post.received.lock().unwrap()[0].clone();
    // What the outbox sees when the inbox could commit the reply and not keep the outcome.
    let replied = ChannelReplied {
        tier: received.tier,
        turn: received.turn,
        channel: received.channel,
        conversation: received.conversation,
        text: "x".to_owned(),
        traceparent: received.traceparent,
    };
    bridge.outbox().deliver(replied).await.unwrap();
    assert_eq!(reply(&rest(&mut first).await).0, "x");
    let mut again = keyed(&bridge, "say x", "k").await.unwrap();
    assert_eq!(reply(&rest(&mut again).await).0, "x");
}
