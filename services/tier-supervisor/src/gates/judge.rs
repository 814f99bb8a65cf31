//! What a request may be, before anybody asks who sent it: for which site it is, and which page made the browser send it.
//! Pure.
//!
//! Three kinds of people are at work here. A page of somebody else's, whose name was made to lead to 127.0.0.1 (DNS
//! rebinding), sends its own name as Host. A page of somebody else's that sends a request to a site of ours (cross-site
//! request forgery, WebSockets included) has another origin, and a browser says so. And whoever serves another port of
//! this VM gets cookies of the same host name, because cookies know no port; for that see [`super::sockets::whose`].

use http::header::{CONNECTION, HOST, ORIGIN, UPGRADE};
use http::{HeaderMap, Method, Request, StatusCode, Version};

const SEC_FETCH_SITE: &str = "sec-fetch-site";
const SEC_FETCH_MODE: &str = "sec-fetch-mode";
const SEC_FETCH_DEST: &str = "sec-fetch-dest";

/// The names of a site.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// `tasks`
    pub(super) name: String,
    /// `tasks.localhost:3001`, the one Host.
    pub(super) authority: String,
    /// `http://tasks.localhost:3001`
    pub(super) origin: String,
    /// What is only redirected: `localhost:3001`, `127.0.0.1:3001`.
    elsewhere: [String; 2],
}

impl Names {
    pub(super) fn new(name: &str, port: u16) -> Self {
        let authority = format!("{name}.localhost:{port}");
        Self {
            name: name.to_owned(),
            origin: format!("http://{authority}"),
            authority,
            elsewhere: [format!("localhost:{port}"), format!("127.0.0.1:{port}")],
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is for this site, and of it.
    Fine,
    /// It is for this port by another name: to be sent to the site.
    Redirect(String),
    /// No.
    Refuse(StatusCode, &'static str),
}

/// Whether a request asks for a WebSocket.
pub(super) fn is_websocket<B>(request: &Request<B>) -> bool {
    let named = |name, wanted: &str| {
        let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && named(CONNECTION, "upgrade")
        && named(UPGRADE, "websocket")
}

/// Judges the request line and Host. Without a session nothing else is looked at.
pub(super) fn address<B>(names: &Names, request: &Request<B>) -> Verdict {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    // A browser asks a server for a path. What names a host besides could be read in two ways.
    if request.method() == Method::CONNECT || request.uri().authority().is_some() || request.uri().scheme().is_some() {
        return Verdict::Refuse(BAD, "This is not a proxy.");
    }
    let Some(path) = request.uri().path_and_query().filter(|path| path.as_str().starts_with('/')) else {
        return Verdict::Refuse(BAD, "The request names no path.");
    };
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Verdict::Refuse(BAD, "The request names no host, or several.");
    };
    if host == names.authority.as_str() {
        return Verdict::Fine;
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD) && !is_websocket(request);
    if reads && names.elsewhere.iter().any(|elsewhere| host == elsewhere.as_str()) {
        return Verdict::Redirect(format!("{}{path}", names.origin));
    }
    Verdict::Refuse(StatusCode::MISDIRECTED_REQUEST, "Nothing is served here under that name.")
}

/// Judges which page made the browser send this. `None`: a page of the site itself, or nobody but the person at the
/// browser.
pub(super) fn sender<B>(names: &Names, request: &Request<B>) -> Option<&'static str> {
    const FOREIGN: &str = "Another page sent this request.";
    let headers = request.headers();
    let one = |name: &str| -> Result<Option<&str>, &'static str> {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map(Some).map_err(|_| FOREIGN),
            (Some(_), Some(_)) => Err(FOREIGN),
        }
    };
    let judge = || -> Result<(), &'static str> {
        let origin = one(ORIGIN.as_str())?;
        if origin.is_some_and(|origin| origin != names.origin) {
            return Err(FOREIGN);
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let websocket = is_websocket(request);
        match one(SEC_FETCH_SITE)? {
            // Older browsers do not say; the cookie, which no other site's request carries, has to do.
            None | Some("same-origin") => {}
            // Typed, or opened from outside of the browser.
            Some("none") if reads && !websocket => {}
            // A link somewhere that was followed: the page may be shown, as any page, in a window of its own.
            Some("cross-site" | "same-site") if reads && !websocket && is_navigation(headers) => {}
            Some(_) => return Err(FOREIGN),
        }
        // Whatever does something must come from a page, and name it: every browser does.
        if (!reads || websocket) && origin.is_none() {
            return Err("A request of this kind must say which page sent it (Origin).");
        }
        Ok(())
    };
    judge().err()
}

/// Into a window or tab, not into a frame.
fn is_navigation(headers: &HeaderMap) -> bool {
    let is = |name, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    is(SEC_FETCH_MODE, "navigate") && is(SEC_FETCH_DEST, "document")
}

