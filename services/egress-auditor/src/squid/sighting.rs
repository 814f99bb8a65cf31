//! What a finding in Squid's log becomes: event, deterministic id, span. Here a line gets its tier, its turn and its
//! words.

use std::collections::BTreeSet;

use assistant_proto::event::{Attachment, EgressAllowed, EgressDenied, EventId, Layer, Scope};
use assistant_proto::name::TierName;
use assistant_proto::trace::TraceParent;
use service_kit::clock;
use service_kit::text;
use service_kit::turns::{TurnContext, Turns};

use crate::calls;
use crate::compare::Tunnel;
use crate::ledger::{Sighting, SpanDraft, attached, trace_of};
use crate::line::{Encoded, Line, Outcome};
use crate::record::Own;
use crate::tail::Found;
use crate::tunnel::{Finding, Reason};

/// Longest name in an event.
const MOST_HOST_CHARS: usize = 253;
/// Squid lets CONNECT through to this port only; used where a line lacks the port.
const TLS_PORT: u16 = 443;

/// Finds out whose a line is.
#[derive(Debug, Clone)]
pub struct Attribution {
    tiers: BTreeSet<TierName>,
    turns: Turns,
}

impl Attribution {
    /// Over the tiers there are. A user of Squid that is no tier (`models`) speaks for the stack.
    #[must_use]
    pub fn new(tiers: BTreeSet<TierName>, turns: Turns) -> Self {
        Self { tiers, turns }
    }

    /// A finding as event and span.
    #[must_use]
    pub fn sighting(&self, finding: Finding) -> Sighting {
        match finding {
            Finding::Denied { line, reason } => self.denied(&line, reason.code(), Some(reason)),
            Finding::Unexplained(line) => {
                tracing::error!(sequence = line.sequence, "Squid logged something that is not understood");
                self.denied(&line, "line-unexplained", None)
            }
            Finding::Left { decided, closed } => self.left(decided.as_deref(), closed.as_deref()),
        }
    }

    /// A tunnel that a tier's user asked for, by either of its lines; none of a service.
    #[must_use]
    pub fn tunnel(&self, line: &Line) -> Option<Tunnel> {
        Some(Tunnel {
            key: calls::id(line),
            tier: self.tier_named_by(line)?,
            host: shown(line.host.as_ref()),
            port: line.port.unwrap_or(TLS_PORT),
            started_at: line.started_at,
            parent: line.traceparent.as_ref().and_then(|sent| sent.as_str().parse().ok()),
            is_decision: line.outcome == Outcome::Undecided,
        })
    }

    /// A line that could not be parsed: it may be anything, a denied attempt included, so it is counted as one. Its place
    /// is part of its identity: two equal lines are two attempts.
    #[must_use]
    pub fn unreadable(&self, line: &Found, error: &str) -> Sighting {
        let (inode, offset) = (line.inode.to_be_bytes(), line.offset.to_be_bytes());
        let id = EventId::derive(&[b"squid line", &inode, &offset, line.bytes.as_deref().unwrap_or_default()]);
        let now = std::time::SystemTime::now();
        let detail = format!("a line of Squid's log cannot be read: {error}");
        let event = EgressDenied {
            tier: Scope::Stack,
            principal: None,
            layer: Layer::Squid,
            host: String::new(),
            port: None,
            protocol: "https".to_owned(),
            reason: "line-unreadable".to_owned(),
            detail: detail.clone(),
            fix: "squid.conf's logformat and egress-auditor must be of one version: run deploy/up.sh again".to_owned(),
            count: 1,
            turn: None,
            attachment: Attachment::Background,
            trace_id: trace_of(None, &id).trace_id(),
            observed_at: clock::rfc3339(now),
        };
        let span =
            SpanDraft { name: "squid.unreadable", start: now, end: now, error: Some(detail), attributes: Vec::new() };
        Sighting { id, event: Own::Denied(event), parent: None, span }
    }

