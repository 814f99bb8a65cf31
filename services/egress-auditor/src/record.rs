//! What the audit store holds: one entry per event, of this service or another. Pure.

use assistant_proto::event::{EgressAllowed, EgressDenied, Event, EventId, FloorBreached};
use serde_json::Value;

/// What is shown of a field; the payload has it in full.
const MOST_FIELD_CHARS: usize = 512;
/// What is kept of a body that is not JSON.
const MOST_UNDECODABLE_BYTES: usize = 16 * 1024;
/// Fields of a sighting that depend on when it was seen.
const OF_THE_MOMENT: [&str; 4] = ["turn", "attachment", "trace_id", "observed_at"];
/// Largest count that SQLite can hold.
const MOST_COUNT: u64 = i64::MAX.unsigned_abs();

/// An event on its way into the store. Absent text is empty, absent numbers are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `ce-id`: the same event is stored once.
    pub event_id: String,
    /// CloudEvents type, for example `egress.denied`.
    pub kind: String,
    /// Tier, or `stack`.
    pub tier: String,
    /// Container, where it is known.
    pub principal: String,
    /// The wall it died at, or the door it left by.
    pub layer: String,
    /// Host name, address or DNS name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Stable code.
    pub reason: String,
    /// What would allow it.
    pub fix: String,
    /// 32 hex digits.
    pub trace_id: String,
    /// Equal attempts counted in it.
    pub count: u64,
    /// The event as JSON, exactly as published.
    pub payload: String,
    /// Seen by this service, and so published by it: kept in the outbox until it comes back from the bus.
    pub own: bool,
}

impl Entry {
    /// An event of this service.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which is a bug.
    pub fn own<E: Event>(event: &E, id: &EventId) -> Result<Self, serde_json::Error> {
        let payload = serde_json::to_string(event)?;
        let mut entry = Self::from_json(id.as_str().to_owned(), E::TYPE, event.scope(), payload);
        entry.own = true;
        Ok(entry)
    }

    /// An event from the bus. Type and tier come from the subject, which the server checked, not from the body.
    #[must_use]
    pub fn from_bus(subject: &str, id: &str, payload: &[u8]) -> Self {
        let (kind, tier) = subject.rsplit_once('.').unwrap_or((subject, ""));
        let id = if id.is_empty() {
            // Without an id a redelivery can only be recognised by its content.
            EventId::derive(&[b"no id", subject.as_bytes(), payload]).as_str().to_owned()
        } else {
            id.to_owned()
        };
        let payload = match std::str::from_utf8(payload) {
            Ok(text) if serde_json::from_str::<Value>(text).is_ok() => text.to_owned(),
            // Kept aside rather than dropped: that somebody published it is itself a fact.
            _ => {
                let kept = payload.get(..payload.len().min(MOST_UNDECODABLE_BYTES)).unwrap_or_default();
                serde_json::json!({ "undecodable": hex::encode(kept), "bytes": payload.len() }).to_string()
            }
        };
        Self::from_json(id, kind, tier, payload)
    }

    /// A record about the record itself: so many events are missing from it, or nobody knows how many. It is of this store
    /// only: nobody publishes it.
    #[must_use]
    pub fn incomplete(id: &str, reason: &str, count: u64, detail: &str, fix: &str) -> Self {
        let body = serde_json::json!({ "reason": reason, "count": count, "detail": detail, "fix": fix });
        Self::from_bus("audit.incomplete.stack", id, body.to_string().as_bytes())
    }

    /// One sentence for a person on what happened; empty where the event has none. Not a field of its own in the store.
    #[must_use]
    pub fn detail(&self) -> String {
        let body: Value = serde_json::from_str(&self.payload).unwrap_or_default();
        service_kit::text::harmless_line(
            body.get("detail").and_then(Value::as_str).unwrap_or_default(),
            MOST_FIELD_CHARS,
        )
    }

    /// Whether this is what a stored payload tells already. Something seen twice, such as a line of Squid's log read
    /// again after a restart, differs in what depends on the moment: which turn was running, and the time where the line
    /// has none.
    #[must_use]
    pub fn tells_the_same(&self, stored: &str) -> bool {
        let lasting = |payload: &str| {
            let mut body: serde_json::Map<String, Value> = serde_json::from_str(payload).ok()?;
            for field in OF_THE_MOMENT {
                body.remove(field);
            }
            Some(body)
        };
        match (lasting(&self.payload), lasting(stored)) {
            (Some(this), Some(stored)) => this == stored,
            _ => false,
        }
    }

