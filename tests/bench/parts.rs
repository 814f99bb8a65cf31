//! Memory and processor time of each part, from /proc. Not of the kernel's own threads, and not of dockerd.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use assistant_tests::harness::{command, until};

/// Programs of the VM itself.
const PROGRAMS: &str = "/usr/local/lib/assistant/bin/";

/// proc_pid_stat(5): processor time is counted in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);
/// How long the stack may need to digest what was measured: events are stored and traces exported after the answer.
const DIGESTION: Duration = Duration::from_secs(15);

/// What one part uses. Memory in KiB.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) processes: u32,
    /// Sum of what is resident; pages that processes share are counted in each.
    pub(crate) resident: u64,
    /// Sum of what is resident, shared pages divided among those who share them.
    pub(crate) proportional: u64,
    /// User and system time of the processes that run.
    ticks: u32,
}

/// What every part has used of the processors, once they do nothing but idle.
///
/// # Errors
/// When they do not come to rest.
pub(crate) async fn processor_time() -> anyhow::Result<BTreeMap<String, Duration>> {
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
pub(crate) async fn by_part() -> anyhow::Result<BTreeMap<String, Used>> {
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
        let (Ok((resident, proportional)), Ok(ticks)) = (memory_of(&path), ticks_of(&path)) else { continue };
        let used = parts.entry(part).or_default();
        used.processes = used.processes.saturating_add(1);
        used.resident = used.resident.saturating_add(resident);
        used.proportional = used.proportional.saturating_add(proportional);
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

fn ticks_of(process: &Path) -> anyhow::Result<u32> {
    let text = std::fs::read_to_string(process.join("stat"))?;
    // The name of the program comes first, in parentheses, and may hold anything.
    let (_, fields) = text.rsplit_once(')').context("no name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || anyhow::Ok(fields.next().context("too short")?.parse::<u32>()?);
    Ok(next()?.saturating_add(next()?))
}
