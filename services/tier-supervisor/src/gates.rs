//! The loopback gates: `127.0.0.1:<port>` of the VM, joined to a container. NATS byte by byte, because it authenticates by
//! itself; every page as a site of its own, `http://<name>.localhost:<port>`, behind a login.
//!
//! A process of its own, as another user, with neither the Docker socket nor any capability: what listens where every
//! local user and every web page can knock must not be the process that can do everything. This module owns both halves:
//! [`supervise`] and [`Logins`] are in tier-supervisor and keep the process alive; [`main`] is the process
//! (`tier-supervisor gates`).
//!
//! The gates are told what to do by lines of JSON on standard input, which stays open: when tier-supervisor ends, however
//! it ends, the gates see the end of their input and go too. None of the lines holds a secret: tickets and sessions are
//! hashes. What the gates' process knows, tier-supervisor knows as well, so that one that is started anew goes on where
//! the last one ended.

mod admission;
mod forward;
mod join;
mod judge;
mod listen;
mod logins;
mod page;
mod process;
mod site;
pub(crate) mod sockets;
mod told;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use service_kit::host::Health;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::desired::Gate;
use crate::kernel::GATES_UID;
use process::Child;
use told::{Line, Told};

pub use listen::main;
pub use logins::{Link, LinkError, Logins, Standing, TICKET_SECONDS};

const PART: &str = "gates";
const FIRST_RETRY: Duration = Duration::from_millis(500);
const SLOWEST_RETRY: Duration = Duration::from_secs(15);
/// A process that lived this long and then ended is started again at once.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// As whom the gates run, and what is run.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable, which that user can execute.
    pub path: PathBuf,
    /// User and group; none only in tests.
    pub uid: Option<u32>,
}

impl Program {
    /// This very executable, as the gates' user.
    ///
    /// # Errors
    /// When the system does not say which executable this is.
    pub fn this() -> std::io::Result<Self> {
        Ok(Self { path: std::env::current_exe()?, uid: Some(GATES_UID) })
    }
}

/// How a process came to its end.
enum End {
    /// The supervisor ends.
    Stopped,
    /// There are no gates any more.
    NotNeeded,
    /// By itself, or because it did not listen to us; one sentence.
    Failed(String),
}

/// Keeps the gates' process running with the newest list of gates until `stop`. Health part `gates`: fine while every
/// gate listens; otherwise a sentence for each that does not, which names the port and who holds it.
///
/// # Errors
/// Never by itself; whatever goes wrong is reported and tried again.
pub async fn supervise(
    program: Program,
    mut gates: watch::Receiver<Vec<Gate>>,
    logins: Arc<Logins>,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut delay = FIRST_RETRY;
    loop {
        if gates.borrow_and_update().is_empty() {
            health.report(PART, Ok(()));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = gates.changed() => if changed.is_err() { return Ok(()) },
            }
            continue;
        }
        let born = tokio::time::Instant::now();
        let end = match Child::spawn(&program) {
            Ok(child) => live(child, &mut gates, &logins, &health, &stop).await,
            Err(why) => End::Failed(format!("the gates' process cannot be started: {why}")),
        };
        logins.ended();
        match end {
            End::Stopped => return Ok(()),
            End::NotNeeded => {
                delay = FIRST_RETRY;
                continue;
            }
            End::Failed(why) => health.report(PART, Err(why)),
        }
        if born.elapsed() > HEALTHY_AFTER {
            delay = FIRST_RETRY;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = gates.changed() => delay = FIRST_RETRY,
            () = tokio::time::sleep(delay) => delay = delay.saturating_mul(2).min(SLOWEST_RETRY),
        }
    }
}

/// One process, from its first line to its end.
async fn live(
    mut child: Child,
    gates: &mut watch::Receiver<Vec<Gate>>,
    logins: &Logins,
    health: &Health,
    stop: &CancellationToken,
) -> End {
    let (known, mut tickets) = logins.begin();
    let mut news: Vec<Told> = known;
    news.push(tell_gates(gates, logins));
    loop {
        for told in news.drain(..) {
            if let Err(error) = child.tell(&told).await {
                child.end(logins).await;
                return End::Failed(format!("the gates' process does not listen ({error}); it is started again"));
            }
        }
        report(&gates.borrow(), logins, health);
        // All arms are cancel-safe; the child is killed when it is dropped.
        tokio::select! {
            () = stop.cancelled() => { child.end(logins).await; return End::Stopped }
            changed = gates.changed() => {
                if changed.is_err() || gates.borrow().is_empty() {
                    child.end(logins).await;
                    return if changed.is_err() { End::Stopped } else { End::NotNeeded };
                }
                news.push(tell_gates(gates, logins));
            }
            Some(ticket) = tickets.recv() => news.push(Told::Ticket(ticket)),
            said = child.hear() => match said {
                Some(said) => child.note(said, logins).await,
                None => return End::Failed(child.wait().await),
            },
        }
    }
}

fn tell_gates(gates: &mut watch::Receiver<Vec<Gate>>, logins: &Logins) -> Told {
    let gates = gates.borrow_and_update();
    logins.wanted(&gates);
    Told::Gates(gates.iter().map(Line::from).collect())
}

/// Says nothing while a gate has not been heard of, unless another one is known not to be open.
fn report(gates: &[Gate], logins: &Logins, health: &Health) {
    let standing: Vec<Option<Standing>> = gates.iter().map(|gate| logins.standing(gate)).collect();
    let closed: Vec<&str> = standing
        .iter()
        .filter_map(|standing| match standing {
            Some(Standing::Closed(why)) => Some(why.as_str()),
            Some(Standing::Open) | None => None,
        })
        .collect();
    if !closed.is_empty() {
        health.report(PART, Err(closed.join("; ")));
    } else if standing.iter().all(|standing| *standing == Some(Standing::Open)) {
        health.report(PART, Ok(()));
    }
}

/// That a gate's port is taken, and what to do.
fn occupied(name: &str, listen: SocketAddrV4, holder: &str) -> String {
    let port = listen.port();
    format!(
        "port {port} on 127.0.0.1, the gate to {name}, is taken by {holder}: stop it (find it with: ss -ltnp 'sport = :{port}')"
    )
}