    fn denied(&self, line: &Line, code: &'static str, reason: Option<Reason>) -> Sighting {
        let id = EventId::derive(&[b"squid denied", &line.key().bytes()]);
        let (tier, turn, parent) = self.belongs(&[line]);
        let trace = trace_of(parent, &id);
        let host = shown(line.host.as_ref());
        let (detail, fix) = explain(line, &host, &tier, reason);
        let event = EgressDenied {
            tier: tier.clone(),
            principal: None,
            layer: Layer::Squid,
            host,
            port: line.port,
            protocol: "https".to_owned(),
            reason: code.to_owned(),
            detail: detail.clone(),
            fix,
            count: 1,
            turn: turn.turn,
            attachment: turn.attachment,
            trace_id: trace.trace_id(),
            observed_at: clock::rfc3339(line.logged_at.system_time()),
        };
        let mut attributes = attributes(line, &tier);
        attributes.push(("reason", code.to_owned()));
        attributes.push(attached(event.attachment));
        let span = SpanDraft {
            name: "squid.denied",
            start: line.started_at.system_time(),
            end: line.logged_at.system_time(),
            error: Some(detail),
            attributes,
        };
        Sighting { id, event: Own::Denied(event), parent, span }
    }

    /// A tunnel, by one or both of its lines.
    fn left(&self, decided: Option<&Line>, closed: Option<&Line>) -> Sighting {
        let lines: Vec<&Line> = decided.into_iter().chain(closed).collect();
        // The closing line identifies the tunnel where there is one: it is there whether or not the decision is known.
        let (id, last) = match (closed, decided) {
            (Some(line), _) => (EventId::derive(&[b"squid tunnel", &line.key().bytes()]), Some(line)),
            (None, Some(line)) => (EventId::derive(&[b"squid tunnel unclosed", &line.key().bytes()]), Some(line)),
            (None, None) => (EventId::unique(), None),
        };
        let (tier, turn, parent) = self.belongs(&lines);
        let trace = trace_of(parent, &id);
        let start = lines.iter().map(|line| line.started_at).min().unwrap_or(crate::line::Millis(0)).system_time();
        let end = lines.iter().map(|line| line.logged_at).max().unwrap_or(crate::line::Millis(0)).system_time();
        let is_plain = closed.is_some_and(|line| line.outcome == Outcome::Relayed);
        // A tunnel's status is Squid's own; that of a plain request is the peer's, unless Squid names an error. Squid 5 writes
        // 500 also for a tunnel that stood and that one side then reset: bytes from the host say that it had answered.
        let failed = closed.is_some_and(|line| match is_plain {
            true => line.error.is_some(),
            false => line.status >= 400 && line.bytes_to_client == 0,
        });
        let event = EgressAllowed {
            tier: tier.clone(),
            principal: None,
            layer: Layer::Squid,
            host: shown(lines.iter().find_map(|line| line.host.as_ref())),
            port: lines.iter().find_map(|line| line.port).unwrap_or(TLS_PORT),
            method: if is_plain { "HTTP" } else { "CONNECT" }.to_owned(),
            path: String::new(),
            rule: String::new(),
            status: closed.map_or(0, |line| line.status),
            bytes_out: closed.map_or(0, |line| line.bytes_from_client),
            bytes_in: closed.map_or(0, |line| line.bytes_to_client),
            turn: turn.turn,
            attachment: turn.attachment,
            trace_id: trace.trace_id(),
            observed_at: clock::rfc3339(end),
        };
        let mut attributes = last.map(|line| attributes(line, &tier)).unwrap_or_default();
        attributes.extend(lines.first().map(|first| ("tunnel", calls::id(first))));
        attributes.push(("bytes_out", event.bytes_out.to_string()));
        attributes.push(("bytes_in", event.bytes_in.to_string()));
        attributes.push(attached(event.attachment));
        let error = if failed {
            Some("the host did not answer".to_owned())
        } else if closed.is_none() {
            Some("Squid never logged its end".to_owned())
        } else {
            None
        };
        let name = if is_plain { "squid.relay" } else { "squid.tunnel" };
        let span = SpanDraft { name, start, end, error, attributes };
        Sighting { id, event: Own::Allowed(event), parent, span }
    }

