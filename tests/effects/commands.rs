//! `commands`, `block_high_risk`, `workspace_unrestricted`: what ZeroClaw lets the shell and its file tools do.

use serde_json::{Value, json};
use tier_supervisor::config::DANGEROUS_COMMANDS;

use crate::agent::Agent;
use crate::stack::Stack;

const NOT_ALLOWED: &str = "Error: Command not allowed by security policy:";
const BLOCKED: &str = "Error: Path blocked by security policy:";
/// Stands in a file, and in no command.
const WORD: &str = "what-only-the-file-says";

/// A tier called `t` with these fields.
async fn agent(fields: &str) -> Option<Agent> {
    let agent = Agent::start(&Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]")), "t").await?;
    agent.leave("in.txt", WORD);
    Some(agent)
}

#[tokio::test]
async fn only_commands_that_are_named_run() {
    let Some(agent) = agent(", commands: [cat, echo], auto_approve: [shell]").await else { return };
    let refused =
        ["head in.txt", "echo a && head in.txt", "echo a | head", "echo $(head in.txt)", "/usr/bin/head in.txt"];
    let mut commands = vec!["cat in.txt", "cat missing.txt && echo b"];
    commands.extend(refused);
    let called = agent.shell(&commands, true).await;
    assert!(called.iter().all(|call| !call.asked), "the shell is not asked about: {called:#?}");
    assert!(called[0].said.contains(WORD), "control: a named one runs: {called:#?}");
    assert!(called[1].said.contains("No such file"), "and answers for itself: {called:#?}");
    for (command, call) in refused.iter().zip(&called[2..]) {
        assert!(call.said.starts_with(NOT_ALLOWED), "{command}: {call:?}");
    }
}

#[tokio::test]
async fn without_a_command_there_is_no_shell() {
    // The second names only what `block_high_risk` takes away again.
    for fields in [", auto_approve: [shell, file_read]", ", commands: [rm, curl], auto_approve: [shell, file_read]"] {
        let Some(agent) = agent(fields).await else { return };
        let script = "!force shell {\"command\":\"cat in.txt\"}\n!tool file_read {\"path\":\"in.txt\"}";
        let turn = agent.turn(script, true).await;
        assert!(!turn.offered.contains(&"shell".to_owned()), "{:?}", turn.offered);
        assert_eq!(turn.results.len(), 2, "{turn:#?}");
        assert!(!turn.results[0].contains(WORD), "a call of it all the same: {turn:#?}");
        assert!(turn.results[1].contains(WORD), "control: the file is there: {turn:#?}");
    }
}

#[tokio::test]
async fn dangerous_commands_are_blocked_or_not() {
    for (fields, runs) in [("", false), (", block_high_risk: true", false), (", block_high_risk: false", true)] {
        let Some(agent) = agent(&format!(", commands: [cat, rm, chmod]{fields}")).await else { return };
        let called = agent.shell(&["chmod 600 in.txt", "rm in.txt", "cat in.txt"], true).await;
        assert!(called.iter().all(|call| call.asked), "{fields}: {called:#?}");
        assert_eq!(agent.workspace().join("in.txt").exists(), !runs, "{fields}: {called:#?}");
        for call in &called[..2] {
            assert_eq!(call.said.starts_with(NOT_ALLOWED), !runs, "{fields}: {call:?}");
        }
        assert_eq!(called[2].said.contains(WORD), !runs, "control: what is not dangerous runs: {called:#?}");
    }
}

/// The list in the renderer is one of this ZeroClaw's own. Asked with its wildcard, which no tier can write, and without a
/// program that could run.
#[tokio::test]
async fn what_is_held_for_dangerous_is_what_zeroclaw_holds_for_it() {
    let stack = Stack::with_tiers("tiers: [{name: t, port: 3001, commands: [ls], auto_approve: [shell]}]");
    let everything = |config: String| {
        let changed = config.replace("allowed_commands = [\"ls\"]", "allowed_commands = [\"*\"]");
        assert_ne!(changed, config);
        changed
    };
    let Some(agent) = Agent::start_otherwise(&stack, "t", everything, "/nowhere").await else { return };
    let mut commands: Vec<&str> = DANGEROUS_COMMANDS.to_vec();
    commands.push("ls");
    let called = agent.shell(&commands, false).await;
    let (ls, dangerous) = called.split_last().unwrap();
    for (command, call) in DANGEROUS_COMMANDS.iter().zip(dangerous) {
        let blocked = call.said.starts_with("Error: Command blocked: high-risk command is disallowed by policy");
        assert!(blocked, "{command}: {call:?}");
    }
    assert!(!ls.said.contains("blocked"), "control: another gets as far as there is a program: {ls:?}");
}

#[tokio::test]
async fn files_outside_the_workspace_are_open_or_not() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("out.txt");
    std::fs::write(&path, WORD).unwrap();
    let path = path.display();
    for (fields, opens) in [("", false), (", workspace_unrestricted: true", true)] {
        let fields = format!(", commands: [cat], auto_approve: [shell, file_read, file_write]{fields}");
        let Some(agent) = agent(&fields).await else { return };
        let made = outside.path().join(format!("made-{opens}.txt"));
        let shell = |path: &str| ("shell", json!({"command": format!("cat {path}")}));
        let read = |path: &str| ("file_read", json!({"path": path}));
        let calls: Vec<(&str, Value)> = vec![
            shell("in.txt"),
            read("in.txt"),
            shell(&path.to_string()),
            read(&path.to_string()),
            // Of the paths that are closed by name, two that every machine has.
            shell("/etc/passwd"),
            read("/proc/self/status"),
            ("file_write", json!({"path": made.display().to_string(), "content": "x"})),
        ];
        let called = agent.calls_of(&calls, false).await;
        assert!(called.iter().all(|call| !call.asked), "{called:#?}");
        assert!(called[..2].iter().all(|call| call.said.contains(WORD)), "control: the workspace is open: {called:#?}");
        for (call, (name, arguments)) in called.iter().zip(&calls).skip(2) {
            assert_eq!(call.said.starts_with(BLOCKED), !opens, "{name} {arguments}: {call:?}");
        }
        assert!(called[2..4].iter().all(|call| call.said.contains(WORD) == opens), "{called:#?}");
        assert_eq!(made.exists(), opens, "{called:#?}");
    }
}
