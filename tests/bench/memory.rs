//! Memory of each part, from /proc.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use assistant_tests::harness::command;

/// Programs of the VM itself.
const PROGRAMS: &str = "/usr/local/lib/assistant/bin/";

/// Memory of one part, in KiB.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) processes: u32,
    /// Sum of what is resident; pages that processes share are counted in each.
    pub(crate) resident: u64,
    /// Sum of what is resident, shared pages divided among those who share them.
    pub(crate) proportional: u64,
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
        let Ok((resident, proportional)) = of_process(&path) else { continue };
        let used = parts.entry(part).or_default();
        used.processes = used.processes.saturating_add(1);
        used.resident = used.resident.saturating_add(resident);
        used.proportional = used.proportional.saturating_add(proportional);
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

fn of_process(process: &Path) -> anyhow::Result<(u64, u64)> {
    let text = std::fs::read_to_string(process.join("smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        anyhow::Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()?)
    };
    Ok((field("Rss:")?, field("Pss:")?))
}
