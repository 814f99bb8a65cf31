//! Approvals as they look from a conversation.

use assistant_proto::event::ApprovalOutcome;
use channel_bridge::envelope::Update;
use channel_bridge::post::Notice;

use crate::stack::{Stack, asked, decided, failure, next, reply, rest, until};

async fn outcomes(stack: &Stack, expected: usize) -> Vec<ApprovalOutcome> {
    let decisions = || {
        let notices = stack.post.notices.lock().unwrap();
        let outcome = |notice: &Notice| match notice {
            Notice::ApprovalDecided(decided) => Some(decided.outcome),
            _ => None,
        };
        notices.iter().filter_map(outcome).collect::<Vec<_>>()
    };
    until("every question is decided", || decisions().len() >= expected).await;
    decisions()
}

#[tokio::test]
async fn yes_is_once_and_no_is_no() {
    let stack = Stack::start().await;
    for (word, option, outcome) in
        [("yes", "allow-once", ApprovalOutcome::Approved), ("No", "reject-once", ApprovalOutcome::Denied)]
    {
        let mut turn = stack.open("ask ls", "c").await;
        let (action, code) = asked(&mut turn).await;
        assert_eq!(action, "Approve shell?\ncommand: ls");
        let code = code.dangerous_reveal();
        let hint = rest(&mut stack.open(word, "c").await).await;
        assert_eq!(failure(&hint).0, "an answer needs the code that was shown");
        let answer = rest(&mut stack.open(&format!("{word} {}", code.to_lowercase()), "c").await).await;
        assert_eq!(decided(&answer), [outcome]);
        assert_eq!(reply(&answer).1, "approval_answered");
        let updates = rest(&mut turn).await;
        assert_eq!(decided(&updates), [outcome]);
        assert_eq!(reply(&updates).0, option);
        let replay = rest(&mut stack.open(&format!("YES {code}"), "c").await).await;
        assert!(failure(&replay).0.starts_with("that question was answered before"), "{replay:?}");
    }
    assert_eq!(outcomes(&stack, 2).await, [ApprovalOutcome::Approved, ApprovalOutcome::Denied]);
    // Answers are not messages: the agent saw none of them.
    assert_eq!(stack.agent.texts(), ["ask ls", "ask ls"]);
}

#[tokio::test]
async fn the_code_is_nowhere_but_in_the_conversation() {
    let stack = Stack::start().await;
    let mut turn = stack.open("ask ls", "c").await;
    let (_, code) = asked(&mut turn).await;
    let code = code.dangerous_reveal();
    rest(&mut stack.open(&format!("NO {code}"), "c").await).await;
    rest(&mut turn).await;
    let notices = format!("{:?}", stack.post.notices.lock().unwrap());
    assert!(notices.contains("Approve shell?") && !notices.contains(&code), "{notices}");
    let committed = format!("{:?} {:?}", stack.post.received.lock().unwrap(), stack.post.replied.lock().unwrap());
    assert!(committed.contains("ask ls") && !committed.contains(&code), "{committed}");
}

#[tokio::test]
async fn another_conversation_cannot_answer() {
    let stack = Stack::start().await;
    let mut turn = stack.open("ask ls", "c").await;
    let (_, code) = asked(&mut turn).await;
    let code = code.dangerous_reveal();
    for _ in 0..6 {
        let updates = rest(&mut stack.open(&format!("YES {code}"), "d").await).await;
        assert_eq!(failure(&updates).0, "no open question of this conversation has that code");
    }
    // The control: here it counts.
    rest(&mut stack.open(&format!("YES {code}"), "c").await).await;
    assert_eq!(reply(&rest(&mut turn).await).0, "allow-once");
}

