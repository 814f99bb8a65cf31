//! Three tiers beside each other: what the one without an identity may, and that none is of use to another.

use assistant_proto::config::{GATEWAY_PORT, MCP_PORT};
use assistant_proto::event::{EgressDenied, Layer};
use assistant_tests::doubles::MARVIN_HOST;
use assistant_tests::doubles::record::Arrival;
use assistant_tests::harness::agent::Door;
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::inside;
use assistant_tests::harness::{
    AGENT, SANDBOXED, SANDBOXED_AGENT, SERVER, TIER, UPDATES, UPDATES_AGENT, UPDATES_SERVER, agent, probe, sink,
};
use service_kit::task::Tasks;

/// What stands in for the token in the tiers that have one.
const PLACEHOLDER: &str = "PLACEHOLDER_MARVIN_API_KEY";

/// `curl` in the agent's container, through its own proxy. The status.
async fn curl(options: &[&str], url: &str) -> String {
    let mut arguments = vec!["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"];
    arguments.extend_from_slice(options);
    arguments.push(url);
    inside(SANDBOXED_AGENT, &arguments).await.unwrap().out
}

#[tokio::test]
async fn without_an_identity_it_reads_the_floor_and_no_more() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let header = format!("X-API-Token: {PLACEHOLDER}");
    let url = |path: &str| format!("https://{MARVIN_HOST}{path}");
    let work = async || {
        vec![
            curl(&[], &url(&format!("/api/me?token={PLACEHOLDER}"))).await,
            curl(&["-d", "x=1"], &url("/api/addTask")).await,
            curl(&["-X", "POST"], &url("/api/addTask")).await,
            curl(&["-H", &header], &url("/api/todayItems")).await,
            curl(&["-X", "GET", "-d", "x"], &url("/api/labels")).await,
        ]
    };
    let (turn, statuses) = agent::during_turn(SANDBOXED, work).await.unwrap();
    // The service's own no, then the broker's.
    assert_eq!(statuses, ["401", "403", "403", "403", "403"]);
    for reason in ["method-not-allowed", "header-not-allowed", "body-not-allowed"] {
        let fits = |e: &EgressDenied| e.layer == Layer::Broker && e.host == MARVIN_HOST && e.reason == reason;
        let event = denials.wait(reason, fits).await.unwrap();
        assert_eq!((event.tier.as_str(), event.trace_id.as_str()), (SANDBOXED, turn.trace_id.as_str()), "{event:?}");
    }
    let arrived = sink::since(cursor).await.unwrap();
    let arrived: Vec<_> = sink::requests_to(&arrived, MARVIN_HOST)
        .into_iter()
        .filter_map(|arrival| match arrival {
            Arrival::Request { method, path, headers, authorized, .. } => {
                Some((format!("{method} {path}"), headers.iter().any(|name| name == "x-api-token"), *authorized))
            }
            _ => None,
        })
        .collect();
    // Control: the reading one arrived; the placeholder in it is what it was, and nothing of a token came with it.
    assert_eq!(arrived, [(format!("GET /api/me?token={PLACEHOLDER}"), false, false)]);
}

#[tokio::test]
async fn a_token_of_another_tier_is_refused() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let (stolen, own) = (Door::of(AGENT).await.unwrap(), Door::of(UPDATES_AGENT).await.unwrap());
    let connect = async |door: &Door| {
        let proxy = format!("http://{}:{}@{}", door.user, door.token, own.address);
        let url = format!("https://{MARVIN_HOST}/api/me");
        let format = "%{http_connect}";
        let arguments = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", format, "-x", &proxy, &url];
        inside(UPDATES_AGENT, &arguments).await.unwrap().out
    };
    let models = async |door: &Door| {
        let bearer = format!("Authorization: Bearer {}", door.token);
        let url = "http://models:4000/v1/models";
        let arguments = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-H", &bearer, url];
        inside(UPDATES_AGENT, &arguments).await.unwrap().out
    };
    assert_eq!(connect(&stolen).await, "407");
    assert_eq!(models(&stolen).await, "401");
    for layer in [Layer::Broker, Layer::Models] {
        let event = denials.wait("the denial", |e| e.layer == layer && e.reason == "foreign-token").await.unwrap();
        assert_eq!(event.tier.as_str(), UPDATES, "{event:?}");
        assert_eq!(event.principal.as_ref().map(|name| name.as_str()), Some(UPDATES_AGENT), "{event:?}");
    }
    assert_ne!(connect(&own).await, "407", "control: its own token is accepted");
    assert_eq!(models(&own).await, "200", "control: its own token is accepted");
}

#[tokio::test]
async fn no_tier_reaches_another() {
    let containers = [
        (TIER, AGENT, GATEWAY_PORT),
        (TIER, SERVER, MCP_PORT),
        (UPDATES, UPDATES_AGENT, GATEWAY_PORT),
        (UPDATES, UPDATES_SERVER, MCP_PORT),
        (SANDBOXED, SANDBOXED_AGENT, GATEWAY_PORT),
    ];
    let mut targets = Vec::new();
    for (tier, container, port) in containers {
        targets.push((tier, container, probe::addresses(container).await.unwrap().remove(0).1, port));
    }
    for (tier, container, _) in containers {
        let tasks = Tasks::default();
        let denials = Denials::watch(&tasks).await.unwrap();
        let others: Vec<_> = targets.iter().filter(|(other, ..)| *other != tier).collect();
        let tries: String = others
            .iter()
            .map(|(_, _, address, port)| format!("nc -z -w 1 {address} {port} && echo reached {address} {port}; "))
            .collect();
        let said = probe::joined(container, &["sh", "-c", &format!("{tries} echo tried")]).await.unwrap();
        assert_eq!(said.out, "tried\n", "{container}: {said:?}");
        for (_, target, address, port) in others {
            let fits = |e: &EgressDenied| e.layer == Layer::Packet && e.host == *address && e.port == Some(*port);
            let event = denials.wait(&format!("{container} to {target}"), fits).await.unwrap();
            assert_eq!(event.tier.as_str(), tier, "{event:?}");
            assert_eq!(event.principal.as_ref().map(|name| name.as_str()), Some(container), "{event:?}");
        }
    }
    for (_, container, address, port) in &targets {
        assert!(probe::opens(container, address, *port).await.unwrap(), "control: {container} listens on {port}");
    }
}
