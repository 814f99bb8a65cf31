//! One request through an intercepted tunnel: decide, swap the placeholder, send through Squid, scrub the answer.
//!
//! The order is the point: nothing is connected before a permit exists, the placeholder stands where it has to and the
//! decision is stored; no secret is put in before the host has proven who it is; nothing of the answer is passed on that was not searched.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use assistant_proto::event::Layer;
use assistant_proto::name::TurnId;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use policy::{Carried, Denial, HostPermit, Permit, Target, decide};
use tokio::time::Instant;
use tracing::Instrument;

use crate::account::{Account, Sent, length};
use crate::attempt::Attempt;
use crate::body::{Body, BodyError, bounded};
use crate::framing::Ambiguity;
use crate::journal::{self, Departure};
use crate::refusal::Refusal;
use crate::rewrite::{scrub_body, scrub_headers};
use crate::state::{State, Tier};
use crate::turn::{self, InTurn};
use crate::upstream::{self, UpstreamError};
use crate::{credential, headers, inject, routing};

/// An upstream connection is kept this long for a further request.
const LINK_IDLE: Duration = Duration::from_secs(5);

/// The requests of one tunnel.
#[derive(Debug)]
pub struct Relay {
    state: Arc<State>,
    tier: Arc<Tier>,
    permit: HostPermit,
    /// Whether the tunnel's bytes can be cut into requests in more than one way.
    ambiguity: Ambiguity,
    /// The upstream connection of the last request, while it may be used again.
    link: Mutex<Option<Link>>,
}

#[derive(Debug)]
struct Link {
    sender: SendRequest<Body>,
    /// A connection serves one turn, so that Squid's record of it belongs to that turn.
    turn: Option<TurnId>,
    used: Instant,
}

impl Relay {
    /// For a tunnel that was granted.
    #[must_use]
    pub fn new(state: Arc<State>, tier: Arc<Tier>, permit: HostPermit, ambiguity: Ambiguity) -> Self {
        Self { state, tier, permit, ambiguity, link: Mutex::new(None) }
    }

