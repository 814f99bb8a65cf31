//! Which routes and neighbour entries a container needs inside, and whether it has them. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::Deserialize;

use super::{NOBODY, NetnsError, Port};
use crate::desired::{ContainerSpec, Desired, Ipv4Cidr, NetworkKind, Peer};

/// What must be there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    /// Gateway and interface of the default route; none: whatever the engine made of it.
    default: Option<(Ipv4Addr, String)>,
    /// Networks whose gateway is nobody.
    inert: Vec<Inert>,
}

#[derive(Debug, PartialEq, Eq)]
struct Inert {
    ifname: String,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    subnet: Ipv4Cidr,
    peers: BTreeSet<Ipv4Addr>,
}

/// What must be there, for this container with these interfaces.
pub(super) fn routes(container: &ContainerSpec, desired: &Desired, ports: &[Port]) -> Result<Routes, NetnsError> {
    let mut routes = Routes::default();
    for attachment in &container.networks {
        let Some(network) = desired.network(&attachment.network) else { continue };
        let ifname = || {
            let port = ports.iter().find(|port| port.address == attachment.address);
            port.map(|port| port.ifname.clone()).ok_or_else(|| NetnsError::NoSuchAddress {
                container: container.name.clone(),
                address: attachment.address,
            })
        };
        match network.kind {
            NetworkKind::Egress => routes.default = Some((network.gateway, ifname()?)),
            NetworkKind::Isolated if container.inert_default_route => {
                let ifname = ifname()?;
                routes.default = Some((network.gateway, ifname.clone()));
                routes.inert.push(Inert {
                    ifname,
                    address: attachment.address,
                    gateway: network.gateway,
                    subnet: network.subnet,
                    peers: peers(container, desired, &network.name),
                });
            }
            NetworkKind::Isolated | NetworkKind::Internal => {}
        }
    }
    Ok(routes)
}

fn peers(container: &ContainerSpec, desired: &Desired, network: &str) -> BTreeSet<Ipv4Addr> {
    let is_it = |peer: &Peer| matches!(peer, Peer::Container(name) if *name == container.name);
    let flows = desired.flows.iter().filter(|flow| flow.network == network);
    flows
        .filter_map(|flow| match (is_it(&flow.from), is_it(&flow.to)) {
            (true, _) => Some(&flow.to),
            (_, true) => Some(&flow.from),
            _ => None,
        })
        .filter_map(|peer| match peer {
            Peer::Container(name) => desired.container(name)?.address_on(network),
            Peer::Vm => None,
        })
        .collect()
}

/// Lines for `ip -batch`, each safe to repeat.
pub(super) fn commands(
    container: &ContainerSpec,
    desired: &Desired,
    ports: &[Port],
) -> Result<Vec<String>, NetnsError> {
    let routes = routes(container, desired, ports)?;
    let mut lines = Vec::new();
    for Inert { ifname, address, gateway, subnet, peers } in &routes.inert {
        let nobody = NOBODY.map(|byte| format!("{byte:02x}")).join(":");
        lines.push(format!("neigh replace {gateway} lladdr {nobody} dev {ifname} nud permanent\n"));
        for peer in peers {
            lines.push(format!("route replace {peer}/32 dev {ifname} scope link src {address}\n"));
        }
        // The default route first: without the subnet's own route, and without it, nothing would leave the kernel.
        lines.push(format!("route replace default via {gateway} dev {ifname} onlink src {address}\n"));
        lines.push(format!("route flush exact {subnet} dev {ifname}\n"));
    }
    if routes.inert.is_empty()
        && let Some((gateway, ifname)) = &routes.default
    {
        lines.push(format!("route replace default via {gateway} dev {ifname}\n"));
    }
    Ok(lines)
}

