//! What a hostile client tries, and that the daemon hears nothing of it.

use std::io::Write as _;
use std::time::Instant;

use serde_json::{Value, json};

use crate::daemon::id;
use crate::filter::{Filter, least, rest};

#[test]
fn refusals_are_told_to_the_client_recorded_and_nothing_is_sent() {
    let (filter, daemon) = Filter::with_daemon();
    let with = |field: &str, value: Value| {
        let mut body = least();
        body["HostConfig"][field] = value;
        ("POST /v1.41/containers/create", body.to_string())
    };
    let foreign = format!("POST /v1.41/containers/{}/start", id(5));
    for (line, body, operation, reason, said) in [
        (with("Privileged", json!(true)), "create", "privileged", "HostConfig.Privileged"),
        (with("SecurityOpt", json!(["seccomp=unconfined"])), "create", "security-opt", "HostConfig.SecurityOpt"),
        (with("CapAdd", json!(["ALL"])), "create", "cap-add", "HostConfig.CapAdd"),
        (with("Devices", json!([{"PathOnHost": "/dev/mem"}])), "create", "device", "HostConfig.Devices"),
        (with("PidMode", json!("host")), "create", "host-namespace", "HostConfig.PidMode"),
        (with("Binds", json!(["/:/workspace"])), "create", "mount", "HostConfig.Binds"),
        (with("Binds", json!(["/run/sandbox:/workspace"])), "create", "mount", "HostConfig.Binds"),
        (with("NetworkMode", json!("bridge")), "create", "network", "--network none"),
        (("POST /v1.41/images/create?fromImage=alpine", String::new()), "pull", "not-offered", "one image"),
        (("POST /v1.41/build?t=x", "x".repeat(100_000)), "build", "not-offered", "built by the operator"),
        (("POST /v1.41/containers/x/exec", "{}".to_owned()), "exec", "not-offered", "docker run"),
        ((&foreign, String::new()), "start", "foreign-container", "not created"),
        (("POST /v1.39/containers/create", least().to_string()), "create", "api-version", "v1.40"),
    ]
    .map(|((line, body), operation, reason, said)| (line, body, operation, reason, said))
    {
        let reply = filter.call(line, &body);
        assert_eq!(reply.status, 403, "{line}: {reply:?}");
        assert!(reply.message().starts_with("refused by the sandbox: ") && reply.message().contains(said), "{reply:?}");
        // Two of one kind within a second are one line; the second of those is told later, with the next kinds between.
        if line.ends_with("create") && body.contains("/run/sandbox") {
            continue;
        }
        let refusal = filter.refusal();
        assert_eq!((&refusal["operation"], &refusal["reason"]), (&json!(operation), &json!(reason)), "{refusal}");
        assert!(refusal["detail"].as_str().unwrap().contains(said), "{refusal}");
    }
    assert_eq!(daemon.lines(), Vec::<String>::new());
}

#[test]
fn a_flood_of_refusals_is_counted_to_the_last() {
    let (filter, _daemon) = Filter::with_daemon();
    for n in 0..300 {
        let reply = filter.call(&format!("GET /v1.41/containers/json?{n}=1"), "");
        assert_eq!(reply.status, 403);
    }
    let (mut lines, mut count) = (0_u64, 0);
    let begun = Instant::now();
    while count < 300 {
        let refusal = filter.refusal();
        assert_eq!(refusal["operation"], "inspect", "{refusal}");
        lines += 1;
        count += refusal.get("count").map_or(1, |count| count.as_u64().unwrap());
    }
    assert_eq!(count, 300);
    assert!(lines <= 4 + 2 * begun.elapsed().as_secs() + 30, "{lines} lines");
}