    /// Tier, turn and parent span of the lines of one attempt. The `traceparent` the broker sent names the span
    /// exactly; without one, time has to do.
    fn belongs(&self, lines: &[&Line]) -> (Scope, TurnContext, Option<TraceParent>) {
        let sent = lines
            .iter()
            .find_map(|line| line.traceparent.as_ref())
            .and_then(|text| text.as_str().parse::<TraceParent>().ok());
        let named = lines.iter().find_map(|line| self.tier_named_by(line));
        let background = TurnContext { turn: None, attachment: Attachment::Background, parent: None };
        let Some(tier) = named.or_else(|| self.tier_of_trace(sent?)) else {
            return (Scope::Stack, background, sent);
        };
        let current = self.turns.current(&tier);
        let turn = match (sent, current.parent) {
            // The broker says it is of another trace than the turn that is running now: of an earlier one, or of none.
            (Some(sent), Some(running)) if sent.trace != running.trace => background,
            _ => current,
        };
        let parent = sent.or(turn.parent);
        (Scope::Tier(tier), turn, parent)
    }

    /// By Squid's own finding, else by its user. On a 407 the user is only claimed.
    fn tier_named_by(&self, line: &Line) -> Option<TierName> {
        let claimed = line.status == 407;
        let user = if claimed { None } else { line.user.as_ref() };
        [line.tier.as_ref(), user]
            .into_iter()
            .flatten()
            .find_map(|name| name.as_str().parse::<TierName>().ok().filter(|tier| self.tiers.contains(tier)))
    }

    /// By the trace of a turn that is running: Squid denies some requests before it asks who the user is.
    fn tier_of_trace(&self, sent: TraceParent) -> Option<TierName> {
        self.tiers
            .iter()
            .find(|tier| self.turns.current(tier).parent.is_some_and(|parent| parent.trace == sent.trace))
            .cloned()
    }
}

pub(crate) fn shown(text: Option<&Encoded>) -> String {
    text.map(|text| text::harmless_line(text.as_str(), MOST_HOST_CHARS)).unwrap_or_default()
}

fn attributes(line: &Line, tier: &Scope) -> Vec<(&'static str, String)> {
    let mut attributes = vec![
        ("tier", tier.as_str().to_owned()),
        ("server.address", shown(line.host.as_ref())),
        ("http.response.status_code", line.status.to_string()),
    ];
    if let Some(port) = line.port {
        attributes.push(("server.port", port.to_string()));
    }
    if let Some(peer) = line.peer {
        attributes.push(("network.peer.address", peer.to_string()));
    }
    if line.sni.is_some() {
        attributes.push(("tls.server.name", shown(line.sni.as_ref())));
    }
    if line.user.is_some() {
        attributes.push(("squid.user", shown(line.user.as_ref())));
    }
    if line.error.is_some() {
        attributes.push(("squid.error", shown(line.error.as_ref())));
    }
    attributes
}

