#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::samples;
use super::{Action, Conflict, Plan, network_hash, plan};
use crate::desired::Desired;
use crate::observed::{
    Container, Disk, Endpoint, History, Incarnation, Network, Observed, Owner, Ownership, SquidLog, State, Table,
    Volume,
};
use assistant_proto::config::Mode;

pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000)
}

/// What the engine and the VM would be after a step. Also checks that the step was possible, as the engine would.
fn simulate(desired: &Desired, observed: &mut Observed, action: &Action, fresh: &mut u32) {
    *fresh += 1;
    let id = format!("new-{fresh}");
    if action.changes_ports() {
        observed.host.table = Table::Outdated;
    }
    match action {
        Action::LoadTable => observed.host.table = Table::Stands,
        Action::ClaimRoutes => observed.host.routes_stand = true,
        Action::Detach { container_id, network, .. } => {
            let found = observed.containers.iter_mut().find(|found| &found.id == container_id).unwrap();
            assert!(found.networks.remove(network).is_some(), "{action}: it was not attached");
        }
        Action::StopContainer { id, .. } => {
            let found = observed.containers.iter_mut().find(|found| &found.id == id).unwrap();
            assert!(found.state.is_running(), "{action}: it did not run");
            found.state = State::Exited { code: 0 };
        }
        Action::RemoveContainer { id, .. } => observed.containers.retain(|found| &found.id != id),
        Action::RemoveNetwork { id, name } => {
            let users = observed.containers.iter().filter(|found| {
                found.state.is_running() && found.networks.get(name).is_some_and(|endpoint| &endpoint.network_id == id)
            });
            assert_eq!(users.count(), 0, "{action}: it is in use");
            observed.networks.retain(|found| &found.id != id);
        }
        Action::CreateNetwork { name } => {
            assert!(!observed.networks.iter().any(|found| &found.name == name), "{action}: it exists");
            let spec = network_hash(desired.network(name).unwrap());
            let owner = Owner::Ours { mode: Some(desired.mode), spec };
            observed.networks.push(Network { id, name: name.clone(), owner });
        }
        Action::CreateVolume { name } => {
            let spec = desired.volumes.iter().find(|spec| &spec.name == name).unwrap();
            observed.volumes.push(Volume {
                name: name.clone(),
                owner: Owner::Ours { mode: Some(desired.mode), spec: String::new() },
                mountpoint: "/v".into(),
                top: Some(Ownership { uid: spec.uid, gid: spec.gid, mode: spec.mode }),
            });
        }
        Action::OwnVolume { name } => {
            let spec = desired.volumes.iter().find(|spec| &spec.name == name).unwrap();
            let found = observed.volumes.iter_mut().find(|found| &found.name == name).unwrap();
            found.top = Some(Ownership { uid: spec.uid, gid: spec.gid, mode: spec.mode });
        }
        Action::WriteFiles { name } => assert!(observed.host.stale_files.remove(name)),
        Action::OpenSocketDirectory { name } => assert!(observed.host.stale_sockets.remove(name)),
        Action::CreateContainer { name } => {
            assert!(!observed.containers.iter().any(|found| &found.name == name), "{action}: the name is taken");
            let spec = desired.container(name).unwrap();
            let networks = spec.networks.iter().map(|at| {
                let network =
                    observed.networks.iter().find(|found| found.name == at.network).expect("its network exists");
                (at.network.clone(), Endpoint { network_id: network.id.clone(), address: Some(at.address) })
            });
            let networks = networks.collect();
            observed.restart_policies.insert(name.clone(), "no".to_owned());
            observed.containers.push(Container {
                id,
                name: name.clone(),
                owner: Owner::Ours { mode: Some(desired.mode), spec: spec.spec_hash() },
                state: State::Created,
                networks,
                image: spec.image.clone(),
            });
        }
        Action::StartContainer { name } | Action::AdoptContainer { name } => {
            assert_eq!(observed.host.table, Table::Stands, "{action}: nothing holds it");
            assert!(observed.host.routes_stand, "{action}: its bridge is not led into the drill");
            let adopts = matches!(action, Action::AdoptContainer { .. });
            let found = observed.containers.iter_mut().find(|found| &found.name == name).expect("it exists");
            assert_eq!(found.state.is_running(), adopts, "{action}");
            if !adopts {
                found.state = State::Running { pid: *fresh, started_at: now() };
            }
            let run = Incarnation { id: found.id.clone(), pid: found.pid().unwrap(), started_at: now(), since: now() };
            observed.history.entry(name.clone()).or_default().note_prepared(run);
        }
        Action::AwaitReady { name } => {
            let found = observed.containers.iter().find(|found| &found.name == name).expect("it exists");
            let history = observed.history.get_mut(name).expect("it is prepared");
            assert!(history.has_prepared(found), "{action}: it is not prepared");
            history.note_ready(now());
        }
        Action::RotateLog { .. } => observed.host.squid_log = SquidLog::Fine,
    }
}

