//! squid.conf from `squid/squid.conf.template`, its lists of hosts and its users.
//!
//! The template holds everything that is the same for every stack, so that a person can read the floor in one place. This
//! fills in addresses and, per Squid user, the lines that let exactly that user reach exactly its own hosts.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use assistant_proto::config::{SQUID_FEED_PORT, SQUID_PORT};

use crate::addresses::{HOST_AUDITOR, TRANSIT};
use crate::config::{HostPattern, Tier, squid_list};
use crate::desired::DesiredError;
use crate::desired::containers::{ETC, Parts};
use crate::tokens::SQUID_MODELS_USER;

/// Every file of Squid that is rendered here.
pub(crate) struct Squid {
    pub(crate) conf: String,
    /// Squid user -> its `dstdomain` list.
    pub(crate) lists: BTreeMap<String, String>,
    /// `user:<sha256 of the password>` lines.
    pub(crate) users: String,
}

/// Entry of the list of a user that may reach nothing: an empty list would only be warned about. RFC 6761 keeps the name
/// from ever existing.
const NOWHERE: &str = "nowhere.invalid";

pub(crate) fn squid(parts: &Parts<'_>, address: Ipv4Addr) -> Result<Squid, DesiredError> {
    let mut lists = BTreeMap::new();
    let mut denies = Vec::new();
    let mut allows = Vec::new();
    let mut splices = Vec::new();
    let mut acls = Vec::new();
    let tiers = parts.config.tiers.iter().map(|tier| (tier.name.as_str(), hosts(tier), true));
    let model = parts.settings.model.host().map(HostPattern::Exact).into_iter().collect();
    for (user, hosts, is_tier) in tiers.chain([(SQUID_MODELS_USER, model, false)]) {
        let entries = squid_list(&hosts);
        let list = if entries.is_empty() { format!("{NOWHERE}\n") } else { entries.join("\n") + "\n" };
        let file = format!("\"{ETC}/lists/{}.txt\"", list_name(user, is_tier));
        let id = acl_name(user, is_tier);
        acls.push(format!("acl user_{id} proxy_auth {user}"));
        acls.push(format!("acl hosts_{id} dstdomain -n {file}"));
        acls.push(format!("acl sni_{id} ssl::server_name --client-requested {file}"));
        denies.push(format!("http_access deny user_{id} !hosts_{id} all"));
        if is_tier {
            // Only lines of a tier carry its name, so that Squid's log never claims a service's traffic for a tier.
            acls.push(format!("acl tag_{id} annotate_client tier={user}"));
            allows.push(format!("http_access allow user_{id} tag_{id} hosts_{id}"));
        } else {
            allows.push(format!("http_access allow user_{id} hosts_{id}"));
        }
        splices.push(format!("ssl_bump splice step2 user_{id} sni_{id} sni_ok"));
        lists.insert(list_name(user, is_tier), list);
    }
    let users =
        parts.material.tokens.squid_users().map(|(user, password)| format!("{user}:{}\n", password.sha256())).collect();
    let servers: Vec<String> = parts.settings.dns_servers.iter().map(ToString::to_string).collect();
    let auditor = parts.address(TRANSIT, HOST_AUDITOR)?;
    let conf = fill(
        &parts.material.squid_template,
        &[
            ("@LISTEN@", format!("{address}:{SQUID_PORT}")),
            ("@FEED@", format!("{auditor}:{SQUID_FEED_PORT}")),
            ("@DNS_SERVERS@", servers.join(" ")),
            ("@USER_ACLS@", acls.join("\n")),
            ("@USER_DENIES@", denies.join("\n")),
            ("@USER_ALLOWS@", allows.join("\n")),
            ("@USER_SPLICES@", splices.join("\n")),
        ],
    )?;
    Ok(Squid { conf, lists, users })
}

/// Hosts that a tier may reach at all: those of its credentials and its egress. The broker's rules are narrower still.
fn hosts(tier: &Tier) -> Vec<HostPattern> {
    let credentials = tier.credentials.iter().flat_map(|credential| credential.hosts.iter().cloned());
    let egress = tier.egress.iter().flat_map(|egress| egress.hosts.iter().cloned());
    credentials.chain(egress).collect()
}

/// Names of ACLs and lists, kept apart for tiers and services whatever tiers are called.
fn acl_name(user: &str, is_tier: bool) -> String {
    if is_tier { format!("tier_{user}") } else { format!("service_{user}") }
}

fn list_name(user: &str, is_tier: bool) -> String {
    if is_tier { format!("tier-{user}") } else { format!("service-{user}") }
}

/// Replaces every marker. Each must be there exactly once, outside comments, and no other may remain.
fn fill(template: &str, values: &[(&str, String)]) -> Result<String, DesiredError> {
    let wrong = |what: String| DesiredError::SquidTemplate { what };
    let mut text = String::new();
    for line in template.lines() {
        // Comments are for the template's reader; they would only repeat markers here.
        if !line.trim_start().starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    for (marker, value) in values {
        if text.matches(marker).count() != 1 {
            return Err(wrong(format!("{marker} must stand in it exactly once")));
        }
        text = text.replace(marker, value);
    }
    match text.lines().find(|line| line.contains('@')) {
        Some(_) => Err(wrong("it holds a marker that this version does not know".to_owned())),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn templates_must_fit() {
        let values = [("@A@", "1".to_owned()), ("@B@", "2".to_owned())];
        assert_eq!(fill("# about @A@ and @C@\nx @A@\n  # y\nz @B@\n", &values).unwrap(), "x 1\nz 2\n");
        for bad in ["x @A@\n", "x @A@ @A@ @B@\n", "@A@ @B@ @C@\n", ""] {
            assert!(matches!(fill(bad, &values), Err(DesiredError::SquidTemplate { .. })), "{bad}");
        }
    }
}
