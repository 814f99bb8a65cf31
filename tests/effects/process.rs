//! `no_proxy`, `model`, `name`: what the agent's process and its commands get, and what it asks for.

use crate::agent::Agent;
use crate::stack::Stack;

#[tokio::test]
async fn names_are_added_to_no_proxy_and_none_is_lost() {
    let own = "127.0.0.1,localhost,0.0.0.0,models,mcp";
    for (fields, expected) in [
        ("", own.to_owned()),
        (", no_proxy: 'litellm,localhost, outside.example'", format!("{own},litellm,outside.example")),
    ] {
        let fields = format!(", commands: [env], auto_approve: [shell]{fields}");
        let stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
        let Some(agent) = Agent::start(&stack, "t").await else { return };
        let called = agent.shell(&["env"], false).await;
        let shells: Vec<String> = called[0].said.lines().map(ToOwned::to_owned).collect();
        for name in ["NO_PROXY", "no_proxy"] {
            for environment in [agent.environment(), shells.clone()] {
                assert!(environment.contains(&format!("{name}={expected}")), "{environment:#?}");
            }
        }
        // It adds to the proxy and does not replace it.
        let proxies = shells.iter().filter(|line| line.to_lowercase().starts_with("https_proxy=http://zeroclaw-t:"));
        assert_eq!(proxies.count(), 2, "{shells:#?}");
    }
}

#[tokio::test]
async fn the_model_is_asked_for_by_the_tiers_name_for_it() {
    for (fields, name) in [("", "assistant"), (", model: {name: thinker}", "thinker")] {
        let stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
        let Some(agent) = Agent::start(&stack, "t").await else { return };
        assert_eq!(agent.turn("!say hello", false).await.model, name);
    }
}
