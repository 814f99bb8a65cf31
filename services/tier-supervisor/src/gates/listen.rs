//! The gates' process: reads what it is told, opens and closes gates, takes connections. Each gate stands for itself: one
//! whose port is taken is tried again while the others serve.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use service_kit::task::{OnEnd, Tasks};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::admission::Admission;
use super::join::join;
use super::site::{Peer, Site};
use super::told::{Line, MOST_LINE, Said, Told};
use crate::desired::GateKind;

/// Connections of one gate at a time: a browser with every dashboard open and a few shells, many times over.
const MOST_CONNECTIONS: usize = 256;
/// After a failure to accept (out of file descriptors), so that it does not spin.
const BREATHE: Duration = Duration::from_millis(100);
/// Before a port that could not be had is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const SLOWEST_RETRY: Duration = Duration::from_secs(5);
/// Lines that were read and not yet acted on.
const WAITING: usize = 16;

/// The whole process, until standard input ends.
#[must_use]
pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(serve(read())),
        Err(error) => Err(format!("the runtime cannot be started: {error}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&Said::Failed { why });
            ExitCode::FAILURE
        }
    }
}

/// Reads lines in a thread, because standard input of a process cannot be read without blocking. Ends with the input.
fn read() -> mpsc::Receiver<Result<Told, String>> {
    let (lines, read) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = String::new();
            let most = u64::try_from(MOST_LINE).unwrap_or(u64::MAX);
            let told = match input.by_ref().take(most).read_line(&mut line) {
                // Cut off in its middle is the same as over: who was speaking is gone.
                Ok(_) if !line.ends_with('\n') => return,
                Ok(_) => serde_json::from_str(&line).map_err(|error| format!("a line is not understood: {error}")),
                Err(error) => Err(format!("standard input cannot be read: {error}")),
            };
            let last = told.is_err();
            if lines.blocking_send(told).is_err() || last {
                return;
            }
        }
    });
    read
}

async fn serve(mut input: mpsc::Receiver<Result<Told, String>>) -> Result<(), String> {
    let admission = Arc::new(Admission::new(|said| say(&said)));
    let tasks = Tasks::default();
    let mut gates = Gates { tasks: tasks.clone(), admission: Arc::clone(&admission), open: BTreeMap::new() };
    loop {
        tokio::select! {
            told = input.recv() => match told {
                None => return Ok(()),
                Some(Err(why)) => return Err(why),
                Some(Ok(Told::Gates(lines))) => gates.become_these(lines).await,
                Some(Ok(Told::Ticket(ticket))) => admission.expect(ticket),
                Some(Ok(Told::Session(session))) => admission.restore(session),
            },
            why = tasks.critical_end() => return Err(why),
        }
    }
}

/// The gates that there are.
struct Gates {
    tasks: Tasks,
    admission: Arc<Admission>,
    open: BTreeMap<String, Held>,
}

struct Held {
    line: Line,
    /// Ends the gate and every connection through it.
    stop: CancellationToken,
    /// Cancelled when its port is free.
    gone: CancellationToken,
}

impl Gates {
    /// What stays the same is not touched, nor are its connections.
    async fn become_these(&mut self, lines: Vec<Line>) {
        let closing: Vec<String> =
            self.open.iter().filter(|(_, held)| !lines.contains(&held.line)).map(|(name, _)| name.clone()).collect();
        for name in closing {
            if let Some(held) = self.open.remove(&name) {
                held.stop.cancel();
                held.gone.cancelled().await;
            }
        }
        for line in lines {
            if self.open.contains_key(&line.name) {
                continue;
            }
            // Nothing of ours listens on any other address of the VM.
            if !line.listen.ip().is_loopback() {
                let why = "that is not an address of loopback".to_owned();
                say(&Said::Closed { name: line.name, listen: line.listen, why });
                continue;
            }
            let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
            let gate = Gate {
                line: line.clone(),
                tasks: self.tasks.clone(),
                admission: Arc::clone(&self.admission),
                stop: stop.clone(),
            };
            let over = gone.clone().drop_guard();
            self.tasks.spawn("gate", OnEnd::Expected, async move {
                // Dropped after everything else of the gate.
                let _over = over;
                gate.run().await;
                Ok(())
            });
            self.open.insert(line.name.clone(), Held { line, stop, gone });
        }
    }
}

