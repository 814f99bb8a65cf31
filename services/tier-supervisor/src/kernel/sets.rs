//! The sets of the kernel table: who is where, and who may speak to whom, as elements that the chains look up. Pure.
//!
//! Flows come from the desired state, MAC addresses and interface names from what is running. A flow whose ends are not
//! both running has no element: it does not exist yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::NOBODYS;
use crate::desired::{Desired, Exit, Flow, Ipv4Cidr, NetworkKind, NetworkSpec, Peer, Protocol};
use crate::netns::NOBODY;

/// Where a running container's interface is plugged into a bridge of ours, seen from the VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerPort {
    /// The container's name.
    pub container: String,
    /// Docker's name of the network.
    pub network: String,
    /// Its address there.
    pub address: Ipv4Addr,
    /// The MAC address of its interface.
    pub mac: [u8; 6],
    /// Name of the port: the VM's end of the veth.
    pub ifname: String,
}

/// Addresses that Squid never reaches, whatever a name resolves to: not public, or not one host (RFC 6890 and its
/// successors). The documentation networks are left out, because the drill's internet lies there.
const PRIVATE: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 52, 193, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(192, 175, 48, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    // Multicast, reserved and broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Squid may connect to this port of every public address.
const TLS_PORT: u16 = 443;

/// Elements, each spelled as nft reads it.
type Elements = BTreeSet<String>;

/// Every set of the table. What the fields of an element are is said in `table`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sets {
    /// Bridges and ports, as they are called.
    pub(super) interfaces: BTreeSet<String>,
    pub(super) bridges: Elements,
    pub(super) same: Elements,
    pub(super) subnets: Elements,
    pub(super) ports: Elements,
    /// Containers that have ports here, by name.
    pub(super) containers: Elements,
    /// Ports and the names of their containers.
    pub(super) owners: Elements,
    pub(super) pins: Elements,
    pub(super) macs: Elements,
    pub(super) neighbours: Elements,
    pub(super) hears: Elements,
    pub(super) tcp_flows: Elements,
    pub(super) tcp_answers: Elements,
    pub(super) udp_flows: Elements,
    pub(super) udp_answers: Elements,
    pub(super) udp_refusals: Elements,
    pub(super) vm_tcp: Elements,
    pub(super) vm_udp: Elements,
    pub(super) vm_tcp_answers: Elements,
    pub(super) vm_udp_answers: Elements,
    pub(super) exits: Elements,
    pub(super) exits_by_bridge: Elements,
    pub(super) exit_ports: Elements,
    pub(super) endpoints: Elements,
    pub(super) dns: Elements,
    pub(super) private: Elements,
}

/// A port that is what the desired state says it should be.
struct Known<'a> {
    address: Ipv4Addr,
    mac: String,
    ifname: &'a str,
    container: &'a str,
}

impl Sets {
    pub(super) fn new(desired: &Desired, ports: &[ContainerPort]) -> Self {
        let mut sets = Self::default();
        for network in desired.networks.iter().filter(|network| is_interface_name(&network.bridge)) {
            sets.interfaces.insert(network.bridge.clone());
            sets.bridges.insert(quoted(&network.bridge));
            sets.same.insert(format!("{0} . {0}", quoted(&network.bridge)));
            sets.subnets.insert(network.subnet.to_string());
        }
        sets.dns.extend(desired.dns_servers.iter().map(Ipv4Addr::to_string));
        sets.private.extend(private(desired));
        sets.exit_ports.insert(TLS_PORT.to_string());
        for exit in &desired.exits {
            match exit {
                Exit::Port(port) => sets.exit_ports.insert(port.to_string()),
                // One that is ours is no machine of a local network.
                Exit::Address(at) if desired.networks.iter().any(|network| network.subnet.contains(*at.ip())) => false,
                Exit::Address(at) => sets.endpoints.insert(format!("{} . {}", at.ip(), at.port())),
            };
        }

        let known = known(desired, ports);
        for port in known.values() {
            sets.interfaces.insert(port.ifname.to_owned());
            sets.ports.insert(quoted(port.ifname));
            sets.pins.insert(format!("{} . {} . {}", quoted(port.ifname), port.mac, port.address));
            sets.macs.insert(port.mac.clone());
            if is_object_name(port.container) {
                sets.containers.insert(port.container.to_owned());
                sets.owners.insert(format!("{} : {}", quoted(port.ifname), quoted(port.container)));
            }
        }
        for flow in &desired.flows {
            if let Some(network) = desired.network(&flow.network) {
                sets.add_flow(desired, network, flow, &known);
            }
        }
        for network in desired.networks.iter().filter(|network| network.kind == NetworkKind::Egress) {
            sets.add_exits(desired, network, &known);
        }
        sets
    }

