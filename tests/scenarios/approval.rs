//! ZeroClaw's permission requests appear in the conversation; the right code from the same conversation decides.

use std::sync::Mutex;

use assistant_tests::harness::{AGENT, TIER, agent, command};

const WRITE: &str = r#"!tool file_write {"path":"approved.txt","content":"yes"}"#;

async fn attempt(answer: &str) -> (agent::Turn, Vec<String>) {
    let asked = Mutex::new(Vec::new());
    let conversation = format!("approval-{}", uuid::Uuid::new_v4().simple());
    let turn = agent::say_deciding(TIER, &conversation, WRITE, |approval| {
        asked.lock().unwrap().push(approval.action.clone());
        format!("{answer} {}", approval.code)
    })
    .await
    .unwrap();
    (turn, asked.into_inner().unwrap())
}

async fn written() -> bool {
    let found = command::inside(AGENT, &["find", "/zeroclaw-data", "-name", "approved.txt"]).await.unwrap();
    found.out.contains("approved.txt")
}

#[tokio::test]
async fn no_is_no_and_yes_is_yes() {
    assert!(!written().await, "left over from an earlier run");
    let (turn, asked) = attempt("NO").await;
    assert_eq!(asked.len(), 1, "{turn:?}");
    assert!(!written().await, "refused and still written: {turn:?}");
    let (turn, asked) = attempt("YES").await;
    assert_eq!(asked.len(), 1, "{turn:?}");
    assert!(written().await, "approved and not written: {turn:?}");
    command::inside(AGENT, &["find", "/zeroclaw-data", "-name", "approved.txt", "-delete"])
        .await
        .unwrap()
        .ok()
        .unwrap();
}
