//! Folds attempts that come in numbers, so that a loud client can fill neither the bus nor a store: equal attempts of one
//! client become one entry with a count, and what is beyond the client's allowance becomes one entry per flood window.
//! Every attempt is counted in exactly one entry, and memory is bounded whatever a client does. Knows nothing of what is
//! counted: the caller says what is equal (`K`), whose it is (`C`), and what to remember of the first attempt (`V`).
//!
//! [`Fold`] is pure but for the times it is given; [`Folds`] is the same behind a lock, for one task that waits for what
//! is due:
//!
//! ```text
//! let folds = Folds::new(Limits::default());
//! folds.note(principal, Attempt { host, reason }, turn);     // anywhere; never waits
//! loop {                                                     // one critical task
//!     tokio::select! {
//!         () = draining.cancelled() => break,
//!         due = folds.due() => for folded in due { emit(folded) },
//!     }
//! }
//! for folded in folds.rest() { emit(folded) }
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

/// How much is folded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Equal attempts within this time of the first are one entry.
    pub fold: Duration,
    /// What is beyond a client's allowance is folded for this long.
    pub flood_fold: Duration,
    /// Entries of its own a client may cause in a burst.
    pub burst: u32,
    /// And for ever after, per second.
    pub per_second: f64,
    /// Entries of one client that may wait at a time, besides its flood entry.
    pub most_waiting: usize,
}

impl Default for Limits {
    /// A person sees an entry within a second; a program that starts causes a few dozen at once; and a client that never
    /// stops makes about 100 MB a day of records of a kilobyte.
    fn default() -> Self {
        Self {
            fold: Duration::from_millis(500),
            flood_fold: Duration::from_secs(5),
            burst: 64,
            per_second: 1.0,
            most_waiting: 256,
        }
    }
}

/// One moment by both clocks: the steady one decides what is due, the other is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Decides what is folded.
    pub steady: Instant,
    /// Is told in [`Folded`].
    pub wall: SystemTime,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }
}

/// Equal attempts of one client, or its flood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded<C, K, V> {
    /// Whose they were.
    pub client: C,
    /// What they have in common; none for attempts beyond the client's allowance, which need not be equal.
    pub key: Option<K>,
    /// The value of the first of them.
    pub value: V,
    /// How many they were; at least 1.
    pub count: u64,
    /// When the first was.
    pub first: SystemTime,
    /// When the last was.
    pub last: SystemTime,
}

#[derive(Debug)]
struct Waiting<V> {
    value: V,
    count: u64,
    first: SystemTime,
    last: SystemTime,
    due: Instant,
}

#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
    waiting: usize,
}

impl Allowance {
    fn refill(&mut self, limits: &Limits, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * limits.per_second;
        self.left = (self.left + earned).min(f64::from(limits.burst));
        self.at = self.at.max(now);
    }
}

/// The fold itself.
///
/// `C` must be something of which there are few, such as a container: each is remembered until its allowance is full
/// again (with the default limits, 64 seconds after its last attempt).
#[derive(Debug)]
pub struct Fold<C, K, V> {
    limits: Limits,
    waiting: HashMap<(C, Option<K>), Waiting<V>>,
    allowances: HashMap<C, Allowance>,
}

