//! Durations of several rounds, and what is said about them. Pure.

use std::time::Duration;

/// Durations of one measure, round by round.
#[derive(Debug, Default)]
pub(crate) struct Series {
    rounds: Vec<Vec<Duration>>,
}

impl Series {
    /// Adds a round. An empty one is no round.
    pub(crate) fn add(&mut self, mut round: Vec<Duration>) {
        round.sort_unstable();
        if !round.is_empty() {
            self.rounds.push(round);
        }
    }

    /// How many were measured.
    pub(crate) fn count(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }

    /// The median of the rounds' medians.
    pub(crate) fn p50(&self) -> Duration {
        quantile(&self.medians(), 500)
    }

    /// Smallest and largest median of a round: what the noise of the machine does to the figure.
    pub(crate) fn spread(&self) -> (Duration, Duration) {
        let medians = self.medians();
        (quantile(&medians, 0), quantile(&medians, 1000))
    }

    /// The 99th percentile of all that was measured; the largest value below 100 of them.
    pub(crate) fn p99(&self) -> Duration {
        let mut all: Vec<Duration> = self.rounds.iter().flatten().copied().collect();
        all.sort_unstable();
        quantile(&all, 990)
    }

    fn medians(&self) -> Vec<Duration> {
        let mut medians: Vec<Duration> = self.rounds.iter().map(|round| quantile(round, 500)).collect();
        medians.sort_unstable();
        medians
    }
}

/// By nearest rank, of sorted values; zero of none.
fn quantile(sorted: &[Duration], permille: usize) -> Duration {
    let rank = sorted.len().saturating_mul(permille).div_ceil(1000).max(1);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// In milliseconds, with the digits that mean something.
pub(crate) fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.2}") } else { format!("{millis:.0}") }
}

/// One row of a table; `base` is the measure that it is compared with.
pub(crate) fn row(name: &str, series: &Series, base: Option<&Series>) -> String {
    let (low, high) = series.spread();
    let (added, ratio) = base.map_or_else(
        || ("-".to_owned(), "-".to_owned()),
        |base| {
            let (ours, theirs) = (series.p50(), base.p50());
            let added = if ours >= theirs {
                format!("+{}", millis(ours.saturating_sub(theirs)))
            } else {
                format!("-{}", millis(theirs.saturating_sub(ours)))
            };
            (added, format!("{:.2}x", ours.as_secs_f64() / theirs.as_secs_f64()))
        },
    );
    format!(
        "| {name} | {} | {} | {} to {} | {} | {added} | {ratio} |\n",
        series.count(),
        millis(series.p50()),
        millis(low),
        millis(high),
        millis(series.p99())
    )
}

/// Head of the tables of [`row`].
pub(crate) const HEAD: &str = "| route | n | p50 ms | p50 of the rounds | p99 ms | added ms | ratio |\n\
                               |---|---:|---:|---:|---:|---:|---:|\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rounds: &[&[u64]]) -> Series {
        let mut series = Series::default();
        for round in rounds {
            series.add(round.iter().map(|&millis| Duration::from_millis(millis)).collect());
        }
        series
    }

    #[test]
    fn medians_of_rounds() {
        let one_noisy_round = series(&[&[3, 1, 2], &[200, 100, 300], &[4, 2, 3]]);
        assert_eq!(one_noisy_round.p50(), Duration::from_millis(3));
        assert_eq!(one_noisy_round.spread(), (Duration::from_millis(2), Duration::from_millis(200)));
        assert_eq!(one_noisy_round.p99(), Duration::from_millis(300));
        assert_eq!(one_noisy_round.count(), 9);
    }

    #[test]
    fn ranks() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(series(&[&hundred]).p99(), Duration::from_millis(99));
        assert_eq!(series(&[&hundred]).p50(), Duration::from_millis(50));
        assert_eq!(series(&[&[]]).p50(), Duration::ZERO);
    }

    #[test]
    fn rows_compare() {
        let row = row("a", &series(&[&[3]]), Some(&series(&[&[2]])));
        assert_eq!(row, "| a | 1 | 3.00 | 3.00 to 3.00 | 3.00 | +1.00 | 1.50x |\n");
    }
}
