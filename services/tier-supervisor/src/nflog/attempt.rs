//! Who attempted what, and what to tell a person about it. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use assistant_proto::event::Scope;
use assistant_proto::name::PrincipalName;

use super::frame::{Packet, Transport};
use super::placing::Placing;
use crate::desired::{Desired, Ipv4Cidr, Peer};
use crate::kernel::{ContainerPort, NOBODYS};

/// The rule of the kernel table that dropped a frame: the log prefix that the chains give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Unknown,
    Vlan,
    Ipv6,
    Ethertype,
    Arp,
    Spoof,
    Fragment,
    Flow,
    ToVm,
    Forward,
}

impl Cause {
    pub(super) fn from_prefix(prefix: &str) -> Option<Self> {
        Some(match prefix {
            "as:unknown" => Self::Unknown,
            "as:vlan" => Self::Vlan,
            "as:ipv6" => Self::Ipv6,
            "as:ethertype" => Self::Ethertype,
            "as:arp" => Self::Arp,
            "as:spoof" => Self::Spoof,
            "as:fragment" => Self::Fragment,
            "as:flow" => Self::Flow,
            "as:vm" => Self::ToVm,
            "as:forward" => Self::Forward,
            _ => return None,
        })
    }
}

/// Why an attempt was refused, as events spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reason {
    ClosedPort,
    OtherContainer,
    ToVm,
    DirectAddress,
    Multicast,
    Ipv6,
    NotIp,
    Fragment,
    SpoofedSource,
    UnknownPort,
    NotPlacedYet,
    Flood,
    Lost,
    Unheard,
}

impl Reason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ClosedPort => "closed-port",
            Self::OtherContainer => "other-container",
            Self::ToVm => "to-vm",
            Self::DirectAddress => "direct-address",
            Self::Multicast => "multicast",
            Self::Ipv6 => "ipv6",
            Self::NotIp => "not-ip",
            Self::Fragment => "fragment",
            Self::SpoofedSource => "spoofed-source",
            Self::UnknownPort => "unknown-port",
            Self::NotPlacedYet => "not-placed-yet",
            Self::Flood => "flood",
            Self::Lost | Self::Unheard => "flood-lost",
        }
    }
}

/// Whose attempt it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) tier: Scope,
    /// Name of the container, where it is known.
    pub(super) container: Option<String>,
}

impl Origin {
    pub(super) fn nobody_known() -> Self {
        Self { tier: Scope::Stack, container: None }
    }

    pub(super) fn principal(&self) -> Option<PrincipalName> {
        self.container.as_deref()?.parse().ok()
    }
}

/// What is counted as one: equal values are the same attempt, made again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub(super) origin: Origin,
    /// Address, or empty.
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) protocol: String,
    pub(super) reason: Reason,
    /// Name of the container at that address, if it is one of ours.
    pub(super) target: Option<String>,
}

/// Who is where: what turns a frame into an attempt. A new one is made whenever the table is.
#[derive(Debug, Clone, Default)]
pub struct Principals {
    by_interface: HashMap<u32, String>,
    by_address: HashMap<Ipv4Addr, String>,
    tiers: HashMap<String, Scope>,
    gateways: BTreeSet<Ipv4Addr>,
    vm: BTreeSet<Ipv4Addr>,
    subnets: Vec<Ipv4Cidr>,
    /// Containers, and the addresses at which they may open a connection of some kind.
    flows: BTreeSet<(String, Ipv4Addr)>,
    placing: Placing,
    /// tiers.yaml, as people name it.
    tiers_file: String,
}

impl Principals {
    /// From the desired state, the ports in use, the VM's own addresses, and what tells the index of an interface.
    #[must_use]
    pub fn new(
        desired: &Desired,
        ports: &[ContainerPort],
        vm: impl IntoIterator<Item = Ipv4Addr>,
        index_of: impl Fn(&str) -> Option<u32>,
    ) -> Self {
        let containers = desired.containers.iter();
        let flows = desired.flows.iter().filter_map(|flow| match (&flow.from, &flow.to) {
            (Peer::Container(from), Peer::Container(to)) => {
                Some((from.clone(), desired.container(to)?.address_on(&flow.network)?))
            }
            _ => None,
        });
        Self {
            by_interface: ports
                .iter()
                .filter_map(|port| Some((index_of(&port.ifname)?, port.container.clone())))
                .collect(),
            by_address: containers
                .clone()
                .flat_map(|container| container.networks.iter().map(|at| (at.address, container.name.clone())))
                .collect(),
            tiers: containers
                .filter_map(|container| Some((container.name.clone(), Scope::Tier(container.tier.clone()?))))
                .collect(),
            gateways: desired.networks.iter().map(|network| network.gateway).collect(),
            vm: vm.into_iter().collect(),
            subnets: desired.networks.iter().map(|network| network.subnet).collect(),
            flows: flows.collect(),
            placing: Placing::new(desired, ports, &index_of),
            tiers_file: desired.tiers_file.clone(),
        }
    }

