//! From what should be and what is to ordered steps, each with its reason. Pure: no I/O, no clock.
//!
//! Two rules shape the order. Nothing foreign is stopped, changed or removed; it is only taken off our networks. And no
//! state on the way is laxer than the one before: what has to go goes first, then networks, routes and the kernel table,
//! and only then does anything start. `execute` does the steps; this module does not know how.

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod samples;
mod step;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use assistant_proto::config::Mode;

use crate::desired::{ContainerSpec, Desired, MountSource, Role, VolumeSpec};
use crate::observed::{Container, Disk, History, Observed, Owner, SquidLog, State, Table, Volume};

pub use step::{Action, Step, Weight, network_hash};

/// A container that was waited for in vain this often is started again instead of waited for once more.
const PATIENCE: u32 = 3;

/// What an apply would do now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// What is not tried before a point in time, because it failed.
    pub waiting: Vec<Waiting>,
    /// What a person has to solve. The steps leave it, and what depends on it, alone.
    pub conflicts: Vec<Conflict>,
}

impl Plan {
    /// Whether everything is as it should be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_empty() && self.conflicts.is_empty()
    }

    /// Whether the other stack runs, so that nothing on this machine is for this one to judge.
    #[must_use]
    pub fn is_of_the_other(&self) -> bool {
        self.conflicts.iter().any(|conflict| matches!(conflict, Conflict::OtherMode { .. }))
    }

    /// When there is something to do that is not to be done yet.
    #[must_use]
    pub fn next_try(&self) -> Option<SystemTime> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }
}

/// A container that failed and is tried again later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its name.
    pub container: String,
    /// When it is tried again.
    pub until: SystemTime,
    /// Times in a row that it failed.
    pub failures: u32,
    /// Exit status, where it has ended.
    pub code: Option<i64>,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { container, failures, code, .. } = self;
        match code {
            Some(code) => write!(f, "{container} ended with status {code} ({failures} times in a row)")?,
            None => write!(f, "{container} failed {failures} times in a row")?,
        }
        write!(f, " and is tried again shortly; its log: docker logs --tail 50 {container}")
    }
}

/// What a plan cannot solve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The other stack runs.
    #[error("the {running} stack is running on this machine; stop it first with: deploy/down.sh")]
    OtherMode {
        /// Which one.
        running: &'static str,
    },
    /// A foreign container has a name of ours.
    #[error("a container named {name} exists that is not ours; rename or remove it: docker rename {name} {name}-old")]
    ContainerName {
        /// The name.
        name: String,
    },
    /// What runs in tiers may not run.
    #[error("{}", Disk::problem())]
    Disk,
    /// A foreign network has a name of ours.
    #[error("a network named {name} exists that is not ours; remove it: docker network rm {name}")]
    NetworkName {
        /// The name.
        name: String,
    },
    /// A foreign volume has a name of ours.
    #[error("a volume named {name} exists that is not ours; remove it if nothing needs it: docker volume rm {name}")]
    VolumeName {
        /// The name.
        name: String,
    },
}

/// Computes the plan.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed, now: SystemTime) -> Plan {
    let other = match desired.mode {
        Mode::Live => Mode::Drill,
        Mode::Drill => Mode::Live,
    };
    if observed.containers.iter().any(|container| container.state.is_running() && container.owner.is_of(other)) {
        // Its networks have our names: whatever was done now would be done to it.
        return Plan { conflicts: vec![Conflict::OtherMode { running: other.as_str() }], ..Plan::default() };
    }
    let planner = Planner::new(desired, observed, now);
    planner.plan()
}

