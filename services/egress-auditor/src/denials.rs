//! Folds denials that come in numbers: equal ones by the same client within half a second become one event with a
//! count, and a flood becomes one event per five seconds. Every denial is counted in exactly one event, and memory stays
//! bounded whatever a tier does. Used by the resolver and by the receiver of Squid's feed; not for Squid's log, where
//! each line is a record of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use assistant_proto::event::{Attachment, EgressDenied, EventId, Layer, Scope};
use assistant_proto::name::{HostName, PrincipalName};
use service_kit::clock;
use service_kit::turns::{TurnContext, Turns};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::{Ledger, Sighting, SpanDraft, attached, trace_of};
use crate::record::Own;

/// Equal denials within this time of the first are one event. Short enough that a person sees it within a second.
pub const FOLD: Duration = Duration::from_millis(500);
/// What is beyond a client's allowance is folded for this long.
pub const FLOOD_FOLD: Duration = Duration::from_secs(5);
/// Events of its own a client may cause in a burst. A browser that starts asks for a few dozen names.
const BURST: f64 = 64.0;
/// And for ever after, per second: with floods this bounds the store's growth to about 100 MB a day and client.
const PER_SECOND: f64 = 1.0;
/// Entries of one client that may wait while the store cannot be written.
const MOST_WAITING: usize = 256;

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

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    who: Who,
    what: What,
    host: String,
}

/// Equal denials.
#[derive(Debug, Clone)]
pub struct Folded {
    who: Who,
    what: What,
    host: String,
    source: IpAddr,
    count: u64,
    turn: TurnContext,
    first: SystemTime,
    last: SystemTime,
}

#[derive(Debug)]
struct Waiting {
    folded: Folded,
    due: Instant,
}

#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
    waiting: usize,
}

/// The fold itself; pure but for the times it is given.
#[derive(Debug, Default)]
struct Window {
    waiting: HashMap<Key, Waiting>,
    /// One per client: as many as there are containers, and one per zone for strangers.
    allowances: HashMap<Who, Allowance>,
}

impl Window {
    fn note(&mut self, mut key: Key, source: IpAddr, turn: &TurnContext, now: Instant, at: SystemTime) {
        if !self.waiting.contains_key(&key) && !self.spend(&key.who, now) {
            key = Key { who: key.who, what: What::Flood, host: String::new() };
        }
        match self.waiting.get_mut(&key) {
            Some(waiting) => {
                waiting.folded.count = waiting.folded.count.saturating_add(1);
                waiting.folded.last = at;
            }
            None => {
                let fold = if key.what == What::Flood { FLOOD_FOLD } else { FOLD };
                let folded = Folded {
                    who: key.who.clone(),
                    what: key.what,
                    host: key.host.clone(),
                    source,
                    count: 1,
                    turn: turn.clone(),
                    first: at,
                    last: at,
                };
                if let Some(allowance) = self.allowances.get_mut(&key.who) {
                    allowance.waiting = allowance.waiting.saturating_add(1);
                }
                self.waiting.insert(key, Waiting { folded, due: now + fold });
            }
        }
    }

    /// Whether the client may have one more event of its own.
    fn spend(&mut self, who: &Who, now: Instant) -> bool {
        if !self.allowances.contains_key(who) {
            self.allowances.insert(who.clone(), Allowance { left: BURST, at: now, waiting: 0 });
        }
        let Some(allowance) = self.allowances.get_mut(who) else { return false };
        let earned = now.saturating_duration_since(allowance.at).as_secs_f64() * PER_SECOND;
        allowance.left = (allowance.left + earned).min(BURST);
        allowance.at = now;
        if allowance.left < 1.0 || allowance.waiting >= MOST_WAITING {
            return false;
        }
        allowance.left -= 1.0;
        true
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    fn take_due(&mut self, now: Option<Instant>) -> Vec<Folded> {
        let due: Vec<Key> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| now.is_none_or(|now| waiting.due <= now))
            .map(|(key, _)| key.clone())
            .collect();
        let mut taken: Vec<Folded> = Vec::with_capacity(due.len());
        for key in due {
            if let Some(waiting) = self.waiting.remove(&key) {
                if let Some(allowance) = self.allowances.get_mut(&key.who) {
                    allowance.waiting = allowance.waiting.saturating_sub(1);
                }
                taken.push(waiting.folded);
            }
        }
        taken.sort_by_key(|folded| folded.first);
        taken
    }
}

