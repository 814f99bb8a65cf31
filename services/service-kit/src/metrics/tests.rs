//! What is sent, as an exporter sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistant_proto::event::{
    Attachment, EgressDenied, EventId, Layer, ModelCalled, Scope, ToolCalled, TurnEnded, TurnStarted,
};
use assistant_proto::name::TurnId;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};

use super::Metrics;
use crate::bus::Bus;
use crate::bus::live::{Live, PATIENCE, checked, eventually};
use crate::host::Health;
use crate::task::Tasks;

type Numbers = BTreeMap<String, f64>;

/// Keeps the newest push: `name{label="value"}` and its number; of a histogram the count.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Numbers>>);

fn series<'k>(name: &str, labels: impl Iterator<Item = &'k opentelemetry::KeyValue>) -> String {
    let mut labels: Vec<String> = labels.map(|label| format!("{}={}", label.key, label.value)).collect();
    labels.sort();
    format!("{name} {}", labels.join(" ")).trim_end().to_owned()
}

impl PushMetricExporter for Kept {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut numbers = Numbers::new();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let name = metric.name();
            #[allow(clippy::cast_precision_loss, reason = "small numbers")]
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    assert!(sum.is_monotonic() && sum.temporality() == Temporality::Cumulative);
                    numbers.extend(sum.data_points().map(|p| (series(name, p.attributes()), p.value() as f64)));
                }
                AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                    numbers.extend(gauge.data_points().map(|p| (series(name, p.attributes()), p.value() as f64)));
                }
                AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                    numbers.extend(gauge.data_points().map(|p| (series(name, p.attributes()), p.value())));
                }
                AggregatedMetrics::F64(MetricData::Sum(sum)) => {
                    numbers.extend(sum.data_points().map(|p| (series(name, p.attributes()), p.value())));
                }
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                    for point in histogram.data_points() {
                        numbers.insert(series(name, point.attributes()), point.count() as f64);
                        numbers.insert(format!("{} sum", series(name, point.attributes())), point.sum());
                    }
                }
                _ => panic!("{name} is of a kind that is not looked at here"),
            }
        }
        *self.0.lock().unwrap() = numbers;
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

struct Stage {
    metrics: Metrics,
    provider: SdkMeterProvider,
    kept: Kept,
}

impl Stage {
    fn new() -> Self {
        let kept = Kept::default();
        let reader = PeriodicReader::builder(kept.clone()).with_interval(Duration::from_secs(3600)).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        Self { metrics: Metrics::new(&provider.meter("test")), provider, kept }
    }

    /// Everything that a push has now; no zeroes for what is new.
    fn all(&self) -> Numbers {
        self.metrics.ending();
        self.provider.force_flush().unwrap();
        self.kept.0.lock().unwrap().clone()
    }

    /// What a push has now of one kind.
    fn of(&self, prefix: &str) -> Vec<(String, f64)> {
        self.all().into_iter().filter(|(name, _)| name.starts_with(prefix)).collect()
    }
}

fn denied(reason: &str, count: u64) -> EgressDenied {
    EgressDenied {
        tier: Scope::Stack,
        principal: None,
        layer: Layer::Packet,
        host: String::new(),
        port: None,
        protocol: "tcp".to_owned(),
        reason: reason.to_owned(),
        detail: String::new(),
        fix: String::new(),
        count,
        turn: None,
        attachment: Attachment::Background,
        trace_id: String::new(),
        observed_at: String::new(),
    }
}

fn ended(outcome: &str, took_millis: u64) -> TurnEnded {
    TurnEnded {
        tier: "tasks".parse().unwrap(),
        turn: TurnId::generate(),
        outcome: outcome.to_owned(),
        trace_id: String::new(),
        ended_at: String::new(),
        took_millis,
    }
}

fn named(expected: &[(&str, f64)]) -> Vec<(String, f64)> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

