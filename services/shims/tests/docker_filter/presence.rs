//! A container lives while a client is present: attached, or waiting.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use serde_json::json;

use crate::daemon::id;
use crate::filter::{Filter, rest};

#[test]
fn a_client_that_is_killed_takes_its_container_along() {
    let (filter, daemon) = Filter::with_daemon();
    daemon.is_deaf(true);
    let one = filter.create();
    let (attached, waiting) = (filter.attach(&one), filter.wait(&one));
    filter.start_container(&one);
    drop(attached);
    // The one that waits is still there, so the container is.
    let two = filter.create();
    assert!(!daemon.lines().iter().any(|line| line.starts_with("DELETE")), "{:?}", daemon.lines());
    drop(waiting);
    daemon.wait_for(&format!("DELETE /containers/{one}?force=1&v=1"));

    // A client that only has no more input is not gone.
    daemon.is_deaf(false);
    let mut attached = filter.attach(&two);
    let waiting = filter.wait(&two);
    filter.start_container(&two);
    attached.write_all(b"last words ").unwrap();
    attached.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    attached.read_to_string(&mut said).unwrap();
    assert_eq!(said, "last words end of input");
    let mut told = String::new();
    { waiting }.read_to_string(&mut told).unwrap();
    assert!(told.contains("StatusCode"), "{told}");
    assert!(!daemon.lines().contains(&format!("DELETE /containers/{two}?force=1&v=1")), "it ended by itself");
}

#[test]
fn nothing_runs_in_the_background() {
    let (filter, daemon) = Filter::with_daemon();
    let one = filter.create();
    // As `docker run -d` does it since client 28.
    let mut waiting = filter.wait(&one);
    let reply = filter.call(&format!("POST /v1.41/containers/{one}/start"), "");
    assert_eq!(reply.status, 403);
    // It is removed, which is what a client waits for.
    daemon.wait_for(&format!("DELETE /containers/{one}"));
    assert!(rest(&mut waiting).contains("StatusCode"));
    assert!(reply.message().contains("background"), "{reply:?}");
    assert_eq!(filter.refusal()["reason"], "detached");
    assert!(!daemon.lines().iter().any(|line| line.ends_with("/start")), "{:?}", daemon.lines());
}

#[test]
fn there_is_a_most_of_containers_and_those_without_a_client_make_room() {
    let (filter, daemon) = Filter::with_daemon();
    let all: Vec<String> = (0..32).map(|_| filter.create()).collect();
    let present: Vec<_> = all.iter().skip(1).map(|id| filter.attach(id)).collect();
    let new = filter.create();
    daemon.wait_for(&format!("DELETE /containers/{}?force=1&v=1", id(1)));
    let at_new = filter.attach(&new);
    let reply = filter.call("POST /v1.41/containers/create", &crate::filter::least().to_string());
    assert_eq!(reply.status, 403, "{reply:?}");
    let refusal = filter.refusal();
    assert_eq!((&refusal["operation"], &refusal["reason"]), (&json!("create"), &json!("too-many")));
    drop((present, at_new));
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    let (filter, daemon) = Filter::with_daemon();
    daemon.writes_at_attach(64 * 1024 * 1024);
    let stuck: Vec<_> = (0..8)
        .map(|_| {
            let id = filter.create();
            let attached = filter.attach(&id);
            filter.start_container(&id);
            (id, attached)
        })
        .collect();
    daemon.writes_at_attach(0);
    let one = filter.create();
    let mut attached = filter.attach(&one);
    filter.start_container(&one);
    attached.write_all(b"x").unwrap();
    attached.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    attached.read_to_string(&mut said).unwrap();
    assert_eq!(said, "xend of input");
    for (id, attached) in stuck {
        drop(attached);
        daemon.wait_for(&format!("DELETE /containers/{id}?force=1&v=1"));
    }
}
