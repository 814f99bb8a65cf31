//! What the lines of Squid's log mean, taken together. Pure.
//!
//! A tunnel has two lines, joined on the client's address and port: one at the decision (with server name, mode and
//! `traceparent`), one at the close (with bytes and the peer's address). A plain request, which only the owner's endpoint
//! on the local network is asked with, has one. A tunnel that could not be connected has a
//! second line of status 5xx instead. A denial that had to wait for a helper is delivered inside TLS and has two lines as
//! well, `TCP_DENIED` and an echo with status 403, in either order. Measured on Squid 5.7; the tests are its own lines.
//!
//! One attempt is one [`Finding`]. What cannot be explained is a finding too: nothing is dropped because it is new.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::line::{BumpMode, Encoded, Line, Outcome};

#[cfg(test)]
mod tests;

/// Tunnels that may be open at once. Beyond it the oldest is recorded as left, without its bytes; Squid itself has
/// fewer file descriptors than this by default (1,024 for both sides).
pub const MOST_OPEN: usize = 8192;
/// The two lines of one denial are not further apart, in milliseconds: a client that does not finish the handshake is
/// timed out before. Later ones are of another connection with the same port.
const ECHO_WITHIN: u64 = 60_000;

/// Why Squid refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Not on the tier's list, or not on the floor's.
    HostNotAllowed,
    /// An address instead of a name.
    AddressLiteral,
    /// No host at all.
    NoHost,
    /// Not 443.
    PortNotAllowed,
    /// No or wrong proxy credentials.
    NotAuthenticated,
    /// The ClientHello named no server.
    NoServerName,
    /// The ClientHello named another server than the CONNECT.
    ServerNameMismatch,
    /// The tunnel was cut although the names agree: the list changed or the helper refused.
    ServerNameNotAllowed,
    /// What came in the tunnel was not TLS.
    NotTls,
    /// Not a request at all.
    NotARequest,
}

impl Reason {
    /// Stable code of the event.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::HostNotAllowed => "host-not-allowed",
            Self::AddressLiteral => "address-literal",
            Self::NoHost => "no-host",
            Self::PortNotAllowed => "port-not-allowed",
            Self::NotAuthenticated => "not-authenticated",
            Self::NoServerName => "no-server-name",
            Self::ServerNameMismatch => "server-name-mismatch",
            Self::ServerNameNotAllowed => "server-name-not-allowed",
            Self::NotTls => "not-tls",
            Self::NotARequest => "not-a-request",
        }
    }
}

/// One attempt, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Squid refused it.
    Denied {
        /// The line that says so.
        line: Line,
        /// Why.
        reason: Reason,
    },
    /// It left, or would have if the peer had answered.
    Left {
        /// The decision, unless it was logged before our time.
        decided: Option<Box<Line>>,
        /// The close, unless it never was logged (Squid was killed).
        closed: Option<Box<Line>>,
    },
    /// No rule here explains the line.
    Unexplained(Line),
}

type Client = (IpAddr, u16);

#[derive(Debug)]
enum State {
    Decided {
        line: Box<Line>,
        age: u64,
    },
    /// The other line of the denial may follow.
    Denied {
        line: Box<Line>,
        age: u64,
    },
}

impl State {
    fn age(&self) -> u64 {
        match self {
            Self::Decided { age, .. } | Self::Denied { age, .. } => *age,
        }
    }
}

/// Joins lines to findings. Bounded: [`MOST_OPEN`] tunnels.
#[derive(Debug, Default)]
pub struct Joiner {
    states: HashMap<Client, State>,
    clock: u64,
}

impl Joiner {
    /// Goes on with tunnels that were open at a checkpoint.
    #[must_use]
    pub fn resume(open: Vec<Line>) -> Self {
        let mut joiner = Self::default();
        for line in open {
            if let Some(client) = client(&line) {
                let age = joiner.tick();
                joiner.states.insert(client, State::Decided { line: Box::new(line), age });
            }
        }
        joiner
    }

    /// The open tunnels, for a checkpoint.
    #[must_use]
    pub fn open(&self) -> Vec<Line> {
        let mut open: Vec<(u64, &Line)> = self
            .states
            .values()
            .filter_map(|state| match state {
                State::Decided { line, age } => Some((*age, line.as_ref())),
                State::Denied { .. } => None,
            })
            .collect();
        open.sort_by_key(|(age, _)| *age);
        open.into_iter().map(|(_, line)| line.clone()).collect()
    }

    /// Takes the next line; returns what became known by it.
    pub fn take(&mut self, line: Line) -> Vec<Finding> {
        let Some(client) = client(&line) else { return Vec::from_iter(self.explain_alone(line)) };
        match line.outcome {
            Outcome::Denied => {
                if self.is_other_half(client, &line) {
                    self.states.remove(&client);
                    return Vec::new();
                }
                let reason = denial(&line);
                let mut findings = self.remember_denial(client, &line);
                findings.push(Finding::Denied { line, reason });
                findings
            }
            Outcome::Tunnel => vec![Finding::Left { decided: self.decision(client), closed: Some(Box::new(line)) }],
            // No rule lets a tier speak without TLS.
            Outcome::Relayed if line.tier.is_some() => vec![Finding::Unexplained(line)],
            Outcome::Relayed => {
                // A connection carries one request after the other, and never a tunnel as well.
                let mut findings = self.forget(client);
                findings.push(Finding::Left { decided: None, closed: Some(Box::new(line)) });
                findings
            }
            Outcome::Undecided => self.undecided(client, line),
        }
    }

