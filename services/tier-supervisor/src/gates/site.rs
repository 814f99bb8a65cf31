//! A site: takes connections, asks of each request for whom it is, who sent it and whether they have logged in, and only
//! then lets it through.

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use http::header::{COOKIE, HeaderMap, HeaderValue, LOCATION, SET_COOKIE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use service_kit::task::{OnEnd, Tasks};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Admitted, SESSION_SECONDS};
use super::forward::{self, Body, Ending, forward};
use super::judge::{self, Names, Verdict};
use super::page;
use super::sockets;
use super::told::now;
use crate::desired::Upstream;

/// How long the head of a request may take, and a connection be idle.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// A request's head.
const MOST_HEAD: usize = 32 << 10;
const MOST_HEADERS: usize = 100;
/// Cookies of our name that are looked at. A page on another port of this name can set more.
const MOST_COOKIES: usize = 8;
/// Where tickets are used; every site has these two paths, and what is behind it does not.
const LOG_IN: &str = "/login";
const LOG_OUT: &str = "/logout";

/// One site.
#[derive(Debug)]
pub(super) struct Site {
    names: Names,
    /// Cookies know no port, so that each site's has a name of its own.
    cookie: String,
    upstream: Upstream,
    admission: Arc<Admission>,
    tasks: Tasks,
    /// How the program is called that prints links.
    program: String,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddrV4,
    /// Our end.
    pub(super) gate: SocketAddrV4,
    /// Its place among the connections; also of what a connection turns into.
    pub(super) place: Arc<OwnedSemaphorePermit>,
    /// Cancelled when the gate closes.
    pub(super) stop: CancellationToken,
}

impl Peer {
    /// The user of this VM whose program it is.
    async fn user(&self) -> Option<u32> {
        let (client, gate) = (self.address, self.gate);
        // On a large machine the kernel's table takes a while to read.
        tokio::task::spawn_blocking(move || sockets::whose(client, gate)).await.ok().flatten()
    }
}

impl Site {
    pub(super) fn new(name: &str, port: u16, upstream: Upstream, admission: Arc<Admission>, tasks: Tasks) -> Self {
        let program = std::env::current_exe().map(|path| path.display().to_string());
        Self {
            names: Names::new(name, port),
            cookie: format!("assistant-{name}"),
            upstream,
            admission,
            tasks,
            program: program.unwrap_or_else(|_| "tier-supervisor".to_owned()),
        }
    }

    /// Serves one connection to its end.
    pub(super) async fn serve<C>(self: Arc<Self>, client: C, peer: Peer)
    where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let answers = service_fn(move |request| {
            let (site, peer) = (Arc::clone(&self), peer.clone());
            async move { Ok::<_, Infallible>(site.answer(request, peer).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_header_size(MOST_HEAD)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(client), answers)
            .with_upgrades();
        // A browser that breaks off is nobody's concern.
        drop(connection.await);
    }

    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        match self.refusal(&request) {
            Some(refusal) => dressed(refusal),
            None => self.admitted(request, peer).await,
        }
    }

    /// Whether it is refused for whom it is for, or for who made the browser send it.
    fn refusal(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        match judge::address(&self.names, request) {
            Verdict::Fine => {}
            Verdict::Redirect(to) => return Some(redirect(StatusCode::TEMPORARY_REDIRECT, &to)),
            Verdict::Refuse(status, why) => return Some(page::refused(status, why)),
        }
        if forward::is_ambiguous(request.headers()) {
            return Some(page::refused(StatusCode::BAD_REQUEST, "The request says in two ways how long it is."));
        }
        judge::sender(&self.names, request).map(|why| page::refused(StatusCode::FORBIDDEN, why))
    }

    async fn admitted(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let name = &self.names.name;
        if request.uri().path() == LOG_IN
            && request.method() == Method::GET
            && let Some(ticket) = ticket(request.uri().query())
        {
            return dressed(self.log_in(&request, ticket, &peer).await);
        }
        let Some(admitted) = self.session(request.headers(), &peer).await else {
            return dressed(page::log_in(name, &self.program, None));
        };
        match (request.uri().path(), request.method()) {
            (LOG_IN, _) => dressed(redirect(StatusCode::SEE_OTHER, "/")),
            (LOG_OUT, &Method::POST) => {
                self.admission.log_out(admitted.hash);
                let mut response = dressed(page::logged_out(name, &self.program));
                set_cookie(&mut response, &format!("{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", self.cookie));
                response
            }
            (LOG_OUT, _) => dressed(page::log_out(name)),
            _ => self.let_through(request, peer, &admitted).await,
        }
    }

    async fn session(&self, headers: &HeaderMap, peer: &Peer) -> Option<Admitted> {
        let values = cookies(headers, &self.cookie);
        if values.is_empty() {
            return None;
        }
        let user = peer.user().await?;
        self.admission.admit(&self.names.name, &values, user, now())
    }

    async fn log_in(&self, request: &Request<Incoming>, ticket: &str, peer: &Peer) -> Response<Body> {
        let refused = |why| page::log_in(&self.names.name, &self.program, Some(why));
        let Some(user) = peer.user().await else {
            return refused("It cannot be told whose browser this is. Open the link again.");
        };
        let Some(cookie) = self.admission.log_in(&self.names.name, ticket, user, now()) else {
            return refused("This link was used before, is older than ten minutes, or is for another page.");
        };
        let mut response = match judge::came_from_elsewhere(request.headers()) {
            true => page::go_on(&self.names.name),
            false => redirect(StatusCode::SEE_OTHER, "/"),
        };
        let cookie = format!("{}={cookie}; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS}", self.cookie);
        set_cookie(&mut response, &cookie);
        response
    }

    async fn let_through(&self, mut request: Request<Incoming>, peer: Peer, admitted: &Admitted) -> Response<Body> {
        let method = request.method().clone();
        let websocket = judge::is_websocket(&request);
        let browser = websocket.then(|| hyper::upgrade::on(&mut request));
        let ending = || ending(admitted);
        let forwarded = forward(&self.upstream, &self.names, &self.tasks, request, websocket, ending).await;
        let mut answer = match forwarded {
            Ok(answer) => answer,
            Err(why) => {
                tracing::debug!(site = %self.names.name, %why, "no answer");
                return dressed(page::nobody(&self.names.name, &self.program, why.status(), &why.to_string()));
            }
        };
        let switches = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        match (switches, browser) {
            (false, _) => forward::answer(&method, answer, false, ending()),
            (true, Some(browser)) => {
                let upstream = hyper::upgrade::on(&mut answer);
                self.join(browser, upstream, peer, ending());
                forward::answer(&method, answer, true, ending())
            }
            (true, None) => {
                let why = "speaks a protocol that nobody asked for";
                dressed(page::nobody(&self.names.name, &self.program, StatusCode::BAD_GATEWAY, why))
            }
        }
    }

    /// Copies a WebSocket both ways until either end, or its session, ends.
    fn join(&self, browser: OnUpgrade, upstream: OnUpgrade, peer: Peer, ending: Ending) {
        self.tasks.spawn("gate-websocket", OnEnd::Expected, async move {
            let copy = async {
                let (Ok(browser), Ok(upstream)) = tokio::join!(browser, upstream) else { return };
                let (mut browser, mut upstream) = (TokioIo::new(browser), TokioIo::new(upstream));
                // How it ended is told to both by the way it closes.
                drop(tokio::io::copy_bidirectional(&mut browser, &mut upstream).await);
            };
            tokio::select! {
                () = copy => {}
                () = ending => {}
                () = peer.stop.cancelled() => {}
            }
            drop(peer.place);
            Ok(())
        });
    }
}

/// Ends when the session does.
fn ending(admitted: &Admitted) -> Ending {
    let ended = admitted.ended.clone();
    let left = Duration::from_secs(admitted.expires.saturating_sub(now()));
    Box::pin(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = tokio::time::sleep(left) => {}
        }
    })
}

