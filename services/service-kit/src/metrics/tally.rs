//! Counters by label whose series are born at zero.
//!
//! Prometheus sees how much a counter grew, so of a series that appears with 1000 it sees nothing: the first burst of a new
//! kind of denial would make no alarm. Here a series is sent as 0 first, often enough that a scrape sees it, and only then
//! as what it is. Nothing is lost by it but half a minute.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

/// Series of one counter; what is beyond is counted in one whose labels are all [`OTHER`].
const MOST_SERIES: usize = 512;
/// So often a new series is sent as 0. Pushes and scrapes come equally often but not together: between two pushes there is
/// a scrape, give or take its delay, and between three there is one for sure.
const ZEROES: u8 = 2;
/// Longest code that becomes a label.
const MOST_CODE: usize = 48;
/// What stands for whatever is not one of the expected.
const OTHER: &str = "other";

/// A counter with `N` labels.
#[derive(Debug)]
pub(super) struct Tally<const N: usize> {
    labels: [&'static str; N],
    series: Mutex<BTreeMap<[String; N], Series>>,
    ending: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Series {
    total: u64,
    zeroes: u8,
}

impl<const N: usize> Tally<N> {
    fn new(labels: [&'static str; N], ending: &Arc<AtomicBool>) -> Self {
        Self { labels, series: Mutex::default(), ending: Arc::clone(ending) }
    }

    /// Makes one and adds it to what is sent. While `ending` is set no zeroes are sent any more.
    pub(super) fn register(
        meter: &Meter,
        name: &'static str,
        what: &'static str,
        labels: [&'static str; N],
        ending: &Arc<AtomicBool>,
    ) -> Arc<Self> {
        let tally = Arc::new(Self::new(labels, ending));
        let told = Arc::clone(&tally);
        meter
            .u64_observable_counter(name)
            .with_description(what)
            .with_callback(move |observer| told.tell(|value, labels| observer.observe(value, labels)))
            .build();
        tally
    }

    /// Counts. With 0 the series is there from now on.
    pub(super) fn add(&self, values: [&str; N], count: u64) {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = values.map(ToOwned::to_owned);
        if series.len() >= MOST_SERIES && !series.contains_key(&key) {
            key = [(); N].map(|()| OTHER.to_owned());
        }
        let entry = series.entry(key).or_default();
        entry.total = entry.total.saturating_add(count);
    }

    fn tell(&self, mut observe: impl FnMut(u64, &[KeyValue])) {
        let ending = self.ending.load(Ordering::Relaxed);
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        for (values, entry) in series.iter_mut() {
            let mut value = entry.total;
            if entry.zeroes < ZEROES && !ending {
                entry.zeroes += 1;
                value = 0;
            }
            let labels: Vec<KeyValue> =
                self.labels.iter().zip(values).map(|(name, value)| KeyValue::new(*name, value.clone())).collect();
            observe(value, &labels);
        }
    }
}

/// A code in kebab case as a label; anything else is `other`.
pub(super) fn code(text: &str) -> &str {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.is_empty() && text.len() <= MOST_CODE && text.bytes().all(plain) { text } else { OTHER }
}

/// What tasks of one kind have in common: their names may end in an address or the id of a turn.
pub(super) fn stem(task: &str) -> &str {
    let end = task.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(task.len());
    match task.get(..end).map(|stem| stem.trim_end_matches('-')) {
        Some(stem) if !stem.is_empty() => code(stem),
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<const N: usize>(tally: &Tally<N>) -> Vec<(u64, String)> {
        let mut all = Vec::new();
        tally.tell(|value, labels| {
            let labels: Vec<String> = labels.iter().map(|label| format!("{}={}", label.key, label.value)).collect();
            all.push((value, labels.join(" ")));
        });
        all
    }

    #[test]
    fn a_series_is_born_at_zero_and_loses_nothing() {
        let ending = Arc::new(AtomicBool::new(false));
        let tally = Tally::new(["a", "b"], &ending);
        tally.add(["x", "y"], 1000);
        let series = "a=x b=y".to_owned();
        assert_eq!(told(&tally), [(0, series.clone())]);
        tally.add(["x", "y"], 1);
        assert_eq!(told(&tally), [(0, series.clone())]);
        assert_eq!(told(&tally), [(1001, series.clone())]);
        tally.add(["x", "z"], 0);
        tally.add(["x", "y"], 1);
        assert_eq!(told(&tally), [(1002, series.clone()), (0, "a=x b=z".to_owned())]);
        tally.add(["x", "z"], 7);
        ending.store(true, Ordering::Relaxed);
        assert_eq!(told(&tally), [(1002, series), (7, "a=x b=z".to_owned())], "there may be no other chance");
    }

    #[test]
    fn there_are_only_so_many_series() {
        let tally = Tally::new(["tier"], &Arc::default());
        for n in 0..2 * MOST_SERIES {
            tally.add([n.to_string().as_str()], 1);
        }
        tally.add(["0"], 1);
        tally.ending.store(true, Ordering::Relaxed);
        let all = told(&tally);
        assert_eq!(all.len(), MOST_SERIES + 1);
        assert!(all.contains(&(MOST_SERIES as u64, "tier=other".to_owned())));
        assert!(all.contains(&(2, "tier=0".to_owned())), "what is known goes on");
    }

    #[test]
    fn labels_are_codes() {
        for (text, label) in [
            ("host-not-allowed", "host-not-allowed"),
            ("", "other"),
            ("Host", "other"),
            ("a b", "other"),
            ("evil\n", "other"),
        ] {
            assert_eq!(code(text), label);
        }
        assert_eq!(code(&"x".repeat(49)), "other");
        for (task, label) in [
            ("audit-consumer", "audit-consumer"),
            ("turn 0193c1f0", "turn"),
            ("dns-udp-10.87.16.3", "dns-udp"),
            ("proxy-tasks", "proxy-tasks"),
            ("10", "other"),
            ("", "other"),
        ] {
            assert_eq!(stem(task), label);
        }
    }
}
