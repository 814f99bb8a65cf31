//! The rules of a tier, compiled: patterns parsed, places checked. What does not compile is reported, all at once, and
//! nothing runs with half of its rules.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use assistant_proto::config::{self, Place};
use assistant_proto::name::{HostName, PrincipalName, SecretName, TierName};

use crate::decision::Method;
use crate::path::RequestPath;
use crate::pattern::{HostPattern, PathPattern};

/// What stands for the secret in a template.
const SLOT: &str = "{}";
/// A shorter placeholder could be sent by accident.
const SHORTEST_PLACEHOLDER: usize = 8;

/// Headers a rule cannot inject into: they belong to the connection, decide framing, or are set by the broker.
const NOT_FOR_SECRETS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "if-range",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Something wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    /// File and line of the rule, for example `tiers.yaml:31`.
    pub source: String,
    /// Its id.
    pub rule: String,
    /// What is wrong and what to do. Repeats no value of the rule.
    pub problem: String,
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: rule {}: {}", self.source, self.rule, self.problem)
    }
}

/// All rules of a tier, in file order.
#[derive(Debug, Clone)]
pub struct TierPolicy {
    tier: TierName,
    rules: Vec<Arc<Rule>>,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    spec: config::Rule,
    hosts: Vec<HostPattern>,
    methods: Vec<Method>,
    paths: Vec<PathPattern>,
    injection: Option<Injection>,
}

/// Which secret goes where, in place of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    secret: SecretName,
    header: String,
    before: String,
    after: String,
    placeholder: String,
}

impl Injection {
    /// Which secret.
    #[must_use]
    pub fn secret(&self) -> &SecretName {
        &self.secret
    }

    /// Lower-case name of the header it stands in.
    #[must_use]
    pub fn header(&self) -> &str {
        &self.header
    }

    /// What stands before and after the secret in the header's value.
    #[must_use]
    pub fn around(&self) -> (&str, &str) {
        (&self.before, &self.after)
    }

    /// The header's whole value as the tier has to send it.
    #[must_use]
    pub fn expected(&self) -> String {
        format!("{}{}{}", self.before, self.placeholder, self.after)
    }

    fn compile(inject: &config::Inject) -> Result<Self, String> {
        let Place::Header { name, template } = &inject.place;
        let token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        if name.is_empty() || !name.bytes().all(token) {
            return Err("the header to inject into is not a lower-case header name".to_owned());
        }
        if NOT_FOR_SECRETS.contains(&name.as_str()) || name.starts_with("proxy-") {
            return Err("the header to inject into belongs to the connection or to the broker; name another".to_owned());
        }
        let Some((before, after)) = template.split_once(SLOT).filter(|(_, after)| !after.contains(SLOT)) else {
            return Err("the template needs {} exactly once".to_owned());
        };
        let printable = |text: &str| text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        // Header values are trimmed on the wire (RFC 9110, section 5.5), so blank edges would never match.
        if !printable(template) || template.trim() != template {
            return Err("the template has characters other than printable ASCII, or blanks at its ends".to_owned());
        }
        let visible = |text: &str| text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        if inject.placeholder.len() < SHORTEST_PLACEHOLDER || !visible(&inject.placeholder) {
            return Err(format!("the placeholder needs at least {SHORTEST_PLACEHOLDER} visible ASCII characters"));
        }
        Ok(Self {
            secret: inject.secret.clone(),
            header: name.clone(),
            before: before.to_owned(),
            after: after.to_owned(),
            placeholder: inject.placeholder.clone(),
        })
    }
}

impl Rule {
    /// As it was written, for people.
    #[must_use]
    pub fn spec(&self) -> &config::Rule {
        &self.spec
    }

    /// What it injects, if anything.
    #[must_use]
    pub fn injection(&self) -> Option<&Injection> {
        self.injection.as_ref()
    }

