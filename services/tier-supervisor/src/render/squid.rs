//! squid.conf from `squid/squid.conf.template`, its lists of hosts and its users.
//!
//! The template holds everything that is the same for every stack, so that a person can read the floor in one place. This
//! fills in addresses and, per Squid user, the lines that let exactly that user reach exactly its own hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use assistant_proto::config::{SQUID_FEED_PORT, SQUID_PORT};

use crate::addresses::{HOST_AUDITOR, TRANSIT};
use crate::config::{EndpointHost, HostPattern, Scheme, Tier, squid_list};
use crate::desired::DesiredError;
use crate::desired::containers::{ETC, Parts};
use crate::desired::outward::{Reach, reaches, services_hosts};

/// Every file of Squid that is rendered here.
pub(crate) struct Squid {
    pub(crate) conf: String,
    /// Name of a `dstdomain` list -> its lines.
    pub(crate) lists: BTreeMap<String, String>,
    /// `user:<sha256 of the password>` lines.
    pub(crate) users: String,
}

/// The port of everybody who was given no other.
const TLS_PORT: u16 = 443;
/// Entry of the list of a user that may reach nothing: an empty list would only be warned about. RFC 6761 keeps the name
/// from ever existing.
const NOWHERE: &str = "nowhere.invalid";

pub(crate) fn squid(parts: &Parts<'_>, address: Ipv4Addr) -> Result<Squid, DesiredError> {
    let mut rules = Rules::default();
    let services = squid_list(&services_hosts(parts));
    rules.lists.insert("services".to_owned(), services.join("\n") + "\n");
    rules.acls.push(format!("acl service_hosts dstdomain -n \"{ETC}/lists/services.txt\""));
    let mut users = String::new();
    for tier in &parts.config.tiers {
        rules.tier(tier);
        users.push_str(&user(parts, tier.name.as_str())?);
    }
    for (name, reach) in reaches(parts) {
        rules.service(name, &reach);
        users.push_str(&user(parts, name)?);
    }
    let servers: Vec<String> = parts.settings.dns_servers.iter().map(ToString::to_string).collect();
    let ports: Vec<String> = rules.tls_ports.iter().map(ToString::to_string).collect();
    let auditor = parts.address(TRANSIT, HOST_AUDITOR)?;
    let conf = fill(
        &parts.material.squid_template,
        &[
            ("@LISTEN@", format!("{address}:{SQUID_PORT}")),
            ("@FEED@", format!("{auditor}:{SQUID_FEED_PORT}")),
            ("@DNS_SERVERS@", servers.join(" ")),
            ("@TLS_PORTS@", ports.join(" ")),
            ("@USER_ACLS@", rules.acls.join("\n")),
            ("@ENDPOINTS@", rules.endpoints.join("\n")),
            ("@USER_DENIES@", rules.denies.join("\n")),
            ("@USER_ALLOWS@", rules.allows.join("\n")),
            ("@USER_SPLICES@", rules.splices.join("\n")),
        ],
    )?;
    Ok(Squid { conf, lists: rules.lists, users })
}

fn user(parts: &Parts<'_>, name: &str) -> Result<String, DesiredError> {
    let password = parts.material.tokens.squid_user(name).ok_or(DesiredError::Missing { what: "a user of Squid" })?;
    Ok(format!("{name}:{}\n", password.sha256()))
}

/// Lines of squid.conf that differ from stack to stack, and the lists they name.
struct Rules {
    lists: BTreeMap<String, String>,
    /// Ports that somebody may CONNECT to.
    tls_ports: BTreeSet<u16>,
    acls: Vec<String>,
    /// What comes before every denial: the owner's endpoints that are addresses, or speak plain HTTP.
    endpoints: Vec<String>,
    denies: Vec<String>,
    allows: Vec<String>,
    splices: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            lists: BTreeMap::new(),
            tls_ports: BTreeSet::from([TLS_PORT]),
            acls: Vec::new(),
            endpoints: Vec::new(),
            denies: Vec::new(),
            allows: Vec::new(),
            splices: Vec::new(),
        }
    }
}

