//! Arguments of Jaeger and the collector's configuration. Both listen only on `telemetry` and on their own loopback.

use std::net::Ipv4Addr;

use assistant_proto::config::{JAEGER_PORT, METRICS_PORT, OTLP_PORT};

/// Traces that Jaeger keeps, in memory: with the container's memory limit this bounds what a busy tier can take. The
/// record that must last is the auditor's.
const MOST_TRACES: u32 = 5_000;

/// Arguments of Jaeger 1.62 all-in-one. Every listener it has by default is named: the rest go to loopback.
#[must_use]
pub fn jaeger_arguments(address: Ipv4Addr) -> Vec<String> {
    vec![
        "--collector.otlp.enabled=true".to_owned(),
        format!("--collector.otlp.grpc.host-port={address}:{OTLP_PORT}"),
        "--collector.otlp.http.host-port=127.0.0.1:4318".to_owned(),
        "--collector.grpc-server.host-port=127.0.0.1:14250".to_owned(),
        "--collector.http-server.host-port=127.0.0.1:14268".to_owned(),
        format!("--query.http-server.host-port={address}:{JAEGER_PORT}"),
        "--query.grpc-server.host-port=127.0.0.1:16685".to_owned(),
        "--admin.http.host-port=127.0.0.1:14269".to_owned(),
        "--http-server.host-port=127.0.0.1:5778".to_owned(),
        "--processor.jaeger-binary.server-host-port=127.0.0.1:6832".to_owned(),
        "--processor.jaeger-compact.server-host-port=127.0.0.1:6831".to_owned(),
        "--processor.zipkin-compact.server-host-port=127.0.0.1:5775".to_owned(),
        format!("--memory.max-traces={MOST_TRACES}"),
        "--log-level=warn".to_owned(),
    ]
}

/// An OTLP endpoint of the owner's outside of the VM, which gets what Jaeger and Prometheus get.
#[derive(Debug, Clone)]
pub struct Outside {
    /// `https://...`, as in OTEL_EXPORTER_OTLP_ENDPOINT: `/v1/traces` and `/v1/metrics` are added to it. OTLP over HTTP
    /// only: gRPC knows no proxy here.
    pub endpoint: String,
    /// File in the collector's container with the URL of Squid, user and password included; see [`secret_value`].
    pub proxy_file: String,
    /// Headers by name, each value in a file of that form, as from OTEL_EXPORTER_OTLP_HEADERS.
    pub headers: Vec<(String, String)>,
}

/// The form in which the collector reads a value from a file: the whole of it as it is, but for `$`.
#[must_use]
pub fn secret_value(value: &str) -> String {
    value.replace('$', "$$")
}

/// Every JSON string is a double-quoted scalar of YAML 1.2.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string().replace('$', "$$")
}

/// The collector's configuration: traces and metrics in; traces on to Jaeger, metrics to be asked for by Prometheus, both
/// also to an endpoint outside where there is one. Bounded memory and bounded queues, each exporter its own: one that is
/// slow or away costs the others nothing.
#[must_use]
pub fn collector_yaml(address: Ipv4Addr, jaeger: Ipv4Addr, outside: Option<&Outside>) -> String {
    let (exporter, also) = match outside {
        None => (String::new(), ""),
        Some(outside) => (outside_exporter(outside), ", otlp_http/outside"),
    };
    format!(
        r#"# Written by tier-supervisor; changes are overwritten.
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: "{address}:{OTLP_PORT}"
        max_recv_msg_size_mib: 4
processors:
  memory_limiter:
    check_interval: 1s
    limit_mib: 160
    spike_limit_mib: 40
  batch:
    timeout: 200ms
    send_batch_size: 512
    send_batch_max_size: 2048
exporters:
  otlp_grpc:
    endpoint: "{jaeger}:{OTLP_PORT}"
    tls:
      insecure: true
    sending_queue:
      queue_size: 1000
    retry_on_failure:
      max_elapsed_time: 60s
  prometheus:
    endpoint: "{address}:{METRICS_PORT}"
    # Names are those that our instruments have.
    translation_strategy: UnderscoreEscapingWithoutSuffixes
    without_scope_info: true
    resource_constant_labels:
      included: [service.name, assistant.mode]
    # Services push every ten seconds: one that is silent for so long is gone.
    metric_expiration: 45s
{exporter}service:
  telemetry:
    metrics:
      level: none
    logs:
      level: warn
  pipelines:
    traces:
      receivers: [otlp]
      processors: [memory_limiter, batch]
      exporters: [otlp_grpc{also}]
    metrics:
      receivers: [otlp]
      processors: [memory_limiter, batch]
      exporters: [prometheus{also}]
"#
    )
}

fn outside_exporter(outside: &Outside) -> String {
    let mut headers = String::new();
    for (name, file) in &outside.headers {
        headers.push_str(&format!("\n      {}: ${{file:{file}}}", quoted(name)));
    }
    if headers.is_empty() {
        headers.push_str(" {}");
    }
    format!(
        r#"  otlp_http/outside:
    endpoint: {endpoint}
    proxy_url: ${{file:{proxy}}}
    headers:{headers}
    sending_queue:
      queue_size: 500
    retry_on_failure:
      max_elapsed_time: 60s
"#,
        endpoint = quoted(&outside.endpoint),
        proxy = outside.proxy_file,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_into_the_collectors_file_stays_a_string() {
        assert_eq!(secret_value("Bearer a: ${b}\"#"), "Bearer a: $${b}\"#");
        let outside = Outside {
            endpoint: "https://otlp.example/a?b=$c".to_owned(),
            proxy_file: "/etc/assistant/keys/outside-proxy".to_owned(),
            headers: vec![("authorization".to_owned(), "/etc/assistant/keys/outside-header-0".to_owned())],
        };
        let yaml = collector_yaml(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, Some(&outside));
        for line in [
            "    endpoint: \"https://otlp.example/a?b=$$c\"",
            "    proxy_url: ${file:/etc/assistant/keys/outside-proxy}",
            "      \"authorization\": ${file:/etc/assistant/keys/outside-header-0}",
            "      exporters: [otlp_grpc, otlp_http/outside]",
            "      exporters: [prometheus, otlp_http/outside]",
        ] {
            assert!(yaml.lines().any(|there| there == line), "{line}\n{yaml}");
        }
        let without = collector_yaml(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, None);
        assert!(!without.contains("outside") && !without.contains("file:"));
    }
}
