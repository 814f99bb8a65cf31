//! A stand for one ingress: the broker's real state, and a stand-in for LiteLLM that speaks plain HTTP/1.1, on loopback.
//! What arrives behind the broker is recorded; that is what tests score by. The real LiteLLM has its tests elsewhere.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistant_proto::config::{BrokerConfig, McpServer, UpstreamModel};
use assistant_proto::event::{TurnEnded, TurnStarted};
use assistant_proto::name::TurnId;
use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use secret_broker::state::{State, Tier};
use serde_json::{Value, json};
use service_kit::bus::Bus;
use service_kit::task::{OnEnd, Tasks};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How long anything may take on a busy machine before a test says it will not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const AGENT_TOKEN: &str = "agent-token-0123456789";
/// LiteLLM's master key.
pub(crate) const MODEL_KEY: &str = "sk-model-key-0123456789abcdef";
/// LiteLLM's container, for tiers without confidentiality.
pub(crate) const LITELLM: &str = "assistant-litellm";

/// A body that a double answers with.
pub(crate) type DoubleBody = BoxBody<Bytes, Infallible>;

/// A request as it arrived at a double.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Arrived {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Everything that arrived at a double, in order.
#[derive(Debug, Clone)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }

    fn push(&self, item: T) {
        self.0.lock().unwrap().push(item);
    }
}

/// What may differ between tests.
pub(crate) struct Setup {
    pub(crate) background: bool,
    pub(crate) key_file: bool,
    pub(crate) bus: bool,
    pub(crate) mcp_servers: Vec<McpServer>,
    /// The tier's class.
    pub(crate) confidential: &'static str,
    /// Classes that have a route. All lead to the stand-in, which none of these tests tells apart.
    pub(crate) routes: &'static [&'static str],
    /// Where LiteLLM is, if not at the stand-in.
    pub(crate) litellm: Option<SocketAddrV4>,
    /// What stands behind the stack's names of models.
    pub(crate) upstream: Vec<UpstreamModel>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            background: true,
            key_file: true,
            bus: true,
            mcp_servers: Vec::new(),
            confidential: "none",
            routes: &["none"],
            litellm: None,
            upstream: Vec::new(),
        }
    }
}

/// The stand itself. Everything ends when it is dropped.
pub(crate) struct Stand {
    pub(crate) dir: TempDir,
    pub(crate) state: Arc<State>,
    pub(crate) tier: Arc<Tier>,
    pub(crate) bus: Bus,
    pub(crate) tasks: Tasks,
    /// Connections that LiteLLM's stand-in was reached by.
    connects: Arc<AtomicUsize>,
    /// Requests that it received.
    pub(crate) upstream: Log<Arrived>,
    draining: CancellationToken,
    stop: CancellationToken,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.draining.cancel();
        self.stop.cancel();
    }
}