    /// Whether it is for a principal.
    #[must_use]
    pub fn is_for(&self, principal: &PrincipalName) -> bool {
        self.spec.principals.contains(principal)
    }

    /// Which hosts it leads to.
    #[must_use]
    pub fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }

    /// Whether it reaches a host.
    #[must_use]
    pub fn reaches(&self, host: &HostName) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// Whether it only reads, see [`crate::reading`].
    #[must_use]
    pub fn only_reads(&self) -> bool {
        self.spec.read_only
    }

    /// Whether it allows a method. Without a list: GET and HEAD.
    #[must_use]
    pub fn allows_method(&self, method: &Method) -> bool {
        if self.methods.is_empty() { method.is_read() } else { self.methods.contains(method) }
    }

    /// Whether it allows a path. Without a list: every path.
    #[must_use]
    pub fn allows_path(&self, path: &RequestPath) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|pattern| pattern.matches(path))
    }

    fn compile(spec: &config::Rule) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        if spec.id.is_empty() || spec.id.len() > 100 || !spec.id.bytes().all(|byte| byte.is_ascii_graphic()) {
            problems.push("its id is not 1 to 100 visible ASCII characters".to_owned());
        }
        if spec.principals.is_empty() {
            problems.push("it names no principal; say for whom it is".to_owned());
        }
        if spec.hosts.is_empty() {
            problems.push("it names no host; say where it leads".to_owned());
        }
        let hosts = parse_all(
            &spec.hosts,
            HostPattern::parse,
            "hosts",
            "is none of a.b, *.a.b and .a.b in lower case, with at least two labels",
            &mut problems,
        );
        let methods = parse_all(
            &spec.methods,
            |text| Method::parse(text).ok(),
            "methods",
            "is not an upper-case HTTP method that can be allowed (CONNECT and TRACE cannot)",
            &mut problems,
        );
        let paths = parse_all(
            &spec.paths,
            PathPattern::parse,
            "paths",
            "is not a path of literal segments, * and a final **, in plain spelling",
            &mut problems,
        );
        if spec.read_only && spec.inject.is_some() {
            problems.push("it only reads and injects a secret; take out one of read_only and inject".to_owned());
        }
        if spec.read_only && !methods.iter().all(Method::is_read) {
            problems.push("it only reads, but its methods are more than GET and HEAD".to_owned());
        }
        let injection = spec.inject.as_ref().map(Injection::compile).transpose().unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        if problems.is_empty() {
            Ok(Self { spec: spec.clone(), hosts, methods, paths, injection })
        } else {
            Err(problems)
        }
    }
}

impl TierPolicy {
    /// Compiles the rules of a tier.
    ///
    /// # Errors
    /// Every problem of every rule.
    pub fn compile(tier: &TierName, rules: &[config::Rule]) -> Result<Self, Vec<RuleProblem>> {
        let mut compiled = Vec::with_capacity(rules.len());
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for spec in rules {
            let problem = |problem| RuleProblem { source: spec.source.clone(), rule: spec.id.clone(), problem };
            if !seen.insert(spec.id.as_str()) {
                problems.push(problem("another rule of the tier has the same id".to_owned()));
            }
            match Rule::compile(spec) {
                Ok(rule) => compiled.push(Arc::new(rule)),
                Err(found) => problems.extend(found.into_iter().map(problem)),
            }
        }
        if problems.is_empty() { Ok(Self { tier: tier.clone(), rules: compiled }) } else { Err(problems) }
    }

    /// Whose rules they are.
    #[must_use]
    pub fn tier(&self) -> &TierName {
        &self.tier
    }

    /// The file that a person would change, as its rules name it.
    #[must_use]
    pub fn file(&self) -> &str {
        let named = self.rules.first().and_then(|rule| rule.spec().source.rsplit_once(':'));
        named.map_or("tiers.yaml", |(file, _)| file)
    }

    /// The rules in the order in which they are tried.
    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Every secret that a rule can inject, in file order, possibly more than once.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        self.rules.iter().filter_map(|rule| rule.injection().map(Injection::secret))
    }
}