struct Gate {
    line: Line,
    tasks: Tasks,
    admission: Arc<Admission>,
    stop: CancellationToken,
}

impl Gate {
    async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = async {
                let (listener, _reserved) = self.bind().await;
                self.accept(listener).await;
            } => {}
        }
    }

    /// Listens, however long it takes; says when how it stands changes.
    async fn bind(&self) -> (TcpListener, Option<TcpSocket>) {
        let (name, listen) = (&self.line.name, self.line.listen);
        let mut delay = FIRST_RETRY;
        let mut last = None;
        loop {
            let both = async {
                let listener = TcpListener::bind(listen).await?;
                let port = listener.local_addr()?.port();
                Ok::<_, std::io::Error>((listener, reserve(port)?))
            };
            let said = match both.await {
                Ok(both) => {
                    say(&Said::Open { listen });
                    return both;
                }
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    Said::Occupied { name: name.clone(), listen }
                }
                Err(error) => Said::Closed { name: name.clone(), listen, why: error.to_string() },
            };
            if last.as_ref() != Some(&said) {
                say(&said);
                last = Some(said);
            }
            tokio::time::sleep(delay).await;
            delay = delay.saturating_mul(2).min(SLOWEST_RETRY);
        }
    }

    async fn accept(&self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let site = match &self.line.kind {
            GateKind::Tcp(_) => None,
            GateKind::Site(upstream) => Some(Arc::new(Site::new(
                &self.line.name,
                self.line.listen.port(),
                upstream.clone(),
                Arc::clone(&self.admission),
                self.tasks.clone(),
            ))),
        };
        loop {
            let Ok((client, SocketAddr::V4(address))) = listener.accept().await else {
                tokio::time::sleep(BREATHE).await;
                continue;
            };
            // Full: the client sees its connection close at once, which says more than one that hangs.
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let peer = Peer { address, gate: self.line.listen, place: Arc::new(place), stop: self.stop.clone() };
            match (&self.line.kind, &site) {
                (GateKind::Site(_), Some(site)) => self.serve(Arc::clone(site), client, peer),
                (GateKind::Tcp(target), _) => self.join(client, *target, peer),
                (GateKind::Site(_), None) => {}
            }
        }
    }

    fn serve(&self, site: Arc<Site>, client: TcpStream, peer: Peer) {
        self.tasks.spawn("gate-connection", OnEnd::Expected, async move {
            let stop = peer.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = site.serve(client, peer) => {}
            }
            Ok(())
        });
    }

    fn join(&self, client: TcpStream, target: SocketAddrV4, peer: Peer) {
        self.tasks.spawn("gate-connection", OnEnd::Expected, async move {
            tokio::select! {
                () = peer.stop.cancelled() => {}
                () = join(client, target) => {}
            }
            Ok(())
        });
    }
}

/// Keeps the same port of ::1 from everybody, without listening there. A browser tries that address first for a name of
/// localhost: who served it would be the site, tickets included. Nothing to keep where there is no such address.
fn reserve(port: u16) -> std::io::Result<Option<TcpSocket>> {
    // Without SO_REUSEADDR, which TcpListener sets: with it another such socket could have the port as well.
    let Ok(socket) = TcpSocket::new_v6() else { return Ok(None) };
    match socket.bind(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0))) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => Ok(None),
        Err(error) => Err(error),
    }
}

fn say(said: &Said) {
    let mut line = serde_json::to_vec(said).unwrap_or_default();
    line.push(b'\n');
    let mut output = std::io::stdout().lock();
    // Nobody listens any more: the end of standard input follows.
    drop(output.write_all(&line).and_then(|()| output.flush()));
}
