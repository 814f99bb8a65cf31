//! Frames that died although the desired state carries them: one of their ends was not in the kernel table yet, or not any
//! more, because it is just being started or replaced. Pure.
//!
//! They die like all others and are told like all others, but not as an attempt at what is forbidden. Only a frame that a
//! flow names to the port is one of these; whatever else a container sends in that moment is told as ever.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::attempt::Cause;
use super::frame::{Packet, Transport};
use crate::desired::{Desired, NetworkKind, Peer, Protocol};
use crate::kernel::ContainerPort;

/// So long after a container got its port others may still send to the MAC address of the one before: a neighbour's entry
/// counts as reachable for up to 45 s, and is then asked for again for some seconds (Linux, arp(7)).
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// Which flows there should be, and which of their ends the table knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Placing {
    /// Who opens, who answers, how, and on which port.
    flows: BTreeSet<(Ipv4Addr, Ipv4Addr, Protocol, u16)>,
    /// Who may ask for whose MAC address.
    neighbours: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Addresses that have their port.
    placed: HashMap<Ipv4Addr, Place>,
    /// Whether this came from a desired state: what an empty one knows nothing of was not placed a moment ago.
    is_known: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    interface: u32,
    /// When it got there; none for one that was there already.
    since: Option<Instant>,
}

impl Placing {
    pub(super) fn new(desired: &Desired, ports: &[ContainerPort], index_of: &impl Fn(&str) -> Option<u32>) -> Self {
        let mut placing = Self { is_known: true, ..Self::default() };
        let at = |name: &str, network: &str| desired.container(name)?.address_on(network);
        for flow in &desired.flows {
            let (Peer::Container(to), Some(network)) = (&flow.to, desired.network(&flow.network)) else { continue };
            let Some(server) = at(to, &network.name) else { continue };
            match &flow.from {
                Peer::Container(from) => {
                    let Some(client) = at(from, &network.name) else { continue };
                    placing.flows.insert((client, server, flow.protocol, flow.port));
                    placing.may_ask(client, server);
                }
                Peer::Vm => placing.may_ask(network.gateway, server),
            }
        }
        for network in desired.networks.iter().filter(|network| network.kind == NetworkKind::Egress) {
            for member in desired.containers.iter().filter_map(|container| container.address_on(&network.name)) {
                placing.may_ask(member, network.gateway);
            }
        }
        let place =
            |port: &ContainerPort| Some((port.address, Place { interface: index_of(&port.ifname)?, since: None }));
        placing.placed = ports.iter().filter_map(place).collect();
        placing
    }

    /// What has another port than before got it now.
    pub(super) fn after(mut self, previous: &Self, now: Instant) -> Self {
        for (address, place) in &mut self.placed {
            place.since = match previous.placed.get(address) {
                Some(before) if before.interface == place.interface => before.since,
                _ => previous.is_known.then_some(now),
            };
        }
        self
    }

    /// Whether this frame, which died, is one that a flow names, from or to a container that was not placed, or only just.
    pub(super) fn is_underway(&self, cause: Cause, packet: Packet, now: Instant) -> bool {
        match (cause, packet) {
            (Cause::Unknown, Packet::Arp { sender, target }) => {
                self.neighbours.contains(&(sender, target)) && !self.has_settled(sender, now)
            }
            (Cause::Unknown, Packet::Ipv4 { source, destination, transport }) => {
                self.carries(source, destination, transport) && !self.has_settled(source, now)
            }
            // Its own port is in the table, so it is the other one that was not.
            (Cause::Flow, Packet::Ipv4 { source, destination, transport }) => {
                self.carries(source, destination, transport) && !self.has_settled(destination, now)
            }
            _ => false,
        }
    }

    /// As the chains of the table have it: who opens goes to the port, who answers comes from it.
    fn carries(&self, source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> bool {
        let has = |from, to, protocol, port| self.flows.contains(&(from, to, protocol, port));
        match transport {
            Transport::Tcp { source_port, port, opening } => {
                has(source, destination, Protocol::Tcp, port)
                    || (opening.is_none() && has(destination, source, Protocol::Tcp, source_port))
            }
            Transport::Udp { source_port, port } => {
                has(source, destination, Protocol::Udp, port) || has(destination, source, Protocol::Udp, source_port)
            }
            Transport::Icmp | Transport::Other(_) => false,
        }
    }

    fn has_settled(&self, address: Ipv4Addr, now: Instant) -> bool {
        self.placed
            .get(&address)
            .is_some_and(|place| place.since.is_none_or(|since| now.saturating_duration_since(since) > SETTLES_WITHIN))
    }

    fn may_ask(&mut self, one: Ipv4Addr, other: Ipv4Addr) {
        self.neighbours.extend([(one, other), (other, one)]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::desired::Flow;
    use crate::plan::samples;

    const AGENT: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 20);
    const BROKER: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 2);
    const SQUID: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 8);
    const TIER: &str = "assistant-tier-tasks";

