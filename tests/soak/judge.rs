//! What the samples mean. Pure.
//!
//! What a part *holds* (memory, handles, threads, files in memory) may not grow after a warm-up: the median of the last
//! third of the samples against that of the first third, within a bound per part that does not depend on the number of
//! turns. The bounds are room for caches and for heaps that are swept now and then; a leak passes them sooner or later,
//! and the more turns, the smaller it may be.
//!
//! What is a *record* (the audit store, Squid's log, streams, conversations) grows with what happens, and is meant to: its
//! bytes for each turn are judged, and that there is an end to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::sample::Sample;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The drill's own double of the internet: it records every packet, and is no part of the product.
const DOUBLE: &str = "drill-internet";

/// How much more a part may hold at the end than at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    /// MiB of memory (proportional set size).
    memory: u64,
    descriptors: u64,
    threads: u64,
}

/// Whatever is not named in [`room`].
const USUAL: Room = Room { memory: 16, descriptors: 12, threads: 16 };

fn room(part: &str) -> Room {
    match part {
        // Heaps that are swept when they have doubled; tables of what was seen within the last two minutes.
        "assistant-nats" | "assistant-otel-collector" | "assistant-jaeger" => Room { memory: 64, ..USUAL },
        // Blocks of two hours of series in memory, before they are written.
        "assistant-prometheus" => Room { memory: 96, ..USUAL },
        // Python: what is loaded at the first use stays.
        part if part.starts_with("assistant-litellm") => Room { memory: 48, ..USUAL },
        // SQLite's pages, up to its cache.
        "assistant-egress-auditor" => Room { memory: 32, ..USUAL },
        // The agents' own caches and the engine of a sandbox are other people's programs.
        part if part.starts_with("zeroclaw-") => Room { memory: 48, descriptors: 24, threads: 24 },
        part if part.starts_with("sandbox-") => Room { memory: 48, descriptors: 24, threads: 24 },
        _ => USUAL,
    }
}

/// Traces that Jaeger keeps, in memory, and how much of that it may have: both stand in what is rendered for it.
#[derive(Debug, Clone, Copy)]
pub struct Traces {
    /// Traces kept at most.
    pub most: u64,
    /// Bytes its container may use.
    pub memory: u64,
}

/// Bytes on disk for each turn.
fn volume_room(volume: &str) -> u64 {
    let what = volume.rsplit_once("drill-").map_or(volume, |(_, what)| what);
    match what {
        // A record for each of some twenty events of a turn.
        "audit" => 96 * KIB,
        // The same once more, and headers of the messages; also what waits to be compacted.
        "nats" => 128 * KIB,
        "squid-log" => 8 * KIB,
        "bridge" => 4 * KIB,
        // A series for each label, whatever happens.
        "prometheus" => 64 * KIB,
        // What was said, twice: in the conversation and in the agent's memory, with their indexes.
        what if what.starts_with("zeroclaw-") => 128 * KIB,
        _ => 16 * KIB,
    }
}

/// One thing that was judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Part, volume or stream.
    pub part: String,
    /// What of it.
    pub what: &'static str,
    /// At the beginning and at the end, as text with a unit.
    pub figures: String,
    /// What is allowed.
    pub bound: String,
    /// Whether it is within.
    pub fine: bool,
}

/// Judges samples, the first of which was taken after the warm-up.
///
/// # Errors
/// When there are too few to judge.
pub fn judge(samples: &[Sample], traces: Traces) -> anyhow::Result<Vec<Row>> {
    let third = samples.len() / 3;
    anyhow::ensure!(third > 0, "{} samples are too few to judge", samples.len());
    let early = samples.get(..third).unwrap_or_default();
    let late = samples.get(samples.len().saturating_sub(third)..).unwrap_or_default();
    let turns_between = median(late, |sample| Some(u64::from(sample.turns)))
        .zip(median(early, |sample| Some(u64::from(sample.turns))))
        .map_or(0, |(late, early)| late.saturating_sub(early));
    anyhow::ensure!(turns_between > 0, "no turn was made between the samples");
    let judging = Judging { early, late, turns: turns_between };
    let mut rows = judging.restarts();
    rows.extend(judging.parts(traces));
    rows.extend(judging.records());
    Ok(rows)
}

