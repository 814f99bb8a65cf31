#![allow(clippy::unwrap_used, reason = "a test may panic")]

use assistant_proto::config::{self, Inject, Place};
use proptest::prelude::*;

use super::*;

fn rule(id: &str, principals: &[&str], hosts: &[&str], methods: &[&str], paths: &[&str]) -> config::Rule {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    config::Rule {
        id: id.to_owned(),
        source: format!("tiers.yaml:{}", id.len()),
        principals: principals.iter().map(|name| name.parse().unwrap()).collect(),
        hosts: owned(hosts),
        methods: owned(methods),
        paths: owned(paths),
        read_only: false,
        inject: None,
    }
}

fn policy() -> TierPolicy {
    let mut marvin = rule("marvin", &["mcp-tasks-marvin"], &["serv.example.com"], &["GET", "POST"], &["/api/*"]);
    marvin.inject = Some(Inject {
        secret: "marvin_token".parse().unwrap(),
        placeholder: "placeholder".to_owned(),
        place: Place::Header { name: "x-api-token".to_owned(), template: "{}".to_owned() },
    });
    let rules = [
        marvin,
        rule("wide", &["mcp-tasks-marvin"], &[".example.com"], &[], &[]),
        rule("agent", &["zeroclaw-tasks"], &["docs.example.org"], &["GET"], &["/a", "/b/**"]),
    ];
    TierPolicy::compile(&"tasks".parse().unwrap(), &rules).unwrap()
}

fn outcome(principal: &str, method: &str, url: &str) -> String {
    let policy = policy();
    let principal = principal.parse().unwrap();
    match Request::parse_url(method, url).and_then(|request| decide(&policy, &principal, &request, Carried::nothing()))
    {
        Ok(permit) => {
            format!("{} {}", permit.rule(), permit.injection().map_or("-", |injection| injection.secret().as_str()))
        }
        Err(denial) => denial.reason.to_owned(),
    }
}

#[test]
fn first_match_decides_and_nothing_else_is_allowed() {
    let marvin = "mcp-tasks-marvin";
    let agent = "zeroclaw-tasks";
    for (principal, method, url, expected) in [
        (marvin, "POST", "https://serv.example.com/api/addTask", "marvin marvin_token"),
        (marvin, "GET", "https://serv.example.com/api/%61ddTask?x=1", "marvin marvin_token"),
        (marvin, "GET", "https://Serv.Example.com:443/api/x", "marvin marvin_token"),
        (marvin, "GET", "https://serv.example.com/other", "wide -"),
        (marvin, "GET", "https://serv.example.com/api/../other", "wide -"),
        (marvin, "GET", "https://a.example.com", "wide -"),
        (marvin, "POST", "https://serv.example.com/other", "path-not-allowed"),
        (marvin, "PUT", "https://serv.example.com/api/x", "method-not-allowed"),
        (marvin, "GET", "https://docs.example.org/a", "host-not-allowed"),
        (marvin, "GET", "https://serv.example.com:8443/api/x", "port-not-allowed"),
        (marvin, "get", "https://serv.example.com/api/x", "malformed-method"),
        (marvin, "CONNECT", "https://serv.example.com/api/x", "connect-in-connect"),
        (marvin, "TRACE", "https://serv.example.com/api/x", "method-trace"),
        (marvin, "GET", "http://serv.example.com/api/x", "not-https"),
        (marvin, "GET", "https://serv.example.com@evil.example/", "userinfo"),
        (marvin, "GET", "https://127.1/", "ip-literal"),
        (marvin, "GET", "https://serv.example.com/api%2fx", "malformed-path"),
        (agent, "GET", "https://docs.example.org/b/c/d", "agent -"),
        (agent, "GET", "https://docs.example.org/c", "path-not-allowed"),
        (agent, "HEAD", "https://docs.example.org/a", "method-not-allowed"),
        (agent, "GET", "https://serv.example.com/api/x", "host-not-allowed"),
        ("zeroclaw-news", "GET", "https://docs.example.org/a", "host-not-allowed"),
    ] {
        assert_eq!(outcome(principal, method, url), expected, "{principal} {method} {url}");
    }
}

