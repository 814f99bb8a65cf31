//! What each wall does with a request, in words, and which lines would allow it. Asks the functions that the broker decides
//! with ([`crate::decide`], [`crate::decide_host`], [`crate::decide_turn`]) and repeats their sentences; for Squid it
//! matches the lists as they are rendered. Pure: nothing is sent, resolved or read.
//!
//! Does not know: values of secrets (one that is missing denies as well), whether the host answers, and what a body holds.

use std::collections::BTreeMap;

use assistant_proto::config;
use assistant_proto::event::Attachment;
use assistant_proto::name::{HostName, PrincipalName, TierName};

use crate::decision::{Request, decide, decide_host, decide_turn, placeholder_fix, placeholder_missing};
use crate::denial::Denial;
use crate::pattern::HostPattern;
use crate::reading::Carried;
use crate::remedy::remedy;
use crate::rules::{RuleProblem, TierPolicy};
use crate::target::HTTPS;

mod lines;

pub use lines::Line;

/// The rules of all tiers and the floor, compiled.
#[derive(Debug, Clone)]
pub struct Book {
    tiers: BTreeMap<TierName, Tier>,
    floor: Floor,
}

#[derive(Debug, Clone)]
struct Tier {
    source: String,
    background: bool,
    principals: Vec<PrincipalName>,
    policy: TierPolicy,
}

/// `squid/allowlist.txt`, and the hosts that are the stack's own.
#[derive(Debug, Clone)]
struct Floor {
    file: String,
    entries: Vec<(HostPattern, u32)>,
    services: Vec<HostPattern>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// Name of the tier.
    pub tier: &'q str,
    /// An MCP server of it or a container's name; empty for the agent.
    pub principal: &'q str,
    /// How.
    pub method: &'q str,
    /// Where to, `https://...`.
    pub url: &'q str,
    /// Whether a message is being answered.
    pub in_turn: bool,
    /// Whether the client sends the placeholder where a rule wants it.
    pub placeholder: bool,
}

/// Why there is no explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No such tier; those that there are.
    #[error("there is no such tier; the tiers are {0}")]
    Tier(String),
    /// No such container; those that there are.
    #[error("the tier has no such container; it has {0}")]
    Principal(String),
}

/// A wall, in the order in which a request meets them. The names are those of the events' `layer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// The resolver.
    Dns,
    /// The kernel's table.
    Packet,
    /// secret-broker.
    Broker,
    /// Squid.
    Squid,
}

impl Wall {
    /// As in an event.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Packet => "packet",
            Self::Broker => "broker",
            Self::Squid => "squid",
        }
    }
}

/// What a wall does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It passes.
    Passes,
    /// It dies here.
    Refuses(Denial),
    /// Not met by a request that takes the proxy.
    Aside,
}

/// What one wall says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub wall: Wall,
    /// What it does.
    pub standing: Standing,
    /// Why, in one sentence: that of the denial where it refuses.
    pub detail: String,
    /// The rule that decides; empty where none does.
    pub rule: String,
    /// File and line that decide; empty where none does.
    pub source: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Who would ask.
    pub principal: PrincipalName,
    /// One for each wall.
    pub verdicts: Vec<Verdict>,
    /// The smallest change; empty when it is allowed and when no line allows it.
    pub changes: Vec<Line>,
}

impl Explained {
    /// The first wall that refuses.
    #[must_use]
    pub fn denial(&self) -> Option<&Denial> {
        self.verdicts.iter().find_map(|verdict| match &verdict.standing {
            Standing::Refuses(denial) => Some(denial),
            Standing::Passes | Standing::Aside => None,
        })
    }
}

/// The refusal of Squid: the host is not on the list of its user. `tier` is a tier's name or `stack`.
#[must_use]
pub fn floor_denied(tier: Option<&TierName>, host: &str) -> Denial {
    let fix = match (host.parse::<HostName>(), tier) {
        (Err(_), _) => "nothing will allow it: it is not a host name".to_owned(),
        (Ok(_), Some(tier)) => {
            format!("add {host} to squid/allowlist.txt and to `egress` or `credentials` of tier {tier} in tiers.yaml")
        }
        (Ok(_), None) => format!("add {host} to squid/allowlist.txt, and to the tier or service that needs it"),
    };
    let who = tier.map_or("stack", TierName::as_str);
    Denial::new("host-not-allowed", format!("Squid's floor does not let {who} reach {host}"), fix)
}

