//! The way to Squid and beyond: what is refused there, by whom it is counted, and how connections are kept.

use assistant_proto::event::{TurnEnded, TurnStarted};
use assistant_proto::name::TurnId;
use assistant_proto::secret::secret_service_server::SecretService;
use assistant_proto::secret::{ExplainDecisionRequest, ListRulesRequest, ListSecretsRequest};
use http::Response;
use secret_broker::control::Control;
use tonic::{Code, Request};

use crate::peers::{Manner, text};
use crate::world::{HOST, Odd, PRINCIPAL, World, body_of, json_of};

#[tokio::test]
async fn an_origin_that_cannot_prove_its_name_gets_nothing() {
    let world = World::odd(Odd { unknown_origin_ca: true, ..Odd::default() }).await;
    let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
    assert_eq!(response.status(), 502);
    assert_eq!(json_of(response).await["reason"], "upstream-unverified");
    assert_eq!(world.only_denial().await["reason"], "upstream-unverified");
    assert!(world.origin.seen().is_empty());
    assert!(world.events("secret.injected").is_empty(), "no secret is put in for a host that is not verified");
}

#[tokio::test]
async fn what_squid_refuses_is_counted_by_squid() {
    let world = World::new().await;
    *world.gate.manner.lock().unwrap() = Manner::Reset;
    let mut tunnel = world.tunnel().await;
    let response = tunnel.fetch("GET", "/api/x", "").await;
    assert_eq!(response.status(), 502);
    assert_eq!(json_of(response).await["reason"], "squid-refused");
    assert_eq!(world.gate.connects().len(), 1);
    assert!(world.events("egress.denied").is_empty() && world.events("egress.allowed").is_empty());
    // And it recovers by itself.
    *world.gate.manner.lock().unwrap() = Manner::Forward;
    assert_eq!(tunnel.fetch("GET", "/api/x", "").await.status(), 200);
}

#[tokio::test]
async fn what_squid_has_no_line_for_is_counted_here() {
    for (manner, reason, events) in [
        (Manner::HangUp, "squid-failed", 1),
        (Manner::Status(503), "squid-failed", 1),
        (Manner::Status(500), "squid-failed", 1),
        // The control: denials of Squid's, which it logs.
        (Manner::Status(407), "squid-refused", 0),
        (Manner::Status(403), "squid-refused", 0),
    ] {
        let world = World::new().await;
        *world.gate.manner.lock().unwrap() = manner;
        let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
        assert_eq!(response.status(), 502);
        assert_eq!(json_of(response).await["reason"], reason, "{manner:?}");
        let denied = world.events("egress.denied");
        assert_eq!(denied.len(), events, "{manner:?}: {denied:?}");
        assert!(denied.iter().all(|event| event["reason"] == reason));
        assert!(world.events("egress.allowed").is_empty());
    }
}

#[tokio::test]
async fn without_squid_there_is_no_way_out() {
    let world = World::odd(Odd { no_gate: true, ..Odd::default() }).await;
    assert!(*world.state.upstream.reachable().borrow());
    let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
    assert_eq!(response.status(), 503);
    assert_eq!(json_of(response).await["reason"], "squid-unreachable");
    assert_eq!(world.only_denial().await["reason"], "squid-unreachable");
    assert!(!*world.state.upstream.reachable().borrow());
    assert!(world.origin.seen().is_empty());
}

