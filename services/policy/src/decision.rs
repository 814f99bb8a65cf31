//! The decision itself. Default deny; of the rules that are for the principal, the first in file order that matches
//! host, method and path decides.

use std::fmt;
use std::sync::Arc;

use assistant_proto::event::Attachment;
use assistant_proto::name::{HostName, PrincipalName, TierName};

use crate::denial::Denial;
use crate::path::{Query, RequestPath};
use crate::reading::{self, Carried};
use crate::remedy::remedy;
use crate::rules::{Injection, Rule, TierPolicy};
use crate::target::{HTTPS, Target};

/// Longest method; the longest registered one has 17 characters.
const MOST_METHOD: usize = 24;

/// An HTTP method in its one spelling. Methods are case-sensitive (RFC 9110, section 9.1), and servers that fold case
/// are the reason why only upper case is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Method(String);

/// Why a method was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// Not 1 to 24 characters of A-Z and `-`.
    #[error("the method is not an upper-case word")]
    Malformed,
    /// A tunnel within the tunnel would be out of sight.
    #[error("CONNECT within a tunnel is never allowed")]
    Connect,
    /// It would send back the very headers a secret was put into.
    #[error("TRACE is never allowed: it sends back what it was sent")]
    Trace,
}

impl MethodError {
    /// As a refusal.
    #[must_use]
    pub fn denial(self) -> Denial {
        let reason = match self {
            Self::Malformed => "malformed-method",
            Self::Connect => "connect-in-connect",
            Self::Trace => "method-trace",
        };
        Denial::new(reason, self.to_string(), "use a plain upper-case method such as GET or POST")
    }
}

impl Method {
    /// Parses a method.
    ///
    /// # Errors
    /// See [`MethodError`].
    pub fn parse(text: &str) -> Result<Self, MethodError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        match text {
            "CONNECT" => Err(MethodError::Connect),
            "TRACE" => Err(MethodError::Trace),
            "" => Err(MethodError::Malformed),
            _ if plain && text.len() <= MOST_METHOD => Ok(Self(text.to_owned())),
            _ => Err(MethodError::Malformed),
        }
    }

    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// GET and HEAD.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(self.0.as_str(), "GET" | "HEAD")
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What would be sent, as far as rules look at it. Exactly these values are written on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where to.
    pub target: Target,
    /// How.
    pub method: Method,
    /// What.
    pub path: RequestPath,
    /// And with which query.
    pub query: Option<Query>,
}

impl Request {
    /// Parses a request target in origin form, `/path?query`, for a target that is known.
    ///
    /// # Errors
    /// A refusal that says what is malformed.
    pub fn parse(target: Target, method: &str, path: &str, query: Option<&str>) -> Result<Self, Denial> {
        Ok(Self {
            target,
            method: Method::parse(method).map_err(MethodError::denial)?,
            path: RequestPath::parse(path).map_err(crate::PathError::denial)?,
            query: query.map(Query::parse).transpose().map_err(crate::PathError::denial)?,
        })
    }

    /// Parses an `https:` URL as people write it, for explanations.
    ///
    /// # Errors
    /// A refusal that says what is malformed.
    pub fn parse_url(method: &str, url: &str) -> Result<Self, Denial> {
        let Some(rest) = url.strip_prefix("https://") else {
            return Err(Denial::new("not-https", "the URL does not begin with https://", "use an https:// URL"));
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let target = Target::parse_https(authority).map_err(crate::TargetError::denial)?;
        let (path, query) = match tail.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (tail, None),
        };
        Self::parse(target, method, if path.is_empty() { "/" } else { path }, query)
    }

    /// Path and query as they are sent.
    #[must_use]
    pub fn origin_form(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{}", self.path, query.as_str()),
            None => self.path.to_string(),
        }
    }
}

/// Proof that a rule allows a request. Owns the request: what is sent is read from here.
#[derive(Debug, Clone)]
pub struct Permit {
    principal: PrincipalName,
    request: Request,
    rule: Arc<Rule>,
}

impl Permit {
    /// Who may send it.
    #[must_use]
    pub fn principal(&self) -> &PrincipalName {
        &self.principal
    }

