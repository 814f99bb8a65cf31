//! The process: it opens what it can, comes back, keeps what it must, and goes with its supervisor.

use std::net::Ipv4Addr;
use std::time::Duration;

use tier_supervisor::desired::{Gate, GateKind};
use tier_supervisor::gates::Standing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Supervisor, World, free_port, program, v4, wait_for};

fn nats(listen: std::net::SocketAddrV4, target: std::net::SocketAddrV4) -> Gate {
    Gate { name: format!("bus-{}", listen.port()), listen, kind: GateKind::Tcp(target) }
}

/// Sends four bytes through the gate to a target that sends them back.
async fn joined(listen: std::net::SocketAddrV4, target: &TcpListener) -> bool {
    let Ok(mut client) = TcpStream::connect(listen).await else { return false };
    if client.write_all(b"ping").await.is_err() {
        return false;
    }
    let mut bytes = [0; 4];
    // Whoever only tried whether a gate is open was joined as well, and is gone.
    let server = async {
        loop {
            let (mut server, _) = target.accept().await.unwrap();
            if server.read_exact(&mut bytes).await.is_ok() {
                break server;
            }
        }
    };
    let Ok(mut server) = tokio::time::timeout(Duration::from_secs(5), server).await else { return false };
    server.write_all(b"pong").await.is_ok() && client.read_exact(&mut bytes).await.is_ok() && bytes == *b"pong"
}

async fn echoes((client, server): &mut (TcpStream, TcpStream)) -> bool {
    client.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).await.unwrap();
    server.write_all(&bytes).await.unwrap();
    client.read_exact(&mut bytes).await.unwrap();
    bytes == *b"ping"
}