/// Whether another page led the browser here; then its next request does not carry the cookie.
pub(super) fn came_from_elsewhere(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_some_and(|site| site != "none" && site != "same-origin")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn names() -> Names {
        Names::new("tasks", 3001)
    }

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn one_host_is_served_and_two_are_sent_there() {
        let judged = |host: &str| address(&names(), &request("GET", "/a?b", &[("host", host)]));
        assert_eq!(judged("tasks.localhost:3001"), Verdict::Fine);
        for host in ["localhost:3001", "127.0.0.1:3001"] {
            assert_eq!(judged(host), Verdict::Redirect("http://tasks.localhost:3001/a?b".to_owned()), "{host}");
            // What does something is not repeated elsewhere.
            let posted = address(&names(), &request("POST", "/", &[("host", host)]));
            assert!(matches!(posted, Verdict::Refuse(StatusCode::MISDIRECTED_REQUEST, _)));
        }
        for host in [
            "evil.example",
            "evil.example:3001",
            "tasks.localhost",
            "tasks.localhost:3002",
            "jaeger.localhost:3001",
            "tasks.localhost.:3001",
            "x.tasks.localhost:3001",
            "tasks.localhost:3001.evil.example",
            "TASKS.localhost:3001",
            "tasks.localhost:3001 ",
            "0.0.0.0:3001",
            "[::1]:3001",
            "localhost",
            "",
        ] {
            let refused = matches!(judged(host), Verdict::Refuse(StatusCode::MISDIRECTED_REQUEST, _));
            assert!(refused, "{host:?}: {:?}", judged(host));
        }
    }

    #[test]
    fn what_names_a_host_twice_or_elsewhere_is_no_request_for_us() {
        const OURS: (&str, &str) = ("host", "tasks.localhost:3001");
        for (method, target, headers) in [
            ("GET", "http://tasks.localhost:3001/", vec![OURS]),
            ("GET", "http://evil.example/", vec![OURS]),
            ("CONNECT", "evil.example:443", vec![OURS]),
            ("OPTIONS", "*", vec![OURS]),
            ("GET", "/", vec![]),
            ("GET", "/", vec![OURS, ("host", "evil.example")]),
            ("GET", "/", vec![OURS, OURS]),
        ] {
            let judged = address(&names(), &request(method, target, &headers));
            assert!(matches!(judged, Verdict::Refuse(StatusCode::BAD_REQUEST, _)), "{method} {target} {judged:?}");
        }
    }

    const OWN: (&str, &str) = ("origin", "http://tasks.localhost:3001");

    #[test]
    fn a_page_of_somebody_else_may_lead_here_and_nothing_more() {
        let judged = |method, headers: &[(&str, &str)]| sender(&names(), &request(method, "/", headers));
        let site = |site| ("sec-fetch-site", site);
        let (navigate, document) = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"));
        let upgrade = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let with = |more: &[(&'static str, &'static str)]| -> Vec<(&str, &str)> {
            upgrade.iter().chain(more).copied().collect()
        };
        for (method, headers) in [
            ("GET", vec![]),
            ("GET", vec![site("none"), navigate, document]),
            ("GET", vec![site("same-origin")]),
            ("GET", vec![site("cross-site"), navigate, document]),
            ("HEAD", vec![]),
            ("POST", vec![OWN]),
            ("POST", vec![OWN, site("same-origin")]),
            ("GET", with(&[OWN])),
            ("GET", with(&[OWN, site("same-origin")])),
        ] {
            assert_eq!(judged(method, &headers), None, "{method} {headers:?}");
        }
        for (method, headers) in [
            // Pictures, scripts, frames and forms of another page; also of another port of the same name.
            ("GET", vec![site("cross-site")]),
            ("GET", vec![site("same-site")]),
            ("GET", vec![site("cross-site"), navigate, ("sec-fetch-dest", "iframe")]),
            ("POST", vec![site("cross-site"), navigate, document]),
            ("POST", vec![OWN, site("same-site")]),
            ("POST", vec![OWN, site("none")]),
            ("POST", vec![("origin", "http://tasks.localhost:9999")]),
            ("POST", vec![("origin", "http://jaeger.localhost:16686")]),
            ("POST", vec![("origin", "https://tasks.localhost:3001")]),
            ("POST", vec![("origin", "null")]),
            ("POST", vec![OWN, ("origin", "null")]),
            ("GET", vec![("origin", "http://evil.example")]),
            ("GET", vec![site("same-origin"), site("cross-site")]),
            ("GET", vec![site("something new")]),
            // Old browsers do not say where they come from, but always name the origin of what does something.
            ("POST", vec![]),
            ("PUT", vec![site("same-origin")]),
            ("DELETE", vec![]),
            ("GET", with(&[])),
            ("GET", with(&[("origin", "http://evil.example")])),
            ("GET", with(&[("origin", "http://tasks.localhost:9999"), site("same-site")])),
            ("GET", with(&[OWN, site("cross-site"), navigate, document])),
        ] {
            assert!(judged(method, &headers).is_some(), "{method} {headers:?}");
        }
    }
}
