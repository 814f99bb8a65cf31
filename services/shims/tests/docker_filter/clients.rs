//! What real docker clients sent, replayed to the byte: `tests/docker/client-*.jsonl` hold their requests for the
//! `docker run` of ZeroClaw's runtime, recorded at a socket.

use std::io::Write as _;
use std::net::Shutdown;

use serde_json::{Value, json};

use crate::daemon::id;
use crate::filter::{Filter, Reply, read_head, rest};

const CLIENTS: [(&str, &str); 2] =
    [("v1.41", include_str!("../docker/client-20.10.jsonl")), ("v1.50", include_str!("../docker/client-28.jsonl"))];

/// The recording's container.
const RECORDED: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Its requests: ping, create, attach, wait, start.
fn requests(client: &str) -> [Vec<u8>; 5] {
    let requests: Vec<Vec<u8>> = client
        .lines()
        .map(|line| {
            let request: Value = serde_json::from_str(line).unwrap();
            let (head, body) = (request["head"].as_str().unwrap(), request["body"].as_str().unwrap());
            format!("{head}\r\n\r\n{body}").replace(RECORDED, &id(1)).into_bytes()
        })
        .collect();
    requests.try_into().unwrap()
}

#[test]
fn a_command_runs_from_its_creation_to_its_end() {
    for (version, client) in CLIENTS {
        let (filter, daemon) = Filter::with_daemon();
        let [ping, create, attach, wait, start] = requests(client);

        let reply = filter.raw(&ping);
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "HEAD has no body");
        assert!(reply.head.contains("api-version: 1.41"), "{reply:?}");
        assert!(!reply.head.contains("secret"), "{reply:?}");

        let reply = filter.raw(&create);
        assert_eq!((reply.status, reply.json()), (201, json!({"Id": id(1), "Warnings": []})), "{reply:?}");

        let mut attached = filter.connect();
        attached.write_all(&attach).unwrap();
        let head = read_head(&mut attached).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: tcp"), "{head}");
        assert!(head.contains("application/vnd.docker.raw-stream"), "{head}");

        let mut waiting = filter.connect();
        waiting.write_all(&wait).unwrap();
        read_head(&mut waiting);
        assert_eq!(filter.raw(&start).status, 204);

        // More than any buffer on the way holds, both ways at once.
        let input = "input\n".repeat(200_000);
        let writer = {
            let (mut attached, input) = (attached.try_clone().unwrap(), input.clone());
            std::thread::spawn(move || {
                attached.write_all(input.as_bytes()).unwrap();
                // The client has no more to say and still listens.
                attached.shutdown(Shutdown::Write).unwrap();
            })
        };
        assert!(rest(&mut attached) == input + "end of input", "the stream came back changed");
        writer.join().unwrap();
        assert!(rest(&mut waiting).contains(r#"{"StatusCode":0}"#));

        let lines = daemon.lines();
        let one = id(1);
        let expected = [
            "GET /_ping".to_owned(),
            format!("POST /{version}/containers/create"),
            format!("POST /{version}/containers/{one}/attach?stream=1&stdin=1&stdout=1&stderr=1"),
            format!("POST /{version}/containers/{one}/wait?condition=removed"),
            format!("POST /{version}/containers/{one}/start"),
        ];
        assert_eq!(lines, expected);
        let create = daemon.wait_for("POST /v1.41/containers/create".replace("v1.41", version).as_str());
        assert!(!create.headers.contains("docker-client"), "nothing of the client's own headers: {create:?}");
        assert_eq!(create.json()["HostConfig"]["CapDrop"], json!(["ALL"]));
        assert_eq!(create.json()["Cmd"], json!(["sh", "-c", "true"]));
    }
}

#[test]
fn the_other_calls_do_what_they_say() {
    let (filter, daemon) = Filter::with_daemon();
    let one = filter.create();
    assert_eq!(filter.raw(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n").body, "OK");
    let reply = filter.call(&format!("GET /v1.41/containers/{one}/logs?stdout=1&stderr=1&tail=all"), "");
    assert_eq!((reply.status, reply.body.contains("a line of its log")), (200, true), "{reply:?}");
    assert_eq!(filter.call(&format!("POST /v1.41/containers/{one}/kill?signal=SIGTERM"), "").status, 204);
    assert_eq!(filter.call(&format!("DELETE /v1.41/containers/{one}?force=1"), "").status, 204);
    assert!(daemon.lines().contains(&format!("POST /v1.41/containers/{one}/kill?signal=TERM")));
    assert!(daemon.lines().contains(&format!("DELETE /v1.41/containers/{one}?force=1&v=0")));
    // What was removed is nobody's any more.
    let reply = filter.call(&format!("POST /v1.41/containers/{one}/kill"), "");
    assert_eq!((reply.status, filter.refusal()["reason"].clone()), (403, json!("foreign-container")), "{reply:?}");
}

#[test]
fn a_daemon_that_is_down_or_without_its_image_is_told_apart_from_a_refusal() {
    let filter = Filter::start();
    for line in ["GET /_ping", "POST /v1.41/containers/create"] {
        let reply = filter.call(line, &if line.starts_with("POST") { least_text() } else { String::new() });
        assert_eq!(reply.status, 503, "{reply:?}");
        assert!(reply.message().contains("the sandbox does not answer"), "{reply:?}");
    }
    let daemon = crate::daemon::Daemon::default();
    daemon.lists(&[id(77), id(78)]);
    daemon.listen(&filter.upstream());
    filter.wait_for_note("the sandbox is ready");
    // What an earlier filter left is gone before anything new may begin.
    assert_eq!(daemon.lines(), [77, 78].map(|n| format!("DELETE /containers/{}?force=1&v=1", id(n))));

    daemon.lacks_the_image(true);
    let reply = filter.call("POST /v1.41/containers/create", &least_text());
    // Not 404: for that a client would try to pull.
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.message().contains("assistant-sandbox:latest"), "{reply:?}");
    daemon.lacks_the_image(false);
    filter.create();
}

fn least_text() -> String {
    crate::filter::least().to_string()
}

#[test]
fn the_daemons_own_words_arrive_as_words() {
    let (filter, daemon) = Filter::with_daemon();
    let one = filter.create();
    // A wait that is over before it is asked for.
    daemon.ends(&one);
    let mut waiting = filter.wait(&one);
    let reply = rest(&mut waiting);
    assert!(reply.contains("StatusCode"), "{reply}");
    let unknown: Reply = filter.call(&format!("POST /v1.41/containers/{}/start", id(9)), "");
    assert_eq!(unknown.status, 403);
}
