//! A VM, its containers and a world outside, all network namespaces of this test's own. Nothing of the real VM is touched.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tier_supervisor::desired::{
    Attachment, Confinement, ContainerSpec, Desired, Flow, Limits, LogCap, NetworkKind, NetworkSpec, Peer, Protocol,
    Ready, Role,
};
use tier_supervisor::kernel::{self, ContainerPort, Ruleset};
use tier_supervisor::netns::{self, within};

use crate::frames::Mac;

pub(crate) const TIER: &str = "assistant-tier-tasks";
pub(crate) const BUS: &str = "assistant-bus";
pub(crate) const EGRESS: &str = "assistant-egress";
pub(crate) const DRILL_TABLE: u32 = 8787;
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const AGENT: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 20);
pub(crate) const BROKER: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 2);
pub(crate) const AUDITOR: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 3);
pub(crate) const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 4);
/// Started a moment ago: on the bridge, not in the table.
pub(crate) const NEW: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 30);
pub(crate) const TIER_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 1);
pub(crate) const NATS: Ipv4Addr = Ipv4Addr::new(10, 87, 1, 5);
pub(crate) const BUS_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 87, 1, 1);
pub(crate) const SQUID: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 8);
/// Somewhere on the internet.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);

/// Name, network, bridge, address, prefix's gateway.
const MEMBERS: [(&str, &str, &str, Ipv4Addr); 7] = [
    ("zeroclaw-tasks", TIER, "ast00000000", AGENT),
    ("assistant-secret-broker", TIER, "ast00000000", BROKER),
    ("assistant-egress-auditor", TIER, "ast00000000", AUDITOR),
    ("assistant-channel-bridge", TIER, "ast00000000", BRIDGE),
    ("mcp-tasks-new", TIER, "ast00000000", NEW),
    ("assistant-nats", BUS, "as-bus", NATS),
    ("assistant-squid", EGRESS, "as-egress", SQUID),
];

pub(crate) struct World {
    prefix: String,
    members: Vec<Member>,
    state: tempfile::TempDir,
}

pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) pid: u32,
    process: Child,
}