impl<C: Clone + Eq + Hash, K: Clone + Eq + Hash, V> Fold<C, K, V> {
    /// Empty.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, waiting: HashMap::new(), allowances: HashMap::new() }
    }

    /// Counts one attempt. `value` is kept if it is the first of its entry and dropped if not.
    pub fn note(&mut self, client: C, key: K, value: V, now: Moment) {
        self.note_many(client, key, value, 1, now);
    }

    /// Counts several equal attempts at once.
    pub fn note_many(&mut self, client: C, key: K, value: V, count: u64, now: Moment) {
        let mut entry = (client, Some(key));
        if !self.waiting.contains_key(&entry) && !self.spend(&entry.0, now.steady) {
            entry.1 = None;
        }
        if let Some(waiting) = self.waiting.get_mut(&entry) {
            waiting.count = waiting.count.saturating_add(count);
            waiting.last = now.wall;
            return;
        }
        let fold = if entry.1.is_none() { self.limits.flood_fold } else { self.limits.fold };
        if let (Some(allowance), true) = (self.allowances.get_mut(&entry.0), entry.1.is_some()) {
            allowance.waiting = allowance.waiting.saturating_add(1);
        }
        let waiting = Waiting { value, count, first: now.wall, last: now.wall, due: now.steady + fold };
        self.waiting.insert(entry, waiting);
    }

    /// Takes the entries that are due, in the order of their first attempts.
    pub fn due(&mut self, now: Instant) -> Vec<Folded<C, K, V>> {
        self.take(Some(now))
    }

    /// Takes every entry, due or not: for the end of the service.
    pub fn rest(&mut self) -> Vec<Folded<C, K, V>> {
        self.take(None)
    }

    /// When the next entry is due; none while nothing waits.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Entries that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the client may have one more entry of its own.
    fn spend(&mut self, client: &C, now: Instant) -> bool {
        let full = f64::from(self.limits.burst);
        let allowance = self.allowances.entry(client.clone()).or_insert(Allowance { left: full, at: now, waiting: 0 });
        allowance.refill(&self.limits, now);
        if allowance.left < 1.0 || allowance.waiting >= self.limits.most_waiting {
            return false;
        }
        allowance.left -= 1.0;
        true
    }

    fn take(&mut self, now: Option<Instant>) -> Vec<Folded<C, K, V>> {
        let taken = self.waiting.extract_if(|_, waiting| now.is_none_or(|now| waiting.due <= now));
        let mut folded = Vec::new();
        for ((client, key), Waiting { value, count, first, last, .. }) in taken {
            if let (Some(allowance), true) = (self.allowances.get_mut(&client), key.is_some()) {
                allowance.waiting = allowance.waiting.saturating_sub(1);
            }
            folded.push(Folded { client, key, value, count, first, last });
        }
        folded.sort_by_key(|folded| folded.first);
        if let Some(now) = now {
            let (limits, full) = (self.limits, f64::from(self.limits.burst));
            self.allowances.retain(|_, allowance| {
                allowance.refill(&limits, now);
                allowance.waiting > 0 || allowance.left < full
            });
        }
        folded
    }
}

/// A [`Fold`] that many note in and one task empties. Cheap to clone.
#[derive(Debug)]
pub struct Folds<C, K, V> {
    fold: Arc<Mutex<Fold<C, K, V>>>,
    added: Arc<Notify>,
}

impl<C, K, V> Clone for Folds<C, K, V> {
    fn clone(&self) -> Self {
        Self { fold: Arc::clone(&self.fold), added: Arc::clone(&self.added) }
    }
}

