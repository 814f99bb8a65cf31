//! Parts of a stack that not every stack has: model routes, messengers, an outside collector, sandboxes.

use std::collections::{BTreeMap, BTreeSet};

use tier_supervisor::desired::{Confinement, Desired, Flow, MountSource, Peer, Protocol, Role};

use crate::desired::{TWO, names};
use crate::stack::Stack;

/// A stack with every part there is: both model routes, a messenger, an outside collector, a sandbox.
pub(crate) fn everything() -> Stack {
    let tiers = TWO.replace("tasks, port: 3001,", "tasks, port: 3001, model: {confidential: none},")
        + "  - {name: free, identity: x, port: 3003, runtime: docker, commands: [ls]}\n";
    let mut stack = Stack::with_tiers(&tiers);
    let tee = serde_json::json!({"key_secret": "privatemode_api_key", "models": {"assistant": "gpt-oss-120b"}});
    stack.settings.tee = serde_json::from_value(tee).unwrap();
    let bots = serde_json::json!([
        {"name": "telegram", "token_secret": "telegram_bot_token", "allowed_user_ids": [1_000_001]}
    ]);
    stack.settings.telegram = serde_json::from_value(bots).unwrap();
    stack.settings.otlp_export = Some("https://otlp.example.org:4318".to_owned());
    for secret in ["privatemode_api_key", "telegram_bot_token"] {
        stack.secret(secret, &format!("real-{secret}"));
    }
    stack
}

/// Every flow, as a person would write it.
pub(crate) fn lines(desired: &Desired) -> BTreeSet<String> {
    let line = |flow: &Flow| {
        let end = |peer: &Peer| match peer {
            Peer::Container(name) => name.trim_start_matches("assistant-").to_owned(),
            Peer::Vm => "VM".to_owned(),
        };
        let protocol = if flow.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        format!(
            "{} > {} {protocol} {} @ {}",
            end(&flow.from),
            end(&flow.to),
            flow.port,
            flow.network.trim_start_matches("assistant-")
        )
    };
    desired.flows.iter().map(line).collect()
}

/// What more parts add, and nothing else.
#[test]
fn every_further_part_adds_its_own_connections() {
    let (few, all) = (lines(&Stack::with_tiers(TWO).desired()), lines(&everything().desired()));
    assert_eq!(few.difference(&all).collect::<Vec<_>>(), Vec::<&String>::new());
    let mut expected = names(&[
        "secret-broker > litellm-confidential tcp 4000 @ models",
        "litellm-confidential > privatemode tcp 8080 @ models",
        "privatemode > squid tcp 3128 @ transit",
        "channel-bridge > squid tcp 3128 @ transit",
        "otel-collector > squid tcp 3128 @ transit",
        "channel-bridge > zeroclaw-free tcp 42617 @ tier-free",
    ]);
    for port in [10255, 4000, 8811] {
        expected.insert(format!("zeroclaw-free > secret-broker tcp {port} @ tier-free"));
    }
    for protocol in ["udp", "tcp"] {
        expected.insert(format!("zeroclaw-free > egress-auditor {protocol} 53 @ tier-free"));
    }
    assert_eq!(all.difference(&few).cloned().collect::<BTreeSet<_>>(), expected);
}

