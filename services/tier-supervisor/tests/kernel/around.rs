//! Ways round the bridge: frames that it hands to the VM as if they had come by an interface of the VM, IPv6 on its ports,
//! and a table that something else takes away.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use service_kit::bus::Bus;
use tier_supervisor::kernel::{self, Mended, Standing};
use tokio_util::sync::CancellationToken;

use crate::frames::{Mac, SYN, TCP, UDP, arp, ethernet, ipv4, ipv6_udp, tcp, udp};
use crate::reader::Reader;
use crate::world::{
    AGENT, BRIDGE, BUS_GATEWAY, NATS, NEW, OUTSIDE, PATIENCE, TIER_GATEWAY, Tap, World, desired, is_root, run, wait_for,
};

/// VM's end of the veth of NATS.
const NATS_PORT: &str = "vzz5";
const NATS_PORT_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5);
const LISTENING: u16 = 9999;
/// Of 01:80:c2:00:00:00 to :0f: what a bridge without STP forwards like any group, what it hands up by one way or another,
/// and :0e, which has a way of its own.
const FORWARDED: u8 = 0x00;
const HANDED_UP: [u8; 4] = [0x02, 0x03, 0x0e, 0x0f];

fn reserved(last: u8) -> Mac {
    [0x01, 0x80, 0xc2, 0, 0, last]
}

fn ipv6(world: &World, interface: &str, disabled: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    world.in_vm(|| std::fs::write(path, disabled)).unwrap();
}

/// A port that speaks IPv6 though it should not, and programs of the VM that listen.
struct Vm {
    four: UdpSocket,
    six: UdpSocket,
}

impl Vm {
    fn that_listens(world: &World) -> Self {
        ipv6(world, NATS_PORT, "0");
        run("ip", &format!("-n {} address add {NATS_PORT_IPV6}/64 dev {NATS_PORT} nodad", world.name("vm")));
        let bind = |address: &'static str| world.in_vm(|| UdpSocket::bind((address, LISTENING)).unwrap());
        // In this order: the second one takes both kinds otherwise.
        let (four, six) = (bind("0.0.0.0"), bind("fe80::5%vzz5"));
        for socket in [&four, &six] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { four, six }
    }

    fn next(socket: &UdpSocket) -> Vec<u8> {
        let mut bytes = [0; 64];
        let (length, _) = socket.recv_from(&mut bytes).unwrap();
        bytes[..length].to_vec()
    }
}

struct Sender<'a> {
    world: &'a World,
    tap: Tap,
    from: Ipv4Addr,
}

impl<'a> Sender<'a> {
    fn new(world: &'a World, from: Ipv4Addr) -> Self {
        Self { world, tap: world.tap(from), from }
    }

    fn frame(&self, to: Mac, ethertype: u16, payload: &[u8]) {
        self.tap.send(&ethernet(to, self.world.mac(self.from), ethertype, payload));
    }

    fn datagram(&self, last: u8, source: Ipv4Addr, payload: &[u8]) {
        let packet = ipv4(source, BUS_GATEWAY, UDP, 0, &udp(40000, LISTENING, payload));
        self.frame(reserved(last), 0x0800, &packet);
    }

    fn datagram6(&self, last: u8, payload: &[u8]) {
        let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
        self.frame(reserved(last), 0x86dd, &ipv6_udp(source, NATS_PORT_IPV6, 40000, LISTENING, payload));
    }

    fn question(&self, last: u8, source: Ipv4Addr) {
        let mac = self.world.mac(self.from);
        self.frame(reserved(last), 0x0806, &arp(1, (mac, source), BUS_GATEWAY));
    }

    fn answer(&self) -> Vec<u8> {
        self.tap.until_any(|frame| frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 2]))
    }
}

