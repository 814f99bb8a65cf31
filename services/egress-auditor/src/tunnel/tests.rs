#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

/// A line as Squid 5.7 wrote it, by the fields that differ.
fn line(sport: u16, host: &str, st: u16, ss: &str, sni: &str, mode: &str, err: &str) -> Line {
    let text = format!(
        r#"{{"ts":1795363871.092,"start":1795363871.036,"seq":0,"mx":53,"src":"127.0.0.1","sport":{sport},"host":"{host}","port":"443","dst":"-","st":{st},"ss":"{ss}","in":174,"out":9,"ms":56,"sni":"{sni}","mode":"{mode}","err":"{err}","tier":"-","user":"-","tp":"-"}}"#
    );
    Line::parse(text.as_bytes()).unwrap()
}

fn reasons(findings: &[Finding]) -> Vec<&'static str> {
    findings
        .iter()
        .map(|finding| match finding {
            Finding::Denied { reason, .. } => reason.code(),
            Finding::Left { decided: Some(_), closed: Some(closed) } if closed.status == 200 => "left",
            Finding::Left { decided: Some(_), closed: Some(_) } => "unreachable",
            Finding::Left { decided: None, closed: Some(_) } => "left-undecided",
            Finding::Left { decided: Some(_), closed: None } => "left-unclosed",
            Finding::Left { decided: None, closed: None } => panic!("nothing known of it"),
            Finding::Unexplained(_) => "unexplained",
        })
        .collect()
}

#[test]
fn what_squid_wrote_and_what_it_means() {
    let a = "good.example";
    let table: [(&str, Vec<Line>, Vec<&str>); 25] = [
        (
            "a tunnel",
            vec![line(1, a, 200, "NONE_NONE", a, "splice", "-"), line(1, a, 200, "TCP_TUNNEL", a, "splice", "-")],
            vec!["left"],
        ),
        (
            "foreign name",
            vec![line(1, a, 200, "NONE_NONE", "evil.example", "terminate", "-")],
            vec!["server-name-mismatch"],
        ),
        ("no name", vec![line(1, a, 200, "NONE_NONE", "-", "terminate", "-")], vec!["no-server-name"]),
        ("same name", vec![line(1, a, 200, "NONE_NONE", a, "terminate", "-")], vec!["server-name-not-allowed"]),
        ("denied", vec![line(1, a, 200, "TCP_DENIED", "-", "bump", "TCP_RESET")], vec!["host-not-allowed"]),
        ("literal", vec![line(1, "127.0.0.1", 200, "TCP_DENIED", "-", "bump", "TCP_RESET")], vec!["address-literal"]),
        (
            "no credentials",
            vec![line(1, a, 407, "TCP_DENIED", "-", "-", "ERR_CACHE_ACCESS_DENIED")],
            vec!["not-authenticated"],
        ),
        (
            "unreachable, with what is left of the connection",
            vec![
                line(1, a, 200, "NONE_NONE", a, "splice", "-"),
                line(1, a, 503, "NONE_NONE", a, "splice", "-"),
                line(1, "-", 0, "NONE_NONE", "-", "-", "-"),
            ],
            vec!["unreachable"],
        ),
        (
            "denied inside TLS, with its echo",
            vec![
                line(1, a, 200, "TCP_DENIED", a, "bump", "TCP_RESET"),
                line(1, a, 403, "NONE_NONE", a, "-", "TCP_RESET"),
            ],
            vec!["host-not-allowed"],
        ),
        (
            "the same, the other way round",
            vec![
                line(1, a, 403, "NONE_NONE", a, "-", "TCP_RESET"),
                line(1, a, 200, "TCP_DENIED", a, "bump", "TCP_RESET"),
            ],
            vec!["host-not-allowed"],
        ),
        (
            "twice denied inside TLS from one port",
            vec![
                line(1, a, 200, "TCP_DENIED", a, "bump", "TCP_RESET"),
                line(1, a, 403, "NONE_NONE", a, "-", "TCP_RESET"),
                line(1, a, 200, "TCP_DENIED", a, "bump", "TCP_RESET"),
                line(1, a, 403, "NONE_NONE", a, "-", "TCP_RESET"),
            ],
            vec!["host-not-allowed", "host-not-allowed"],
        ),
        (
            "a denial, and one of another host from the same port",
            vec![
                line(1, a, 200, "TCP_DENIED", a, "bump", "TCP_RESET"),
                line(1, "b.example", 403, "NONE_NONE", a, "-", "TCP_RESET"),
            ],
            vec!["host-not-allowed", "host-not-allowed"],
        ),
        (
            "asked for a password, then denied",
            vec![
                line(1, a, 407, "TCP_DENIED", "-", "-", "ERR_CACHE_ACCESS_DENIED"),
                line(1, a, 403, "NONE_NONE", a, "-", "TCP_RESET"),
            ],
            vec!["not-authenticated", "host-not-allowed"],
        ),
        ("no host", vec![line(1, "-", 200, "TCP_DENIED", "-", "bump", "TCP_RESET")], vec!["no-host"]),
        ("an echo alone", vec![line(1, a, 403, "NONE_NONE", a, "-", "TCP_RESET")], vec!["host-not-allowed"]),
        ("garbage", vec![line(1, "-", 400, "NONE_NONE", "-", "-", "-")], vec!["not-a-request"]),
        (
            "plain text in the tunnel",
            vec![line(1, a, 200, "NONE_NONE", "-", "peek", "ERR_PROTOCOL_UNKNOWN")],
            vec!["not-tls"],
        ),
        ("left before it began", vec![line(1, a, 200, "NONE_NONE_ABORTED", "-", "peek", "ERR_CLIENT_GONE")], vec![]),
        ("health check", vec![line(1, "-", 0, "NONE_NONE", "-", "-", "ERR_CLIENT_GONE")], vec![]),
        (
            "two clients",
            vec![line(1, a, 200, "NONE_NONE", a, "splice", "-"), line(2, a, 200, "TCP_TUNNEL", a, "splice", "-")],
            vec!["left-undecided"],
        ),
        (
            "the port is used again",
            vec![line(1, a, 200, "NONE_NONE", a, "splice", "-"), line(1, a, 200, "NONE_NONE", a, "splice", "-")],
            vec!["left-unclosed"],
        ),
        ("a plain request", vec![line(1, "192.168.1.5", 200, "TCP_MISS", "-", "-", "-")], vec!["left-undecided"]),
        (
            "two of them on one connection",
            vec![
                line(1, "192.168.1.5", 200, "TCP_MISS", "-", "-", "-"),
                line(1, "192.168.1.5", 503, "TCP_MISS_ABORTED", "-", "-", "ERR_CONNECT_FAIL"),
            ],
            vec!["left-undecided", "left-undecided"],
        ),
        (
            "a plain request of a tier",
            vec![Line {
                tier: Some("tasks".to_owned().try_into().unwrap()),
                ..line(1, a, 200, "TCP_MISS", "-", "-", "-")
            }],
            vec!["unexplained"],
        ),
        ("squid decrypts", vec![line(1, a, 200, "NONE_NONE", a, "bump", "-")], vec!["unexplained"]),
    ];
    for (name, lines, expected) in table {
        let mut joiner = Joiner::default();
        let findings: Vec<_> = lines.into_iter().flat_map(|line| joiner.take(line)).collect();
        assert_eq!(reasons(&findings), expected, "{name}");
    }
}

