//! nats.conf: TLS, one nkey user per service, and what each may say and hear.
//!
//! Permissions are allow-lists: a subject nobody wrote down is refused. Each user has an inbox of its own, so nobody reads
//! another's replies. Events that a service does not own cannot be forged by it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use assistant_proto::config::NATS_PORT;

use crate::desired::DesiredError;
use crate::desired::containers::{DATA, ETC, Parts};

/// Where the server says how it is, on its own loopback.
pub(crate) const NATS_MONITOR_PORT: u16 = 8222;

/// A user and its subjects, without its inbox.
struct User {
    name: &'static str,
    publish: &'static [&'static str],
    subscribe: &'static [&'static str],
    /// Stream and durable consumer from which it reads.
    consumers: &'static [(&'static str, &'static str)],
    /// Users whose questions it answers, by publishing to their inboxes. Not `allow_responses`: that would let it publish to
    /// whatever subject the asker names as its inbox.
    answers: &'static [&'static str],
}

const USERS: [User; 3] = [
    User {
        name: "secret-broker",
        publish: &[
            "egress.denied.*",
            "egress.permitted.*",
            "egress.allowed.*",
            "secret.injected.*",
            "model.called.*",
            "tool.called.*",
        ],
        subscribe: &["turn.started.*", "turn.ended.*"],
        consumers: &[],
        answers: &["channel-bridge"],
    },
    User {
        name: "egress-auditor",
        publish: &["egress.denied.*", "egress.allowed.*", "floor.breached.stack"],
        subscribe: &["turn.started.*", "turn.ended.*"],
        consumers: &[("EVENTS", "auditor"), ("PERMITTED", "auditor")],
        answers: &["channel-bridge"],
    },
    User {
        name: "channel-bridge",
        publish: &[
            "turn.started.*",
            "turn.ended.*",
            "approval.requested.*",
            "approval.decided.*",
            "channel.received.*",
            "channel.replied.*",
            "channel.sent.*",
            "channel.ignored.*",
            "undecodable.INBOX",
            "undecodable.OUTBOX",
        ],
        subscribe: &[],
        consumers: &[("INBOX", "bridge"), ("OUTBOX", "bridge")],
        answers: &[],
    },
];

/// What the operator may hear. Not `channel.received`, `channel.replied`: conversations are not for every shell.
const OPERATOR: [&str; 11] = [
    "egress.>",
    "tier.>",
    "turn.>",
    "secret.>",
    "approval.>",
    "model.>",
    "tool.>",
    "floor.>",
    "attestation.>",
    "channel.ignored.>",
    "channel.sent.>",
];

/// Every user's inbox begins so, then comes its name.
const INBOX_PREFIX: &str = "_INBOX_";

/// A subject on which nothing is ever said: an empty allow-list would mean "everything".
const NOTHING: &str = "nothing";

pub(crate) fn nats_conf(parts: &Parts<'_>, address: Ipv4Addr) -> Result<String, DesiredError> {
    let public = |user: &str| {
        let missing = DesiredError::Missing { what: "the nkey of a NATS user" };
        parts.material.tokens.nkey(user).map(|nkey| nkey.public.as_str()).ok_or(missing)
    };
    let mut users = String::new();
    write_user(&mut users, public("tier-supervisor")?, &list([">"]), &list([">"]), &[]);
    for user in &USERS {
        let mut publish: Vec<String> = user.publish.iter().map(|subject| (*subject).to_owned()).collect();
        for (stream, durable) in user.consumers {
            publish.extend([
                format!("$JS.API.STREAM.INFO.{stream}"),
                format!("$JS.API.CONSUMER.INFO.{stream}.{durable}"),
                format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"),
                // Acknowledgements, in the form with and the form without a domain.
                format!("$JS.ACK.{stream}.{durable}.>"),
                format!("$JS.ACK.*.*.{stream}.{durable}.>"),
            ]);
        }
        publish.extend(user.answers.iter().copied().map(inbox));
        let subscribe: Vec<String> =
            user.subscribe.iter().map(|subject| (*subject).to_owned()).chain([inbox(user.name)]).collect();
        write_user(&mut users, public(user.name)?, &list(&publish), &list(&subscribe), &[]);
    }
    let hears: Vec<&str> = OPERATOR.into_iter().chain(["_INBOX_operator.>"]).collect();
    write_user(&mut users, public("operator")?, &list([NOTHING]), &list(&hears), &[">"]);
    let mode = parts.settings.mode.as_str();
    Ok(format!(
        r#"# Written by tier-supervisor; changes are overwritten.
server_name: "assistant-{mode}"
listen: "{address}:{NATS_PORT}"
# Inside this container only: where it is asked whether JetStream works.
http: "127.0.0.1:{NATS_MONITOR_PORT}"
max_connections: 128
max_payload: 1MB
max_pending: 64MB
write_deadline: "5s"
lame_duck_duration: "30s"
lame_duck_grace_period: "2s"

tls {{
  cert_file: "{ETC}/server.pem"
  key_file: "{ETC}/server.key"
  min_version: "1.3"
  timeout: 5
}}

jetstream {{
  store_dir: "{DATA}/jetstream"
  max_memory_store: 16MB
  max_file_store: 4GB
  # An acknowledged message is on disk, whatever happens next.
  sync_interval: always
}}

system_account: SYS
accounts {{
  SYS {{}}
  ASSISTANT {{
    jetstream: enabled
    users: [
{users}    ]
  }}
}}
"#
    ))
}

/// Where a user's answers arrive.
fn inbox(user: &str) -> String {
    format!("{INBOX_PREFIX}{user}.>")
}

fn write_user(out: &mut String, nkey: &str, publish: &str, subscribe: &str, deny: &[&str]) {
    let deny = if deny.is_empty() { String::new() } else { format!(", deny: {}", list(deny)) };
    // Writing to a String does not fail.
    let written = write!(
        out,
        "      {{ nkey: {nkey}, permissions: {{\n        publish: {{ allow: {publish}{deny} }}\n        subscribe: {{ allow: \
         {subscribe} }}\n      }} }}\n"
    );
    debug_assert!(written.is_ok());
}

fn list<T: AsRef<str>>(subjects: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = subjects.into_iter().map(|subject| format!("\"{}\"", subject.as_ref())).collect();
    format!("[{}]", quoted.join(", "))
}