impl Rules {
    fn tier(&mut self, tier: &Tier) {
        let user = tier.name.as_str();
        let id = format!("tier_{user}");
        self.user(&id, user, &format!("tier-{user}"), &squid_list(&hosts(tier)));
        // Only lines of a tier carry its name, so that Squid's log never claims a service's traffic for a tier.
        self.acls.push(format!("acl tag_{id} annotate_client tier={user}"));
        self.denies.push(format!("http_access deny user_{id} !https all"));
        // Whatever its list says: what is a service's is nobody else's.
        self.denies.push(format!("http_access deny user_{id} service_hosts all"));
        self.denies.push(format!("http_access deny user_{id} !hosts_{id} all"));
        self.allows.push(format!("http_access allow user_{id} tag_{id} hosts_{id}"));
        self.splices.push(format!("ssl_bump splice step2 user_{id} sni_{id} sni_ok"));
    }

    fn service(&mut self, user: &str, reach: &Reach) {
        let id = format!("service_{user}");
        let list = format!("service-{user}");
        let endpoint = match reach {
            Reach::Hosts(hosts) => {
                self.user(&id, user, &list, &squid_list(hosts));
                self.named(&id, TLS_PORT);
                return;
            }
            Reach::Endpoint(endpoint) => endpoint,
        };
        let port = endpoint.port;
        self.user(&id, user, &list, &[endpoint.host.to_string()]);
        self.acls.push(format!("acl port_{id} port {port}"));
        // The host and the port come before the user: a request that is not for them is not asked who it is from here.
        match (endpoint.scheme, &endpoint.host) {
            (Scheme::Https, EndpointHost::Name(_)) => {
                self.tls_ports.insert(port);
                self.named(&id, port);
            }
            (Scheme::Https, EndpointHost::Address(_)) => {
                self.endpoints.push(format!("http_access allow CONNECT hosts_{id} port_{id} user_{id}"));
                // No name was asked for, so none is in the handshake.
                self.splices.push(format!("ssl_bump splice step2 hosts_{id} port_{id} user_{id}"));
                self.denies.push(format!("http_access deny user_{id} all"));
            }
            (Scheme::Http, _) => {
                self.acls.push(format!("acl plain_{id} proto HTTP"));
                let allow = "http_access allow !CONNECT";
                self.endpoints.push(format!("{allow} plain_{id} hosts_{id} port_{id} user_{id}"));
                self.denies.push(format!("http_access deny user_{id} all"));
            }
        }
    }

    /// A service with names: public addresses only, and the handshake must ask for the same name.
    fn named(&mut self, id: &str, port: u16) {
        if port == TLS_PORT {
            self.denies.push(format!("http_access deny user_{id} !https all"));
        } else {
            self.denies.push(format!("http_access deny user_{id} !port_{id} all"));
        }
        self.denies.push(format!("http_access deny user_{id} !hosts_{id} all"));
        self.allows.push(format!("http_access allow user_{id} hosts_{id}"));
        self.splices.push(format!("ssl_bump splice step2 user_{id} sni_{id} sni_ok"));
    }

    fn user(&mut self, id: &str, user: &str, list: &str, entries: &[String]) {
        let file = format!("\"{ETC}/lists/{list}.txt\"");
        self.acls.push(format!("acl user_{id} proxy_auth {user}"));
        self.acls.push(format!("acl hosts_{id} dstdomain -n {file}"));
        self.acls.push(format!("acl sni_{id} ssl::server_name --client-requested {file}"));
        let text = if entries.is_empty() { format!("{NOWHERE}\n") } else { entries.join("\n") + "\n" };
        self.lists.insert(list.to_owned(), text);
    }
}

/// Hosts that a tier may reach at all: those of its credentials and its egress. The broker's rules are narrower still.
fn hosts(tier: &Tier) -> Vec<HostPattern> {
    let credentials = tier.credentials.iter().flat_map(|credential| credential.hosts.iter().cloned());
    let egress = tier.egress.iter().flat_map(|egress| egress.hosts.iter().cloned());
    credentials.chain(egress).collect()
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