/// The ticket of a query, if it has one.
fn ticket(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("ticket="))
}

/// The values of a cookie.
fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(named, _)| *named == name).map(|(_, value)| value).take(MOST_COOKIES).collect()
}

fn redirect(status: StatusCode, to: &str) -> Response<Body> {
    let never = |never: Infallible| match never {};
    let mut response = Response::new(Empty::new().map_err(never).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(to) = HeaderValue::from_str(to) {
        headers.insert(LOCATION, to);
    }
    response
}

fn set_cookie(response: &mut Response<Body>, cookie: &str) {
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
}

/// A page of ours as it goes out. What was not read of the request is not waited for.
fn dressed(mut response: Response<Body>) -> Response<Body> {
    forward::dress(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_finish_a_head_is_not_waited_for() {
        let upstream = Upstream::Unix("/nonexistent".into());
        let admission = Arc::new(Admission::new(|_| ()));
        let site = Arc::new(Site::new("tasks", 3001, upstream, admission, Tasks::default()));
        let gate = "127.0.0.1:3001".parse().unwrap();
        for sent in ["", "GET / HTTP/1.1\r\nHost: tasks.loc"] {
            let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            let peer = Peer { address: gate, gate, place: Arc::new(place), stop: CancellationToken::new() };
            let (mut browser, ours) = tokio::io::duplex(4096);
            let began = tokio::time::Instant::now();
            let serving = Arc::clone(&site).serve(ours, peer);
            let asks = async {
                browser.write_all(sent.as_bytes()).await.unwrap();
                let mut said = Vec::new();
                while let Ok(read @ 1..) = browser.read_buf(&mut said).await {
                    assert_ne!(read, 0);
                }
            };
            let both = async { tokio::join!(serving, asks) };
            tokio::time::timeout(HEAD_WITHIN * 4, both).await.unwrap_or_else(|_| panic!("{sent:?} is waited for"));
            assert!(began.elapsed() <= HEAD_WITHIN + Duration::from_secs(1), "{sent:?}: {:?}", began.elapsed());
        }
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let mut headers = HeaderMap::new();
        for line in
            ["assistant-tasks=a; x=assistant-tasks=b;assistant-tasks=c=d", "assistant-tasks2=e; assistant-tasks=f"]
        {
            headers.append(COOKIE, HeaderValue::from_static(line));
        }
        assert_eq!(cookies(&headers, "assistant-tasks"), ["a", "c=d", "f"]);
        for _ in 0..100 {
            headers.append(COOKIE, HeaderValue::from_static("assistant-tasks=z"));
        }
        assert_eq!(cookies(&headers, "assistant-tasks").len(), MOST_COOKIES);
    }

    #[test]
    fn a_ticket_is_a_parameter_of_its_own() {
        assert_eq!(ticket(Some("ticket=a")), Some("a"));
        assert_eq!(ticket(Some("x=y&ticket=a&ticket=b")), Some("a"));
        assert_eq!(ticket(Some("notticket=a")), None);
        assert_eq!(ticket(None), None);
    }
}