/// Takes denials and hands them to the ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Denials {
    window: Arc<Mutex<Window>>,
    added: Arc<Notify>,
    turns: Turns,
}

impl Denials {
    /// Attached to turns by `turns`.
    #[must_use]
    pub fn new(turns: Turns) -> Self {
        Self { window: Arc::default(), added: Arc::new(Notify::new()), turns }
    }

    /// Counts one denial. `host` must be harmless already. Never blocks for long: the lock is held for a map access.
    pub fn note(&self, who: Who, what: What, host: String, source: IpAddr) {
        let turn = match &who.tier {
            Scope::Tier(tier) => self.turns.current(tier),
            Scope::Stack => TurnContext { turn: None, attachment: Attachment::Background, parent: None },
        };
        self.lock().note(Key { who, what, host }, source, &turn, Instant::now(), SystemTime::now());
        self.added.notify_one();
    }

    /// Records what is due until `draining`, then all that is left. Run it as a critical task.
    ///
    /// # Errors
    /// When the store is closed before the end.
    pub async fn run(self, ledger: Ledger, draining: CancellationToken) -> anyhow::Result<()> {
        loop {
            let due = self.lock().next_due();
            // Cancel-safe: nothing is taken from the window by waiting.
            tokio::select! {
                () = draining.cancelled() => break,
                () = self.added.notified() => {}
                () = sleep_until(due) => {}
            }
            let taken = self.lock().take_due(Some(Instant::now()));
            if !taken.is_empty() {
                ledger.record(taken.into_iter().map(sighting).collect()).await?;
            }
        }
        let rest = self.lock().take_due(None);
        ledger.record(rest.into_iter().map(sighting).collect()).await?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn sighting(folded: Folded) -> Sighting {
    let id = EventId::unique();
    let trace = trace_of(folded.turn.parent, &id);
    let (detail, fix) = explain(&folded);
    let event = EgressDenied {
        tier: folded.who.tier.clone(),
        principal: folded.who.principal.clone(),
        layer: folded.what.layer(),
        host: folded.host.clone(),
        port: None,
        protocol: if folded.what == What::FeedIntruder { "tcp" } else { "dns" }.to_owned(),
        reason: folded.what.code().to_owned(),
        detail: detail.clone(),
        fix,
        count: folded.count,
        turn: folded.turn.turn.clone(),
        attachment: folded.turn.attachment,
        trace_id: trace.trace_id(),
        observed_at: clock::rfc3339(folded.first),
    };
    let mut attributes = vec![
        ("tier", folded.who.tier.as_str().to_owned()),
        ("server.address", folded.host.clone()),
        ("reason", folded.what.code().to_owned()),
        ("count", folded.count.to_string()),
        attached(folded.turn.attachment),
    ];
    if let Some(principal) = &folded.who.principal {
        attributes.push(("principal", principal.to_string()));
    }
    Sighting {
        id,
        event: Own::Denied(event),
        parent: folded.turn.parent,
        span: SpanDraft {
            name: folded.what.span(),
            start: folded.first,
            end: folded.last,
            error: Some(detail),
            attributes,
        },
    }
}

/// What happened, and the smallest change that would allow it.
fn explain(folded: &Folded) -> (String, String) {
    let who = folded
        .who
        .principal
        .as_ref()
        .map_or_else(|| format!("the address {}", folded.source), |principal| principal.to_string());
    let tier = folded.who.tier.as_str();
    let host = &folded.host;
    let nothing = |why: &str| format!("nothing will allow it: {why}");
    match folded.what {
        What::NameNotServed => {
            let detail = format!(
                "{who} asked the resolver for {host:?}; it answers the tier's own doors only and forwards nothing"
            );
            let fix = if host.parse::<HostName>().is_ok() {
                format!(
                    "tiers reach hosts through the proxy (HTTPS_PROXY, by CONNECT), never by DNS; if tier {tier} may reach {host}, \
                     add it to `egress` or `credentials` of the tier in tiers.yaml and to squid/allowlist.txt"
                )
            } else {
                nothing("it is not a host name, and a tier's resolver serves only its doors")
            };
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
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn who(name: &str) -> Who {
        Who { tier: Scope::Tier("tasks".parse().unwrap()), principal: Some(name.parse().unwrap()) }
    }

    fn background() -> TurnContext {
        TurnContext { turn: None, attachment: Attachment::Background, parent: None }
    }

    fn note(window: &mut Window, name: &str, host: &str, now: Instant) {
        let key = Key { who: who(name), what: What::NameNotServed, host: host.to_owned() };
        window.note(key, SOURCE, &background(), now, SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn equal_names_of_one_client_within_the_window_are_one() {
        let (mut window, start) = (Window::default(), Instant::now());
        note(&mut window, "a", "x.example", start);
        note(&mut window, "a", "x.example", start + FOLD / 2);
        note(&mut window, "b", "x.example", start);
        note(&mut window, "a", "y.example", start);
        assert_eq!(window.next_due(), Some(start + FOLD));
        assert!(window.take_due(Some(start + FOLD / 2)).is_empty());
        let mut counts: Vec<_> = window
            .take_due(Some(start + FOLD))
            .into_iter()
            .map(|f| (f.who.principal.unwrap().to_string(), f.host, f.count))
            .collect();
        counts.sort();
        let expected = [("a", "x.example", 2), ("a", "y.example", 1), ("b", "x.example", 1)];
        assert_eq!(counts, expected.map(|(who, host, count)| (who.to_owned(), host.to_owned(), count)));
        assert_eq!(window.next_due(), None);
        note(&mut window, "a", "x.example", start + FOLD);
        assert_eq!(window.take_due(None).len(), 1, "a new window begins");
    }

    #[test]
    fn a_flood_is_one_event_and_everything_is_counted() {
        let (mut window, start) = (Window::default(), Instant::now());
        for n in 0..10_000 {
            note(&mut window, "a", &format!("{n}.example"), start);
        }
        note(&mut window, "b", "quiet.example", start);
        assert_eq!(window.waiting.len(), 64 + 1 + 1);
        let soon = window.take_due(Some(start + FOLD));
        assert_eq!(soon.len(), 65, "the flood does not delay what was first, nor others");
        let late = window.take_due(Some(start + FLOOD_FOLD));
        assert_eq!(late.iter().map(|f| (f.what, f.count)).collect::<Vec<_>>(), [(What::Flood, 10_000 - 64)]);
        // A second later the client has earned one event.
        note(&mut window, "a", "again.example", start + Duration::from_secs(1));
        note(&mut window, "a", "more.example", start + Duration::from_secs(1));
        let hosts: Vec<_> = window.take_due(None).into_iter().map(|f| (f.what, f.host)).collect();
        assert!(hosts.contains(&(What::NameNotServed, "again.example".to_owned())));
        assert!(hosts.contains(&(What::Flood, String::new())));
    }

    #[test]
    fn the_fix_names_tier_and_host() {
        let folded = |host: &str| Folded {
            who: who("zeroclaw-tasks"),
            what: What::NameNotServed,
            host: host.to_owned(),
            source: SOURCE,
            count: 1,
            turn: background(),
            first: SystemTime::UNIX_EPOCH,
            last: SystemTime::UNIX_EPOCH,
        };
        let (detail, fix) = explain(&folded("news.example"));
        assert!(detail.contains("zeroclaw-tasks") && detail.contains("news.example"));
        assert!(fix.contains("tier tasks") && fix.contains("news.example") && fix.contains("allowlist.txt"), "{fix}");
        assert!(explain(&folded("c2VjcmV0")).1.starts_with("nothing will allow it"));
    }

    proptest! {
        /// Whatever comes when, each denial is in exactly one event, and what waits is bounded.
        #[test]
        fn each_is_counted_once(asked in proptest::collection::vec((0u8..3, 0u16..400, 0u64..300), 0..400)) {
            let (mut window, mut now) = (Window::default(), Instant::now());
            let (mut counted, total) = (0, asked.len() as u64);
            for (client, name, pause) in asked {
                now += Duration::from_millis(pause);
                if pause % 3 == 0 {
                    counted += window.take_due(Some(now)).iter().map(|f| f.count).sum::<u64>();
                }
                note(&mut window, ["a", "b", "c"][usize::from(client)], &format!("{name}.example"), now);
                prop_assert!(window.waiting.len() <= 3 * (MOST_WAITING + 1));
            }
            counted += window.take_due(None).iter().map(|f| f.count).sum::<u64>();
            prop_assert_eq!(counted, total);
        }
    }
}
