//! The resolver of every tier and tools network. It answers the zone's few single-label names and refuses everything
//! else; each refusal is counted in an event. There is no upstream: no code here sends a query, so a name a tier asks
//! for cannot leave by DNS whatever it contains.
//!
//! No amplification: an answer is the question plus at most one A record. Each zone listens on the interface of its own
//! network only; who asks is told by address, which the kernel table pins to the port.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assistant_proto::config::Zone;
use assistant_proto::event::Scope;
use assistant_proto::name::PrincipalName;
use service_kit::net;
use service_kit::task::{OnEnd, Tasks};
use service_kit::text;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::denials::{Denials, What, Who};

mod drops;
pub mod message;

use message::{Kind, MOST_QUERY_BYTES, Query};

/// A query that is longer than accepted still needs to be recognised as such.
const UDP_BUFFER: usize = MOST_QUERY_BYTES + 1;
/// Longest name in an event; a DNS name has at most 253 characters before escaping.
const MOST_HOST_CHARS: usize = 253;
/// A TCP client that says nothing for this long is hung up on (RFC 7766, section 6.2.3, leaves it to the server).
const TCP_IDLE: Duration = Duration::from_secs(5);
/// TCP connections at a time: a stub resolver needs one.
const MOST_CONNECTIONS_OF_A_CLIENT: usize = 8;
/// Queries on one TCP connection.
const MOST_QUERIES_OF_A_CONNECTION: usize = 64;

/// What a query gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The answer, unless silence is right.
    pub bytes: Option<Vec<u8>>,
    /// Set when it was refused: why, and the name, harmless and truncated.
    pub refused: Option<(What, String)>,
}

/// The names and clients of one network.
#[derive(Debug)]
pub struct Table {
    tier: Scope,
    names: HashMap<String, Ipv4Addr>,
    clients: BTreeMap<Ipv4Addr, PrincipalName>,
}

impl Table {
    /// From the configuration. Names are compared in lower case.
    #[must_use]
    pub fn new(zone: &Zone) -> Self {
        Self {
            tier: Scope::Tier(zone.tier.clone()),
            names: zone.names.iter().map(|(name, address)| (name.to_ascii_lowercase(), *address)).collect(),
            clients: zone.clients.clone(),
        }
    }

    fn who(&self, source: IpAddr) -> Who {
        let principal = match source {
            IpAddr::V4(address) => self.clients.get(&address).cloned(),
            IpAddr::V6(_) => None,
        };
        Who { tier: self.tier.clone(), principal }
    }

    /// For what cannot be told apart: the tier, and the container where there is only one.
    fn everybody(&self) -> Who {
        let mut clients = self.clients.values();
        let principal = match (clients.next(), clients.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        };
        Who { tier: self.tier.clone(), principal }
    }

    /// Decides one message. Pure.
    #[must_use]
    pub fn decide(&self, known_client: bool, message: &[u8]) -> Reply {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(malformed) => {
                let what = if known_client { What::MalformedQuery } else { What::UnknownClient };
                return Reply { bytes: malformed.response(), refused: Some((what, String::new())) };
            }
        };
        let address = self.names.get(&query.name).copied();
        let (bytes, what) = match (known_client, address, query.kind) {
            (false, _, _) => (query.refuse(), Some(What::UnknownClient)),
            (true, Some(address), Kind::A) => (query.answer(Some(address)), None),
            (true, Some(_), Kind::Aaaa) => (query.answer(None), None),
            (true, Some(_), Kind::Other) => (query.refuse(), Some(What::TypeNotServed)),
            (true, None, _) => (query.refuse(), Some(What::NameNotServed)),
        };
        let name = if query.name.is_empty() { "." } else { &query.name };
        Reply { bytes: Some(bytes), refused: what.map(|what| (what, text::harmless_line(name, MOST_HOST_CHARS))) }
    }
}

/// The sockets of one zone.
#[derive(Debug)]
struct Bound {
    table: Arc<Table>,
    udp: Arc<UdpSocket>,
    tcp: Arc<TcpListener>,
    connections: Connections,
}

/// Every zone's resolver, bound and not yet serving.
#[derive(Debug)]
pub struct Resolver {
    zones: Vec<Bound>,
}

