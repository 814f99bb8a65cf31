//! Who is on which network, against who should be. Pure.

use std::collections::BTreeSet;

use super::{Verdict, failed, passed};
use crate::desired::{Desired, NetworkKind, NetworkSpec};
use crate::observed::Container;

/// `egress` has exactly one member, and it is the desired one.
pub(super) fn egress_alone(desired: &Desired, containers: &[Container]) -> Verdict {
    const CHECK: &str = "egress-alone";
    let egress: Vec<&NetworkSpec> =
        desired.networks.iter().filter(|network| network.kind == NetworkKind::Egress).collect();
    let [network] = egress.as_slice() else {
        return failed(CHECK, format!("{} networks lead out", egress.len()), "report this: it is a bug");
    };
    let wanted = desired_members(desired, network);
    let found = members(network, containers);
    let names = |set: &BTreeSet<&str>| set.iter().copied().collect::<Vec<_>>().join(", ");
    if wanted.len() == 1 && found == wanted {
        return passed(CHECK, format!("{} is alone on {}", names(&found), network.name));
    }
    failed(
        CHECK,
        format!("on {}: [{}]; it must be [{}] and nothing else", network.name, names(&found), names(&wanted)),
        format!(
            "docker network disconnect -f {} <container>; tier-supervisor does so by itself where it runs",
            network.name
        ),
    )
}

/// Every network of ours has only its own members, at their addresses.
pub(super) fn as_desired(desired: &Desired, containers: &[Container]) -> Vec<Verdict> {
    desired.networks.iter().map(|network| network_members(desired, network, containers)).collect()
}

fn network_members(desired: &Desired, network: &NetworkSpec, containers: &[Container]) -> Verdict {
    const CHECK: &str = "network-members";
    let name = &network.name;
    let wanted = desired_members(desired, network);
    let found = members(network, containers);
    let strangers: Vec<&str> = found.difference(&wanted).copied().collect();
    if !strangers.is_empty() {
        return failed(
            CHECK,
            format!("{name}: {} does not belong there", strangers.join(", ")),
            format!("docker network disconnect -f {name} {}", strangers.join(" ")),
        );
    }
    let moved = containers.iter().find(|container| {
        let wanted = desired.container(&container.name).and_then(|spec| spec.address_on(name));
        // A container that does not run may have no address.
        container.pid().is_some() && container.networks.get(name).is_some_and(|there| there.address != wanted)
    });
    if let Some(container) = moved {
        let container = &container.name;
        return failed(
            CHECK,
            format!("{name}: {container} is not at its own address"),
            format!("docker rm -f {container}; tier-supervisor makes it again"),
        );
    }
    passed(CHECK, format!("{name}: {} of {} members, no stranger", found.len(), wanted.len()))
}

fn desired_members<'a>(desired: &'a Desired, network: &NetworkSpec) -> BTreeSet<&'a str> {
    let members = desired.containers.iter().filter(|spec| spec.address_on(&network.name).is_some());
    members.map(|spec| spec.name.as_str()).collect()
}

fn members<'a>(network: &NetworkSpec, containers: &'a [Container]) -> BTreeSet<&'a str> {
    let members = containers.iter().filter(|container| container.networks.contains_key(&network.name));
    members.map(|container| container.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::observed::{Endpoint, Owner, State};
    use crate::plan::samples;

    /// Everything as desired.
    fn containers(desired: &Desired) -> Vec<Container> {
        let container = |spec: &crate::desired::ContainerSpec| Container {
            id: spec.name.clone(),
            name: spec.name.clone(),
            owner: Owner::Foreign,
            state: State::Running { pid: 1, started_at: UNIX_EPOCH },
            networks: spec.networks.iter().map(|at| (at.network.clone(), endpoint(Some(at.address)))).collect(),
            image: String::new(),
        };
        desired.containers.iter().map(container).collect()
    }

    fn endpoint(address: Option<std::net::Ipv4Addr>) -> Endpoint {
        Endpoint { network_id: String::new(), address }
    }

    fn failures(desired: &Desired, containers: &[Container]) -> Vec<Verdict> {
        let mut verdicts = as_desired(desired, containers);
        verdicts.push(egress_alone(desired, containers));
        verdicts.retain(|verdict| !verdict.passed);
        verdicts
    }

    #[test]
    fn a_stranger_is_named_wherever_it_sits() {
        let desired = samples::desired();
        assert!(failures(&desired, &containers(&desired)).is_empty());
        for network in &desired.networks {
            let mut found = containers(&desired);
            let mut stranger = found[0].clone();
            stranger.name = "stranger".to_owned();
            stranger.networks = [(network.name.clone(), endpoint(None))].into();
            found.push(stranger);
            let failures = failures(&desired, &found);
            assert!(!failures.is_empty(), "{}", network.name);
            let named = |verdict: &Verdict| verdict.detail.contains("stranger") && !verdict.fix.is_empty();
            assert!(failures.iter().all(named), "{failures:?}");
        }
    }

    #[test]
    fn egress_without_squid_is_not_fine_and_with_another_of_ours_neither() {
        let desired = samples::desired();
        let without: Vec<Container> =
            containers(&desired).into_iter().filter(|container| container.name != "assistant-squid").collect();
        assert!(!egress_alone(&desired, &without).passed);
        let mut with = containers(&desired);
        with[0].networks.insert("assistant-egress".to_owned(), endpoint(None));
        assert!(!egress_alone(&desired, &with).passed);
        assert!(!as_desired(&desired, &with).iter().all(|verdict| verdict.passed));
    }

    #[test]
    fn an_address_that_is_not_its_own_is_seen() {
        let desired = samples::desired();
        let mut found = containers(&desired);
        found[0].networks.insert("assistant-bus".to_owned(), endpoint(Some([10, 87, 1, 99].into())));
        assert_eq!(failures(&desired, &found).len(), 1);
        // One that does not run has none.
        found[0].state = State::Created;
        assert!(failures(&desired, &found).is_empty());
    }
}