/// The refusal of a tier's resolver. `host` is harmless already, but may be no host name.
#[must_use]
pub fn name_denied(who: &str, tier: &str, host: &str) -> Denial {
    let fix = if host.parse::<HostName>().is_ok() {
        format!(
            "tiers reach hosts through the proxy (HTTPS_PROXY, by CONNECT), never by DNS; if tier {tier} may reach {host}, add \
             it to `egress` or `credentials` of the tier in tiers.yaml and to squid/allowlist.txt"
        )
    } else {
        "nothing will allow it: it is not a host name, and a tier's resolver serves only its doors".to_owned()
    };
    let detail =
        format!("{who} asked the resolver for {host:?}; it answers the tier's own doors only and forwards nothing");
    Denial::new("name-not-served", detail, fix)
}

impl Book {
    /// Compiles what tier-supervisor rendered.
    ///
    /// # Errors
    /// Every problem of every rule, and host patterns that are none.
    pub fn compile(spec: &config::Explain) -> Result<Self, Vec<RuleProblem>> {
        let (mut tiers, mut problems) = (BTreeMap::new(), Vec::new());
        for tier in &spec.tiers {
            match TierPolicy::compile(&tier.name, &tier.rules) {
                Ok(policy) => {
                    let (source, background) = (tier.source.clone(), tier.background);
                    let page = Tier { source, background, principals: tier.principals.clone(), policy };
                    tiers.insert(tier.name.clone(), page);
                }
                Err(found) => problems.extend(found),
            }
        }
        let mut pattern = |text: &str, what: &str, line: u32| {
            let parsed = HostPattern::parse(text);
            if parsed.is_none() {
                let source = format!("{}:{line}", spec.floor_file);
                problems.push(RuleProblem { source, rule: what.to_owned(), problem: "it is no host".to_owned() });
            }
            parsed
        };
        let entries =
            spec.floor.iter().filter_map(|entry| Some((pattern(&entry.host, "floor", entry.line)?, entry.line)));
        let entries = entries.collect();
        let services = spec.service_hosts.iter().filter_map(|host| pattern(host, "service_hosts", 0)).collect();
        let floor = Floor { file: spec.floor_file.clone(), entries, services };
        if problems.is_empty() { Ok(Self { tiers, floor }) } else { Err(problems) }
    }

    /// Explains one request.
    ///
    /// # Errors
    /// When the stack has no such tier or container.
    pub fn explain(&self, question: Question<'_>) -> Result<Explained, Unknown> {
        let (name, tier) = self
            .tiers
            .iter()
            .find(|(name, _)| name.as_str() == question.tier)
            .ok_or_else(|| Unknown::Tier(listed(self.tiers.keys())))?;
        let server = format!("mcp-{name}-{}", question.principal);
        let principal = match question.principal {
            "" => tier.principals.first(),
            asked => tier.principals.iter().find(|known| [asked, &server].contains(&known.as_str())),
        };
        let principal = principal.ok_or_else(|| Unknown::Principal(listed(&tier.principals)))?;
        let request = match Request::parse_url(question.method, question.url) {
            Ok(request) => request,
            Err(denial) => {
                let verdicts = vec![
                    aside(Wall::Dns, "it is asked by nobody: the broker cannot read the request"),
                    doors(principal),
                    refused(Wall::Broker, denial),
                    aside(Wall::Squid, "nothing is asked of it"),
                ];
                return Ok(Explained { principal: principal.clone(), verdicts, changes: Vec::new() });
            }
        };
        let host = request.target.host();
        let dns = name_denied(principal.as_str(), name.as_str(), host.as_str());
        let squid = self.floor.verdict(&tier.policy, &request);
        let broker = tier.broker(name, principal, &request, &question);
        let mut changes = Vec::new();
        // What is a service's no line opens, so none is proposed.
        if request.target.port() == HTTPS && !self.floor.is_service(host) {
            let on_floor = self.floor.line_of(host).is_some();
            if !tier.background && !question.in_turn {
                changes.push(Line::of(&tier.source, "background: true".to_owned()));
            }
            let remedy = remedy(&tier.policy, principal, &request, on_floor);
            let needs_floor = !on_floor && (remedy.is_some() || matches!(squid.standing, Standing::Refuses(_)));
            changes.extend(remedy.iter().flat_map(|remedy| lines::of(remedy, &tier.policy, principal, &tier.source)));
            if needs_floor {
                changes.push(self.floor.addition(host));
            }
        }
        let verdicts = vec![aside(Wall::Dns, &dns_detail(&dns)), doors(principal), broker, squid];
        Ok(Explained { principal: principal.clone(), verdicts, changes })
    }
}

