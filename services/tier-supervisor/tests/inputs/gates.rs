//! Gates, and the sockets behind them.

use std::net::Ipv4Addr;

use tier_supervisor::desired::{Gate, GateKind, Mount, MountSource, Upstream};

use crate::rendered::file;
use crate::stack::Stack;

const TIERS: &str = "tiers:
  - {name: tasks, identity: tasks, port: 3001, mcp: true, mcp_port: 8811,
     credentials: [{secret: marvin_api_key, hosts: [serv.amazingmarvin.com], header: X-API-Token}]}
  - {name: updates, identity: null, port: 3002, egress: {hosts: [serv.amazingmarvin.com]}}
";

/// Every page is a site of its own on loopback, and its socket is where the gates look for it.
#[test]
fn each_page_has_a_gate() {
    let desired = Stack::with_tiers(TIERS).desired();
    let sites: Vec<String> = desired.gates.iter().filter_map(Gate::site).collect();
    for site in ["http://tasks.localhost:3001", "http://mcp-tasks.localhost:8811", "http://jaeger.localhost:16686"] {
        assert!(sites.iter().any(|there| there == site), "{site} not in {sites:?}");
    }
    let grafana = desired.container("assistant-grafana").is_some();
    assert_eq!(grafana, sites.iter().any(|site| site == "http://grafana.localhost:3030"));
    assert!(desired.gates.iter().all(|gate| *gate.listen.ip() == Ipv4Addr::LOCALHOST));
    let mut names: Vec<&str> = desired.gates.iter().map(|gate| gate.name.as_str()).collect();
    let mut ports: Vec<u16> = desired.gates.iter().map(|gate| gate.listen.port()).collect();
    names.sort_unstable();
    names.dedup();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!((names.len(), ports.len()), (desired.gates.len(), desired.gates.len()));
    let kind = |name: &str| &desired.gates.iter().find(|gate| gate.name == name).unwrap().kind;
    assert_eq!(*kind("nats"), GateKind::Tcp("10.87.1.5:4222".parse().unwrap()));
    assert_eq!(*kind("jaeger"), GateKind::Site(Upstream::Tcp("10.87.2.7:16686".parse().unwrap())));
    for (gate, service, field) in
        [("tasks", "channel-bridge", "dashboard_socket"), ("mcp-tasks", "secret-broker", "tools_page_socket")]
    {
        let spec = desired.container(&format!("assistant-{service}")).unwrap();
        let pages = spec.pages.as_ref().unwrap();
        assert_eq!(*kind(gate), GateKind::Site(Upstream::Unix(pages.path.join("tasks.sock"))));
        assert_eq!((pages.uid, pages.gid), (spec.uid, 8713));
        let mount = spec.mounts.iter().find(|mount| mount.source == MountSource::Bind(pages.path.clone())).unwrap();
        assert_eq!(mount.target, "/run/assistant-pages");
        let config = file(&desired, &spec.name, "config.json");
        assert!(config.contains(&format!("\"{field}\": \"/run/assistant-pages/tasks.sock\"")), "{config}");
        // And nobody else has the directory.
        for other in desired.containers.iter().filter(|other| other.name != spec.name) {
            let mounts = |mount: &Mount| match &mount.source {
                MountSource::Bind(path) => path.starts_with(&pages.path) || pages.path.starts_with(path),
                MountSource::Volume(_) => false,
            };
            assert!(!other.mounts.iter().any(mounts), "{}", other.name);
        }
    }
}

/// The broker has a directory only where it has a page to serve.
#[test]
fn a_service_without_pages_has_no_directory() {
    let desired = Stack::with_tiers("tiers: [{name: t, port: 3001}]").desired();
    let pages = |name: &str| desired.container(name).unwrap().pages.is_some();
    assert!(pages("assistant-channel-bridge") && !pages("assistant-secret-broker"));
    assert!(!file(&desired, "assistant-secret-broker", "config.json").contains("/run/assistant-pages"));
}
