#![allow(clippy::unwrap_used, reason = "a test may panic")]

use assistant_proto::config::{Explain, ExplainedTier, FloorEntry, Inject, Place, Rule};
use proptest::prelude::*;

use super::*;

const PRINCIPALS: [&str; 3] = ["zeroclaw-tasks", "mcp-tasks-one", "mcp-tasks-two"];

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn inject() -> Inject {
    Inject {
        secret: "key".parse().unwrap(),
        placeholder: "PLACEHOLDER".to_owned(),
        place: Place::Header { name: "x-key".to_owned(), template: "{}".to_owned() },
    }
}

fn rule(id: &str, line: u32, principals: &[&str], hosts: &[&str], methods: &[&str], paths: &[&str]) -> Rule {
    Rule {
        id: id.to_owned(),
        source: format!("tiers.yaml:{line}"),
        principals: principals.iter().map(|name| name.parse().unwrap()).collect(),
        hosts: texts(hosts),
        methods: texts(methods),
        paths: texts(paths),
        read_only: false,
        inject: None,
    }
}

fn spec(rules: Vec<Rule>, floor: &[&str], services: &[&str]) -> Explain {
    let entries = floor.iter().zip(1_u32..).map(|(host, line)| FloorEntry { host: (*host).to_owned(), line });
    Explain {
        tiers: vec![ExplainedTier {
            name: "tasks".parse().unwrap(),
            source: "tiers.yaml:2".to_owned(),
            background: false,
            principals: PRINCIPALS.iter().map(|name| name.parse().unwrap()).collect(),
            rules,
        }],
        floor_file: "squid/allowlist.txt".to_owned(),
        floor: entries.collect(),
        service_hosts: texts(services),
    }
}

fn ask<'q>(principal: &'q str, method: &'q str, url: &'q str) -> Question<'q> {
    Question { tier: "tasks", principal, method, url, in_turn: true, placeholder: true }
}

fn written(explained: &Explained) -> Vec<String> {
    explained.changes.iter().map(|line| format!("{}:{} {}", line.file, line.line, line.text)).collect()
}

fn book() -> Book {
    let mut key = rule("key-1", 7, &["mcp-tasks-one"], &["api.example.com"], &["GET"], &["/api/**"]);
    key.inject = Some(inject());
    let egress = rule("egress-1", 20, &PRINCIPALS, &["docs.example.org"], &[], &[]);
    let floor = ["api.example.com", "docs.example.org", ".example.net"];
    Book::compile(&spec(vec![key, egress], &floor, &["api.telegram.org"])).unwrap()
}

#[test]
fn each_wall_says_its_own() {
    let book = book();
    let fine = book.explain(ask("one", "GET", "https://api.example.com/api/x")).unwrap();
    assert_eq!(fine.denial(), None);
    assert!(fine.changes.is_empty());
    let said: Vec<_> = fine.verdicts.iter().map(|v| (v.wall.as_str(), v.rule.as_str(), v.source.as_str())).collect();
    let broker = ("broker", "key-1", "tiers.yaml:7");
    assert_eq!(said, [("dns", "", ""), ("packet", "", ""), broker, ("squid", "", "squid/allowlist.txt:1")]);

    let missing = Question { placeholder: false, ..ask("one", "GET", "https://api.example.com/api/x") };
    assert_eq!(book.explain(missing).unwrap().denial().unwrap().reason, "placeholder-missing");
    let idle = Question { in_turn: false, ..ask("", "GET", "https://docs.example.org/") };
    let idle = book.explain(idle).unwrap();
    assert_eq!(idle.denial().unwrap().reason, "outside-turn");
    assert_eq!(written(&idle), ["tiers.yaml:2 background: true"]);
}

#[test]
fn the_change_is_a_line_of_a_file() {
    let book = book();
    let change =
        |principal: &str, method: &str, url: &str| written(&book.explain(ask(principal, method, url)).unwrap());
    assert_eq!(change("one", "POST", "https://api.example.com/api/x"), ["tiers.yaml:7 methods: [GET, POST]"]);
    assert_eq!(change("one", "GET", "https://api.example.com/a,b"), ["tiers.yaml:7 paths: [/api/**, '/a,b']"]);
    assert_eq!(change("", "GET", "https://api.example.com/api/x"), ["tiers.yaml:7 for: [one, agent]"]);
    assert_eq!(change("", "GET", "https://a.example.net/"), ["tiers.yaml:20 hosts: [docs.example.org, a.example.net]"]);
    assert_eq!(
        change("", "POST", "https://new.example/"),
        [
            "tiers.yaml:20 hosts: [docs.example.org, new.example]",
            "tiers.yaml:20 methods: [GET, HEAD, POST]",
            "squid/allowlist.txt:4 new.example",
        ]
    );
    // Nothing opens these.
    for url in
        ["https://api.telegram.org/", "https://docs.example.org:8443/", "https://1.2.3.4/", "http://docs.example.org/"]
    {
        let explained = book.explain(ask("", "GET", url)).unwrap();
        assert!(explained.denial().is_some() && explained.changes.is_empty(), "{url}");
    }
}