    fn add_flow(&mut self, desired: &Desired, network: &NetworkSpec, flow: &Flow, known: &Ports<'_>) {
        // Nothing opens a connection to the VM. A flow that says so has no spelling here.
        let Peer::Container(to) = &flow.to else { return };
        let Some(server) = address(desired, to, &network.name) else { return };
        let client = match &flow.from {
            Peer::Container(from) => address(desired, from, &network.name),
            // Nobody has the gateway's address on an isolated network.
            Peer::Vm if network.kind == NetworkKind::Isolated => None,
            Peer::Vm => Some(network.gateway),
        };
        let Some(client) = client else { return };
        self.may_ask(client, server);
        let (client_port, server_port) = (known.get(&(&network.name, client)), known.get(&(&network.name, server)));
        if let Some(server_port) = server_port {
            self.hears(server_port, client);
        }
        if let Some(client_port) = client_port {
            self.hears(client_port, server);
        }
        let Some(server_port) = server_port else { return };
        let port = flow.port;
        let there = format!("{client} . {} . {server} . {port}", server_port.mac);
        let (flows, answers, vm, vm_answers) = match flow.protocol {
            Protocol::Tcp => (&mut self.tcp_flows, &mut self.tcp_answers, &mut self.vm_tcp, &mut self.vm_tcp_answers),
            Protocol::Udp => (&mut self.udp_flows, &mut self.udp_answers, &mut self.vm_udp, &mut self.vm_udp_answers),
        };
        if flow.from == Peer::Vm {
            flows.insert(there);
            vm.insert(format!("{} . {server} . {port}", quoted(&network.bridge)));
            vm_answers.insert(format!("{server} . {client} . {port}"));
        } else if let Some(client_port) = client_port {
            flows.insert(there);
            answers.insert(format!("{server} . {} . {client} . {port}", client_port.mac));
            if flow.protocol == Protocol::Udp {
                // Nobody listens on the port; nobody waits for the answer any more. Kernels say so to each other.
                self.udp_refusals.insert(format!("{server} . {} . {client}", client_port.mac));
                self.udp_refusals.insert(format!("{client} . {} . {server}", server_port.mac));
            }
        }
    }

    /// The one member of `egress`. Were there two, neither would get out.
    fn add_exits(&mut self, desired: &Desired, network: &NetworkSpec, known: &Ports<'_>) {
        let mut members = desired.containers.iter().filter_map(|container| container.address_on(&network.name));
        let (Some(member), None) = (members.next(), members.next()) else { return };
        self.exits.insert(member.to_string());
        self.exits_by_bridge.insert(format!("{} . {member}", quoted(&network.bridge)));
        self.may_ask(member, network.gateway);
        if let Some(port) = known.get(&(network.name.as_str(), member)) {
            self.hears(port, network.gateway);
        }
    }

    /// The two may ask for each other's MAC address, and announce their own.
    fn may_ask(&mut self, one: Ipv4Addr, other: Ipv4Addr) {
        for (from, to) in [(one, other), (other, one), (one, one), (other, other)] {
            self.neighbours.insert(format!("{from} . {to}"));
        }
    }