#[test]
fn only_one_way_to_say_where_a_request_ends() {
    let (filter, daemon) = Filter::with_daemon();
    let create = "POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\n";
    let body = least().to_string();
    let length = body.len();
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    let one = filter.create();
    let known = daemon.lines().len();
    for (name, request) in [
        ("chunks", format!("{create}Transfer-Encoding: chunked\r\n\r\n{chunked}")),
        (
            "chunks and a length",
            format!("{create}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        ),
        ("a length and chunks", format!("{create}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n{chunked}")),
        ("another coding", format!("{create}Transfer-Encoding: gzip\r\n\r\n{body}")),
        (
            "a coding in disguise",
            format!("{create}Transfer-Encoding: xchunked\r\nContent-Length: {length}\r\n\r\n{body}"),
        ),
        ("two lengths", format!("{create}Content-Length: {length}\r\nContent-Length: 3\r\n\r\n{body}")),
        ("a list of lengths", format!("{create}Content-Length: {length}, 3\r\n\r\n{body}")),
        ("a signed length", format!("{create}Content-Length: +{length}\r\n\r\n{body}")),
        ("a space before the colon", format!("{create}Content-Length : {length}\r\n\r\n{body}")),
        ("a folded header", format!("{create}X: a\r\n b\r\nContent-Length: {length}\r\n\r\n{body}")),
        ("a zero byte", format!("{create}X: a\0b\r\nContent-Length: {length}\r\n\r\n{body}")),
        ("an old version", format!("POST /v1.41/containers/create HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")),
        (
            "a whole address",
            format!(
                "POST http://d/v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
        ),
        (
            "a body at a start",
            format!("POST /v1.41/containers/{one}/start HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{{}}"),
        ),
        (
            "an escape in the path",
            format!("POST /v1.41/containers%2fcreate HTTP/1.1\r\nHost: d\r\nContent-Length: {length}\r\n\r\n{body}"),
        ),
        ("headers without end", format!("{create}{}\r\n", "X: y\r\n".repeat(20_000))),
        ("a body too large", format!("{create}Content-Length: 4000000\r\n\r\n{}", " ".repeat(2_000_000))),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\r\n\r\n".to_owned()),
    ] {
        let reply = filter.raw(request.as_bytes());
        assert!((400..500).contains(&reply.status), "{name}: {reply:?}");
        assert_eq!(daemon.lines().len(), known, "{name}: {:?}", daemon.lines());
    }
    // All of it was recorded, folded or not.
    assert!(filter.refusal()["reason"].is_string());
    // Nothing can follow a request: one a connection.
    let two =
        format!("GET /_ping HTTP/1.1\r\nHost: d\r\n\r\nPOST /v1.41/containers/{one}/kill HTTP/1.1\r\nHost: d\r\n\r\n");
    let reply = filter.raw(two.as_bytes());
    assert_eq!((reply.status, reply.body.as_str()), (200, "OK"));
    assert!(!daemon.lines().iter().any(|line| line.contains("/kill")), "{:?}", daemon.lines());
}

#[test]
fn streams_are_attached_in_one_way_only() {
    let (filter, daemon) = Filter::with_daemon();
    let one = filter.create();
    let line = format!("POST /v1.41/containers/{one}/attach?stream=1&stdout=1");
    let reply = filter.call(&line, "");
    assert_eq!((reply.status, filter.refusal()["reason"].clone()), (403, json!("framing")));
    let reply =
        filter.raw(format!("{line} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n").as_bytes());
    assert_eq!(reply.status, 403, "{reply:?}");
    assert!(!daemon.lines().iter().any(|line| line.contains("attach")), "{:?}", daemon.lines());
}

#[test]
fn a_client_that_dawdles_is_sent_away() {
    let (filter, daemon) = Filter::with_daemon();
    let mut head = filter.connect();
    head.write_all(b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d").unwrap();
    let mut body = filter.connect();
    body.write_all(b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\n{").unwrap();
    // Others are served meanwhile.
    filter.create();
    assert!(rest(&mut body).contains("took longer"));
    let said = rest(&mut head);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    assert_eq!(filter.refusal()["reason"], "too-slow");
    assert_eq!(daemon.lines().len(), 1);
}