#[tokio::test]
async fn five_wrong_codes_are_a_no() {
    let stack = Stack::start().await;
    let mut turn = stack.open("ask ls", "c").await;
    let (_, code) = asked(&mut turn).await;
    let wrong = if code.dangerous_reveal() == "2222" { "3333" } else { "2222" };
    for left in ["after 4 more", "after 3 more", "after 2 more", "after 1 more", "counts as denied"] {
        let updates = rest(&mut stack.open(&format!("YES {wrong}"), "c").await).await;
        assert!(failure(&updates).1.contains(left), "{updates:?}");
    }
    let updates = rest(&mut turn).await;
    assert_eq!(
        (decided(&updates).as_slice(), reply(&updates).0),
        ([ApprovalOutcome::Denied].as_slice(), "reject-once")
    );
    assert_eq!(outcomes(&stack, 1).await, [ApprovalOutcome::Denied]);
}

#[tokio::test]
async fn silence_is_a_no() {
    let stack = Stack::with_approvals_open_for(1).await;
    let mut turn = stack.open("ask ls", "c").await;
    let (_, code) = asked(&mut turn).await;
    let updates = rest(&mut turn).await;
    assert_eq!(
        (decided(&updates).as_slice(), reply(&updates).0),
        ([ApprovalOutcome::TimedOut].as_slice(), "reject-once")
    );
    let late = rest(&mut stack.open(&format!("YES {}", code.dangerous_reveal()), "c").await).await;
    assert_eq!(failure(&late).0, "that question expired before the answer came and was rejected");
}

#[tokio::test]
async fn a_question_nobody_saw_is_undeliverable() {
    let stack = Stack::with_approvals_open_for(1).await;
    drop(stack.open("ask ls", "c").await);
    assert_eq!(outcomes(&stack, 1).await, [ApprovalOutcome::Undeliverable]);
    until("the reply is committed", || !stack.post.replied.lock().unwrap().is_empty()).await;
    assert_eq!(stack.post.replied.lock().unwrap()[0].text, "reject-once");
}

#[tokio::test]
async fn a_client_that_comes_back_can_still_answer() {
    let stack = Stack::start().await;
    drop(stack.open("ask ls", "c").await);
    let open = || stack.post.notices.lock().unwrap().iter().any(|n| matches!(n, Notice::ApprovalRequested(_)));
    until("the question is open", open).await;
    let mut back = stack.open("say x", "c").await;
    assert!(matches!(next(&mut back).await, Update::Accepted { .. }));
    let (_, code) = asked(&mut back).await;
    rest(&mut stack.open(&format!("YES {}", code.dangerous_reveal()), "c").await).await;
    let updates = rest(&mut back).await;
    assert_eq!((decided(&updates).as_slice(), reply(&updates).0), ([ApprovalOutcome::Approved].as_slice(), "x"));
    // The reply of the turn whose client left is committed all the same, and marked as heard by nobody.
    assert_eq!(stack.post.replied.lock().unwrap()[0].text, "allow-once");
    let sent = stack.post.notices.lock().unwrap().iter().find_map(|notice| match notice {
        Notice::ChannelSent(sent) => Some(sent.bytes),
        _ => None,
    });
    assert_eq!(sent, Some(0));
}

#[tokio::test]
async fn stopping_closes_the_question() {
    let stack = Stack::start().await;
    let mut turn = stack.open("ask ls", "c").await;
    let (_, code) = asked(&mut turn).await;
    rest(&mut stack.open("/stop", "c").await).await;
    let updates = rest(&mut turn).await;
    assert_eq!(
        (decided(&updates).as_slice(), reply(&updates).1),
        ([ApprovalOutcome::Withdrawn].as_slice(), "cancelled")
    );
    let late = rest(&mut stack.open(&format!("YES {}", code.dangerous_reveal()), "c").await).await;
    assert_eq!(failure(&late).0, "that question was withdrawn: the turn that asked it is over");
    assert_eq!(outcomes(&stack, 1).await, [ApprovalOutcome::Withdrawn]);
}

#[tokio::test]
async fn what_cannot_be_shown_in_full_is_rejected() {
    let stack = Stack::start().await;
    let updates = stack.say(&format!("ask {}", "x".repeat(9000))).await;
    assert_eq!(reply(&updates).0, "reject-once");
    assert!(!updates.iter().any(|update| matches!(update, Update::Ask { .. })));
}