#[derive(Debug, Deserialize)]
struct Route {
    dst: String,
    gateway: Option<Ipv4Addr>,
    dev: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Neighbour {
    dst: Ipv4Addr,
    dev: String,
    lladdr: Option<String>,
}

impl Routes {
    /// Whether they are there, by `ip -j route` and `ip -j neigh show nud permanent`.
    pub(super) fn stand(&self, routes: &str, neighbours: &str) -> Result<bool, NetnsError> {
        let not_understood = |error: serde_json::Error| NetnsError::Listing { why: error.to_string() };
        let there: Vec<Route> = serde_json::from_str(routes).map_err(not_understood)?;
        let neighbours: Vec<Neighbour> = serde_json::from_str(neighbours).map_err(not_understood)?;
        let nobody = NOBODY.map(|byte| format!("{byte:02x}")).join(":");
        let has = |dst: &str, gateway: Option<Ipv4Addr>, dev: &str| {
            there.iter().any(|route| route.dst == dst && route.gateway == gateway && route.dev.as_deref() == Some(dev))
        };
        let default = self.default.as_ref().is_none_or(|(gateway, dev)| has("default", Some(*gateway), dev));
        let inert = self.inert.iter().all(|inert| {
            neighbours.iter().any(|neighbour| {
                neighbour.dst == inert.gateway
                    && neighbour.dev == inert.ifname
                    && neighbour.lladdr.as_deref() == Some(&nobody)
            }) && inert.peers.iter().all(|peer| has(&peer.to_string(), None, &inert.ifname))
                && !there.iter().any(|route| route.dst == inert.subnet.to_string())
        });
        Ok(default && inert)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::desired::{Flow, Protocol};
    use crate::plan::samples;

    fn port(address: [u8; 4], ifname: &str) -> Port {
        let host_ifname = format!("v{ifname}");
        Port { address: address.into(), mac: [2; 6], ifname: ifname.to_owned(), host_ifname, bridge: None }
    }

    fn desired() -> Desired {
        let mut desired = samples::desired();
        let container = |name: &str| Peer::Container(name.to_owned());
        desired.flows = vec![Flow {
            from: container("zeroclaw-tasks"),
            to: container("assistant-secret-broker"),
            network: "assistant-tier-tasks".to_owned(),
            protocol: Protocol::Tcp,
            port: 10255,
        }];
        for spec in &mut desired.containers {
            spec.inert_default_route = spec.name == "zeroclaw-tasks";
        }
        desired
    }

    #[test]
    fn a_tier_container_reaches_its_peers_and_nobody() {
        let desired = desired();
        let agent = desired.container("zeroclaw-tasks").unwrap();
        let ports = [port([10, 87, 16, 20], "eth3")];
        assert_eq!(
            commands(agent, &desired, &ports).unwrap(),
            [
                "neigh replace 10.87.16.1 lladdr 06:61:73:00:00:01 dev eth3 nud permanent\n",
                "route replace 10.87.16.2/32 dev eth3 scope link src 10.87.16.20\n",
                "route replace default via 10.87.16.1 dev eth3 onlink src 10.87.16.20\n",
                "route flush exact 10.87.16.0/24 dev eth3\n",
            ]
        );
        let wanted = routes(agent, &desired, &ports).unwrap();
        let default = r#"{"dst":"default","gateway":"10.87.16.1","dev":"eth3","flags":["onlink"]}"#;
        let peer = r#"{"dst":"10.87.16.2","dev":"eth3","scope":"link","flags":[]}"#;
        let subnet = r#"{"dst":"10.87.16.0/24","dev":"eth3","scope":"link","flags":[]}"#;
        let neighbour = r#"[{"dst":"10.87.16.1","dev":"eth3","lladdr":"06:61:73:00:00:01","state":["PERMANENT"]}]"#;
        assert!(wanted.stand(&format!("[{default},{peer}]"), neighbour).unwrap());
        for (routes, neighbours) in [
            (format!("[{default}]"), neighbour),
            (format!("[{peer}]"), neighbour),
            (format!("[{default},{peer},{subnet}]"), neighbour),
            (format!("[{default},{peer}]"), "[]"),
        ] {
            assert!(!wanted.stand(&routes, neighbours).unwrap(), "{routes} {neighbours}");
        }
        assert!(wanted.stand("", neighbour).is_err());
    }

    #[test]
    fn only_squid_has_a_way_out_and_services_keep_what_they_have() {
        let desired = desired();
        let squid = desired.container("assistant-squid").unwrap();
        let ports = [port([10, 87, 3, 8], "eth0"), port([10, 87, 0, 8], "eth1")];
        assert_eq!(commands(squid, &desired, &ports).unwrap(), ["route replace default via 10.87.0.1 dev eth1\n"]);
        let missing = commands(squid, &desired, &[]);
        assert!(matches!(missing, Err(NetnsError::NoSuchAddress { .. })), "{missing:?}");
        let broker = desired.container("assistant-secret-broker").unwrap();
        assert!(commands(broker, &desired, &[]).unwrap().is_empty());
    }
}