struct Judging<'a> {
    early: &'a [Sample],
    late: &'a [Sample],
    /// Turns between the middle of the early samples and that of the late ones.
    turns: u64,
}

impl Judging<'_> {
    /// A part that ended and was started anew hides what it had gathered, and should not have ended.
    fn restarts(&self) -> Vec<Row> {
        let (Some(first), Some(last)) = (self.early.first(), self.late.last()) else { return Vec::new() };
        let names: std::collections::BTreeSet<&String> = first.starts.keys().chain(last.starts.keys()).collect();
        let started = |sample: &Sample, name: &str| sample.starts.get(name).cloned().unwrap_or("not there".to_owned());
        names
            .into_iter()
            .filter(|name| started(first, name) != started(last, name))
            .map(|name| Row {
                part: name.clone(),
                what: "started",
                figures: format!("{} -> {}", started(first, name), started(last, name)),
                bound: "once".to_owned(),
                fine: false,
            })
            .collect()
    }

    fn parts(&self, traces: Traces) -> Vec<Row> {
        let mut rows = Vec::new();
        for part in self.names(|sample| sample.parts.keys()) {
            if part == DOUBLE {
                continue;
            }
            let room = room(&part);
            let of = |read: fn(&crate::harness::parts::Used) -> u64| {
                self.both(|sample| sample.parts.get(&part).map(read)).unwrap_or_default()
            };
            let memory = of(|used| used.proportional.saturating_mul(KIB));
            rows.push(match part.as_str() {
                "assistant-jaeger" => self.traces(&part, memory, traces, room.memory * MIB),
                _ => self.flat(&part, "memory", memory, room.memory * MIB),
            });
            rows.push(self.flat(&part, "files in memory", of(|used| used.in_memory.saturating_mul(KIB)), 4 * MIB));
            rows.push(count(&part, "descriptors", of(|used| used.descriptors), room.descriptors));
            rows.push(count(&part, "threads", of(|used| used.threads), room.threads));
        }
        rows
    }

    /// Traces fill its memory up to their number: what they need then must be there. Within what every such program gains
    /// and loses by itself (`swing`), a short run says nothing about one trace, and nothing is concluded from it.
    fn traces(&self, part: &str, (early, late): (u64, u64), traces: Traces, swing: u64) -> Row {
        let each = late.saturating_sub(early) / self.turns;
        let in_the_end = early.saturating_add(each.saturating_mul(traces.most));
        Row {
            part: part.to_owned(),
            what: "memory",
            figures: format!(
                "{} -> {}, {} a trace, {} with {} traces",
                bytes(early),
                bytes(late),
                bytes(each),
                bytes(in_the_end),
                traces.most
            ),
            bound: format!("{} with all traces", bytes(traces.memory)),
            fine: in_the_end <= traces.memory || late.saturating_sub(early) <= swing,
        }
    }

    fn records(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for volume in self.names(|sample| sample.volumes.keys()) {
            let sizes = self.both(|sample| sample.volumes.get(&volume).copied()).unwrap_or_default();
            rows.push(self.record(&volume, "disk", sizes, volume_room(&volume)));
        }
        for part in self.names(|sample| sample.logs.keys()) {
            let sizes = self.both(|sample| sample.logs.get(&part).copied()).unwrap_or_default();
            rows.push(self.record(&part, "log", sizes, 8 * KIB));
        }
        for stream in self.names(|sample| sample.streams.keys()) {
            let sizes = self.both(|sample| sample.streams.get(&stream).map(|stream| stream.bytes)).unwrap_or_default();
            rows.push(self.record(&stream, "stream", sizes, 96 * KIB));
            let most =
                self.late.last().and_then(|sample| sample.streams.get(&stream)).map_or(-1, |stream| stream.most_bytes);
            rows.push(Row {
                part: stream,
                what: "most bytes",
                figures: most.to_string(),
                bound: "has one".to_owned(),
                fine: most > 0,
            });
        }
        rows
    }

    fn names<'a, I: Iterator<Item = &'a String>>(&'a self, of: impl Fn(&'a Sample) -> I) -> Vec<String> {
        let all = self.early.iter().chain(self.late).flat_map(of);
        all.collect::<std::collections::BTreeSet<_>>().into_iter().cloned().collect()
    }

    fn both(&self, read: impl Fn(&Sample) -> Option<u64>) -> Option<(u64, u64)> {
        Some((median(self.early, &read).unwrap_or(0), median(self.late, &read)?))
    }

    fn flat(&self, part: &str, what: &'static str, (early, late): (u64, u64), room: u64) -> Row {
        let grown = late.saturating_sub(early);
        Row {
            part: part.to_owned(),
            what,
            figures: format!("{} -> {}, {} a turn", bytes(early), bytes(late), bytes(grown / self.turns)),
            bound: format!("+{}", bytes(room)),
            fine: grown <= room,
        }
    }

    fn record(&self, part: &str, what: &'static str, (early, late): (u64, u64), room: u64) -> Row {
        let each = late.saturating_sub(early) / self.turns;
        Row {
            part: part.to_owned(),
            what,
            figures: format!("{} -> {}, {} a turn", bytes(early), bytes(late), bytes(each)),
            bound: format!("{} a turn", bytes(room)),
            fine: each <= room,
        }
    }
}

