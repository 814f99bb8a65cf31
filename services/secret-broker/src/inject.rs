//! Putting a secret where its placeholder stands. Only with a permit, only into the one place the permit's rule names,
//! and only when that place holds the placeholder and nothing else in the request is a credential: an allowed host must
//! not become a drop box for somebody else's account.

use assistant_proto::name::SecretName;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use policy::decision::{placeholder_fix, placeholder_missing};
use policy::{Injection, Permit};
use zeroize::Zeroizing;

use crate::credential::is_credential;
use crate::refusal::Refusal;
use crate::secrets::{Secret, Secrets};

/// A request whose placeholder stands where it has to, and the secret that takes its place.
#[derive(Debug)]
pub struct Ready<'a> {
    permit: &'a Permit,
    injection: &'a Injection,
    header: HeaderName,
    secret: &'a Secret,
    secrets: &'a Secrets,
}

/// Checks everything that injecting needs, before anything is connected. `None` when the permit injects nothing.
///
/// # Errors
/// `placeholder-missing`, `foreign-credential`, `header-not-allowed` (403) or `secret-missing` (503).
pub fn prepare<'a>(
    permit: &'a Permit,
    headers: &HeaderMap,
    secrets: &'a Secrets,
) -> Result<Option<Ready<'a>>, Refusal> {
    let Some(injection) = permit.injection() else { return Ok(None) };
    let host = permit.request().target.host();
    let header = HeaderName::from_bytes(injection.header().as_bytes()).map_err(|_| {
        Refusal::forbidden("bad-rule", "the rule names a header that cannot exist", "correct the rule in tiers.yaml")
    })?;
    let fix = placeholder_fix(injection);
    let mut values = headers.get_all(&header).iter();
    let value =
        values.next().ok_or_else(|| Refusal::new(StatusCode::FORBIDDEN, placeholder_missing(permit, injection)))?;
    let foreign = |what: String| {
        Err(Refusal::forbidden(
            "foreign-credential",
            format!("the request to {host} carries a credential that is not this stack's: {what}"),
            fix.clone(),
        ))
    };
    if value.as_bytes() != injection.expected().as_bytes() || values.next().is_some() {
        return foreign(format!("the header {header} holds something else than the placeholder"));
    }
    if let Some(other) = headers.keys().find(|name| **name != header && is_credential(name.as_str())) {
        return foreign(format!("the header {other}"));
    }
    let query = permit.request().query.as_ref();
    if query.is_some_and(|query| query.names().any(|name| is_credential(&name))) {
        return foreign("a parameter of the query".to_owned());
    }
    policy::carrying::check(permit, headers.keys().map(HeaderName::as_str))?;
    let name = injection.secret();
    let secret = secrets.value(name).map_err(|problem| secrets.refusal(name, &problem.to_string()))?;
    Ok(Some(Ready { permit, injection, header, secret, secrets }))
}

