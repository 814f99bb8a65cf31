//! Resident memory of a container, from its control group. `docker stats` shows 0 on some engines and kernels.

use std::path::{Path, PathBuf};

/// Bytes of resident memory of every process in the control group of this one; 0 when it cannot be read.
pub(super) fn resident(pid: u32) -> u64 {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let Some((file, field)) = stat_file(Path::new("/sys/fs/cgroup"), &groups) else { return 0 };
    std::fs::read_to_string(file).map_or(0, |text| field_of(&text, field))
}

/// Which file says it, and under which name. Lines are `hierarchy:controllers:path` (cgroups(7)); version 2 has hierarchy 0
/// and no controllers.
fn stat_file(mount: &Path, groups: &str) -> Option<(PathBuf, &'static str)> {
    let find = |wanted: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let path = parts.next()?;
            // A namespaced view from outside shows "/..": not a path to follow.
            (wanted(controllers) && !path.contains("..")).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    if let Some(path) = find(&|controllers| controllers.split(',').any(|name| name == "memory")) {
        return Some((mount.join("memory").join(path).join("memory.stat"), "total_rss"));
    }
    find(&str::is_empty).map(|path| (mount.join(path).join("memory.stat"), "anon"))
}

fn field_of(text: &str, field: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == field)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups() {
        let mount = Path::new("/sys/fs/cgroup");
        let one = "12:pids:/docker/ab\n4:memory:/docker/ab\n0::/init\n";
        assert_eq!(
            stat_file(mount, one),
            Some((PathBuf::from("/sys/fs/cgroup/memory/docker/ab/memory.stat"), "total_rss"))
        );
        let two = "0::/system.slice/docker-ab.scope\n";
        assert_eq!(
            stat_file(mount, two),
            Some((PathBuf::from("/sys/fs/cgroup/system.slice/docker-ab.scope/memory.stat"), "anon"))
        );
        assert_eq!(stat_file(mount, ""), None);
        assert_eq!(stat_file(mount, "0::/../x\n"), None);
    }

    #[test]
    fn one_field_of_many() {
        assert_eq!(field_of("cache 1\ntotal_rss 4096\nrss 2\n", "total_rss"), 4096);
        assert_eq!(field_of("anon x\n", "anon"), 0);
        assert_eq!(field_of("", "anon"), 0);
    }
}