fn count(part: &str, what: &'static str, (early, late): (u64, u64), room: u64) -> Row {
    Row {
        part: part.to_owned(),
        what,
        figures: format!("{early} -> {late}"),
        bound: format!("+{room}"),
        fine: late.saturating_sub(early) <= room,
    }
}

/// The middle one; of an even number the larger of the two. None where no sample has it.
fn median(samples: &[Sample], read: impl Fn(&Sample) -> Option<u64>) -> Option<u64> {
    let mut values: Vec<u64> = samples.iter().filter_map(read).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn bytes(count: u64) -> String {
    match count {
        0..=8_191 => format!("{count} B"),
        8_192..=8_388_607 => format!("{} KiB", count / KIB),
        _ => format!("{} MiB", count / MIB),
    }
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = "| part | what | early -> late | allowed | |\n|---|---|---|---|---|\n".to_owned();
    for Row { part, what, figures, bound, fine } in rows {
        let verdict = if *fine { "" } else { "GREW" };
        // Writing to a String does not fail.
        let written = writeln!(table, "| {part} | {what} | {figures} | {bound} | {verdict} |");
        debug_assert!(written.is_ok());
    }
    table
}

/// All figures of all samples, one a line, separated by tabs: for a closer look with other tools.
#[must_use]
pub fn figures(samples: &[Sample]) -> String {
    let mut lines = "turns\tpart\twhat\tvalue\n".to_owned();
    for sample in samples {
        let mut add = |part: &str, what: &str, value: u64| {
            let written = writeln!(lines, "{}\t{part}\t{what}\t{value}", sample.turns);
            debug_assert!(written.is_ok());
        };
        for (part, used) in &sample.parts {
            add(part, "rss-kib", used.resident);
            add(part, "pss-kib", used.proportional);
            add(part, "shmem-kib", used.in_memory);
            add(part, "descriptors", used.descriptors);
            add(part, "threads", used.threads);
            add(part, "processes", u64::from(used.processes));
        }
        let sizes: [(&str, &BTreeMap<String, u64>); 2] = [("disk", &sample.volumes), ("log", &sample.logs)];
        for (what, all) in sizes {
            all.iter().for_each(|(part, size)| add(part, what, *size));
        }
        for (stream, held) in &sample.streams {
            add(stream, "stream-bytes", held.bytes);
            add(stream, "stream-messages", held.messages);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::harness::parts::Used;
    use crate::soak::sample::Stream;

    const TRACES: Traces = Traces { most: 1_000, memory: 256 * MIB };

    /// Nine samples, 100 turns apart, of a part whose figures are given by the number of the sample.
    fn samples(part: &str, used: impl Fn(u64) -> Used, disk: u64) -> Vec<Sample> {
        (0..9)
            .map(|at| Sample {
                turns: u32::try_from(at * 100).unwrap(),
                parts: BTreeMap::from([(part.to_owned(), used(at))]),
                starts: BTreeMap::from([(part.to_owned(), "then".to_owned())]),
                volumes: BTreeMap::from([("assistant-drill-audit".to_owned(), disk * at)]),
                logs: BTreeMap::new(),
                streams: BTreeMap::from([("EVENTS".to_owned(), Stream { most_bytes: 1, ..Stream::default() })]),
            })
            .collect()
    }

    fn grew(samples: &[Sample]) -> Vec<(String, &'static str)> {
        let rows = judge(samples, TRACES).unwrap();
        rows.into_iter().filter(|row| !row.fine).map(|row| (row.part, row.what)).collect()
    }

    #[test]
    fn what_goes_up_and_down_is_flat() {
        let swept = |at| Used { proportional: 50_000 + (at % 3) * 9_000, descriptors: 20 + at % 2, ..Used::default() };
        assert_eq!(grew(&samples("assistant-secret-broker", swept, 100 * 90 * KIB)), []);
    }

    #[test]
    fn whatever_grows_is_named() {
        let leak = |at| Used { proportional: 50_000 + at * 4_000, ..Used::default() };
        let broker = "assistant-secret-broker";
        assert_eq!(grew(&samples(broker, leak, 0)), [(broker.to_owned(), "memory")]);
        let leak = |at| Used { descriptors: at * 3, threads: 8 + at * 4, ..Used::default() };
        let both = [(broker.to_owned(), "descriptors"), (broker.to_owned(), "threads")];
        assert_eq!(grew(&samples(broker, leak, 0)), both);
        let leak = |at| Used { in_memory: at * 1_024, ..Used::default() };
        assert_eq!(grew(&samples(broker, leak, 0)), [(broker.to_owned(), "files in memory")]);
        let flat = |_| Used::default();
        let audit = [("assistant-drill-audit".to_owned(), "disk")];
        assert_eq!(grew(&samples(broker, flat, 100 * 100 * KIB)), audit);
    }

    #[test]
    fn traces_are_judged_by_what_all_of_them_will_need() {
        let jaeger = "assistant-jaeger";
        let small = |at| Used { proportional: 50_000 + at * 10_000, ..Used::default() };
        assert_eq!(grew(&samples(jaeger, small, 0)), [], "100 KiB a trace, 1000 of them");
        let large = |at| Used { proportional: 50_000 + at * 30_000, ..Used::default() };
        assert_eq!(grew(&samples(jaeger, large, 0)), [(jaeger.to_owned(), "memory")]);
    }

    #[test]
    fn a_start_and_a_stream_without_an_end_are_named() {
        let flat = |_| Used::default();
        let mut all = samples("x", flat, 0);
        if let Some(last) = all.last_mut() {
            last.starts.insert("x".to_owned(), "later".to_owned());
            last.streams.insert("EVENTS".to_owned(), Stream { most_bytes: -1, ..Stream::default() });
        }
        assert_eq!(grew(&all), [("x".to_owned(), "started"), ("EVENTS".to_owned(), "most bytes")]);
    }

    #[test]
    fn the_double_is_not_judged_and_few_samples_are_not_enough() {
        let leak = |at| Used { proportional: at * 100_000, descriptors: at * 100, ..Used::default() };
        assert_eq!(grew(&samples(DOUBLE, leak, 0)), []);
        let all = samples("x", leak, 0);
        assert!(judge(all.get(..2).unwrap(), TRACES).is_err());
        let standing: Vec<Sample> = all.into_iter().map(|sample| Sample { turns: 7, ..sample }).collect();
        assert!(judge(&standing, TRACES).is_err());
    }

    #[test]
    fn tables_and_figures() {
        let flat = |_| Used { resident: 5, ..Used::default() };
        let all = samples("x", flat, 0);
        let text = table(&judge(&all, TRACES).unwrap());
        assert!(text.contains("| x | memory | 0 B -> 0 B, 0 B a turn | +16 MiB |  |"), "{text}");
        assert!(figures(&all).contains("800\tx\trss-kib\t5\n"));
    }
}
