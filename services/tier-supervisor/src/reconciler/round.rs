//! What a round came to, when the next one is, and what waits for it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use assistant_proto::name::TierName;

use super::{LOOK_EVERY, LOOK_WHILE_WAITING, Progress};
use crate::desired::{ContainerSpec, Desired};
use crate::plan::Action;

/// What a round came to.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Steps that succeeded.
    pub(super) done: u32,
    /// The first failure.
    pub(super) failure: Option<String>,
    /// What is waited for, the first of it.
    pub(super) pending: Option<Progress>,
    /// Nothing is left to do.
    pub(super) settled: bool,
    /// When something is to be tried again.
    pub(super) next_try: Option<SystemTime>,
}

/// What the rounds of one wake came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    /// Something is waited for: the effort goes on.
    pub(super) pending: bool,
    /// When something is to be tried again.
    pub(super) next_try: Option<SystemTime>,
}

impl Rest {
    /// Until the next look.
    pub(super) fn pause(&self) -> Duration {
        if self.pending {
            return LOOK_WHILE_WAITING;
        }
        self.next_try
            .and_then(|at| at.duration_since(SystemTime::now()).ok())
            .map_or(LOOK_EVERY, |until| until.clamp(Duration::from_millis(100), LOOK_EVERY))
    }
}

/// What is still coming up, and keeps others from being brought up: they may need it. What fails keeps nobody.
#[derive(Debug, Default)]
pub(super) struct Held {
    everything: bool,
    tiers: BTreeSet<TierName>,
}

impl Held {
    pub(super) fn note(&mut self, name: &str, desired: &Desired) {
        match desired.container(name) {
            Some(ContainerSpec { tier: Some(tier), .. }) => drop(self.tiers.insert(tier.clone())),
            Some(spec) if !spec.role.holds_up_others() => {}
            Some(_) | None => self.everything = true,
        }
    }

    pub(super) fn keeps(&self, action: &Action, desired: &Desired) -> bool {
        let tier = || action.container().and_then(|name| desired.container(name)?.tier.as_ref());
        action.brings_up() && (self.everything || tier().is_some_and(|tier| self.tiers.contains(tier)))
    }
}
