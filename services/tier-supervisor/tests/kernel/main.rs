//! The kernel table against real frames: network namespaces stand for the VM, its containers and the world outside.
//!
//! Needs root. What is expected to die must be reported by the kernel (so it did get there), must not arrive (a frame that
//! may pass is sent after it), and does arrive once the table is gone (so it was the table).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may panic, and says when it is skipped"
)]

mod around;
mod denied;
mod frames;
mod reader;
mod squid;
mod world;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use denied::denied;
use frames::{ACK, BROADCAST, ICMP, SYN, TCP, UDP, arp, ethernet, ipv4, ipv6_ping, tcp, udp, unreachable};
use reader::Reader;
use tier_supervisor::{kernel, netns};
use world::{
    AGENT, AUDITOR, BRIDGE, BROKER, BUS_GATEWAY, NATS, NEW, OUTSIDE, PATIENCE, TIER_GATEWAY, World, desired, is_root,
    run, wait_for,
};

#[test]
fn only_named_flows_pass() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let mut reader = Reader::start(&world);
    let mac = |address| world.mac(address);
    let (agent, broker, auditor, bridge) = (world.tap(AGENT), world.tap(BROKER), world.tap(AUDITOR), world.tap(BRIDGE));
    let packet = |from: Ipv4Addr, to: Ipv4Addr, protocol, payload: &[u8]| {
        ethernet(mac(to), mac(from), 0x0800, &ipv4(from, to, protocol, 0, payload))
    };

    // What is named passes, answers included.
    let passes = [
        (&agent, &broker, packet(AGENT, BROKER, TCP, &tcp(40000, 10255, SYN))),
        (&broker, &agent, packet(BROKER, AGENT, TCP, &tcp(10255, 40000, SYN | ACK))),
        (&agent, &auditor, packet(AGENT, AUDITOR, UDP, &udp(40000, 53, b"question"))),
        (&auditor, &agent, packet(AUDITOR, AGENT, UDP, &udp(53, 40000, b"answer"))),
        (&agent, &auditor, packet(AGENT, AUDITOR, ICMP, &unreachable())),
        (&bridge, &agent, packet(BRIDGE, AGENT, TCP, &tcp(40000, 42617, SYN))),
        (&agent, &bridge, packet(AGENT, BRIDGE, TCP, &tcp(42617, 40000, ACK))),
    ];
    for (from, to, frame) in &passes {
        from.send(frame);
        to.until(frame);
    }

    // An ARP question reaches the one who is asked, and nobody else.
    let question = ethernet(BROADCAST, mac(AGENT), 0x0806, &arp(1, (mac(AGENT), AGENT), BROKER));
    agent.send(&question);
    broker.until(&question);
    let marker = packet(AGENT, BRIDGE, TCP, &tcp(42617, 40001, ACK));
    agent.send(&marker);
    let overheard = bridge.until(&marker);
    assert!(!overheard.contains(&question), "a neighbour heard the question");

    // The other direction of a flow is not named, nor is an answer that opens a connection.
    broker.send(&packet(BROKER, AGENT, TCP, &tcp(10255, 40000, SYN)));
    let event = reader.expect("a door that dials", "other-container", "tcp", AGENT, Some(40000));
    assert_eq!((&event["tier"], &event["principal"]), (&"stack".into(), &"assistant-secret-broker".into()));

    let denied = denied(&world);
    for denied in &denied {
        agent.send(&denied.frame);
        let event = reader.expect(denied.what, denied.reason, denied.protocol, denied.host, denied.port);
        assert_eq!((&event["tier"], &event["principal"]), (&"tasks".into(), &"zeroclaw-tasks".into()), "{event}");
    }
    for (what, ethertype, payload, reason) in [
        ("IPv6", 0x86dd, ipv6_ping(), "ipv6"),
        (
            "a VLAN tag",
            0x8100,
            [vec![0, 5, 8, 0], ipv4(AGENT, BROKER, TCP, 0, &tcp(40000, 10255, SYN))].concat(),
            "not-ip",
        ),
        ("another protocol", 0x88cc, vec![2, 7, 4], "not-ip"),
    ] {
        agent.send(&ethernet(mac(BROKER), mac(AGENT), ethertype, &payload));
        let event = reader.next();
        assert_eq!((&event["reason"], &event["tier"]), (&reason.into(), &"tasks".into()), "{what}: {event}");
    }
    // The same segment again is the same attempt.
    agent.send(&denied[0].frame);
    // Nothing of it arrived.
    for (from, to, frame) in &passes {
        from.send(frame);
        let before = to.until(frame);
        let leaked = before.iter().find(|frame| denied.iter().any(|denied| denied.frame == **frame));
        assert!(leaked.is_none(), "{leaked:02x?}");
    }
    reader.end();

    // Control: without the table they do arrive.
    world.in_vm(kernel::unload).unwrap();
    for denied in denied.iter().filter(|denied| denied.host == BROKER && denied.frame.starts_with(&mac(BROKER))) {
        agent.send(&denied.frame);
        broker.until(&denied.frame);
    }
}