/// What happened, and the smallest change that would allow it.
fn explain(line: &Line, host: &str, tier: &Scope, reason: Option<Reason>) -> (String, String) {
    let sni = shown(line.sni.as_ref());
    let nothing = |why: &str| format!("nothing will allow it: {why}");
    let floor = || match tier {
        Scope::Tier(tier) => policy::explain::floor_denied(Some(tier), host),
        Scope::Stack => policy::explain::floor_denied(None, host),
    };
    match reason {
        Some(Reason::HostNotAllowed) => {
            let denial = floor();
            (denial.detail, denial.fix)
        }
        Some(Reason::AddressLiteral) => {
            (format!("Squid was asked for the address {host} instead of a name"), nothing("only names can be allowed"))
        }
        Some(Reason::NoHost) => (
            "Squid got a request that names no host".to_owned(),
            nothing("a request must name the host it is for, by CONNECT"),
        ),
        Some(Reason::PortNotAllowed) => (
            format!("Squid was asked for {host} on a port other than 443"),
            nothing("only HTTPS on port 443 leaves the VM"),
        ),
        Some(Reason::NotAuthenticated) => (
            format!("a CONNECT to {host} came without the proxy password of a tier or service"),
            "if it is one of ours, let tier-supervisor apply again; otherwise look at who is on the transit network"
                .to_owned(),
        ),
        Some(Reason::NoServerName) => (
            format!("the TLS ClientHello in the tunnel to {host} named no server"),
            nothing("a client must send the server's name (SNI)"),
        ),
        Some(Reason::ServerNameMismatch) => (
            format!("the tunnel was asked for {host}, but the TLS ClientHello in it named {sni}"),
            nothing("the two must be the same name"),
        ),
        Some(Reason::ServerNameNotAllowed) => {
            (format!("Squid cut the tunnel to {host} after it had seen the server's name"), floor().fix)
        }
        Some(Reason::NotTls) => {
            (format!("what came in the tunnel to {host} was not TLS"), nothing("only HTTPS leaves the VM"))
        }
        Some(Reason::NotARequest) => {
            ("something that is not an HTTP request was sent to Squid".to_owned(), nothing("it is not HTTP"))
        }
        None => (
            format!("Squid logged something about {host} that egress-auditor does not understand"),
            "squid.conf and egress-auditor must be of one version: run deploy/up.sh again, and report it if it stays"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use assistant_proto::event::TurnStarted;
    use assistant_proto::name::TurnId;

    use super::*;

    const TP: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn line(host: &str, st: u16, ss: &str, tier: &str, user: &str, tp: &str) -> Line {
        let text = format!(
            r#"{{"ts":1795363871.092,"start":1795363871.036,"seq":0,"mx":53,"src":"10.87.3.2","sport":7,"host":"{host}","port":443,"dst":"-","st":{st},"ss":"{ss}","in":174,"out":9,"ms":56,"sni":"evil.example","mode":"splice","err":"-","tier":"{tier}","user":"{user}","tp":"{tp}"}}"#
        );
        Line::parse(text.as_bytes()).unwrap()
    }

    fn turns(trace: &str) -> (Turns, TurnId) {
        let (turns, turn) = (Turns::new(), TurnId::generate());
        turns.started(&TurnStarted {
            tier: "tasks".parse().unwrap(),
            turn: turn.clone(),
            traceparent: trace.parse().unwrap(),
            channel: String::new(),
            conversation: String::new(),
            started_at: String::new(),
        });
        (turns, turn)
    }

    fn attribution(turns: Turns) -> Attribution {
        Attribution::new(["tasks".parse().unwrap()].into(), turns)
    }

    fn denied(sighting: Sighting) -> EgressDenied {
        match sighting.event {
            Own::Denied(event) => event,
            Own::Allowed(_) | Own::Breached(_) => panic!("not a denial"),
        }
    }

    #[test]
    fn whose_it_is() {
        let other = "00-11111111111111111111111111111111-2222222222222222-01";
        // tier note, user, status, traceparent sent, turn running -> scope, turn attached, trace
        let (sent, none) = (TP, "-");
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        type Case = (
            &'static str,
            &'static str,
            u16,
            &'static str,
            Option<&'static str>,
            &'static str,
            bool,
            Option<&'static str>,
        );
        let cases: [Case; 8] = [
            ("tasks", "tasks", 200, sent, Some(TP), "tasks", true, Some(trace)),
            ("-", "tasks", 200, sent, Some(TP), "tasks", true, Some(trace)),
            ("-", "-", 200, sent, Some(TP), "tasks", true, Some(trace)),
            ("-", "tasks", 407, sent, None, "stack", false, Some(trace)),
            ("-", "models", 200, sent, None, "stack", false, Some(trace)),
            ("tasks", "tasks", 200, none, Some(TP), "tasks", true, Some(trace)),
            ("tasks", "tasks", 200, "%22x", None, "tasks", false, None),
            ("tasks", "tasks", 200, sent, Some(other), "tasks", false, Some(trace)),
        ];
        for (at, (note, user, st, tp, running, scope, attached, trace)) in cases.into_iter().enumerate() {
            let (turns, turn) = running.map_or_else(|| (Turns::new(), TurnId::generate()), turns);
            let line = line("a.example", st, "TCP_DENIED", note, user, tp);
            let sighting = attribution(turns).sighting(Finding::Denied { line, reason: Reason::HostNotAllowed });
            assert_eq!(sighting.parent.map(|p| p.trace_id()).as_deref(), trace, "case {at}");
            let id = sighting.id.as_str().to_owned();
            let event = denied(sighting);
            assert_eq!(event.tier.as_str(), scope, "case {at}");
            assert_eq!(event.turn, attached.then_some(turn), "case {at}");
            assert_eq!(event.trace_id, trace.map_or(id, str::to_owned), "case {at}");
        }
    }

    #[test]
    fn unreadable_lines_are_told_apart_by_their_places() {
        let attribution = attribution(Turns::new());
        let id = |inode, offset, bytes: Option<&[u8]>| {
            let found = Found { inode, offset, bytes: bytes.map(<[u8]>::to_vec) };
            attribution.unreadable(&found, "x").id.as_str().to_owned()
        };
        let line: Option<&[u8]> = Some(b"{");
        assert_eq!(id(1, 0, line), id(1, 0, line), "read twice, counted once");
        let ids: BTreeSet<String> =
            [id(1, 0, line), id(1, 2, line), id(2, 0, line), id(1, 0, Some(b"[")), id(1, 0, None), id(1, 9, None)]
                .into();
        assert_eq!(ids.len(), 6);
    }

    #[test]
    fn a_denial_says_what_to_do() {
        let of = |host: &str, reason| {
            let line = line(host, 200, "TCP_DENIED", "-", "tasks", "-");
            denied(attribution(Turns::new()).sighting(Finding::Denied { line, reason }))
        };
        let event = of("news.example", Reason::HostNotAllowed);
        assert_eq!(
            (event.host.as_str(), event.port, event.reason.as_str()),
            ("news.example", Some(443), "host-not-allowed")
        );
        assert!(event.fix.starts_with("add news.example to squid/allowlist.txt and to"), "{}", event.fix);
        assert!(event.fix.contains("tier tasks"));
        assert!(of("a%22b.example", Reason::HostNotAllowed).fix.starts_with("nothing will"));
        let event = of("a.example", Reason::ServerNameMismatch);
        assert!(event.detail.contains("evil.example") && event.fix.starts_with("nothing will"));
        let unexplained = line("a.example", 200, "TCP_DENIED", "-", "-", "-");
        let event = denied(attribution(Turns::new()).sighting(Finding::Unexplained(unexplained)));
        assert_eq!(event.reason, "line-unexplained");
    }

    #[test]
    fn a_tunnel_has_the_bytes_and_the_times_of_its_lines() {
        let mut decided = line("a.example", 200, "NONE_NONE", "tasks", "tasks", TP);
        decided.logged_at = decided.started_at;
        let closed = line("a.example", 200, "TCP_TUNNEL", "tasks", "tasks", "-");
        let attribution = attribution(Turns::new());
        let whole = attribution.sighting(Finding::Left {
            decided: Some(Box::new(decided.clone())),
            closed: Some(Box::new(closed.clone())),
        });
        assert_eq!(whole.parent.map(|p| p.to_string()).as_deref(), Some(TP), "the first line has it");
        assert_eq!(whole.span.start, closed.started_at.system_time());
        assert_eq!(whole.span.end, closed.logged_at.system_time());
        let alone = attribution.sighting(Finding::Left { decided: None, closed: Some(Box::new(closed)) });
        assert_eq!(whole.id, alone.id, "the same tunnel, however much is known of it");
        let unclosed = attribution.sighting(Finding::Left { decided: Some(Box::new(decided)), closed: None });
        assert_ne!(unclosed.id, whole.id);
        let (Own::Allowed(whole), Own::Allowed(unclosed)) = (whole.event, unclosed.event) else { panic!("denied") };
        assert_eq!((whole.bytes_out, whole.bytes_in, whole.status, whole.port), (174, 9, 200, 443));
        assert_eq!((unclosed.bytes_out, unclosed.status), (0, 0));
    }
}