    /// What has got another port since the previous one got it now.
    #[must_use]
    pub fn after(mut self, previous: &Self, now: Instant) -> Self {
        self.placing = self.placing.after(&previous.placing, now);
        self
    }

    pub(super) fn tiers_file(&self) -> &str {
        &self.tiers_file
    }

    /// As [`Self::new`], asking the kernel for interfaces and addresses. For the VM's own network namespace.
    #[must_use]
    pub fn of_this_vm(desired: &Desired, ports: &[ContainerPort]) -> Self {
        let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let vm = addresses.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
        Self::new(desired, ports, vm, |name| nix::net::if_::if_nametoindex(name).ok())
    }

    /// Whose a container is, by its name; that of nobody's counter is not known.
    pub(super) fn origin(&self, container: &str) -> Origin {
        if container == NOBODYS {
            return Origin::nobody_known();
        }
        let tier = self.tiers.get(container).cloned().unwrap_or(Scope::Stack);
        Origin { tier, container: Some(container.to_owned()) }
    }

    /// What a dropped frame was an attempt at. None for what is no attempt: a container's announcement of its own address,
    /// and its question whether anybody else has it. With another's address, or on another way, these are attempts too.
    pub(super) fn attempt(
        &self,
        now: Instant,
        cause: Cause,
        interface: Option<u32>,
        packet: Packet,
    ) -> Option<Attempt> {
        if let Packet::Arp { sender, target } = packet
            && matches!(cause, Cause::Arp | Cause::Unknown)
            && (sender == target || sender.is_unspecified())
        {
            return None;
        }
        let plugged = interface.and_then(|index| self.by_interface.get(&index));
        // The port is the truth. Without it, the source address is at least what was claimed.
        let claimed = match packet {
            Packet::Arp { sender: source, .. } | Packet::Ipv4 { source, .. } => self.by_address.get(&source),
            _ => None,
        };
        let origin = plugged.or(claimed).map_or_else(Origin::nobody_known, |container| self.origin(container));
        let (destination, port, protocol) = destination(packet);
        let target = match destination {
            Some(IpAddr::V4(address)) => self.by_address.get(&address).cloned(),
            _ => None,
        };
        // A port that is another container's by now was no mistake of that one's start.
        let is_its_own = plugged.is_none_or(|plugged| Some(plugged) == claimed);
        let reason = match is_its_own && self.placing.is_underway(cause, packet, now) {
            true => Reason::NotPlacedYet,
            false => self.reason(cause, packet, origin.container.as_deref()),
        };
        Some(Attempt {
            origin,
            host: destination.map(|address| address.to_string()).unwrap_or_default(),
            port,
            protocol,
            reason,
            target,
        })
    }

    fn reason(&self, cause: Cause, packet: Packet, from: Option<&str>) -> Reason {
        match cause {
            Cause::Unknown => return Reason::UnknownPort,
            Cause::Spoof => return Reason::SpoofedSource,
            Cause::Ipv6 => return Reason::Ipv6,
            Cause::Vlan | Cause::Ethertype => return Reason::NotIp,
            Cause::Fragment => return Reason::Fragment,
            Cause::ToVm if matches!(packet, Packet::Ipv6 { .. }) => return Reason::Ipv6,
            Cause::ToVm => return Reason::ToVm,
            Cause::Arp | Cause::Flow | Cause::Forward => {}
        }
        let destination = match packet {
            Packet::Arp { target, .. } => target,
            Packet::Ipv4 { destination, .. } => destination,
            Packet::Ipv6 { .. } => return Reason::Ipv6,
            Packet::Other { .. } => return Reason::NotIp,
        };
        match (from, self.by_address.contains_key(&destination)) {
            (Some(from), true) if self.flows.contains(&(from.to_owned(), destination)) => Reason::ClosedPort,
            (_, true) => Reason::OtherContainer,
            _ if self.gateways.contains(&destination) || self.vm.contains(&destination) => Reason::ToVm,
            _ if destination.is_multicast() || destination.is_broadcast() => Reason::Multicast,
            _ if self.subnets.iter().any(|subnet| subnet.contains(destination)) => Reason::OtherContainer,
            _ => Reason::DirectAddress,
        }
    }
}

