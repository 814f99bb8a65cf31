//! What was begun in a turn ends with it, and says so once.

use std::convert::Infallible;
use std::sync::Mutex;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::world::{DEADLINE, HOST, Odd, PLACEHOLDER, World, body_of, rest_of};

/// An origin that says one thing, and then what it is told to.
fn streaming(world: &World) -> mpsc::Sender<&'static str> {
    let (more, rest) = mpsc::channel::<&'static str>(4);
    let rest = Mutex::new(Some(rest));
    world.origin.answers(move |_| {
        let frames = ReceiverStream::new(rest.lock().unwrap().take().unwrap())
            .map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
        Response::new(BodyExt::boxed(StreamBody::new(frames)))
    });
    more
}

#[tokio::test]
async fn an_answer_ends_with_its_turn() {
    for (background, silent) in [(false, false), (false, true), (true, false)] {
        let world = World::odd(Odd { background, ..Odd::default() }).await;
        let more = streaming(&world);
        more.send("one").await.unwrap();
        let mut body = world.tunnel().await.fetch("GET", "/api/events", "").await.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        world.next_turn();
        if !silent {
            more.send("two").await.unwrap();
        }
        let next = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap();
        assert_eq!(next.is_ok(), background, "{next:?}");
        drop((more, body));
        let allowed = world.wait_for("egress.allowed", 1).await;
        let cut = if background { None } else { Some("turn-over") };
        assert_eq!(
            (allowed.len(), allowed[0]["cut"].as_str(), allowed[0]["bytes_in"].as_u64().unwrap() > 0),
            (1, cut, true)
        );
        assert!(world.events("egress.denied").is_empty(), "it had left, and is on record as that");
    }
}

#[tokio::test]
async fn a_request_ends_with_its_turn() {
    for silent in [false, true] {
        let world = World::new().await;
        let (stream, _, _) = world.connect(&format!("{HOST}:443")).await;
        let mut stream = world.tls(stream, HOST).await.unwrap();
        let head = format!(
            "POST /api/x HTTP/1.1\r\nHost: {HOST}\r\nX-Api-Token: {PLACEHOLDER}\r\nContent-Length: 1000000\r\n\r\nabc"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Nothing is awaited between this event and the request's leaving.
        world.wait_for("secret.injected", 1).await;
        world.next_turn();
        if !silent {
            stream.write_all(b"def").await.unwrap();
        }
        let answer = String::from_utf8(rest_of(&mut stream).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("turn-over"), "{answer}");
        let allowed = world.wait_for("egress.allowed", 1).await;
        assert_eq!((allowed.len(), allowed[0]["cut"].as_str()), (1, Some("turn-over")));
        assert!(world.events("egress.denied").is_empty());
        assert!(world.origin.seen().is_empty(), "the host never got all of it");
        let closed = async {
            while world.gate.open() > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, closed).await.unwrap();
    }
}

#[tokio::test]
async fn a_tunnel_outlives_its_turn_and_serves_the_next() {
    let world = World::new().await;
    let mut tunnel = world.tunnel().await;
    assert_eq!(body_of(tunnel.fetch("GET", "/api/x", "").await).await, "ok");
    world.next_turn();
    assert_eq!(body_of(tunnel.fetch("GET", "/api/x", "").await).await, "ok");
    assert!(world.wait_for("egress.allowed", 2).await.iter().all(|event| event.get("cut").is_none()));
}
