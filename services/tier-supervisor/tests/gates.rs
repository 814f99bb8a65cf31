//! The gates as a process: the real executable, real ports on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use service_kit::host::Health;
use tier_supervisor::desired::{Gate, GateKind};
use tier_supervisor::gates::{self, Program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

fn program() -> Program {
    // As ourselves: the other user may not be able to reach the directory this test was built in.
    Program { path: env!("CARGO_BIN_EXE_tier-supervisor").into(), uid: None }
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("not IPv4"),
    }
}

/// A loopback port that was free a moment ago.
async fn free_port() -> SocketAddrV4 {
    v4(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap())
}

fn gate(listen: SocketAddrV4, target: SocketAddrV4) -> Gate {
    Gate { name: "bus".to_owned(), listen, target, kind: GateKind::Tcp }
}

/// Polls under a deadline.
async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not come about"));
}

/// Sends four bytes through the gate to a target that sends them back.
async fn joined(listen: SocketAddrV4, target: &TcpListener) -> bool {
    let Ok(mut client) = TcpStream::connect(listen).await else { return false };
    let (mut server, _) = target.accept().await.unwrap();
    client.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).await.unwrap();
    server.write_all(&bytes).await.unwrap();
    client.read_exact(&mut bytes).await.unwrap();
    bytes == *b"ping"
}

/// Processes that run the gates as children of this one.
fn children() -> Vec<u32> {
    let own = format!("PPid:\t{}\n", std::process::id());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        read("status").contains(&own) && read("cmdline").contains("\0gates\0")
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_open_come_back_and_go_with_their_supervisor() {
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target_address = v4(target.local_addr().unwrap());
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let taken_address = v4(taken.local_addr().unwrap());
    let (wanted, known) = watch::channel(vec![gate(taken_address, target_address)]);
    let (health, stop) = (Health::detached(), CancellationToken::new());
    let supervising = gates::supervise(program(), known, health.clone(), stop.clone());
    let test = async {
        // Taken: one sentence with the port, and who has it.
        wait_for("a report", async || !health.problems().is_empty()).await;
        let (part, problem) = health.problems().remove(0);
        let port = taken_address.port().to_string();
        assert_eq!(part, "gates");
        assert!(problem.contains(&format!("port {port} ")), "{problem}");
        assert!(problem.contains(&format!("(process {})", std::process::id())), "{problem}");
        // Free again: it opens by itself.
        drop(taken);
        wait_for("the gate", async || joined(taken_address, &target).await).await;
        wait_for("health", async || health.problems().is_empty()).await;

        // Another list: the old port is free again, the new one is joined.
        let listen = free_port().await;
        wanted.send(vec![gate(listen, target_address)]).unwrap();
        wait_for("the other gate", async || joined(listen, &target).await).await;
        assert!(TcpStream::connect(taken_address).await.is_err());

        // Killed: made again.
        let before = children();
        assert_eq!(before.len(), 1);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(before[0]).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        wait_for("the gate again", async || children() != before && joined(listen, &target).await).await;

        wanted.send(Vec::new()).unwrap();
        wait_for("no gate", async || children().is_empty()).await;
        wanted.send(vec![gate(listen, target_address)]).unwrap();
        wait_for("the gate once more", async || joined(listen, &target).await).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(supervising, test);
    outcome.unwrap();
    assert!(children().is_empty());
}

#[test]
fn the_process_ends_with_its_input() {
    use std::io::{BufRead, Write};
    let mut child = std::process::Command::new(program().path)
        .args(["gates", "--config", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"[{\"name\":\"bus\",\"listen\":\"127.0.0.1:0\",\"target\":\"127.0.0.1:1\"}]\n").unwrap();
    let mut said = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "\"ready\"\n");
    assert!(child.try_wait().unwrap().is_none(), "it runs as long as its input is open");
    drop(input);
    assert!(child.wait().unwrap().success());
}
