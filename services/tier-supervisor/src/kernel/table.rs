//! The text of the kernel table. Pure.
//!
//! The chains are files beside this one, in nft's own language; only the elements of the sets vary. Fields of an element,
//! in order, are the `type` of its set here. At most five: nft 1.0 cannot name the type of more.

use std::collections::BTreeSet;

use super::sets::{ContainerPort, Sets};
use super::{DRILL_INTERFACE, GATES_UID, NFLOG_GROUP, NOBODYS, Ruleset, TABLE};
use crate::desired::Desired;

const BRIDGE_CHAINS: &str = include_str!("bridge.nft");
const INET_CHAINS: &str = include_str!("inet.nft");
const ARP_CHAINS: &str = include_str!("arp.nft");
/// Where the drill pins the interface by which Squid leaves.
const EXIT_INTERFACE: &str = "#exit-interface";
/// Where the user of the gates goes.
const GATES: &str = "#gates";

/// Where a frame goes that dies and is reported: the chain `denied_flow` says `as:flow`.
const DENIED: &str = "goto denied_";
/// So many frames of one container are reported, and in a burst so many more. Beyond it they are counted only: what
/// everybody sends at a time then fits into the buffer from which the reports are read, so that no container can make
/// the kernel lose another's.
const REPORTED: &str = "rate 100/second burst 256 packets";

/// The table that carries the desired state's flows between these ports, and nothing else.
#[must_use]
pub fn ruleset(desired: &Desired, ports: &[ContainerPort]) -> Ruleset {
    let sets = Sets::new(desired, ports);
    let mut script = String::new();
    for family in super::FAMILIES {
        script.push_str(&absent(family));
    }

    let mut bridge = Table::new("bridge", &sets);
    bridge.set("ports", "ifname", &sets.ports);
    bridge.intervals("subnets", &sets.subnets);
    bridge.set("pins", "ifname . ether_addr . ipv4_addr", &sets.pins);
    bridge.set("macs", "ether_addr", &sets.macs);
    bridge.set("neighbours", "ipv4_addr . ipv4_addr", &sets.neighbours);
    bridge.set("hears", "ifname . ipv4_addr . ipv4_addr", &sets.hears);
    let quadruple = "ipv4_addr . ether_addr . ipv4_addr . inet_service";
    bridge.set("tcp_flows", quadruple, &sets.tcp_flows);
    bridge.set("tcp_answers", quadruple, &sets.tcp_answers);
    bridge.set("udp_flows", quadruple, &sets.udp_flows);
    bridge.set("udp_answers", quadruple, &sets.udp_answers);
    bridge.set("udp_refusals", "ipv4_addr . ether_addr . ipv4_addr", &sets.udp_refusals);
    bridge.set("vm_tcp_answers", "ipv4_addr . ipv4_addr . inet_service", &sets.vm_tcp_answers);
    bridge.set("vm_udp_answers", "ipv4_addr . ipv4_addr . inet_service", &sets.vm_udp_answers);
    bridge.set("exits", "ipv4_addr", &sets.exits);
    bridge.set("exit_ports", "inet_service", &sets.exit_ports);
    bridge.set("endpoints", "ipv4_addr . inet_service", &sets.endpoints);
    bridge.set("dns", "ipv4_addr", &sets.dns);
    bridge.intervals("private", &sets.private);
    script.push_str(&bridge.with_chains(BRIDGE_CHAINS));

    let mut inet = Table::new("inet", &sets);
    inet.set("bridges", "ifname", &sets.bridges);
    inet.set("ports", "ifname", &sets.ports);
    inet.intervals("subnets", &sets.subnets);
    inet.set("same", "ifname . ifname", &sets.same);
    inet.set("vm_tcp", "ifname . ipv4_addr . inet_service", &sets.vm_tcp);
    inet.set("vm_udp", "ifname . ipv4_addr . inet_service", &sets.vm_udp);
    inet.set("exits", "ifname . ipv4_addr", &sets.exits_by_bridge);
    inet.set("exit_ports", "inet_service", &sets.exit_ports);
    inet.set("endpoints", "ipv4_addr . inet_service", &sets.endpoints);
    inet.set("dns", "ipv4_addr", &sets.dns);
    inet.intervals("private", &sets.private);
    // If the drill's veth goes, its routes go with it; without this rule a drill would then speak to the real internet.
    let pinned = match desired.drill_table {
        Some(_) => format!("oifname != \"{DRILL_INTERFACE}\" {DENIED}forward"),
        None => String::new(),
    };
    let chains = INET_CHAINS.replace(EXIT_INTERFACE, &pinned).replace(GATES, &GATES_UID.to_string());
    script.push_str(&inet.with_chains(&chains));

    let mut arp = Table::new("arp", &sets);
    arp.set("bridges", "ifname", &sets.bridges);
    arp.set("ports", "ifname", &sets.ports);
    arp.intervals("subnets", &sets.subnets);
    script.push_str(&arp.with_chains(ARP_CHAINS));
    Ruleset { script, interfaces: sets.interfaces }
}

