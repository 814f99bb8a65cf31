//! What holds of every plan, whatever was there before and whatever happened behind the supervisor's back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::tests::{actions, apply, foreign, now, up};
use super::{Action, plan, samples};
use crate::desired::{Desired, Role};
use crate::observed::{Endpoint, Network, Observed, Owner, Ownership, State, Table, Volume};

/// A variation of the sample: some containers left out, some with another image, the tier's network different or gone.
fn any_desired() -> impl Strategy<Value = Desired> {
    (proptest::collection::vec((any::<bool>(), 1_u8..3), 4), 0_u8..3).prop_map(|(containers, tier_network)| {
        let mut desired = samples::desired();
        let mut kept = Vec::new();
        for (mut spec, (keep, version)) in desired.containers.into_iter().zip(containers) {
            spec.image = format!("{}:{version}", spec.image);
            if keep {
                kept.push(spec);
            }
        }
        desired.containers = kept;
        match tier_network {
            0 => {
                desired.networks.retain(|network| network.tier.is_none());
                desired.volumes.retain(|volume| volume.tier.is_none());
                desired.containers.retain(|spec| spec.role != Role::Agent && spec.role != Role::SecretBroker);
            }
            1 => desired.networks.last_mut().unwrap().bridge = "as-other".to_owned(),
            _ => {}
        }
        desired
    })
}

/// What may happen to a stack behind the supervisor's back.
#[derive(Debug, Clone)]
enum Mishap {
    Dies(usize),
    Breaks(usize),
    IsRemoved(usize),
    IsRestarted(usize),
    LosesAddress(usize),
    JoinsBridge(usize),
    TableGoes,
    TableIsOld,
    RoutesGo,
    FilesGoStale(usize),
    VolumeIsRoots(usize),
    NetworkIsDoubled(usize),
    StrangerJoins(usize),
    SupervisorForgets,
}

fn any_mishap() -> impl Strategy<Value = Mishap> {
    let which = 0_usize..4;
    prop_oneof![
        which.clone().prop_map(Mishap::Dies),
        which.clone().prop_map(Mishap::Breaks),
        which.clone().prop_map(Mishap::IsRemoved),
        which.clone().prop_map(Mishap::IsRestarted),
        which.clone().prop_map(Mishap::LosesAddress),
        which.clone().prop_map(Mishap::JoinsBridge),
        Just(Mishap::TableGoes),
        Just(Mishap::TableIsOld),
        Just(Mishap::RoutesGo),
        which.clone().prop_map(Mishap::FilesGoStale),
        which.clone().prop_map(Mishap::VolumeIsRoots),
        which.clone().prop_map(Mishap::NetworkIsDoubled),
        which.prop_map(Mishap::StrangerJoins),
        Just(Mishap::SupervisorForgets),
    ]
}

fn befall(observed: &mut Observed, mishap: &Mishap, serial: usize) {
    let ours: Vec<usize> = observed
        .containers
        .iter()
        .enumerate()
        .filter(|(_, container)| container.owner.is_ours())
        .map(|(index, _)| index)
        .collect();
    let pick = |which: &usize| ours.get(*which).copied();
    match mishap {
        Mishap::Dies(which) => {
            pick(which).into_iter().for_each(|at| observed.containers[at].state = State::Exited { code: 9 })
        }
        Mishap::Breaks(which) => pick(which).into_iter().for_each(|at| observed.containers[at].state = State::Broken),
        Mishap::IsRemoved(which) => pick(which).into_iter().for_each(|at| {
            observed.containers.remove(at);
        }),
        Mishap::IsRestarted(which) => pick(which).into_iter().for_each(|at| {
            observed.containers[at].state = State::Running { pid: 77_000, started_at: now() };
        }),
        Mishap::LosesAddress(which) => pick(which).into_iter().for_each(|at| {
            for endpoint in observed.containers[at].networks.values_mut() {
                endpoint.address = Some(Ipv4Addr::new(10, 87, 1, 222));
            }
        }),
        Mishap::JoinsBridge(which) => pick(which).into_iter().for_each(|at| {
            let endpoint = Endpoint { network_id: "b".to_owned(), address: None };
            observed.containers[at].networks.insert("bridge".to_owned(), endpoint);
        }),
        Mishap::TableGoes => observed.host.table = Table::Missing,
        Mishap::TableIsOld => observed.host.table = Table::Outdated,
        Mishap::RoutesGo => observed.host.routes_stand = false,
        Mishap::FilesGoStale(which) => {
            let name = ["assistant-nats", "assistant-squid", "assistant-secret-broker", "zeroclaw-tasks"][*which];
            observed.host.stale_files.insert(name.to_owned());
            observed.host.stale_sockets.insert(name.to_owned());
        }
        Mishap::VolumeIsRoots(which) => {
            if let Some(volume) = observed.volumes.get_mut(*which) {
                volume.top = Some(Ownership { uid: 0, gid: 0, mode: 0o755 });
            }
        }
        Mishap::NetworkIsDoubled(which) => {
            if let Some(network) = observed.networks.get(*which).cloned() {
                let at = serial.min(observed.networks.len());
                observed.networks.insert(at, Network { id: format!("double-{serial}"), ..network });
            }
        }
        Mishap::StrangerJoins(which) => {
            if let Some(network) = observed.networks.get(*which).cloned() {
                let name = format!("stranger-{serial}");
                observed.containers.push(foreign(&name, &[(&network.name, &network.id), ("bridge", "b")]));
            }
        }
        Mishap::SupervisorForgets => observed.history.clear(),
    }
}

