//! The alarms, as `promtool test rules` plays them: each is raised by what it is for, and not by what is nearly that.

use std::process::Command;

use serde_json::{Value, json};
use tier_supervisor::render::ALERTS;

use crate::program;

const SERVICES: [&str; 4] = crate::probe::SERVICES;

/// Series that are as they should be, for 20 minutes at one sample each 10 seconds.
fn healthy() -> Vec<(String, String)> {
    let mut all = vec![(r#"up{job="collector"}"#.to_owned(), "1x120".to_owned())];
    for service in SERVICES {
        let of = |name: &str, more: &str| format!(r#"{name}{{service_name="{service}"{more}}}"#);
        all.push((of("assistant_process_uptime_seconds", ""), "0+10x120".to_owned()));
        all.push((of("assistant_serving", ""), "1x120".to_owned()));
        all.push((of("assistant_bus_connected", ""), "1x120".to_owned()));
        all.push((of("assistant_bus_lost_total", r#", cause="overflow""#), "0x120".to_owned()));
        all.push((of("assistant_task_restarts_total", r#", task="nflog""#), "0x120".to_owned()));
        all.push((of("assistant_task_panics_total", r#", task="nflog""#), "0x120".to_owned()));
        all.push((of("assistant_health_problem", r#", part="audit-disk""#), "0x120".to_owned()));
    }
    let consumer = r#"{service_name="egress-auditor", stream="EVENTS", consumer="auditor"}"#;
    all.push((format!("assistant_bus_consumer_running{consumer}"), "1x120".to_owned()));
    all.push((format!("assistant_bus_consumer_lag_seconds{consumer}"), "1x120".to_owned()));
    all.push((
        r#"assistant_denied_attempts_total{tier="tasks", layer="dns", reason="name-not-served"}"#.to_owned(),
        "0 0 40+0x118".to_owned(),
    ));
    all
}

/// One story: what differs from [`healthy`], and which alarms that raises after ten minutes.
struct Story {
    differs: Vec<(String, &'static str)>,
    raised: Vec<&'static str>,
}

fn stories() -> Vec<Story> {
    let of = |name: &str, service: &str, more: &str| format!(r#"{name}{{service_name="{service}"{more}}}"#);
    let consumer = |name: &str| of(name, "egress-auditor", r#", stream="EVENTS", consumer="auditor""#);
    let denied = |tier: &str| {
        format!(r#"assistant_denied_attempts_total{{tier="{tier}", layer="packet", reason="direct-address"}}"#)
    };
    let story = |differs: Vec<(String, &'static str)>, raised: Vec<&'static str>| Story { differs, raised };
    let uptime = "assistant_process_uptime_seconds";
    let all_down = SERVICES.map(|service| (of(uptime, service, ""), "_x120"));
    let mut stories = vec![
        story(vec![], vec![]),
        story(vec![(of("assistant_serving", "channel-bridge", ""), "0x120")], vec!["ServiceNotServing"]),
        // Long enough ago to have recovered.
        story(vec![(of("assistant_serving", "channel-bridge", ""), "0x20 1x100")], vec![]),
        story(
            vec![(of("assistant_health_problem", "egress-auditor", r#", part="audit-disk""#), "1x120")],
            vec!["DiskReserve"],
        ),
        story(vec![(of("assistant_health_problem", "secret-broker", r#", part="squid""#), "1x120")], vec![]),
        story(vec![(of("assistant_bus_connected", "secret-broker", ""), "0x120")], vec!["BusDown"]),
        story(
            vec![(of("assistant_bus_lost_total", "secret-broker", r#", cause="overflow""#), "0x40 3x80")],
            vec!["EventsLost"],
        ),
        story(vec![(consumer("assistant_bus_consumer_lag_seconds"), "0+10x120")], vec!["AuditLag"]),
        story(vec![(consumer("assistant_bus_consumer_running"), "0x120")], vec!["AuditLag"]),
        // Born at zero, then a burst between two samples.
        story(vec![(denied("tasks"), "_x40 0 0 500+0x78")], vec!["DenialsBurst"]),
        // As many, but of two tiers.
        story(vec![(denied("a"), "_x40 0 0 60+0x78"), (denied("b"), "_x40 0 0 60+0x78")], vec![]),
        story(
            vec![(
                r#"assistant_events_total{area="floor", verb="breached", tier="stack"}"#.to_owned(),
                "_x40 0 0 1+0x78",
            )],
            vec!["WallBreached"],
        ),
        story(
            vec![(of("assistant_task_restarts_total", "tier-supervisor", r#", task="nflog""#), "0+1x120")],
            vec!["TaskFailing"],
        ),
        story(
            vec![(of("assistant_task_panics_total", "tier-supervisor", r#", task="nflog""#), "0x40 1x80")],
            vec!["TaskFailing"],
        ),
        // With the collector everything is gone, and only that is said.
        story(
            [vec![(r#"up{job="collector"}"#.to_owned(), "0x120")], all_down.to_vec()].concat(),
            vec!["TelemetryDown"],
        ),
    ];
    for service in SERVICES {
        stories.push(story(vec![(of(uptime, service, ""), "0+10x30 stale _x89")], vec!["ServiceDown"]));
    }
    stories
}

#[test]
fn each_alarm_is_raised_by_what_it_is_for() {
    let Some(prometheus) = program("ASSISTANT_PROMETHEUS_BIN") else { return };
    let promtool = prometheus.with_file_name("promtool");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("alerts.yml"), ALERTS).unwrap();
    let names: Vec<&str> = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let stories = stories();
    for name in &names {
        assert!(stories.iter().any(|story| story.raised.contains(name)), "{name} is in no story");
    }
    let play = |stories: &[Story]| {
        let tests: Vec<Value> = stories.iter().map(|story| test(story, &names)).collect();
        // JSON is YAML.
        let text = json!({"rule_files": ["alerts.yml"], "evaluation_interval": "10s", "tests": tests}).to_string();
        std::fs::write(dir.path().join("stories.yml"), text).unwrap();
        let output =
            Command::new(&promtool).args(["test", "rules", "stories.yml"]).current_dir(dir.path()).output().unwrap();
        (
            output.status.success(),
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat(),
        )
    };
    let (fine, said) = play(&stories);
    assert!(fine, "{said}");
    // A story that is told wrongly is not believed.
    for wrong in [
        Story { differs: vec![], raised: vec!["BusDown"] },
        Story {
            differs: vec![(r#"assistant_bus_connected{service_name="secret-broker"}"#.to_owned(), "0x120")],
            raised: vec![],
        },
    ] {
        assert!(!play(&[wrong]).0);
    }
}

/// promtool compares whole alarms, texts included; a series of our own says only which are raised.
fn test(story: &Story, names: &[&str]) -> Value {
    let mut series = healthy();
    for (name, values) in &story.differs {
        match series.iter_mut().find(|(known, _)| known == name) {
            Some((_, there)) => *there = (*values).to_owned(),
            None => series.push((name.clone(), (*values).to_owned())),
        }
    }
    let series: Vec<Value> =
        series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
    let mut expected: Vec<Value> = Vec::new();
    for name in names.iter().filter(|name| story.raised.contains(name)) {
        expected.push(json!({"labels": format!(r#"{{alertname="{name}"}}"#), "value": 1}));
    }
    json!({
        "interval": "10s",
        "input_series": series,
        "promql_expr_test": [{
            "expr": r#"max by (alertname) (ALERTS{alertstate="firing"})"#,
            "eval_time": "10m",
            "exp_samples": expected
        }]
    })
}