#[test]
fn the_fix_names_the_smallest_change() {
    let policy = policy();
    let fix = |principal: &str, method: &str, url: &str| {
        let request = Request::parse_url(method, url).unwrap();
        let explanation = explain(&policy, &principal.parse().unwrap(), &request);
        assert!(!explanation.allowed);
        explanation.fix
    };
    assert_eq!(
        fix("zeroclaw-tasks", "GET", "https://new.example.net/"),
        "in tiers.yaml, tier tasks: add `hosts: [new.example.net]` under `egress`, and new.example.net to squid/allowlist.txt where it is missing"
    );
    assert!(
        fix("zeroclaw-tasks", "POST", "https://docs.example.org/a").contains("tiers.yaml:5, add `POST` to `methods`")
    );
    assert!(fix("zeroclaw-tasks", "GET", "https://docs.example.org/z").contains("tiers.yaml:5, add `/z` to `paths`"));
    assert!(fix("zeroclaw-tasks", "GET", "https://serv.example.com/api/x").contains("rule marvin (tiers.yaml:6)"));
    // A drill's file is another one, and it is the one to change.
    let mut rule = rule("agent", &["zeroclaw-tasks"], &["docs.example.org"], &["GET"], &[]);
    rule.source = "deploy/drill/tiers.yaml:31".to_owned();
    let drill = TierPolicy::compile(&"tasks".parse().unwrap(), &[rule]).unwrap();
    let request = Request::parse_url("GET", "https://new.example.net/").unwrap();
    let fix = explain(&drill, &"zeroclaw-tasks".parse().unwrap(), &request).fix;
    assert!(fix.starts_with("in deploy/drill/tiers.yaml, tier tasks: add "), "{fix}");
}

#[test]
fn a_permit_sends_what_was_decided() {
    let request = Request::parse_url("GET", "https://serv.example.com/x/../api/%7ea?b=%2f").unwrap();
    let permit = decide(&policy(), &"mcp-tasks-marvin".parse().unwrap(), &request, Carried::nothing()).unwrap();
    assert_eq!(permit.request().origin_form(), "/api/~a?b=%2f");
    let injection = permit.injection().unwrap();
    assert_eq!((injection.header(), injection.expected().as_str()), ("x-api-token", "placeholder"));
}

#[test]
fn a_host_is_reachable_when_some_rule_of_the_principal_leads_there() {
    let policy = policy();
    let decide = |principal: &str, authority: &str| {
        decide_host(&policy, &principal.parse().unwrap(), &Target::parse_authority(authority).unwrap())
            .map(|permit| permit.target().to_string())
            .map_err(|denial| denial.reason)
    };
    assert_eq!(decide("mcp-tasks-marvin", "x.example.com:443"), Ok("x.example.com:443".to_owned()));
    assert_eq!(decide("mcp-tasks-marvin", "x.example.com:444"), Err("port-not-allowed"));
    assert_eq!(decide("zeroclaw-tasks", "x.example.com:443"), Err("host-not-allowed"));
}

/// The floor of a tier without an identity, and a narrower rule before it.
fn floor() -> TierPolicy {
    let reading = config::Rule { read_only: true, ..rule("floor", &["zeroclaw-news"], &[".example.org"], &[], &[]) };
    let rules = [rule("upload", &["zeroclaw-news"], &["up.example.org"], &["POST"], &["/in"]), reading];
    TierPolicy::compile(&"news".parse().unwrap(), &rules).unwrap()
}

#[test]
fn a_floor_is_for_reading() {
    let policy = floor();
    let outcome = |method: &str, url: &str, body: bool, headers: &[(&str, usize)]| {
        let request = Request::parse_url(method, url).unwrap();
        let carried = Carried { body, headers: headers.iter().copied() };
        let permit = decide(&policy, &"zeroclaw-news".parse().unwrap(), &request, carried);
        permit.map(|permit| permit.rule().to_owned()).map_err(|denial| denial.reason)
    };
    let page = "https://docs.example.org/page?q=1";
    assert_eq!(outcome("GET", page, false, &[("accept", 3), ("user-agent", 900)]), Ok("floor".to_owned()));
    assert_eq!(outcome("HEAD", page, false, &[]), Ok("floor".to_owned()));
    assert_eq!(outcome("GET", page, false, &[("cookie", 3)]), Err("header-not-allowed"));
    assert_eq!(outcome("GET", page, true, &[]), Err("body-not-allowed"));
    assert_eq!(outcome("POST", page, true, &[]), Err("method-not-allowed"));
    assert_eq!(outcome("GET", &format!("{page}{}", "x".repeat(2048)), false, &[]), Err("target-too-long"));
    // What another rule allows is none of the floor's business.
    assert_eq!(outcome("POST", "https://up.example.org/in", true, &[("x-any", 3)]), Ok("upload".to_owned()));
    let request = Request::parse_url("POST", page).unwrap();
    let fix = explain(&policy, &"zeroclaw-news".parse().unwrap(), &request).fix;
    assert!(fix.contains("add `docs.example.org` to `hosts` and add `/page` to `paths` of rule upload"), "{fix}");
}

