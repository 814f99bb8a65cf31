//! `auto_approve`, `mcp`, `tools`: which tools there are, and which run without a person.

use serde_json::{Value, json};

use crate::agent::{Agent, Called, TOOLS};
use crate::stack::Stack;

/// What every agent has, with arguments by which it does something.
pub(crate) fn samples() -> Vec<(&'static str, Value)> {
    vec![
        ("file_write", json!({"path": "made.txt", "content": "made"})),
        ("file_edit", json!({"path": "in.txt", "old_string": "old", "new_string": "new"})),
        ("file_read", json!({"path": "in.txt"})),
        ("glob_search", json!({"pattern": "in.*"})),
        ("content_search", json!({"pattern": "word"})),
        ("git_operations", json!({"operation": "status"})),
        // Without a person who is asked: nobody answers here.
        ("ask_user", json!({"question": "who?"})),
    ]
}

async fn agent(fields: &str) -> Option<Agent> {
    let agent = Agent::start(&Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]")), "t").await?;
    agent.leave("in.txt", "old word");
    Some(agent)
}

fn asked(calls: &[(&str, Value)], called: &[Called]) -> Vec<String> {
    let asked = calls.iter().zip(called).filter(|(_, call)| call.asked);
    asked.map(|((name, _), _)| (*name).to_owned()).collect()
}

#[tokio::test]
async fn what_is_not_named_asks_and_no_means_no() {
    let fields = ", identity: x, mcp: true, mcp_dir: mcp/tasks, commands: [cat], \
                  auto_approve: [glob_search, calculator, file_read, marvin__get_tasks]";
    let Some(agent) = agent(fields).await else { return };
    let calls = [
        ("file_read", json!({"path": "in.txt"})),
        ("calculator", json!({"function": "add", "values": [2, 40]})),
        ("glob_search", json!({"pattern": "in.*"})),
        ("get_tasks", json!({"day": "today"})),
        ("create_task", json!({"title": "new"})),
        ("file_write", json!({"path": "made.txt", "content": "x"})),
        ("shell", json!({"command": "cat in.txt"})),
    ];
    for yes in [false, true] {
        let called = agent.calls_of(&calls, yes).await;
        assert_eq!(asked(&calls, &called), ["create_task", "file_write", "shell"], "{called:#?}");
        for (call, words) in called.iter().zip(["old word", "42", "in.txt"]) {
            assert!(call.said.contains(words), "unasked, it runs: {call:?}");
        }
        // Scored by what was done, not by what was said of it.
        let created = agent.calls().iter().filter(|(name, _)| name == "create_task").count();
        assert_eq!(created, usize::from(yes), "{called:#?}");
        assert_eq!(agent.workspace().join("made.txt").exists(), yes, "{called:#?}");
        assert_eq!(called[6].said.contains("old word"), yes, "{called:#?}");
    }
    let listed =
        agent.calls().iter().filter(|(name, arguments)| name == "get_tasks" && arguments["day"] == "today").count();
    assert_eq!(listed, 2, "a tool of an MCP server that is named runs unasked: {:?}", agent.calls());
}

#[tokio::test]
async fn names_of_the_older_stack_are_those_of_today() {
    let shell = ("shell", json!({"command": "cat in.txt"}));
    let calls: Vec<_> = std::iter::once(shell).chain(samples().into_iter().take(5)).collect();
    let names: Vec<String> = calls.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (approved, expected) in [("bash, read, write, edit, glob, grep", Vec::new()), ("", names)] {
        let Some(agent) = agent(&format!(", commands: [cat], auto_approve: [{approved}]")).await else { return };
        let called = agent.calls_of(&calls, false).await;
        assert_eq!(asked(&calls, &called), expected, "{called:#?}");
        assert_eq!(agent.workspace().join("made.txt").exists(), expected.is_empty(), "{called:#?}");
    }
}

/// What is offered to the model, sorted: nothing beside what this project knows of.
pub(crate) fn expected_tools(shell: bool, mcp: bool, more: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = samples().iter().map(|(name, _)| (*name).to_owned()).collect();
    names.extend(more.iter().map(ToString::to_string));
    if shell {
        names.push("shell".to_owned());
    }
    if mcp {
        names.extend(TOOLS.map(|tool| format!("hub__{tool}")));
    }
    names.sort_unstable();
    names
}

#[tokio::test]
async fn there_are_tools_of_mcp_servers_or_not_and_no_others_than_ours() {
    let mcp = ", identity: x, mcp: true, mcp_dir: mcp/tasks";
    for (fields, has_mcp, more) in [
        ("", false, [].as_slice()),
        (", mcp: false", false, &[]),
        (mcp, true, &[]),
        (
            ", auto_approve: [calculator, image_info, weather, tool_search, memory_recall]",
            false,
            &["calculator", "image_info"],
        ),
    ] {
        let Some(agent) = agent(&format!(", commands: [cat]{fields}")).await else { return };
        let mut turn = agent
            .turn(
                "!force hub__get_tasks {}\n!force weather {\"location\":\"x\"}\n!force memory_recall {\"query\":\"x\"}",
                true,
            )
            .await;
        turn.offered.sort_unstable();
        assert_eq!(turn.offered, expected_tools(true, has_mcp, more), "{fields}");
        assert_eq!(agent.calls().len(), usize::from(has_mcp), "{fields}: {turn:#?}");
    }
}