/// Containers (id, state, whether on the default bridge), networks, volumes.
type Foreign = (Vec<(String, State, bool)>, Vec<Network>, Vec<Volume>);

/// What must be the same before and after, whatever is done: everything foreign, but for its place on our networks.
fn foreign_things(observed: &Observed) -> Foreign {
    let containers = observed
        .containers
        .iter()
        .filter(|container| container.owner == Owner::Foreign)
        .map(|container| (container.id.clone(), container.state, container.networks.contains_key("bridge")));
    let networks = observed.networks.iter().filter(|network| network.owner == Owner::Foreign).cloned();
    let volumes = observed.volumes.iter().filter(|volume| volume.owner == Owner::Foreign).cloned();
    (containers.collect(), networks.collect(), volumes.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn after_an_apply_nothing_is_left_and_nothing_foreign_was_touched(
        before in any_desired(),
        mishaps in proptest::collection::vec(any_mishap(), 0..8),
        wanted in any_desired(),
    ) {
        let mut fresh = 0;
        let mut observed = up(&before, &mut fresh);
        observed.networks.push(Network { id: "b".to_owned(), name: "bridge".to_owned(), owner: Owner::Foreign });
        observed.volumes.push(Volume {
            name: "somebody-elses".to_owned(),
            owner: Owner::Foreign,
            mountpoint: "/v".into(),
            top: None,
        });
        observed.containers.push(foreign("somebody", &[("bridge", "b")]));
        for (serial, mishap) in mishaps.iter().enumerate() {
            befall(&mut observed, mishap, serial);
        }
        // What is stale is compared with what is wanted; of a container that nothing asks for nothing is.
        let names: BTreeSet<String> = wanted.containers.iter().map(|spec| spec.name.clone()).collect();
        observed.host.stale_files.retain(|name| names.contains(name));
        observed.host.stale_sockets.retain(|name| names.contains(name));
        if before != wanted && observed.host.table == Table::Stands {
            observed.host.table = Table::Outdated;
        }
        let untouched = foreign_things(&observed);
        let ids: BTreeSet<String> = untouched.0.iter().map(|(id, ..)| id.clone()).collect();

        let first = plan(&wanted, &observed, now());
        for step in &first.steps {
            let harmed = match &step.action {
                Action::StopContainer { id, .. } | Action::RemoveContainer { id, .. } => ids.contains(id),
                Action::RemoveNetwork { id, .. } => id == "b",
                Action::Detach { network, foreign: true, .. } => network == "bridge",
                _ => false,
            };
            prop_assert!(!harmed, "{}", step.action);
        }
        // `simulate` refuses a start while table or routes do not stand.
        apply(&wanted, &mut observed, &first, &mut fresh);
        prop_assert_eq!(foreign_things(&observed), untouched);
        let second = plan(&wanted, &observed, now());
        prop_assert!(second.is_settled(), "{:?} then {:?}", actions(&first), actions(&second));
        let strangers = observed.containers.iter().filter(|container| {
            container.owner == Owner::Foreign && container.networks.keys().any(|name| name.starts_with("assistant-"))
        });
        prop_assert_eq!(strangers.count(), 0);
    }

    /// What tightens comes before anything that starts.
    #[test]
    fn nothing_starts_before_everything_that_tightens(
        before in any_desired(),
        mishaps in proptest::collection::vec(any_mishap(), 0..8),
        wanted in any_desired(),
    ) {
        let mut observed = up(&before, &mut 0);
        for (serial, mishap) in mishaps.iter().enumerate() {
            befall(&mut observed, mishap, serial);
        }
        let plan = plan(&wanted, &observed, now());
        let starts = |action: &Action| matches!(
            action,
            Action::CreateContainer { .. } | Action::StartContainer { .. } | Action::AdoptContainer { .. }
        );
        let tightens = |action: &Action| matches!(
            action,
            Action::LoadTable | Action::ClaimRoutes | Action::Detach { .. } | Action::RemoveContainer { .. }
                | Action::RemoveNetwork { .. }
        );
        let first_start = plan.steps.iter().position(|step| starts(&step.action)).unwrap_or(usize::MAX);
        let last_wall = plan.steps.iter().rposition(|step| tightens(&step.action));
        prop_assert!(last_wall.is_none_or(|at| at < first_start), "{:?}", actions(&plan));
    }
}
