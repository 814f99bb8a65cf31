//! The HTTPS proxy as a tier sees it: `CONNECT host:443` with the container's own credentials, and nothing else.
//!
//! It authenticates, decides whether any rule leads to the host, and hands the tunnel to `intercept`. It forwards
//! nothing itself: there is no way through here that is not looked into.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assistant_proto::event::Layer;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use policy::{HostPermit, Target, TargetError, decide_host};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::body::{self, Body};
use crate::identity::{ListenerId, Network};
use crate::intercept;
use crate::listener::{self, Door};
use crate::refusal::Refusal;
use crate::state::{State, Tier};

/// From the answer to CONNECT to the connection being free for the tunnel.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);

/// A tunnel that was granted and has not begun.
struct Tunnel {
    permit: HostPermit,
    attempt: Attempt,
    upgrade: OnUpgrade,
}

/// What one connection of the proxy needs to know.
struct Conversation {
    state: Arc<State>,
    tier: Arc<Tier>,
    id: ListenerId,
    peer: SocketAddr,
    tunnel: Mutex<Option<Tunnel>>,
}

/// Serves the proxy on one network of a tier until `draining`.
///
/// # Errors
/// Never by itself.
pub async fn serve_proxy(
    state: Arc<State>,
    tier: Arc<Tier>,
    network: Network,
    listener: TcpListener,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let id = ListenerId { tier: tier.name.clone(), network };
    let door = Door { id: id.clone(), layer: Layer::Broker, protocol: "https", task: "proxy-connection" };
    let stop = draining.clone();
    listener::accept(Arc::clone(&state), Arc::clone(&tier), listener, door, draining, move |stream, peer| {
        let conversation = Conversation {
            state: Arc::clone(&state),
            tier: Arc::clone(&tier),
            id: id.clone(),
            peer,
            tunnel: Mutex::new(None),
        };
        Arc::new(conversation).run(stream, stop.clone())
    })
    .await
}

impl Conversation {
    /// The HTTP part, then the tunnel if one was granted; both in one task, so that the connection permit covers both.
    async fn run(self: Arc<Self>, stream: TcpStream, draining: CancellationToken) -> anyhow::Result<()> {
        let answering = Arc::clone(&self);
        let service = service_fn(move |request| {
            let answering = Arc::clone(&answering);
            async move { Ok::<_, Infallible>(answering.answer(request)) }
        });
        let outcome = {
            let mut connection =
                pin!(listener::http1().serve_connection(TokioIo::new(stream), service).with_upgrades());
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = draining.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        };
        if let Err(error) = &outcome {
            self.count_unreadable(error);
        }
        let tunnel = self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Tunnel { permit, attempt, upgrade }) = tunnel else { return Ok(()) };
        let upgraded = match timeout(UPGRADE_DEADLINE, upgrade).await {
            Ok(Ok(upgraded)) => upgraded,
            Ok(Err(error)) => {
                tracing::debug!(%error, "peer left before its tunnel began");
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        intercept::run(&self.state, &self.tier, permit, attempt, upgraded, draining).await
    }

    /// Bytes that are no HTTP/1.1 request have been answered by hyper; they are counted here.
    fn count_unreadable(&self, error: &hyper::Error) {
        if !error.is_parse() {
            tracing::debug!(%error, "proxy connection ended");
            return;
        }
        let refusal = unreadable(error);
        self.state.count_denied(&self.begin(), &refusal);
    }

    fn begin(&self) -> Attempt {
        let mut attempt = Attempt::begin(&self.state.turns, &self.tier.name, Layer::Broker, "https", "broker.connect");
        if let Some(principal) = self.state.directory.at(&self.id, self.peer) {
            attempt.authenticated(&principal.name);
        }
        attempt
    }

    fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let mut attempt = self.begin();
        match self.grant(&mut attempt, &mut request) {
            Ok(permit) => {
                let upgrade = hyper::upgrade::on(&mut request);
                *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tunnel { permit, attempt, upgrade });
                Response::new(body::empty())
            }
            Err(refusal) => self.state.deny(&attempt, &refusal),
        }
    }

    fn grant(&self, attempt: &mut Attempt, request: &mut Request<Incoming>) -> Result<HostPermit, Refusal> {
        let uri = request.uri();
        // Known before anything is believed, so that every event says where it wanted to go; without the user part, which
        // may be a credential.
        let asked = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        attempt.aims_at(uri.host().unwrap_or_default(), uri.port_u16());
        attempt.asks(request.method(), uri);
        attempt.span.record("http.request.method", request.method().as_str());
        let principal = self.state.authenticate_proxy(&self.id, self.peer, request.headers())?;
        attempt.authenticated(&principal.name);
        if request.method() != Method::CONNECT {
            return Err(not_a_tunnel(request));
        }
        if uri.scheme().is_some() || uri.path_and_query().is_some() {
            return Err(Refusal::bad_request(
                "malformed-connect",
                "CONNECT was not sent for host:port",
                "send CONNECT host:443",
            ));
        }
        if request.headers().contains_key(TRANSFER_ENCODING)
            || request.headers().get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
        {
            return Err(Refusal::bad_request(
                "malformed-connect",
                "CONNECT came with a body",
                "send CONNECT without a body",
            ));
        }
        let target = Target::parse_authority(asked).map_err(malformed)?;
        attempt.aims_at(target.host().as_str(), Some(target.port()));
        check_host_header(request, &target)?;
        self.state.check_turn(&self.tier, attempt)?;
        Ok(decide_host(&self.tier.policy, &principal.name, &target)?)
    }
}

/// What is said to bytes that are no request.
pub(crate) fn unreadable(error: &hyper::Error) -> Refusal {
    let detail = if error.is_parse_too_large() {
        "the head of the request is larger than allowed"
    } else {
        "what came is not an HTTP/1.1 request"
    };
    Refusal::bad_request("malformed-request", detail, "send plain HTTP/1.1")
}

fn malformed(error: TargetError) -> Refusal {
    let denial = error.denial();
    Refusal::bad_request(denial.reason, denial.detail, denial.fix)
}

fn not_a_tunnel(request: &Request<Incoming>) -> Refusal {
    match request.uri().scheme_str() {
        Some("http") => Refusal::forbidden(
            "cleartext-refused",
            "plain http:// is not forwarded: nobody could vouch for what comes back",
            "use https://",
        ),
        Some(_) => Refusal::bad_request(
            "absolute-form-refused",
            "the proxy does not fetch URLs; it opens tunnels",
            "send CONNECT host:443 and speak TLS in the tunnel",
        ),
        None => Refusal::bad_request(
            "not-a-proxy-request",
            "this is a proxy, not a web server",
            "use it as HTTPS_PROXY; send CONNECT host:443",
        ),
    }
}

/// A CONNECT may have a `Host`; it then names what CONNECT names.
fn check_host_header(request: &Request<Incoming>, target: &Target) -> Result<(), Refusal> {
    let same = request.headers().get_all(HOST).iter().all(|value| {
        value
            .to_str()
            .ok()
            .and_then(|text| Target::parse_https(text).ok())
            .is_some_and(|host| host.host() == target.host())
    });
    if same {
        Ok(())
    } else {
        Err(Refusal::bad_request(
            "host-mismatch",
            "Host and CONNECT name different hosts",
            "leave Host out, or name the same host",
        ))
    }
}
