//! The smallest change of the rules that would allow a request: found here, and tried here on the rules themselves before
//! anyone is told of it. Its sentence is the `fix` of a denial; its steps are what [`crate::explain`] shows as lines of
//! YAML. One value, so the two cannot differ.
//!
//! Never proposes to change a placeholder, a secret or a header, and never more than one rule.

use std::fmt;

use assistant_proto::config;
use assistant_proto::name::{HostName, PrincipalName};

use crate::decision::{Method, Request, finds};
use crate::path::RequestPath;
use crate::rules::{Rule, TierPolicy};

/// What a rule without `methods` allows.
const READS: [&str; 2] = ["GET", "HEAD"];
/// Id of the rule that tier-supervisor makes of a tier's section `egress`.
const EGRESS: &str = "egress-1";

/// One step of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The rule is for this principal too.
    Principal(PrincipalName),
    /// The rule leads to this host too.
    Host(HostName),
    /// The rule allows this method too.
    Method(Method),
    /// The rule allows this path too, a pattern.
    Path(String),
}

/// Which part of tiers.yaml or of the floor is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// A rule that there is, by its place in the order, with its id and source.
    Rule {
        /// Its place, from 0.
        index: usize,
        /// Its id.
        id: String,
        /// File and line.
        source: String,
        /// What it gets, in this order.
        steps: Vec<Step>,
    },
    /// The tier gets a section `egress`. Where what it reads was implied, that ends.
    Egress {
        /// Where it leads.
        host: HostName,
        /// How.
        method: Method,
        /// Whether it takes the place of what is implied for a tier without an identity.
        in_place_of_implied: bool,
    },
    /// A tier without an identity may read from what is on the floor: the host is put there.
    Floor {
        /// The rule that is implied, by its place.
        index: usize,
        /// Which host.
        host: HostName,
    },
}

/// Finds the smallest change: fewest steps, then the rule that stands first. A rule of the principal that reaches the host
/// goes before somebody else's, and that before a host that is new to the tier.
///
/// `on_floor` says that the floor has the host already, where that is known. None when it is allowed, and when nothing
/// that can be written would allow it.
#[must_use]
pub fn remedy(policy: &TierPolicy, principal: &PrincipalName, request: &Request, on_floor: bool) -> Option<Remedy> {
    if finds(policy, principal, request) {
        return None;
    }
    let host = request.target.host();
    let reaching = |own: bool| {
        let rules = policy.rules().iter().enumerate();
        let rules = rules.filter(move |(_, rule)| rule.reaches(host) && rule.is_for(principal) == own);
        let remedies = rules.map(|(index, rule)| steps(index, rule, principal, request));
        remedies.filter(|remedy| works(policy, remedy, principal, request))
    };
    if let Some(own) = reaching(true).min_by_key(Remedy::steps) {
        return Some(own);
    }
    // Who reaches the host by a rule that only reads is not given somebody else's credential.
    let reads = policy.rules().iter().any(|rule| rule.reaches(host) && rule.is_for(principal));
    if !reads && let Some(other) = reaching(false).next() {
        return Some(other);
    }
    new_host(policy, request, on_floor).into_iter().find(|remedy| works(policy, remedy, principal, request))
}

/// The ways to a host that no rule of the tier has, the smallest first.
fn new_host(policy: &TierPolicy, request: &Request, on_floor: bool) -> Vec<Remedy> {
    let host = request.target.host();
    let mut ways = Vec::new();
    let mut in_place_of_implied = false;
    for (index, rule) in policy.rules().iter().enumerate().filter(|(_, rule)| rule.injection().is_none()) {
        if rule.only_reads() {
            in_place_of_implied = true;
            if !on_floor && !rule.reaches(host) {
                ways.push(Remedy::Floor { index, host: host.clone() });
            }
        } else {
            let mut steps = if rule.reaches(host) { Vec::new() } else { vec![Step::Host(host.clone())] };
            steps.extend(conduct(rule, request));
            ways.push(Remedy::Rule { index, id: rule.spec().id.clone(), source: rule.spec().source.clone(), steps });
        }
    }
    ways.push(Remedy::Egress { host: host.clone(), method: request.method.clone(), in_place_of_implied });
    ways
}

fn steps(index: usize, rule: &Rule, principal: &PrincipalName, request: &Request) -> Remedy {
    let mut steps = Vec::new();
    if !rule.is_for(principal) {
        steps.push(Step::Principal(principal.clone()));
    }
    steps.extend(conduct(rule, request));
    Remedy::Rule { index, id: rule.spec().id.clone(), source: rule.spec().source.clone(), steps }
}

/// What a rule lacks beside principal and host.
fn conduct(rule: &Rule, request: &Request) -> impl Iterator<Item = Step> {
    let method = (!rule.allows_method(&request.method)).then(|| Step::Method(request.method.clone()));
    let path = (!rule.allows_path(&request.path)).then(|| Step::Path(pattern(&request.path)));
    method.into_iter().chain(path)
}

