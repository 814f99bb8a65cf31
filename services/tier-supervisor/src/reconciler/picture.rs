//! The stack as it is shown to people: what should be, what is, what is under way and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::desired::{ContainerSpec, Desired};
use crate::floor::Verdict;
use crate::observed::{Container, Observed, State};
use crate::wanted::Wanted;

/// The newest picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// What should be.
    pub desired: Arc<Desired>,
    /// What was, when last looked at.
    pub observed: Arc<Observed>,
    /// Containers that run and were ready, and are not at this moment; with the reason.
    pub not_ready: BTreeMap<String, String>,
    /// Containers that failed and are tried again later.
    pub waiting: BTreeSet<String>,
    /// The newest verdicts on the floor; empty while it has not been checked.
    pub floor: Vec<Verdict>,
    /// Nothing is left to do, everything is ready and the floor holds.
    pub converged: bool,
    /// What is under way.
    pub progress: Option<Progress>,
    /// What stops convergence, and what to do.
    pub problem: Option<String>,
    /// Every problem of the files as they are now; empty when `desired` is what they say.
    pub file_problems: Vec<String>,
    /// When `desired` was read.
    pub configured_at: SystemTime,
}

/// A step under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// For example `start container assistant-nats`.
    pub step: String,
    /// Steps ended.
    pub done: u32,
    /// Steps of this round.
    pub total: u32,
}

/// How a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does not exist.
    Absent,
    /// It is being made, or runs and was not yet seen ready.
    Starting,
    /// It runs and is ready.
    Healthy,
    /// It runs and is not ready, or is not what was specified.
    Unhealthy,
    /// It does not run.
    Stopped,
}

impl Picture {
    /// Before anything was looked at.
    #[must_use]
    pub fn unseen(wanted: &Wanted) -> Self {
        Self {
            desired: Arc::clone(&wanted.desired),
            configured_at: wanted.since,
            observed: Arc::default(),
            not_ready: BTreeMap::new(),
            waiting: BTreeSet::new(),
            floor: Vec::new(),
            converged: false,
            progress: None,
            problem: None,
            file_problems: Vec::new(),
        }
    }

    /// The container that stands for a specification.
    #[must_use]
    pub fn found(&self, spec: &ContainerSpec) -> Option<&Container> {
        self.observed.containers.iter().find(|found| found.name == spec.name && found.owner.is_ours())
    }

    /// How a container stands, and why it is not healthy.
    #[must_use]
    pub fn standing(&self, spec: &ContainerSpec) -> (Standing, String) {
        let Some(found) = self.found(spec) else { return (Standing::Absent, "it does not exist yet".to_owned()) };
        if let Some(why) = self.not_ready.get(&spec.name) {
            return (Standing::Unhealthy, why.clone());
        }
        match found.state {
            State::Running { .. } => {
                let history = self.observed.history.get(&spec.name);
                if !found.owner.was_made_from(self.desired.mode, &spec.spec_hash()) {
                    (Standing::Unhealthy, "it runs with an old specification and is going to be replaced".to_owned())
                } else if history.is_some_and(|history| history.has_settled(found)) {
                    (Standing::Healthy, String::new())
                } else {
                    (Standing::Starting, "it runs and is not ready yet".to_owned())
                }
            }
            State::Created => (Standing::Starting, "it has not been started yet".to_owned()),
            State::Exited { code } if self.waiting.contains(&spec.name) => {
                (Standing::Stopped, format!("it ended with status {code} and is started again shortly"))
            }
            State::Exited { code } => (Standing::Stopped, format!("it ended with status {code}")),
            State::Broken | State::Unknown => {
                (Standing::Unhealthy, "it is in a state from which it cannot be started; it is replaced".to_owned())
            }
        }
    }
}
