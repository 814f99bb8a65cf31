//! Text of every file that tier-supervisor writes for others: configurations of services, of ZeroClaw, NATS, Squid and the
//! collector. Pure: values in, text out, equal values give equal bytes.
//!
//! Owns formats and their quoting. What stands in the files is decided by `config` and `desired`; writing them is the
//! engine's. Formats without a serialiser here (nats.conf, squid.conf, the collector's YAML) get only values whose
//! alphabet was checked when they were parsed: names, numbers, addresses, hex.

mod nats;
mod services;
mod squid;
mod telemetry;
mod zeroclaw;

use std::net::Ipv4Addr;

pub(crate) use nats::{NATS_MONITOR_PORT, nats_conf};
pub(crate) use services::{auditor_config, bridge_config, broker_config, rules};
pub(crate) use squid::squid;
pub(crate) use telemetry::{collector_yaml, jaeger_arguments};
pub(crate) use zeroclaw::{no_proxy, zeroclaw_toml};

/// resolv.conf with one resolver. One try of two seconds: ours answers at once or is not there.
pub(crate) fn resolv_conf(resolver: Ipv4Addr) -> String {
    format!("nameserver {resolver}\noptions timeout:2 attempts:1 ndots:0\n")
}

/// `NAME=value` lines. Names and values were checked: variables and placeholders.
pub(crate) fn env_file(variables: &[(String, String)]) -> String {
    variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}
