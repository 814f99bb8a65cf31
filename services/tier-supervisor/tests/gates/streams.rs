//! Bodies of both ways pass as they come, WebSockets too; both end with the session.

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::browser::Site;
use crate::world::{PATIENCE, World, wait_for};

/// Reads until the text has come.
async fn until(stream: &mut TcpStream, text: &str) {
    let mut read = String::new();
    let reads = async {
        let mut piece = [0; 4096];
        while !read.contains(text) {
            let count = stream.read(&mut piece).await.unwrap();
            assert_ne!(count, 0, "the end came before {text}");
            read.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    };
    tokio::time::timeout(PATIENCE, reads).await.unwrap_or_else(|_| panic!("{text} did not come"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_as_they_come() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let origin = format!("Origin: {}", site.origin());
    // The answer's first piece, while its second is held back.
    let mut stream = TcpStream::connect(site.listen).await.unwrap();
    stream.write_all(format!("{}\r\n", site.head("GET", "/stream", &[])).as_bytes()).await.unwrap();
    until(&mut stream, "first").await;
    world.upstream.release.notify_one();
    until(&mut stream, "last").await;
    // The request's first piece, while its second was not sent.
    let mut stream = TcpStream::connect(site.listen).await.unwrap();
    let head = site.head("POST", "/", &[&origin, "Content-Length: 10"]);
    stream.write_all(format!("{head}\r\nbegin").as_bytes()).await.unwrap();
    wait_for("the first half", async || world.upstream.bodies() == "begin").await;
    stream.write_all(b"ended").await.unwrap();
    until(&mut stream, "last").await;
    assert_eq!(world.upstream.bodies(), "beginended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_with_its_session() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let mut stream = TcpStream::connect(site.listen).await.unwrap();
    stream.write_all(format!("{}\r\n", site.head("GET", "/stream", &[])).as_bytes()).await.unwrap();
    until(&mut stream, "first").await;
    site.post("/logout", "").await;
    let mut rest = Vec::new();
    let ends = async {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            rest.extend_from_slice(&piece[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, ends).await.expect("it goes on");
    assert!(!String::from_utf8_lossy(&rest).contains("last"));
}

type Socket = WebSocketStream<TcpStream>;

async fn websocket(site: &Site, origin: Option<&str>, more: &[(&'static str, &str)]) -> Result<Socket, u16> {
    let mut request = format!("ws://{}/ws", site.host).into_client_request().unwrap();
    let headers = request.headers_mut();
    if let Some(cookie) = &site.cookie {
        headers.insert("cookie", cookie.parse().unwrap());
    }
    if let Some(origin) = origin {
        headers.insert("origin", origin.parse().unwrap());
    }
    for (name, value) in more {
        headers.insert(*name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(site.listen).await.unwrap();
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_for_pages_of_the_site_with_a_session() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let stranger = Site { cookie: None, ..site.clone() };
    let own = site.origin();
    let neighbour = format!("http://tasks.localhost:{}", world.jaeger.listen.port());
    assert_eq!(websocket(&stranger, Some(&own), &[]).await.unwrap_err(), 401);
    for origin in [None, Some("http://evil.example"), Some(neighbour.as_str()), Some("null")] {
        assert_eq!(websocket(&site, origin, &[]).await.unwrap_err(), 403, "{origin:?}");
    }
    let cross = [("sec-fetch-site", "cross-site")];
    assert_eq!(websocket(&site, Some(&own), &cross).await.unwrap_err(), 403);
    assert!(world.upstream.seen().is_empty());

    let mut socket = websocket(&site, Some(&own), &[("sec-fetch-site", "same-origin")]).await.unwrap();
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    let seen = &world.upstream.seen()[0];
    assert_eq!(
        (&seen.headers["assistant-site"], seen.headers.contains_key("cookie")),
        (&"tasks".parse().unwrap(), false)
    );
    // It ends with the session.
    site.post("/logout", "").await;
    let ends = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, ends).await.expect("it goes on");
}