fn destination(packet: Packet) -> (Option<IpAddr>, Option<u16>, String) {
    let transport = |transport| match transport {
        Transport::Tcp { port, .. } => (Some(port), "tcp".to_owned()),
        Transport::Udp { port, .. } => (Some(port), "udp".to_owned()),
        Transport::Icmp => (None, "icmp".to_owned()),
        Transport::Other(6) => (None, "tcp".to_owned()),
        Transport::Other(17) => (None, "udp".to_owned()),
        Transport::Other(number) => (None, format!("ip-protocol-{number}")),
    };
    match packet {
        Packet::Arp { target, .. } => (Some(target.into()), None, "arp".to_owned()),
        Packet::Ipv4 { destination, transport: carried, .. } => {
            let (port, protocol) = transport(carried);
            (Some(destination.into()), port, protocol)
        }
        Packet::Ipv6 { destination, transport: carried } => {
            let (port, protocol) = transport(carried);
            (Some(destination.into()), port, protocol)
        }
        Packet::Other { ethertype } => (None, None, format!("ethertype-{ethertype:04x}")),
    }
}

impl Attempt {
    /// What of one origin there was no room to count apart.
    pub(super) fn flood(origin: Origin) -> Self {
        Self { reason: Reason::Flood, ..Self::nothing(origin) }
    }

    /// What the kernel dropped but could not report, because it came faster than it can be read.
    pub(super) fn lost() -> Self {
        Self { reason: Reason::Lost, ..Self::nothing(Origin::nobody_known()) }
    }

    /// What was dropped while nobody listened.
    pub(super) fn unheard() -> Self {
        Self { reason: Reason::Unheard, ..Self::nothing(Origin::nobody_known()) }
    }

    fn nothing(origin: Origin) -> Self {
        Self {
            origin,
            host: String::new(),
            port: None,
            protocol: "any".to_owned(),
            reason: Reason::Flood,
            target: None,
        }
    }

    /// One sentence for a person. Holds only names of ours, numbers and addresses.
    pub(super) fn detail(&self) -> String {
        let who = self.origin.container.as_deref().unwrap_or("An unknown container");
        let protocol = &self.protocol;
        let what = match self.port {
            Some(port) => format!("{protocol} {port}"),
            None => protocol.clone(),
        };
        let host = if self.host.is_empty() { "no address" } else { &self.host };
        let at = match &self.target {
            Some(target) => format!("{target} ({host})"),
            None => host.to_owned(),
        };
        match self.reason {
            Reason::ClosedPort => format!("{who} tried {what} at {at}, which serves it on its data ports only."),
            Reason::OtherContainer => format!("{who} tried {what} at {at}; a container reaches its own doors only."),
            Reason::ToVm => format!("{who} tried {what} at {at}, an address of the VM, which serves no container."),
            Reason::DirectAddress => {
                format!("{who} tried {what} at {at} directly; what leaves goes by host name through the proxy.")
            }
            Reason::Multicast => format!("{who} sent {what} to everyone at {at}."),
            Reason::Ipv6 => format!("{who} sent {what} over IPv6 to {at}; there is no IPv6 here."),
            Reason::NotIp => format!("{who} sent a frame that is not plain IPv4 ({what})."),
            Reason::Fragment => format!("{who} sent a fragment of {what} to {at}; fragments are not carried."),
            Reason::SpoofedSource => format!("{who} sent {what} to {at} from an address that is not its own."),
            Reason::UnknownPort => {
                format!("{who} sent {what} to {at} before the kernel table knew it, or it is not a container of ours.")
            }
            Reason::NotPlacedYet => format!(
                "{who} sent {what} to {at}, which it may, while one of the two was being started or replaced: until the \
                 kernel table knows both, nothing passes between them."
            ),
            Reason::Flood => format!("{who} made more attempts than are told one by one; this is how many more."),
            Reason::Lost => "Attempts came faster than the kernel could report them one by one.".to_owned(),
            Reason::Unheard => {
                "Attempts were dropped while tier-supervisor did not run; their number is all that is known.".to_owned()
            }
        }
    }

