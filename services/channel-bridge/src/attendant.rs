//! Looks after the turns of messengers: shows that somebody is typing, puts the agent's questions into the chat, and says
//! what became of those that nobody answered. The terminal does the same for itself, in its client.
//!
//! A turn has an attendant as long as its task runs, in whichever process that is. Not here: the reply (`delivery`).

use std::collections::BTreeMap;
use std::sync::Arc;

use assistant_proto::event::{ApprovalOutcome, ChannelReceived};
use assistant_proto::name::TierName;
use service_kit::task::{OnEnd, Tasks};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::approvals::desk::Desk;
use crate::channels::Channel;
use crate::delivery::Delivery;
use crate::envelope::{Person, Update};
use crate::registry::Registry;
use crate::reply;
use crate::reply::links::Reach;

/// Attends turns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Attendants {
    /// Says what is to be said.
    pub delivery: Delivery,
    /// Who watches.
    pub registry: Registry,
    /// Where questions are asked.
    pub desk: Desk,
    /// What the tiers may reach.
    pub reach: Arc<BTreeMap<TierName, Reach>>,
    /// Spawns.
    pub tasks: Tasks,
}

impl Attendants {
    /// Attends a turn until `progress` has a value, or its sender is gone. Nothing for a turn of no messenger.
    pub fn attend<T>(&self, received: &ChannelReceived, mut progress: watch::Receiver<Option<T>>)
    where
        T: Send + Sync + 'static,
    {
        let Some((channel, address)) = self.delivery.channels().find(&received.channel, &received.conversation) else {
            return;
        };
        let address = address.to_owned();
        let person = Person::of(received);
        let most = channel.capabilities().most_units;
        let updates = self.registry.attend(&received.turn, &person, &received.traceparent.trace_id());
        let (this, turn) = (self.clone(), received.turn.clone());
        self.tasks.spawn(format!("attendant {turn}"), OnEnd::Expected, async move {
            // Cancel-safe: what is being shown is shown by `delivery`, or not.
            let ended = async { progress.wait_for(Option::is_some).await.is_ok() };
            tokio::select! {
                _ = ended => {}
                () = this.look_after(&person, most, updates) => {}
                () = typing(&*channel, &address) => {}
            }
            this.registry.give_up(&turn);
            Ok(())
        });
    }

    async fn look_after(&self, person: &Person, most: usize, mut updates: tokio::sync::mpsc::Receiver<Update>) {
        while let Some(update) = updates.recv().await {
            match update {
                Update::Ask { approval, action, code, expires_in } => {
                    let until = Instant::now() + expires_in;
                    let conversation = &person.conversation;
                    let nothing = Reach::default();
                    let reach = self.reach.get(&conversation.tier).unwrap_or(&nothing);
                    let minutes = expires_in.as_secs().div_ceil(60);
                    let parts =
                        reply::question(&conversation.tier, &action, &code.dangerous_reveal(), minutes, reach, most);
                    let (this, desk) = (self.clone(), self.desk.clone());
                    let (kind, name) = (conversation.channel.clone(), conversation.name.clone());
                    // On its own: the next question does not wait for this one to be shown.
                    self.tasks.spawn("question", OnEnd::Expected, async move {
                        if this.delivery.question(&kind, &name, parts, until).await {
                            desk.shown(&approval);
                        }
                        Ok(())
                    });
                }
                Update::Decided { code, outcome } => {
                    let told = match outcome {
                        // Whoever decided was told in answer.
                        ApprovalOutcome::Approved | ApprovalOutcome::Denied => continue,
                        ApprovalOutcome::TimedOut => "was not answered in time; it is rejected",
                        ApprovalOutcome::Undeliverable => "could not be shown in time; it is rejected",
                        ApprovalOutcome::Withdrawn => "is withdrawn: the turn is over",
                    };
                    let tier = &person.conversation.tier;
                    let note = reply::note(&format!("[{tier}] The question {} {told}.", code.dangerous_reveal()));
                    self.delivery.note(&person.conversation.channel, &person.conversation.name, note);
                }
                last if last.is_last() => return,
                _ => {}
            }
        }
    }
}

/// Shows that somebody is typing, for ever.
async fn typing(channel: &dyn Channel, address: &str) {
    let Some(every) = channel.capabilities().typing else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        channel.typing(address).await;
    }
}