pub(super) fn apply(desired: &Desired, observed: &mut Observed, plan: &Plan, fresh: &mut u32) {
    for step in &plan.steps {
        simulate(desired, observed, &step.action, fresh);
    }
}

pub(super) fn nothing() -> Observed {
    Observed::default()
}

/// A stack that is up.
pub(super) fn up(desired: &Desired, fresh: &mut u32) -> Observed {
    let mut observed = nothing();
    let plan = plan(desired, &observed, now());
    apply(desired, &mut observed, &plan, fresh);
    observed
}

pub(super) fn actions(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| step.action.to_string()).collect()
}

#[test]
fn from_nothing_walls_come_before_containers() {
    let desired = samples::desired();
    let mut observed = nothing();
    observed.host.stale_files.insert("assistant-nats".to_owned());
    observed.host.stale_sockets.insert("assistant-secret-broker".to_owned());
    let plan = plan(&desired, &observed, now());
    assert_eq!(
        actions(&plan),
        [
            "load the kernel table",
            "create network assistant-egress",
            "create network assistant-bus",
            "create network assistant-transit",
            "create network assistant-tier-tasks",
            "lead our bridges into the drill",
            "load the kernel table",
            "create volume assistant-drill-nats",
            "create volume assistant-drill-zeroclaw-tasks",
            "write the files of assistant-nats",
            "create container assistant-nats",
            "start container assistant-nats",
            "wait for container assistant-nats",
            "create container assistant-squid",
            "start container assistant-squid",
            "wait for container assistant-squid",
            "open the socket directory of assistant-secret-broker",
            "create container assistant-secret-broker",
            "start container assistant-secret-broker",
            "wait for container assistant-secret-broker",
            "create container zeroclaw-tasks",
            "start container zeroclaw-tasks",
            "wait for container zeroclaw-tasks",
        ]
    );
    assert!(plan.steps.iter().all(|step| !step.reason.is_empty()));
}

#[test]
fn a_supervisor_that_starts_again_adopts_and_restarts_nothing() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    observed.history.clear();
    let plan = plan(&desired, &observed, now());
    // All are prepared before any is waited for.
    let (adopted, awaited) = plan.steps.split_at(desired.containers.len());
    assert!(adopted.iter().all(|step| matches!(step.action, Action::AdoptContainer { .. })), "{:?}", actions(&plan));
    assert!(awaited.iter().all(|step| matches!(step.action, Action::AwaitReady { .. })), "{:?}", actions(&plan));
    assert_eq!(awaited.len(), desired.containers.len());
}

#[test]
fn only_what_changed_is_replaced() {
    let mut desired = samples::desired();
    let observed = up(&desired, &mut 0);
    desired.containers[3].image = "zeroclaw:2".to_owned();
    assert_eq!(
        actions(&plan(&desired, &observed, now())),
        [
            "stop container zeroclaw-tasks",
            "remove container zeroclaw-tasks",
            "load the kernel table",
            "create container zeroclaw-tasks",
            "start container zeroclaw-tasks",
            "wait for container zeroclaw-tasks",
        ]
    );
}

#[test]
fn what_an_unclean_end_left_is_started_again() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    observed.history.clear();
    observed.host = crate::observed::Host::default();
    for container in &mut observed.containers {
        container.state = State::Exited { code: 255 };
    }
    let plan = plan(&desired, &observed, now());
    let starts = plan.steps.iter().filter(|step| matches!(step.action, Action::StartContainer { .. })).count();
    assert_eq!((starts, plan.steps.len()), (4, 10), "{:?}", actions(&plan));
    assert!(plan.steps.iter().rfind(|step| step.action.brings_up()).unwrap().reason.contains("255"));
}