    /// What the other one asks and announces is delivered to this port.
    fn hears(&mut self, port: &Known<'_>, other: Ipv4Addr) {
        for target in [port.address, other] {
            self.hears.insert(format!("{} . {other} . {target}", quoted(port.ifname)));
        }
    }
}

type Ports<'a> = BTreeMap<(&'a str, Ipv4Addr), Known<'a>>;

/// The ports that are what they should be. One that is not, or that is there twice, stays unknown, and carries nothing.
fn known<'a>(desired: &Desired, ports: &'a [ContainerPort]) -> Ports<'a> {
    let alone = |port: &ContainerPort| {
        let same = |other: &&ContainerPort| {
            other.ifname == port.ifname || (other.network == port.network && other.address == port.address)
        };
        ports.iter().filter(same).count() == 1
    };
    let locally_possible = |mac: &[u8; 6]| mac[0] & 1 == 0 && *mac != [0; 6] && *mac != NOBODY;
    ports
        .iter()
        .filter(|port| address(desired, &port.container, &port.network) == Some(port.address))
        .filter(|port| desired.network(&port.network).is_some())
        .filter(|port| is_interface_name(&port.ifname) && locally_possible(&port.mac) && alone(port))
        .map(|port| {
            let (ifname, container) = (port.ifname.as_str(), port.container.as_str());
            let known = Known { address: port.address, mac: mac(port.mac), ifname, container };
            ((port.network.as_str(), port.address), known)
        })
        .collect()
}

fn address(desired: &Desired, container: &str, network: &str) -> Option<Ipv4Addr> {
    desired.container(container)?.address_on(network)
}

/// The list, plus what of our own subnets it does not cover already: nft refuses ranges that overlap.
fn private(desired: &Desired) -> impl Iterator<Item = String> {
    let fixed: Vec<Ipv4Cidr> =
        PRIVATE.iter().filter_map(|&(network, prefix)| Ipv4Cidr::new(network, prefix).ok()).collect();
    let ours = desired.networks.iter().map(|network| network.subnet);
    let more: BTreeSet<Ipv4Cidr> = ours.filter(|subnet| !fixed.iter().any(|known| known.overlaps(subnet))).collect();
    fixed.into_iter().chain(more).map(|cidr| cidr.to_string())
}

/// Names come from Docker and from the kernel; one that would need quoting is not taken at all.
fn is_interface_name(name: &str) -> bool {
    // The kernel takes neither dot alone, and a path of /proc must not be led by them.
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// What nft takes as the name of an object. A container that is called otherwise is limited and counted with nobody's.
fn is_object_name(name: &str) -> bool {
    let fits = name.len() <= 128 && name != NOBODYS && name.starts_with(|first: char| first.is_ascii_lowercase());
    fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_private_ranges_do_not_overlap_each_other() {
        let ranges: Vec<Ipv4Cidr> =
            PRIVATE.iter().map(|&(network, prefix)| Ipv4Cidr::new(network, prefix).unwrap()).collect();
        for (index, range) in ranges.iter().enumerate() {
            assert!(!ranges.iter().skip(index + 1).any(|other| other.overlaps(range)), "{range}");
        }
        // Where the drill's internet lies, and a public resolver.
        for open in [[203, 0, 113, 9], [198, 51, 100, 53], [192, 0, 2, 1], [9, 9, 9, 9]] {
            assert!(!ranges.iter().any(|range| range.contains(open.into())), "{open:?}");
        }
    }

    #[test]
    fn names_that_nft_would_read_otherwise_are_not_taken() {
        for good in ["as-bus", "ast01234567", "veth1a2b3c4", "eth0.5"] {
            assert!(is_interface_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\"", "a\n", "a;drop", "a*", "sixteen-letters-", "\u{e9}"] {
            assert!(!is_interface_name(bad), "{bad:?}");
        }
    }
}
