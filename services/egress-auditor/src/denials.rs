//! What the resolver and the receiver of Squid's feed refuse. Denials that come in numbers are folded
//! ([`service_kit::fold`]): equal ones by the same client within half a second become one event with a count, and a flood
//! becomes one event per five seconds. Every denial is counted in exactly one event. Not for Squid's log, where each line
//! is a record of its own.

use std::net::IpAddr;

use assistant_proto::event::{Attachment, EgressDenied, EventId, Layer, Scope};
use assistant_proto::name::PrincipalName;
use service_kit::clock;
use service_kit::fold::{self, Folds, Limits};
use service_kit::turns::{TurnContext, Turns};
use tokio_util::sync::CancellationToken;

use crate::ledger::{Ledger, Sighting, SpanDraft, attached, trace_of};
use crate::record::Own;

/// Whose attempt it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Who {
    /// The tier whose network it came from.
    pub tier: Scope,
    /// The container; none for an address that is nobody's.
    pub principal: Option<PrincipalName>,
}

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    /// A name that is not served.
    NameNotServed,
    /// A served name, but another record type than A and AAAA.
    TypeNotServed,
    /// Not a query.
    MalformedQuery,
    /// The source address belongs to no container of the zone.
    UnknownClient,
    /// Too many TCP connections to the resolver.
    TooManyConnections,
    /// Somebody other than Squid connected to the log feed.
    FeedIntruder,
    /// Queries that the kernel dropped because the resolver's socket was full: nobody read what they asked.
    Unread,
    /// Beyond the client's allowance of events.
    Flood,
}

impl What {
    fn code(self) -> &'static str {
        match self {
            Self::NameNotServed => "name-not-served",
            Self::TypeNotServed => "type-not-served",
            Self::MalformedQuery => "malformed-query",
            Self::UnknownClient => "unknown-client",
            Self::TooManyConnections => "too-many-connections",
            Self::FeedIntruder => "not-squid",
            Self::Unread => "unread-queries",
            Self::Flood => "flood",
        }
    }

    fn layer(self) -> Layer {
        match self {
            Self::FeedIntruder => Layer::Squid,
            _ => Layer::Dns,
        }
    }

    fn span(self) -> &'static str {
        match self {
            Self::FeedIntruder => "feed.refused",
            _ => "dns.refused",
        }
    }
}

/// What is remembered of the first of equal denials.
#[derive(Debug, Clone)]
struct First {
    source: IpAddr,
    turn: TurnContext,
}

type Folded = fold::Folded<Who, (What, String), First>;

/// Takes denials and hands them to the ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Denials {
    folds: Folds<Who, (What, String), First>,
    turns: Turns,
}

impl Denials {
    /// Attached to turns by `turns`.
    #[must_use]
    pub fn new(turns: Turns) -> Self {
        Self { folds: Folds::new(Limits::default()), turns }
    }

    /// Counts one denial. `host` must be harmless already. Never blocks for long: a lock is held for a map access.
    pub fn note(&self, who: Who, what: What, host: String, source: IpAddr) {
        self.note_many(who, what, host, source, 1);
    }

    /// Counts several equal denials.
    pub fn note_many(&self, who: Who, what: What, host: String, source: IpAddr, count: u64) {
        let turn = match &who.tier {
            Scope::Tier(tier) => self.turns.current(tier),
            Scope::Stack => TurnContext { turn: None, attachment: Attachment::Background, parent: None },
        };
        self.folds.note_many(who, (what, host), First { source, turn }, count);
    }

    /// Records what is due until `draining`, then all that is left. Run it as a critical task.
    ///
    /// # Errors
    /// When the store is closed before the end.
    pub async fn run(self, ledger: Ledger, draining: CancellationToken) -> anyhow::Result<()> {
        loop {
            // Cancel-safe: nothing is taken by waiting.
            let due = tokio::select! {
                () = draining.cancelled() => break,
                due = self.folds.due() => due,
            };
            ledger.record(due.into_iter().map(sighting).collect()).await?;
        }
        ledger.record(self.folds.rest().into_iter().map(sighting).collect()).await?;
        Ok(())
    }
}