impl Resolver {
    /// Binds UDP and TCP on each zone's address, each on its own interface. `port` is 53 but in tests.
    ///
    /// # Errors
    /// When an address cannot be bound; the message names it.
    pub async fn bind(zones: &[Zone], port: u16) -> io::Result<Self> {
        let mut bound = Vec::with_capacity(zones.len());
        for zone in zones {
            let failed = |error: io::Error| {
                io::Error::new(
                    error.kind(),
                    format!("resolver of tier {} on {}:{port}: {error}", zone.tier, zone.listen),
                )
            };
            bound.push(Bound {
                table: Arc::new(Table::new(zone)),
                udp: Arc::new(net::bind_udp_on_address(zone.listen, port).await.map_err(failed)?),
                tcp: Arc::new(net::bind_tcp_on_address(zone.listen, port).await.map_err(failed)?),
                connections: Connections::default(),
            });
        }
        Ok(Self { zones: bound })
    }

    /// Where it listens: UDP and TCP of each zone.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
        self.zones.iter().map(|zone| Ok((zone.udp.local_addr()?, zone.tcp.local_addr()?))).collect()
    }

    /// Spawns the tasks that serve, until `draining`.
    pub fn serve(self, tasks: &Tasks, draining: &CancellationToken, denials: &Denials) {
        for zone in self.zones {
            let Bound { table, udp, tcp, connections } = zone;
            // A tier has up to two networks; the address tells them apart.
            let place = udp.local_addr().map_or_else(|_| table.tier.as_str().to_owned(), |at| at.ip().to_string());
            if let Ok(SocketAddr::V4(at)) = udp.local_addr() {
                let (socket, who) = (Arc::clone(&udp), table.everybody());
                let (denials, draining) = (denials.clone(), draining.clone());
                tasks.spawn_restarting(format!("dns-drops-{place}"), move || {
                    drops::watch(Arc::clone(&socket), at, who.clone(), denials.clone(), draining.clone())
                });
            }
            {
                let (table, denials, draining) = (Arc::clone(&table), denials.clone(), draining.clone());
                tasks.spawn_restarting(format!("dns-udp-{place}"), move || {
                    serve_udp(Arc::clone(&udp), Arc::clone(&table), denials.clone(), draining.clone())
                });
            }
            let (denials, draining, spawner) = (denials.clone(), draining.clone(), tasks.clone());
            tasks.spawn_restarting(format!("dns-tcp-{place}"), move || {
                let server = TcpServer {
                    table: Arc::clone(&table),
                    denials: denials.clone(),
                    draining: draining.clone(),
                    connections: connections.clone(),
                };
                accept(Arc::clone(&tcp), server, spawner.clone())
            });
        }
    }
}

async fn serve_udp(
    socket: Arc<UdpSocket>,
    table: Arc<Table>,
    denials: Denials,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let mut buffer = [0_u8; UDP_BUFFER];
    loop {
        let (length, source) = tokio::select! {
            received = socket.recv_from(&mut buffer) => received?,
            () = draining.cancelled() => return Ok(()),
        };
        let message = buffer.get(..length).unwrap_or_default();
        if let Some(bytes) = decide(&table, &denials, source.ip(), message) {
            // A client that cannot be answered asks again; waiting for it would let one client stop the others.
            if let Err(error) = socket.try_send_to(&bytes, source) {
                tracing::debug!(%error, "a DNS answer was not sent");
            }
        }
    }
}

fn decide(table: &Table, denials: &Denials, source: IpAddr, message: &[u8]) -> Option<Vec<u8>> {
    let who = table.who(source);
    let reply = table.decide(who.principal.is_some(), message);
    if let Some((what, host)) = reply.refused {
        denials.note(who, what, host, source);
    }
    reply.bytes
}

/// Open TCP connections by client. Strangers count as one client.
#[derive(Debug, Clone, Default)]
struct Connections {
    open: Arc<Mutex<HashMap<Who, usize>>>,
}

/// One open connection; counts until it is dropped.
#[derive(Debug)]
struct Open {
    connections: Connections,
    who: Who,
}

impl Connections {
    fn open(&self, who: &Who) -> Option<Open> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(who.clone()).or_default();
        if *count >= MOST_CONNECTIONS_OF_A_CLIENT {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Open { connections: self.clone(), who: who.clone() })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.who) {
            *count = count.saturating_sub(1);
        }
    }
}

#[derive(Debug)]
struct TcpServer {
    table: Arc<Table>,
    denials: Denials,
    draining: CancellationToken,
    connections: Connections,
}