struct Planner<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    now: SystemTime,
    containers: BTreeMap<&'a str, &'a Container>,
    /// Networks of ours that stay: name -> id. Docker allows several of one name; one is kept.
    kept_networks: BTreeMap<&'a str, &'a str>,
    /// Networks that are made in this plan.
    made_networks: BTreeSet<&'a str>,
    /// Containers that cannot be made because of a conflict.
    blocked: BTreeSet<&'a str>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed, now: SystemTime) -> Self {
        let containers = observed.containers.iter().map(|container| (container.name.as_str(), container)).collect();
        Self {
            desired,
            observed,
            now,
            containers,
            kept_networks: BTreeMap::new(),
            made_networks: BTreeSet::new(),
            blocked: BTreeSet::new(),
            plan: Plan::default(),
        }
    }

    fn plan(mut self) -> Plan {
        self.conflicts();
        if self.observed.host.table == Table::Missing {
            self.step(Action::LoadTable, "no kernel table of ours is loaded: nothing holds");
        }
        self.detachments();
        let stale_networks = self.networks_to_go();
        self.containers_to_go();
        self.tiers_to_stop();
        for (id, name, reason) in stale_networks {
            self.step(Action::RemoveNetwork { id, name }, reason);
        }
        self.networks_to_make();
        if !self.observed.host.routes_stand {
            self.step(Action::ClaimRoutes, "what leaves our bridges is not led into the drill");
        }
        if self.observed.host.table == Table::Outdated {
            self.step(Action::LoadTable, "the kernel table is not the one that tiers.yaml and what is running ask for");
        } else if self.plan.steps.iter().any(|step| step.action.changes_ports()) {
            self.step(Action::LoadTable, "what is running has changed");
        }
        self.volumes();
        let desired = self.desired;
        // What runs already is prepared before anything is waited for.
        for spec in &desired.containers {
            self.adoption(spec);
        }
        for spec in &desired.containers {
            self.container(spec);
        }
        // Last: it fails alone.
        self.squid_log();
        self.plan
    }

    fn step(&mut self, action: Action, reason: impl Into<String>) {
        self.plan.steps.push(Step { action, reason: reason.into() });
    }

    /// Names that are taken by something foreign, and what cannot be made because of that.
    fn conflicts(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        for spec in &desired.networks {
            let taken = observed.networks.iter().any(|found| found.name == spec.name && found.owner == Owner::Foreign);
            if taken {
                self.plan.conflicts.push(Conflict::NetworkName { name: spec.name.clone() });
                let on_it = desired.containers.iter().filter(|container| container.address_on(&spec.name).is_some());
                self.blocked.extend(on_it.map(|container| container.name.as_str()));
            }
        }
        for spec in &desired.volumes {
            let taken =
                observed.volumes.iter().any(|found| found.name == spec.name && !found.owner.is_of(desired.mode));
            if taken {
                self.plan.conflicts.push(Conflict::VolumeName { name: spec.name.clone() });
                let on_it = desired.containers.iter().filter(|container| mounts(container, &spec.name));
                self.blocked.extend(on_it.map(|container| container.name.as_str()));
            }
        }
        for spec in &desired.containers {
            if self.containers.get(spec.name.as_str()).is_some_and(|found| found.owner == Owner::Foreign) {
                self.plan.conflicts.push(Conflict::ContainerName { name: spec.name.clone() });
                self.blocked.insert(&spec.name);
            }
        }
    }

    /// Foreign containers on our networks, and our containers on networks that their specification does not name.
    fn detachments(&mut self) {
        let ours: BTreeSet<&str> = self
            .observed
            .networks
            .iter()
            .filter(|network| network.owner.is_ours())
            .map(|network| network.name.as_str())
            .collect();
        for container in &self.observed.containers {
            let foreign = container.owner == Owner::Foreign;
            let spec = if foreign { None } else { self.desired.container(&container.name) };
            for network in container.networks.keys() {
                let detach = match (foreign, spec) {
                    (true, _) => ours.contains(network.as_str()),
                    (false, Some(spec)) => spec.address_on(network).is_none(),
                    // It is going to be removed as a whole.
                    (false, None) => false,
                };
                if detach {
                    let reason = if foreign {
                        "a container that is not ours is attached to a network of ours"
                    } else {
                        "it is attached to a network that its specification does not name"
                    };
                    let action = Action::Detach {
                        container_id: container.id.clone(),
                        container: container.name.clone(),
                        network: network.clone(),
                        foreign,
                    };
                    self.step(action, reason);
                }
            }
        }
    }

    /// Networks of ours that are no longer asked for, or are asked for differently. Fills `kept_networks` and `made_networks`.
    fn networks_to_go(&mut self) -> Vec<(String, String, &'static str)> {
        let (desired, observed) = (self.desired, self.observed);
        let mut going = Vec::new();
        for found in observed.networks.iter().filter(|network| network.owner.is_ours()) {
            let reason = match desired.network(&found.name) {
                None => "nothing asks for it",
                Some(spec) if !found.owner.was_made_from(desired.mode, &network_hash(spec)) => {
                    "its specification has changed"
                }
                Some(_) if self.kept_networks.contains_key(found.name.as_str()) => "another one has its name",
                Some(spec) => {
                    self.kept_networks.insert(&spec.name, &found.id);
                    continue;
                }
            };
            going.push((found.id.clone(), found.name.clone(), reason));
        }
        let foreign: BTreeSet<&str> = observed
            .networks
            .iter()
            .filter(|network| network.owner == Owner::Foreign)
            .map(|network| network.name.as_str())
            .collect();
        self.made_networks.extend(
            desired
                .networks
                .iter()
                .map(|spec| spec.name.as_str())
                .filter(|name| !self.kept_networks.contains_key(name) && !foreign.contains(name)),
        );
        going
    }

    fn containers_to_go(&mut self) {
        let observed = self.observed;
        for container in observed.containers.iter().filter(|container| container.owner.is_ours()) {
            let Some(reason) = self.why_it_goes(container) else { continue };
            let (id, name) = (container.id.clone(), container.name.clone());
            if container.state.is_running() {
                self.step(Action::StopContainer { id: id.clone(), name: name.clone() }, reason);
            }
            self.step(Action::RemoveContainer { id, name }, reason);
        }
    }

    /// What a tier could write would be in the way of the record of what it did.
    fn tiers_to_stop(&mut self) {
        if self.observed.disk == Disk::Enough {
            return;
        }
        self.plan.conflicts.push(Conflict::Disk);
        let desired = self.desired;
        for spec in desired.containers.iter().filter(|spec| spec.tier.is_some()) {
            self.blocked.insert(&spec.name);
            let found = self.containers.get(spec.name.as_str()).copied().filter(|found| found.owner.is_ours());
            if let Some(found) = found.filter(|found| found.state.is_running() && self.why_it_goes(found).is_none()) {
                let action = Action::StopContainer { id: found.id.clone(), name: spec.name.clone() };
                self.step(action, "little room is left on the disk, and what runs in tiers can fill it");
            }
        }
    }

    /// Why a container of ours cannot stay; none when it can.
    fn why_it_goes(&self, container: &Container) -> Option<&'static str> {
        let Some(spec) = self.desired.container(&container.name) else { return Some("nothing asks for it") };
        if !container.owner.was_made_from(self.desired.mode, &spec.spec_hash()) {
            return Some("its specification has changed");
        }
        let policy = self.observed.restart_policies.get(&container.name).map_or("no", String::as_str);
        if !matches!(policy, "no" | "") {
            return Some("Docker would start it before the kernel table is loaded");
        }
        if container.state == State::Broken {
            return Some("it is in a state from which it cannot be started");
        }
        for attachment in &spec.networks {
            if self.made_networks.contains(attachment.network.as_str()) {
                return Some("a network it is on is made anew");
            }
            let kept = self.kept_networks.get(attachment.network.as_str());
            let on_it = container.networks.get(&attachment.network).is_some_and(|endpoint| {
                let id = endpoint.network_id.as_str();
                // Engines before 23 name no network for a container that never ran.
                endpoint.address == Some(attachment.address) && (id.is_empty() || kept.is_some_and(|kept| *kept == id))
            });
            if !on_it {
                return Some("it is not attached to its networks as specified");
            }
        }
        None
    }

    fn networks_to_make(&mut self) {
        let desired = self.desired;
        for spec in
            desired.networks.iter().filter(|spec| self.made_networks.contains(spec.name.as_str())).collect::<Vec<_>>()
        {
            self.step(Action::CreateNetwork { name: spec.name.clone() }, "it does not exist");
        }
    }

    fn volumes(&mut self) {
        let desired = self.desired;
        for spec in &desired.volumes {
            match self.observed.volumes.iter().find(|found| found.name == spec.name) {
                None => self.step(Action::CreateVolume { name: spec.name.clone() }, "it does not exist"),
                Some(found) if !found.owner.is_of(desired.mode) => {}
                Some(found) if !is_owned(found, spec) => {
                    self.step(
                        Action::OwnVolume { name: spec.name.clone() },
                        "its top directory belongs to another user",
                    );
                }
                Some(_) => {}
            }
        }
    }

    fn container(&mut self, spec: &'a ContainerSpec) {
        if self.blocked.contains(spec.name.as_str()) {
            return;
        }
        let name = || spec.name.clone();
        let found = self.containers.get(spec.name.as_str()).copied().filter(|found| self.why_it_goes(found).is_none());
        let history = self.observed.history.get(&spec.name).cloned().unwrap_or_default();

        if self.observed.host.stale_files.contains(&spec.name) {
            self.step(Action::WriteFiles { name: name() }, "its rendered files are not as specified");
        }
        if self.observed.host.stale_sockets.contains(&spec.name) {
            self.step(
                Action::OpenSocketDirectory { name: name() },
                "its control socket's directory or link is not as specified",
            );
        }
        match found.map(|found| (found, found.state)) {
            Some((found, State::Running { .. })) if history.has_settled(found) => {}
            Some((found, State::Running { .. })) if history.has_prepared(found) => {
                self.step(Action::AwaitReady { name: name() }, "it runs and was not seen ready yet");
            }
            Some((found, State::Running { .. })) => {
                // It runs, so its doors are watched by others already; waiting again costs nothing but time.
                if let Some(until) = history.retry_at().filter(|until| *until > self.now) {
                    self.waits(spec, until, history.failures, None);
                    return;
                }
                if is_out_of_patience(&history) {
                    self.step(
                        Action::StopContainer { id: found.id.clone(), name: name() },
                        "it was waited for in vain",
                    );
                    self.step(Action::StartContainer { name: name() }, "it was waited for in vain");
                }
                self.step(Action::AwaitReady { name: name() }, "it was not seen ready yet");
            }
            other => {
                let code = match other {
                    Some((_, State::Exited { code })) => Some(code),
                    _ => None,
                };
                if let Some(until) = history.retry_at().filter(|until| *until > self.now) {
                    self.waits(spec, until, history.failures, code);
                    return;
                }
                if other.is_none() {
                    self.step(Action::CreateContainer { name: name() }, "it does not exist as specified");
                }
                let reason = match code {
                    Some(code) => format!("it ended with status {code}"),
                    None => "it is not running".to_owned(),
                };
                self.step(Action::StartContainer { name: name() }, reason);
                self.step(Action::AwaitReady { name: name() }, "it is started");
            }
        }
    }

    /// A container that runs as specified and was not prepared by this process. Kept in step with [`Self::container`].
    fn adoption(&mut self, spec: &'a ContainerSpec) {
        let Some(found) = self.containers.get(spec.name.as_str()).copied() else { return };
        if !found.state.is_running() || self.blocked.contains(spec.name.as_str()) || self.why_it_goes(found).is_some() {
            return;
        }
        let history = self.observed.history.get(&spec.name).cloned().unwrap_or_default();
        let waits = history.retry_at().is_some_and(|until| until > self.now);
        if !history.has_prepared(found) && !waits && !is_out_of_patience(&history) {
            self.step(
                Action::AdoptContainer { name: spec.name.clone() },
                "it runs as specified, and was not prepared by this process",
            );
        }
    }

    fn squid_log(&mut self) {
        let reason = match self.observed.host.squid_log {
            SquidLog::Fine => return,
            SquidLog::Full => "it has grown to its full size",
            SquidLog::Moved => "it was put aside, and no new one was begun",
        };
        let desired = self.desired;
        let Some(spec) = desired.containers.iter().find(|spec| spec.role == Role::Squid) else { return };
        let Some(found) = self.containers.get(spec.name.as_str()).copied() else { return };
        // One that is only starting opens its log by itself.
        let settled = self.observed.history.get(&spec.name).is_some_and(|history| history.has_settled(found));
        if settled && self.why_it_goes(found).is_none() {
            self.step(Action::RotateLog { id: found.id.clone(), name: spec.name.clone() }, reason);
        }
    }

    fn waits(&mut self, spec: &ContainerSpec, until: SystemTime, failures: u32, code: Option<i64>) {
        self.plan.waiting.push(Waiting { container: spec.name.clone(), until, failures, code });
    }
}

fn is_out_of_patience(history: &History) -> bool {
    history.failures > 0 && history.failures.is_multiple_of(PATIENCE)
}

fn mounts(container: &ContainerSpec, volume: &str) -> bool {
    container.mounts.iter().any(|mount| matches!(&mount.source, MountSource::Volume(name) if name == volume))
}

fn is_owned(found: &Volume, spec: &VolumeSpec) -> bool {
    // The mode is set once, when the volume is made: its owner may have changed it since, that is his affair.
    found.top.is_some_and(|top| top.uid == spec.uid && top.gid == spec.gid)
}

/// Whether a running container is one that the kernel table may give its ports to: made from today's specification.
#[must_use]
pub fn is_current(desired: &Desired, container: &Container) -> bool {
    desired
        .container(&container.name)
        .is_some_and(|spec| container.owner.was_made_from(desired.mode, &spec.spec_hash()))
}
