//! The process itself, from `/proc` (proc(5)), and the filesystem it writes to. What cannot be read is not told.

use std::path::Path;
use std::time::Instant;

use nix::sys::statvfs::statvfs;
use nix::unistd::{SysconfVar, sysconf};
use opentelemetry::metrics::Meter;

/// Where a service keeps its data; the stack's own state, for tier-supervisor.
const DATA: &str = "/var/lib/assistant";

/// Adds everything that is known of this process.
pub(super) fn register(meter: &Meter) {
    let gauge = |name: &'static str, what: &'static str, unit: &'static str, look: fn() -> Option<u64>| {
        meter
            .u64_observable_gauge(name)
            .with_description(what)
            .with_unit(unit)
            .with_callback(move |observer| {
                if let Some(value) = look() {
                    observer.observe(value, &[]);
                }
            })
            .build();
    };
    gauge("assistant_process_resident_memory_bytes", "Memory in use.", "By", || status("VmRSS:").map(|kib| kib * 1024));
    gauge("assistant_process_threads", "Threads.", "", || status("Threads:"));
    gauge("assistant_process_open_fds", "Open file descriptors.", "", open_fds);
    gauge("assistant_disk_free_bytes", "Bytes left for a service's data.", "By", || disk().map(|(free, _)| free));
    gauge("assistant_disk_size_bytes", "Size of the filesystem of a service's data.", "By", || {
        disk().map(|(_, size)| size)
    });
    meter
        .f64_observable_counter("assistant_process_cpu_seconds_total")
        .with_description("Processor time used.")
        .with_unit("s")
        .with_callback(|observer| {
            if let Some(seconds) = cpu_seconds() {
                observer.observe(seconds, &[]);
            }
        })
        .build();
    let born = Instant::now();
    meter
        .f64_observable_gauge("assistant_process_uptime_seconds")
        .with_description("Time since the start.")
        .with_unit("s")
        .with_callback(move |observer| observer.observe(born.elapsed().as_secs_f64(), &[]))
        .build();
}

/// A number of `/proc/self/status`.
fn status(field: &str) -> Option<u64> {
    number(&std::fs::read_to_string("/proc/self/status").ok()?, field)
}

fn number(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_fds() -> Option<u64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // Without the one that was opened to count them.
    u64::try_from(count).ok()?.checked_sub(1)
}

fn cpu_seconds() -> Option<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten()?;
    let used = cpu_ticks(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
    #[allow(clippy::cast_precision_loss, reason = "exact for the first three million years")]
    Some(used as f64 / ticks as f64)
}

/// User and system time of `/proc/<pid>/stat`. The second field is the program's name in brackets, which may contain both
/// blanks and brackets: what follows is counted from the last one.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

/// What an unprivileged process may still write, and the size of the whole. A service without data is told the
/// filesystem of its root.
fn disk() -> Option<(u64, u64)> {
    let place = if Path::new(DATA).exists() { DATA } else { "/" };
    let found = statvfs(place).ok()?;
    let unit = found.fragment_size();
    Some((found.blocks_available().saturating_mul(unit), found.blocks().saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_kernel_files_are_understood() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 5 0 1000 1 1";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("nonsense"), None);
        let text = "Name:\tx\nVmRSS:\t    1024 kB\nThreads:\t5\n";
        assert_eq!(
            (number(text, "VmRSS:"), number(text, "Threads:"), number(text, "VmSwap:")),
            (Some(1024), Some(5), None)
        );
    }

    #[test]
    fn this_process_is_seen() {
        assert!(status("VmRSS:").unwrap() > 0);
        assert!(status("Threads:").unwrap() > 0);
        let before = open_fds().unwrap();
        let held: Vec<_> = (0..50).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        // Other tests of this program open and close files at the same time.
        assert!(open_fds().unwrap() + 25 > before + held.len() as u64);
        assert!(cpu_seconds().is_some());
        let (free, size) = disk().unwrap();
        assert!(free <= size && size > 0);
    }
}
