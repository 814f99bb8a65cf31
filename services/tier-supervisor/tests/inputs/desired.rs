//! Walls, as they stand in the desired state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use assistant_proto::config::Confidentiality;
use proptest::prelude::*;
use tier_supervisor::desired::{Content, Desired, MountSource, NetworkKind, Peer, Ready, Role, SILENT_RESOLVER};

use crate::parts::{everything, lines};
use crate::stack::{MARVIN_TOKEN, MODEL_KEY, Stack};

pub(crate) const TWO: &str = "tiers:
  - {name: tasks, identity: tasks, port: 3001, mcp: true, tools: [{server: marvin, allow: [get_tasks]}],
     credentials: [{secret: marvin_api_key, hosts: [serv.amazingmarvin.com], header: X-API-Token}]}
  - {name: updates, identity: null, port: 3002, egress: {hosts: [serv.amazingmarvin.com]}}
";

fn members(desired: &Desired, network: &str) -> BTreeSet<String> {
    desired
        .containers
        .iter()
        .filter(|container| container.address_on(network).is_some())
        .map(|container| container.name.clone())
        .collect()
}

pub(crate) fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn who_is_on_which_network() {
    let desired = Stack::with_tiers(TWO).desired();
    for (network, kind, on_it) in [
        ("assistant-egress", NetworkKind::Egress, &["assistant-squid"][..]),
        (
            "assistant-bus",
            NetworkKind::Internal,
            &["assistant-nats", "assistant-secret-broker", "assistant-egress-auditor", "assistant-channel-bridge"],
        ),
        (
            "assistant-telemetry",
            NetworkKind::Internal,
            &[
                "assistant-otel-collector",
                "assistant-jaeger",
                "assistant-prometheus",
                "assistant-grafana",
                "assistant-secret-broker",
                "assistant-egress-auditor",
                "assistant-channel-bridge",
            ],
        ),
        // Neither channel-bridge nor the collector: nothing asks them to go out.
        (
            "assistant-transit",
            NetworkKind::Isolated,
            &["assistant-squid", "assistant-secret-broker", "assistant-egress-auditor", "assistant-litellm"],
        ),
        ("assistant-models", NetworkKind::Isolated, &["assistant-secret-broker", "assistant-litellm"]),
        (
            "assistant-tier-tasks",
            NetworkKind::Isolated,
            &["zeroclaw-tasks", "assistant-secret-broker", "assistant-egress-auditor", "assistant-channel-bridge"],
        ),
        (
            "assistant-tools-tasks",
            NetworkKind::Isolated,
            &["mcp-tasks-marvin", "assistant-secret-broker", "assistant-egress-auditor"],
        ),
        (
            "assistant-tier-updates",
            NetworkKind::Isolated,
            &["zeroclaw-updates", "assistant-secret-broker", "assistant-egress-auditor", "assistant-channel-bridge"],
        ),
    ] {
        assert_eq!(desired.network(network).unwrap().kind, kind, "{network}");
        assert_eq!(members(&desired, network), names(on_it), "{network}");
    }
    assert_eq!(desired.networks.len(), 8, "a tier without MCP servers has no tools network");
}

/// Invariant 2, and that nothing of a tier is on a second network.
#[test]
fn tier_containers_are_alone_with_the_doors() {
    let desired = everything().desired();
    for container in desired.containers.iter().filter(|container| container.tier.is_some()) {
        assert_ne!(container.gid, 8700, "no tier container is in the stack's group");
        if matches!(container.role, Role::Sandbox | Role::SandboxFilter) {
            assert!(container.networks.is_empty() && !container.inert_default_route, "{}", container.name);
            continue;
        }
        assert_eq!(container.networks.len(), 1, "{}", container.name);
        let network = &container.networks[0].network;
        for other in desired.containers.iter().filter(|other| other.name != container.name) {
            if other.address_on(network).is_some() {
                assert!(
                    matches!(other.role, Role::SecretBroker | Role::EgressAuditor | Role::ChannelBridge),
                    "{} shares {network} with {}",
                    container.name,
                    other.name
                );
            }
        }
        assert!(container.inert_default_route);
    }
}