    fn placing(placed: &[(&str, Ipv4Addr, u32)]) -> Placing {
        let mut desired = samples::desired();
        for (protocol, port) in [(Protocol::Tcp, 10255), (Protocol::Udp, 53)] {
            desired.flows.push(Flow {
                from: Peer::Container("zeroclaw-tasks".to_owned()),
                to: Peer::Container("assistant-secret-broker".to_owned()),
                network: TIER.to_owned(),
                protocol,
                port,
            });
        }
        let ports: Vec<ContainerPort> = placed
            .iter()
            .map(|(container, address, index)| ContainerPort {
                container: (*container).to_owned(),
                network: TIER.to_owned(),
                address: *address,
                mac: [2, 0, 0, 0, 0, 1],
                ifname: index.to_string(),
            })
            .collect();
        Placing::new(&desired, &ports, &|name| name.parse().ok())
    }

    fn tcp(source: Ipv4Addr, destination: Ipv4Addr, source_port: u16, port: u16, opens: bool) -> Packet {
        let transport = Transport::Tcp { source_port, port, opening: opens.then_some(7) };
        Packet::Ipv4 { source, destination, transport }
    }

    #[test]
    fn what_a_flow_names_and_nothing_else() {
        let now = Instant::now();
        let nobody = placing(&[]);
        let agent = placing(&[("zeroclaw-tasks", AGENT, 7)]);
        let udp = |source_port, port| Packet::Ipv4 {
            source: AGENT,
            destination: BROKER,
            transport: Transport::Udp { source_port, port },
        };
        let question = |sender, target| Packet::Arp { sender, target };
        let gateway = Ipv4Addr::new(10, 87, 0, 1);
        let table: [(&Placing, Cause, Packet, bool); 15] = [
            // The agent has just been started.
            (&nobody, Cause::Unknown, tcp(AGENT, BROKER, 40000, 10255, true), true),
            (&nobody, Cause::Unknown, udp(40000, 53), true),
            (&nobody, Cause::Unknown, question(AGENT, BROKER), true),
            (&nobody, Cause::Unknown, question(BROKER, AGENT), true),
            (&nobody, Cause::Unknown, question(SQUID, gateway), true),
            (&nobody, Cause::Unknown, question(AGENT, SQUID), false),
            (&nobody, Cause::Unknown, tcp(AGENT, BROKER, 40000, 22, true), false),
            (&nobody, Cause::Unknown, tcp(AGENT, Ipv4Addr::new(203, 0, 113, 9), 40000, 443, true), false),
            // Something else says it is the agent, which has its port.
            (&agent, Cause::Unknown, tcp(AGENT, BROKER, 40000, 10255, true), false),
            (&agent, Cause::Unknown, question(AGENT, BROKER), false),
            // The broker is being replaced.
            (&agent, Cause::Flow, tcp(AGENT, BROKER, 40000, 10255, true), true),
            (&agent, Cause::Flow, udp(40000, 10255), false),
            (&agent, Cause::Flow, tcp(AGENT, BROKER, 40000, 22, true), false),
            // Another rule's business, whoever is placed.
            (&agent, Cause::Spoof, tcp(AGENT, BROKER, 40000, 10255, true), false),
            (&agent, Cause::Forward, tcp(AGENT, BROKER, 40000, 10255, true), false),
        ];
        for (placing, cause, packet, underway) in table {
            assert_eq!(placing.is_underway(cause, packet, now), underway, "{cause:?} {packet:?}");
        }
        // The broker answers an agent that went away, and opens nothing to it.
        let broker = placing(&[("assistant-secret-broker", BROKER, 8)]);
        assert!(broker.is_underway(Cause::Flow, tcp(BROKER, AGENT, 10255, 40000, false), now));
        assert!(!broker.is_underway(Cause::Flow, tcp(BROKER, AGENT, 10255, 40000, true), now));
        assert!(!broker.is_underway(Cause::Flow, tcp(BROKER, AGENT, 22, 40000, false), now));
    }

    #[test]
    fn who_was_just_placed_has_not_settled() {
        let start = Instant::now();
        let attempt = tcp(AGENT, BROKER, 40000, 10255, true);
        let both = || placing(&[("zeroclaw-tasks", AGENT, 7), ("assistant-secret-broker", BROKER, 8)]);
        let at = |placing: &Placing, after: Duration| placing.is_underway(Cause::Flow, attempt, start + after);
        // Another run of this program placed them: they are not new.
        let known = both().after(&Placing::default(), start);
        assert!(!at(&known, Duration::ZERO));
        let alone = placing(&[("zeroclaw-tasks", AGENT, 7)]).after(&known, start);
        let again = both().after(&alone, start);
        // The same ports again: the time goes on.
        let later = both().after(&again, start + Duration::from_secs(30));
        for placing in [&again, &later] {
            assert!(at(placing, SETTLES_WITHIN));
            assert!(!at(placing, SETTLES_WITHIN + Duration::from_millis(1)));
        }
        // Another port than before: it was replaced between two looks.
        let moved =
            placing(&[("zeroclaw-tasks", AGENT, 7), ("assistant-secret-broker", BROKER, 9)]).after(&known, start);
        assert!(at(&moved, Duration::ZERO));
    }
}
