//! Streams and durable consumers on NATS. Only tier-supervisor makes them; the other services' users may not.
//!
//! Idempotent: what exists as specified is left alone, what differs is updated, and nothing is ever deleted. It goes on
//! looking, because a server with an empty volume comes back without any.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::context::Context;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use service_kit::host::Health;
use tokio_util::sync::CancellationToken;

/// The record of what happened.
pub const EVENTS: &str = "EVENTS";
/// Decisions on requests that the audit store has not got yet. A stream of its own, because the broker lets out only what
/// was stored here, and here nothing is discarded: when the auditor does not read, it fills, and nothing leaves any more.
pub const PERMITTED: &str = "PERMITTED";
/// What could not be decoded, as it came.
pub const UNDECODABLE: &str = "UNDECODABLE";
/// Messages that came in and are not answered yet.
pub const INBOX: &str = "INBOX";
/// Answers that are not delivered yet.
pub const OUTBOX: &str = "OUTBOX";

/// How long events are kept on the bus. The audit store keeps its own copy for longer.
const EVENTS_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
const EVENTS_BYTES: i64 = 1 << 30;
/// A work queue that holds this much has a broken reader; then a message is refused, not an old one lost.
const QUEUE_BYTES: i64 = 256 << 20;
/// `Nats-Msg-Id` is recognised this long.
const DUPLICATES_WITHIN: Duration = Duration::from_secs(120);
/// A reader that has neither acknowledged nor said that it is still at it by then gets the message again.
const ACK_WITHIN: Duration = Duration::from_secs(30);
/// Events a reader may hold unacknowledged.
const EVENTS_PENDING: i64 = 1000;
/// Messages a reader may hold unacknowledged: more than tiers, so that one long turn holds up no other tier.
const QUEUE_PENDING: i64 = 256;
/// How long one request to the server may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often everything is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The same while the server does not take them.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Name of this part in health.
const PART: &str = "streams";

/// Room for what could not be decoded; when it is full, such messages stay in their queue.
const UNDECODABLE_BYTES: i64 = 64 << 20;
/// What goes into the stream of events.
const EVENT_SUBJECTS: [&str; 12] = [
    "egress.denied.>",
    "egress.allowed.>",
    "tier.>",
    "secret.>",
    "turn.>",
    "approval.>",
    "model.>",
    "tool.>",
    "attestation.>",
    "floor.>",
    "channel.ignored.>",
    "channel.sent.>",
];

fn base(name: &str, description: &str, subjects: &[&str]) -> Config {
    Config {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        storage: StorageType::File,
        num_replicas: 1,
        duplicate_window: DUPLICATES_WITHIN,
        ..Config::default()
    }
}

/// Every stream, in the order in which they are made: EVENTS first, because one that is older than PERMITTED has to let go
/// of that one's subjects before NATS takes them for another.
#[must_use]
pub fn streams() -> Vec<Config> {
    let queue = |name: &str, description: &str, subject: &str| Config {
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_bytes: QUEUE_BYTES,
        ..base(name, description, &[subject])
    };
    vec![
        Config {
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_age: EVENTS_AGE,
            max_bytes: EVENTS_BYTES,
            // A record that a service could purge would be none.
            deny_delete: true,
            deny_purge: true,
            ..base(EVENTS, "What happened", &EVENT_SUBJECTS)
        },
        Config {
            // Not interest: without its consumer such a stream acknowledges what it does not keep.
            deny_delete: true,
            deny_purge: true,
            ..queue(PERMITTED, "What may leave, until the audit store has it", "egress.permitted.>")
        },
        queue(INBOX, "Messages that came in", "channel.received.>"),
        queue(OUTBOX, "Answers to be delivered", "channel.replied.>"),
        Config {
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_bytes: UNDECODABLE_BYTES,
            // Evidence.
            deny_delete: true,
            deny_purge: true,
            ..base(UNDECODABLE, "Messages that could not be decoded, as they came", &["undecodable.*"])
        },
    ]
}

