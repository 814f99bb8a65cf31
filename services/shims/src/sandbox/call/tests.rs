#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parse(line: &str) -> Result<Call, Refused> {
    let (method, target) = line.split_once(' ').unwrap();
    let target = target.replace("<id>", ID);
    let (path, query) = target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
    Call::parse(&Method::from_bytes(method.as_bytes()).unwrap(), path, query)
}

#[test]
fn what_exists_is_written_anew() {
    for (asked, sent) in [
        ("HEAD /_ping", "GET /_ping"),
        ("GET /_ping", "GET /_ping"),
        ("POST /v1.41/containers/create", "POST /v1.41/containers/create"),
        (
            "POST /v1.50/containers/<id>/attach?stderr=1&stdin=1&stdout=1&stream=1",
            "POST /v1.50/containers/<id>/attach?stream=1&stdin=1&stdout=1&stderr=1",
        ),
        ("POST /v1.41/containers/<id>/attach?stream=true&detachKeys=", "POST /v1.41/containers/<id>/attach?stream=1"),
        ("POST /v1.41/containers/<id>/start", "POST /v1.41/containers/<id>/start"),
        ("POST /v1.41/containers/<id>/wait", "POST /v1.41/containers/<id>/wait?condition=not-running"),
        ("POST /v1.41/containers/<id>/wait?condition=removed", "POST /v1.41/containers/<id>/wait?condition=removed"),
        (
            "GET /v1.41/containers/<id>/logs?stderr=1&stdout=1&tail=all",
            "GET /v1.41/containers/<id>/logs?follow=0&stdout=1&stderr=1&timestamps=0",
        ),
        (
            "GET /v1.41/containers/<id>/logs?follow=1&since=1700000000.000000001&tail=20",
            "GET /v1.41/containers/<id>/logs?follow=1&stdout=0&stderr=0&timestamps=0&since=1700000000.000000001&tail=20",
        ),
        ("POST /v1.41/containers/<id>/kill", "POST /v1.41/containers/<id>/kill?signal=KILL"),
        ("POST /v1.41/containers/<id>/kill?signal=SIGTERM", "POST /v1.41/containers/<id>/kill?signal=TERM"),
        ("POST /v1.41/containers/<id>/kill?signal=2", "POST /v1.41/containers/<id>/kill?signal=INT"),
        ("DELETE /v1.41/containers/<id>?force=1&v=1", "DELETE /v1.41/containers/<id>?force=1&v=1"),
        ("DELETE /v1.52/containers/<id>", "DELETE /v1.52/containers/<id>?force=0&v=0"),
    ] {
        let (method, target) = parse(asked).unwrap_or_else(|refused| panic!("{asked}: {refused}")).target();
        assert_eq!(format!("{method} {target}"), sent.replace("<id>", ID), "{asked}");
    }
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    use Operation as O;
    use Reason::*;
    for (asked, operation, reason) in [
        ("POST /v1.41/build?t=x", O::Build, NotOffered),
        ("POST /session", O::Build, NotOffered),
        ("POST /v1.41/commit?container=x", O::Build, NotOffered),
        ("POST /v1.41/images/create?fromImage=debian&tag=bookworm", O::Pull, NotOffered),
        ("POST /v1.41/images/load", O::Pull, NotOffered),
        ("POST /v1.41/containers/<id>/exec", O::Exec, NotOffered),
        ("POST /v1.41/exec/<id>/start", O::Exec, NotOffered),
        ("PUT /v1.41/containers/<id>/archive?path=/", O::Copy, NotOffered),
        ("GET /v1.41/containers/<id>/archive?path=/etc", O::Copy, NotOffered),
        ("GET /v1.41/containers/<id>/export", O::Copy, NotOffered),
        ("GET /v1.41/containers/<id>/attach/ws", O::Copy, NotOffered),
        ("GET /v1.41/containers/<id>/attach", O::Copy, NotOffered),
        ("GET /v1.41/containers/json", O::Inspect, NotOffered),
        ("GET /v1.41/containers/<id>/json", O::Inspect, NotOffered),
        ("GET /v1.41/containers/<id>/top", O::Inspect, NotOffered),
        ("GET /v1.41/info", O::Inspect, NotOffered),
        ("GET /v1.41/version", O::Inspect, NotOffered),
        ("GET /v1.41/events", O::Inspect, NotOffered),
        ("POST /_ping", O::Inspect, NotOffered),
        ("POST /v1.41/containers/<id>/update", O::Change, NotOffered),
        ("POST /v1.41/containers/<id>/resize?h=1&w=1", O::Change, NotOffered),
        ("POST /v1.41/containers/<id>/rename?name=x", O::Change, NotOffered),
        ("POST /v1.41/containers/<id>/stop", O::Change, NotOffered),
        ("POST /v1.41/containers/prune", O::Change, NotOffered),
        ("GET /v1.41/containers/create", O::Change, NotOffered),
        ("GET /v1.41/containers/<id>/start", O::Change, NotOffered),
        ("POST /v1.41/networks/create", O::Network, NotOffered),
        ("POST /v1.41/volumes/create", O::Volume, NotOffered),
        ("DELETE /v1.41/images/assistant-sandbox:latest", O::Image, NotOffered),
        ("POST /v1.41/swarm/init", O::Cluster, NotOffered),
        ("POST /v1.41/plugins/pull", O::Cluster, NotOffered),
        ("GET /", O::Other, NotOffered),
        ("GET /v1.41", O::Other, NotOffered),
        ("POST //containers/create", O::Other, NotOffered),
        ("POST /v1.41//containers/create", O::Other, NotOffered),
        ("POST /v1.41/v1.41/containers/create", O::Other, NotOffered),
        ("POST /v1.41/containers/create/", O::Change, NotOffered),
        ("POST /v1.41/Containers/create", O::Other, NotOffered),
        ("POST /v1.41/containers/<id>/../create", O::Change, NotOffered),
        ("POST /v1.41/containers/%63reate", O::Other, Malformed),
        ("POST /v1.41/containers;x/create", O::Other, Malformed),
        ("POST /containers/create", O::Create, ApiVersion),
        ("POST /v1.39/containers/create", O::Create, ApiVersion),
        ("POST /v1.99/containers/create", O::Create, ApiVersion),
        ("POST /v1.041/containers/create", O::Create, ApiVersion),
        ("POST /v1.+41/containers/create", O::Other, Malformed),
        ("POST /v2.41/containers/create", O::Create, ApiVersion),
        ("POST /v1/containers/create", O::Create, ApiVersion),
        ("POST /v1.41/containers/create?name=x", O::Create, Parameter),
        ("POST /v1.41/containers/create?platform=linux", O::Create, Parameter),
        ("POST /v1.41/containers/<id>/start?checkpoint=x", O::Start, Parameter),
        ("POST /v1.41/containers/<id>/start?checkpoint-dir=.", O::Start, Parameter),
        ("POST /v1.41/containers/<id>/start?x=%2f", O::Start, Parameter),
        ("POST /v1.41/containers/<id>/attach?stream=1&stream=0", O::Attach, Parameter),
        ("POST /v1.41/containers/<id>/attach?stream=2", O::Attach, Parameter),
        ("POST /v1.41/containers/<id>/attach", O::Attach, Parameter),
        ("POST /v1.41/containers/<id>/attach?stream=1&detachKeys=ctrl-p", O::Attach, Parameter),
        ("POST /v1.41/containers/<id>/wait?condition=never", O::Wait, Parameter),
        ("GET /v1.41/containers/<id>/logs?since=2024-01-01", O::Logs, Parameter),
        ("GET /v1.41/containers/<id>/logs?tail=-1", O::Logs, Parameter),
        ("GET /v1.41/containers/<id>/logs?tail=%2B1", O::Logs, Parameter),
        ("GET /v1.41/containers/<id>/logs?details=1", O::Logs, Parameter),
        ("POST /v1.41/containers/<id>/kill?signal=STOP", O::Kill, Parameter),
        ("POST /v1.41/containers/<id>/kill?signal=99", O::Kill, Parameter),
        ("DELETE /v1.41/containers/<id>?link=1", O::Remove, Parameter),
        ("POST /v1.41/containers/sandbox-name/start", O::Start, ForeignContainer),
        ("POST /v1.41/containers/0123456789ab/kill", O::Kill, ForeignContainer),
        ("DELETE /v1.41/containers/..", O::Remove, ForeignContainer),
        (
            "DELETE /v1.41/containers/0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef",
            O::Remove,
            ForeignContainer,
        ),
    ] {
        let refused = parse(asked).expect_err(asked);
        assert_eq!((refused.operation, refused.reason), (operation, reason), "{asked}: {refused}");
    }
}