#[test]
fn turns() {
    let tier = "tasks".parse().unwrap();
    assert!(decide_turn(&tier, false, Attachment::Active).is_ok());
    assert!(decide_turn(&tier, false, Attachment::Late).is_ok());
    assert_eq!(decide_turn(&tier, false, Attachment::Background).unwrap_err().reason, "outside-turn");
    assert!(decide_turn(&tier, true, Attachment::Background).is_ok());
}

proptest! {
    #[test]
    fn without_rules_everything_is_denied(host in "[a-z]{1,8}\\.[a-z]{2,6}", path in "/[a-z/]{0,12}", method in "[A-Z]{1,8}") {
        let nothing = TierPolicy::compile(&"tasks".parse().unwrap(), &[]).unwrap();
        if let Ok(request) = Request::parse_url(&method, &format!("https://{host}{path}")) {
            prop_assert!(decide(&nothing, &"zeroclaw-tasks".parse().unwrap(), &request, Carried::nothing()).is_err());
            prop_assert!(decide_host(&nothing, &"zeroclaw-tasks".parse().unwrap(), &request.target).is_err());
        }
    }

    #[test]
    fn who_only_reads_sends_nothing(
        method in "(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|QUERY|[A-Z]{1,8})",
        path in "/[a-z/]{0,12}",
        query in "[a-z=&]{0,3000}",
        body: bool,
        headers in proptest::collection::vec(
            ("(accept|accept-language|if-none-match|cookie|authorization|user-agent|sec-fetch-mode|[a-z-]{1,12})", 0_usize..1_000),
            0..6,
        ),
    ) {
        let reading = config::Rule { read_only: true, ..rule("floor", &["zeroclaw-news"], &["a.example"], &[], &[]) };
        let policy = TierPolicy::compile(&"news".parse().unwrap(), &[reading]).unwrap();
        if let Ok(request) = Request::parse_url(&method, &format!("https://a.example{path}?{query}")) {
            let carried = Carried { body, headers: headers.iter().map(|(name, length)| (name.as_str(), *length)) };
            if decide(&policy, &"zeroclaw-news".parse().unwrap(), &request, carried).is_ok() {
                prop_assert!(!body && matches!(method.as_str(), "GET" | "HEAD") && query.len() <= 2048);
                let passed: Vec<_> = headers.iter().filter(|(name, _)| reading::passes(name)).collect();
                let once = passed.iter().all(|(name, _)| passed.iter().filter(|(other, _)| other == name).count() == 1);
                prop_assert!(once && passed.iter().all(|(_, length)| *length <= 512));
                let carries = |name: &str| headers.iter().any(|(other, _)| other == name);
                prop_assert!(!carries("cookie") && !carries("authorization"));
            }
        }
    }

    #[test]
    fn a_permitted_request_has_a_reachable_host(host in "(serv|a|docs)\\.example\\.(com|org)", path in "/(api|a|b)(/[a-z]{1,3}){0,2}", method in "(GET|POST|HEAD|PUT)") {
        let policy = policy();
        for principal in ["mcp-tasks-marvin", "zeroclaw-tasks", "zeroclaw-news"] {
            let principal = principal.parse().unwrap();
            let request = Request::parse_url(&method, &format!("https://{host}{path}")).unwrap();
            if decide(&policy, &principal, &request, Carried::nothing()).is_ok() {
                prop_assert!(decide_host(&policy, &principal, &request.target).is_ok());
            }
        }
    }
}