    /// Answers one request, whatever becomes of it.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let mut attempt = self.begin();
        attempt.asks(request.method(), request.uri());
        attempt.span.record("http.request.method", request.method().as_str());
        let span = attempt.span.clone();
        match self.forward(&attempt, request).instrument(span).await {
            Ok(response) => response,
            Err(refusal) => {
                let mut response = self.state.deny(&attempt, &refusal);
                if self.ambiguity.is_raised() {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        }
    }

    /// An attempt of the tunnel's principal at the tunnel's host, begun now.
    #[must_use]
    pub fn begin(&self) -> Attempt {
        let target = self.permit.target();
        let mut attempt = Attempt::begin(&self.state.turns, &self.tier.name, Layer::Broker, "https", "broker.request");
        attempt.authenticated(self.permit.principal());
        attempt.aims_at(target.host().as_str(), Some(target.port()));
        attempt
    }

    /// Closes an upstream connection that nobody has used for a while. Squid records a connection when it ends, and a
    /// tunnel of the tier may stay open long after its last request.
    pub fn close_idle(&self) {
        let mut link = self.link();
        if link.as_ref().is_some_and(|link| link.sender.is_ready() && link.used.elapsed() > LINK_IDLE) {
            *link = None;
        }
    }

    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forward(&self, attempt: &Attempt, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (parts, incoming) = request.into_parts();
        let request = self.read(attempt, &parts)?;
        let mut outgoing = headers::of_request(parts.headers);
        let body = !incoming.is_end_stream();
        let carried = outgoing.iter().map(|(name, value)| (name.as_str(), value.len()));
        let permit = decide(&self.tier.policy, self.permit.principal(), &request, Carried { body, headers: carried })?;
        attempt.span.record("rule", permit.rule());
        let method = permit.request().method.clone();
        if method.is_read() && body {
            return Err(Refusal::bad_request(
                "body-not-allowed",
                format!("a {method} request with a body is not passed on"),
                "send GET and HEAD without a body",
            ));
        }
        if permit.only_reads() {
            headers::keep_for_reading(&mut outgoing);
        }
        let ready = inject::prepare(&permit, &outgoing, &self.state.secrets)?;
        let recorded = journal::record(&self.state.bus, attempt, &Departure::of_request(&permit)).await?;
        let (mut sender, is_kept) = self.sender(attempt).await.map_err(|error| error.refusal())?;
        let mut within = InTurn::of(&self.state.turns, &self.tier, attempt);
        if within.is_over() {
            return Err(turn::over());
        }

        if let Some(ready) = &ready {
            let secret = ready.inject(&mut outgoing)?;
            self.state.injected(attempt, permit.principal(), secret, permit.request().target.host(), permit.rule());
        }
        let sent = Arc::<Sent>::default();
        let of_body = InTurn::of(&self.state.turns, &self.tier, attempt);
        let body = Counted { inner: bounded(incoming), within: of_body, sent: Arc::clone(&sent) }.boxed_unsync();
        let request = outbound(&permit, outgoing, body)?;
        // From here on the request counts as having left, whatever comes of it.
        let mut account = Account::of_request(&self.state, &self.tier, attempt, &permit, Arc::clone(&sent));
        tracing::info!(rule = permit.rule(), source = permit.source(), method = %method, path = %permit.request().path, "permitted");
        let exchange = async {
            match upstream::send(&mut sender, request, &recorded).await {
                Ok(response) => Ok(response),
                // The kept connection had ended meanwhile and nothing was sent on it: once more on a fresh one. Not where it was
                // fresh: a permit is for one tunnel, and egress-auditor takes a second one for somebody else's.
                Err((_, Some(request))) if is_kept => {
                    sender = self.dial(attempt).await.map_err(|error| {
                        account.left = false;
                        error.refusal()
                    })?;
                    upstream::send(&mut sender, request, &recorded).await.map_err(|(error, _)| error.refusal())
                }
                Err((error, _)) => Err(error.refusal()),
            }
        };
        // Dropping the exchange ends its connection.
        let response = tokio::select! {
            response = exchange => response,
            () = within.over() => Err(turn::cut()),
        };
        account.status = response.as_ref().map_or(0, |response| response.status().as_u16());
        if account.left && (within.is_over() || sent.cut() == Some(turn::OVER)) {
            account.cut = Some(turn::OVER);
            return Err(turn::cut());
        }
        let response = response?;
        let answer = self.answer_from(&permit, response, account)?;
        *self.link() = Some(Link { sender, turn: attempt.turn.turn.clone(), used: Instant::now() });
        Ok(answer)
    }

    /// The request as it is decided on, if its head can be read in one way only and the tier may ask anything now.
    fn read(&self, attempt: &Attempt, parts: &Parts) -> Result<policy::Request, Refusal> {
        if self.ambiguity.is_raised() {
            return Err(headers::conflicting_length());
        }
        headers::check_request(parts.version, &parts.headers)?;
        let target = self.permit.target();
        check_host(parts, target)?;
        if parts.method == Method::CONNECT {
            return Err(policy::MethodError::Connect.denial().into());
        }
        if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
            return Err(Refusal::bad_request(
                "absolute-form-refused",
                "the request names a whole URL where a path belongs",
                "send the path only; the host is the tunnel's",
            ));
        }
        let request =
            policy::Request::parse(target.clone(), parts.method.as_str(), parts.uri.path(), parts.uri.query())
                .map_err(|denial| Refusal::new(StatusCode::BAD_REQUEST, denial))?;
        routing::check(&parts.headers, request.query.as_ref())?;
        self.state.check_turn(&self.tier, attempt)?;
        Ok(request)
    }

