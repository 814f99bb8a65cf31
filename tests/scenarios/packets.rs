//! Straight to an address: TCP, UDP, ICMP, from the agent itself and from a probe with NET_RAW in its namespace.

use assistant_proto::event::Layer;
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::inside;
use assistant_tests::harness::plain::Plain;
use assistant_tests::harness::{AGENT, probe, sink};
use service_kit::task::Tasks;

const TARGET: &str = "198.51.100.77";
const METADATA: &str = "169.254.169.254";

const SEND_UDP: &str =
    "import socket,sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'exfil', (sys.argv[1], 9999))";

#[tokio::test]
async fn a_connection_from_the_agent_itself() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    for address in [TARGET, METADATA] {
        let url = format!("http://{address}:8080/");
        let refused = inside(AGENT, &["curl", "-sS", "-m", "3", "--noproxy", "*", &url]).await.unwrap();
        assert_ne!(refused.status, 0);
        denials
            .wait("the denial", |e| e.layer == Layer::Packet && e.host == address && e.port == Some(8080))
            .await
            .unwrap();
    }
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sink::packets_to(&arrived, TARGET).is_empty() && sink::packets_to(&arrived, METADATA).is_empty());

    let plain = Plain::make().await.unwrap();
    let cursor = sink::now().await.unwrap();
    for address in [TARGET, METADATA] {
        let _sent = plain.run(&["nc", "-z", "-w", "2", address, "8080"]).await.unwrap();
    }
    plain.remove().await;
    let arrived = sink::since(cursor).await.unwrap();
    for address in [TARGET, METADATA] {
        assert!(!sink::packets_to(&arrived, address).is_empty(), "control: {address} reaches the sink");
    }
}

#[tokio::test]
async fn tcp_udp_and_icmp_with_net_raw() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let _lost = probe::joined(AGENT, &["nc", "-z", "-w", "2", TARGET, "4444"]).await.unwrap();
    let _lost = probe::joined(AGENT, &["python3", "-c", SEND_UDP, TARGET]).await.unwrap();
    let _lost = probe::joined(AGENT, &["ping", "-c", "1", "-W", "1", TARGET]).await.unwrap();
    for protocol in ["tcp", "udp", "icmp"] {
        denials
            .wait(protocol, |e| e.layer == Layer::Packet && e.host == TARGET && e.protocol == protocol)
            .await
            .unwrap();
    }
    assert!(sink::packets_to(&sink::since(cursor).await.unwrap(), TARGET).is_empty());

    let plain = Plain::make().await.unwrap();
    let cursor = sink::now().await.unwrap();
    let _sent = plain.run(&["nc", "-z", "-w", "2", TARGET, "4444"]).await.unwrap();
    let _sent = plain.run(&["python3", "-c", SEND_UDP, TARGET]).await.unwrap();
    let _sent = plain.run(&["ping", "-c", "1", "-W", "1", TARGET]).await.unwrap();
    plain.remove().await;
    let arrived = sink::since(cursor).await.unwrap();
    let protocols: Vec<String> = sink::packets_to(&arrived, TARGET)
        .iter()
        .filter_map(|entry| match &entry.arrival {
            assistant_tests::doubles::record::Arrival::Packet { protocol, .. } => Some(protocol.clone()),
            _ => None,
        })
        .collect();
    for protocol in ["tcp", "udp", "icmp"] {
        assert!(protocols.iter().any(|p| p == protocol), "control: {protocol} reaches the sink: {protocols:?}");
    }
}
