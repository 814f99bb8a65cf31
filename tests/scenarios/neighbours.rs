//! From inside a tier nothing answers but the doors' data ports; and one container's token is of no use to another.

use assistant_proto::event::Layer;
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::{inside, run};
use assistant_tests::harness::plain::{self, Plain};
use assistant_tests::harness::{AGENT, SERVER, TIER, probe};
use service_kit::task::Tasks;

/// Container, port it serves. The broker's proxy is last: it is a door, on the tier's own network and nowhere else.
const TARGETS: [(&str, u16); 7] = [
    ("assistant-nats", 4222),
    ("assistant-squid", 3128),
    ("assistant-otel-collector", 4317),
    ("assistant-jaeger", 16686),
    ("assistant-litellm", 4000),
    (SERVER, 8811),
    ("assistant-secret-broker", 10255),
];

#[tokio::test]
async fn nothing_answers_but_the_doors() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let own: Vec<String> = probe::addresses(AGENT).await.unwrap().into_iter().map(|(network, _)| network).collect();
    for (container, port) in TARGETS {
        for (network, address) in probe::addresses(container).await.unwrap() {
            let door = container == "assistant-secret-broker" && own.contains(&network);
            assert_eq!(
                probe::opens(AGENT, &address, port).await.unwrap(),
                door,
                "{container} {address}:{port} on {network}"
            );
            if !door {
                denials
                    .wait(&address, |e| e.layer == Layer::Packet && e.host == address && e.port == Some(port))
                    .await
                    .unwrap();
            }
        }
    }
    // The control: each of them is up, asked from its own namespace by its own address.
    for (container, port) in TARGETS {
        let mut open = false;
        for (_, address) in probe::addresses(container).await.unwrap() {
            open |= probe::opens(container, &address, port).await.unwrap();
        }
        assert!(open, "control: {container}:{port} is up");
    }
}

#[tokio::test]
async fn the_vm_answers_nothing() {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "control: the VM listens");
    let vm = run("ip", &["-4", "-j", "addr"]).await.unwrap().ok().unwrap();
    let vm: serde_json::Value = serde_json::from_str(&vm).unwrap();
    let mut addresses: Vec<String> = vm
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|interface| interface["addr_info"].as_array().unwrap().clone())
        .filter_map(|info| info["local"].as_str().map(str::to_owned))
        .filter(|address| !address.starts_with("127."))
        .collect();
    // The gateway of the tier's own network, which nobody has.
    let own = probe::addresses(AGENT).await.unwrap().remove(0).1;
    addresses.push(format!("{}.1", own.rsplit_once('.').unwrap().0));
    assert!(addresses.len() > 2, "{addresses:?}");
    // The control: a plain bridge reaches that very port at the VM's address on it.
    let plain = Plain::make().await.unwrap();
    let reached = plain.run(&["nc", "-z", "-w", "2", plain::GATEWAY, &port.to_string()]).await.unwrap();
    plain.remove().await;
    assert_eq!(reached.status, 0, "control: the VM answers a plain bridge");
    for container in [AGENT, SERVER] {
        for address in &addresses {
            assert!(!probe::opens(container, address, port).await.unwrap(), "{container} reached {address}:{port}");
        }
    }
}

#[tokio::test]
async fn a_token_of_another_container_is_refused() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let proxy = inside(AGENT, &["sh", "-c", "echo $HTTPS_PROXY"]).await.unwrap().ok().unwrap();
    let proxy = proxy.trim();
    let door = proxy.rsplit_once('@').expect("HTTPS_PROXY carries the agent's own token").1.to_owned();
    let stolen = run("sh", &["-c", &format!("docker exec {SERVER} cat /etc/assistant/principal.token")]).await.unwrap();
    let stolen = stolen.ok().unwrap();
    let with = |user: String| {
        let door = door.clone();
        async move {
            let proxy = format!("http://{user}@{door}");
            let url = "https://serv.amazingmarvin.com/api/me";
            inside(AGENT, &["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_connect}", "-x", &proxy, url])
                .await
                .unwrap()
                .out
        }
    };
    assert_eq!(with(format!("{SERVER}:{}", stolen.trim())).await, "407");
    denials
        .wait("the denial", |e| e.layer == Layer::Broker && e.tier.as_str() == TIER && e.reason == "foreign-token")
        .await
        .unwrap();
    assert_eq!(with(format!("{AGENT}:wrong")).await, "407");
    let mine = proxy.trim_start_matches("http://").rsplit_once('@').unwrap().0.to_owned();
    assert_ne!(with(mine).await, "407", "control: its own token is accepted");
}
