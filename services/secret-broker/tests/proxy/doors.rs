//! Who may open a tunnel, and where to.

use std::net::Ipv4Addr;

use secret_broker::connections::MOST_OF_SERVER;
use secret_broker::identity::Network;
use tokio::io::AsyncWriteExt;

use crate::world::{HOST, Odd, PRINCIPAL, TOKEN, TRACE, World, connect_head, rest_of};

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[tokio::test]
async fn only_the_container_itself_gets_a_tunnel() {
    let authority = format!("{HOST}:443");
    for (from, credentials, reason) in [
        (HOME, None, "no-token"),
        (HOME, Some((PRINCIPAL, "guess")), "wrong-token"),
        (HOME, Some(("somebody-else", TOKEN)), "wrong-user"),
        (Ipv4Addr::new(127, 0, 0, 9), Some((PRINCIPAL, TOKEN)), "wrong-address"),
    ] {
        let world = World::new().await;
        let (_stream, status, body) = world.say(from, &connect_head(&authority, credentials)).await;
        assert_eq!((status, body["reason"].as_str()), (407, Some(reason)));
        let event = world.only_denial().await;
        assert_eq!(event["reason"], reason);
        assert_eq!(event["layer"], "broker");
        assert_eq!(event["host"], HOST);
        assert_eq!(event["trace_id"], body["trace_id"]);
        assert!(!event.to_string().contains(TOKEN));
        assert!(world.gate.connects().is_empty());
    }
    // The control: the same request with the right credentials from the right address.
    let world = World::new().await;
    let (_stream, status, _) = world.say(HOME, &connect_head(&authority, Some((PRINCIPAL, TOKEN)))).await;
    assert_eq!(status, 200);
    assert!(world.events("egress.denied").is_empty());
}

#[tokio::test]
async fn tunnels_lead_to_allowed_hosts_only() {
    for (authority, status, reason) in [
        ("other.example:443", 403, "host-not-allowed"),
        ("api.allowed.example:8443", 403, "port-not-allowed"),
        ("x.api.allowed.example:443", 403, "host-not-allowed"),
        ("127.0.0.1:443", 400, "ip-literal"),
        ("2130706433:443", 400, "ip-literal"),
        ("[::1]:443", 400, "ip-literal"),
        ("user:pw@api.allowed.example:443", 400, "userinfo"),
        ("api.allowed.example", 400, "malformed-port"),
    ] {
        let world = World::new().await;
        let (_stream, got, body) = world.connect(authority).await;
        assert_eq!((got, body["reason"].as_str()), (status, Some(reason)), "{authority}");
        let event = world.only_denial().await;
        assert_eq!(event["reason"], reason);
        assert_eq!(event["principal"], PRINCIPAL);
        assert_eq!(event["trace_id"], TRACE);
        assert!(!event["fix"].as_str().unwrap().is_empty());
        assert!(!event.to_string().contains("pw@"), "{event}");
        assert!(world.gate.connects().is_empty());
    }
}

#[tokio::test]
async fn outside_a_turn_there_is_no_tunnel() {
    let world = World::odd(Odd { no_turn: true, ..Odd::default() }).await;
    let (_stream, status, body) = world.connect(&format!("{HOST}:443")).await;
    assert_eq!((status, body["reason"].as_str()), (403, Some("outside-turn")));
    let event = world.only_denial().await;
    assert_eq!((event["attachment"].as_str(), event["reason"].as_str()), (Some("background"), Some("outside-turn")));
}