/// Root may make namespaces. Others are told that nothing was tested.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Past the capture of a test's output: nobody looks into a test that passed.
        std::io::stderr().write_all(b"SKIPPED: needs root, to make network namespaces\n").unwrap();
    }
    root
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl World {
    /// Where a reader of drops keeps what was counted.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.state.path().join("reported-drops")
    }

    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut world = Self {
            prefix: format!("zz5-{}-{number}", std::process::id()),
            members: Vec::new(),
            state: tempfile::tempdir().unwrap(),
        };
        for namespace in ["vm", "world"] {
            run("ip", &format!("netns add {}", world.name(namespace)));
        }
        let (vm, outside) = (world.name("vm"), world.name("world"));
        run("ip", &format!("-n {vm} link set lo up"));
        world.in_vm(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            no_ipv6();
        });
        for (bridge, address) in
            [("ast00000000", None), ("as-bus", Some(BUS_GATEWAY)), ("as-egress", Some(Ipv4Addr::new(10, 87, 0, 1)))]
        {
            run("ip", &format!("-n {vm} link add {bridge} type bridge forward_delay 0"));
            run("ip", &format!("-n {vm} link set {bridge} up"));
            if let Some(address) = address {
                run("ip", &format!("-n {vm} address add {address}/24 dev {bridge}"));
            }
        }
        // The world outside: one host that is every address there is.
        run("ip", &format!("-n {vm} link add as-drill0 type veth peer name as-drill1 netns {outside}"));
        run("ip", &format!("-n {vm} address add 198.51.100.2/30 dev as-drill0"));
        run("ip", &format!("-n {vm} link set as-drill0 up"));
        run("ip", &format!("-n {outside} address add 198.51.100.1/30 dev as-drill1"));
        for line in [
            "link set as-drill1 up",
            "link set lo up",
            "route add local 0.0.0.0/0 dev lo",
            "route add 10.87.0.0/16 via 198.51.100.2",
        ] {
            run("ip", &format!("-n {outside} {line}"));
        }
        for (index, (name, _, bridge, address)) in MEMBERS.into_iter().enumerate() {
            let namespace = world.name(&index.to_string());
            let [_, b, c, d] = address.octets();
            let mac = [0x02, 0x42, 0x0a, b, c, d];
            let spelled = mac.map(|byte| format!("{byte:02x}")).join(":");
            run("ip", &format!("netns add {namespace}"));
            run(
                "ip",
                &format!("-n {vm} link add vzz{index} type veth peer name eth5 netns {namespace} address {spelled}"),
            );
            world.in_namespace(&index.to_string(), no_ipv6);
            run("ip", &format!("-n {vm} link set vzz{index} master {bridge}"));
            run("ip", &format!("-n {vm} link set vzz{index} up"));
            run("ip", &format!("-n {namespace} address add {address}/24 dev eth5"));
            run("ip", &format!("-n {namespace} link set lo up"));
            run("ip", &format!("-n {namespace} link set eth5 up"));
            // Stands for the container's first process: what `netns` is given.
            let process =
                Command::new("ip").args(["netns", "exec", &namespace, "cat"]).stdin(Stdio::piped()).spawn().unwrap();
            let pid = process.id();
            let own = std::fs::read_link("/proc/self/ns/net").unwrap();
            wait_for("a process in the namespace", || {
                std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|namespace| namespace != own)
            });
            world.members.push(Member { name, address, mac, pid, process });
        }
        world
    }

    pub(crate) fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    fn path(&self, namespace: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(namespace))
    }

    fn in_namespace<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> T {
        within(&self.path(namespace), work).unwrap()
    }

    pub(crate) fn in_vm<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.in_namespace("vm", work)
    }

    pub(crate) fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.in_namespace("world", work)
    }

    pub(crate) fn inside<T: Send>(&self, address: Ipv4Addr, work: impl FnOnce() -> T + Send) -> T {
        let index = self.members.iter().position(|member| member.address == address).unwrap();
        self.in_namespace(&index.to_string(), work)
    }

    pub(crate) fn member(&self, address: Ipv4Addr) -> &Member {
        self.members.iter().find(|member| member.address == address).unwrap()
    }

    pub(crate) fn mac(&self, address: Ipv4Addr) -> Mac {
        self.member(address).mac
    }

    /// A raw socket on a member's interface.
    pub(crate) fn tap(&self, address: Ipv4Addr) -> Tap {
        self.inside(address, || Tap::on("eth5"))
    }

    /// The ports, found as the supervisor finds them, without the one that has just been started.
    pub(crate) fn ports(&self) -> Vec<ContainerPort> {
        let mut ports = Vec::new();
        for (member, (_, network, bridge, _)) in self.members.iter().zip(MEMBERS) {
            let found = self.in_vm(|| netns::ports(member.pid)).unwrap();
            assert_eq!(found.len(), 1, "{}: {found:?}", member.name);
            let port = &found[0];
            assert_eq!((port.address, port.mac, port.bridge.as_deref()), (member.address, member.mac, Some(bridge)));
            if member.address != NEW {
                ports.push(ContainerPort {
                    container: member.name.to_owned(),
                    network: network.to_owned(),
                    address: port.address,
                    mac: port.mac,
                    ifname: port.host_ifname.clone(),
                });
            }
        }
        ports
    }

    pub(crate) fn load(&self) -> Ruleset {
        let ruleset = kernel::ruleset(&desired(), &self.ports());
        self.in_vm(|| kernel::load(&ruleset)).unwrap();
        ruleset
    }
}

/// As Docker leaves interfaces that have no IPv6 address: otherwise the kernel itself announces things at any time.
fn no_ipv6() {
    for scope in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for member in &mut self.members {
            drop(member.process.kill());
            drop(member.process.wait());
        }
        let mut names = vec![self.name("vm"), self.name("world")];
        names.extend((0..MEMBERS.len()).map(|index| self.name(&index.to_string())));
        for name in names {
            drop(Command::new("ip").args(["netns", "delete", &name]).output());
        }
    }
}

/// Polls, because what is waited for has no event; ends as soon as it holds.
#[allow(clippy::disallowed_methods, reason = "this is the waiting for a condition, with a deadline")]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come about within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) struct Tap {
    socket: OwnedFd,
}