impl Stand {
    /// `model` answers what reaches LiteLLM.
    pub(crate) async fn new<F>(setup: Setup, model: F) -> Self
    where
        F: Fn(Arrived) -> Response<DoubleBody> + Send + Sync + 'static,
    {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let at = |name: &str| dir.path().join(name);
        for folder in ["users", "secrets"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        private(&at("users/tasks"), "tasks-password");
        if setup.key_file {
            private(&at("litellm.key"), MODEL_KEY);
        }
        private(&at("wrapper.token"), "wrapper-token");

        let (ca_pem, ca_key) = authority();
        std::fs::write(at("intercept.pem"), &ca_pem).unwrap();
        private(&at("intercept.key"), &ca_key.serialize_pem());

        let upstream = Log::new();
        let (arriving, model) = (upstream.clone(), Arc::new(model));
        let (stand_in, connects) = counting_double(&tasks, move |arrived: Arrived| {
            arriving.push(arrived.clone());
            let answer = model(arrived);
            async move { Some(answer) }
        })
        .await;
        let litellm = setup.litellm.unwrap_or(stand_in);
        let routes: Vec<Value> = setup
            .routes
            .iter()
            .map(|class| {
                json!({
                    "confidential": class, "litellm": litellm, "key_file": at("litellm.key"),
                    "models": ["assistant", "thinker"], "provider": "https://llm.example/v1",
                    "upstream": setup.upstream,
                })
            })
            .collect();

        let config = json!({
            "common": {
                "mode": "drill",
                "bus": {"url": "tls://127.0.0.1:4222", "ca_file": "/none", "nkey_seed_file": "/none", "inbox_prefix": "_INBOX_x"},
                "telemetry": {"otlp_endpoint": null, "log_filter": "info"},
                "control_socket": "/none",
            },
            "tiers": [{
                "name": "tasks",
                "background": setup.background,
                "confidential": setup.confidential,
                "tier_address": "127.0.0.1",
                "tools_address": null,
                "principals": [{
                    "name": "zeroclaw-tasks",
                    "kind": "agent",
                    "address": "127.0.0.1",
                    "token_sha256": hex::encode(digest::digest(&digest::SHA256, AGENT_TOKEN.as_bytes())),
                }],
                "rules": [],
                "mcp_servers": [],
            }],
            "intercept_ca_file": at("intercept.pem"),
            "intercept_ca_key_file": at("intercept.key"),
            // Nobody listens on port 1.
            "squid": "127.0.0.1:1",
            "squid_users_dir": at("users"),
            "secrets_dir": at("secrets"),
            "upstream_roots": [at("intercept.pem")],
            "models": routes,
        });
        let mut config: BrokerConfig = serde_json::from_value(config).unwrap();
        config.tiers[0].mcp_servers = setup.mcp_servers;
        for server in &mut config.tiers[0].mcp_servers {
            server.token_file = at("wrapper.token");
        }
        let bus = if setup.bus {
            Bus::detached()
        } else {
            // Nobody listens on port 1.
            private(&at("nats.nk"), &nkeys::KeyPair::new_user().seed().unwrap());
            let bus = &mut config.common.bus;
            "tls://127.0.0.1:1".clone_into(&mut bus.url);
            bus.ca_file = at("intercept.pem");
            bus.nkey_seed_file = at("nats.nk");
            Bus::connect("secret-broker", bus).await.unwrap()
        };
        let state = Arc::new(State::open(config, bus.clone(), tasks.clone()).unwrap());
        let tier = Arc::clone(state.tiers.values().next().unwrap());
        let (telling, draining) = (Arc::clone(&state), CancellationToken::new());
        let until = draining.clone();
        tasks.spawn("denials", OnEnd::Expected, async move {
            telling.denials.tell(until).await;
            Ok(())
        });
        Self { dir, state, tier, bus, tasks, connects, upstream, draining, stop }
    }

    /// How many connections LiteLLM's stand-in was reached by so far.
    pub(crate) fn connects(&self) -> usize {
        self.connects.load(Ordering::SeqCst)
    }

    /// Serves the model ingress and returns its address.
    pub(crate) async fn models(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = secret_broker::models::serve_models(
            Arc::clone(&self.state),
            Arc::clone(&self.tier),
            listener,
            self.draining.clone(),
        );
        self.tasks.spawn("models", OnEnd::Expected, serving);
        address
    }

    /// Serves the MCP ingress and returns its address.
    pub(crate) async fn mcp(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = secret_broker::mcp::serve_mcp(
            Arc::clone(&self.state),
            Arc::clone(&self.tier),
            listener,
            self.draining.clone(),
        );
        self.tasks.spawn("mcp", OnEnd::Expected, serving);
        address
    }

    /// Begins a turn of the tier.
    pub(crate) fn begin_turn(&self) -> TurnId {
        let turn = TurnId::generate();
        self.state.turns.started(&TurnStarted {
            tier: self.tier.name.clone(),
            turn: turn.clone(),
            traceparent: service_kit::trace::fresh(),
            channel: "terminal".to_owned(),
            conversation: "c".to_owned(),
            started_at: String::new(),
        });
        turn
    }

    /// Ends it.
    pub(crate) fn end_turn(&self, turn: TurnId) {
        self.state.turns.ended(&TurnEnded {
            tier: self.tier.name.clone(),
            turn,
            outcome: "end_turn".to_owned(),
            trace_id: String::new(),
            ended_at: String::new(),
            took_millis: 1,
        });
    }

    /// Bodies of the events of a type so far.
    pub(crate) fn events(&self, subject: &str) -> Vec<Value> {
        self.bus.emitted().into_iter().filter(|(other, _)| other == subject).map(|(_, body)| body).collect()
    }

    /// Waits until `count` refusals are counted, and returns their events.
    pub(crate) async fn wait_for_denials(&self, count: u64) -> Vec<Value> {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let events = self.events("egress.denied.tasks");
                let counted: u64 = events.iter().map(|event| event["count"].as_u64().unwrap()).sum();
                if counted >= count {
                    assert_eq!(counted, count, "each refusal is counted once: {events:?}");
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("no {count} refusals: {:?}", self.bus.emitted()))
    }

    /// Waits until there are `count` events of a type: some are published when a body's last reader lets go of it.
    pub(crate) async fn wait_for_events(&self, subject: &str, count: usize) -> Vec<Value> {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let events = self.events(subject);
                if events.len() >= count {
                    return events;
                }
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("no {count} events {subject}: {:?}", self.bus.emitted()))
    }
}