    /// What may be sent.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Id of the rule that allows it.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule.spec().id
    }

    /// File and line of that rule.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.rule.spec().source
    }

    /// Whether the rule only reads: then nothing but what [`reading::passes`] may go on.
    #[must_use]
    pub fn only_reads(&self) -> bool {
        self.rule.only_reads()
    }

    /// Which secret has to be put in where, if any.
    #[must_use]
    pub fn injection(&self) -> Option<&Injection> {
        self.rule.injection()
    }
}

/// Proof that some rule of the principal may reach a host: enough to speak TLS in its name, not to send anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPermit {
    principal: PrincipalName,
    target: Target,
}

impl HostPermit {
    /// Who may.
    #[must_use]
    pub fn principal(&self) -> &PrincipalName {
        &self.principal
    }

    /// Where.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// Decides a CONNECT: whether any rule of the principal reaches the target.
///
/// # Errors
/// `port-not-allowed` or `host-not-allowed`, with the smallest change that would allow it.
pub fn decide_host(policy: &TierPolicy, principal: &PrincipalName, target: &Target) -> Result<HostPermit, Denial> {
    if target.port() != HTTPS {
        return Err(port_denied(target));
    }
    let reached = policy.rules().iter().any(|rule| rule.is_for(principal) && rule.reaches(target.host()));
    if reached {
        Ok(HostPermit { principal: principal.clone(), target: target.clone() })
    } else {
        Err(host_denied(policy, principal, target.host()))
    }
}

/// Decides a request. The rule that matches host, method and path decides on what it carries as well; no later rule is
/// asked for a second opinion.
///
/// # Errors
/// What no rule of the principal allows, with the smallest change that would allow it: the rule that came closest gets
/// a method or a path, or a new host is added.
pub fn decide<'h>(
    policy: &TierPolicy,
    principal: &PrincipalName,
    request: &Request,
    carried: Carried<impl Iterator<Item = (&'h str, usize)>>,
) -> Result<Permit, Denial> {
    let host = request.target.host();
    let fix = || match remedy(policy, principal, request, false) {
        Some(remedy) => remedy.sentence(policy),
        None => format!("nothing that can be written in {} would allow it", policy.file()),
    };
    match find(policy, principal, request, carried) {
        Ok(rule) => Ok(Permit { principal: principal.clone(), request: request.clone(), rule: Arc::clone(rule) }),
        Err(Unmatched::Port) => Err(port_denied(&request.target)),
        Err(Unmatched::Host) => Err(host_denied(policy, principal, host)),
        Err(Unmatched::Method { reading: true }) => Err(Denial::new(
            "method-not-allowed",
            format!("{principal} may only read at {host}, and {} is not GET or HEAD", request.method),
            fix(),
        )),
        Err(Unmatched::Method { reading: false }) => Err(Denial::new(
            "method-not-allowed",
            format!("{principal} may reach {host}, but not with the method {}", request.method),
            fix(),
        )),
        Err(Unmatched::Path) => Err(Denial::new(
            "path-not-allowed",
            format!("{principal} may send {} to {host}, but not for the path {}", request.method, request.path),
            fix(),
        )),
        Err(Unmatched::Carried(denial)) => Err(denial),
    }
}

/// How far a request came, where no rule allows it.
enum Unmatched {
    Port,
    Host,
    /// Whether the first rule that reaches the host only reads.
    Method {
        reading: bool,
    },
    Path,
    /// The rule that matches refuses what the request carries.
    Carried(Denial),
}

/// The rule that allows a request: the one place in which rules are tried.
fn find<'p, 'h>(
    policy: &'p TierPolicy,
    principal: &PrincipalName,
    request: &Request,
    carried: Carried<impl Iterator<Item = (&'h str, usize)>>,
) -> Result<&'p Arc<Rule>, Unmatched> {
    if request.target.port() != HTTPS {
        return Err(Unmatched::Port);
    }
    let mut unmatched = Unmatched::Host;
    for rule in policy.rules().iter().filter(|rule| rule.is_for(principal) && rule.reaches(request.target.host())) {
        if !rule.allows_method(&request.method) {
            if matches!(unmatched, Unmatched::Host) {
                unmatched = Unmatched::Method { reading: rule.only_reads() };
            }
            continue;
        }
        if rule.allows_path(&request.path) {
            if rule.only_reads() {
                reading::check(&rule.spec().id, &rule.spec().source, request, carried).map_err(Unmatched::Carried)?;
            }
            return Ok(rule);
        }
        unmatched = Unmatched::Path;
    }
    Err(unmatched)
}

/// Whether a request that carries nothing is allowed.
pub(crate) fn finds(policy: &TierPolicy, principal: &PrincipalName, request: &Request) -> bool {
    find(policy, principal, request, Carried::nothing()).is_ok()
}

/// Decides whether a tier may do anything at all now: in a turn, just after one, or always where it says
/// `background: true`.
///
/// # Errors
/// `outside-turn`.
pub fn decide_turn(tier: &TierName, background: bool, attachment: Attachment) -> Result<(), Denial> {
    match attachment {
        Attachment::Active | Attachment::Late => Ok(()),
        Attachment::Background if background => Ok(()),
        Attachment::Background => Err(Denial::new(
            "outside-turn",
            format!("tier {tier} asked for something while no message was being answered"),
            format!("in tiers.yaml, tier {tier}: set `background: true`, if it is meant to act on its own"),
        )),
    }
}

/// The refusal of a request that lacks the placeholder that its rule wants.
#[must_use]
pub fn placeholder_missing(permit: &Permit, injection: &Injection) -> Denial {
    Denial::new(
        "placeholder-missing",
        format!(
            "rule {} wants the placeholder in the header {}, and it is not there",
            permit.rule(),
            injection.header()
        ),
        placeholder_fix(injection),
    )
}

/// What a client has to send for a rule that puts a secret in.
#[must_use]
pub fn placeholder_fix(injection: &Injection) -> String {
    format!(
        "send `{}: {}` and no other credential; the broker puts the secret in",
        injection.header(),
        injection.expected()
    )
}

/// What [`decide`] says, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it would go out.
    pub allowed: bool,
    /// The rule that decides; empty when none does.
    pub rule: String,
    /// File and line of that rule.
    pub source: String,
    /// Why.
    pub reason: String,
    /// The smallest change that would allow it; empty when it is allowed.
    pub fix: String,
}

