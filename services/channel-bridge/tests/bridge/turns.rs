//! Turns: what a person sees of them, and what must hold before an agent is prompted.

use std::sync::atomic::Ordering;

use channel_bridge::acp::message::ToolStatus;
use channel_bridge::channels::terminal::{Message, SendError};
use channel_bridge::envelope::Update;
use channel_bridge::post::Notice;

use crate::stack::{Stack, failure, next, reply, rest, until};

#[tokio::test]
async fn a_message_is_answered_as_it_is_said() {
    let stack = Stack::start().await;
    let updates = stack.say("say one two").await;
    let Update::Accepted { turn, trace_id } = &updates[0] else { panic!("{updates:?}") };
    assert_eq!(trace_id.len(), 32);
    assert_eq!(updates[1..3], [Update::Text("one ".into()), Update::Text("two".into())]);
    assert_eq!(
        updates[3],
        Update::Ended {
            turn: turn.to_string(),
            trace_id: trace_id.clone(),
            reply: "one two".into(),
            stop_reason: "end_turn".into()
        }
    );
    assert_eq!(updates.len(), 4);
    // Announced, then prompted.
    let ended = format!("ended {turn}");
    assert_eq!(*stack.journal.lock().unwrap(), ["announced c", "prompted say one two", &ended]);
    let received = stack.post.received.lock().unwrap()[0].clone();
    assert_eq!((&received.turn, received.traceparent.trace_id()), (turn, trace_id.clone()));
    assert_eq!(stack.post.replied.lock().unwrap()[0].text, "one two");
    until("a turn ends and its reply is sent", || stack.post.notices.lock().unwrap().len() == 2).await;
    match &stack.post.notices.lock().unwrap()[..] {
        [Notice::TurnEnded(ended, 1), Notice::ChannelSent(sent)] => {
            assert_eq!((ended.outcome.as_str(), &ended.turn), ("end_turn", turn));
            assert_eq!((sent.bytes, &sent.trace_id), (7, trace_id));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn no_prompt_without_every_acknowledgement() {
    let stack = Stack::start().await;
    stack.post.acknowledging.lock().unwrap().remove("egress-auditor");
    let updates = stack.say("say x").await;
    let (reason, fix) = failure(&updates);
    assert_eq!(reason, "egress-auditor did not acknowledge the turn, so the agent was not prompted");
    assert!(fix.contains("egress-auditor"));
    assert!(stack.agent.texts().is_empty());
    // Whoever heard of its start hears of its end.
    assert!(matches!(&stack.post.notices.lock().unwrap()[0], Notice::TurnEnded(ended, 1) if ended.outcome == "failed"));
    // The control: with both, the same message arrives.
    stack.post.acknowledging.lock().unwrap().insert("egress-auditor".into());
    assert_eq!(reply(&stack.say("say x").await), ("x", "end_turn"));
}

#[tokio::test]
async fn conversations_keep_their_sessions() {
    let stack = Stack::start().await;
    stack.say("say a").await;
    stack.say("say b").await;
    rest(&mut stack.open("say c", "other").await).await;
    stack.agent.sessions.lock().unwrap().clear();
    let updates = stack.say("say d").await;
    assert!(matches!(&updates[1], Update::Text(note) if note.contains("starts afresh")), "{updates:?}");
    stack.say("say e").await;
    let prompts = stack.agent.prompts.lock().unwrap().clone();
    let session = |text: &str| prompts.iter().find(|(_, prompt)| prompt == text).unwrap().0.clone();
    assert_eq!(session("say a"), session("say b"));
    assert_ne!(session("say a"), session("say c"));
    assert_ne!(session("say a"), session("say d"));
    assert_eq!(session("say d"), session("say e"));
}

#[tokio::test]
async fn what_the_agent_says_is_made_harmless() {
    let stack = Stack::start().await;
    let updates = stack.say("say a\u{1b}]52;c;\u{202e}b").await;
    assert_eq!(reply(&updates).0, "a\\u{1b}]52;c;\\u{202e}b");
    assert!(updates.contains(&Update::Text("a\\u{1b}]52;c;\\u{202e}b".into())));
    let updates = stack.say("fail").await;
    let (reason, _) = failure(&updates);
    assert!(reason.contains("Agent turn failed: \\u{1b}[31mmodel"), "{reason}");
}

#[tokio::test]
async fn an_agent_that_breaks_off_fails_the_turn_and_not_the_next() {
    let stack = Stack::start().await;
    let updates = stack.say("drop").await;
    assert!(updates.contains(&Update::Text("half".into())));
    assert_eq!(failure(&updates).0, "the connection to the agent broke in the middle of the turn");
    let updates = stack.say("garbage").await;
    assert_eq!(failure(&updates).0, "the agent sent something that is not ACP: it is not JSON");
    assert_eq!(reply(&stack.say("say x").await), ("x", "end_turn"));
    // Broken off or not, each was prompted once.
    assert_eq!(stack.agent.texts(), ["drop", "garbage", "say x"]);
}

#[tokio::test]
async fn one_turn_at_a_time_and_stop_ends_it() {
    let stack = Stack::start().await;
    let mut first = stack.open("hang", "a").await;
    assert!(matches!(next(&mut first).await, Update::Accepted { .. }));
    assert_eq!(next(&mut first).await, Update::Text("hanging".into()));
    let mut second = stack.open("say x", "b").await;
    assert!(matches!(next(&mut second).await, Update::Accepted { .. }));
    // A stop of another conversation that has a turn waiting ends that one, and only that one.
    let updates = rest(&mut stack.open("/stop", "nobody").await).await;
    assert_eq!(failure(&updates).0, "nothing is running in this conversation");
    assert_eq!(stack.agent.texts(), ["hang"]);
    let updates = rest(&mut stack.open("/stop", "a").await).await;
    assert_eq!(reply(&updates), ("Stopping.", "stop_requested"));
    assert_eq!(reply(&rest(&mut first).await), ("hanging [cancelled]", "cancelled"));
    assert_eq!(reply(&rest(&mut second).await), ("x", "end_turn"));
    assert_eq!(stack.agent.texts(), ["hang", "say x"]);
}

#[tokio::test]
async fn a_waiting_turn_can_be_stopped() {
    let stack = Stack::start().await;
    let mut first = stack.open("hang", "a").await;
    until("the first is prompted", || stack.agent.texts().len() == 1).await;
    let mut second = stack.open("say x", "b").await;
    rest(&mut stack.open("/stop", "b").await).await;
    rest(&mut stack.open("/stop", "a").await).await;
    rest(&mut first).await;
    assert_eq!(failure(&rest(&mut second).await).0, "it was stopped before it began");
    assert_eq!(stack.agent.texts(), ["hang"]);
    // Nobody heard of the start of the second.
    assert_eq!(stack.post.ends().iter().map(|(_, _, outcome)| outcome.as_str()).collect::<Vec<_>>(), ["cancelled"]);
}

#[tokio::test]
async fn nothing_is_accepted_that_cannot_be_kept_or_answered() {
    let stack = Stack::start().await;
    let terminal = stack.bridge.terminal();
    let message = |tier: &str, text: &str| Message { tier: tier.into(), text: text.into(), ..Message::default() };
    assert!(matches!(terminal.send(message("none", "say x")).await, Err(SendError::Route(_))));
    assert!(matches!(terminal.send(message("tasks", " ")).await, Err(SendError::Route(_))));
    stack.post.away.store(true, Ordering::SeqCst);
    assert!(matches!(terminal.send(message("tasks", "say x")).await, Err(SendError::NoBus)));
    stack.post.away.store(false, Ordering::SeqCst);
    stack.cx.shutdown.draining().cancel();
    assert!(matches!(terminal.send(message("tasks", "say x")).await, Err(SendError::Draining)));
    let (bridge, _cx, post) = stack.reborn().await;
    drop(stack.agent);
    let refused = bridge.terminal().send(message("tasks", "say x")).await;
    assert!(matches!(refused, Err(SendError::NoAgent { .. })), "{refused:?}");
    assert!(post.received.lock().unwrap().is_empty() && stack.post.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_question_with_choices_is_shown_and_withdrawn() {
    let stack = Stack::start().await;
    let updates = stack.say("choose which colour?").await;
    let (text, _) = reply(&updates);
    assert!(text.starts_with("The agent asks: which colour?\n  - red\n  - blue\n"), "{text}");
    assert!(text.ends_with("cancelled"));
    assert!(!updates.iter().any(|update| matches!(update, Update::ToolCall { status: ToolStatus::Failed, .. })));
}

#[tokio::test]
async fn an_agent_that_nags_is_answered_and_no_longer_shown() {
    let stack = Stack::start().await;
    let updates = stack.say("nag 50").await;
    assert_eq!(reply(&updates).0, "50");
    let notes = updates.iter().filter(|update| matches!(update, Update::Text(_))).count();
    assert_eq!(notes, 9, "{updates:?}");
    assert!(matches!(&updates[9], Update::Text(note) if note.contains("asked too often")), "{updates:?}");
}

#[tokio::test]
async fn whoever_waits_is_told_so() {
    let stack = Stack::start().await;
    let mut first = stack.open("hang", "a").await;
    until("it is prompted", || stack.agent.texts().len() == 1).await;
    let mut second = stack.open("say x", "b").await;
    assert!(matches!(next(&mut second).await, Update::Accepted { .. }));
    assert_eq!(next(&mut second).await, Update::Queued);
    rest(&mut stack.open("/stop", "a").await).await;
    assert!(!rest(&mut first).await.contains(&Update::Queued));
    assert_eq!(reply(&rest(&mut second).await).0, "x");
}

#[tokio::test]
async fn what_the_agent_refuses_itself_is_told_once_with_the_field_that_allows_it() {
    let stack = Stack::start().await;
    let statuses = |updates: &[Update]| -> Vec<ToolStatus> {
        let status = |update: &Update| match update {
            Update::ToolCall { status, .. } => Some(*status),
            _ => None,
        };
        updates.iter().filter_map(status).collect()
    };
    let updates = stack.say("refuse Error: Command not allowed by security policy: rm -rf /").await;
    let note = "(The agent's own policy refused a command; `commands` says which may run, each written plainly \
                (tiers.yaml, tier tasks).)\n";
    assert_eq!(reply(&updates).0, format!("{note}done"));
    let told = updates.iter().filter(|update| matches!(update, Update::Text(text) if text == note)).count();
    assert_eq!(told, 1, "{updates:?}");
    let expected = [ToolStatus::Pending, ToolStatus::Failed, ToolStatus::Pending, ToolStatus::Failed];
    assert_eq!(statuses(&updates), expected);
    // The control: what merely fails, or prints.
    for output in ["Error: no such file", "it says Error: Command not allowed by security policy: rm"] {
        let updates = stack.say(&format!("refuse {output}")).await;
        assert_eq!(reply(&updates).0, "done", "{output}");
        assert!(!statuses(&updates).contains(&ToolStatus::Failed), "{output}");
    }
}