/// A whole answer of the broker.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends a request on a connection of its own and returns the answer, its body still coming.
pub(crate) async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    driver.detach_all();
    tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap()
}

/// Sends bytes as they are, and returns what comes until the connection is closed.
pub(crate) async fn say(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A peer that has heard enough closes; what it said before is what counts.
    drop(stream.write_all(bytes).await);
    let mut said = Vec::new();
    let reading = async { while stream.read_buf(&mut said).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(2 * PATIENCE, reading).await.unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

/// Says what is no request to an ingress of a stand with nothing refused yet: each time that is answered and counted.
pub(crate) async fn say_what_is_no_request(stand: &Stand, door: SocketAddr, layer: &str) {
    for (index, (bytes, status)) in unreadable().into_iter().enumerate() {
        let answer = say(door, &bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{index}: {answer}");
    }
    for event in stand.wait_for_denials(4).await {
        assert_eq!(
            (&event["reason"], &event["layer"], &event["principal"]),
            (&json!("malformed-request"), &json!(layer), &json!("zeroclaw-tasks"))
        );
    }
}

/// What is no HTTP/1.1 request, or too much of one, with the status it is answered with.
fn unreadable() -> Vec<(Vec<u8>, &'static str)> {
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    vec![
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), "400"),
        (b"GET / HTTP/9.9\r\n\r\n".to_vec(), "400"),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024)).into_bytes(), "431"),
        (format!("GET / HTTP/1.1\r\n{many}\r\n").into_bytes(), "431"),
    ]
}

/// The whole answer to a request.
pub(crate) async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let (head, body) = send(address, request).await.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}

/// A POST of JSON by the agent.
pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("host", "door")
        .header("authorization", format!("Bearer {AGENT_TOKEN}"))
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// Any request, with these headers besides `Host`.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "door");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

/// A double that speaks plain HTTP.
pub(crate) async fn http_double<F, Fut>(tasks: &Tasks, answer: F) -> SocketAddrV4
where
    F: Fn(Arrived) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Response<DoubleBody>>> + Send,
{
    counting_double(tasks, answer).await.0
}

/// The same, with the number of its connections.
async fn counting_double<F, Fut>(tasks: &Tasks, answer: F) -> (SocketAddrV4, Arc<AtomicUsize>)
where
    F: Fn(Arrived) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Response<DoubleBody>>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = v4(&listener);
    let connects = Arc::<AtomicUsize>::default();
    let (answer, spawner, count) = (Arc::new(answer), tasks.clone(), Arc::clone(&connects));
    tasks.spawn("http-double", OnEnd::Expected, async move {
        loop {
            let (stream, _) = listener.accept().await?;
            count.fetch_add(1, Ordering::SeqCst);
            let answer = Arc::clone(&answer);
            spawner.spawn("http-double-connection", OnEnd::Expected, async move {
                let service = service_fn(move |request| {
                    let answer = Arc::clone(&answer);
                    async move { answer(arrived(request).await).await.ok_or(std::io::Error::other("hangs up")) }
                });
                let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                drop(served.await);
                Ok(())
            });
        }
    });
    (address, connects)
}

/// A body of known content.
pub(crate) fn content(bytes: impl Into<Bytes>) -> DoubleBody {
    Full::new(bytes.into()).boxed()
}

async fn arrived(request: Request<Incoming>) -> Arrived {
    let (head, body) = request.into_parts();
    Arrived {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

fn private(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

fn authority() -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), key)
}

pub(crate) fn v4(listener: &TcpListener) -> SocketAddrV4 {
    match listener.local_addr().unwrap() {
        SocketAddr::V4(address) => SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port()),
        SocketAddr::V6(_) => unreachable!("bound to IPv4"),
    }
}
