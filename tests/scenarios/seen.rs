//! What can be seen of the stack: every service tells its numbers, and what was refused is among them.

use std::cell::Cell;
use std::time::Duration;

use assistant_proto::event::Layer;
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::inside;
use assistant_tests::harness::{UPDATES, UPDATES_AGENT, metrics, until};
use service_kit::task::Tasks;

/// A count is told twice as 0 first; pushes and scrapes come every ten seconds.
const SOON: Duration = Duration::from_secs(90);
const SERVICES: [&str; 4] = ["tier-supervisor", "secret-broker", "egress-auditor", "channel-bridge"];

#[tokio::test]
async fn a_denial_is_counted() {
    let events = format!(
        "sum(assistant_events_total{{area=\"egress\",verb=\"denied\",tier=\"{UPDATES}\",service_name=\"egress-auditor\"}})"
    );
    let attempts = format!("sum(assistant_denied_attempts_total{{tier=\"{UPDATES}\",layer=\"dns\"}})");
    let before = [
        metrics::value(&events).await.unwrap().unwrap_or_default(),
        metrics::value(&attempts).await.unwrap().unwrap_or_default(),
    ];
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let name = format!("seen-{}.drill.example", uuid::Uuid::new_v4().simple());
    let refused = inside(UPDATES_AGENT, &["getent", "hosts", &name]).await.unwrap();
    assert_ne!(refused.status, 0, "{refused:?}");
    denials.wait("the denial", |e| e.layer == Layer::Dns && e.host.starts_with(&name)).await.unwrap();
    for (query, before) in [&events, &attempts].into_iter().zip(before) {
        // Prometheus may still remember the count of an earlier start; it falls to nothing then, and is counted from there.
        let floor = Cell::new(before);
        until(query, SOON, || async {
            let now = metrics::value(query).await?.unwrap_or_default();
            floor.set(floor.get().min(now));
            Ok((now > floor.get()).then_some(()))
        })
        .await
        .unwrap();
    }
    let nobody = metrics::value("sum(assistant_events_total{tier=\"nosuch\"})").await.unwrap();
    assert_eq!(nobody, None, "control: not every question has an answer");
}

#[tokio::test]
async fn every_service_tells_its_numbers() {
    for service in SERVICES {
        let uptime = format!("assistant_process_uptime_seconds{{service_name=\"{service}\"}}");
        let first = metrics::value(&uptime).await.unwrap().unwrap_or_else(|| panic!("{service} tells nothing"));
        // What is only remembered does not grow.
        until(&format!("{service} to tell something new"), SOON, || {
            let uptime = uptime.clone();
            async move { Ok(metrics::value(&uptime).await?.filter(|now| *now > first)) }
        })
        .await
        .unwrap();
        let serving = metrics::value(&format!("assistant_serving{{service_name=\"{service}\"}}")).await.unwrap();
        assert_eq!(serving, Some(1.0), "{service}");
    }
    let nobody = metrics::value("assistant_process_uptime_seconds{service_name=\"nosuch\"}").await.unwrap();
    assert_eq!(nobody, None, "control: who is not there tells nothing");
}