#[tokio::test]
async fn nothing_but_connect_is_forwarded() {
    let credentials = connect_head("x", Some((PRINCIPAL, TOKEN)));
    let authorization = credentials.lines().find(|line| line.starts_with("Proxy-Authorization")).unwrap();
    for (line, host, reason) in [
        (format!("GET http://{HOST}/api/x"), HOST, "cleartext-refused"),
        (format!("GET https://{HOST}/api/x"), HOST, "absolute-form-refused"),
        ("GET /api/x".to_owned(), HOST, "not-a-proxy-request"),
        (format!("CONNECT {HOST}:443"), "other.example:443", "host-mismatch"),
    ] {
        let world = World::new().await;
        let head = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{authorization}\r\n\r\n");
        let (_stream, _, body) = world.say(HOME, &head).await;
        assert_eq!(body["reason"], reason, "{line}");
        assert_eq!(world.only_denial().await["reason"], reason);
        assert!(world.gate.connects().is_empty());
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_are_counted() {
    let world = World::new().await;
    let mut stream = world.reach(HOME).await;
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await.unwrap();
    rest_of(&mut stream).await;
    let event = world.only_denial().await;
    assert_eq!((event["reason"].as_str(), event["principal"].as_str()), (Some("malformed-request"), Some(PRINCIPAL)));
}

#[tokio::test]
async fn tls_has_to_name_the_host_of_the_tunnel() {
    let world = World::new().await;
    let (stream, status, _) = world.connect(&format!("{HOST}:443")).await;
    assert_eq!(status, 200);
    assert!(world.tls(stream, "evil.example").await.is_err());
    let event = world.only_denial().await;
    assert_eq!((event["reason"].as_str(), event["host"].as_str()), (Some("sni-mismatch"), Some(HOST)));
    assert!(event["detail"].as_str().unwrap().contains("evil.example"));

    let world = World::new().await;
    let (stream, _, _) = world.connect(&format!("{HOST}:443")).await;
    // An address is never sent as SNI (RFC 6066, section 3).
    assert!(world.tls(stream, "127.0.0.1").await.is_err());
    assert_eq!(world.only_denial().await["reason"], "sni-missing");
    assert!(world.gate.connects().is_empty());
}

#[tokio::test]
async fn a_tunnel_carries_tls_only() {
    let world = World::new().await;
    let (mut stream, _, _) = world.connect(&format!("{HOST}:443")).await;
    stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
    rest_of(&mut stream).await;
    assert_eq!(world.only_denial().await["reason"], "not-tls");
    assert!(world.gate.connects().is_empty());
}

#[tokio::test]
async fn a_tunnel_that_stays_silent_is_counted() {
    let world = World::new().await;
    let (mut stream, status, _) = world.connect(&format!("{HOST}:443")).await;
    assert_eq!(status, 200);
    // From here on time passes as soon as everybody waits.
    tokio::time::pause();
    rest_of(&mut stream).await;
    let event = world.only_denial().await;
    assert_eq!((event["reason"].as_str(), event["host"].as_str()), (Some("no-tls-in-time"), Some(HOST)));
    assert!(world.gate.connects().is_empty());
}

#[tokio::test]
async fn equal_refusals_are_few_events_and_each_is_counted() {
    let world = World::new().await;
    for _ in 0..40 {
        let (_stream, status, _) = world.connect("other.example:443").await;
        assert_eq!(status, 403);
    }
    let counted = || world.events("egress.denied").iter().map(|event| event["count"].as_u64().unwrap()).sum::<u64>();
    let all = async {
        while counted() < 40 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::world::DEADLINE, all).await.unwrap();
    assert_eq!(counted(), 40);
    assert!(world.events("egress.denied").len() < 20, "{:?}", world.events("egress.denied"));
}

#[tokio::test]
async fn a_server_that_takes_every_connection_starves_nobody() {
    let world = World::new().await;
    let mut held = Vec::new();
    for _ in 0..MOST_OF_SERVER {
        let (stream, status, _) = world.connect(&format!("{HOST}:443")).await;
        assert_eq!(status, 200);
        held.push(stream);
    }
    let (_stream, status, body) = world.connect(&format!("{HOST}:443")).await;
    assert_eq!((status, body["reason"].as_str()), (503, Some("too-many-connections")));
    let event = world.only_denial().await;
    assert_eq!(
        (event["reason"].as_str(), event["principal"].as_str()),
        (Some("too-many-connections"), Some(PRINCIPAL))
    );
    let (_stream, status, _) = world.connect_agent(&format!("{HOST}:443")).await;
    assert_eq!(status, 200, "the agent has places of its own");
    drop(held);
    let tier = &world.state.tiers[&"tasks".parse().unwrap()];
    let freed = async {
        while tier.connections.admit(Network::Tools, Some(&PRINCIPAL.parse().unwrap())).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::world::DEADLINE, freed).await.unwrap();
    let (_stream, status, _) = world.connect(&format!("{HOST}:443")).await;
    assert_eq!(status, 200);
}
