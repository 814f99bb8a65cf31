//! Every query of every dashboard against Prometheus and Jaeger.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tier_supervisor::render::GRAFANA_DASHBOARDS;

use crate::peers::{Place, eventually};
use crate::probe::{CONSUMER, FAREWELL, Probe, SERVICES, TIER};
use crate::program;

/// What Grafana would put in. Ranges that were just long enough for the stack to be seen.
const VARIABLES: [(&str, &str); 4] =
    [("$__rate_interval", "1m"), ("$__range", "5m"), ("$tier", ".*"), ("$service", ".*")];

struct Query {
    /// Dashboard and panel.
    place: String,
    target: Value,
}

fn queries() -> Vec<Query> {
    let mut all = Vec::new();
    for (file, text) in GRAFANA_DASHBOARDS {
        let board: Value = serde_json::from_str(text).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{file}: {} asks nothing", panel["title"]);
            for target in targets {
                all.push(Query {
                    place: format!("{file}: {} {}", panel["title"], target["refId"]),
                    target: target.clone(),
                });
            }
        }
    }
    all
}

/// With the variables put in; none may be left.
fn filled(expression: &str) -> String {
    let mut text = expression.to_owned();
    for (name, value) in VARIABLES {
        text = text.replace(name, value);
    }
    assert!(!text.contains('$'), "a variable is not known here: {expression}");
    text
}

/// Whether the query has an answer with a number in it.
fn answered(place: &Place, query: &Query) -> bool {
    let text = |field: &str| query.target[field].as_str();
    match query.target["datasource"]["uid"].as_str().unwrap() {
        "prometheus" => {
            let answer = place.ask_prometheus("/api/v1/query", &[("query", &filled(text("expr").unwrap()))]);
            assert_eq!(answer["status"], "success", "{}: {answer}", query.place);
            let series = answer["data"]["result"].as_array().unwrap();
            series.iter().any(|series| series["value"][1].as_str().is_some_and(|value| value != "NaN"))
        }
        "jaeger" => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
            let (start, end) = ((now - 3_600_000_000).to_string(), now.to_string());
            let limit = query.target["limit"].to_string();
            let mut asked =
                vec![("service", text("service").unwrap()), ("limit", &limit), ("start", &start), ("end", &end)];
            asked.extend(text("operation").map(|operation| ("operation", operation)));
            // Grafana's editor takes words, Jaeger's API an object.
            let tags = text("tags").map(|tags| {
                let pairs = tags.split(' ').map(|tag| tag.split_once('=').unwrap());
                serde_json::to_string(&pairs.collect::<std::collections::BTreeMap<_, _>>()).unwrap()
            });
            asked.extend(tags.as_deref().map(|tags| ("tags", tags)));
            let answer = place.ask_jaeger("/api/traces", &asked);
            !answer["data"].as_array().unwrap().is_empty()
        }
        other => panic!("{}: there is no data source {other}", query.place),
    }
}

