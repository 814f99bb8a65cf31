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
    match Request::parse_url(method, url).and_then(|request| decide(&policy, &principal, &request)) {
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
}

#[test]
fn a_permit_sends_what_was_decided() {
    let request = Request::parse_url("GET", "https://serv.example.com/x/../api/%7ea?b=%2f").unwrap();
    let permit = decide(&policy(), &"mcp-tasks-marvin".parse().unwrap(), &request).unwrap();
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
            prop_assert!(decide(&nothing, &"zeroclaw-tasks".parse().unwrap(), &request).is_err());
            prop_assert!(decide_host(&nothing, &"zeroclaw-tasks".parse().unwrap(), &request.target).is_err());
        }
    }

    #[test]
    fn a_permitted_request_has_a_reachable_host(host in "(serv|a|docs)\\.example\\.(com|org)", path in "/(api|a|b)(/[a-z]{1,3}){0,2}", method in "(GET|POST|HEAD|PUT)") {
        let policy = policy();
        for principal in ["mcp-tasks-marvin", "zeroclaw-tasks", "zeroclaw-news"] {
            let principal = principal.parse().unwrap();
            let request = Request::parse_url(&method, &format!("https://{host}{path}")).unwrap();
            if decide(&policy, &principal, &request).is_ok() {
                prop_assert!(decide_host(&policy, &principal, &request.target).is_ok());
            }
        }
    }
}