/// Every durable consumer, with its stream.
#[must_use]
pub fn consumers() -> Vec<(&'static str, pull::Config)> {
    let durable = |name: &str, description: &str, ack_wait: Duration, max_ack_pending: i64| pull::Config {
        durable_name: Some(name.to_owned()),
        name: Some(name.to_owned()),
        description: Some(description.to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        replay_policy: ReplayPolicy::Instant,
        ack_wait,
        max_ack_pending,
        // For ever: what is undecodable is terminated by its reader, the rest is a matter of time.
        max_deliver: -1,
        ..pull::Config::default()
    };
    vec![
        (EVENTS, durable("auditor", "egress-auditor's store", ACK_WITHIN, EVENTS_PENDING)),
        (PERMITTED, durable("auditor", "egress-auditor's store", ACK_WITHIN, EVENTS_PENDING)),
        (INBOX, durable("bridge", "channel-bridge's turns", ACK_WITHIN, QUEUE_PENDING)),
        (OUTBOX, durable("bridge", "channel-bridge's deliveries", ACK_WITHIN, QUEUE_PENDING)),
    ]
}

/// Makes everything that is missing and updates what differs.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn ensure(jetstream: &Context) -> anyhow::Result<()> {
    for config in streams() {
        let name = config.name.clone();
        tokio::time::timeout(DEADLINE, jetstream.create_or_update_stream(config))
            .await
            .with_context(|| format!("NATS did not answer when stream {name} was made"))?
            .with_context(|| format!("stream {name} cannot be made"))?;
    }
    for (stream, config) in consumers() {
        let name = config.durable_name.clone().unwrap_or_default();
        tokio::time::timeout(DEADLINE, jetstream.create_consumer_on_stream(config, stream))
            .await
            .with_context(|| format!("NATS did not answer when consumer {stream}/{name} was made"))?
            .with_context(|| format!("consumer {stream}/{name} cannot be made"))?;
    }
    Ok(())
}

/// Keeps streams and consumers as they should be until `draining`, and says in `health` when they are not.
pub async fn run(jetstream: Context, health: Health, draining: CancellationToken) {
    loop {
        // Cancel-safe: every request is idempotent.
        let outcome = tokio::select! {
            () = draining.cancelled() => return,
            outcome = ensure(&jetstream) => outcome,
        };
        let pause = if outcome.is_ok() { LOOK_EVERY } else { RETRY_EVERY };
        health.report(PART, outcome.map_err(|error| format!("{error:#}")));
        tokio::select! {
            () = draining.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_type_has_exactly_one_stream() {
        use assistant_proto::event::{
            EgressAllowed, EgressDenied, EgressPermitted, Event, FloorBreached, FloorChecked, ModelCalled, TierChanged,
            ToolCalled,
        };
        let covers = |pattern: &str, subject: &str| {
            pattern.strip_suffix('>').is_some_and(|prefix| subject.starts_with(prefix) && subject.len() > prefix.len())
        };
        let types = [
            EgressAllowed::TYPE,
            EgressDenied::TYPE,
            EgressPermitted::TYPE,
            FloorBreached::TYPE,
            FloorChecked::TYPE,
            ModelCalled::TYPE,
            TierChanged::TYPE,
            ToolCalled::TYPE,
        ];
        for subject in types.iter().map(|kind| format!("{kind}.tasks")).chain([
            "channel.received.tasks".to_owned(),
            "channel.replied.tasks".to_owned(),
            "channel.sent.tasks".to_owned(),
            "turn.started.tasks".to_owned(),
            "approval.requested.tasks".to_owned(),
            "secret.injected.tasks".to_owned(),
        ]) {
            let holding = streams()
                .iter()
                .filter(|stream| stream.subjects.iter().any(|pattern| covers(pattern, &subject)))
                .count();
            assert_eq!(holding, 1, "{subject}");
        }
    }

    #[test]
    fn every_consumer_has_its_stream_and_acknowledges() {
        for (stream, config) in consumers() {
            assert!(streams().iter().any(|known| known.name == stream), "{stream}");
            assert_eq!(config.ack_policy, AckPolicy::Explicit);
            assert!(config.durable_name.is_some());
        }
    }
}
