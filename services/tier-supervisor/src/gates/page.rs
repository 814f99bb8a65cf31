//! The few pages of the gates' own, in plain words. They load nothing and hold nothing that came from outside.

use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use super::forward::Body;

const STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:38rem;margin:3rem auto;padding:0 1rem;color:#222;\
    background:#fff}pre{background:#f1f1f1;padding:.7rem;overflow-x:auto}button{font:inherit;padding:.3rem .9rem}\
    @media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#2a2a2a}}";

/// Nothing but this text, in no frame, and forms only to ourselves.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

/// `head` and `body` are HTML.
fn page(status: StatusCode, title: &str, head: &str, body: &str) -> Response<Body> {
    let title = escaped(title);
    let text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\">{head}<title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n\
         {body}\n</body></html>\n"
    );
    let never = |never: std::convert::Infallible| match never {};
    let mut response = Response::new(Full::from(text).map_err(never).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Who has no session is told how to get one. `why` comes first, if there is more to say.
pub(super) fn log_in(site: &str, program: &str, why: Option<&str>) -> Response<Body> {
    let why = why.map(|why| format!("<p><strong>{}</strong></p>\n", escaped(why))).unwrap_or_default();
    let command = escaped(&format!("{program} login {site}"));
    let body = format!(
        "{why}<p>This page is for the person who runs this assistant, and it does not know this browser yet. Run this \
         command on the machine it runs on, as root or as the user who ran <code>deploy/up.sh</code>:</p>\n\
         <pre>{command}</pre>\n<p>It prints a link. Open it in this browser; it works once, within ten minutes. You are \
         then logged in for seven days, or until tier-supervisor is started again.</p>"
    );
    page(StatusCode::UNAUTHORIZED, &format!("{site}: log in"), "", &body)
}

/// Logged in, and on to the site by a step of its own: a browser that another page led here sends no cookie with a
/// redirect.
pub(super) fn go_on(site: &str) -> Response<Body> {
    let head = "<meta http-equiv=\"refresh\" content=\"0;url=/\">";
    page(StatusCode::OK, &format!("{site}: logged in"), head, "<p><a href=\"/\">Go on.</a></p>")
}

/// Asks whether to log out.
pub(super) fn log_out(site: &str) -> Response<Body> {
    let body =
        "<form method=\"post\" action=\"/logout\"><button>Log out</button></form>\n<p><a href=\"/\">Back.</a></p>";
    page(StatusCode::OK, &format!("{site}: log out"), "", body)
}

/// It is done.
pub(super) fn logged_out(site: &str, program: &str) -> Response<Body> {
    let command = escaped(&format!("{program} login {site}"));
    let body = format!("<p>You are logged out here. A new link is printed by:</p>\n<pre>{command}</pre>");
    page(StatusCode::OK, &format!("{site}: logged out"), "", &body)
}

/// What is wrong with a request.
pub(super) fn refused(status: StatusCode, why: &str) -> Response<Body> {
    page(status, "Refused", "", &format!("<p>{}</p>", escaped(why)))
}

/// Nobody is behind the site.
pub(super) fn nobody(site: &str, program: &str, status: StatusCode, why: &str) -> Response<Body> {
    let (why, command) = (escaped(why), escaped(&format!("{program} status")));
    let body = format!(
        "<p>You are logged in, but the part that serves this page {why}. How the parts stand is said by:</p>\n\
         <pre>{command}</pre>"
    );
    page(status, &format!("{site}: nobody answers"), "", &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_becomes_a_tag() {
        let page = log_in("tasks", "/opt/<b>\"&/tier-supervisor", Some("<script>"));
        assert_eq!(page.status(), StatusCode::UNAUTHORIZED);
        let text = page.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains("/opt/&lt;b&gt;&quot;&amp;/tier-supervisor login tasks"), "{text}");
        assert!(!text.contains("<b>") && !text.contains("<script>"));
    }
}
