#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

const NOON: u64 = 1_795_363_871_000;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn line(user: &str, sport: u16, status: &str, from: u64, to: u64) -> Line {
    let seconds = |at: u64| format!("{}.{:03}", (NOON + at) / 1000, (NOON + at) % 1000);
    let (from, to) = (seconds(from), seconds(to));
    let text = format!(
        r#"{{"ts":{to},"start":{from},"seq":1,"mx":{sport},"src":"10.87.3.11","sport":{sport},"host":"model.example","port":443,"dst":"-","st":200,"ss":"{status}","in":174,"out":9,"ms":56,"sni":"model.example","mode":"splice","err":"-","tier":"-","user":"{user}","tp":"-"}}"#
    );
    Line::parse(text.as_bytes()).unwrap()
}

fn span(number: u8) -> TraceParent {
    format!("00-{TRACE}-00000000000000{number:02x}-01").parse().unwrap()
}

fn raw(kind: &str, parent: Option<TraceParent>, body: &serde_json::Value) -> Raw {
    Raw {
        subject: format!("{kind}.tasks"),
        type_: kind.to_owned(),
        id: String::new(),
        source: String::new(),
        parent,
        payload: body.to_string().into(),
        stream_sequence: 1,
        deliveries: 1,
    }
}

fn permit(number: u8, host: &str, at: u64) -> Raw {
    let body = json!({
        "tier": "tasks", "principal": "zeroclaw-tasks", "layer": "models", "host": host, "port": 4000,
        "method": "POST", "path": "/", "rule": "r", "secret": null, "turn": null, "attachment": "late",
        "trace_id": TRACE, "observed_at": clock::rfc3339(Millis(NOON + at).system_time()),
    });
    raw(EgressPermitted::TYPE, Some(span(number)), &body)
}

fn called(number: u8, class: &str, at: u64, took: u64) -> Raw {
    let body = json!({
        "tier": "tasks", "principal": "zeroclaw-tasks", "model": "m", "confidential": class, "status": 200,
        "turn": "0190f2c0-0000-7000-8000-000000000001", "trace_id": TRACE, "took_millis": took,
        "observed_at": clock::rfc3339(Millis(NOON + at).system_time()),
    });
    raw(ModelCalled::TYPE, Some(span(number)), &body)
}

/// What is due by now, each with its attributes.
fn due(calls: &Calls) -> Vec<(TraceParent, SpanDraft, BTreeMap<&'static str, String>)> {
    let due = calls.due(Instant::now() + PATIENCE);
    due.into_iter().map(|(span, parent)| (parent, span.clone(), span.attributes.into_iter().collect())).collect()
}

#[tokio::test]
async fn a_call_hangs_over_the_tunnel_that_was_opened_for_it() {
    let calls = Calls::default();
    calls.stored(&[permit(1, "assistant-litellm", 1000)]);
    calls.opened(&line("models", 7, "NONE_NONE", 1100, 1150));
    calls.opened(&line("tasks", 8, "NONE_NONE", 1100, 1150));
    calls.opened(&line("tee", 9, "NONE_NONE", 1100, 1150));
    assert_eq!(due(&calls).len(), 0, "it has not ended");
    calls.stored(&[called(1, "none", 2000, 1005)]);
    assert_eq!(calls.due(Instant::now()).len(), 0, "its lines may be on their way");
    let drawn = due(&calls);
    assert_eq!(drawn.len(), 1, "of its own class alone, and not a tier's: {drawn:?}");
    let (parent, drawn, said) = &drawn[0];
    assert_eq!((*parent, drawn.name), (span(1), "squid.tunnel"));
    assert_eq!(drawn.start, Millis(NOON + 1100).system_time());
    assert_eq!(drawn.end, Millis(NOON + 2000).system_time());
    for (name, value) in [("attachment", "late"), ("attached_by", "time"), ("kept", "false"), ("shared", "false")] {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{name}: {said:?}");
    }
    assert_eq!(said["server.address"], "model.example");
    assert!(!said.contains_key("tunnel.bytes_out") && !said.contains_key("candidates"), "nobody knows: {said:?}");
    assert_eq!(due(&calls).len(), 0, "once");
}

