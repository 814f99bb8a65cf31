//! From an attempt that is refused to its event at a subscriber of NATS, by way of the operator's own context: what
//! `nats sub 'egress.denied.>'` uses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use assistant_proto::event::EgressDenied;
use assistant_tests::harness::TIER;
use assistant_tests::harness::place::Place;
use futures::StreamExt;
use serde_json::Value;
use service_kit::task::{OnEnd, Tasks};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::request::connect;
use super::stack::Stack;

/// For an event; the product promises a second.
const DEADLINE: Duration = Duration::from_secs(10);
/// For an attempt that nobody answers: enough for its packet to leave.
const SILENCE: Duration = Duration::from_millis(20);
/// Denials between two looks at them; other tests may cause some too.
const CAPACITY: usize = 4096;

/// Where an attempt dies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wall {
    /// CONNECT for a host that no rule names.
    Broker,
    /// The same at Squid, as if the broker had been taken over.
    Squid,
    /// A name.
    Dns,
    /// A SYN to an address.
    Kernel,
}

/// All walls, with what stands in the table.
pub(crate) const WALLS: [(Wall, &str); 4] = [
    (Wall::Broker, "broker: CONNECT to a host that is not allowed"),
    (Wall::Dns, "DNS: a name that is not a door"),
    (Wall::Kernel, "kernel table: a SYN to TEST-NET-3"),
    (Wall::Squid, "Squid: the same CONNECT past the broker"),
];

/// Subscribed to all denials.
#[derive(Debug)]
pub(crate) struct Subscriber {
    denials: mpsc::Receiver<(Instant, String)>,
    attempts: u16,
}

impl Subscriber {
    /// Subscribes, as the operator.
    ///
    /// # Errors
    /// When the operator's context is missing or NATS cannot be reached.
    pub(crate) async fn start(tasks: &Tasks) -> anyhow::Result<Self> {
        let settings: Value = serde_json::from_str(&std::fs::read_to_string("/etc/assistant/supervisor.json")?)?;
        let home = settings.pointer("/operator/home").and_then(Value::as_str).context("no home of the operator")?;
        let context = Path::new(home).join(".config/nats/context/assistant.json");
        let context: Value =
            serde_json::from_str(&std::fs::read_to_string(&context).with_context(|| context.display().to_string())?)?;
        let field = |name: &str| {
            context
                .get(name)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .with_context(|| format!("no {name} in the context"))
        };
        let seed = std::fs::read_to_string(field("nkey")?)?.trim().to_owned();
        let client = async_nats::ConnectOptions::with_nkey(seed)
            .add_root_certificates(PathBuf::from(field("ca")?))
            .require_tls(true)
            .custom_inbox_prefix(field("inbox_prefix")?)
            .connect(field("url")?)
            .await?;
        let mut subscription = client.subscribe("egress.denied.>").await?;
        client.flush().await?;
        let (tell, denials) = mpsc::channel(CAPACITY);
        tasks.spawn("denials", OnEnd::Expected, async move {
            while let Some(message) = subscription.next().await {
                let seen = Instant::now();
                let event: EgressDenied = serde_json::from_slice(&message.payload)?;
                if tell.send((seen, event.host)).await.is_err() {
                    break;
                }
            }
            // The subscription ends with its client.
            drop(client);
            Ok(())
        });
        Ok(Self { denials, attempts: 0 })
    }

    /// One attempt after the other, each waited for.
    ///
    /// # Errors
    /// When an attempt causes no event.
    pub(crate) async fn measure(&mut self, stack: &Stack, wall: Wall, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            self.attempts = self.attempts.wrapping_add(1);
            let (began, host) = attempt(stack, wall, self.attempts).await?;
            let seen = timeout(DEADLINE, self.wait(&host)).await;
            times.push(seen.with_context(|| format!("no event for {host}"))??.saturating_duration_since(began));
        }
        Ok(times)
    }

    async fn wait(&mut self, host: &str) -> anyhow::Result<Instant> {
        loop {
            let (seen, denied) = self.denials.recv().await.context("the subscription ended")?;
            if denied.trim_end_matches('.') == host {
                return Ok(seen);
            }
        }
    }
}

/// Makes an attempt at a host that was not tried before: equal attempts are counted in one event.
async fn attempt(stack: &Stack, wall: Wall, number: u16) -> anyhow::Result<(Instant, String)> {
    let name = format!("bench-{}-{number}.drill.example", std::process::id());
    match wall {
        Wall::Broker => {
            let (proxy, user) = (stack.tools_proxy(), stack.principal()?);
            Ok((connect_refused(&stack.server, proxy, user, name.clone()).await?, name))
        }
        Wall::Squid => {
            let (proxy, user) = (stack.squid_proxy(), stack.squid_user(TIER)?);
            Ok((connect_refused(&stack.broker, proxy, user, name.clone()).await?, name))
        }
        Wall::Dns => {
            let server = SocketAddrV4::new(stack.auditor.address(&format!("tier-{TIER}")).await?, 53);
            let query = query(number, &name);
            let work = move || async move {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
                let began = Instant::now();
                socket.send_to(&query, server).await?;
                Ok(began)
            };
            Ok((stack.agent.run(work).await?, name))
        }
        Wall::Kernel => {
            let [_, last] = number.to_be_bytes();
            let address = Ipv4Addr::new(203, 0, 113, last);
            let work = move || async move {
                let began = Instant::now();
                let opened = timeout(SILENCE, TcpStream::connect((address, 443))).await;
                anyhow::ensure!(!matches!(opened, Ok(Ok(_))), "{address} was reached");
                Ok(began)
            };
            Ok((stack.agent.run(work).await?, address.to_string()))
        }
    }
}

async fn connect_refused(place: &Place, proxy: SocketAddrV4, user: String, host: String) -> anyhow::Result<Instant> {
    let work = move || async move {
        let began = Instant::now();
        let mut stream = TcpStream::connect(proxy).await?;
        // Squid refuses by closing the connection.
        let status = timeout(DEADLINE, connect(&mut stream, &host, &user)).await.context("no answer")?;
        anyhow::ensure!(!status.is_ok_and(|status| status == "200"), "{host} was let through");
        Ok(began)
    };
    place.run(work).await
}

/// A question for an A record.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or_default());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}
