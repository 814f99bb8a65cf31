//! What an agent with raw sockets could try, and what is to be said about it.

use std::net::Ipv4Addr;

use tier_supervisor::netns;

use crate::frames::{BROADCAST, ICMP, Mac, SYN, TCP, UDP, arp, ethernet, ipv4, ping, tcp, udp, unreachable};
use crate::world::{AGENT, AUDITOR, BRIDGE, BROKER, BUS_GATEWAY, NATS, NEW, OUTSIDE, RESOLVER, TIER_GATEWAY, World};

pub(crate) struct Denied {
    pub(crate) what: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) reason: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) host: Ipv4Addr,
    pub(crate) port: Option<u16>,
}

/// From the agent's port.
pub(crate) fn denied(world: &World) -> Vec<Denied> {
    let mac = |address| world.mac(address);
    let ip = |to_mac: Mac, packet: Vec<u8>| ethernet(to_mac, mac(AGENT), 0x0800, &packet);
    let denied = |what, frame, reason, protocol, host, port| Denied { what, frame, reason, protocol, host, port };
    let nobody = netns::NOBODY;
    vec![
        denied(
            "another port of a door",
            ip(mac(BROKER), ipv4(AGENT, BROKER, TCP, 0, &tcp(40000, 22, SYN))),
            "closed-port",
            "tcp",
            BROKER,
            Some(22),
        ),
        denied(
            "a data port, by UDP",
            ip(mac(BROKER), ipv4(AGENT, BROKER, UDP, 0, &udp(40000, 10255, b"x"))),
            "closed-port",
            "udp",
            BROKER,
            Some(10255),
        ),
        denied(
            "a ping at a door",
            ip(mac(BROKER), ipv4(AGENT, BROKER, ICMP, 0, &ping())),
            "closed-port",
            "icmp",
            BROKER,
            None,
        ),
        denied(
            "an ICMP error about no answer of a door",
            ip(mac(BROKER), ipv4(AGENT, BROKER, ICMP, 0, &unreachable())),
            "closed-port",
            "icmp",
            BROKER,
            None,
        ),
        denied(
            "whoever may dial it",
            ip(mac(BRIDGE), ipv4(AGENT, BRIDGE, TCP, 0, &tcp(40000, 80, SYN))),
            "other-container",
            "tcp",
            BRIDGE,
            Some(80),
        ),
        denied(
            "a connection from the port it serves",
            ip(mac(BRIDGE), ipv4(AGENT, BRIDGE, TCP, 0, &tcp(42617, 80, SYN))),
            "other-container",
            "tcp",
            BRIDGE,
            Some(80),
        ),
        denied(
            "a door's address at another MAC",
            ip(mac(BRIDGE), ipv4(AGENT, BROKER, TCP, 0, &tcp(40000, 10255, SYN))),
            "closed-port",
            "tcp",
            BROKER,
            Some(10255),
        ),
        denied(
            "a door's address at everyone's MAC",
            ip(BROADCAST, ipv4(AGENT, BROKER, TCP, 0, &tcp(40000, 10255, SYN))),
            "closed-port",
            "tcp",
            BROKER,
            Some(10255),
        ),
        denied(
            "the internet",
            ip(nobody, ipv4(AGENT, OUTSIDE, TCP, 0, &tcp(40000, 443, SYN))),
            "direct-address",
            "tcp",
            OUTSIDE,
            Some(443),
        ),
        denied(
            "a resolver",
            ip(nobody, ipv4(AGENT, RESOLVER, UDP, 0, &udp(40000, 53, b"x"))),
            "direct-address",
            "udp",
            RESOLVER,
            Some(53),
        ),
        denied(
            "a ping at the internet",
            ip(nobody, ipv4(AGENT, OUTSIDE, ICMP, 0, &ping())),
            "direct-address",
            "icmp",
            OUTSIDE,
            None,
        ),
        denied(
            "another network of ours",
            ip(nobody, ipv4(AGENT, NATS, TCP, 0, &tcp(40000, 4222, SYN))),
            "other-container",
            "tcp",
            NATS,
            Some(4222),
        ),
        denied(
            "the gateway",
            ip(nobody, ipv4(AGENT, TIER_GATEWAY, TCP, 0, &tcp(40000, 22, SYN))),
            "to-vm",
            "tcp",
            TIER_GATEWAY,
            Some(22),
        ),
        denied(
            "an address of the VM",
            ip(nobody, ipv4(AGENT, BUS_GATEWAY, TCP, 0, &tcp(40000, 22, SYN))),
            "to-vm",
            "tcp",
            BUS_GATEWAY,
            Some(22),
        ),
        denied(
            "everyone",
            ip(BROADCAST, ipv4(AGENT, Ipv4Addr::BROADCAST, UDP, 0, &udp(68, 67, b"x"))),
            "multicast",
            "udp",
            Ipv4Addr::BROADCAST,
            Some(67),
        ),
        denied(
            "another's MAC",
            ethernet(mac(BROKER), mac(BRIDGE), 0x0800, &ipv4(AGENT, BROKER, TCP, 0, &tcp(40000, 10255, SYN))),
            "spoofed-source",
            "tcp",
            BROKER,
            Some(10255),
        ),
        denied(
            "another's address",
            ip(mac(BROKER), ipv4(BRIDGE, BROKER, TCP, 0, &tcp(40000, 10255, SYN))),
            "spoofed-source",
            "tcp",
            BROKER,
            Some(10255),
        ),
        denied(
            "another's address in ARP",
            ethernet(BROADCAST, mac(AGENT), 0x0806, &arp(1, (mac(AGENT), BROKER), AUDITOR)),
            "spoofed-source",
            "arp",
            AUDITOR,
            None,
        ),
        denied(
            "an ARP answer for another",
            ethernet(mac(BRIDGE), mac(AGENT), 0x0806, &arp(2, (mac(AGENT), BROKER), BRIDGE)),
            "spoofed-source",
            "arp",
            BRIDGE,
            None,
        ),
        denied(
            "an announcement of another's address",
            ethernet(BROADCAST, mac(AGENT), 0x0806, &arp(1, (mac(AGENT), BROKER), BROKER)),
            "spoofed-source",
            "arp",
            BROKER,
            None,
        ),
        denied(
            "a question whether another is there",
            ethernet(BROADCAST, mac(AGENT), 0x0806, &arp(1, (mac(AGENT), Ipv4Addr::UNSPECIFIED), AUDITOR)),
            "spoofed-source",
            "arp",
            AUDITOR,
            None,
        ),
        denied(
            "another's MAC in ARP",
            ethernet(BROADCAST, mac(AGENT), 0x0806, &arp(1, (mac(BRIDGE), AGENT), BROKER)),
            "spoofed-source",
            "arp",
            BROKER,
            None,
        ),
        denied(
            "ARP for whom it has no flow with",
            ethernet(BROADCAST, mac(AGENT), 0x0806, &arp(1, (mac(AGENT), AGENT), NEW)),
            "other-container",
            "arp",
            NEW,
            None,
        ),
        denied(
            "the first of some fragments",
            ip(mac(BROKER), ipv4(AGENT, BROKER, TCP, 0x2000, &tcp(40000, 10255, SYN))),
            "fragment",
            "tcp",
            BROKER,
            Some(10255),
        ),
        denied(
            "a later fragment",
            ip(mac(BROKER), ipv4(AGENT, BROKER, TCP, 0x0001, &tcp(40000, 10255, SYN))),
            "fragment",
            "tcp",
            BROKER,
            None,
        ),
    ]
}