#[tokio::test]
async fn a_kept_tunnel_and_one_that_was_closed_say_so() {
    let calls = Calls::default();
    let (first, second) = (line("models", 7, "NONE_NONE", 0, 10), line("models", 8, "NONE_NONE", 500, 510));
    calls.opened(&first);
    calls.closed(Some(&first), &line("models", 7, "TCP_TUNNEL", 0, 1500));
    calls.opened(&second);
    // Over before the call.
    calls.closed(None, &line("models", 9, "TCP_TUNNEL", 100, 900));
    calls.stored(&[called(1, "none", 2000, 1000)]);
    let drawn = due(&calls);
    assert_eq!(drawn.len(), 2, "{drawn:?}");
    let (_, span, said) = &drawn[0];
    assert_eq!((said["kept"].as_str(), said["candidates"].as_str()), ("true", "2"), "{said:?}");
    assert_eq!((said["tunnel.bytes_out"].as_str(), said["tunnel.bytes_in"].as_str()), ("174", "9"));
    assert_eq!(said["opened_at"], clock::rfc3339(Millis(NOON).system_time()));
    assert_eq!(said["tunnel"], id(&first), "as its own trace calls it");
    assert_eq!((span.start, span.end), (Millis(NOON + 1000).system_time(), Millis(NOON + 1500).system_time()));
    assert!(!drawn[1].2.contains_key("tunnel.bytes_out"));
    calls.lost(&second);
    calls.stored(&[called(2, "none", 4000, 1000)]);
    assert_eq!(due(&calls).len(), 0, "neither was there any more");
}

#[tokio::test]
async fn calls_at_the_same_time_share() {
    let calls = Calls::default();
    calls.opened(&line("models", 7, "NONE_NONE", 0, 10));
    calls.stored(&[permit(1, "assistant-litellm", 1000), permit(2, "assistant-litellm", 1500)]);
    calls.stored(&[permit(3, "assistant-litellm-confidential", 1500)]);
    calls.stored(&[called(1, "none", 2000, 1000)]);
    let shared = |drawn: &[(TraceParent, SpanDraft, BTreeMap<&'static str, String>)]| {
        drawn.iter().map(|(parent, _, said)| (*parent, said["shared"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(shared(&due(&calls)), [(span(1), "true".to_owned())], "the second one still runs");
    calls.stored(&[called(3, "required", 9000, 1000)]);
    assert_eq!(due(&calls).len(), 0, "that class has no tunnel");
    calls.stored(&[called(2, "none", 3000, 1500)]);
    assert_eq!(shared(&due(&calls)), [(span(2), "true".to_owned())], "the first one is remembered");
    assert_eq!(calls.state().calls.len(), 0, "and not for longer than that");
    calls.stored(&[called(4, "none", 5000, 1000)]);
    assert_eq!(shared(&due(&calls)), [(span(4), "false".to_owned())], "one after the other is no sharing");
}

#[tokio::test]
async fn an_end_may_be_heard_before_the_permit() {
    let calls = Calls::default();
    calls.stored(&[called(1, "none", 2000, 1000), permit(1, "assistant-litellm", 1400)]);
    calls.closed(None, &line("models", 7, "TCP_TUNNEL", 100, 1200));
    assert_eq!(due(&calls).len(), 0, "nothing of it left before it was permitted");
    // A plain request has one line.
    calls.closed(None, &line("models", 8, "TCP_MISS", 2500, 2900));
    calls.stored(&[called(2, "none", 3000, 1000)]);
    assert_eq!(due(&calls)[0].1.name, "squid.relay");
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let calls = Calls::default();
    for n in 0..=u64::try_from(MOST_TUNNELS).unwrap() {
        calls.opened(&line("models", u16::try_from(n).unwrap(), "NONE_NONE", n, n));
    }
    assert_eq!(calls.state().tunnels.len(), MOST_TUNNELS);
    calls.stored(&[called(1, "none", 9000, 1000)]);
    assert_eq!(due(&calls).len(), MOST_SPANS);
    for _ in 0..=MOST_CALLS {
        calls.stored(&[Raw { parent: Some(service_kit::trace::fresh()), ..permit(2, "assistant-litellm", 0) }]);
    }
    assert_eq!(calls.state().calls.len(), MOST_CALLS);
    calls.state().forget(Instant::now() + LONGEST_TURN);
    assert_eq!(calls.state().calls.len(), 0, "a call whose end was never told");
}