impl Tap {
    fn on(interface: &str) -> Self {
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
        let address = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|found| found.interface_name == interface)
            .find_map(|found| found.address?.as_link_addr().copied())
            .unwrap();
        bind(socket.as_raw_fd(), &address).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(10)).unwrap();
        Self { socket }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).unwrap(), frame.len());
    }

    /// The first frame that is one of those.
    pub(crate) fn until_any(&self, is_it: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        loop {
            let mut buffer = [0; 2048];
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("the awaited frame");
            if is_it(&buffer[..length]) {
                return buffer[..length].to_vec();
            }
        }
    }

    /// Frames up to and without this one, which must come.
    pub(crate) fn until(&self, marker: &[u8]) -> Vec<Vec<u8>> {
        let mut before = Vec::new();
        loop {
            let mut buffer = [0; 2048];
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .unwrap_or_else(|error| panic!("the awaited frame did not come: {error}; before it: {before:02x?}"));
            let frame = buffer[..length].to_vec();
            if frame == marker {
                return before;
            }
            before.push(frame);
        }
    }
}

/// One tier, its doors, NATS and Squid, in a drill.
pub(crate) fn desired() -> Desired {
    let network = |name: &str, bridge: &str, subnet: &str, kind, tier: Option<&str>| NetworkSpec {
        name: name.to_owned(),
        bridge: bridge.to_owned(),
        subnet: subnet.parse().unwrap(),
        gateway: format!("{}.1", subnet.rsplit_once('.').unwrap().0).parse().unwrap(),
        kind,
        tier: tier.map(|tier| tier.parse().unwrap()),
    };
    let flow = |from: Option<&str>, to: &str, network: &str, protocol, port| Flow {
        from: from.map_or(Peer::Vm, |name| Peer::Container(name.to_owned())),
        to: Peer::Container(to.to_owned()),
        network: network.to_owned(),
        protocol,
        port,
    };
    let (agent, broker, auditor) = ("zeroclaw-tasks", "assistant-secret-broker", "assistant-egress-auditor");
    Desired {
        mode: assistant_proto::config::Mode::Drill,
        networks: vec![
            network(TIER, "ast00000000", "10.87.16.0/24", NetworkKind::Isolated, Some("tasks")),
            network(BUS, "as-bus", "10.87.1.0/24", NetworkKind::Internal, None),
            network(EGRESS, "as-egress", "10.87.0.0/24", NetworkKind::Egress, None),
        ],
        volumes: Vec::new(),
        containers: MEMBERS.into_iter().map(|(name, network, _, address)| container(name, network, address)).collect(),
        flows: vec![
            flow(Some(agent), broker, TIER, Protocol::Tcp, 10255),
            flow(Some(agent), auditor, TIER, Protocol::Udp, 53),
            flow(Some(agent), auditor, TIER, Protocol::Tcp, 53),
            flow(Some("assistant-channel-bridge"), agent, TIER, Protocol::Tcp, 42617),
            flow(None, "assistant-nats", BUS, Protocol::Tcp, 4222),
        ],
        gates: Vec::new(),
        tiers: Vec::new(),
        tiers_file: "tiers.yaml".to_owned(),
        remarks: Vec::new(),
        dns_servers: vec![RESOLVER],
        exits: Default::default(),
        drill_table: Some(DRILL_TABLE),
    }
}

fn container(name: &str, network: &str, address: Ipv4Addr) -> ContainerSpec {
    let of_tier = name == "zeroclaw-tasks" || name == "mcp-tasks-new";
    ContainerSpec {
        name: name.to_owned(),
        role: if of_tier { Role::Agent } else { Role::Nats },
        tier: of_tier.then(|| "tasks".parse().unwrap()),
        image: String::new(),
        entrypoint: None,
        command: Vec::new(),
        uid: 0,
        gid: 0,
        env: Vec::new(),
        mounts: Vec::new(),
        tmpfs: Vec::new(),
        networks: vec![Attachment { network: network.to_owned(), address }],
        dns: None,
        sysctls: Vec::new(),
        cap_add: Vec::new(),
        confinement: Confinement::Standard,
        limits: Limits { memory_bytes: 0, pids: 0, nano_cpus: 0 },
        log: LogCap { max_size_bytes: 0, max_files: 0 },
        ready: Ready::Running,
        files: Vec::new(),
        working_dir: None,
        inert_default_route: of_tier,
        control: None,
        pages: None,
    }
}