#[test]
fn a_dead_container_waits_for_its_turn() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    let name = "zeroclaw-tasks";
    observed.containers.iter_mut().find(|found| found.name == name).unwrap().state = State::Exited { code: 1 };
    let failed = History { failures: 3, failed_at: Some(now()), ..History::default() };
    observed.history.insert(name.to_owned(), failed);
    let early = plan(&desired, &observed, now() + Duration::from_secs(3));
    assert!(early.steps.is_empty() && !early.is_settled());
    assert_eq!(early.next_try(), Some(now() + Duration::from_secs(4)));
    assert_eq!(early.waiting[0].code, Some(1));
    let late = plan(&desired, &observed, now() + Duration::from_secs(4));
    assert_eq!(actions(&late), ["start container zeroclaw-tasks", "wait for container zeroclaw-tasks"]);
}

#[test]
fn a_container_that_is_not_ready_yet_is_only_waited_for() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    let name = "zeroclaw-tasks";
    observed.history.get_mut(name).unwrap().ready_since = None;
    let waits = plan(&desired, &observed, now());
    assert_eq!(actions(&waits), ["wait for container zeroclaw-tasks"]);
    assert!(!waits.is_settled());
    // In vain, time and again: it is started anew.
    for (failures, expected) in [
        (1, &["adopt container zeroclaw-tasks", "wait for container zeroclaw-tasks"][..]),
        (
            3,
            &["stop container zeroclaw-tasks", "start container zeroclaw-tasks", "wait for container zeroclaw-tasks"][..],
        ),
    ] {
        let history = History { failures, failed_at: Some(UNIX_EPOCH), ..History::default() };
        observed.history.insert(name.to_owned(), history);
        assert_eq!(actions(&plan(&desired, &observed, now())), expected, "{failures}");
    }
}

#[test]
fn a_full_log_is_rotated_by_a_squid_that_is_up() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    for log in [SquidLog::Full, SquidLog::Moved] {
        observed.host.squid_log = log;
        assert_eq!(actions(&plan(&desired, &observed, now())), ["rotate the log of assistant-squid"], "{log:?}");
    }
    observed.history.get_mut("assistant-squid").unwrap().ready_since = None;
    assert_eq!(actions(&plan(&desired, &observed, now())), ["wait for container assistant-squid"]);
}

#[test]
fn the_other_stack_is_never_touched_while_it_runs() {
    let desired = samples::desired();
    let mut live = samples::desired();
    live.mode = Mode::Live;
    let mut observed = up(&live, &mut 0);
    let refused = plan(&desired, &observed, now());
    assert!(refused.steps.is_empty());
    assert_eq!(refused.conflicts, [Conflict::OtherMode { running: "live" }]);
    for container in &mut observed.containers {
        container.state = State::Exited { code: 0 };
    }
    let plan = plan(&desired, &observed, now());
    assert!(!plan.conflicts.contains(&Conflict::OtherMode { running: "live" }));
    assert!(plan.steps.iter().any(|step| matches!(&step.action, Action::RemoveContainer { .. })));
    // Its data stays: a name that is the other stack's is a conflict, not a thing to take over.
    assert!(plan.conflicts.iter().all(|conflict| matches!(conflict, Conflict::VolumeName { .. })));
}

#[test]
fn a_foreign_container_with_our_name_is_a_clear_error() {
    let desired = samples::desired();
    let mut observed = nothing();
    observed.containers.push(foreign("assistant-squid", &[]));
    let plan = plan(&desired, &observed, now());
    assert_eq!(plan.conflicts, [Conflict::ContainerName { name: "assistant-squid".to_owned() }]);
    assert!(plan.conflicts[0].to_string().contains("docker rename assistant-squid"));
    assert!(!plan.steps.iter().any(|step| step.action.container() == Some("assistant-squid")));
}

#[test]
fn strangers_on_our_networks_and_ours_on_strange_ones_are_disconnected_first() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    let tier_network = observed.networks.iter().find(|found| found.name == "assistant-tier-tasks").unwrap().clone();
    observed.networks.push(Network { id: "b".to_owned(), name: "bridge".to_owned(), owner: Owner::Foreign });
    observed.containers.push(foreign("spy", &[("assistant-tier-tasks", &tier_network.id), ("bridge", "b")]));
    let agent = observed.containers.iter_mut().find(|found| found.name == "zeroclaw-tasks").unwrap();
    agent.networks.insert("bridge".to_owned(), Endpoint { network_id: "b".to_owned(), address: None });
    let plan = plan(&desired, &observed, now());
    let mut found = actions(&plan);
    found.sort();
    assert_eq!(
        found,
        [
            "disconnect spy from network assistant-tier-tasks",
            "disconnect zeroclaw-tasks from network bridge",
            "load the kernel table",
        ]
    );
}