/// Processes that run the gates as children of this one, with this port open.
fn children(listen: std::net::SocketAddrV4) -> Vec<i32> {
    let own = format!("PPid:\t{}\n", std::process::id());
    let port = format!("0100007F:{:04X} 00000000:0000 0A", listen.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let inode = table.lines().find(|line| line.contains(&port)).and_then(|line| line.split_ascii_whitespace().nth(9));
    let Some(inode) = inode.map(|inode| format!("socket:[{inode}]")) else { return Vec::new() };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let mut files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        read("status").contains(&own)
            && read("cmdline").ends_with("\0gates\0")
            && files
                .any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == inode.as_str()))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_open_each_for_itself_and_go_with_their_supervisor() {
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target_address = v4(target.local_addr().unwrap());
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let occupied = nats(v4(taken.local_addr().unwrap()), target_address);
    let free = nats(free_port().await, target_address);
    let supervisor = Supervisor::start(vec![occupied.clone(), free.clone()]);
    // Taken: one sentence with the port, and who has it. The other one opens all the same.
    wait_for("a report", async || !supervisor.health.problems().is_empty()).await;
    let (part, problem) = supervisor.health.problems().remove(0);
    assert_eq!(part, "gates");
    assert!(problem.contains(&format!("port {} ", occupied.listen.port())), "{problem}");
    assert!(problem.contains(&format!("(process {})", std::process::id())), "{problem}");
    assert_eq!(problem.matches("is taken by").count(), 1, "{problem}");
    assert!(matches!(supervisor.logins.standing(&occupied), Some(Standing::Closed(_))));
    wait_for("the other gate", async || joined(free.listen, &target).await).await;
    // Free again: it opens by itself.
    drop(taken);
    wait_for("the gate", async || joined(occupied.listen, &target).await).await;
    wait_for("health", async || supervisor.health.problems().is_empty()).await;

    // Another list: what stays is not touched, what goes is free again, what comes is joined.
    let mut lasting = (TcpStream::connect(free.listen).await.unwrap(), target.accept().await.unwrap().0);
    let mut ending = (TcpStream::connect(occupied.listen).await.unwrap(), target.accept().await.unwrap().0);
    assert!(echoes(&mut lasting).await && echoes(&mut ending).await);
    let before = children(free.listen);
    let new = nats(free_port().await, target_address);
    supervisor.wanted.send(vec![new.clone(), free.clone()]).unwrap();
    wait_for("the new gate", async || joined(new.listen, &target).await).await;
    assert!(TcpStream::connect(occupied.listen).await.is_err());
    assert_eq!(ending.0.read(&mut [0]).await.unwrap_or(0), 0, "what went through a gate that is gone has ended");
    assert!(echoes(&mut lasting).await);
    assert_eq!((before.len(), children(free.listen)), (1, before.clone()));

    // Killed: made again.
    let pid = nix::unistd::Pid::from_raw(before[0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let again = async || children(free.listen) != before && joined(free.listen, &target).await;
    wait_for("the gate again", again).await;

    supervisor.wanted.send(Vec::new()).unwrap();
    wait_for("no gate", async || TcpStream::connect(free.listen).await.is_err()).await;
    supervisor.wanted.send(vec![free.clone()]).unwrap();
    wait_for("the gate once more", async || joined(free.listen, &target).await).await;
    supervisor.stop().await;
    assert!(TcpStream::connect(free.listen).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_logged_in_stays_so_and_a_used_link_stays_used() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let (used, unused) = {
        let used = world.supervisor.logins.link(&world.tasks).await.unwrap();
        site.clone().open(&used.url).await;
        (used, world.supervisor.logins.link(&world.tasks).await.unwrap())
    };
    // Another list of gates.
    world.supervisor.wanted.send(vec![world.tasks.clone()]).unwrap();
    wait_for("the shorter list", async || TcpStream::connect(world.jaeger.listen).await.is_err()).await;
    assert_eq!(site.get("/").await.status, 200);
    // Another process.
    let before = children(world.tasks.listen);
    let pid = nix::unistd::Pid::from_raw(before[0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("another process", async || {
        let now = children(world.tasks.listen);
        !now.is_empty() && now != before
    })
    .await;
    assert_eq!(site.get("/").await.status, 200);
    assert_eq!(site.clone().open(&used.url).await.status, 401);
    assert_eq!(site.clone().open(&unused.url).await.status, 303);
    // Another list that opens nothing that was open.
    world.supervisor.wanted.send(vec![world.jaeger.clone()]).unwrap();
    wait_for("the other list", async || TcpStream::connect(world.jaeger.listen).await.is_ok()).await;
    world.supervisor.wanted.send(vec![world.tasks.clone()]).unwrap();
    wait_for("the first list", async || TcpStream::connect(world.tasks.listen).await.is_ok()).await;
    assert_eq!(site.get("/").await.status, 200);
    // A supervisor that was started anew knows nobody.
    let (logged_in, gates) = (site, vec![world.tasks.clone()]);
    let World { supervisor, upstream: _upstream, .. } = world;
    supervisor.stop().await;
    let supervisor = Supervisor::start(gates.clone());
    supervisor.open(&gates[0]).await;
    assert_eq!(logged_in.get("/").await.status, 401);
}

/// A browser tries ::1 before 127.0.0.1: whoever listened there would be the site.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_has_the_port_of_a_gate_at_the_other_loopback() {
    use std::io::Write as _;
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let listen = free_port().await;
    let Ok(squatter) = std::net::TcpListener::bind(("::1", listen.port())) else {
        // Past the capture of a test's output: nobody looks into a test that passed.
        std::io::stderr().write_all(b"SKIPPED: this machine has no ::1\n").unwrap();
        return;
    };
    let gate = nats(listen, v4(target.local_addr().unwrap()));
    let supervisor = Supervisor::start(vec![gate.clone()]);
    wait_for("a report", async || !supervisor.health.problems().is_empty()).await;
    let (_, problem) = supervisor.health.problems().remove(0);
    assert!(problem.contains(&format!("(process {})", std::process::id())), "{problem}");
    assert!(TcpStream::connect(listen).await.is_err(), "a gate whose name leads to somebody else is not open");
    drop(squatter);
    wait_for("the gate", async || joined(listen, &target).await).await;
    for address in ["::1", "::"] {
        let taken = std::net::TcpListener::bind((address, listen.port()));
        assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse, "{address}");
    }
    // Held, and nobody answers: a browser goes on to 127.0.0.1 at once.
    let refused = TcpStream::connect(("::1", listen.port())).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    supervisor.stop().await;
    std::net::TcpListener::bind(("::1", listen.port())).unwrap();
}

#[test]
fn the_process_ends_with_its_input_and_listens_on_loopback_only() {
    use std::io::{BufRead, Write};
    let mut child = std::process::Command::new(program().path)
        .arg("gates")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let kind = r#""kind":{"tcp":"127.0.0.1:1"}"#;
    let everywhere = format!(r#"{{"gates":[{{"name":"a","listen":"0.0.0.0:0",{kind}}}]}}"#);
    writeln!(input, "{everywhere}").unwrap();
    assert!(said.next().unwrap().unwrap().starts_with(r#"{"closed":{"name":"a","#));
    writeln!(input, "{}", everywhere.replace("0.0.0.0", "127.0.0.1")).unwrap();
    assert_eq!(said.next().unwrap().unwrap(), r#"{"open":{"listen":"127.0.0.1:0"}}"#);
    assert!(child.try_wait().unwrap().is_none(), "it runs as long as its input is open");
    drop(input);
    assert!(child.wait().unwrap().success());
}