    /// The kept connection if it is this turn's and still open, else a new one; and whether it is the kept one.
    async fn sender(&self, attempt: &Attempt) -> Result<(SendRequest<Body>, bool), UpstreamError> {
        let kept = self.link().take();
        if let Some(mut link) = kept
            && link.turn == attempt.turn.turn
            && link.sender.ready().await.is_ok()
        {
            return Ok((link.sender, true));
        }
        Ok((self.dial(attempt).await?, false))
    }

    async fn dial(&self, attempt: &Attempt) -> Result<SendRequest<Body>, UpstreamError> {
        let target = self.permit.target();
        let user = self.tier.name.as_str();
        self.state.upstream.connect(&self.state.tasks, attempt, user, target.host(), target.port()).await
    }

    fn answer_from(
        &self,
        permit: &Permit,
        response: Response<Incoming>,
        account: Account,
    ) -> Result<Response<Body>, Refusal> {
        let (mut parts, incoming) = response.into_parts();
        headers::check_answer(parts.status, &parts.headers)?;
        let bodiless = method_of(permit) == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
        headers::of_answer(&mut parts.headers, bodiless);
        if permit.injection().is_some() {
            let dropped = credential::drop_issued(&mut parts.headers);
            account.attempt().span.record("answer.credentials_dropped", dropped);
        }
        scrub_headers(&self.tier.scrubber, &mut parts.headers);
        let followed = account.follow(bounded(incoming), u64::MAX);
        let mut answer = Response::new(scrub_body(&self.tier.scrubber, followed));
        // The reason phrase and other extensions stay behind: hyper writes the standard phrase of the status.
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = parts.headers;
        Ok(answer)
    }
}

/// `Host` has to be there once and name the tunnel's host (RFC 9110, section 7.4: 421 otherwise).
fn check_host(parts: &Parts, target: &Target) -> Result<(), Refusal> {
    let mut values = parts.headers.get_all(HOST).iter();
    let named = values.next().and_then(|value| value.to_str().ok()).and_then(|text| Target::parse_https(text).ok());
    if values.next().is_none() && named.as_ref() == Some(target) {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::MISDIRECTED_REQUEST,
        Denial::new(
            "host-mismatch",
            format!("a request in the tunnel to {target} names another host, or none, or several"),
            "open a tunnel to the host that the request names",
        ),
    ))
}

/// What is written on the wire: every part from the permit, headers as they were prepared.
fn outbound(permit: &Permit, headers: http::HeaderMap, body: Body) -> Result<Request<Body>, Refusal> {
    let impossible = |what: &'static str| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Denial::new("broker-fault", format!("the permitted {what} cannot be written; this is a bug"), "report it"),
        )
    };
    let uri: Uri = permit.request().origin_form().parse().map_err(|_| impossible("path"))?;
    let host = HeaderValue::from_str(&permit.request().target.host_header()).map_err(|_| impossible("host"))?;
    let mut request = Request::new(body);
    *request.method_mut() = method_of(permit);
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request.headers_mut().insert(HOST, host);
    Ok(request)
}

fn method_of(permit: &Permit) -> Method {
    // `policy::Method` is a subset of what `http::Method` takes.
    Method::from_bytes(permit.request().method.as_str().as_bytes()).unwrap_or_default()
}

/// Counts what a container sends, while its turn lasts, and passes on data only: trailers of requests are nothing a rule
/// has seen.
struct Counted {
    inner: Body,
    within: InTurn,
    sent: Arc<Sent>,
}

impl Counted {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if self.within.poll_over(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyError::TurnOver)));
        }
        loop {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.sent.add(length(&data));
                        return Poll::Ready(Some(Ok(data)));
                    }
                    Err(_trailers) => {}
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let data = ready!(this.poll_data(cx));
        if let Some(why) = data.as_ref().and_then(|data| data.as_ref().err()).and_then(BodyError::cut) {
            this.sent.end(why);
        }
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