#[test]
fn who_is_not_there_is_said() {
    let question = Question { tier: "news", ..ask("", "GET", "https://a.example/") };
    assert_eq!(book().explain(question), Err(Unknown::Tier("tasks".to_owned())));
    assert!(matches!(book().explain(ask("three", "GET", "https://a.example/")), Err(Unknown::Principal(_))));
}

#[test]
fn who_reads_what_is_on_the_floor_needs_a_line_there() {
    let reading =
        Rule { read_only: true, ..rule("egress-1", 2, &PRINCIPALS, &["docs.example.org"], &["GET", "HEAD"], &[]) };
    let book = Book::compile(&spec(vec![reading], &["docs.example.org", ".s3.example"], &[])).unwrap();
    let change = |method: &str, url: &str| written(&book.explain(ask("", method, url)).unwrap());
    assert_eq!(change("GET", "https://new.example/"), ["squid/allowlist.txt:3 new.example"]);
    assert_eq!(
        change("POST", "https://docs.example.org/"),
        ["tiers.yaml:2 egress: {hosts: [docs.example.org], methods: [GET, HEAD, POST]}"]
    );
    // On the floor and not read by anyone unasked: shared hosting.
    assert_eq!(change("GET", "https://b.s3.example/"), ["tiers.yaml:2 egress: {hosts: [b.s3.example]}"]);
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let hosts = "(\\*\\.|\\.)?[ab]\\.(example|test)";
    let paths = "(/[ab]|/\\*){1,2}(/\\*\\*)?";
    let some = |pattern: &'static str, from: usize| proptest::collection::vec(pattern, from..3);
    let principals = proptest::sample::subsequence(PRINCIPALS.to_vec(), 1..=3);
    let kind = 0_u8..4;
    (principals, some(hosts, 1), some("(GET|HEAD|POST|PUT)", 0), some(paths, 0), kind).prop_map(
        |(principals, hosts, methods, paths, kind)| {
            let reading = kind == 0;
            Rule {
                hosts,
                methods: if reading { Vec::new() } else { methods },
                paths: if reading { Vec::new() } else { paths },
                read_only: reading,
                inject: (kind == 1).then(inject),
                ..rule("", 0, &principals, &[], &[], &[])
            }
        },
    )
}

fn numbered(rules: Vec<Rule>) -> Vec<Rule> {
    let numbered = rules.into_iter().zip(1_u32..);
    numbered.map(|(rule, n)| Rule { id: format!("r{n}"), source: format!("tiers.yaml:{n}"), ..rule }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn explain_and_the_decision_never_disagree(
        rules in proptest::collection::vec(some_rule(), 0..5).prop_map(numbered),
        who in 0_usize..3,
        method in "(GET|HEAD|POST|PUT|TRACE|get)",
        host in "([ab]\\.)?[abc]\\.(example|test)(:443|:8443)?",
        path in "(/[ab*]{1,2}){0,3}/?",
        in_turn: bool,
    ) {
        let explain = spec(rules.clone(), &["a.example", ".b.example"], &[]);
        let book = Book::compile(&explain).unwrap();
        let tier = "tasks".parse().unwrap();
        let policy = TierPolicy::compile(&tier, &rules).unwrap();
        let principal: PrincipalName = PRINCIPALS[who].parse().unwrap();
        let url = format!("https://{host}{path}");
        let explained = book.explain(Question { in_turn, ..ask(PRINCIPALS[who], &method, &url) }).unwrap();
        let broker = explained.verdicts.iter().find(|verdict| verdict.wall == Wall::Broker).unwrap();
        let attachment = if in_turn { Attachment::Active } else { Attachment::Background };
        let request = Request::parse_url(&method, &url);
        let decided = request.clone().and_then(|request| {
            decide_turn(&tier, false, attachment)?;
            decide(&policy, &principal, &request, Carried::nothing())
        });
        // The same answer, and where it is no, the very same sentences.
        match (&decided, &broker.standing) {
            (Ok(permit), Standing::Passes) => {
                prop_assert_eq!((permit.rule(), permit.source()), (broker.rule.as_str(), broker.source.as_str()));
            }
            (Err(decided), Standing::Refuses(said)) => prop_assert_eq!(decided, said),
            _ => prop_assert!(false, "{decided:?} {broker:?}"),
        }
        let Ok(request) = request else { return Ok(()) };
        let found = remedy(&policy, &principal, &request, false);
        match decide(&policy, &principal, &request, Carried::nothing()) {
            Ok(_) => prop_assert_eq!(found, None),
            // Nothing opens another port; every other request can be allowed, and what is proposed suffices.
            Err(denial) if denial.reason == "port-not-allowed" => prop_assert_eq!(found, None),
            Err(_) => {
                let found = found.unwrap();
                let changed = TierPolicy::compile(&tier, &found.apply(&rules, &principal)).unwrap();
                let allowed = decide(&changed, &principal, &request, Carried::nothing());
                prop_assert!(allowed.is_ok(), "{found:?} {allowed:?}");
            }
        }
        prop_assert!(explained.denial().is_some() || explained.changes.is_empty());
    }
}
