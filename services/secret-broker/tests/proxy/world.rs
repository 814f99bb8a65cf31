//! A broker with one tier, its peers, and a client that speaks like the tier's MCP server.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use assistant_proto::config::{BrokerConfig, Bus};
use assistant_proto::event::TurnStarted;
use assistant_proto::name::TurnId;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secret_broker::identity::Network;
use secret_broker::proxy::serve_proxy;
use secret_broker::state::State;
use serde_json::{Value, json};
use service_kit::host::Context;
use service_kit::task::OnEnd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::peers::{Ca, Gate, Origin};

pub const HOST: &str = "api.allowed.example";
pub const TOKEN: &str = "container-token";
pub const PRINCIPAL: &str = "mcp-tasks-marvin";
/// May only read, at [`HOST`].
pub const AGENT: &str = "zeroclaw-tasks";
pub const AGENT_TOKEN: &str = "agents-token";
pub const SECRET: &str = "r3al/t0ken+with\"odd\\bits==";
pub const PLACEHOLDER: &str = "ASSISTANT-PLACEHOLDER";
pub const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct World {
    pub cx: Context,
    pub state: Arc<State>,
    pub origin: Origin,
    pub gate: Gate,
    /// The proxy on the tier's tools network.
    pub proxy: SocketAddr,
    /// And on its own.
    pub agents_proxy: SocketAddr,
    client_tls: Arc<ClientConfig>,
    _dir: tempfile::TempDir,
}

/// How a world differs from the usual one.
#[derive(Default)]
pub struct Odd {
    pub no_turn: bool,
    pub background: bool,
    pub unknown_origin_ca: bool,
    pub no_secret: bool,
    pub no_gate: bool,
    pub no_bus: bool,
}