#[test]
fn a_port_that_is_used_again_later_is_another_attempt() {
    let (mut joiner, a) = (Joiner::default(), "good.example");
    let first = line(1, a, 200, "TCP_DENIED", a, "bump", "TCP_RESET");
    let mut later = line(1, a, 403, "NONE_NONE", a, "-", "TCP_RESET");
    later.logged_at.0 += ECHO_WITHIN + 1;
    assert_eq!(joiner.take(first).len() + joiner.take(later).len(), 2);
}

#[test]
fn open_tunnels_survive_a_checkpoint() {
    let mut joiner = Joiner::default();
    assert!(joiner.take(line(7, "a.b", 200, "NONE_NONE", "a.b", "splice", "-")).is_empty());
    let mut joiner = Joiner::resume(joiner.open());
    assert_eq!(reasons(&joiner.take(line(7, "a.b", 200, "TCP_TUNNEL", "a.b", "splice", "-"))), ["left"]);
    assert!(joiner.open().is_empty());
}

#[test]
fn bounded_and_nothing_lost() {
    let mut joiner = Joiner::default();
    let mut left = 0;
    for sport in 1..=u16::try_from(MOST_OPEN).unwrap() + 5 {
        left += joiner.take(line(sport, "a.b", 200, "NONE_NONE", "a.b", "splice", "-")).len();
    }
    assert_eq!((left, joiner.open().len()), (5, MOST_OPEN));
    assert_eq!(joiner.open().first().and_then(|l| l.client_port), Some(6));
}

proptest! {
    /// However lines come, every decision and every close and every denial ends in exactly one finding.
    #[test]
    fn each_attempt_once(kinds in proptest::collection::vec((1u16..4, 0u8..4), 0..60)) {
        let mut joiner = Joiner::default();
        let (mut denied, mut decided, mut closed) = (0, 0, 0);
        let mut findings = Vec::new();
        for (sport, kind) in kinds {
            let (st, ss, mode) = match kind {
                0 => { decided += 1; (200, "NONE_NONE", "splice") }
                1 => { closed += 1; (200, "TCP_TUNNEL", "splice") }
                2 => { denied += 1; (200, "TCP_DENIED", "bump") }
                _ => { denied += 1; (200, "NONE_NONE", "terminate") }
            };
            findings.extend(joiner.take(line(sport, "a.b", st, ss, "a.b", mode, "-")));
        }
        let count = |f: fn(&Finding) -> bool| findings.iter().filter(|x| f(x)).count();
        prop_assert_eq!(count(|f| matches!(f, Finding::Denied { .. })), denied);
        prop_assert_eq!(count(|f| matches!(f, Finding::Left { closed: Some(_), .. })), closed);
        prop_assert_eq!(count(|f| matches!(f, Finding::Left { decided: Some(_), .. })) + joiner.open().len(), decided);
    }
}