#[test]
fn what_a_bridge_does_not_bridge_dies() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let vm = Vm::that_listens(&world);
    let mut reader = Reader::start(&world);
    let nats = Sender::new(&world, NATS);
    let mut all_die = |what: &str, groups: &[u8]| {
        for &last in groups {
            nats.datagram(last, NATS, b"leak");
            let what = format!("{what}, :{last:02x}");
            let event = reader.expect(&what, "to-vm", "udp", BUS_GATEWAY, Some(LISTENING));
            assert_eq!(event["principal"], "assistant-nats", "{event}");
            nats.datagram6(last, b"leak");
            let event = reader.next();
            let found = (&event["reason"], &event["host"], &event["port"], &event["count"], &event["principal"]);
            let host = NATS_PORT_IPV6.to_string();
            let wanted = (&"ipv6".into(), &host.into(), &LISTENING.into(), &1.into(), &"assistant-nats".into());
            assert_eq!(found, wanted, "{what}: {event}");
        }
        for last in HANDED_UP {
            nats.question(last, NATS);
            reader.expect(&format!("{what}, ARP to :{last:02x}"), "to-vm", "arp", BUS_GATEWAY, None);
        }
    };
    let all = [[FORWARDED].as_slice(), &HANDED_UP].concat();
    all_die("the whole table", &all);
    // The VM's own families hold by themselves what gets that far.
    world.in_vm(|| run("nft", "delete table bridge assistant"));
    all_die("without family bridge", &HANDED_UP);
    reader.end();

    // Control: without the table every one of them arrives, and ARP is answered.
    world.in_vm(kernel::unload).unwrap();
    for last in all {
        let payload = [b'c', last];
        nats.datagram(last, NATS, &payload);
        assert_eq!(Vm::next(&vm.four), payload, ":{last:02x}");
    }
    for last in HANDED_UP {
        let payload = [b'c', last];
        nats.datagram6(last, &payload);
        assert_eq!(Vm::next(&vm.six), payload, "IPv6 in :{last:02x}");
        nats.question(last, NATS);
        nats.answer();
    }
}

#[test]
fn a_port_that_is_not_in_the_table_has_no_way_round() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let vm = Vm::that_listens(&world);
    // As its port was made; the table switches it off.
    ipv6(&world, "vzz4", "0");
    let mut reader = Reader::start(&world);
    let new = Sender::new(&world, NEW);
    for last in HANDED_UP {
        for source in [NEW, OUTSIDE] {
            let what = format!("{source} to :{last:02x}");
            new.datagram(last, source, b"leak");
            reader.expect(&what, "unknown-port", "udp", BUS_GATEWAY, Some(LISTENING));
            new.question(last, source);
            reader.expect(&what, "unknown-port", "arp", BUS_GATEWAY, None);
        }
        new.datagram6(last, b"leak");
        assert_eq!(reader.next()["reason"], "unknown-port");
    }
    new.datagram(FORWARDED, NEW, b"leak");
    reader.expect("its own address", "unknown-port", "udp", BUS_GATEWAY, Some(LISTENING));
    // Through the bridge, as somebody from the world whom the VM may be talking to.
    let bridge = world.in_vm(|| mac_of("ast00000000"));
    new.frame(bridge, 0x0800, &ipv4(OUTSIDE, BUS_GATEWAY, UDP, 0, &udp(40000, LISTENING, b"leak")));
    reader.expect("a foreign address", "unknown-port", "udp", BUS_GATEWAY, Some(LISTENING));
    new.frame(bridge, 0x0806, &arp(1, (world.mac(NEW), OUTSIDE), BUS_GATEWAY));
    reader.expect("a foreign address in ARP", "unknown-port", "arp", BUS_GATEWAY, None);
    reader.end();

    world.in_vm(kernel::unload).unwrap();
    let packet = ipv4(OUTSIDE, BUS_GATEWAY, UDP, 0, &udp(40000, LISTENING, b"control"));
    new.frame(bridge, 0x0800, &packet);
    assert_eq!(Vm::next(&vm.four), b"control");
    new.frame(bridge, 0x0806, &arp(1, (world.mac(NEW), OUTSIDE), BUS_GATEWAY));
    new.answer();
}

fn mac_of(interface: &str) -> Mac {
    let listing = run("ip", &format!("-j link show dev {interface}"));
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    let text = listing[0]["address"].as_str().unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn the_vm_says_nothing_to_a_port() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let socket = world.in_vm(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        setsockopt(&socket, sockopt::BindToDevice, &NATS_PORT.into()).unwrap();
        socket
    });
    let refused = socket.send_to(b"x", (NATS, 4222)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    world.in_vm(kernel::unload).unwrap();
    socket.send_to(b"x", (NATS, 4222)).unwrap();
}