#[test]
fn a_port_that_is_not_in_the_table_carries_nothing() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let mut reader = Reader::start(&world);
    let (new, agent, broker) = (world.tap(NEW), world.tap(AGENT), world.tap(BROKER));
    let mac = |address| world.mac(address);
    let from_new = |to: Ipv4Addr, source: Ipv4Addr, port| {
        ethernet(mac(to), mac(NEW), 0x0800, &ipv4(source, to, TCP, 0, &tcp(40000, port, SYN)))
    };
    let mut sent = vec![from_new(BROKER, NEW, 10255), from_new(AGENT, NEW, 42617), from_new(BROKER, AGENT, 10255)];
    for (frame, (to, port)) in sent.iter().zip([(BROKER, 10255), (AGENT, 42617), (BROKER, 10255)]) {
        new.send(frame);
        reader.expect("an unknown port", "unknown-port", "tcp", to, Some(port));
    }
    sent.push(ethernet(BROADCAST, mac(NEW), 0x0806, &arp(1, (mac(NEW), BROKER), AGENT)));
    new.send(&sent[3]);
    reader.expect("ARP from an unknown port", "unknown-port", "arp", AGENT, None);
    // Addresses that are not of the pool: it cannot be told whose port it is, but not to whom it speaks.
    sent.push(ethernet(mac(BROKER), mac(NEW), 0x0800, &ipv4(OUTSIDE, OUTSIDE, TCP, 0, &tcp(40000, 10255, SYN))));
    new.send(&sent[4]);
    reader.expect("foreign addresses from an unknown port", "unknown-port", "tcp", OUTSIDE, Some(10255));
    // Its announcement of itself is no attempt at anything.
    new.send(&ethernet(BROADCAST, mac(NEW), 0x0806, &arp(1, (mac(NEW), NEW), NEW)));

    let marker = ethernet(mac(BROKER), mac(AGENT), 0x0800, &ipv4(AGENT, BROKER, TCP, 0, &tcp(40000, 10255, SYN)));
    agent.send(&marker);
    assert!(!broker.until(&marker).iter().any(|frame| sent.contains(frame)));
    reader.end();
    // Nor does anything go to it.
    let back = ethernet(mac(NEW), mac(AGENT), 0x0800, &ipv4(AGENT, NEW, TCP, 0, &tcp(40000, 80, SYN)));
    agent.send(&back);
    world.in_vm(kernel::unload).unwrap();
    let control = ethernet(mac(NEW), mac(AGENT), 0x0800, &ipv4(AGENT, NEW, TCP, 0, &tcp(40000, 80, SYN)));
    agent.send(&control);
    assert!(!new.until(&control).contains(&back));
}

/// Accepts one connection in a namespace and echoes four bytes.
pub(crate) fn serve(inside: impl FnOnce() -> TcpListener, work: impl FnOnce()) {
    let listener = inside();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        work();
    });
}

pub(crate) fn echo(to: Ipv4Addr, port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"echo")?;
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"echo");
    Ok(())
}

/// An attempt that is to die: it is not waited for.
pub(crate) fn knock(to: Ipv4Addr, port: u16) {
    let address = SocketAddr::from((to, port));
    assert!(TcpStream::connect_timeout(&address, Duration::from_millis(50)).is_err(), "{address} answers");
}

