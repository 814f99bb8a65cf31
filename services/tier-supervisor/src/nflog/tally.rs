//! How attempts are counted: equal ones within a window make one event, and each frame is in exactly one. Pure: time comes
//! in.
//!
//! Memory and events are bounded whatever containers send, for however long. What one origin does beyond its allowance is
//! counted in one event of its own every few seconds, so that a noisy tier can neither hide what another one does nor fill
//! the bus and the audit store.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use service_kit::fold::{Fold, Folded, Limits};

use super::attempt::{Attempt, Origin};

/// From the first of equal attempts to their event. Together with the kernel's own delay well below a second.
pub(super) const WINDOW: Duration = Duration::from_millis(400);
/// Linux sends a SYN again for 127 seconds.
const RETRANSMITTED_WITHIN: Duration = Duration::from_secs(130);
/// Linux waits a second before it sends a SYN again (RFC 6298, 2.1); what comes sooner was sent by a program.
const RETRANSMITTED_AFTER: Duration = Duration::from_millis(500);
/// Segments that are remembered as sent. When they are more, the oldest count again if they come again.
const MOST_SEGMENTS: usize = 8192;

/// Open windows. The value is what was so when the first of the attempts was made.
pub(super) type Tally<C> = Fold<Origin, Attempt, C>;

/// An empty one, with the allowance that every door grants.
pub(super) fn tally<C>() -> Tally<C> {
    Fold::new(Limits { fold: WINDOW, ..Limits::default() })
}

/// What was counted together. Beyond its allowance all that is known of it is whose it was.
pub(super) fn told<C>(folded: Folded<Origin, Attempt, C>) -> (Attempt, u64, C) {
    let attempt = folded.key.unwrap_or_else(|| Attempt::flood(folded.client));
    (attempt, folded.count, folded.value)
}

/// What makes two SYNs without data the same one, sent twice: one connection attempt is one attempt, however often the
/// kernel repeats it. It may repeat one with other options and another IP id, so these say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Segment {
    pub(super) interface: Option<u32>,
    pub(super) source: (std::net::Ipv4Addr, u16),
    pub(super) destination: (std::net::Ipv4Addr, u16),
    pub(super) sequence: u32,
}

/// Segments seen lately.
#[derive(Debug, Default)]
pub(super) struct Segments {
    /// When each of them came last.
    seen: HashMap<Segment, Instant>,
    /// In the order in which they came first.
    order: VecDeque<(Instant, Segment)>,
}

impl Segments {
    /// Whether it is one seen before, repeated; remembers it.
    pub(super) fn is_repeated(&mut self, now: Instant, segment: Segment) -> bool {
        while self.order.len() >= MOST_SEGMENTS
            || self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > RETRANSMITTED_WITHIN)
        {
            let Some((_, old)) = self.order.pop_front() else { break };
            self.seen.remove(&old);
        }
        match self.seen.insert(segment, now) {
            Some(last) => now.saturating_duration_since(last) >= RETRANSMITTED_AFTER,
            None => {
                self.order.push_back((now, segment));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::net::Ipv4Addr;

    use assistant_proto::event::Scope;
    use service_kit::fold::Moment;

    use super::super::attempt::Reason;
    use super::*;

    fn attempt(container: u8, port: u16) -> Attempt {
        Attempt {
            origin: Origin { tier: Scope::Stack, container: Some(format!("c{container}")) },
            host: "203.0.113.9".to_owned(),
            port: Some(port),
            protocol: "tcp".to_owned(),
            reason: Reason::DirectAddress,
            target: None,
        }
    }

    fn at(steady: tokio::time::Instant) -> Moment {
        Moment { steady, wall: std::time::SystemTime::UNIX_EPOCH }
    }

    fn record(tally: &mut Tally<()>, attempt: Attempt, now: tokio::time::Instant) {
        tally.note_many(attempt.origin.clone(), attempt, (), 1, at(now));
    }

    #[test]
    fn one_that_never_stops_costs_an_event_a_second_and_hides_nobody() {
        const SECONDS: u64 = 600;
        const A_SECOND: u64 = 500;
        let start = tokio::time::Instant::now();
        let (mut tally, mut events) = (tally(), Vec::new());
        for frame in 0..SECONDS * A_SECOND {
            let now = start + Duration::from_millis(frame * 1000 / A_SECOND);
            // Never the same one again.
            let port = u16::try_from(frame % 65_536).unwrap();
            record(&mut tally, Attempt { host: frame.to_string(), ..attempt(1, port) }, now);
            if frame == SECONDS * A_SECOND / 2 {
                record(&mut tally, attempt(2, 443), now);
            }
            events.extend(tally.due(now).into_iter().map(told));
        }
        events.extend(tally.rest().into_iter().map(told));
        let of = |container: &str| {
            let of = |(attempt, ..): &&(Attempt, u64, ())| attempt.origin.container.as_deref() == Some(container);
            events.iter().filter(of).collect::<Vec<_>>()
        };
        let loud = of("c1");
        assert_eq!(loud.iter().map(|(_, count, ())| count).sum::<u64>(), SECONDS * A_SECOND, "nothing is uncounted");
        let most = 64 + SECONDS + SECONDS / 5 + 2;
        assert!(u64::try_from(loud.len()).unwrap() <= most, "{} events of one container", loud.len());
        assert!(
            loud.iter().take(64).all(|(attempt, count, ())| attempt.reason == Reason::DirectAddress && *count == 1)
        );
        assert_eq!(of("c2"), [&(attempt(2, 443), 1, ())], "another's is told");
    }

    #[test]
    fn a_segment_sent_again_is_not_a_new_attempt() {
        let start = Instant::now();
        let mut segments = Segments::default();
        let segment = |sequence| Segment {
            interface: Some(1),
            source: (Ipv4Addr::LOCALHOST, 40000),
            destination: (Ipv4Addr::BROADCAST, 443),
            sequence,
        };
        assert!(!segments.is_repeated(start, segment(1)));
        // Faster than any kernel: each is an attempt.
        for _ in 0..200 {
            assert!(!segments.is_repeated(start + Duration::from_millis(10), segment(1)));
        }
        assert!(segments.is_repeated(start + Duration::from_secs(1), segment(1)));
        assert!(segments.is_repeated(start + Duration::from_secs(63), segment(1)));
        assert!(!segments.is_repeated(start, segment(2)));
        assert!(!segments.is_repeated(start + RETRANSMITTED_WITHIN * 2, segment(1)));
        for sequence in 0..20_000 {
            segments.is_repeated(start, segment(sequence));
        }
        assert!(segments.seen.len() <= MOST_SEGMENTS && segments.order.len() <= MOST_SEGMENTS);
    }
}
