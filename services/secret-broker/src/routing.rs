//! Requests that ask a server to read them as another request: another method, path or host than the one that was decided
//! on. They are refused, not mended: who sends such a header means something by it.
//!
//! It names what is known to reroute. A request into which a secret is put has a closed list of headers besides
//! (`policy::carrying`).
//!
//! Sources: `X-HTTP-Method-Override` and its kin (Google, Microsoft, IBM), Rack's and Symfony's `_method`, IIS's and
//! Symfony's `X-Original-URL` and `X-Rewrite-URL`, Envoy's `X-Envoy-Original-Path`, RFC 7239 and the `X-Forwarded-*` before
//! it, what reverse proxies and gateways are commonly told their upstream by, Facebook's `method`.

use http::header::HeaderMap;
use policy::Query;

use crate::refusal::Refusal;

const NAMES: &[&str] = &[
    "x-http-method-override",
    "x-http-method",
    "x-http-verb",
    "x-method",
    "x-method-override",
    "x-request-method",
    "x-host",
    "x-path",
    "x-uri",
    "x-url",
    "x-request-path",
    "x-request-uri",
    "x-request-url",
    "x-server-name",
    "x-real-ip",
    "x-client-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-cluster-client-ip",
    "x-originating-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "base-url",
    "http-host",
    "proxy-host",
    "proxy-url",
    "request-uri",
    "forwarded",
    "x-forwarded",
    "x-original",
    "x-rewrite",
];
const BEGINNINGS: &[&str] = &[
    "x-forward-",
    "x-forwarded-",
    "x-original-",
    "x-rewrite-",
    "x-envoy-",
    "x-proxy-",
    "x-backend-",
    "x-upstream-",
    "x-target-",
    "x-destination-",
    "x-real-",
    "x-override-",
];
/// Query parameters that frameworks read as the method.
const PARAMETERS: &[&str] = &["_method", "$httpmethod", "method", "http_method", "http-method", "httpmethod"];

/// Refuses what could be taken for another request.
///
/// # Errors
/// 403 `foreign-routing`.
pub fn check(headers: &HeaderMap, query: Option<&Query>) -> Result<(), Refusal> {
    if let Some(name) = headers.keys().find(|name| reroutes(name.as_str())) {
        return Err(refusal(&format!("the header {name}")));
    }
    let mut parameters = query.into_iter().flat_map(Query::names).map(|name| name.to_ascii_lowercase());
    if parameters.any(|name| PARAMETERS.contains(&name.as_str()) || reroutes(&name)) {
        return Err(refusal("a parameter of the query"));
    }
    Ok(())
}

/// Whether a lower-case name is one of these. CGI and its heirs cannot tell `_` from `-` in names.
fn reroutes(name: &str) -> bool {
    let name = name.replace('_', "-");
    NAMES.contains(&name.as_str()) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn refusal(what: &str) -> Refusal {
    Refusal::forbidden(
        "foreign-routing",
        format!("{what} asks the host to read the request as another one than was decided on"),
        "send the request as it is meant, without it; nothing allows this",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use http::HeaderName;

    use super::*;

    #[test]
    fn headers_that_reroute() {
        for (name, fine) in [
            ("x-http-method-override", false),
            ("x-http-method", false),
            ("x-method-override", false),
            ("x_http_method_override", false),
            ("x-original-url", false),
            ("x-rewrite-url", false),
            ("x-forwarded-for", false),
            ("x-forwarded-host", false),
            ("x-forwarded-anything", false),
            ("x_forwarded_proto", false),
            ("forwarded", false),
            ("x-envoy-original-path", false),
            ("x-envoy-decorator-operation", false),
            ("x-proxy-url", false),
            ("x-backend-host", false),
            ("x_backend_url", false),
            ("x-upstream-host", false),
            ("x-target-url", false),
            ("x-real-host", false),
            ("x-request-id", true),
            ("x-api-token", true),
            ("content-type", true),
            ("x-http-methods", true),
        ] {
            let headers = HeaderMap::from_iter([(name.parse::<HeaderName>().unwrap(), "DELETE".parse().unwrap())]);
            let outcome = check(&headers, None).map_err(|refusal| (refusal.status.as_u16(), refusal.denial.reason));
            assert_eq!(outcome, if fine { Ok(()) } else { Err((403, "foreign-routing")) }, "{name}");
        }
    }

    #[test]
    fn parameters_that_reroute() {
        for (query, fine) in [
            ("_method=DELETE", false),
            ("a=1&_METHOD=DELETE", false),
            ("a=1;%5Fmethod=DELETE", false),
            ("x-http-method-override=DELETE", false),
            ("X-HTTP-Method-Override=DELETE", false),
            ("method=DELETE", false),
            ("a=1&http_method=put", false),
            ("HTTP_METHOD=put", false),
            ("x-envoy-original-path=/", false),
            ("methods=x", true),
            ("payment_method=x", true),
            ("a=_method", true),
            ("", true),
        ] {
            let query = Query::parse(query).unwrap();
            assert_eq!(check(&HeaderMap::new(), Some(&query)).is_ok(), fine, "{query:?}");
        }
    }
}
