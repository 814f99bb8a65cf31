//! Text of every file that tier-supervisor writes for others: configurations of services, of ZeroClaw, NATS, Squid, the
//! collector, Prometheus and Grafana. Pure: values in, text out, equal values give equal bytes.
//!
//! Owns formats and their quoting. What stands in the files is decided by `config` and `desired`; writing them is the
//! engine's. Formats without a serialiser here (nats.conf, squid.conf, the collector's YAML) get only values whose
//! alphabet was checked when they were parsed: names, numbers, addresses, hex.

mod grafana;
mod litellm;
mod nats;
mod prometheus;
mod services;
mod squid;
mod telemetry;
mod zeroclaw;

use std::net::Ipv4Addr;

pub use grafana::{GRAFANA_DASHBOARDS, Grafana};
pub(crate) use litellm::{litellm_config, master_key, master_key_file};
pub(crate) use nats::{NATS_MONITOR_PORT, nats_conf};
pub use prometheus::{ALERTS, prometheus_arguments, prometheus_yml};
pub(crate) use services::{
    SQUID_PASSWORD_FILE, auditor_config, bridge_config, broker_config, rules, telegram_token_file,
};
pub(crate) use squid::squid;
pub use telemetry::{Outside, collector_yaml, jaeger_arguments, secret_value};
pub(crate) use zeroclaw::{no_proxy, zeroclaw_toml};

/// resolv.conf with one resolver. One try of two seconds: ours answers at once or is not there.
pub(crate) fn resolv_conf(resolver: Ipv4Addr) -> String {
    format!("nameserver {resolver}\noptions timeout:2 attempts:1 ndots:0\n")
}

/// `NAME=value` lines. Names and values were checked: variables and placeholders.
pub(crate) fn env_file(variables: &[(String, String)]) -> String {
    variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}
