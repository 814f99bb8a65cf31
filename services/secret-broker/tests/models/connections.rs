//! Connections to LiteLLM: used again, and never with a prompt that may have arrived already.

use std::net::SocketAddrV4;

use http::StatusCode;
use serde_json::{Value, json};
use service_kit::task::{OnEnd, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::stand::{LITELLM, Setup, Stand, ask, post, v4};
use crate::{CHAT, hello, reason, saying};

#[tokio::test]
async fn connections_are_used_again() {
    let stand = saying(Setup::default(), 200, json!({})).await;
    let door = stand.models().await;
    for _ in 0..20 {
        assert_eq!(ask(door, post(CHAT, hello().to_string())).await.status, StatusCode::OK);
    }
    assert_eq!(stand.upstream.all().len(), 20);
    // A call may come before the last one's connection is back.
    assert!(stand.connects() < 10, "{}", stand.connects());
    // Once the service drains, none is kept: what was open is closed, and each call has its own.
    stand.state.models.keep_no_more();
    let before = stand.connects();
    for _ in 0..3 {
        assert_eq!(ask(door, post(CHAT, hello().to_string())).await.status, StatusCode::OK);
    }
    assert_eq!(stand.connects() - before, 3);
}

/// What a peer does with a request after it has read all of it.
#[derive(Clone, Copy)]
enum Manner {
    /// Answers, and closes without a word, as a server does with a connection that idled too long.
    AnswersAndCloses,
    /// Answers the first on a connection, and closes on all others without an answer.
    AnswersOnce,
}

/// A peer that misbehaves as hyper's server cannot. Sends a line for each request it has read, and for each connection
/// that the broker closed too; there are fewer than the channel holds.
async fn peer(tasks: &Tasks, manner: Manner) -> (SocketAddrV4, mpsc::Receiver<&'static str>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = v4(&listener);
    let (tell, told) = mpsc::channel(256);
    let spawner = tasks.clone();
    tasks.spawn("peer", OnEnd::Expected, async move {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let tell = tell.clone();
            spawner.spawn("peer-connection", OnEnd::Expected, async move {
                let mut answered = false;
                while read_request(&mut stream).await.is_ok() {
                    tell.send("read").await?;
                    if matches!(manner, Manner::AnswersOnce) && answered {
                        return Ok(());
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                    stream.write_all(answer).await?;
                    answered = true;
                    if matches!(manner, Manner::AnswersAndCloses) {
                        stream.shutdown().await?;
                    }
                }
                tell.send("closed").await?;
                Ok(())
            });
        }
    });
    (address, told)
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).await?;
    Ok(())
}

/// A stand whose LiteLLM is such a peer.
async fn with_peer(manner: Manner) -> (Stand, mpsc::Receiver<&'static str>) {
    let tasks = Tasks::default();
    let (address, told) = peer(&tasks, manner).await;
    let stand = Stand::new(Setup { litellm: Some(address), ..Setup::default() }, |_| panic!("nobody asks it")).await;
    (stand, told)
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_not_used() {
    let (stand, mut told) = with_peer(Manner::AnswersAndCloses).await;
    let door = stand.models().await;
    for _ in 0..5 {
        assert_eq!(ask(door, post(CHAT, hello().to_string())).await.status, StatusCode::OK);
        assert_eq!(told.recv().await, Some("read"), "each call arrives once");
        assert_eq!(told.recv().await, Some("closed"), "and the broker noticed the end");
    }
}

#[tokio::test]
async fn a_prompt_is_never_sent_twice() {
    let (stand, mut told) = with_peer(Manner::AnswersOnce).await;
    let door = stand.models().await;
    let mut calls = 0;
    // Until a call meets a kept connection; the second does, unless it came too soon.
    let answer = loop {
        let answer = ask(door, post(CHAT, hello().to_string())).await;
        calls += 1;
        if answer.status != StatusCode::OK {
            break answer;
        }
        assert!(calls < 50, "no connection is ever used again");
    };
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::BAD_GATEWAY, "litellm-failed"));
    assert!(answer.text().contains("not known"), "{}", answer.text());
    let called = stand.wait_for_events("model.called.tasks", calls).await;
    assert_eq!(called.last().unwrap()["status"], 0, "it left, and nobody knows what became of it");
    assert_eq!(stand.events("egress.denied.tasks"), [] as [Value; 0], "nothing was refused");
    // The next is well, on a connection of its own: had the broken one been sent again, it would have been read before.
    assert_eq!(ask(door, post(CHAT, hello().to_string())).await.status, StatusCode::OK);
    let mut read = 0;
    while let Ok(line) = told.try_recv() {
        read += usize::from(line == "read");
    }
    assert_eq!(read, calls + 1);
}

#[tokio::test]
async fn without_litellm_nothing_leaves() {
    // A port that was free a moment ago and that nobody else is likely to take.
    let gone = v4(&TcpListener::bind("127.0.0.1:0").await.unwrap());
    let stand = Stand::new(Setup { litellm: Some(gone), ..Setup::default() }, |_| panic!("nobody asks it")).await;
    let door = stand.models().await;
    let answer = ask(door, post(CHAT, hello().to_string())).await;
    assert_eq!((answer.status, reason(&answer).as_str()), (StatusCode::SERVICE_UNAVAILABLE, "litellm-unreachable"));
    assert!(answer.text().contains(LITELLM));
    assert_eq!(stand.wait_for_denials(1).await[0]["reason"], "litellm-unreachable");
    let told: Vec<_> = stand.bus.emitted().into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(told, ["egress.permitted.tasks", "egress.denied.tasks"], "it was no call");
}