#[test]
fn interfaces_of_the_table_speak_no_ipv6() {
    if !is_root() {
        return;
    }
    let world = World::new();
    ipv6(&world, "all", "0");
    let ruleset = kernel::ruleset(&desired(), &world.ports());
    let loud = || world.in_vm(|| kernel::speak_ipv6(&ruleset)).unwrap();
    assert_eq!(
        loud(),
        ["as-bus", "as-egress", "ast00000000", "vzz0", "vzz1", "vzz2", "vzz3", "vzz5", "vzz6"],
        "the control"
    );
    world.load();
    assert_eq!(loud(), [""; 0]);
    // Nothing else of the VM was changed.
    let others = world.in_vm(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/as-drill0/disable_ipv6")).unwrap();
    assert_eq!(others.trim(), "0");
}

#[test]
fn a_table_that_was_taken_away_is_put_back() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let standing = Arc::new(Standing::default());
    let mend = || world.in_vm(|| standing.mend()).unwrap();
    assert_eq!(mend(), Mended::Stood, "nothing is to stand yet");
    let ruleset = kernel::ruleset(&desired(), &world.ports());
    world.in_vm(|| standing.load(&ruleset)).unwrap();
    let stands = || world.in_vm(|| kernel::matches_loaded(&ruleset)).unwrap();
    assert_eq!((mend(), mend()), (Mended::Stood, Mended::Stood));
    for harm in [
        "flush ruleset",
        "delete table arp assistant",
        "flush chain bridge assistant enter",
        "delete element inet assistant ports { \"vzz5\" }",
    ] {
        world.in_vm(|| run("nft", harm));
        assert!(!stands());
        assert_eq!(mend(), Mended::Again, "{harm}");
        assert!(stands());
        assert_eq!(mend(), Mended::Stood);
    }
    // Another's table is another's affair.
    world.in_vm(|| run("nft", "add table ip zz5"));
    assert_eq!(mend(), Mended::Stood);
    ipv6(&world, "vzz0", "0");
    mend();
    assert!(world.in_vm(|| kernel::speak_ipv6(&ruleset)).unwrap().is_empty());

    // By itself, without anybody else.
    let (bus, stop) = (Bus::detached(), CancellationToken::new());
    let watching = kernel::watch(Arc::clone(&standing), bus.clone(), stop.clone());
    let thread = world.in_vm(move || {
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(watching)
        })
    });
    world.in_vm(|| run("nft", "flush ruleset"));
    wait_for("the table", stands);
    wait_for("its event", || !bus.emitted().is_empty());
    stop.cancel();
    thread.join().unwrap().unwrap();
    let events = bus.emitted();
    assert_eq!((events.len(), &events[0].1["check"]), (1, &"kernel-table".into()), "{events:?}");
    assert_eq!(events[0].0, "floor.breached.stack");
}

#[test]
fn what_tcp_does_not_repeat_is_counted_each_time() {
    const ATTEMPTS: u64 = 200;
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let mut reader = Reader::start(&world);
    let agent = Sender::new(&world, AGENT);
    let segment = tcp(40000, 22, SYN);
    let attempt = |payload: &[u8]| {
        let packet = ipv4(AGENT, BRIDGE, TCP, 0, &[segment.as_slice(), payload].concat());
        agent.frame(world.mac(BRIDGE), 0x0800, &packet);
    };
    // One number, 200 messages.
    for number in 0..ATTEMPTS {
        attempt(&number.to_be_bytes());
    }
    let mut count = |wanted: u64| {
        let mut counted = 0;
        while counted < wanted {
            let event = reader.next();
            assert_eq!((&event["host"], &event["port"]), (&BRIDGE.to_string().into(), &22.into()), "{event}");
            counted += event["count"].as_u64().unwrap();
        }
        assert_eq!(counted, wanted);
    };
    count(ATTEMPTS);
    // Without any, and faster than TCP.
    attempt(b"");
    attempt(b"");
    count(2);
    reader.end();
}

#[test]
fn the_end_of_a_burst_is_marked() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    // In front of the rule that reports.
    world.in_vm(|| run("nft", "insert rule inet assistant last ip daddr 127.0.87.87 udp dport 87 counter"));
    let marks = || {
        let listing = world.in_vm(|| run("nft", "-j list chain inet assistant last"));
        let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
        let rules = listing["nftables"].as_array().unwrap();
        let rule = rules.iter().find_map(|part| part.get("rule")).unwrap();
        let counter = rule["expr"].as_array().unwrap().iter().find_map(|part| part.get("counter")).unwrap();
        counter["packets"].as_u64().unwrap()
    };
    let mut reader = Reader::start(&world);
    let agent = Sender::new(&world, AGENT);
    let knock = || agent.frame(world.mac(BRIDGE), 0x0800, &ipv4(AGENT, TIER_GATEWAY, TCP, 0, &tcp(40000, 22, SYN)));
    for round in 1..=3 {
        knock();
        reader.expect("an attempt", "to-vm", "tcp", TIER_GATEWAY, Some(22));
        wait_for("a mark", || marks() >= round);
    }
    // Each came back, or it would have been asked for again and again; and none is an attempt.
    assert!(marks() <= 4, "{}", marks());
    reader.end();
}