    /// The smallest change that would allow it, or why nothing will.
    pub(super) fn fix(&self, tiers_file: &str) -> String {
        let fix = match (&self.origin.tier, self.reason) {
            (_, Reason::NotPlacedYet) => {
                "Nothing to do: it is tried again by itself. If it goes on, see how the stack stands (tier-supervisor status); where nothing is being started, something else uses this address."
            }
            (_, Reason::UnknownPort) => {
                "Nothing to do if it was just started; a foreign container on a network of ours is taken off it."
            }
            (_, Reason::Lost) => {
                "Find the container with the high load (docker stats) and stop it; the attempts were dropped all the same."
            }
            (_, Reason::Unheard) => {
                "Nothing to do if the supervisor was stopped on purpose; otherwise its log says why it ended."
            }
            (Scope::Stack, _) => {
                "A service of the stack tried what it has no flow for. Unless you changed it, read its log, then replace it."
            }
            (_, Reason::DirectAddress | Reason::Ipv6) => {
                return format!(
                    "Use the host's name through the proxy (HTTPS_PROXY); if it is refused there, name the host under the tier's egress in {tiers_file}."
                );
            }
            (_, Reason::ClosedPort) => {
                "Use the proxy at http://proxy:10255, models at http://models:4000/v1 or tools at http://mcp:8811/mcp; no other port is ever open."
            }
            (_, Reason::Flood) => "Nothing will: see the single attempts beside it; stop the tier if it goes on.",
            (_, Reason::ToVm | Reason::OtherContainer | Reason::Multicast) => {
                "Nothing will: tiers are kept apart from each other and from the VM."
            }
            (_, Reason::NotIp | Reason::Fragment | Reason::SpoofedSource) => {
                "Nothing will: only whole IPv4 packets from a container's own address are carried."
            }
        };
        fix.to_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    const AGENT: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 20);
    const BROKER: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 2);
    /// The same door, on a network that the agent is not on.
    const BROKER_ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 87, 3, 2);
    const NATS: Ipv4Addr = Ipv4Addr::new(10, 87, 1, 5);

    fn principals() -> Principals {
        let name = |name: &str| name.to_owned();
        Principals {
            by_interface: HashMap::from([(7, name("zeroclaw-tasks")), (8, name("assistant-secret-broker"))]),
            by_address: HashMap::from([
                (AGENT, name("zeroclaw-tasks")),
                (BROKER, name("assistant-secret-broker")),
                (BROKER_ELSEWHERE, name("assistant-secret-broker")),
                (NATS, name("assistant-nats")),
            ]),
            tiers: HashMap::from([(name("zeroclaw-tasks"), Scope::Tier("tasks".parse().unwrap()))]),
            gateways: BTreeSet::from([Ipv4Addr::new(10, 87, 16, 1)]),
            vm: BTreeSet::from([Ipv4Addr::new(192, 168, 1, 9)]),
            subnets: vec!["10.87.16.0/24".parse().unwrap()],
            flows: BTreeSet::from([(name("zeroclaw-tasks"), BROKER)]),
            placing: Placing::default(),
            tiers_file: name("deploy/drill/tiers.yaml"),
        }
    }

    fn attempt(cause: Cause, interface: Option<u32>, packet: Packet) -> Option<Attempt> {
        principals().attempt(Instant::now(), cause, interface, packet)
    }

    fn to(destination: [u8; 4]) -> Packet {
        let transport = Transport::Tcp { source_port: 40000, port: 443, opening: Some(1) };
        Packet::Ipv4 { source: AGENT, destination: destination.into(), transport }
    }

    #[test]
    fn reasons_follow_from_who_and_where() {
        let table: [(Cause, Packet, Reason); 14] = [
            (Cause::Flow, to(BROKER.octets()), Reason::ClosedPort),
            (Cause::Flow, to(BROKER_ELSEWHERE.octets()), Reason::OtherContainer),
            (Cause::Flow, to(NATS.octets()), Reason::OtherContainer),
            (Cause::Flow, to([10, 87, 16, 99]), Reason::OtherContainer),
            (Cause::Flow, to([10, 87, 16, 1]), Reason::ToVm),
            (Cause::Flow, to([192, 168, 1, 9]), Reason::ToVm),
            (Cause::Flow, to([192, 168, 1, 10]), Reason::DirectAddress),
            (Cause::Flow, to([224, 0, 0, 251]), Reason::Multicast),
            (Cause::Forward, to([203, 0, 113, 9]), Reason::DirectAddress),
            (Cause::Spoof, to([203, 0, 113, 9]), Reason::SpoofedSource),
            (Cause::Unknown, to([203, 0, 113, 9]), Reason::UnknownPort),
            (Cause::Fragment, to([203, 0, 113, 9]), Reason::Fragment),
            (Cause::Vlan, Packet::Other { ethertype: 0x8100 }, Reason::NotIp),
            (Cause::Arp, Packet::Arp { sender: AGENT, target: NATS }, Reason::OtherContainer),
        ];
        for (cause, packet, reason) in table {
            let attempt = attempt(cause, Some(7), packet).unwrap();
            assert_eq!(attempt.reason, reason, "{cause:?} {packet:?}");
            assert_eq!(attempt.origin.container.as_deref(), Some("zeroclaw-tasks"));
            assert_eq!(attempt.origin.tier.as_str(), "tasks");
            assert!(attempt.detail().starts_with("zeroclaw-tasks "), "{}", attempt.detail());
            let fix = attempt.fix(principals().tiers_file());
            assert_eq!(fix.contains("in deploy/drill/tiers.yaml."), reason == Reason::DirectAddress, "{fix}");
        }
    }

    #[test]
    fn the_port_says_whose_it_was_and_not_the_address() {
        let spoofed = attempt(Cause::Spoof, Some(8), to([203, 0, 113, 9])).unwrap();
        assert_eq!(spoofed.origin.container.as_deref(), Some("assistant-secret-broker"));
        assert_eq!(spoofed.origin.tier, Scope::Stack);
        let unknown = attempt(Cause::Unknown, Some(99), to([203, 0, 113, 9])).unwrap();
        assert_eq!(unknown.origin.principal().unwrap().as_str(), "zeroclaw-tasks");
        let nobody = attempt(Cause::Unknown, None, Packet::Other { ethertype: 1 }).unwrap();
        assert_eq!(nobody.origin, Origin::nobody_known());
    }

    #[test]
    fn who_is_only_being_started_tried_nothing_forbidden() {
        let mut desired = crate::plan::samples::desired();
        desired.flows = vec![crate::desired::Flow {
            from: Peer::Container("zeroclaw-tasks".to_owned()),
            to: Peer::Container("assistant-secret-broker".to_owned()),
            network: "assistant-tier-tasks".to_owned(),
            protocol: crate::desired::Protocol::Tcp,
            port: 443,
        }];
        let starting = Principals::new(&desired, &[], [], |_| None);
        let sent = |packet| starting.attempt(Instant::now(), Cause::Unknown, Some(7), packet).unwrap();
        let (asks, other) = (sent(to(BROKER.octets())), sent(to([203, 0, 113, 9])));
        assert_eq!((asks.reason, other.reason), (Reason::NotPlacedYet, Reason::UnknownPort));
        assert_eq!(asks.origin, other.origin, "whose it was is known as well");
        assert!(asks.detail().contains("which it may"), "{}", asks.detail());
        // From the port of another: a lie.
        let lying = Principals { by_interface: HashMap::from([(7, "assistant-squid".to_owned())]), ..starting.clone() };
        let lie = lying.attempt(Instant::now(), Cause::Unknown, Some(7), to(BROKER.octets())).unwrap();
        assert_eq!(lie.reason, Reason::UnknownPort);
    }

    #[test]
    fn an_announcement_is_no_attempt() {
        let announcement = Packet::Arp { sender: AGENT, target: AGENT };
        let probe = Packet::Arp { sender: Ipv4Addr::UNSPECIFIED, target: AGENT };
        for packet in [announcement, probe] {
            for cause in [Cause::Unknown, Cause::Arp] {
                assert_eq!(attempt(cause, Some(99), packet), None);
            }
            // From a port that is known, and not with its own address: poison.
            let spoofed = attempt(Cause::Spoof, Some(8), packet).unwrap();
            assert_eq!((spoofed.reason, spoofed.protocol.as_str()), (Reason::SpoofedSource, "arp"));
            assert_eq!(spoofed.origin.container.as_deref(), Some("assistant-secret-broker"));
        }
    }

    #[test]
    fn every_prefix_of_the_chains_is_known_and_goes_to_our_group() {
        let mut prefixes = 0;
        let table = crate::kernel::ruleset(&crate::plan::samples::desired(), &[]);
        for line in table.script().lines().filter(|line| line.contains(" log ")) {
            let prefix = line.split('"').find(|part| part.starts_with("as:")).unwrap();
            if prefix == super::super::mark::PREFIX {
                continue;
            }
            assert!(Cause::from_prefix(prefix).is_some(), "{line}");
            assert!(line.contains(&format!("group {} ", crate::kernel::NFLOG_GROUP)), "{line}");
            assert!(line.trim().ends_with("drop"), "{line}");
            prefixes += 1;
        }
        assert!(prefixes > 10);
        assert_eq!(Cause::from_prefix("other"), None);
    }
}