proptest! {
    /// What is sent on has the shape of one of the few calls, whatever was asked.
    #[test]
    fn nothing_else_is_ever_sent(
        method in proptest::sample::select(vec!["GET", "HEAD", "POST", "PUT", "DELETE"]),
        path in "(/v1\\.[0-9]{2})?(/(containers|create|start|attach|wait|logs|kill|json|exec|\\.\\.|[!-~]{0,6}|<id>)){0,4}",
        query in proptest::option::of("((stream|signal|force|tail|since|condition|x)=[!-~]{0,6}&?){0,3}"),
    ) {
        let path = path.replace("<id>", ID);
        if let Ok(call) = Call::parse(&Method::from_bytes(method.as_bytes()).unwrap(), &path, query.as_deref()) {
            let (sent, target) = call.target();
            prop_assert!(target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-.?&=".contains(&byte)), "{target}");
            let path = target.split('?').next().unwrap();
            let rest = path.strip_prefix("/v1.").and_then(|rest| rest.get(2..)).unwrap_or(path);
            let rest = rest.replace(ID, "<id>");
            let known = ["/_ping", "/containers/create", "/containers/<id>/attach", "/containers/<id>/start",
                "/containers/<id>/wait", "/containers/<id>/logs", "/containers/<id>/kill", "/containers/<id>"];
            prop_assert!(known.contains(&rest.as_str()), "{sent} {target}");
            prop_assert_eq!(sent == Method::DELETE, rest == "/containers/<id>");
        }
    }
}