/// Explains the decision on a request that carries nothing. Calls [`decide`]: there is no second opinion.
#[must_use]
pub fn explain(policy: &TierPolicy, principal: &PrincipalName, request: &Request) -> Explanation {
    match decide(policy, principal, request, Carried::nothing()) {
        Ok(permit) => Explanation {
            allowed: true,
            rule: permit.rule().to_owned(),
            source: permit.source().to_owned(),
            reason: match permit.injection() {
                Some(injection) => format!(
                    "allowed; the header {} must hold the placeholder and gets the secret {}",
                    injection.header(),
                    injection.secret()
                ),
                None if permit.only_reads() => {
                    "allowed for reading: no body, and only the headers a reader needs".to_owned()
                }
                None => "allowed, without any secret".to_owned(),
            },
            fix: String::new(),
        },
        Err(denial) => Explanation {
            allowed: false,
            rule: String::new(),
            source: String::new(),
            reason: format!("{}: {}", denial.reason, denial.detail),
            fix: denial.fix,
        },
    }
}

fn port_denied(target: &Target) -> Denial {
    Denial::new(
        "port-not-allowed",
        format!("{target} is not on port {HTTPS}"),
        "use port 443; no other port can be allowed",
    )
}

fn host_denied(policy: &TierPolicy, principal: &PrincipalName, host: &HostName) -> Denial {
    let (tier, file) = (policy.tier(), policy.file());
    let fix = match policy.rules().iter().find(|rule| rule.reaches(host)) {
        // Somebody else's rule: the credential behind it is theirs, so widening it is not the smallest change.
        Some(rule) => format!(
            "rule {} ({}) reaches it, but for another container; if {principal} is meant to, name it there",
            rule.spec().id,
            rule.spec().source
        ),
        None if policy.rules().iter().any(|rule| rule.only_reads()) => format!(
            "add {host} to squid/allowlist.txt, from which tier {tier} may read; to send more than GET and HEAD, and for shared \
             hosting and messengers, add `hosts: [{host}]` under `egress` in {file}, tier {tier}"
        ),
        None => format!(
            "in {file}, tier {tier}: add `hosts: [{host}]` under `egress`, and {host} to squid/allowlist.txt where it is missing"
        ),
    };
    Denial::new("host-not-allowed", format!("{principal} of tier {tier} may not reach {host}: no rule allows it"), fix)
}

#[cfg(test)]
mod tests;
