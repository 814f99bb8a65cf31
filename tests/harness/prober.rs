//! Tries to get out of a network namespace, again and again, by every way an agent has: a packet to an address, a question
//! to a resolver outside, one to the tier's own resolver, a connection, and CONNECT at the tier's own door. So that what
//! is open for a moment only is tried in that moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::agent::Door;
use super::command::run;
use super::{probe, until};

/// An address that nobody may reach.
pub const TARGET: &str = "198.51.100.77";
/// The drill's name server, which answers whoever reaches it.
const NAME_SERVER: &str = "198.51.100.53";

/// Seconds after which it ends by itself.
const LONGEST: &str = "180";

/// Arguments: target, name server, own resolver, unique part of names, door (or `-`), its credential, host.
const SCRIPT: &str = r#"
import base64, os, random, socket, sys, time
target, outside, own, unique, door, credential, host = sys.argv[1:8]
authorization = base64.b64encode(credential.encode()).decode()
def quietly(what):
    try:
        return what()
    except OSError:
        return None
def question(name):
    head = random.getrandbits(16).to_bytes(2, "big") + bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    return head + b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + bytes([0, 0, 1, 0, 1])
def knock():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.setblocking(False)
        stream.connect_ex((target, 4444))
def connect():
    if door == "-":
        return
    address, port = door.split(":")
    with socket.create_connection((address, int(port)), timeout=0.3) as stream:
        head = f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\nProxy-Authorization: Basic {authorization}\r\n\r\n"
        stream.sendall(head.encode())
        status = stream.recv(64).split(b" ")[1:2]
        if status == [b"200"]:
            print("through", host, flush=True)
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
number = 0
while True:
    number += 1
    name = f"n{number}.{unique}.drill.example"
    quietly(lambda: datagram.sendto(b"exfil", (target, 9999)))
    quietly(lambda: datagram.sendto(question(name), (outside, 53)))
    quietly(lambda: datagram.sendto(question(name), (own, 53)))
    quietly(knock)
    quietly(connect)
    print("tried", time.time(), flush=True)
    time.sleep(0.04)
"#;

/// Something that tries. Ends with [`Prober::end`].
#[derive(Debug)]
pub struct Prober {
    container: String,
    /// What is in every name that it asks for.
    pub unique: String,
}

/// What it did.
#[derive(Debug)]
pub struct Tries {
    /// When it had tried everything once more, since 1970.
    at: Vec<Duration>,
    /// CONNECTs that were answered with yes.
    pub through: Vec<String>,
}

impl Tries {
    /// How often it tried between two moments.
    #[must_use]
    pub fn between(&self, from: Duration, to: Duration) -> usize {
        self.at.iter().filter(|at| (from..=to).contains(*at)).count()
    }
}

/// The clock that both go by.
#[must_use]
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Prober {
    /// From the namespace of an agent, by its own door, to a host.
    ///
    /// # Errors
    /// When Docker fails, or it does not begin.
    pub async fn of_agent(agent: &str, host: &str) -> anyhow::Result<Self> {
        let door = Door::of(agent).await?;
        let network = probe::addresses(agent).await?.into_iter().next().context("the agent is on no network")?.1;
        // The auditor's address there.
        let (subnet, _) = network.rsplit_once('.').context("not an address")?;
        let credential = format!("{}:{}", door.user, door.token);
        Self::start(&format!("container:{agent}"), &[&format!("{subnet}.3"), &door.address, &credential, host]).await
    }

    /// From a network without walls.
    ///
    /// # Errors
    /// As [`Prober::of_agent`].
    pub async fn of_network(network: &str) -> anyhow::Result<Self> {
        Self::start(network, &[NAME_SERVER, "-", "-", "-"]).await
    }

    async fn start(network: &str, [own, door, credential, host]: &[&str; 4]) -> anyhow::Result<Self> {
        let unique = format!("u{}", uuid::Uuid::new_v4().simple());
        let image = probe::image()?;
        let mut all = vec!["run", "-d", "--rm", "--network", network, "--cap-add", "NET_RAW", &image];
        // Also where a test fails and nobody ends it.
        all.extend(["timeout", LONGEST, "python3", "-c", SCRIPT]);
        all.extend([TARGET, NAME_SERVER, own, &unique, door, credential, host]);
        let container = run("docker", &all).await?.ok()?.trim().to_owned();
        let prober = Self { container, unique };
        until("the prober to begin", Duration::from_secs(20), || async {
            Ok((!prober.tries().await?.at.is_empty()).then_some(()))
        })
        .await?;
        Ok(prober)
    }

    /// What it did so far.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn tries(&self) -> anyhow::Result<Tries> {
        let said = run("docker", &["logs", &self.container]).await?.ok()?;
        let at = said.lines().filter_map(|line| line.strip_prefix("tried ")?.parse().ok());
        let at = at.map(Duration::from_secs_f64).collect();
        let through = said.lines().filter_map(|line| line.strip_prefix("through ")).map(str::to_owned).collect();
        Ok(Tries { at, through })
    }

    /// Waits until it has tried everything so many times more.
    ///
    /// # Errors
    /// When it does not.
    pub async fn tries_again(&self, times: usize) -> anyhow::Result<()> {
        let from = now();
        until("further attempts", Duration::from_secs(20), || async {
            Ok((self.tries().await?.between(from, now()) >= times).then_some(()))
        })
        .await
    }

    /// Ends it; what it did.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn end(self) -> anyhow::Result<Tries> {
        let tries = self.tries().await;
        run("docker", &["rm", "-f", &self.container]).await?.ok()?;
        tries
    }
}