fn sighting(folded: Folded) -> Sighting {
    let id = EventId::unique();
    let trace = trace_of(folded.value.turn.parent, &id);
    let (detail, fix) = explain(&folded);
    let Folded { client: who, key, value: First { turn, .. }, count, first, last } = folded;
    let (what, host) = key.unwrap_or((What::Flood, String::new()));
    let mut attributes = vec![
        ("tier", who.tier.as_str().to_owned()),
        ("server.address", host.clone()),
        ("reason", what.code().to_owned()),
        ("count", count.to_string()),
        attached(turn.attachment),
    ];
    if let Some(principal) = &who.principal {
        attributes.push(("principal", principal.to_string()));
    }
    let event = EgressDenied {
        tier: who.tier,
        principal: who.principal,
        layer: what.layer(),
        host,
        port: None,
        protocol: if what == What::FeedIntruder { "tcp" } else { "dns" }.to_owned(),
        reason: what.code().to_owned(),
        detail: detail.clone(),
        fix,
        count,
        turn: turn.turn,
        attachment: turn.attachment,
        trace_id: trace.trace_id(),
        observed_at: clock::rfc3339(first),
    };
    Sighting {
        id,
        event: Own::Denied(event),
        parent: turn.parent,
        span: SpanDraft { name: what.span(), start: first, end: last, error: Some(detail), attributes },
    }
}

/// What happened, and the smallest change that would allow it.
fn explain(folded: &Folded) -> (String, String) {
    let who = folded
        .client
        .principal
        .as_ref()
        .map_or_else(|| format!("the address {}", folded.value.source), |principal| principal.to_string());
    let tier = folded.client.tier.as_str();
    let (what, host) = match &folded.key {
        Some((what, host)) => (*what, host.as_str()),
        None => (What::Flood, ""),
    };
    let nothing = |why: &str| format!("nothing will allow it: {why}");
    match what {
        What::NameNotServed => {
            let policy::Denial { detail, fix, .. } = policy::explain::name_denied(&who, tier, host);
            (detail, fix)
        }
        What::TypeNotServed => (
            format!("{who} asked the resolver for a record of {host:?} that is neither A nor AAAA"),
            nothing("doors have addresses and no other records"),
        ),
        What::MalformedQuery => {
            (format!("{who} sent the resolver something that is not a query of one question"), nothing("it is not DNS"))
        }
        What::UnknownClient => (
            format!("{who} is no container of tier {tier}, but asked its resolver"),
            "if it is one of ours, let tier-supervisor apply again; otherwise find out what is on that network"
                .to_owned(),
        ),
        What::TooManyConnections => (
            format!("{who} opened more TCP connections to the resolver than a resolver's client needs"),
            nothing("ask by UDP, or with fewer connections"),
        ),
        What::Unread => (
            format!(
                "containers of tier {tier} asked the resolver at {} faster than it can read; the kernel dropped these queries",
                folded.value.source
            ),
            "look at what runs there; the events beside this one name the first of its queries".to_owned(),
        ),
        What::FeedIntruder => (
            format!("{who} connected to the port on which Squid's log is received"),
            nothing("only Squid writes its log; look at the service that has this address"),
        ),
        What::Flood => (
            format!(
                "{who} was refused many different things in a few seconds; those beyond the first are only counted"
            ),
            "look at what runs there; the events before this one name the first of its attempts".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use std::net::Ipv4Addr;
    use std::time::SystemTime;

    use super::*;

    fn folded(key: Option<(What, String)>) -> Folded {
        Folded {
            client: Who {
                tier: Scope::Tier("tasks".parse().unwrap()),
                principal: Some("zeroclaw-tasks".parse().unwrap()),
            },
            key,
            value: First {
                source: IpAddr::V4(Ipv4Addr::LOCALHOST),
                turn: TurnContext { turn: None, attachment: Attachment::Background, parent: None },
            },
            count: 3,
            first: SystemTime::UNIX_EPOCH,
            last: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_fix_names_tier_and_host() {
        let explained = |host: &str| explain(&folded(Some((What::NameNotServed, host.to_owned()))));
        let (detail, fix) = explained("news.example");
        assert!(detail.contains("zeroclaw-tasks") && detail.contains("news.example"));
        assert!(fix.contains("tier tasks") && fix.contains("news.example") && fix.contains("allowlist.txt"), "{fix}");
        assert!(explained("c2VjcmV0").1.starts_with("nothing will allow it"));
    }

    #[test]
    fn a_flood_is_an_event_with_its_count() {
        let Own::Denied(event) = sighting(folded(None)).event else { panic!("not a denial") };
        assert_eq!((event.reason.as_str(), event.host.as_str(), event.count), ("flood", "", 3));
        assert_eq!((event.layer, event.protocol.as_str()), (Layer::Dns, "dns"));
    }
}