#[test]
fn attempts_of_an_ordinary_program_become_frames() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let desired = desired();
    let spec = desired.container("zeroclaw-tasks").unwrap();
    let pid = world.member(AGENT).pid;
    let is_prepared = || world.in_vm(|| netns::is_prepared(pid, spec, &desired)).unwrap();
    assert!(!is_prepared());
    world.in_vm(|| netns::prepare(pid, spec, &desired)).unwrap();
    assert!(is_prepared());
    // Safe to repeat.
    world.in_vm(|| netns::prepare(pid, spec, &desired)).unwrap();
    assert!(is_prepared());

    // Control: the door works, by name of its address, through ARP and all.
    serve(
        || world.inside(BROKER, || TcpListener::bind((BROKER, 10255)).unwrap()),
        || {
            world.inside(AGENT, || echo(BROKER, 10255)).unwrap();
        },
    );
    assert!(!netns::tcp_open(world.member(BROKER).pid, 10255).unwrap());

    let mut reader = Reader::start(&world);
    // No capability is needed for any of these.
    let attempts: [(Ipv4Addr, u16, &str); 4] = [
        (OUTSIDE, 443, "direct-address"),
        // A neighbour that there is no flow with: a packet with a port, not an ARP question.
        (NEW, 80, "other-container"),
        (TIER_GATEWAY, 22, "to-vm"),
        (BROKER, 22, "closed-port"),
    ];
    for (to, port, reason) in attempts {
        world.inside(AGENT, || knock(to, port));
        let event = reader.expect("an ordinary connection", reason, "tcp", to, Some(port));
        assert_eq!(event["layer"], "packet");
        assert_eq!(event["trace_id"].as_str().unwrap().len(), 32);
        assert!(event["detail"].as_str().unwrap().starts_with("zeroclaw-tasks tried tcp"), "{event}");
    }
    // Three datagrams at once are one event that counts three.
    world.inside(AGENT, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..3 {
            socket.send_to(b"leak", (OUTSIDE, 53)).unwrap();
        }
    });
    let event = reader.next();
    assert_eq!(
        (&event["protocol"], &event["port"], &event["count"]),
        (&"udp".into(), &53.into(), &3.into()),
        "{event}"
    );
    reader.end();
}

#[test]
fn a_flood_is_counted_to_the_last_frame() {
    const FRAMES: u16 = 20_000;
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let desired = desired();
    let spec = desired.container("zeroclaw-tasks").unwrap();
    world.in_vm(|| netns::prepare(world.member(AGENT).pid, spec, &desired)).unwrap();
    let reader = Reader::start(&world);
    world.inside(AGENT, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1..=FRAMES {
            socket.send_to(b"x", (OUTSIDE, port)).unwrap();
        }
    });
    // The table is replaced in the middle of it, as when another container starts.
    reader_looks(&world, &reader);
    world.load();
    // Another one's attempt is told all the same.
    let other = world.tap(BRIDGE);
    let mac = |address| world.mac(address);
    other.send(&ethernet(mac(BROKER), mac(BRIDGE), 0x0800, &ipv4(BRIDGE, BROKER, UDP, 0, &udp(40000, 53, b"x"))));
    let of = |name: &str| {
        let events = reader.bus.emitted().into_iter().map(|(_, event)| event);
        events.filter(|event| event["principal"] == name).collect::<Vec<_>>()
    };
    let counted = || of("zeroclaw-tasks").iter().map(|event| event["count"].as_u64().unwrap()).sum::<u64>();
    wait_for("the last frame", || counted() >= u64::from(FRAMES));
    assert_eq!(counted(), u64::from(FRAMES));
    let events = of("zeroclaw-tasks");
    let floods = events.iter().filter(|event| event["reason"] == "flood").count();
    assert!(floods >= 1 && events.len() < 90, "{floods} floods of {} events", events.len());
    assert!(events.iter().all(|event| event["tier"] == "tasks"), "{events:?}");
    let unreported = || world.in_vm(kernel::drops).unwrap().unwrap().unreported;
    assert_eq!(of("assistant-channel-bridge").len(), 1);
    assert_eq!(reader.bus.emitted().len(), events.len() + 1, "of nobody else");

    // What the kernel has no room to report it counts for whom it is.
    world.inside(AGENT, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1..=FRAMES {
            socket.send_to(b"x", (OUTSIDE, port)).unwrap();
        }
    });
    wait_for("frames that are not reported", || unreported()["zeroclaw-tasks"] > u64::from(FRAMES) / 2);
    assert_eq!(unreported()["assistant-channel-bridge"], 0);
    wait_for("the last frame", || counted() >= 2 * u64::from(FRAMES));
    assert_eq!(counted(), 2 * u64::from(FRAMES));
}

fn reader_looks(world: &World, reader: &Reader) {
    let ledger = reader.ledger.clone();
    world.in_vm(move || ledger.look());
}