fn parse_all<T>(
    texts: &[String],
    parse: impl Fn(&str) -> Option<T>,
    field: &str,
    complaint: &str,
    problems: &mut Vec<String>,
) -> Vec<T> {
    let mut parsed = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse(text) {
            Some(value) => parsed.push(value),
            None => problems.push(format!("entry {} of {field} {complaint}", index.saturating_add(1))),
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn rule(id: &str) -> config::Rule {
        config::Rule {
            id: id.to_owned(),
            source: "tiers.yaml:3".to_owned(),
            principals: vec!["mcp-tasks-marvin".parse().unwrap()],
            hosts: vec!["a.example".to_owned()],
            methods: Vec::new(),
            paths: Vec::new(),
            read_only: false,
            inject: None,
        }
    }

    fn inject(name: &str, template: &str, placeholder: &str) -> Option<config::Inject> {
        Some(config::Inject {
            secret: "key".parse().unwrap(),
            placeholder: placeholder.to_owned(),
            place: Place::Header { name: name.to_owned(), template: template.to_owned() },
        })
    }

    #[test]
    fn all_problems_at_once() {
        let tier = "tasks".parse().unwrap();
        let broken = config::Rule {
            principals: Vec::new(),
            hosts: vec!["a.example".to_owned(), "*".to_owned(), "B.example".to_owned()],
            methods: vec!["get".to_owned(), "TRACE".to_owned()],
            paths: vec!["x".to_owned()],
            inject: inject("Authorization", "{}", "placeholder"),
            ..rule("one")
        };
        let problems = TierPolicy::compile(&tier, &[broken, rule("two"), rule("two")]).unwrap_err();
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 8, "{text:#?}");
        assert!(text[0].starts_with("tiers.yaml:3: rule one: it names no principal"), "{}", text[0]);
        assert!(text.iter().any(|line| line.contains("entry 2 of hosts")));
        assert!(text.iter().any(|line| line.contains("entry 3 of hosts")));
        assert!(text.last().unwrap().contains("rule two: another rule"));
    }

    #[test]
    fn who_only_reads_neither_writes_nor_injects() {
        let tier = "tasks".parse().unwrap();
        let reading = |methods: &[&str], inject| config::Rule {
            read_only: true,
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            inject,
            ..rule("r")
        };
        assert!(TierPolicy::compile(&tier, &[reading(&[], None)]).is_ok());
        assert!(TierPolicy::compile(&tier, &[reading(&["HEAD"], None)]).is_ok());
        for broken in [reading(&["GET", "POST"], None), reading(&[], inject("x-api-token", "{}", "placeholder"))] {
            let problems = TierPolicy::compile(&tier, &[broken]).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].to_string().contains("only reads"), "{}", problems[0]);
        }
    }

    #[test]
    fn places() {
        let tier = "tasks".parse().unwrap();
        for (name, template, placeholder, fine) in [
            ("authorization", "Bearer {}", "placeholder", true),
            ("x-api-token", "{}", "placeholder", true),
            ("x-api-token", "", "placeholder", false),
            ("x-api-token", "{}{}", "placeholder", false),
            ("x-api-token", "{} ", "placeholder", false),
            ("x-api-token", "a\n{}", "placeholder", false),
            ("x-api-token", "{}", "short", false),
            ("x-api-token", "{}", "place holder", false),
            ("X-Api-Token", "{}", "placeholder", false),
            ("", "{}", "placeholder", false),
            ("host", "{}", "placeholder", false),
            ("proxy-anything", "{}", "placeholder", false),
            ("transfer-encoding", "{}", "placeholder", false),
        ] {
            let rule = config::Rule { inject: inject(name, template, placeholder), ..rule("r") };
            assert_eq!(TierPolicy::compile(&tier, &[rule]).is_ok(), fine, "{name} {template} {placeholder}");
        }
    }
}
