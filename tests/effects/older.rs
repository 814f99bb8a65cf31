//! The older stack's files, unchanged, on a real ZeroClaw: every tier of a set of ours with the same fields, and of theirs.

use serde_json::json;
use tier_supervisor::config::{Runtime, Tier};

use crate::agent::Agent;
use crate::approval::{expected_tools, samples};
use crate::sandbox::{calls, sandboxed};
use crate::sets::Set;

/// Names in their file -> the tools of today.
const TODAY: [(&str, &str); 6] = [
    ("bash", "shell"),
    ("read", "file_read"),
    ("write", "file_write"),
    ("edit", "file_edit"),
    ("glob", "glob_search"),
    ("grep", "content_search"),
];
/// Of their tools those that an agent of ours has only when it is asked for.
const ON_REQUEST: [&str; 2] = ["calculator", "image_info"];

fn approved(tier: &Tier) -> Vec<&str> {
    let today = |name: &str| TODAY.iter().find(|(before, _)| *before == name).map(|(_, now)| *now);
    tier.auto_approve.iter().map(|name| today(name).unwrap_or(name)).collect()
}

#[tokio::test]
async fn every_tier_of_the_older_files_has_its_effects() {
    for set in Set::all() {
        let stack = set.stack();
        let tiers = set.read().tiers;
        assert_eq!(tiers.len(), 3);
        for tier in &tiers {
            let Some(agent) = sandboxed(&stack, tier.name.as_str()).await else { return };
            let environment = agent.environment();
            let no_proxy = environment.iter().find_map(|line| line.strip_prefix("NO_PROXY=")).unwrap();
            for name in ["models", "mcp"].into_iter().chain(tier.no_proxy.iter().map(String::as_str)) {
                assert!(no_proxy.split(',').any(|one| one == name), "{}: {name} not in {no_proxy}", tier.name);
            }
            tools(&agent, tier).await;
            if tier.runtime == Runtime::Docker {
                commands(&agent, tier).await;
            }
        }
        let [first, second, third] = tiers.as_slice() else { panic!() };
        assert!(first.commands.is_empty() && second.commands.is_empty(), "two without a shell");
        assert_eq!(third.runtime, Runtime::Docker, "and one whose commands were tried");
    }
}

/// Which tools there are, and which of them run unasked. Nobody says yes.
async fn tools(agent: &Agent, tier: &Tier) {
    let approved = approved(tier);
    let calls = samples();
    let called = agent.calls_of(&calls, false).await;
    for ((name, _), call) in calls.iter().zip(&called) {
        // A question to a person is one in any case.
        let unasked = approved.contains(name);
        assert_eq!(call.asked, !unasked, "{}: {name}: {call:?}", tier.name);
    }
    let more: Vec<&str> = ON_REQUEST.into_iter().filter(|name| approved.contains(name)).collect();
    let mut turn = agent.turn("!tool calculator {\"function\":\"add\",\"values\":[20,22]}", false).await;
    turn.offered.sort_unstable();
    let expected = expected_tools(!tier.commands.is_empty(), !tier.servers.is_empty(), &more);
    assert_eq!(turn.offered, expected, "{}", tier.name);
    assert!(turn.results[0].starts_with("42") && turn.asked.is_empty(), "{}: {turn:#?}", tier.name);
    assert_eq!(turn.model, tier.model);
    if !tier.servers.is_empty() {
        let called = agent.calls_of(&[("create_task", json!({"title": "x"}))], false).await;
        assert!(called[0].asked && agent.calls().is_empty(), "{}: {called:#?}", tier.name);
    }
}

/// Each command of the list reaches the sandbox, none beside it does.
async fn commands(agent: &Agent, tier: &Tier) {
    let all: Vec<&str> = tier.commands.iter().map(String::as_str).chain(["curl", "ssh", "python3"]).collect();
    let called = agent.shell(&all, false).await;
    let ran: Vec<String> = calls(agent.home()).iter().map(|arguments| arguments.last().unwrap().clone()).collect();
    // One that is named and never runs: a remark says so.
    let expected: Vec<&String> = tier.commands.iter().filter(|command| *command != "tee").collect();
    assert_eq!(ran.iter().collect::<Vec<_>>(), expected, "{}: {called:#?}", tier.name);
    assert!(called.iter().all(|call| !call.asked), "{}: {called:#?}", tier.name);
}