    fn from_json(event_id: String, kind: &str, tier: &str, payload: String) -> Self {
        let body: Value = serde_json::from_str(&payload).unwrap_or_default();
        let text = |name: &str| {
            let text = body.get(name).and_then(Value::as_str).unwrap_or_default();
            service_kit::text::harmless_line(text, MOST_FIELD_CHARS)
        };
        let port = body.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
        Self {
            event_id,
            kind: kind.to_owned(),
            tier: tier.to_owned(),
            principal: text("principal"),
            layer: text("layer"),
            host: text("host"),
            port,
            reason: text("reason"),
            fix: text("fix"),
            trace_id: text("trace_id"),
            // SQLite's integers are signed; a count beyond them is a lie, and kept as the largest.
            count: body.get("count").and_then(Value::as_u64).unwrap_or(1).min(MOST_COUNT),
            payload,
            own: false,
        }
    }
}

/// A stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// 1 for the first record, without gaps.
    pub sequence: u64,
    /// RFC 3339, UTC.
    pub recorded_at: String,
    /// What was recorded; `own` is not stored and false here.
    pub entry: Entry,
    /// SHA-256 over this record and the previous hash.
    pub hash: [u8; 32],
}

/// An own event, as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// An attempt died.
    Denied(EgressDenied),
    /// A request left.
    Allowed(EgressAllowed),
    /// A wall does not stand.
    Breached(FloorBreached),
}

impl Own {
    /// As an entry.
    ///
    /// # Errors
    /// As [`Entry::own`].
    pub fn entry(&self, id: &EventId) -> Result<Entry, serde_json::Error> {
        match self {
            Self::Denied(event) => Entry::own(event, id),
            Self::Allowed(event) => Entry::own(event, id),
            Self::Breached(event) => Entry::own(event, id),
        }
    }

    /// Back from the store; none for types this service does not publish.
    #[must_use]
    pub fn from_stored(kind: &str, payload: &str) -> Option<Self> {
        match kind {
            EgressDenied::TYPE => serde_json::from_str(payload).ok().map(Self::Denied),
            EgressAllowed::TYPE => serde_json::from_str(payload).ok().map(Self::Allowed),
            FloorBreached::TYPE => serde_json::from_str(payload).ok().map(Self::Breached),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_from_the_body_and_scope_from_the_subject() {
        let body = br#"{"tier":"other","principal":"zeroclaw-tasks","layer":"broker","host":"a.b\u001b[2J","port":443,
                        "reason":"no-rule","fix":"x","trace_id":"ab","count":3}"#;
        let entry = Entry::from_bus("egress.denied.tasks", "id1", body);
        assert_eq!((entry.kind.as_str(), entry.tier.as_str()), ("egress.denied", "tasks"));
        assert_eq!((entry.host.as_str(), entry.port, entry.count), ("a.b\\u{1b}[2J", 443, 3));
        assert_eq!(entry.payload.as_bytes(), body);
        assert!(!entry.own);
    }

    #[test]
    fn the_moment_makes_no_other_event() {
        let of = |body: &str| Entry::from_bus("egress.denied.tasks", "id", body.as_bytes());
        let entry = of(r#"{"host":"a.b","count":1,"turn":"t","attachment":"active","trace_id":"x","observed_at":"1"}"#);
        for (stored, same) in [
            (
                r#"{"host":"a.b","count":1,"turn":null,"attachment":"background","trace_id":"y","observed_at":"2"}"#,
                true,
            ),
            (r#"{"host":"a.c","count":1,"turn":"t","attachment":"active","trace_id":"x","observed_at":"1"}"#, false),
            (r#"{"host":"a.b","count":2,"turn":"t","attachment":"active","trace_id":"x","observed_at":"1"}"#, false),
            ("", false),
            ("[]", false),
        ] {
            assert_eq!(entry.tells_the_same(stored), same, "{stored}");
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_kept_aside() {
        let entry = Entry::from_bus("egress.denied.tasks", "", b"\xff{");
        assert_eq!(entry.payload, r#"{"undecodable":"ff7b","bytes":2}"#);
        assert_eq!((entry.count, entry.port), (1, 0));
        assert_eq!(entry.event_id, Entry::from_bus("egress.denied.tasks", "", b"\xff{").event_id);
        assert_ne!(entry.event_id, Entry::from_bus("egress.denied.tasks", "", b"\xff").event_id);
        // An absurd port or count is not a reason to lose the event.
        let odd = Entry::from_bus("x", "i", br#"{"port":99999,"count":-1,"host":7}"#);
        assert_eq!((odd.kind.as_str(), odd.port, odd.count, odd.host.as_str()), ("x", 0, 1, ""));
    }
}