/// The narrowest pattern that a path matches: itself, but that a segment with a `*` can only be written as `*`.
#[must_use]
pub fn pattern(path: &RequestPath) -> String {
    let segments: Vec<&str> =
        path.segments().map(|segment| if segment.contains('*') { "*" } else { segment }).collect();
    format!("/{}", segments.join("/"))
}

fn works(policy: &TierPolicy, remedy: &Remedy, principal: &PrincipalName, request: &Request) -> bool {
    if let Remedy::Rule { index, .. } = remedy
        && policy.rules().get(*index).is_none_or(|rule| rule.only_reads())
    {
        // What is implied stands in no file: it cannot be changed, only replaced.
        return false;
    }
    let rules = remedy.apply(&specs(policy), principal);
    TierPolicy::compile(policy.tier(), &rules).is_ok_and(|changed| finds(&changed, principal, request))
}

fn specs(policy: &TierPolicy) -> Vec<config::Rule> {
    policy.rules().iter().map(|rule| rule.spec().clone()).collect()
}

impl Remedy {
    /// How many things a person writes.
    #[must_use]
    pub fn steps(&self) -> usize {
        match self {
            Self::Rule { steps, .. } => steps.len(),
            Self::Egress { .. } | Self::Floor { .. } => 1,
        }
    }

    /// The rules as they are after the change. For the section `egress`, those that `principal` would get by it.
    #[must_use]
    pub fn apply(&self, rules: &[config::Rule], principal: &PrincipalName) -> Vec<config::Rule> {
        let mut changed = rules.to_vec();
        match self {
            Self::Rule { index, steps, .. } => {
                if let Some(rule) = changed.get_mut(*index) {
                    steps.iter().for_each(|step| step.apply(rule));
                }
            }
            Self::Floor { index, host } => {
                if let Some(rule) = changed.get_mut(*index) {
                    rule.hosts.push(host.to_string());
                }
            }
            Self::Egress { host, method, .. } => {
                changed.retain(|rule| !rule.read_only);
                changed.push(config::Rule {
                    id: EGRESS.to_owned(),
                    source: rules.first().map(|rule| rule.source.clone()).unwrap_or_default(),
                    principals: vec![principal.clone()],
                    hosts: vec![host.to_string()],
                    methods: methods(method),
                    paths: Vec::new(),
                    read_only: false,
                    inject: None,
                });
            }
        }
        changed
    }

    /// In words, as the `fix` of a denial. `policy` is the one it was found for.
    #[must_use]
    pub fn sentence(&self, policy: &TierPolicy) -> String {
        let (tier, file) = (policy.tier(), policy.file());
        match self {
            Self::Rule { id, source, steps, index } => {
                let rule = policy.rules().get(*index);
                let parts: Vec<String> = steps
                    .iter()
                    .map(|step| match step {
                        Step::Method(method) if rule.is_some_and(|rule| rule.spec().methods.is_empty()) => {
                            format!("set `methods: [{}]`", methods(method).join(", "))
                        }
                        Step::Principal(name) => format!("add {name} to `for`"),
                        Step::Host(host) => format!("add `{host}` to `hosts`"),
                        Step::Method(method) => format!("add `{method}` to `methods`"),
                        Step::Path(path) => format!("add `{path}` to `paths`"),
                    })
                    .collect();
                format!("in {source}, {} of rule {id}", parts.join(" and "))
            }
            Self::Egress { host, method, in_place_of_implied } => {
                let instead = if *in_place_of_implied {
                    "; that takes the place of reading what is on the floor, so name there what it is to read as well"
                } else {
                    ""
                };
                format!(
                    "in {file}, tier {tier}: add `{host}` with `methods: [{}]` under `egress`, if it is meant to write there{instead}",
                    methods(method).join(", ")
                )
            }
            Self::Floor { host, .. } => format!(
                "add {host} to squid/allowlist.txt: tier {tier} may read from what is there, but for shared hosting and messengers"
            ),
        }
    }
}

/// GET and HEAD need not be given up for another method.
fn methods(method: &Method) -> Vec<String> {
    let more = (!method.is_read()).then(|| method.to_string());
    READS.iter().map(|read| (*read).to_owned()).chain(more).collect()
}

impl Step {
    fn apply(&self, rule: &mut config::Rule) {
        match self {
            Self::Principal(name) => rule.principals.push(name.clone()),
            Self::Host(host) => rule.hosts.push(host.to_string()),
            Self::Path(path) => rule.paths.push(path.clone()),
            Self::Method(method) if rule.methods.is_empty() => rule.methods = methods(method),
            Self::Method(method) => rule.methods.push(method.to_string()),
        }
    }
}

impl fmt::Display for Step {
    /// As an entry of its list.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(name) => name.fmt(f),
            Self::Host(host) => host.fmt(f),
            Self::Method(method) => method.fmt(f),
            Self::Path(path) => f.write_str(path),
        }
    }
}