    fn undecided(&mut self, client: Client, line: Line) -> Vec<Finding> {
        match (line.status, line.mode) {
            (200, BumpMode::Splice) => self.remember_decision(client, line),
            // Cut off after the ClientHello; no second line follows.
            (200, BumpMode::Terminate) => {
                let reason = termination(&line);
                let mut findings = self.forget(client);
                findings.push(Finding::Denied { line, reason });
                findings
            }
            // The client left before the ClientHello was there: nothing went out and nothing was refused.
            (200, BumpMode::Peek | BumpMode::Stare) if line.aborted || gone(&line) => self.forget(client),
            (200, BumpMode::Peek | BumpMode::Stare) => {
                let mut findings = self.forget(client);
                findings.push(Finding::Denied { line, reason: Reason::NotTls });
                findings
            }
            // Both lines of a denial that was delivered inside TLS: counted already.
            (403, _) if self.is_other_half(client, &line) => {
                self.states.remove(&client);
                Vec::new()
            }
            (403, _) => {
                let mut findings = self.remember_denial(client, &line);
                findings.push(Finding::Denied { line, reason: Reason::HostNotAllowed });
                findings
            }
            // The tunnel could not be connected.
            (500..=599, BumpMode::Splice) => {
                vec![Finding::Left { decided: self.decision(client), closed: Some(Box::new(line)) }]
            }
            _ => Vec::from_iter(self.explain_alone(line)),
        }
    }

    /// Lines that belong to no tunnel.
    #[allow(clippy::unused_self, reason = "the counterpart of `take`; callers read better")]
    fn explain_alone(&self, line: Line) -> Option<Finding> {
        match (line.host.is_some(), line.status) {
            // A connection that ended without a request: what is left of a tunnel, or a health check.
            (false, 0) => None,
            (false, 400..=499) => Some(Finding::Denied { line, reason: Reason::NotARequest }),
            _ if line.outcome == Outcome::Denied => {
                let reason = denial(&line);
                Some(Finding::Denied { line, reason })
            }
            _ => Some(Finding::Unexplained(line)),
        }
    }

    fn decision(&mut self, client: Client) -> Option<Box<Line>> {
        match self.states.remove(&client) {
            Some(State::Decided { line, .. }) => Some(line),
            Some(State::Denied { .. }) | None => None,
        }
    }

    /// Forgets the client's state; an open tunnel whose close was never logged is a finding.
    fn forget(&mut self, client: Client) -> Vec<Finding> {
        self.decision(client).map(|line| Finding::Left { decided: Some(line), closed: None }).into_iter().collect()
    }

    /// Whether the client's last denial is this very one: one of its two lines is `TCP_DENIED`, the other is not.
    fn is_other_half(&self, client: Client, line: &Line) -> bool {
        let Some(State::Denied { line: known, .. }) = self.states.get(&client) else { return false };
        let halves = (known.outcome == Outcome::Denied) != (line.outcome == Outcome::Denied);
        // Asked for a password, the client may go on with the same connection: that is an attempt of its own.
        let asked = known.status == 407 || line.status == 407;
        halves && !asked && known.host == line.host && known.logged_at.0.abs_diff(line.logged_at.0) <= ECHO_WITHIN
    }

    fn remember_denial(&mut self, client: Client, line: &Line) -> Vec<Finding> {
        let age = self.tick();
        let mut findings = self.forget(client);
        self.states.insert(client, State::Denied { line: Box::new(line.clone()), age });
        findings.extend(self.shrink());
        findings
    }

    fn remember_decision(&mut self, client: Client, line: Line) -> Vec<Finding> {
        let age = self.tick();
        let mut findings = self.forget(client);
        self.states.insert(client, State::Decided { line: Box::new(line), age });
        findings.extend(self.shrink());
        findings
    }

    fn shrink(&mut self) -> Option<Finding> {
        if self.states.len() <= MOST_OPEN {
            return None;
        }
        // A scan of 8,192 entries, at most once a line and only when full.
        let oldest = self.states.iter().min_by_key(|(_, state)| state.age()).map(|(client, _)| *client)?;
        self.decision(oldest).map(|line| Finding::Left { decided: Some(line), closed: None })
    }

    fn tick(&mut self) -> u64 {
        self.clock = self.clock.saturating_add(1);
        self.clock
    }
}

fn client(line: &Line) -> Option<Client> {
    Some((line.client?, line.client_port?))
}

fn gone(line: &Line) -> bool {
    line.error.as_ref().is_some_and(|error| error.as_str() == "ERR_CLIENT_GONE")
}

fn denial(line: &Line) -> Reason {
    let Some(host) = line.host.as_ref().map(Encoded::as_str) else {
        return if line.status == 407 { Reason::NotAuthenticated } else { Reason::NoHost };
    };
    if line.status == 407 {
        Reason::NotAuthenticated
    } else if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') || host.starts_with('[') || host.contains("%5B") {
        Reason::AddressLiteral
    } else if line.port.is_some_and(|port| port != 443) {
        Reason::PortNotAllowed
    } else {
        Reason::HostNotAllowed
    }
}

fn termination(line: &Line) -> Reason {
    match (&line.sni, &line.host) {
        (None, _) => Reason::NoServerName,
        (Some(sni), Some(host)) if sni.as_str().eq_ignore_ascii_case(host.as_str()) => Reason::ServerNameNotAllowed,
        _ => Reason::ServerNameMismatch,
    }
}