#[tokio::test]
async fn a_connection_is_kept_for_its_turn() {
    let world = World::new().await;
    let mut tunnel = world.tunnel().await;
    for _ in 0..3 {
        assert_eq!(body_of(tunnel.fetch("GET", "/api/x", "").await).await, "ok");
    }
    assert_eq!(world.gate.connects().len(), 1);
    // The next turn gets a connection of its own, so that Squid's record hangs in the right trace.
    let tier = "tasks".parse::<assistant_proto::name::TierName>().unwrap();
    let turn = world.state.turns.current(&tier).turn.unwrap();
    let ended = TurnEnded {
        tier: tier.clone(),
        turn,
        outcome: String::new(),
        trace_id: String::new(),
        ended_at: String::new(),
        took_millis: 0,
    };
    world.state.turns.ended(&ended);
    world.state.turns.started(&TurnStarted {
        tier,
        turn: TurnId::generate(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap(),
        channel: String::new(),
        conversation: String::new(),
        started_at: String::new(),
    });
    assert_eq!(tunnel.fetch("GET", "/api/x", "").await.status(), 200);
    let connects = world.gate.connects();
    assert_eq!(connects.len(), 2);
    assert!(connects[1].contains("0af7651916cd43dd8448eb211c80319c"), "{}", connects[1]);
    assert_eq!(world.wait_for("egress.allowed", 4).await.len(), 4);
}

#[tokio::test]
async fn an_origin_that_closes_is_dialled_again() {
    let world = World::new().await;
    world.origin.answers(|_| Response::builder().header("connection", "close").body(text("bye")).unwrap());
    let mut tunnel = world.tunnel().await;
    for _ in 0..2 {
        assert_eq!(body_of(tunnel.fetch("POST", "/api/x", "y").await).await, "bye");
    }
    assert_eq!(world.gate.connects().len(), 2);
    assert_eq!(world.origin.seen().len(), 2, "each request arrives once");
}

#[tokio::test]
async fn draining_closes_the_door_and_finishes_what_runs() {
    let world = World::new().await;
    let mut tunnel = world.tunnel().await;
    assert_eq!(tunnel.fetch("GET", "/api/x", "").await.status(), 200);
    world.cx.shutdown.draining().cancel();
    let refused = async {
        while tokio::net::TcpStream::connect(world.proxy).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::world::DEADLINE, refused).await.unwrap();
    assert_eq!(world.wait_for("egress.allowed", 1).await.len(), 1);
}

#[tokio::test]
async fn operators_see_rules_and_explanations_but_no_values() {
    let world = World::new().await;
    let control = Control::new(std::sync::Arc::clone(&world.state));
    let secrets = control.list_secrets(Request::new(ListSecretsRequest {})).await.unwrap().into_inner().secrets;
    assert_eq!(secrets.len(), 1);
    assert!(secrets[0].present);
    assert_eq!((secrets[0].name.as_str(), &secrets[0].rules[..]), ("marvin_token", &["tasks/marvin".to_owned()][..]));

    let rules = control.list_rules(Request::new(ListRulesRequest { tier: "tasks".to_owned() })).await.unwrap();
    assert_eq!(rules.into_inner().rules[0].source, "tiers.yaml:31");
    let unknown = control.list_rules(Request::new(ListRulesRequest { tier: "nobody".to_owned() })).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);

    let explain = |principal: &str, url: String| {
        let (principal, method) = (principal.to_owned(), "GET".to_owned());
        control.explain_decision(Request::new(ExplainDecisionRequest { principal, method, url }))
    };
    let allowed = explain(PRINCIPAL, format!("https://{HOST}/api/x")).await.unwrap().into_inner();
    assert_eq!((allowed.allowed, allowed.rule.as_str(), allowed.source.as_str()), (true, "marvin", "tiers.yaml:31"));
    let denied = explain(PRINCIPAL, "https://other.example/".to_owned()).await.unwrap().into_inner();
    assert!(!denied.allowed && denied.reason.starts_with("host-not-allowed") && denied.fix.contains("other.example"));
    assert_eq!(explain(PRINCIPAL, "ftp://x".to_owned()).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(explain("nobody", format!("https://{HOST}/")).await.unwrap_err().code(), Code::NotFound);

    let world = World::odd(Odd { no_secret: true, ..Odd::default() }).await;
    let control = Control::new(std::sync::Arc::clone(&world.state));
    let request = ExplainDecisionRequest {
        principal: PRINCIPAL.to_owned(),
        method: "GET".to_owned(),
        url: format!("https://{HOST}/api/x"),
    };
    let missing = control.explain_decision(Request::new(request)).await.unwrap().into_inner();
    assert!(!missing.allowed && missing.reason.starts_with("secret-missing"));
}

#[tokio::test]
async fn an_idle_connection_is_closed_though_the_tunnel_stays() {
    let world = World::new().await;
    let mut tunnel = world.tunnel().await;
    assert_eq!(body_of(tunnel.fetch("GET", "/api/x", "").await).await, "ok");
    let closed = async {
        while world.gate.open() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::world::DEADLINE, closed).await.unwrap();
    assert_eq!(body_of(tunnel.fetch("GET", "/api/x", "").await).await, "ok");
    assert_eq!(world.gate.connects().len(), 2);
}
