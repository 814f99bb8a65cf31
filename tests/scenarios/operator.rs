//! What the operator sees: sockets, reflection, one trace, a floor that holds, a second `up` that changes nothing.

use std::time::Duration;

use assistant_proto::egress::egress_service_client::EgressServiceClient;
use assistant_proto::egress::{ShowTraceRequest, TraceLine, VerifyChainRequest};
use assistant_proto::tier::tier_service_client::TierServiceClient;
use assistant_proto::tier::{CheckFloorRequest, PlanTiersRequest};
use assistant_tests::doubles::MODEL_HOST;
use assistant_tests::harness::command::{run, run_watched};
use assistant_tests::harness::{TIER, agent, until};

const SERVICES: [(&str, &str); 4] = [
    ("tier-supervisor", "assistant.tier.v1.TierService"),
    ("secret-broker", "assistant.secret.v1.SecretService"),
    ("egress-auditor", "assistant.egress.v1.EgressService"),
    ("channel-bridge", "assistant.channel.v1.ChannelService"),
];

/// Of `deploy/up.sh`: its promise.
const MOST_SILENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn grpcurl_lists_each_service_and_all_are_serving() {
    for (service, name) in SERVICES {
        let socket = format!("/run/assistant/{service}.sock");
        let list = run("grpcurl", &["-plaintext", "-unix", &socket, "list"]).await.unwrap().ok().unwrap();
        // Its own and the two that each has, and nothing that another socket serves.
        let listed: Vec<_> = list.lines().collect();
        assert_eq!(listed, [name, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"], "{service}");
        let health = run("grpcurl", &["-plaintext", "-unix", &socket, "grpc.health.v1.Health/Check"]).await.unwrap();
        assert!(health.out.contains("\"SERVING\""), "{service}: {health:?}");
    }
}

#[tokio::test]
async fn a_turn_by_grpcurl() {
    let body = format!(r#"{{"tier":"{TIER}","text":"!say hello from the drill"}}"#);
    let socket = "/run/assistant/channel-bridge.sock";
    let method = "assistant.channel.v1.ChannelService/SendMessage";
    let out = run("grpcurl", &["-plaintext", "-unix", "-d", &body, socket, method]).await.unwrap().ok().unwrap();
    assert!(out.contains("hello from the drill") && out.contains("\"ended\""), "{out}");
}

#[tokio::test]
async fn one_trace_from_message_to_squid() {
    let turn = agent::say(TIER, "what are my tasks?").await.unwrap();
    assert!(turn.reply.contains("Water the plants"), "{turn:?}");
    let client = EgressServiceClient::new(agent::connect("egress-auditor").await.unwrap());
    // The model's own bytes are among what left: its tunnel hangs below the broker's call of LiteLLM, told by time.
    let lines = until("bridge, broker, Squid and the model's tunnel in one trace", Duration::from_secs(20), || {
        let mut client = client.clone();
        let trace_id = turn.trace_id.clone();
        async move {
            let lines = client.show_trace(ShowTraceRequest { trace_id }).await?.into_inner().lines;
            let has = |service: &str, name: &str| {
                lines.iter().any(|line| line.service == service && line.name.starts_with(name))
            };
            let whole = lines.iter().any(|line| line.name == "turn")
                && has("secret-broker", "broker.")
                && lines.iter().any(is_by_header)
                && below(&lines, "broker.litellm", is_by_time);
            Ok(whole.then_some(lines))
        }
    })
    .await
    .unwrap();
    let roots: Vec<_> = lines.iter().filter(|line| line.depth == 0).collect();
    assert_eq!(roots.len(), 1, "one tree: {lines:#?}");
    let squid = lines.iter().find(|line| is_by_header(line)).unwrap();
    assert!(squid.depth >= 2, "Squid's span hangs under the broker's: {squid:?}");
    let script = assistant_tests::harness::root().join("deploy/trace.sh");
    let shown = run(script.to_str().unwrap(), &[&turn.trace_id]).await.unwrap().ok().unwrap();
    assert!(shown.contains("squid.") && shown.contains("broker."), "{shown}");
}

/// A tunnel whose CONNECT named its span.
fn is_by_header(line: &TraceLine) -> bool {
    line.name == "squid.tunnel" && !line.attributes.contains_key("attached_by")
}

/// A tunnel of the model's, which names none: it says how it is known, and whose it is.
fn is_by_time(line: &TraceLine) -> bool {
    let says = |name: &str, value: &str| line.attributes.get(name).is_some_and(|said| said == value);
    line.service == "egress-auditor"
        && line.name == "squid.tunnel"
        && says("attached_by", "time")
        && says("attachment", "active")
        && says("server.address", MODEL_HOST)
        && ["kept", "shared", "tunnel", "opened_at"].iter().all(|name| line.attributes.contains_key(*name))
}

/// Whether one that fits hangs right below one of that name.
fn below(lines: &[TraceLine], name: &str, fits: impl Fn(&TraceLine) -> bool) -> bool {
    lines.iter().enumerate().filter(|(_, line)| line.name == name).any(|(at, parent)| {
        let deeper = |line: &&TraceLine| line.depth > parent.depth;
        lines.iter().skip(at + 1).take_while(deeper).any(|line| line.depth == parent.depth + 1 && fits(line))
    })
}

#[tokio::test]
async fn the_floor_holds_and_nothing_is_left_to_do() {
    let mut client = TierServiceClient::new(agent::connect("tier-supervisor").await.unwrap());
    let plan = client.plan_tiers(PlanTiersRequest {}).await.unwrap().into_inner();
    assert!(plan.steps.is_empty(), "{plan:?}");
    let mut verdicts = client.check_floor(CheckFloorRequest {}).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(verdict) = verdicts.message().await.unwrap() {
        count += 1;
        assert!(verdict.passed, "{verdict:?}");
    }
    assert!(count >= 5, "only {count} checks");
}

#[tokio::test]
async fn the_audit_chain_is_whole() {
    let mut client = EgressServiceClient::new(agent::connect("egress-auditor").await.unwrap());
    let chain = client.verify_chain(VerifyChainRequest {}).await.unwrap().into_inner();
    assert!(chain.intact && chain.records > 0, "{chain:?}");
}

#[tokio::test]
async fn up_again_restarts_nothing() {
    let started = || async {
        let names =
            run("docker", &["ps", "-q", "--no-trunc", "--filter", "label=assistant.managed=true"]).await.unwrap();
        let mut ids: Vec<String> = names.out.lines().map(str::to_owned).collect();
        ids.sort();
        let mut arguments = vec!["inspect", "--format", "{{.Name}} {{.Id}} {{.State.StartedAt}} {{.RestartCount}}"];
        arguments.extend(ids.iter().map(String::as_str));
        run("docker", &arguments).await.unwrap().ok().unwrap()
    };
    let before = started().await;
    assert!(before.lines().count() >= 9, "{before}");
    let script = assistant_tests::harness::root().join("deploy/up.sh");
    let up = run_watched(Duration::from_secs(600), script.to_str().unwrap(), &["--drill"]).await;
    let (said, silence) = up.unwrap();
    assert_eq!(started().await, before);
    assert!(silence < MOST_SILENCE, "silent for {silence:?}: {said:#?}");
}