/// Invariant 9: the confidential LiteLLM reaches the proxy that verifies, and nobody else; nobody but it does.
#[test]
fn the_confidential_route_has_one_way() {
    let desired = everything().desired();
    assert_eq!(desired.container("assistant-litellm-confidential").unwrap().networks.len(), 1);
    let of = |name: &str| -> Vec<String> {
        lines(&desired).into_iter().filter(|line| line.split(' ').any(|word| word == name)).collect()
    };
    assert_eq!(
        of("litellm-confidential"),
        [
            "litellm-confidential > privatemode tcp 8080 @ models",
            "secret-broker > litellm-confidential tcp 4000 @ models"
        ]
    );
    assert_eq!(
        of("privatemode"),
        ["litellm-confidential > privatemode tcp 8080 @ models", "privatemode > squid tcp 3128 @ transit"]
    );
    // Without its proxy's image there is no such route, and that is said.
    let stack = everything();
    let images = std::fs::read_to_string(&stack.settings.images_file).unwrap();
    std::fs::write(&stack.settings.images_file, images.replace("\"privatemode-proxy\"", "\"other\"")).unwrap();
    let desired = stack.desired();
    for gone in ["assistant-litellm-confidential", "assistant-privatemode"] {
        assert!(desired.container(gone).is_none(), "{gone}");
    }
    assert!(desired.remarks.iter().any(|remark| remark.contains("privatemode-proxy")), "{:#?}", desired.remarks);
    let summary: Vec<&str> = desired.tiers.iter().map(|tier| tier.confidential.as_str()).collect();
    assert_eq!(summary, ["none", "required", "required"], "a tier is not moved to another class");
}

/// The sandbox: on no network, and between agent and daemon nothing but the filter.
#[test]
fn an_agent_reaches_its_sandbox_through_the_filter_only() {
    let desired = everything().desired();
    let [daemon, filter, agent] =
        ["sandbox-free", "sandbox-free-filter", "zeroclaw-free"].map(|name| desired.container(name).unwrap());
    let volumes = |name: &str| -> BTreeMap<String, (String, bool)> {
        let spec = desired.container(name).unwrap();
        let mounts = spec.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Volume(volume) => {
                let volume = volume.trim_start_matches("assistant-drill-").to_owned();
                Some((volume, (mount.target.clone(), mount.read_only)))
            }
            MountSource::Bind(_) => None,
        });
        mounts.collect()
    };
    let map = |entries: &[(&str, &str, bool)]| -> BTreeMap<String, (String, bool)> {
        entries.iter().map(|(volume, at, ro)| ((*volume).to_owned(), ((*at).to_owned(), *ro))).collect()
    };
    assert_eq!(
        volumes("sandbox-free"),
        map(&[
            ("sandbox-data-free", "/var/lib/sandbox", false),
            ("sandbox-socket-free", "/run/sandbox", false),
            ("workspace-free", "/zeroclaw-data/workspace", false),
        ])
    );
    assert_eq!(
        volumes("sandbox-free-filter"),
        map(&[("sandbox-socket-free", "/run/sandbox", true), ("sandbox-api-free", "/run/sandbox-api", false)])
    );
    assert_eq!(
        volumes("zeroclaw-free"),
        map(&[
            ("zeroclaw-free", "/zeroclaw-data", false),
            ("workspace-free", "/zeroclaw-data/workspace", false),
            ("sandbox-api-free", "/run/sandbox-api", true),
        ])
    );
    for spec in [daemon, filter, agent] {
        assert_eq!((spec.uid, spec.gid), (65_534, 65_534), "{}", spec.name);
        assert_eq!(spec.confinement == Confinement::RootlessDaemon, spec.role == Role::Sandbox, "{}", spec.name);
        assert_eq!(!spec.cap_add.is_empty(), spec.role == Role::Sandbox, "{}", spec.name);
    }
    assert_eq!(daemon.cap_add, ["SETUID", "SETGID"]);
    assert_eq!(agent.image, "assistant/zeroclaw-docker:1");
    let host = agent.env.iter().find(|variable| variable.name == "DOCKER_HOST").unwrap();
    assert_eq!(host.value, "unix:///run/sandbox-api/docker.sock");
    let top = desired.volumes.iter().find(|volume| volume.name == "assistant-drill-zeroclaw-free").unwrap();
    assert_eq!(top.directories, [".zeroclaw", "workspace"]);
    // Who has no sandbox has nothing of one.
    let native = desired.container("zeroclaw-updates").unwrap();
    assert_eq!(native.image, "assistant/zeroclaw:1");
    assert!(native.env.iter().all(|variable| variable.name != "DOCKER_HOST"));
}