#[test]
fn what_died_while_nobody_listened_is_counted_at_the_next_start() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let desired = desired();
    let spec = desired.container("zeroclaw-tasks").unwrap();
    world.in_vm(|| netns::prepare(world.member(AGENT).pid, spec, &desired)).unwrap();
    let socket = world.inside(AGENT, || UdpSocket::bind("0.0.0.0:0").unwrap());
    let attempt = |port| socket.send_to(b"x", (OUTSIDE, port)).unwrap();

    let mut reader = Reader::start(&world);
    attempt(1);
    reader.expect("while somebody listens", "direct-address", "udp", OUTSIDE, Some(1));
    reader.end();
    for port in 2..=6 {
        attempt(port);
    }
    let dropped = || world.in_vm(kernel::drops).unwrap().unwrap().total();
    wait_for("the drops", || dropped() >= 6);

    let mut reader = Reader::resume(&world);
    let event = reader.next();
    assert_eq!((&event["reason"], &event["tier"]), (&"flood-lost".into(), &"stack".into()), "{event}");
    assert_eq!(event["count"], dropped() - 1, "{event}");
    assert!(event["detail"].as_str().unwrap().contains("did not run"), "{event}");
    attempt(7);
    reader.expect("after it", "direct-address", "udp", OUTSIDE, Some(7));
    reader.end();
    // Once, and not again.
    Reader::resume(&world).end();
}

#[test]
fn the_vm_dials_and_is_not_dialled() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let mut reader = Reader::start(&world);
    serve(
        || world.inside(NATS, || TcpListener::bind((NATS, 4222)).unwrap()),
        || {
            world.in_vm(|| echo(NATS, 4222)).unwrap();
        },
    );
    // Not by another user, though the port is open.
    let listener = world.inside(NATS, || TcpListener::bind((NATS, 4222)).unwrap());
    let dial = |uid: u32| {
        world.in_vm(move || {
            use std::os::unix::process::CommandExt;
            let script = format!("exec 3<>/dev/tcp/{NATS}/4222");
            Command::new("timeout")
                .args(["1", "bash", "-c", &script])
                .uid(uid)
                .stderr(std::process::Stdio::null())
                .status()
        })
    };
    assert!(dial(0).unwrap().success() && dial(8713).unwrap().success());
    assert!(!dial(65534).unwrap().success());
    assert!(netns::tcp_open(world.member(NATS).pid, 4222).unwrap());
    drop(listener);

    // NATS itself can open nothing at the VM, on whichever of its addresses.
    let listener = world.in_vm(|| TcpListener::bind(("0.0.0.0", 9999)).unwrap());
    world.inside(NATS, || knock(BUS_GATEWAY, 9999));
    reader.expect("a service that dials the VM", "to-vm", "tcp", BUS_GATEWAY, Some(9999));
    reader.end();
    // Control: the port does answer without the table.
    world.in_vm(kernel::unload).unwrap();
    world.inside(NATS, || TcpStream::connect_timeout(&SocketAddr::from((BUS_GATEWAY, 9999)), PATIENCE)).unwrap();
    drop(listener);
}

#[test]
fn what_is_loaded_is_compared_to_the_last_element() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let ruleset = kernel::ruleset(&desired(), &world.ports());
    let matches = || world.in_vm(|| kernel::matches_loaded(&ruleset)).unwrap();
    assert!(!matches(), "nothing is loaded");
    world.in_vm(kernel::unload).unwrap();
    let load = || world.in_vm(|| kernel::load(&ruleset)).unwrap();
    load();
    assert!(matches());
    for change in [
        "add element bridge assistant ports { \"vzz4\" }",
        "delete element inet assistant bridges { \"as-bus\" }",
        "insert rule bridge assistant enter accept",
        "flush chain inet assistant to_vm",
        "add chain bridge assistant extra",
        "delete element bridge assistant granted { \"VETH\" }",
        "delete table inet assistant",
        "delete table bridge assistant",
    ] {
        let change = &change.replace("VETH", &world.ports()[0].ifname);
        world.in_vm(|| run("nft", change));
        assert!(!matches(), "not noticed: {change}");
        load();
        assert!(matches());
    }
    // An empty stack has a table too, and one with fewer ports is another one.
    let fewer = kernel::ruleset(&desired(), &world.ports()[1..]);
    assert!(!world.in_vm(|| kernel::matches_loaded(&fewer)).unwrap());
    world.in_vm(|| kernel::load(&kernel::ruleset(&desired(), &[]))).unwrap();
    assert!(!matches());
}
