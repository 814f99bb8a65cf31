//! What is recorded while little room is left: of events that say how things went, only how many there were and a hash of
//! them, many in one record. Denials, decisions, secrets, approvals and whatever says that something is wrong are recorded
//! one by one to the last byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use assistant_proto::event::{
    ChannelIgnored, ChannelSent, EgressAllowed, Event, EventId, FloorChecked, ModelCalled, TierChanged, ToolCalled,
    TurnEnded, TurnStarted,
};
use aws_lc_rs::digest;
use service_kit::bus::Raw;

use crate::record::Entry;

/// Types that are folded. What left was permitted before, and the permit stays.
const FOLDED: [&str; 9] = [
    EgressAllowed::TYPE,
    TurnStarted::TYPE,
    TurnEnded::TYPE,
    ModelCalled::TYPE,
    ToolCalled::TYPE,
    TierChanged::TYPE,
    FloorChecked::TYPE,
    ChannelSent::TYPE,
    ChannelIgnored::TYPE,
];
/// Events of this service itself come back so that they leave the outbox; they are in the store already.
const OURS: &str = "/assistant/egress-auditor";

/// Whether only the reserve is left. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reserve(Arc<AtomicBool>);

impl Reserve {
    /// Little is left, or enough again.
    pub fn set(&self, is_reached: bool) {
        if self.0.swap(is_reached, Ordering::Relaxed) != is_reached {
            tracing::warn!(is_reached, "the disk reserve of the audit store");
        }
    }

    /// Whether little is left.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The entries of a batch, and how many events were folded in them.
#[must_use]
pub fn fold(stream: &str, raws: &[Raw]) -> (Vec<Entry>, u64) {
    let mut groups: BTreeMap<&str, Vec<&Raw>> = BTreeMap::new();
    for raw in raws.iter().filter(|raw| is_folded(raw)) {
        groups.entry(raw.subject.as_str()).or_default().push(raw);
    }
    // One of a kind saves nothing.
    groups.retain(|_, group| group.len() > 1);
    let mut entries = Vec::new();
    for raw in raws {
        let group = groups.get(raw.subject.as_str()).filter(|_| is_folded(raw));
        match group {
            None => entries.push(Entry::from_bus(&raw.subject, &raw.id, &raw.payload)),
            // The group stands where its last event stood.
            Some(group) if group.last().is_some_and(|last| std::ptr::eq(*last, raw)) => {
                entries.push(folded(stream, &raw.subject, group));
            }
            Some(_) => {}
        }
    }
    let folded = groups.values().map(Vec::len).sum::<usize>();
    (entries, u64::try_from(folded).unwrap_or(u64::MAX))
}

fn is_folded(raw: &Raw) -> bool {
    let kind = raw.subject.rsplit_once('.').map_or("", |(kind, _)| kind);
    FOLDED.contains(&kind) && raw.source != OURS
}

fn folded(stream: &str, subject: &str, group: &[&Raw]) -> Entry {
    let (kind, tier) = subject.rsplit_once('.').unwrap_or((subject, ""));
    let mut context = digest::Context::new(&digest::SHA256);
    for raw in group {
        for part in [raw.id.as_bytes(), &raw.payload] {
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
    }
    let hash = hex::encode(context.finish());
    let sequences = || group.iter().map(|raw| raw.stream_sequence);
    let (from, to) = (sequences().min().unwrap_or(0), sequences().max().unwrap_or(0));
    let body = serde_json::json!({
        "reason": "disk-reserve",
        "type": kind,
        "count": group.len(),
        "stream": stream,
        "from": from,
        "to": to,
        "sha256": hash,
        "detail": format!(
            "{} events {subject} between {from} and {to} of the stream {stream} were recorded as their number and hash only, \
             because the disk reserve of the audit store is reached; the stream itself still has them for a while",
            group.len()
        ),
        "fix": "make the filesystem of the audit volume larger or free space on it",
    });
    // Delivered again in the same batch it is the same record.
    let id = EventId::derive(&[b"audit folded", stream.as_bytes(), subject.as_bytes(), hash.as_bytes()]);
    Entry::from_bus(&format!("audit.folded.{tier}"), id.as_str(), body.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(sequence: u64, subject: &str, source: &str) -> Raw {
        Raw {
            subject: subject.to_owned(),
            type_: String::new(),
            id: format!("event-{sequence}"),
            source: source.to_owned(),
            parent: None,
            payload: format!(r#"{{"n":{sequence}}}"#).into(),
            stream_sequence: sequence,
            deliveries: 1,
        }
    }

    #[test]
    fn denials_and_decisions_are_never_folded() {
        let whole = [
            "egress.denied.tasks",
            "egress.permitted.tasks",
            "secret.injected.tasks",
            "approval.requested.tasks",
            "approval.decided.tasks",
            "floor.breached.stack",
            "attestation.verified.stack",
            "who.knows.tasks",
        ];
        let raws: Vec<Raw> =
            (1..=3).flat_map(|n| whole.iter().map(move |subject| raw(n, subject, "/assistant/x"))).collect();
        let (entries, folded) = fold("EVENTS", &raws);
        assert_eq!((entries.len(), folded), (raws.len(), 0));
    }

    #[test]
    fn what_is_folded_is_counted_by_type_and_tier_and_can_be_proven() {
        let raws = [
            raw(1, "turn.started.tasks", "/assistant/channel-bridge"),
            raw(2, "egress.denied.tasks", "/assistant/secret-broker"),
            raw(3, "turn.started.tasks", "/assistant/channel-bridge"),
            raw(4, "turn.started.chat", "/assistant/channel-bridge"),
            raw(5, "egress.allowed.tasks", OURS),
            raw(6, "egress.allowed.tasks", "/assistant/secret-broker"),
            raw(7, "egress.allowed.tasks", "/assistant/secret-broker"),
        ];
        let (entries, folded) = fold("EVENTS", &raws);
        let told: Vec<_> = entries.iter().map(|e| (e.kind.as_str(), e.tier.as_str(), e.count)).collect();
        let expected = [
            ("egress.denied", "tasks", 1),
            ("audit.folded", "tasks", 2),
            ("turn.started", "chat", 1),
            ("egress.allowed", "tasks", 1),
            ("audit.folded", "tasks", 2),
        ];
        assert_eq!((told.as_slice(), folded), (expected.as_slice(), 4));
        let body: serde_json::Value = serde_json::from_str(&entries[1].payload).unwrap_or_default();
        assert_eq!((&body["from"], &body["to"], &body["type"]), (&1.into(), &3.into(), &"turn.started".into()));
        // The same events are the same record; others are another.
        assert_eq!(fold("EVENTS", &raws).0[1].event_id, entries[1].event_id);
        let mut other = raws.clone();
        other[2].payload = "{}".into();
        assert_ne!(fold("EVENTS", &other).0[1].event_id, entries[1].event_id);
    }
}