impl Tier {
    /// What the broker says, asked in its own order: the turn, the tunnel's host, the request, the placeholder.
    fn broker(&self, name: &TierName, principal: &PrincipalName, request: &Request, asked: &Question<'_>) -> Verdict {
        let attachment = if asked.in_turn { Attachment::Active } else { Attachment::Background };
        let permit = decide_turn(name, self.background, attachment)
            .and_then(|()| decide_host(&self.policy, principal, &request.target))
            .and_then(|_| decide(&self.policy, principal, request, Carried::nothing()));
        let permit = match permit {
            Ok(permit) => permit,
            Err(denial) => return refused(Wall::Broker, denial),
        };
        let (rule, source) = (permit.rule().to_owned(), permit.source().to_owned());
        let detail = match permit.injection() {
            Some(injection) if !asked.placeholder => {
                return Verdict { rule, source, ..refused(Wall::Broker, placeholder_missing(&permit, injection)) };
            }
            Some(injection) => {
                format!(
                    "rule {rule} allows it and puts in the secret {}: {}",
                    injection.secret(),
                    placeholder_fix(injection)
                )
            }
            None if permit.only_reads() => {
                format!("rule {rule} allows it for reading: no body, and only the headers a reader needs")
            }
            None => format!("rule {rule} allows it, without any secret"),
        };
        Verdict { wall: Wall::Broker, standing: Standing::Passes, detail, rule, source }
    }
}

impl Floor {
    fn is_service(&self, host: &HostName) -> bool {
        self.services.iter().any(|pattern| in_squid(pattern).matches(host))
    }

    fn line_of(&self, host: &HostName) -> Option<u32> {
        self.entries.iter().find(|(pattern, _)| in_squid(pattern).matches(host)).map(|(_, line)| *line)
    }

    /// A line behind the last.
    fn addition(&self, host: &HostName) -> Line {
        let last = self.entries.iter().map(|(_, line)| *line).max().unwrap_or(0);
        Line { file: self.file.clone(), line: last.saturating_add(1), text: host.to_string() }
    }

    /// Squid's lists: the stack's own hosts, then those that the tier's rules name, whoever they are for.
    fn verdict(&self, policy: &TierPolicy, request: &Request) -> Verdict {
        let (host, tier) = (request.target.host(), policy.tier());
        if request.target.port() != HTTPS {
            return aside(Wall::Squid, "the broker asks it for port 443 only");
        }
        if self.is_service(host) {
            return refused(
                Wall::Squid,
                Denial::new(
                    "host-not-allowed",
                    format!("Squid lets only the stack's own services reach {host}, whatever a tier's list says"),
                    "nothing will allow it: a service's host is never a tier's",
                ),
            );
        }
        let listed = policy.rules().iter().flat_map(|rule| rule.hosts()).any(|pattern| in_squid(pattern).matches(host));
        if !listed {
            return refused(Wall::Squid, floor_denied(Some(tier), host.as_str()));
        }
        let source = self.line_of(host).map(|line| format!("{}:{line}", self.file)).unwrap_or_default();
        let detail =
            format!("{host} is on the list of tier {tier}, which tier-supervisor makes of its rules within the floor");
        Verdict { wall: Wall::Squid, standing: Standing::Passes, detail, rule: String::new(), source }
    }
}

/// As Squid matches it: its lists have no "one label below".
fn in_squid(pattern: &HostPattern) -> HostPattern {
    match pattern {
        HostPattern::OneBelow(host) => HostPattern::Subtree(host.clone()),
        HostPattern::Exact(_) | HostPattern::Subtree(_) => pattern.clone(),
    }
}

fn refused(wall: Wall, denial: Denial) -> Verdict {
    let detail = denial.detail.clone();
    Verdict { wall, standing: Standing::Refuses(denial), detail, rule: String::new(), source: String::new() }
}

fn aside(wall: Wall, detail: &str) -> Verdict {
    Verdict { wall, standing: Standing::Aside, detail: detail.to_owned(), rule: String::new(), source: String::new() }
}

fn dns_detail(denial: &Denial) -> String {
    format!("through the proxy no name is looked up; asked directly, it is refused: {}", denial.detail)
}

fn doors(principal: &PrincipalName) -> Verdict {
    let detail = format!(
        "{principal} reaches the proxy; packets to anything but the tier's doors are dropped, whatever the rules say"
    );
    aside(Wall::Packet, &detail)
}

fn listed<'n, T: std::fmt::Display + 'n>(names: impl IntoIterator<Item = &'n T>) -> String {
    let names: Vec<String> = names.into_iter().map(ToString::to_string).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