async fn accept(listener: Arc<TcpListener>, server: TcpServer, tasks: Tasks) -> anyhow::Result<()> {
    loop {
        let (stream, source) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = server.draining.cancelled() => return Ok(()),
        };
        let who = server.table.who(source.ip());
        let Some(open) = server.connections.open(&who) else {
            server.denials.note(who, What::TooManyConnections, String::new(), source.ip());
            continue;
        };
        let (table, denials, draining) = (Arc::clone(&server.table), server.denials.clone(), server.draining.clone());
        tasks.spawn("dns-connection", OnEnd::Expected, async move {
            let _counted_until_the_end = open;
            tokio::select! {
                outcome = converse(stream, &table, &denials, source.ip()) => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a DNS connection ended");
                    }
                }
                () = draining.cancelled() => {}
            }
            Ok(())
        });
    }
}

/// RFC 1035, section 4.2.2: each message behind its length in two octets.
async fn converse(mut stream: TcpStream, table: &Table, denials: &Denials, source: IpAddr) -> io::Result<()> {
    for _ in 0..MOST_QUERIES_OF_A_CONNECTION {
        let mut length = [0_u8; 2];
        timed(stream.read_exact(&mut length)).await?;
        let length = usize::from(u16::from_be_bytes(length));
        if length > MOST_QUERY_BYTES {
            // Not read at all: nothing a resolver is asked is that long.
            denials.note(table.who(source), What::MalformedQuery, String::new(), source);
            return Ok(());
        }
        let mut message = vec![0; length];
        timed(stream.read_exact(&mut message)).await?;
        let Some(bytes) = decide(table, denials, source, &message) else { return Ok(()) };
        let mut framed = u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        timed(stream.write_all(&framed)).await?;
    }
    Ok(())
}

async fn timed<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(TCP_IDLE, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn table() -> Table {
        Table::new(&Zone {
            tier: "tasks".parse().unwrap(),
            listen: Ipv4Addr::LOCALHOST,
            names: [("Models".to_owned(), Ipv4Addr::new(10, 87, 16, 2))].into(),
            clients: [(Ipv4Addr::LOCALHOST, "zeroclaw-tasks".parse().unwrap())].into(),
        })
    }

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            out.push(u8::try_from(label.len()).unwrap());
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&1_u16.to_be_bytes());
        out
    }

    #[test]
    fn only_the_doors_are_answered() {
        // name, type, known client -> rcode, answers, why it was refused
        type Case = (&'static str, u16, bool, u8, u8, Option<What>);
        let table_of_cases: [Case; 11] = [
            ("models", 1, true, 0, 1, None),
            ("MODELS.", 1, true, 0, 1, None),
            ("models", 28, true, 0, 0, None),
            ("models", 16, true, 5, 0, Some(What::TypeNotServed)),
            ("models", 255, true, 5, 0, Some(What::TypeNotServed)),
            ("models.example", 1, true, 5, 0, Some(What::NameNotServed)),
            ("x.models", 1, true, 5, 0, Some(What::NameNotServed)),
            ("secret-broker", 1, true, 5, 0, Some(What::NameNotServed)),
            ("c2VjcmV0.evil.example", 16, true, 5, 0, Some(What::NameNotServed)),
            ("", 2, true, 5, 0, Some(What::NameNotServed)),
            ("models", 1, false, 5, 0, Some(What::UnknownClient)),
        ];
        let table = table();
        for (name, kind, known, rcode, answers, refused) in table_of_cases {
            let message = query(name, kind);
            let reply = table.decide(known, &message);
            let bytes = reply.bytes.unwrap();
            assert_eq!((bytes[3] & 15, bytes[7]), (rcode, answers), "{name} {kind}");
            assert_eq!(reply.refused.map(|(what, _)| what), refused, "{name} {kind}");
            assert!(bytes.len() <= message.len() + 16, "{name} {kind}");
        }
        assert_eq!(table.decide(true, &query("", 1)).refused, Some((What::NameNotServed, ".".to_owned())));
        assert_eq!(table.decide(true, &query("A.Example", 1)).refused.unwrap().1, "a.example");
        let malformed = table.decide(true, &[0; 12]);
        assert_eq!(malformed.refused, Some((What::MalformedQuery, String::new())));
        assert_eq!(table.decide(true, b"x"), Reply { bytes: None, ..malformed });
    }

    #[test]
    fn connections_are_counted_until_they_end() {
        let (connections, table) = (Connections::default(), table());
        let (agent, stranger) = (table.who(Ipv4Addr::LOCALHOST.into()), table.who(Ipv4Addr::new(127, 0, 0, 9).into()));
        let held: Vec<_> = (0..MOST_CONNECTIONS_OF_A_CLIENT).map(|_| connections.open(&agent).unwrap()).collect();
        assert!(connections.open(&agent).is_none());
        assert!(connections.open(&stranger).is_some());
        drop(held);
        assert!(connections.open(&agent).is_some());
    }
}
