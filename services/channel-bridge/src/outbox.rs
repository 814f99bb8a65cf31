//! Sends committed replies, once.
//!
//! For the terminal and the dashboards, sending means handing the outcome to whoever watches the turn. Nobody there is no
//! reason to keep it: a terminal that is gone does not come back, and the same idempotency key fetches the outcome from the
//! record; a dashboard has its history.
//! For a messenger it means making the plan of the reply and keeping it: from then on `delivery` has it, and the outbox,
//! which has one lane per tier, goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use assistant_proto::event::{ChannelReplied, ChannelSent};
use assistant_proto::name::TierName;
use service_kit::clock;

use crate::channels::{Channel, terminal};
use crate::dashboard;
use crate::delivery::Delivery;
use crate::envelope::{Outcome, Update};
use crate::post::{Notice, Post};
use crate::record::{RecordError, Records, TurnRecord};
use crate::registry::Registry;
use crate::reply;
use crate::reply::links::Reach;

/// Sends replies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// The bus.
    pub post: Arc<dyn Post>,
    /// What survives a restart.
    pub records: Records,
    /// Who watches.
    pub registry: Registry,
    /// Sends to messengers.
    pub delivery: Delivery,
    /// What the tiers may reach.
    pub reach: Arc<BTreeMap<TierName, Reach>>,
}

impl Outbox {
    /// Sends one reply, unless it was sent before.
    ///
    /// # Errors
    /// The reply must be delivered again then.
    pub async fn deliver(&self, replied: ChannelReplied) -> Result<(), RecordError> {
        if let Some((channel, _)) = self.delivery.channels().find(&replied.channel, &replied.conversation) {
            return self.hand_over(&*channel, &replied).await;
        }
        if replied.channel != terminal::KIND && replied.channel != dashboard::KIND {
            tracing::error!(channel = replied.channel, turn = %replied.turn, "a reply for a channel this bridge does not have is dropped");
            return Ok(());
        }
        let known = self.records.turn(&replied.turn).await?;
        if known.as_ref().is_some_and(|record| record.sent) {
            return Ok(());
        }
        let outcome = known
            .and_then(|record| record.outcome)
            .unwrap_or_else(|| Outcome::Answered { reply: replied.text.clone(), stop_reason: "end_turn".to_owned() });
        let trace_id = replied.traceparent.trace_id();
        // Marked before it is handed over: the other way round, a client that asks again with its key in between would
        // wait for a turn that is over.
        self.records
            .change_turn(&replied.turn, |known| match known {
                // The outcome is missing where it could not be recorded: without it, a client that asks again with its
                // key would wait for a turn that is over.
                Some(known) => {
                    TurnRecord { sent: true, outcome: known.outcome.or_else(|| Some(outcome.clone())), ..known }
                }
                None => TurnRecord {
                    traceparent: replied.traceparent,
                    text_sha256: String::new(),
                    attempts: 0,
                    outcome: Some(outcome.clone()),
                    sent: true,
                },
            })
            .await?;
        let heard = self.registry.finish(&replied.turn, &Update::last(&replied.turn, trace_id.clone(), outcome));
        let sent = ChannelSent {
            tier: replied.tier,
            turn: replied.turn,
            channel: replied.channel,
            bytes: if heard { u64::try_from(replied.text.len()).unwrap_or(u64::MAX) } else { 0 },
            trace_id,
            sent_at: clock::now_rfc3339(),
        };
        self.post.notify(&Notice::ChannelSent(sent), replied.traceparent);
        Ok(())
    }

    async fn hand_over(&self, channel: &dyn Channel, replied: &ChannelReplied) -> Result<(), RecordError> {
        let known = self.records.turn(&replied.turn).await?;
        if !known.as_ref().is_some_and(|record| record.sent) {
            let nothing = Reach::default();
            let reach = self.reach.get(&replied.tier).unwrap_or(&nothing);
            let parts = reply::plan(&replied.tier, &replied.text, reach, channel.capabilities().most_units);
            self.delivery.reply(replied, parts).await?;
        }
        let outcome = known
            .and_then(|record| record.outcome)
            .unwrap_or_else(|| Outcome::Answered { reply: replied.text.clone(), stop_reason: "end_turn".to_owned() });
        let last = Update::last(&replied.turn, replied.traceparent.trace_id(), outcome);
        if self.registry.finish(&replied.turn, &last) {
            tracing::debug!(turn = %replied.turn, "somebody watched a turn of a messenger");
        }
        Ok(())
    }
}