#[test]
fn what_an_event_carries_is_measured() {
    let stage = Stage::new();
    let bus = Bus::detached().counted(stage.metrics.clone());
    let emit = |event: &EgressDenied| bus.emit(event, EventId::unique(), None);
    emit(&denied("direct-address", 3));
    emit(&denied("direct-address", 4));
    emit(&denied("Not a code", 1));
    bus.emit(&ended("end_turn", 1500), EventId::unique(), None);
    bus.emit(&ended("end_turn", 500), EventId::unique(), None);
    bus.emit(&ended("cancelled", 0), EventId::unique(), None);
    assert_eq!(
        stage.of("assistant_denied"),
        named(&[
            ("assistant_denied_attempts_total layer=packet reason=direct-address tier=stack", 7.0),
            ("assistant_denied_attempts_total layer=packet reason=other tier=stack", 1.0),
        ])
    );
    assert_eq!(
        stage.of("assistant_events"),
        named(&[
            ("assistant_events_total area=egress tier=stack verb=denied", 3.0),
            ("assistant_events_total area=turn tier=tasks verb=ended", 3.0),
        ])
    );
    assert_eq!(
        stage.of("assistant_finished"),
        named(&[
            ("assistant_finished_total outcome=failed tier=tasks work=turn", 1.0),
            ("assistant_finished_total outcome=ok tier=tasks work=turn", 2.0),
        ])
    );
    // How long the cancelled one took nobody knows.
    assert_eq!(
        stage.of("assistant_turn_duration"),
        named(&[
            ("assistant_turn_duration_seconds outcome=ok tier=tasks", 2.0),
            ("assistant_turn_duration_seconds outcome=ok tier=tasks sum", 2.0),
        ])
    );
}

#[test]
fn model_and_tool_calls_are_measured() {
    let stage = Stage::new();
    let call = |value: serde_json::Value| {
        let mut all = serde_json::json!({
            "tier": "tasks", "principal": "zeroclaw-tasks", "model": "assistant", "api_base": "", "server": "marvin",
            "tool": "get", "turn": null, "trace_id": "", "took_millis": 250, "observed_at": "", "status": 200
        });
        for (name, value) in value.as_object().unwrap() {
            all[name] = value.clone();
        }
        all
    };
    for status in [200, 502, 0] {
        stage
            .metrics
            .said(&serde_json::from_value::<ModelCalled>(call(serde_json::json!({"status": status}))).unwrap());
    }
    for succeeded in [true, false] {
        let call = call(serde_json::json!({"succeeded": succeeded}));
        stage.metrics.said(&serde_json::from_value::<ToolCalled>(call).unwrap());
    }
    assert_eq!(
        stage.of("assistant_finished"),
        named(&[
            ("assistant_finished_total outcome=failed tier=tasks work=model-call", 2.0),
            ("assistant_finished_total outcome=failed tier=tasks work=tool-call", 1.0),
            ("assistant_finished_total outcome=ok tier=tasks work=model-call", 1.0),
            ("assistant_finished_total outcome=ok tier=tasks work=tool-call", 1.0),
        ])
    );
    assert_eq!(stage.of("assistant_model_call_duration_seconds outcome=failed tier=tasks")[0].1, 2.0);
    assert_eq!(stage.of("assistant_tool_call_duration_seconds outcome=ok tier=tasks sum")[0].1, 0.25);
}

#[tokio::test(start_paused = true)]
async fn tasks_are_counted_by_kind() {
    let stage = Stage::new();
    let tasks = Tasks::counted(tokio_util::sync::CancellationToken::new(), stage.metrics.clone());
    tasks.spawn_restarting("steady", || async { Ok(()) });
    let mut run = 0;
    tasks.spawn_restarting("dns-udp-10.87.16.3", move || {
        run += 1;
        let run = run;
        async move {
            match run {
                1 => anyhow::bail!("not yet"),
                2 => panic!("broken"),
                _ => Ok(()),
            }
        }
    });
    tasks.spawn("turn 0198c1f0", crate::task::OnEnd::Expected, async { panic!("broken") });
    tasks.finished().await;
    assert_eq!(
        stage.of("assistant_task"),
        named(&[
            ("assistant_task_panics_total task=dns-udp", 1.0),
            ("assistant_task_panics_total task=steady", 0.0),
            ("assistant_task_panics_total task=turn", 1.0),
            ("assistant_task_restarts_total task=dns-udp", 2.0),
            ("assistant_task_restarts_total task=steady", 0.0),
        ])
    );
}

