#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;

#[test]
fn ids_depend_on_the_split() {
    assert_eq!(EventId::derive(&[b"ab", b"c"]), EventId::derive(&[b"ab", b"c"]));
    assert_ne!(EventId::derive(&[b"ab", b"c"]), EventId::derive(&[b"a", b"bc"]));
    for id in [EventId::derive(&[b"a"]), EventId::unique()] {
        assert_eq!(id.as_str().parse(), Ok(id));
    }
    assert!("00-".parse::<EventId>().is_err());
}

#[test]
fn layers_are_spelled_alike_everywhere() {
    for (layer, text) in [
        (Layer::Dns, "dns"),
        (Layer::Broker, "broker"),
        (Layer::Models, "models"),
        (Layer::Mcp, "mcp"),
        (Layer::Packet, "packet"),
        (Layer::Squid, "squid"),
        (Layer::Sandbox, "sandbox"),
    ] {
        assert_eq!(layer.as_str(), text);
        assert_eq!(serde_json::to_value(layer).unwrap(), text);
        assert_eq!(serde_json::from_value::<Layer>(text.into()).unwrap(), layer);
    }
    assert!(serde_json::from_str::<Layer>("\"vm\"").is_err());
}

#[test]
fn what_identifies_a_request_is_the_same_event_with_more_fields() {
    let denied = EgressDenied {
        tier: Scope::Stack,
        principal: None,
        layer: Layer::Broker,
        host: "a.example".to_owned(),
        port: Some(443),
        protocol: "https".to_owned(),
        reason: "r".to_owned(),
        detail: "d".to_owned(),
        fix: "f".to_owned(),
        count: 2,
        turn: None,
        attachment: Attachment::Late,
        trace_id: String::new(),
        observed_at: String::new(),
    };
    let event = OfRequest {
        event: denied.clone(),
        asked_method: Some("GET".to_owned()),
        target_sha256: Some("00".to_owned()),
        target_bytes: Some(7),
        cut: None,
    };
    assert_eq!((event.subject(), event.measure()), (denied.subject(), denied.measure()));
    let wire = serde_json::to_value(&event).unwrap();
    assert_eq!((&wire["host"], &wire["target_bytes"], wire.get("cut")), (&"a.example".into(), &7.into(), None));
    assert_eq!(serde_json::from_value::<EgressDenied>(wire.clone()).unwrap(), denied);
    assert_eq!(serde_json::from_value::<OfRequest<EgressDenied>>(wire).unwrap(), event);
}

#[test]
fn subject_comes_from_the_value() {
    let event = FloorChecked { passed: 1, failed: 0, checked_at: String::new() };
    assert_eq!(event.subject(), "floor.checked.stack");
    let scope: Result<Scope, _> = serde_json::from_str("\"a.b\"");
    assert!(scope.is_err());
}