impl<C: Clone + Eq + Hash, K: Clone + Eq + Hash, V> Folds<C, K, V> {
    /// Empty.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { fold: Arc::new(Mutex::new(Fold::new(limits))), added: Arc::new(Notify::new()) }
    }

    /// Counts one attempt, now. Never blocks for long: the lock is held for a map access.
    pub fn note(&self, client: C, key: K, value: V) {
        self.note_many(client, key, value, 1);
    }

    /// Counts several equal attempts, now.
    pub fn note_many(&self, client: C, key: K, value: V, count: u64) {
        self.lock().note_many(client, key, value, count, Moment::now());
        self.added.notify_one();
    }

    /// Waits until something is due and takes it. Cancel-safe: nothing is taken before the last await. For one task: of
    /// several, only one is woken.
    pub async fn due(&self) -> Vec<Folded<C, K, V>> {
        loop {
            let next = {
                let mut fold = self.lock();
                let due = fold.due(Instant::now());
                if !due.is_empty() {
                    return due;
                }
                fold.next_due()
            };
            match next {
                Some(next) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(next) => {}
                        () = self.added.notified() => {}
                    }
                }
                None => self.added.notified().await,
            }
        }
    }

    /// Takes everything, due or not: for the end of the service.
    #[must_use]
    pub fn rest(&self) -> Vec<Folded<C, K, V>> {
        self.lock().rest()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Fold<C, K, V>> {
        self.fold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    type Hosts = Fold<&'static str, String, u32>;

    fn fold() -> Hosts {
        Fold::new(Limits::default())
    }

    fn at(steady: Instant) -> Moment {
        Moment { steady, wall: SystemTime::UNIX_EPOCH }
    }

    fn note(fold: &mut Hosts, client: &'static str, host: &str, now: Instant) {
        fold.note(client, host.to_owned(), 0, at(now));
    }

    #[test]
    fn equal_attempts_of_one_client_within_the_window_are_one() {
        let (mut fold, start, window) = (fold(), Instant::now(), Limits::default().fold);
        fold.note("a", "x".to_owned(), 1, at(start));
        fold.note("a", "x".to_owned(), 2, at(start + window / 2));
        note(&mut fold, "b", "x", start);
        note(&mut fold, "a", "y", start);
        assert_eq!(fold.next_due(), Some(start + window));
        assert!(fold.due(start + window / 2).is_empty());
        let mut due: Vec<_> =
            fold.due(start + window).into_iter().map(|f| (f.client, f.key.unwrap(), f.count, f.value)).collect();
        due.sort();
        let expected = [("a", "x", 2, 1), ("a", "y", 1, 0), ("b", "x", 1, 0)];
        assert_eq!(due, expected.map(|(client, key, count, value)| (client, key.to_owned(), count, value)));
        assert_eq!(fold.next_due(), None);
        note(&mut fold, "a", "x", start + window);
        assert_eq!(fold.rest().len(), 1, "a new window begins");
    }

    #[test]
    fn a_flood_is_one_entry_and_everything_is_counted() {
        let (mut fold, start, limits) = (fold(), Instant::now(), Limits::default());
        for n in 0..10_000 {
            note(&mut fold, "a", &format!("{n}"), start);
        }
        note(&mut fold, "b", "quiet", start);
        assert_eq!(fold.len(), 64 + 1 + 1);
        let soon = fold.due(start + limits.fold);
        assert_eq!(soon.len(), 65, "the flood does not delay what was first, nor others");
        let late = fold.due(start + limits.flood_fold);
        assert_eq!(late.iter().map(|f| (f.key.clone(), f.count)).collect::<Vec<_>>(), [(None, 10_000 - 64)]);
    }

    #[test]
    fn an_allowance_comes_back_and_a_quiet_client_is_forgotten() {
        let (mut fold, start) = (fold(), Instant::now());
        for n in 0..65 {
            note(&mut fold, "a", &format!("{n}"), start);
        }
        let later = start + Duration::from_secs(6);
        assert_eq!(fold.due(later).len(), 65);
        for n in 0..8 {
            note(&mut fold, "a", &format!("again {n}"), later);
        }
        let keys: Vec<_> = fold.rest().into_iter().filter_map(|f| f.key).collect();
        assert_eq!(keys.len(), 6, "one each second");
        assert_eq!(fold.allowances.len(), 1);
        assert!(fold.due(later + Duration::from_secs(63)).is_empty());
        assert_eq!(fold.allowances.len(), 1, "its allowance is not full yet");
        assert!(fold.due(later + Duration::from_secs(64)).is_empty());
        assert!(fold.allowances.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_shared_fold_gives_what_is_due_when_it_is_due() {
        let folds: Folds<&str, &str, ()> = Folds::new(Limits::default());
        let start = Instant::now();
        let (due, ()) = tokio::join!(folds.due(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            folds.note("a", "x", ());
            folds.note("a", "x", ());
        });
        assert_eq!(due.iter().map(|f| f.count).collect::<Vec<_>>(), [2]);
        assert_eq!(start.elapsed(), Duration::from_millis(1500));
        folds.note("a", "x", ());
        assert_eq!(folds.rest().len(), 1);
    }

    proptest! {
        /// Whatever comes when, each attempt is in exactly one entry, and what waits is bounded.
        #[test]
        fn each_is_counted_once(attempts in proptest::collection::vec((0usize..3, 0u16..400, 0u64..300), 0..400)) {
            let limits = Limits { most_waiting: 16, ..Limits::default() };
            let (mut fold, mut now): (Hosts, _) = (Fold::new(limits), Instant::now());
            let (mut counted, total) = (0, attempts.len() as u64);
            for (client, key, pause) in attempts {
                now += Duration::from_millis(pause);
                if pause % 3 == 0 {
                    counted += fold.due(now).iter().map(|f| f.count).sum::<u64>();
                }
                note(&mut fold, ["a", "b", "c"][client], &key.to_string(), now);
                prop_assert!(fold.len() <= 3 * (16 + 1));
            }
            counted += fold.rest().iter().map(|f| f.count).sum::<u64>();
            prop_assert_eq!(counted, total);
        }
    }
}
