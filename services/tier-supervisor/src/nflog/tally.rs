//! Counts attempts: equal ones within a window make one event, and each frame is in exactly one. Pure: time comes in.
//!
//! Memory is bounded whatever containers send. What one origin does beyond its share is counted in one event of its own,
//! so that a noisy tier cannot hide what another one does.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::attempt::{Attempt, Origin};

/// From the first of equal attempts to their event. Together with the kernel's own delay well below a second.
pub(super) const WINDOW: Duration = Duration::from_millis(400);
/// Different attempts of one origin that are told apart within a window.
const MOST_PER_ORIGIN: usize = 128;
/// Linux sends a SYN again for 127 seconds.
const RETRANSMITTED_WITHIN: Duration = Duration::from_secs(130);
/// Linux waits a second before it sends a SYN again (RFC 6298, 2.1); what comes sooner was sent by a program.
const RETRANSMITTED_AFTER: Duration = Duration::from_millis(500);
/// Segments that are remembered as sent. When they are more, the oldest count again if they come again.
const MOST_SEGMENTS: usize = 8192;

/// Attempts that were counted together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted<C> {
    pub(super) attempt: Attempt,
    pub(super) count: u64,
    /// What was so when the first of them was made.
    pub(super) context: C,
}

/// Open windows.
#[derive(Debug)]
pub(super) struct Tally<C> {
    open: HashMap<Attempt, (u64, C)>,
    /// In the order in which they close.
    closing: VecDeque<(Instant, Attempt)>,
    different: HashMap<Origin, usize>,
}

impl<C> Tally<C> {
    pub(super) fn new() -> Self {
        Self { open: HashMap::new(), closing: VecDeque::new(), different: HashMap::new() }
    }

    /// Counts `count` equal attempts; `context` is asked only for the first of a window.
    pub(super) fn record(&mut self, now: Instant, attempt: Attempt, count: u64, context: impl FnOnce() -> C) {
        let attempt = if self.open.contains_key(&attempt) || self.has_room(&attempt.origin) {
            attempt
        } else {
            // One more per origin, and origins are containers of ours and "unknown": bounded.
            Attempt::flood(attempt.origin)
        };
        if let Some((counted, _)) = self.open.get_mut(&attempt) {
            *counted = counted.saturating_add(count);
            return;
        }
        let different = self.different.entry(attempt.origin.clone()).or_default();
        *different = different.saturating_add(1);
        // Windows are equally long, so that the order of opening is the order of closing.
        self.closing.push_back((now + WINDOW, attempt.clone()));
        self.open.insert(attempt, (count, context()));
    }

    /// Takes out what closes now or has closed.
    pub(super) fn close(&mut self, now: Instant) -> Vec<Counted<C>> {
        let mut closed = Vec::new();
        while self.closing.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, attempt)) = self.closing.pop_front() else { break };
            if let Some(different) = self.different.get_mut(&attempt.origin) {
                *different = different.saturating_sub(1);
                if *different == 0 {
                    self.different.remove(&attempt.origin);
                }
            }
            if let Some((count, context)) = self.open.remove(&attempt) {
                closed.push(Counted { attempt, count, context });
            }
        }
        closed
    }

    /// Takes out everything, for the end.
    pub(super) fn close_all(&mut self) -> Vec<Counted<C>> {
        let last = self.closing.back().map(|(at, _)| *at);
        last.map(|at| self.close(at)).unwrap_or_default()
    }

    /// When the next window closes.
    pub(super) fn next_close(&self) -> Option<Instant> {
        self.closing.front().map(|(at, _)| *at)
    }

    fn has_room(&self, origin: &Origin) -> bool {
        self.different.get(origin).is_none_or(|different| *different < MOST_PER_ORIGIN)
    }
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
    use proptest::prelude::*;

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

    #[test]
    fn equal_attempts_in_a_window_are_one_event() {
        let start = Instant::now();
        let mut tally = Tally::new();
        tally.record(start, attempt(1, 443), 1, || "first");
        tally.record(start + WINDOW / 2, attempt(1, 443), 1, || "second");
        tally.record(start + WINDOW / 2, attempt(1, 80), 1, || "other");
        assert_eq!(tally.next_close(), Some(start + WINDOW));
        assert_eq!(tally.close(start + WINDOW / 2), []);
        let closed = tally.close(start + WINDOW);
        assert_eq!(closed, [Counted { attempt: attempt(1, 443), count: 2, context: "first" }]);
        tally.record(start + WINDOW, attempt(1, 443), 1, || "third");
        let rest: Vec<_> = tally.close_all().into_iter().map(|counted| counted.context).collect();
        assert_eq!(rest, ["other", "third"]);
        assert_eq!(tally.next_close(), None);
    }

    #[test]
    fn a_flood_of_one_does_not_hide_another() {
        let now = Instant::now();
        let mut tally = Tally::new();
        for port in 0..10_000 {
            tally.record(now, attempt(1, port), 1, || ());
        }
        tally.record(now, attempt(2, 443), 1, || ());
        let closed = tally.close_all();
        assert_eq!(closed.len(), MOST_PER_ORIGIN + 2);
        assert!(closed.iter().any(|counted| counted.attempt == attempt(2, 443) && counted.count == 1));
        let flood = closed.iter().find(|counted| counted.attempt.reason == Reason::Flood).unwrap();
        assert_eq!(flood.count, 10_000 - u64::try_from(MOST_PER_ORIGIN).unwrap());
        assert!(tally.different.is_empty() && tally.open.is_empty());
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

    proptest! {
        #[test]
        fn every_attempt_is_counted_exactly_once(
            attempts in prop::collection::vec((0u8..3, 0u16..300, 0u64..200), 0..800)
        ) {
            let start = Instant::now();
            let (mut tally, mut now, mut counted) = (Tally::new(), start, 0);
            for (container, port, millis) in &attempts {
                now += Duration::from_millis(*millis);
                counted += tally.close(now).iter().map(|closed| closed.count).sum::<u64>();
                tally.record(now, attempt(*container, *port), 1, || ());
            }
            counted += tally.close_all().iter().map(|closed| closed.count).sum::<u64>();
            prop_assert_eq!(counted, u64::try_from(attempts.len()).unwrap_or(u64::MAX));
        }
    }
}
