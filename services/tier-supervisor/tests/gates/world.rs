//! A supervisor's half with the real process, and three gates: a site on a Unix socket, a site on an address, and NATS's
//! kind.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use service_kit::host::Health;
use service_kit::task::{OnEnd, Tasks};
use tier_supervisor::desired::{Gate, GateKind, Upstream as Behind};
use tier_supervisor::gates::{self, Logins, Program};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::browser::Site;
use crate::upstream::Upstream;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn program() -> Program {
    // As ourselves: the other user may not be able to reach the directory this test was built in.
    Program { path: env!("CARGO_BIN_EXE_tier-supervisor").into(), uid: None }
}

pub(crate) fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("not IPv4"),
    }
}

/// A loopback port that was free a moment ago.
pub(crate) async fn free_port() -> SocketAddrV4 {
    v4(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap())
}

/// Polls under a deadline.
pub(crate) async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not come about"));
}

pub(crate) fn site(name: &str, listen: SocketAddrV4, behind: Behind) -> Gate {
    Gate { name: name.to_owned(), listen, kind: GateKind::Site(behind) }
}

/// The supervisor's half.
pub(crate) struct Supervisor {
    pub(crate) wanted: watch::Sender<Vec<Gate>>,
    pub(crate) logins: Arc<Logins>,
    pub(crate) health: Health,
    stop: CancellationToken,
    over: CancellationToken,
}

impl Supervisor {
    pub(crate) fn start(gates: Vec<Gate>) -> Self {
        let (wanted, known) = watch::channel(gates);
        let (logins, health, stop) = (Arc::new(Logins::default()), Health::detached(), CancellationToken::new());
        let supervising = gates::supervise(program(), known, Arc::clone(&logins), health.clone(), stop.clone());
        let over = CancellationToken::new();
        let ends = over.clone().drop_guard();
        Tasks::default().spawn("supervise", OnEnd::Expected, async move {
            let _ends = ends;
            supervising.await
        });
        Self { wanted, logins, health, stop, over }
    }

    /// Waits until it accepts.
    pub(crate) async fn open(&self, gate: &Gate) {
        wait_for("the gate", async || self.logins.standing(gate) == Some(gates::Standing::Open)).await;
        TcpStream::connect(gate.listen).await.unwrap();
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.over.cancelled()).await.unwrap();
    }
}

/// Two sites and what is behind them.
pub(crate) struct World {
    pub(crate) supervisor: Supervisor,
    /// On a Unix socket.
    pub(crate) tasks: Gate,
    pub(crate) upstream: Upstream,
    /// On an address.
    pub(crate) jaeger: Gate,
    pub(crate) jaegers: Upstream,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("tasks.sock");
        let upstream = Upstream::at_socket(&socket);
        let (jaegers, address) = Upstream::at_address().await;
        let tasks = site("tasks", free_port().await, Behind::Unix(socket));
        let jaeger = site("jaeger", free_port().await, Behind::Tcp(address));
        let supervisor = Supervisor::start(vec![tasks.clone(), jaeger.clone()]);
        supervisor.open(&tasks).await;
        supervisor.open(&jaeger).await;
        Self { supervisor, tasks, upstream, jaeger, jaegers, _dir: dir }
    }

    /// A browser that has logged in.
    pub(crate) async fn logged_in(&self, gate: &Gate) -> Site {
        let mut site = Site::of(gate);
        let link = self.supervisor.logins.link(gate).await.unwrap();
        let answer = site.open(&link.url).await;
        assert_eq!(answer.status, 303, "{answer:?}");
        site
    }
}