pub fn private(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

impl World {
    pub async fn new() -> Self {
        Self::odd(Odd::default()).await
    }

    pub async fn odd(odd: Odd) -> Self {
        let mut cx = Context::detached();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (interception, internet, other) = (Ca::new(), Ca::new(), Ca::new());
        let origin = Origin::start(&cx.tasks, if odd.unknown_origin_ca { &other } else { &internet }, HOST).await;
        let gate = Gate::start(&cx.tasks, origin.address).await;
        std::fs::write(at("ca.pem"), &interception.pem).unwrap();
        std::fs::write(at("roots.pem"), &internet.pem).unwrap();
        private(&at("ca.key"), &interception.key_pem);
        for folder in ["users", "secrets"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        private(&at("users/tasks"), "squid-password");
        if !odd.no_secret {
            private(&at("secrets/marvin_token"), SECRET);
        }
        let squid = if odd.no_gate {
            // A port that was free a moment ago and that nobody else is likely to take.
            TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
        } else {
            gate.address
        };
        let config: BrokerConfig = serde_json::from_value(json!({
            "common": {
                "mode": "drill",
                "bus": {"url": "tls://127.0.0.1:1", "ca_file": "/none", "nkey_seed_file": "/none", "inbox_prefix": "_INBOX_x"},
                "telemetry": {"otlp_endpoint": null, "log_filter": "info"},
                "control_socket": "/none"
            },
            "tiers": [{
                "name": "tasks", "background": odd.background, "confidential": "none", "tier_address": "127.0.0.1", "tools_address": "127.0.0.1",
                "principals": [{
                    "name": PRINCIPAL, "kind": {"mcp-server": "marvin"}, "address": "127.0.0.1",
                    "token_sha256": hex::encode(digest::digest(&digest::SHA256, TOKEN.as_bytes()).as_ref()),
                }, {
                    "name": AGENT, "kind": "agent", "address": "127.0.0.1",
                    "token_sha256": hex::encode(digest::digest(&digest::SHA256, AGENT_TOKEN.as_bytes()).as_ref()),
                }],
                "rules": [{
                    "id": "marvin", "source": "tiers.yaml:31", "principals": [PRINCIPAL], "hosts": [HOST],
                    "methods": ["GET", "POST"], "paths": ["/api/**"], "read_only": false,
                    "inject": {
                        "secret": "marvin_token", "placeholder": PLACEHOLDER,
                        "place": {"header": {"name": "x-api-token", "template": "{}"}}
                    }
                }, {
                    "id": "floor", "source": "tiers.yaml:2", "principals": [AGENT], "hosts": [HOST],
                    "methods": [], "paths": [], "read_only": true, "inject": null
                }],
                "mcp_servers": []
            }],
            "intercept_ca_file": at("ca.pem"), "intercept_ca_key_file": at("ca.key"), "squid": squid,
            "squid_users_dir": at("users"), "secrets_dir": at("secrets"), "upstream_roots": [at("roots.pem")],
            "models": []
        }))
        .unwrap();
        if odd.no_bus {
            // Nobody listens on port 1.
            private(&at("nats.nk"), &nkeys::KeyPair::new_user().seed().unwrap());
            let config = Bus { nkey_seed_file: at("nats.nk"), ca_file: at("ca.pem"), ..config.common.bus.clone() };
            cx.bus = service_kit::bus::Bus::connect("secret-broker", &config).await.unwrap();
        }
        let state = Arc::new(State::open(config, cx.bus.clone(), cx.tasks.clone()).unwrap());
        let (telling, draining) = (Arc::clone(&state), cx.shutdown.draining());
        cx.tasks.spawn("denials", OnEnd::Expected, async move {
            telling.denials.tell(draining).await;
            Ok(())
        });
        if !odd.no_turn {
            state.turns.started(&TurnStarted {
                tier: "tasks".parse().unwrap(),
                turn: TurnId::generate(),
                traceparent: format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap(),
                channel: "terminal".to_owned(),
                conversation: "test".to_owned(),
                started_at: String::new(),
            });
        }
        let mut doors = Vec::new();
        for network in [Network::Tools, Network::Tier] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            doors.push(listener.local_addr().unwrap());
            let tier = Arc::clone(&state.tiers[&"tasks".parse().unwrap()]);
            let serving = serve_proxy(Arc::clone(&state), tier, network, listener, cx.shutdown.draining());
            cx.tasks.spawn("proxy", OnEnd::Expected, serving);
        }

        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(interception.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client_tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (proxy, agents_proxy) = (doors[0], doors[1]);
        Self { cx, state, origin, gate, proxy, agents_proxy, client_tls: Arc::new(client_tls), _dir: dir }
    }

    /// Begins another turn of the tier.
    pub fn next_turn(&self) {
        self.state.turns.started(&TurnStarted {
            tier: "tasks".parse().unwrap(),
            turn: TurnId::generate(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap(),
            channel: "terminal".to_owned(),
            conversation: "test".to_owned(),
            started_at: String::new(),
        });
    }

    pub fn bus(&self) -> &service_kit::bus::Bus {
        &self.cx.bus
    }

    /// Events of one kind so far.
    pub fn events(&self, subject: &str) -> Vec<Value> {
        let subject = format!("{subject}.tasks");
        self.bus().emitted().into_iter().filter(|(name, _)| *name == subject).map(|(_, event)| event).collect()
    }

    /// Waits until there are `count` events of a kind, and returns them.
    pub async fn wait_for(&self, subject: &str, count: usize) -> Vec<Value> {
        let waiting = async {
            while self.events(subject).len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "{subject}: {:?}", self.events(subject));
        self.events(subject)
    }

    /// The only refusal, by its reason; waits for it.
    pub async fn only_denial(&self) -> Value {
        let events = self.wait_for("egress.denied", 1).await;
        assert_eq!(events.len(), 1, "exactly one event per refusal: {events:?}");
        events.into_iter().next().unwrap()
    }

    /// A connection to the proxy from an address.
    pub async fn reach(&self, from: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.proxy).await.unwrap()
    }

    /// Sends a head as it is, and returns connection, status and the rest of the answer (its JSON, for refusals).
    pub async fn say(&self, from: Ipv4Addr, head: &str) -> (TcpStream, u16, Value) {
        say_on(self.reach(from).await, head).await
    }

    /// CONNECT with the container's own credentials.
    pub async fn connect(&self, authority: &str) -> (TcpStream, u16, Value) {
        self.say(Ipv4Addr::LOCALHOST, &connect_head(authority, Some((PRINCIPAL, TOKEN)))).await
    }

    /// CONNECT by the agent, on its own network.
    pub async fn connect_agent(&self, authority: &str) -> (TcpStream, u16, Value) {
        let stream = TcpStream::connect(self.agents_proxy).await.unwrap();
        say_on(stream, &connect_head(authority, Some((AGENT, AGENT_TOKEN)))).await
    }

    /// TLS in a granted tunnel.
    pub async fn tls(&self, stream: TcpStream, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        tokio_rustls::TlsConnector::from(Arc::clone(&self.client_tls)).connect(name, stream).await
    }

    /// A tunnel to the allowed host, ready for requests.
    pub async fn tunnel(&self) -> Tunnel {
        self.tunnel_through(self.connect(&format!("{HOST}:443")).await).await
    }

    /// The same for the agent.
    pub async fn agents_tunnel(&self) -> Tunnel {
        self.tunnel_through(self.connect_agent(&format!("{HOST}:443")).await).await
    }

    async fn tunnel_through(&self, (stream, status, body): (TcpStream, u16, Value)) -> Tunnel {
        assert_eq!(status, 200, "{body}");
        let stream = self.tls(stream, HOST).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.cx.tasks.spawn("client", OnEnd::Expected, async move {
            let ended = connection.await;
            drop(ended);
            Ok(())
        });
        Tunnel(sender)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.cx.shutdown.deadline().cancel();
    }
}

/// A client within a tunnel.
pub struct Tunnel(SendRequest<Full<Bytes>>);

impl Tunnel {
    pub async fn send(&mut self, request: http::request::Builder, body: impl Into<Bytes>) -> Response<Incoming> {
        let request: Request<Full<Bytes>> = request.body(Full::new(body.into())).unwrap();
        self.0.ready().await.unwrap();
        tokio::time::timeout(DEADLINE, self.0.send_request(request)).await.unwrap().unwrap()
    }

    /// A request with the placeholder.
    pub async fn fetch(&mut self, method: &str, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        self.send(usual(method, path), body).await
    }
}

/// A request as the MCP server would send it.
pub fn usual(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header("host", HOST).header("x-api-token", PLACEHOLDER)
}

pub async fn body_of(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

pub async fn json_of(response: Response<Incoming>) -> Value {
    serde_json::from_slice(&body_of(response).await).unwrap()
}

pub fn connect_head(authority: &str, credentials: Option<(&str, &str)>) -> String {
    let authorization = credentials
        .map(|(user, token)| format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{token}"))))
        .unwrap_or_default();
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n")
}

/// What comes until the connection is closed, with or without a farewell.
pub async fn rest_of(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    let reading =
        async { while stream.read_buf(&mut rest).await.is_ok_and(|count| count > 0) && rest.len() < 65_536 {} };
    tokio::time::timeout(DEADLINE, reading).await.unwrap();
    rest
}

async fn say_on(mut stream: TcpStream, head: &str) -> (TcpStream, u16, Value) {
    stream.write_all(head.as_bytes()).await.unwrap();
    let (status, body) = tokio::time::timeout(DEADLINE, answer(&mut stream)).await.unwrap();
    (stream, status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// Reads a head and as much body as it announces.
async fn answer(stream: &mut TcpStream) -> (u16, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (status, body)
}
