//! Mistakes of a person: each is answered by one clear sentence that says what, where and what to do, and nothing of the
//! running stack changes.

use assistant_tests::harness::command::{Output, run};
use assistant_tests::harness::root;
use serde_json::{Value, json};

const SUPERVISOR: &str = "/usr/local/lib/assistant/bin/tier-supervisor";

/// Checks the drill's tiers.yaml with one edit, and settings with another.
async fn check(edit: impl Fn(String) -> Vec<u8>, settings_edit: impl Fn(&mut Value)) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let drill = root().join("deploy/drill/tiers.yaml");
    let tiers = dir.path().join("tiers.yaml");
    let text = std::fs::read_to_string(drill).unwrap();
    let mcp = root().join("deploy/mcp/tasks").canonicalize().unwrap();
    std::fs::write(&tiers, edit(text.replace("../mcp/tasks", mcp.to_str().unwrap()))).unwrap();
    let mut settings: Value =
        serde_json::from_str(&std::fs::read_to_string("/etc/assistant/supervisor.json").unwrap()).unwrap();
    settings["tiers_file"] = json!(tiers);
    settings_edit(&mut settings);
    let file = dir.path().join("supervisor.json");
    std::fs::write(&file, settings.to_string()).unwrap();
    run(SUPERVISOR, &["check-config", "--config", file.to_str().unwrap()]).await.unwrap()
}

fn refused(output: &Output, parts: &[&str]) {
    assert_eq!(output.status, 2, "{}", output.all());
    let said = output.all();
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
}

fn replaced(from: &str, to: &str) -> impl Fn(String) -> Vec<u8> {
    move |text| {
        assert!(text.contains(from), "the drill's tiers.yaml has no {from:?}");
        text.replacen(from, to, 1).into_bytes()
    }
}

#[tokio::test]
async fn the_unedited_file_is_accepted() {
    let output = check(String::into_bytes, |_| {}).await;
    assert_eq!(output.status, 0, "control: {}", output.all());
}

#[tokio::test]
async fn an_unknown_field_with_line_and_suggestion() {
    refused(&check(replaced("    identity:", "    identiti:"), |_| {}).await, &["tiers.yaml:", "identiti", "identity"]);
}

#[tokio::test]
async fn a_port_used_twice() {
    let twice = |text: String| {
        let tier = text.split_once("tiers:\n").unwrap().1.replace("name: tasks", "name: second");
        format!("{text}\n{tier}").into_bytes()
    };
    refused(&check(twice, |_| {}).await, &["tiers.yaml:", "3001", "tasks", "choose another"]);
}

#[tokio::test]
async fn a_missing_secret_of_a_drill_says_what_makes_it() {
    let empty = tempfile::tempdir().unwrap();
    let state = empty.path().to_path_buf();
    let output = check(String::into_bytes, |settings| settings["state_dir"] = json!(state)).await;
    refused(&output, &["marvin_api_key", "deploy/up.sh --drill"]);
}

#[tokio::test]
async fn a_host_that_the_floor_does_not_have() {
    let wider = replaced("hosts: [serv.amazingmarvin.com]", "hosts: [api.example.com]");
    refused(&check(wider, |_| {}).await, &["api.example.com", "allowlist.txt"]);
}

#[tokio::test]
async fn several_problems_at_once() {
    let edit = |text: String| {
        text.replace("    port: 3001", "    port: 99999").replace("    mcp: true", "    mpc: true").into_bytes()
    };
    refused(&check(edit, |_| {}).await, &["\"port\"", "1024", "mpc"]);
}

#[tokio::test]
async fn what_is_not_yaml_not_text_or_empty() {
    refused(&check(|_| b"tiers: [".to_vec(), |_| {}).await, &["tiers.yaml"]);
    refused(&check(|_| vec![0xff, 0xfe, 0x00], |_| {}).await, &["tiers.yaml", "UTF-8"]);
    refused(&check(|_| Vec::new(), |_| {}).await, &["tiers.yaml"]);
    let deep = |_| "[".repeat(100_000).into_bytes();
    refused(&check(deep, |_| {}).await, &["tiers.yaml"]);
}

#[tokio::test]
async fn an_unknown_tier_lists_those_there_are() {
    let script = root().join("deploy/chat.sh");
    let output = run(script.to_str().unwrap(), &["nosuch", "--once", "hello"]).await.unwrap();
    assert_ne!(output.status, 0);
    assert!(output.all().contains("tasks"), "{}", output.all());
}