#[test]
fn docker_must_not_start_our_containers() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    observed.restart_policies.insert("zeroclaw-tasks".to_owned(), "always".to_owned());
    let plan = plan(&desired, &observed, now());
    assert!(plan.steps.iter().any(|step| step.action.to_string() == "remove container zeroclaw-tasks"));
}

#[test]
fn a_network_of_the_same_name_made_later_is_another_one() {
    let desired = samples::desired();
    let mut observed = up(&desired, &mut 0);
    for network in observed.networks.iter_mut().filter(|found| found.name == "assistant-bus") {
        network.id = "later".to_owned();
    }
    let plan = plan(&desired, &observed, now());
    let removed: BTreeSet<&str> = plan
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::RemoveContainer { .. }))
        .filter_map(|step| step.action.container())
        .collect();
    assert_eq!(removed, BTreeSet::from(["assistant-nats", "assistant-secret-broker"]));
}

pub(super) fn foreign(name: &str, networks: &[(&str, &str)]) -> Container {
    Container {
        id: format!("foreign-{name}"),
        name: name.to_owned(),
        owner: Owner::Foreign,
        state: State::Unknown,
        networks: networks
            .iter()
            .map(|(network, id)| {
                let address = Some(Ipv4Addr::new(10, 87, 99, 99));
                ((*network).to_owned(), Endpoint { network_id: (*id).to_owned(), address })
            })
            .collect::<BTreeMap<_, _>>(),
        image: "x".to_owned(),
    }
}

#[test]
fn a_container_on_no_network_is_made_once_and_kept_off_networks() {
    let mut desired = samples::desired();
    desired.containers.push(samples::container(
        "sandbox-tasks",
        crate::desired::Role::Sandbox,
        Some(samples::tier()),
        "sandbox:1",
        &[],
        Some("assistant-drill-sandbox-tasks"),
    ));
    desired.volumes.push(samples::volume("assistant-drill-sandbox-tasks", Some(samples::tier())));
    let mut fresh = 0;
    let mut observed = up(&desired, &mut fresh);
    assert!(plan(&desired, &observed, now()).is_settled());
    let sandbox = observed.containers.iter_mut().find(|found| found.name == "sandbox-tasks").unwrap();
    assert!(sandbox.networks.is_empty() && sandbox.state.is_running());
    // Somebody plugs it in: it is unplugged, and goes on running.
    let network = observed.networks.iter().find(|network| network.name == "assistant-tier-tasks").unwrap();
    let endpoint = Endpoint { network_id: network.id.clone(), address: Some([10, 87, 16, 99].into()) };
    sandbox.networks.insert("assistant-tier-tasks".to_owned(), endpoint);
    let second = plan(&desired, &observed, now());
    assert!(
        matches!(&second.steps[0].action, Action::Detach { container, foreign: false, .. } if container == "sandbox-tasks"),
        "{:?}",
        actions(&second)
    );
    assert!(!second.steps.iter().any(|step| matches!(step.action, Action::StopContainer { .. })));
    apply(&desired, &mut observed, &second, &mut fresh);
    assert!(plan(&desired, &observed, now()).is_settled());
}

#[test]
fn on_a_full_disk_tiers_are_stopped_and_start_again() {
    let desired = samples::desired();
    let mut fresh = 0;
    let mut observed = up(&desired, &mut fresh);
    observed.disk = Disk::Low;
    let stops = plan(&desired, &observed, now());
    assert_eq!(stops.conflicts, [Conflict::Disk]);
    let of_tiers: Vec<&str> =
        desired.containers.iter().filter(|spec| spec.tier.is_some()).map(|spec| spec.name.as_str()).collect();
    let stopped: Vec<&str> = stops
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::StopContainer { name, .. } => Some(name.as_str()),
            Action::LoadTable => None,
            other => panic!("{other}"),
        })
        .collect();
    assert!(!of_tiers.is_empty() && stopped == of_tiers, "{stopped:?}");
    apply(&desired, &mut observed, &stops, &mut fresh);
    for name in &of_tiers {
        observed.history.entry((*name).to_owned()).or_default().forget_run();
    }
    let rest = plan(&desired, &observed, now());
    assert!(rest.steps.is_empty() && !rest.is_settled(), "{:?}", rest.steps);

    observed.disk = Disk::Enough;
    let starts = plan(&desired, &observed, now());
    apply(&desired, &mut observed, &starts, &mut fresh);
    let running = observed.containers.iter().filter(|found| found.state.is_running()).count();
    assert_eq!(running, desired.containers.len());
    assert!(plan(&desired, &observed, now()).is_settled());
}
