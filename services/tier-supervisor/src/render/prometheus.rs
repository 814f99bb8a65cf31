//! Prometheus: its configuration, its alarms, its arguments. It scrapes the collector and nothing else.

use std::net::Ipv4Addr;

use assistant_proto::config::{METRICS_PORT, PROMETHEUS_PORT};

/// The alarms, as rules of Prometheus. Belongs beside `prometheus.yml` as `alerts.yml`.
pub const ALERTS: &str = include_str!("alerts.yml");

/// Arguments of Prometheus 2.42, which finds its files in `etc` and keeps its data below `data`.
///
/// It has no login: who may connect is the kernel table's to say. Neither its configuration nor its data can be changed
/// over HTTP, and no page of another origin may read its answers.
#[must_use]
pub fn prometheus_arguments(address: Ipv4Addr, etc: &str, data: &str) -> Vec<String> {
    vec![
        format!("--config.file={etc}/prometheus.yml"),
        format!("--storage.tsdb.path={data}/tsdb"),
        // Whichever comes first; both also bound what a mistake in our own labels could take.
        "--storage.tsdb.retention.time=7d".to_owned(),
        "--storage.tsdb.retention.size=512MB".to_owned(),
        format!("--web.listen-address={address}:{PROMETHEUS_PORT}"),
        // A pattern that no origin matches; the default is all.
        "--web.cors.origin=a^".to_owned(),
        "--web.max-connections=64".to_owned(),
        "--query.max-concurrency=4".to_owned(),
        "--query.max-samples=5000000".to_owned(),
        "--query.timeout=20s".to_owned(),
        "--log.level=warn".to_owned(),
    ]
}

/// `prometheus.yml`. Services push every ten seconds, so it asks as often.
#[must_use]
pub fn prometheus_yml(collector: Ipv4Addr) -> String {
    format!(
        r#"# Written by tier-supervisor; changes are overwritten.
global:
  scrape_interval: 10s
  scrape_timeout: 5s
  evaluation_interval: 10s
rule_files:
  - alerts.yml
scrape_configs:
  - job_name: collector
    # The collector says of each series whose it is.
    honor_labels: true
    body_size_limit: 8MB
    sample_limit: 50000
    label_value_length_limit: 256
    static_configs:
      - targets: ["{collector}:{METRICS_PORT}"]
"#
    )
}