#[test]
fn health_and_process_are_told() {
    let stage = Stage::new();
    let health = Health::detached();
    stage.metrics.watch_health(&health);
    health.report("docker", Ok(()));
    health.report("audit-disk", Err("full".to_owned()));
    let all = stage.all();
    assert_eq!(all["assistant_serving"], 0.0);
    assert_eq!(all["assistant_health_problem part=docker"], 0.0);
    assert_eq!(all["assistant_health_problem part=audit-disk"], 1.0);
    for name in [
        "assistant_process_resident_memory_bytes",
        "assistant_process_threads",
        "assistant_process_open_fds",
        "assistant_disk_size_bytes",
    ] {
        assert!(all[name] > 0.0, "{name}");
    }
    assert!(all.contains_key("assistant_process_cpu_seconds_total"));
    assert!(all["assistant_process_uptime_seconds"] >= 0.0 && all["assistant_disk_free_bytes"] >= 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_counted_once_however_it_is_said() {
    let server = Live::start().await;
    server.stream("EVENTS", "floor.>").await;
    let stage = Stage::new();
    let bus = server.bus().await.counted(stage.metrics.clone());
    stage.metrics.watch_bus(&bus);
    let tasks = Tasks::default();
    bus.start(&tasks);
    let counted =
        |stage: &Stage| stage.of("assistant_events_total area=floor").first().map_or(0.0, |(_, count)| *count);

    bus.emit(&checked(), EventId::unique(), None);
    assert_eq!(counted(&stage), 1.0);
    let id = EventId::unique();
    for _ in 0..3 {
        bus.commit(&checked(), id.clone(), None, PATIENCE).await.unwrap();
        assert_eq!(counted(&stage), 2.0, "a commit that is repeated stores nothing");
    }
    bus.gather(&checked(), EventId::unique(), None, PATIENCE, |_| true).await.unwrap();
    assert_eq!(counted(&stage), 3.0);
    // No stream has this subject, so it is not said, and said to nobody it is not.
    let turn = TurnStarted {
        tier: "tasks".parse().unwrap(),
        turn: TurnId::generate(),
        traceparent: crate::trace::fresh(),
        channel: String::new(),
        conversation: String::new(),
        started_at: String::new(),
    };
    bus.commit(&turn, EventId::unique(), None, PATIENCE).await.unwrap_err();
    assert_eq!(stage.of("assistant_events_total area=turn"), []);

    // The queue tries that one again and again, and gives it up.
    bus.emit(&turn, EventId::unique(), None);
    eventually("given up", async || bus.lost() == 1).await;
    let all = stage.all();
    assert_eq!(all["assistant_events_total area=turn tier=tasks verb=started"], 1.0, "what happened happened");
    assert_eq!(all["assistant_bus_connected"], 1.0);
    assert_eq!(all["assistant_bus_queue_depth"], 0.0);
    assert_eq!(all["assistant_bus_lost_total cause=refused"], 1.0);
    assert_eq!(all["assistant_bus_lost_total cause=overflow"], 0.0);
    assert_eq!(all["assistant_bus_retries_total"], 19.0, "of the twenty refusals the last is not followed by a retry");
    bus.flush(PATIENCE).await;
    tasks.finished().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_server_and_a_slow_consumer_are_seen() {
    let mut server = Live::start().await;
    server.stream("EVENTS", "floor.>").await;
    server.consumer("EVENTS", "auditor", |_| {}).await;
    let stage = Stage::new();
    let bus = server.bus().await.counted(stage.metrics.clone());
    stage.metrics.watch_bus(&bus);
    for _ in 0..3 {
        bus.commit(&checked(), EventId::unique(), None, PATIENCE).await.unwrap();
    }
    let (reading, slow) = (bus.clone(), Arc::new(tokio::sync::Semaphore::new(0)));
    let gate = Arc::clone(&slow);
    let consumed = async move {
        reading
            .consume_raw("EVENTS", "auditor", |_| {
                let gate = Arc::clone(&gate);
                async move {
                    gate.acquire().await?.forget();
                    Ok(())
                }
            })
            .await
    };
    let tasks = Tasks::default();
    tasks.spawn("consumer", crate::task::OnEnd::Expected, consumed);
    let number =
        |name: &str| stage.all().get(&format!("assistant_bus_consumer_{name} consumer=auditor stream=EVENTS")).copied();
    let handled = |fate: &str| {
        let name = format!("assistant_bus_consumer_handled_total consumer=auditor fate={fate} stream=EVENTS");
        stage.all().get(&name).copied()
    };
    eventually("all are there", async || number("backlog") == Some(3.0)).await;
    eventually("and grow old", async || number("lag_seconds").is_some_and(|lag| lag > 0.05)).await;
    assert_eq!((number("running"), handled("done")), (Some(1.0), Some(0.0)));
    slow.add_permits(2);
    eventually("two are handled", async || handled("done") == Some(2.0)).await;
    assert_eq!(number("backlog"), Some(1.0));
    slow.add_permits(1);
    eventually("nothing is left", async || number("backlog") == Some(0.0)).await;
    assert_eq!((number("lag_seconds"), handled("again")), (Some(0.0), Some(0.0)));

    server.stop();
    eventually("its absence is seen", async || stage.all()["assistant_bus_connected"] == 0.0).await;
    bus.emit(&checked(), EventId::unique(), None);
    assert_eq!(stage.all()["assistant_bus_queue_depth"], 1.0);
    bus.close();
    tasks.finished().await;
    assert_eq!(number("running"), Some(0.0));
    // The figures end with the bus.
    drop(bus);
    assert_eq!(stage.of("assistant_bus"), []);
}