/// The value of a query that has one.
fn value(place: &Place, query: &str) -> Option<f64> {
    let answer = place.ask_prometheus("/api/v1/query", &[("query", query)]);
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

#[test]
fn every_panel_has_an_answer_and_every_alarm_is_evaluated() {
    let (Some(nats), Some(collector), Some(jaeger), Some(prometheus)) = (
        program("ASSISTANT_NATS_SERVER_BIN"),
        program("ASSISTANT_OTELCOL_BIN"),
        program("ASSISTANT_JAEGER_BIN"),
        program("ASSISTANT_PROMETHEUS_BIN"),
    ) else {
        return;
    };
    let place = Place::new();
    let (_nats, bus) = place.start_nats(&nats);
    make_stream(&bus);
    let mut services = SERVICES.map(|service| Probe::start(service, place.dir.path(), &bus, &place.otlp()));
    // The collector comes late, as it may in the stack: what is dropped until then is counted, and said once.
    let outage = "the collector takes no telemetry";
    eventually("everybody notices that there is no collector", || {
        services.iter().all(|service| service.log().contains(outage))
    });
    let _jaeger = place.start_jaeger(&jaeger);
    let _collector = place.start_collector(&collector);
    let _prometheus = place.start_prometheus(&prometheus);

    let mut open = queries();
    assert!(open.len() > 40, "{} queries", open.len());
    let deadline = std::time::Instant::now() + crate::peers::PATIENCE;
    eventually("every panel has an answer", || {
        open.retain(|query| !answered(&place, query));
        let dead: Vec<&str> = open.iter().map(|query| query.place.as_str()).collect();
        assert!(std::time::Instant::now() < deadline - std::time::Duration::from_secs(5), "dead panels: {dead:?}");
        open.is_empty()
    });
    for service in &services {
        let lines = service.log().lines().filter(|line| line.contains(outage)).count();
        assert!((1..=2).contains(&lines), "once for spans, once for metrics: {lines}");
    }
    variables_have_values(&place);
    let nobody = value(&place, r#"assistant_serving{service_name="nobody"}"#);
    assert_eq!(nobody, None, "a query can be without an answer");
    the_alarms_are_evaluated(&place);

    // What was said a moment before the end arrives too.
    let last = services.last_mut().unwrap();
    assert!(last.stop(), "{}", last.log());
    let farewell = format!(r#"sum(assistant_events_total{{tier="{}"}})"#, FAREWELL.0);
    #[allow(clippy::cast_precision_loss, reason = "a handful")]
    let expected = FAREWELL.1 as f64;
    eventually("the last words", || value(&place, &farewell) == Some(expected));
}

fn make_stream(bus: &assistant_proto::config::Bus) {
    use async_nats::jetstream::{self, consumer, stream};
    // A client of a moment; what is tested has its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let seed = std::fs::read_to_string(&bus.nkey_seed_file).unwrap();
        let client = async_nats::ConnectOptions::with_nkey(seed)
            .add_root_certificates(bus.ca_file.clone())
            .require_tls(true)
            .connect(&bus.url)
            .await
            .unwrap();
        let jetstream = jetstream::new(client);
        let areas = ["egress", "tier", "secret", "turn", "approval", "model", "tool", "floor", "channel"];
        let config = stream::Config {
            name: CONSUMER.0.to_owned(),
            subjects: areas.map(|area| format!("{area}.>")).to_vec(),
            ..stream::Config::default()
        };
        let stream = jetstream.create_stream(config).await.unwrap();
        let config =
            consumer::pull::Config { durable_name: Some(CONSUMER.1.to_owned()), ..consumer::pull::Config::default() };
        stream.create_consumer(config).await.unwrap();
    });
}

/// What the dashboards' choices are made of: `label_values(<series>, <label>)`.
fn variables_have_values(place: &Place) {
    for (file, text) in GRAFANA_DASHBOARDS {
        let board: Value = serde_json::from_str(text).unwrap();
        let variables = board["templating"]["list"].as_array().unwrap();
        assert!(!variables.is_empty(), "{file}");
        for variable in variables {
            let query = variable["query"]["query"].as_str().unwrap();
            let inside = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')')).unwrap();
            let (series, label) = inside.rsplit_once(", ").unwrap();
            let answer = place.ask_prometheus(&format!("/api/v1/label/{label}/values"), &[("match[]", series)]);
            let expected = if label == "tier" { TIER } else { SERVICES[0] };
            assert!(answer["data"].as_array().unwrap().iter().any(|value| value == expected), "{file}: {answer}");
        }
    }
}

fn the_alarms_are_evaluated(place: &Place) {
    let rules = |of: &str| -> Vec<(String, String, String)> {
        let answer = place.ask_prometheus("/api/v1/rules", &[("type", of)]);
        let groups = answer["data"]["groups"].as_array().unwrap();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rules.map(|rule| (text(&rule["name"]), text(&rule["health"]), text(&rule["state"]))).collect()
    };
    eventually("every alarm is evaluated", || rules("alert").iter().all(|(_, health, _)| health == "ok"));
    let state = |name: &str| {
        rules("alert").into_iter().find(|(known, _, _)| known == name).unwrap_or_else(|| panic!("no alarm {name}")).2
    };
    // What these services have and what they have not.
    for raised in ["DiskReserve", "DenialsBurst", "WallBreached", "TaskFailing"] {
        eventually(raised, || state(raised) == "firing");
    }
    assert_eq!(state("ServiceNotServing"), "pending");
    for quiet in ["TelemetryDown", "BusDown", "EventsLost", "ServiceDown", "AuditLag"] {
        assert_eq!(state(quiet), "inactive", "{quiet}");
    }
}

/// The operations that panels search for are names of spans that services make.
#[test]
fn traces_are_searched_for_by_names_that_exist() {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut searched = 0;
    for query in queries() {
        if let (Some(service), Some(operation)) = (query.target["service"].as_str(), query.target["operation"].as_str())
        {
            searched += 1;
            let wanted = format!("\"{operation}\"");
            assert!(sources(&services.join(service).join("src")).any(|text| text.contains(&wanted)), "{}", query.place);
        }
        if let Some(service) = query.target["service"].as_str() {
            assert!(SERVICES.contains(&service), "{}", query.place);
        }
    }
    assert!(searched > 0);
}

fn sources(directory: &Path) -> Box<dyn Iterator<Item = String>> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    Box::new(entries.flat_map(|path| -> Box<dyn Iterator<Item = String>> {
        if path.is_dir() { sources(&path) } else { Box::new(std::iter::once(std::fs::read_to_string(&path).unwrap())) }
    }))
}
