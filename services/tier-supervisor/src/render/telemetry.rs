//! Arguments of Jaeger and the collector's configuration. Both listen only on `telemetry` and on their own loopback.

use std::net::Ipv4Addr;

use assistant_proto::config::{JAEGER_PORT, OTLP_PORT};

/// Traces that Jaeger keeps, in memory: with the container's memory limit this bounds what a busy tier can take. The
/// record that must last is the auditor's.
const MOST_TRACES: u32 = 20_000;

/// Arguments of Jaeger 1.62 all-in-one. Every listener it has by default is named: the rest go to loopback.
pub(crate) fn jaeger_arguments(address: Ipv4Addr) -> Vec<String> {
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

/// The collector's configuration: traces in, traces on to Jaeger, bounded memory and a bounded queue.
pub(crate) fn collector_yaml(address: Ipv4Addr, jaeger: Ipv4Addr) -> String {
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
service:
  telemetry:
    metrics:
      level: none
    logs:
      level: warn
  pipelines:
    traces:
      receivers: [otlp]
      processors: [memory_limiter, batch]
      exporters: [otlp_grpc]
"#
    )
}