/// Statements after which the table is not there, whether or not it was.
pub(super) fn absent(family: &str) -> String {
    format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n")
}

struct Table {
    text: String,
}

impl Table {
    /// With what each container is granted of reports, and a counter of what it was not granted.
    fn new(family: &str, sets: &Sets) -> Self {
        let mut table = Self { text: format!("table {family} {TABLE} {{\n\tcounter {NOBODYS} {{ }}\n") };
        for container in &sets.containers {
            table.text.push_str(&format!("\tlimit {container} {{ {REPORTED} }}\n\tcounter {container} {{ }}\n"));
        }
        table.collection("map", "granted", "ifname : limit", "", &sets.owners);
        table.collection("map", "unreported", "ifname : counter", "", &sets.owners);
        table
    }

    fn set(&mut self, name: &str, kind: &str, elements: &BTreeSet<String>) {
        self.collection("set", name, kind, "", elements);
    }

    fn intervals(&mut self, name: &str, elements: &BTreeSet<String>) {
        self.collection("set", name, "ipv4_addr", "\t\tflags interval\n", elements);
    }

    fn collection(&mut self, what: &str, name: &str, kind: &str, flags: &str, elements: &BTreeSet<String>) {
        let mut text = format!("\t{what} {name} {{\n\t\ttype {kind}\n{flags}");
        if !elements.is_empty() {
            text.push_str("\t\telements = {\n");
            for element in elements {
                text.push_str(&format!("\t\t\t{element},\n"));
            }
            text.push_str("\t\t}\n");
        }
        text.push_str("\t}\n");
        self.text.push_str(&text);
    }

    /// With these chains, and those to which they send what dies.
    fn with_chains(mut self, chains: &str) -> String {
        self.text.push_str(chains);
        let causes: BTreeSet<&str> =
            chains.split(DENIED).skip(1).filter_map(|after| after.split_ascii_whitespace().next()).collect();
        for cause in causes {
            let report = format!("counter log prefix \"as:{cause}\" group {NFLOG_GROUP} snaplen 256 drop");
            // A port that has no owner, or a bridge, breaks off the rules with a map: what is left is shared by all such.
            self.text.push_str(&format!(
                "\tchain denied_{cause} {{\n\t\tlimit name iifname map @granted {report}\n\t\tcounter name iifname map \
                 @unreported drop\n\t\tlimit {REPORTED} {report}\n\t\tcounter name \"{NOBODYS}\" drop\n\t}}\n"
            ));
        }
        self.text.push_str("}\n");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples;

    #[test]
    fn numbers_that_others_use_too_are_theirs() {
        let text = ruleset(&samples::desired(), &[]).script().to_owned();
        let dials: Vec<&str> = text.lines().filter(|line| line.contains("meta skuid {")).collect();
        assert_eq!(dials.len(), 2);
        assert!(
            dials.iter().all(|line| line.contains(&format!("meta skuid {{ 0, {GATES_UID} }} accept"))),
            "{dials:?}"
        );
        assert!(!INET_CHAINS.contains(&GATES_UID.to_string()), "it is written twice");
        assert!(!text.contains(GATES) && !text.contains(EXIT_INTERFACE));
        let logs = text.lines().filter(|line| line.contains(" log prefix "));
        assert!(logs.clone().count() > 10);
        for line in logs {
            assert!(line.contains(&format!(" group {NFLOG_GROUP} ")), "{line}");
            assert!(
                line.trim().starts_with("limit ") || line.contains("\"as:mark\""),
                "reported without a limit: {line}"
            );
        }
    }
}
