//! A report that is asked for, so that losses at the end of a burst are known.
//!
//! The kernel numbers its reports, and what is missing is seen in the number of the next one. Where no next one comes, a
//! packet of our own brings it: a rule of family inet reports and drops it. Only root's packets do, so that nobody else
//! can make reports of this kind. What is not known even so: which reports of a burst were lost, and whose.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use super::socket::Report;

/// What the rule says.
pub(super) const PREFIX: &str = "as:mark";
/// Where the rule expects it.
const TO: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 87, 87), 87);
/// After a report, and again after this while no mark came back: then it was lost, too.
const ASK_AFTER: Duration = Duration::from_millis(300);
/// Without a table no mark ever comes back.
const MOST_ASKED: u8 = 20;

/// Asks, and knows when.
#[derive(Debug)]
pub(super) struct Mark {
    socket: UdpSocket,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    ask_at: Instant,
    asked: u8,
}

impl Mark {
    /// In the network namespace of the calling thread.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, pending: None })
    }

    /// Takes note of reports, in their order.
    pub(super) fn see(&mut self, now: Instant, reports: &[Report]) {
        for report in reports {
            if report.prefix == PREFIX {
                self.pending = None;
            } else if self.pending.is_none() {
                self.pending = Some(Pending { ask_at: now + ASK_AFTER, asked: 0 });
            }
        }
    }

    /// When to ask.
    pub(super) fn next(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.ask_at)
    }

    /// Asks, if it is time.
    pub(super) fn ask(&mut self, now: Instant) {
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.ask_at <= now) else { return };
        // The rule drops it, so that success is an error (EPERM); what counts is the report.
        drop(self.socket.send_to(&[], TO));
        pending.ask_at = now + ASK_AFTER;
        pending.asked = pending.asked.saturating_add(1);
        if pending.asked >= MOST_ASKED {
            self.pending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn report(prefix: &str) -> Report {
        Report { prefix: prefix.to_owned(), interface: None, ethertype: 0, payload: Vec::new() }
    }

    #[test]
    fn asks_after_the_last_report_until_it_is_answered() {
        let start = Instant::now();
        let mut mark = Mark::new().unwrap();
        assert_eq!(mark.next(), None);
        mark.see(start, &[report("as:flow")]);
        assert_eq!(mark.next(), Some(start + ASK_AFTER));
        mark.see(start + ASK_AFTER / 2, &[report("as:flow")]);
        mark.ask(start + ASK_AFTER);
        assert_eq!(mark.next(), Some(start + ASK_AFTER * 2));
        // What comes after it is to be marked again.
        mark.see(start + ASK_AFTER, &[report(PREFIX), report("as:flow")]);
        assert_eq!(mark.next(), Some(start + ASK_AFTER * 2));
        mark.see(start + ASK_AFTER, &[report("as:flow"), report(PREFIX)]);
        assert_eq!(mark.next(), None);
    }

    #[test]
    fn does_not_ask_for_ever() {
        let mut now = Instant::now();
        let mut mark = Mark::new().unwrap();
        mark.see(now, &[report("as:flow")]);
        for _ in 0..MOST_ASKED {
            now = mark.next().unwrap();
            mark.ask(now);
        }
        assert_eq!(mark.next(), None);
    }
}
