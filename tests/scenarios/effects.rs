//! Fields of tiers.yaml whose effect is the containers' and the kernel's. The others are in tests/effects/, which has the
//! list of them all.

use assistant_proto::event::Layer;
use assistant_tests::doubles::{OUTSIDE, OUTSIDE_HOST};
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::{inside, run};
use assistant_tests::harness::plain::Plain;
use assistant_tests::harness::{AGENT, UPDATES, UPDATES_AGENT, sink};
use service_kit::task::Tasks;

/// The tier `updates` has the host in its `no_proxy`.
#[tokio::test]
async fn a_name_in_no_proxy_opens_nothing() {
    for (agent, named) in [(UPDATES_AGENT, true), (AGENT, false)] {
        let said = inside(agent, &["sh", "-c", "echo $NO_PROXY; echo $no_proxy"]).await.unwrap().ok().unwrap();
        for line in said.lines() {
            assert_eq!(line.split(',').any(|name| name == OUTSIDE_HOST), named, "{agent}: {said}");
            assert!(line.split(',').any(|name| name == "models"), "what must be there stays: {said}");
        }
    }
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let url = format!("https://{OUTSIDE_HOST}/");
    let curl = ["curl", "-sSk", "-m", "3", &url];
    // By its name, and by an address that no name server was asked for.
    let refused = inside(UPDATES_AGENT, &curl).await.unwrap();
    assert_ne!(refused.status, 0, "{refused:?}");
    let event = denials.wait("the name", |e| e.layer == Layer::Dns && e.host.starts_with(OUTSIDE_HOST)).await.unwrap();
    assert_eq!(event.tier.as_str(), UPDATES, "{event:?}");
    let resolved = format!("{OUTSIDE_HOST}:443:{OUTSIDE}");
    let direct = ["curl", "-sSk", "-m", "3", "--resolve", &resolved, &url];
    let refused = inside(UPDATES_AGENT, &direct).await.unwrap();
    assert_ne!(refused.status, 0, "{refused:?}");
    let outside = OUTSIDE.to_string();
    let fits = |e: &assistant_proto::event::EgressDenied| e.layer == Layer::Packet && e.host == outside;
    let event = denials.wait("the connection", fits).await.unwrap();
    assert_eq!((event.tier.as_str(), event.port), (UPDATES, Some(443)), "it was a direct one: {event:?}");
    // Control: the same without the variable goes to the proxy, which refuses it by its name.
    let mut proxied = vec!["env", "-u", "NO_PROXY", "-u", "no_proxy"];
    proxied.extend(curl);
    let refused = inside(UPDATES_AGENT, &proxied).await.unwrap();
    assert_ne!(refused.status, 0, "{refused:?}");
    denials.wait("the tunnel", |e| e.layer == Layer::Broker && e.host == OUTSIDE_HOST).await.unwrap();
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sink::packets_to(&arrived, &outside).is_empty(), "{arrived:?}");
    assert!(sink::queries_for(&arrived, OUTSIDE_HOST).is_empty(), "{arrived:?}");

    let plain = Plain::make().await.unwrap();
    let cursor = sink::now().await.unwrap();
    let answer = plain.run(&["curl", "-sSk", "-m", "10", &url]).await.unwrap();
    plain.remove().await;
    assert_eq!(answer.out, "out", "control: the host is up: {answer:?}");
    let arrived = sink::since(cursor).await.unwrap();
    assert!(!sink::packets_to(&arrived, &outside).is_empty(), "control: the sink sees it");
}

/// Says what the control groups of a container hold it to, in either version of them: bytes, processes, and how many
/// microseconds of how many.
const BOUNDS: &str = r#"cd /sys/fs/cgroup
cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes
cat pids.max 2>/dev/null || cat pids/pids.max
cat cpu.max 2>/dev/null || echo "$(cat cpu/cpu.cfs_quota_us) $(cat cpu/cpu.cfs_period_us)""#;

#[tokio::test]
async fn an_agent_is_called_and_bounded_as_its_tier_says() {
    let table: [(&str, u64, &str, u64); 2] = [
        // The defaults, written down.
        (AGENT, 1024, "512", 20),
        // Its own.
        (UPDATES_AGENT, 768, "300", 15),
    ];
    for (agent, mebibytes, pids, tenths) in table {
        let running = run("docker", &["inspect", "--format", "{{.State.Running}}", agent]).await.unwrap().ok().unwrap();
        assert_eq!(running.trim(), "true", "{agent}");
        let said = inside(agent, &["sh", "-c", BOUNDS]).await.unwrap().ok().unwrap();
        let [memory, processes, processors] = said.lines().collect::<Vec<_>>()[..] else { panic!("{agent}: {said}") };
        assert_eq!(memory, (mebibytes << 20).to_string(), "{agent}: {said}");
        assert_eq!(processes, pids, "{agent}: {said}");
        let (quota, period) = processors.split_once(' ').unwrap();
        let (quota, period): (u64, u64) = (quota.parse().unwrap(), period.parse().unwrap());
        assert_eq!(quota * 10, period * tenths, "{agent}: {said}");
    }
}
