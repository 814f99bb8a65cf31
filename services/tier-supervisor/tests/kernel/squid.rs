//! The one way out: Squid, to where it may go and nowhere else.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

use tier_supervisor::desired::Exit;
use tier_supervisor::{kernel, netns, routes};

use crate::reader::Reader;
use crate::world::{AGENT, NATS, OUTSIDE, PATIENCE, RESOLVER, SQUID, World, desired, is_root, run};
use crate::{echo, knock, serve};

#[test]
fn squid_leaves_by_443_into_the_drill_only() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.load();
    let desired = desired();
    let squid = desired.container("assistant-squid").unwrap();
    world.in_vm(|| netns::prepare(world.member(SQUID).pid, squid, &desired)).unwrap();
    world.in_vm(|| routes::claim(&desired)).unwrap();
    world.in_vm(|| routes::claim(&desired)).unwrap();
    let mut reader = Reader::start(&world);

    serve(
        || world.outside(|| TcpListener::bind(("0.0.0.0", 443)).unwrap()),
        || {
            world.inside(SQUID, || echo(OUTSIDE, 443)).unwrap();
        },
    );
    let resolver = world.outside(|| UdpSocket::bind((RESOLVER, 53)).unwrap());
    let asker = world.inside(SQUID, || UdpSocket::bind("0.0.0.0:0").unwrap());
    let mut bytes = [0; 4];
    for socket in [&resolver, &asker] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    asker.send_to(b"name", (RESOLVER, 53)).unwrap();
    let (_, from) = resolver.recv_from(&mut bytes).unwrap();
    resolver.send_to(b"addr", from).unwrap();
    asker.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes, b"addr");

    let everywhere = world.outside(|| TcpListener::bind(("0.0.0.0", 80)).unwrap());
    for (to, port) in [(OUTSIDE, 80), (Ipv4Addr::new(169, 254, 169, 254), 443), (Ipv4Addr::new(192, 168, 1, 1), 443)] {
        world.inside(SQUID, || knock(to, port));
        reader.expect("squid elsewhere", "direct-address", "tcp", to, Some(port));
    }
    world.inside(SQUID, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (OUTSIDE, 53)).unwrap());
    reader.expect("another resolver", "direct-address", "udp", OUTSIDE, Some(53));
    drop(everywhere);

    // Another way out appears, and the routes lead there: the table still does not let it.
    let vm = world.in_vm(|| {
        run("ip", "link add zz5out type veth peer name zz5out1");
        run("ip", "address add 198.51.100.129/25 dev zz5out");
        run("ip", "link set zz5out up");
        run("ip", "link set zz5out1 up");
        run("ip", "neigh replace 198.51.100.130 lladdr 02:00:00:00:00:09 dev zz5out nud permanent");
        routes::release().unwrap();
        run("ip", "route add default via 198.51.100.130 dev zz5out");
        routes::verify(&desired)
    });
    assert!(matches!(vm, Err(routes::RouteError::NotClaimed { .. })), "{vm:?}");
    world.inside(SQUID, || knock(OUTSIDE, 443));
    reader.expect("another way out", "direct-address", "tcp", OUTSIDE, Some(443));
    reader.end();

    // Without the drill's end nothing can be claimed.
    world.in_vm(|| routes::claim(&desired)).unwrap();
    world.in_vm(|| run("ip", "link set as-drill0 down"));
    assert!(matches!(world.in_vm(|| routes::verify(&desired)), Err(routes::RouteError::NoDrill)));
    assert!(matches!(world.in_vm(|| routes::claim(&desired)), Err(routes::RouteError::NoDrill)));
    let mut live = desired.clone();
    live.drill_table = None;
    assert!(world.in_vm(|| routes::verify(&live)).is_err(), "rules of a drill are left");
    world.in_vm(|| routes::claim(&live)).unwrap();
    world.in_vm(|| routes::verify(&live)).unwrap();
}

#[test]
fn squid_reaches_the_endpoints_of_the_owner_and_nothing_beside_them() {
    if !is_root() {
        return;
    }
    let home = Ipv4Addr::new(192, 168, 1, 20);
    // An address of the VM itself, where the owner's server may run, too.
    let here = Ipv4Addr::new(192, 168, 7, 1);
    let world = World::new();
    let mut desired = desired();
    let at = |address, port| Exit::Address(SocketAddrV4::new(address, port));
    desired.exits = BTreeSet::from([at(home, 11434), at(here, 11434), Exit::Port(8443), at(NATS, 4222)]);
    world.in_vm(|| {
        run("ip", "address add 192.168.7.1/32 dev lo");
        kernel::load(&kernel::ruleset(&desired, &world.ports())).unwrap();
        routes::claim(&desired).unwrap();
    });
    for (address, name) in [(SQUID, "assistant-squid"), (AGENT, "zeroclaw-tasks")] {
        let spec = desired.container(name).unwrap();
        world.in_vm(|| netns::prepare(world.member(address).pid, spec, &desired)).unwrap();
    }
    let mut reader = Reader::start(&world);
    for (to, port) in [(home, 11434), (OUTSIDE, 8443)] {
        serve(
            || world.outside(|| TcpListener::bind(("0.0.0.0", port)).unwrap()),
            || {
                world.inside(SQUID, || echo(to, port)).unwrap();
            },
        );
    }
    serve(
        || world.in_vm(|| TcpListener::bind((here, 11434)).unwrap()),
        || {
            world.inside(SQUID, || echo(here, 11434)).unwrap();
        },
    );
    let listeners = [11434, 8443, 443].map(|port| world.outside(|| TcpListener::bind(("0.0.0.0", port)).unwrap()));
    for (to, port) in [
        (home, 443),
        (home, 8443),
        (Ipv4Addr::new(192, 168, 1, 21), 11434),
        (OUTSIDE, 11434),
        (Ipv4Addr::new(169, 254, 169, 254), 8443),
    ] {
        world.inside(SQUID, || knock(to, port));
        reader.expect("squid beside the endpoint", "direct-address", "tcp", to, Some(port));
    }
    // An endpoint among our own addresses opens nothing.
    world.inside(SQUID, || knock(NATS, 4222));
    reader.expect("squid to a container of ours", "other-container", "tcp", NATS, Some(4222));
    let others = world.in_vm(|| TcpListener::bind((here, 9999)).unwrap());
    world.inside(SQUID, || knock(here, 9999));
    reader.expect("squid to another port of the VM", "to-vm", "tcp", here, Some(9999));
    // Nobody else has a way there.
    world.inside(AGENT, || knock(home, 11434));
    let event = reader.expect("the agent at the endpoint", "direct-address", "tcp", home, Some(11434));
    assert_eq!(event["tier"], "tasks");
    reader.end();
    drop((listeners, others));
    world.in_vm(|| routes::release().unwrap());
}