impl Ready<'_> {
    /// Puts the secret in, and says which one it was.
    ///
    /// # Errors
    /// `secret-missing` when its value cannot stand in a header; [`Secret`] does not let that happen.
    pub fn inject(&self, headers: &mut HeaderMap) -> Result<&SecretName, Refusal> {
        let (before, after) = self.injection.around();
        let value = Zeroizing::new(format!("{before}{}{after}", self.secret.expose(self.permit)));
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| self.secrets.refusal(self.injection.secret(), "it cannot stand in a header"))?;
        value.set_sensitive(true);
        headers.insert(self.header.clone(), value);
        Ok(self.injection.secret())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::PermissionsExt;

    use assistant_proto::config::{Inject, Mode, Place, Rule};
    use http::StatusCode;
    use http::header::AUTHORIZATION;
    use policy::{Carried, Request, TierPolicy, decide};

    use super::*;

    /// URL, header lines, and the value that stands in the place afterwards or the reason of the refusal.
    type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);

    fn permit(url: &str) -> Permit {
        let rule = Rule {
            id: "marvin".to_owned(),
            source: "tiers.yaml:1".to_owned(),
            principals: vec!["mcp-tasks-marvin".parse().unwrap()],
            hosts: vec!["a.example".to_owned()],
            methods: Vec::new(),
            paths: Vec::new(),
            read_only: false,
            inject: Some(Inject {
                secret: "marvin".parse().unwrap(),
                placeholder: "PLACEHOLDER".to_owned(),
                place: Place::Header { name: "authorization".to_owned(), template: "Bearer {}".to_owned() },
            }),
        };
        let policy = TierPolicy::compile(&"tasks".parse().unwrap(), &[rule]).unwrap();
        let request = Request::parse_url("GET", url).unwrap();
        decide(&policy, &"mcp-tasks-marvin".parse().unwrap(), &request, Carried::nothing()).unwrap()
    }

    fn secrets(dir: &tempfile::TempDir) -> Secrets {
        let path = dir.path().join("marvin");
        std::fs::write(&path, "real-token-value").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        Secrets::load(Mode::Live, dir.path(), ["marvin".parse().unwrap()])
    }

    #[test]
    fn only_the_placeholder_becomes_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = secrets(&dir);
        let plain = "https://a.example/x";
        let table: &[Case] = &[
            (plain, &[("authorization", "Bearer PLACEHOLDER")], "Bearer real-token-value"),
            (
                "https://a.example/x?pageToken=2&author=me",
                &[("authorization", "Bearer PLACEHOLDER")],
                "Bearer real-token-value",
            ),
            (plain, &[], "placeholder-missing"),
            (plain, &[("x-api-token", "PLACEHOLDER")], "placeholder-missing"),
            (plain, &[("authorization", "Bearer attacker")], "foreign-credential"),
            (plain, &[("authorization", "PLACEHOLDER")], "foreign-credential"),
            (plain, &[("authorization", "Bearer PLACEHOLDERx")], "foreign-credential"),
            (
                plain,
                &[("authorization", "Bearer PLACEHOLDER"), ("authorization", "Bearer attacker")],
                "foreign-credential",
            ),
            (plain, &[("authorization", "Bearer PLACEHOLDER"), ("cookie", "a=b")], "foreign-credential"),
            (plain, &[("authorization", "Bearer PLACEHOLDER"), ("x-full-access-token", "z")], "foreign-credential"),
            ("https://a.example/x?Access_Token=z", &[("authorization", "Bearer PLACEHOLDER")], "foreign-credential"),
            ("https://a.example/x?key=z", &[("authorization", "Bearer PLACEHOLDER")], "foreign-credential"),
            ("https://a.example/x?sig=z", &[("authorization", "Bearer PLACEHOLDER")], "foreign-credential"),
            ("https://a.example/x?a=1&accessToken=z", &[("authorization", "Bearer PLACEHOLDER")], "foreign-credential"),
            (plain, &[("authorization", "Bearer PLACEHOLDER"), ("x-jwt", "z")], "foreign-credential"),
            (
                plain,
                &[("authorization", "Bearer PLACEHOLDER"), ("x-goog-api-client", "z"), ("x-github-api-version", "1")],
                "Bearer real-token-value",
            ),
            (plain, &[("authorization", "Bearer PLACEHOLDER"), ("destination", "/other")], "header-not-allowed"),
            ("https://a.example/x?a=1&api%5Fkey=z", &[("authorization", "Bearer PLACEHOLDER")], "foreign-credential"),
        ];
        for (url, lines, expected) in table {
            let permit = permit(url);
            let mut headers = HeaderMap::new();
            for (name, value) in *lines {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            let outcome = match prepare(&permit, &headers, &secrets) {
                Ok(ready) => {
                    assert_eq!(ready.unwrap().inject(&mut headers).unwrap().as_str(), "marvin");
                    assert!(headers[AUTHORIZATION].is_sensitive());
                    headers[AUTHORIZATION].to_str().unwrap().to_owned()
                }
                Err(refusal) => refusal.denial.reason.to_owned(),
            };
            assert_eq!(outcome, *expected, "{url} {lines:?}");
        }
    }

    #[test]
    fn without_the_secret_nothing_goes_out() {
        let permit = permit("https://a.example/x");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, "Bearer PLACEHOLDER".parse().unwrap())]);
        let dir = tempfile::tempdir().unwrap();
        for (mode, file) in [
            (Mode::Live, "/var/lib/assistant/live/secrets/marvin"),
            (Mode::Drill, "/var/lib/assistant/drill/secrets/marvin"),
        ] {
            let secrets = Secrets::load(mode, dir.path(), ["marvin".parse().unwrap()]);
            let refusal = prepare(&permit, &headers, &secrets).unwrap_err();
            assert_eq!((refusal.status, refusal.denial.reason), (StatusCode::SERVICE_UNAVAILABLE, "secret-missing"));
            assert!(refusal.denial.fix.contains(file), "{}", refusal.denial.fix);
        }
    }
}