#[test]
fn every_connection_is_a_written_one() {
    let desired = Stack::with_tiers(TWO).desired();
    let flows = lines(&desired);
    let mut expected = names(&[
        "VM > nats tcp 4222 @ bus",
        "VM > otel-collector tcp 4317 @ telemetry",
        "VM > jaeger tcp 16686 @ telemetry",
        "egress-auditor > jaeger tcp 16686 @ telemetry",
        "otel-collector > jaeger tcp 4317 @ telemetry",
        "VM > grafana tcp 3000 @ telemetry",
        "prometheus > otel-collector tcp 8889 @ telemetry",
        "grafana > prometheus tcp 9090 @ telemetry",
        "grafana > jaeger tcp 16686 @ telemetry",
        "secret-broker > litellm tcp 4000 @ models",
        "litellm > squid tcp 3128 @ transit",
        "secret-broker > squid tcp 3128 @ transit",
        "squid > egress-auditor tcp 7512 @ transit",
        "mcp-tasks-marvin > secret-broker tcp 10255 @ tools-tasks",
        "secret-broker > mcp-tasks-marvin tcp 8811 @ tools-tasks",
        "mcp-tasks-marvin > egress-auditor udp 53 @ tools-tasks",
        "mcp-tasks-marvin > egress-auditor tcp 53 @ tools-tasks",
    ]);
    for service in ["secret-broker", "egress-auditor", "channel-bridge"] {
        expected.insert(format!("{service} > nats tcp 4222 @ bus"));
        expected.insert(format!("{service} > otel-collector tcp 4317 @ telemetry"));
    }
    for tier in ["tasks", "updates"] {
        for port in [10255, 4000, 8811] {
            expected.insert(format!("zeroclaw-{tier} > secret-broker tcp {port} @ tier-{tier}"));
        }
        for protocol in ["udp", "tcp"] {
            expected.insert(format!("zeroclaw-{tier} > egress-auditor {protocol} 53 @ tier-{tier}"));
        }
        expected.insert(format!("channel-bridge > zeroclaw-{tier} tcp 42617 @ tier-{tier}"));
    }
    assert_eq!(flows, expected);
    assert_eq!(flows.len(), desired.flows.len(), "none twice");
    for flow in &desired.flows {
        for peer in [&flow.from, &flow.to] {
            if let Peer::Container(name) = peer {
                assert!(desired.container(name).unwrap().address_on(&flow.network).is_some(), "{flow:?}");
            }
        }
    }
}

#[test]
fn what_every_container_has() {
    let desired = everything().desired();
    let order: Vec<&str> = desired.containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(
        order,
        [
            "assistant-nats",
            "assistant-jaeger",
            "assistant-otel-collector",
            "assistant-egress-auditor",
            "assistant-squid",
            "assistant-privatemode",
            "assistant-litellm-confidential",
            "assistant-litellm",
            "assistant-prometheus",
            "assistant-grafana",
            "assistant-secret-broker",
            "mcp-tasks-marvin",
            "zeroclaw-tasks",
            "zeroclaw-updates",
            "sandbox-free",
            "sandbox-free-filter",
            "zeroclaw-free",
            "assistant-channel-bridge",
        ]
    );
    let mut addresses = BTreeSet::new();
    for container in &desired.containers {
        let name = &container.name;
        assert!(container.uid >= 8700 && container.gid >= 8700, "{name} is no system user");
        assert_eq!(container.cap_add.is_empty(), container.role != Role::Sandbox, "{name}");
        let sysctl =
            |wanted: &str| container.sysctls.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        assert_eq!(sysctl("net.ipv4.ip_forward"), Some("0"), "{name}");
        assert_eq!(sysctl("net.ipv6.conf.all.disable_ipv6"), Some("1"), "{name}");
        assert!(container.sysctls.is_sorted(), "{name}");
        assert!(container.limits.memory_bytes > 0 && container.limits.pids > 0 && container.limits.nano_cpus > 0);
        let starts_by_path = container.entrypoint.as_ref().is_some_and(|entry| entry[0].starts_with('/'));
        // Where its program lies is the published image's affair.
        assert_eq!(starts_by_path, container.role != Role::TeeProxy, "{name}");
        let resolv = container.mounts.iter().find(|mount| mount.target == "/etc/resolv.conf").unwrap();
        assert!(resolv.read_only, "{name}");
        let MountSource::Bind(path) = &resolv.source else { panic!("{name}") };
        let file = container.files.iter().find(|file| file.path == *path).unwrap();
        let Content::Inline(bytes) = &file.content else { panic!("{name}") };
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(text.starts_with(&format!("nameserver {}\n", container.resolver())), "{name}: {text}");
        let is_tier = container.tier.is_some() && !container.networks.is_empty();
        assert_eq!(container.dns.is_some(), is_tier, "{name}");
        assert_eq!(container.resolver() == SILENT_RESOLVER, !is_tier, "{name}");
        for attachment in &container.networks {
            assert!(addresses.insert(attachment.address), "{name}: {} twice", attachment.address);
            assert!(desired.network(&attachment.network).unwrap().subnet.contains(attachment.address));
        }
        for mount in &container.mounts {
            if let MountSource::Bind(path) = &mount.source {
                let rendered = path.starts_with(format!("{}/state/render/{name}", path_root(path)));
                assert!(
                    rendered
                        || container.control.as_ref().is_some_and(|control| control.path == *path)
                        || container.pages.as_ref().is_some_and(|pages| pages.path == *path),
                    "{name}: {}",
                    path.display()
                );
                assert!(mount.read_only || !rendered, "{name}: {}", path.display());
            }
        }
    }
    assert_eq!(desired.dns_servers, [Ipv4Addr::new(198, 51, 100, 53)]);
    assert!(
        matches!(&desired.container("assistant-squid").unwrap().ready, Ready::LogLine { needle } if needle == "Accepting SSL bumped")
    );
}

