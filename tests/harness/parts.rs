//! What each part of the stack uses, from /proc and the control groups: memory, processor time, handles, threads. Not of
//! the kernel's own threads, and not of dockerd.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::{command, until};

/// Programs of the VM itself.
const PROGRAMS: &str = "/usr/local/lib/assistant/bin/";

/// proc_pid_stat(5): processor time is counted in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);
/// How long the stack may need to digest what was measured: events are stored and traces exported after the answer.
const DIGESTION: Duration = Duration::from_secs(15);

/// What one part uses. Memory in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// Processes.
    pub processes: u32,
    /// Sum of what is resident; pages that processes share are counted in each.
    pub resident: u64,
    /// Sum of what is resident, shared pages divided among those who share them.
    pub proportional: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Files in memory: what lies in a container's `/tmp`. Of its control group; 0 for a program of the VM.
    pub in_memory: u64,
    /// User and system time of the processes that run, in hundredths of a second.
    pub ticks: u32,
}

/// What every part has used of the processors, once they do nothing but idle.
///
/// # Errors
/// When they do not come to rest.
pub async fn processor_time() -> anyhow::Result<BTreeMap<String, Duration>> {
    let last = Cell::new(0);
    until("the stack to be idle", DIGESTION, || {
        let last = &last;
        async move {
            let parts = by_part().await?;
            let total: u32 = parts.values().map(|used| used.ticks).sum();
            // Two ticks between two looks: it does its housekeeping only.
            let idle = total.abs_diff(last.replace(total)) <= 2;
            Ok(idle.then(|| parts.into_iter().map(|(name, used)| (name, TICK * used.ticks)).collect()))
        }
    })
    .await
}

/// Every part that runs, by name.
///
/// # Errors
/// When Docker does not answer.
pub async fn by_part() -> anyhow::Result<BTreeMap<String, Used>> {
    let format = "{{.ID}} {{.Names}}";
    let list = ["ps", "--no-trunc", "--filter", "label=assistant.managed=true", "--format", format];
    let containers = command::run("docker", &list).await?.ok()?;
    let containers: Vec<(&str, &str)> = containers.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut parts: BTreeMap<String, Used> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.parse::<u32>().is_err()) {
            continue;
        }
        // A process may end while it is looked at.
        let Some(part) = part_of(&path, &containers) else { continue };
        let (Ok((resident, proportional)), Ok((ticks, threads))) = (memory_of(&path), times_of(&path)) else {
            continue;
        };
        let used = parts.entry(part).or_default();
        used.processes = used.processes.saturating_add(1);
        used.resident = used.resident.saturating_add(resident);
        used.proportional = used.proportional.saturating_add(proportional);
        used.descriptors = used.descriptors.saturating_add(descriptors_of(&path));
        used.threads = used.threads.saturating_add(threads);
        used.in_memory = used.in_memory.max(files_in_memory(&path).unwrap_or(0));
        used.ticks = used.ticks.saturating_add(ticks);
    }
    Ok(parts)
}

fn part_of(process: &Path, containers: &[(&str, &str)]) -> Option<String> {
    let groups = std::fs::read_to_string(process.join("cgroup")).ok()?;
    if let Some((_, name)) = containers.iter().find(|(id, _)| groups.contains(id)) {
        return Some((*name).to_owned());
    }
    let program = std::fs::read_link(process.join("exe")).ok()?;
    program.to_str()?.strip_prefix(PROGRAMS).map(|name| name.trim_end_matches(" (deleted)").to_owned())
}

fn memory_of(process: &Path) -> anyhow::Result<(u64, u64)> {
    let text = std::fs::read_to_string(process.join("smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        anyhow::Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()?)
    };
    Ok((field("Rss:")?, field("Pss:")?))
}

/// Processor time in ticks, and threads.
fn times_of(process: &Path) -> anyhow::Result<(u32, u64)> {
    let text = std::fs::read_to_string(process.join("stat"))?;
    // The name of the program comes first, in parentheses, and may hold anything.
    let (_, fields) = text.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |at: usize| fields.get(at).copied().context("too short");
    Ok((field(11)?.parse::<u32>()?.saturating_add(field(12)?.parse()?), field(17)?.parse()?))
}

fn descriptors_of(process: &Path) -> u64 {
    let listed = std::fs::read_dir(process.join("fd")).map(Iterator::count).unwrap_or(0);
    u64::try_from(listed).unwrap_or(u64::MAX)
}

/// `shmem` of the process's control group in KiB, of either version; none for a program that is in none of its own.
fn files_in_memory(process: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(process.join("cgroup")).ok()?;
    let group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup").to_owned(),
            _ if controllers.split(',').any(|name| name == "memory") => Path::new("/sys/fs/cgroup/memory").to_owned(),
            _ => return None,
        };
        (!path.is_empty()).then(|| root.join(path).join("memory.stat")).filter(|stat| stat.exists())
    })?;
    let stat = std::fs::read_to_string(group).ok()?;
    let field = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    // Version 1 counts what is below it only in the totals.
    field("total_shmem ").or_else(|| field("shmem ")).map(|bytes| bytes >> 10)
}