fn path_root(path: &std::path::Path) -> String {
    path.to_str().unwrap().split("/state/").next().unwrap().to_owned()
}

/// Invariant 11, and who gets which key.
#[test]
fn volumes_and_secrets_go_to_their_owners_only() {
    let stack = everything();
    let inputs = stack.prepare().unwrap();
    let desired = inputs.desired().unwrap();
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for container in &desired.containers {
        for mount in &container.mounts {
            if let MountSource::Volume(volume) = &mount.source {
                users.entry(volume).or_default().push(&container.name);
                let volume = desired.volumes.iter().find(|known| known.name == *volume).unwrap();
                assert_eq!(volume.tier, container.tier);
            }
        }
    }
    let shared: Vec<_> = users.iter().filter(|(_, users)| users.len() > 1).collect();
    assert_eq!(
        shared,
        [
            (&"assistant-drill-sandbox-api-free", &vec!["sandbox-free-filter", "zeroclaw-free"]),
            (&"assistant-drill-sandbox-socket-free", &vec!["sandbox-free", "sandbox-free-filter"]),
            (&"assistant-drill-squid-log", &vec!["assistant-egress-auditor", "assistant-squid"]),
            (&"assistant-drill-workspace-free", &vec!["sandbox-free", "zeroclaw-free"]),
        ]
    );
    let reader = desired.container("assistant-egress-auditor").unwrap();
    assert!(reader.mounts.iter().any(|mount| mount.target == "/var/log/squid" && mount.read_only));

    let holders = |secret: &str| -> Vec<&str> {
        desired
            .containers
            .iter()
            .filter(|container| {
                container.env.iter().any(|variable| variable.value.contains(secret))
                    || container.command.iter().any(|argument| argument.contains(secret))
                    || container.files.iter().any(|file| match &file.content {
                        Content::Inline(bytes) => bytes.windows(secret.len()).any(|window| window == secret.as_bytes()),
                        Content::CopyOf { .. } => false,
                    })
            })
            .map(|container| container.name.as_str())
            .collect()
    };
    for secret in [MARVIN_TOKEN, MODEL_KEY, "real-privatemode_api_key", "real-telegram_bot_token"] {
        assert_eq!(holders(secret), Vec::<&str>::new(), "a SaaS secret is never held, only copied");
    }
    let material = &inputs.material;
    let principal = |name: &str| material.tokens.principal(&name.parse().unwrap()).unwrap().expose();
    assert_eq!(holders(principal("zeroclaw-tasks")), ["zeroclaw-tasks"]);
    assert_eq!(holders(principal("mcp-tasks-marvin")), ["mcp-tasks-marvin"]);
    let wrapper = material.tokens.wrapper(&"mcp-tasks-marvin".parse().unwrap()).unwrap().expose();
    assert_eq!(holders(wrapper), ["assistant-secret-broker", "mcp-tasks-marvin"]);
    let gateway = material.tokens.gateway(&"tasks".parse().unwrap()).unwrap().expose();
    assert_eq!(holders(gateway), ["assistant-channel-bridge"]);
    for (user, password) in material.tokens.squid_users() {
        let holder = match user {
            "models" => "assistant-litellm",
            "tee" => "assistant-privatemode",
            "channels" => "assistant-channel-bridge",
            "telemetry" => "assistant-otel-collector",
            _ => "assistant-secret-broker",
        };
        assert_eq!(holders(password.expose()), [holder], "{user}");
    }
    for (class, litellm) in
        [(Confidentiality::None, "assistant-litellm"), (Confidentiality::Required, "assistant-litellm-confidential")]
    {
        let master = material.tokens.litellm(class).unwrap().expose();
        assert_eq!(holders(master), [litellm, "assistant-secret-broker"]);
    }
    for service in ["secret-broker", "egress-auditor", "channel-bridge"] {
        let seed = material.tokens.nkey(service).unwrap().seed.expose();
        assert_eq!(holders(seed), [format!("assistant-{service}")]);
    }
    for nobody in ["operator", "tier-supervisor"] {
        assert!(holders(material.tokens.nkey(nobody).unwrap().seed.expose()).is_empty());
    }
    let key_line = |pem: &str| pem.lines().nth(1).unwrap().to_owned();
    assert_eq!(holders(&key_line(material.pki.intercept.key.expose())), ["assistant-secret-broker"]);
    assert_eq!(holders(&key_line(material.pki.nats.key.expose())), ["assistant-nats"]);
    assert_eq!(holders(&key_line(material.pki.squid.key.expose())), ["assistant-squid"]);

    let mut copied = Vec::new();
    for container in &desired.containers {
        for file in &container.files {
            if let Content::CopyOf { source, .. } = &file.content
                && source.components().any(|part| part.as_os_str() == "secrets")
            {
                copied.push((container.name.as_str(), source.file_name().unwrap().to_str().unwrap()));
            }
            assert!(!file.secret || file.mode & 0o077 == 0, "{} is secret and open", file.path.display());
            assert!(!file.secret || file.uid == container.uid, "{}", file.path.display());
        }
    }
    assert_eq!(
        copied,
        [
            ("assistant-privatemode", "privatemode_api_key"),
            ("assistant-litellm", "model_api_key"),
            ("assistant-secret-broker", "marvin_api_key"),
            ("assistant-channel-bridge", "telegram_bot_token"),
        ]
    );
    let shown = format!("{desired:?}");
    for hidden in [principal("zeroclaw-tasks"), wrapper, gateway] {
        assert!(!shown.contains(hidden), "Debug shows a token");
    }
}

#[test]
fn equal_inputs_give_equal_states_and_each_change_its_own_hash() {
    let stack = Stack::with_tiers(TWO);
    let first = stack.desired();
    assert_eq!(first, stack.desired(), "a second run changes nothing");
    let hashes = |desired: &Desired| -> BTreeMap<String, String> {
        desired.containers.iter().map(|container| (container.name.clone(), container.spec_hash())).collect()
    };
    let changed = |text: &str| -> BTreeSet<String> {
        std::fs::write(&stack.settings.tiers_file, text).unwrap();
        let now = hashes(&stack.desired());
        let before = hashes(&first);
        before.iter().filter(|(name, hash)| now.get(*name) != Some(hash)).map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(changed(TWO), names(&[]));
    let commands = TWO.replace("name: updates,", "name: updates, commands: [ls],");
    assert_eq!(changed(&commands), names(&["zeroclaw-updates"]));
    let limits = TWO.replace("name: updates,", "name: updates, limits: {memory: 2g},");
    assert_eq!(changed(&limits), names(&["zeroclaw-updates"]));
    let background = TWO.replace("name: updates,", "name: updates, background: true,");
    // The auditor explains by the same rules that the broker decides by.
    assert_eq!(changed(&background), names(&["assistant-egress-auditor", "assistant-secret-broker"]));
    std::fs::write(&stack.settings.tiers_file, TWO).unwrap();
    stack.secret("marvin_api_key", "another-token");
    assert_eq!(changed(TWO), names(&["assistant-secret-broker"]), "a new secret replaces who holds it");
    stack.secret("marvin_api_key", MARVIN_TOKEN);
    stack.secret("model_api_key", "another-key");
    assert_eq!(changed(TWO), names(&["assistant-litellm"]));
}

#[test]
fn without_telemetry_there_is_none() {
    let mut stack = Stack::with_tiers(TWO);
    stack.settings.otlp = false;
    let desired = stack.desired();
    for gone in ["assistant-jaeger", "assistant-otel-collector", "assistant-prometheus", "assistant-grafana"] {
        assert!(desired.container(gone).is_none(), "{gone}");
    }
    assert!(desired.flows.iter().all(|flow| flow.network != "assistant-telemetry"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn the_order_of_tiers_moves_no_address(order in Just(vec!["a", "b", "c", "d"]).prop_shuffle()) {
        let text = |order: &[&str]| {
            let tiers: Vec<String> = order
                .iter()
                .map(|name| format!("  - {{name: {name}, port: {}}}\n", 3000 + u32::from(name.as_bytes()[0])))
                .collect();
            format!("tiers:\n{}", tiers.concat())
        };
        let stack = Stack::with_tiers(&text(&["a", "b", "c", "d"]));
        let first = stack.desired();
        std::fs::write(&stack.settings.tiers_file, text(&order)).unwrap();
        let second = stack.desired();
        for container in &first.containers {
            let other = second.container(&container.name).unwrap();
            for attachment in &container.networks {
                prop_assert_eq!(other.address_on(&attachment.network), Some(attachment.address));
            }
            if container.tier.is_some() {
                prop_assert_eq!(container.spec_hash(), other.spec_hash());
            }
        }
        prop_assert_eq!(&first.flows, &second.flows);
    }
}
