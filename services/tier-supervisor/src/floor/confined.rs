//! What the kernel lets a container's first process do, read from /proc. The understanding is pure.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::desired::{Confinement, ContainerSpec};

/// Reads, after having shown itself that it is not blind.
#[derive(Debug)]
pub(super) struct Reader {
    /// Why nothing it reads can be believed.
    blind: Option<String>,
    /// Where the engine's socket lies: device, and path within it.
    socket: Option<Place>,
}

/// A file by the file system it lies on, however it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// `major:minor`, as mountinfo spells it.
    device: String,
    path: PathBuf,
}

/// Of /proc/<pid>/status.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    uid: Option<u32>,
    /// All sets of capabilities, put together.
    capabilities: Option<u64>,
    no_new_privileges: bool,
    /// Whether a filter judges its system calls.
    filtered: bool,
}

impl Reader {
    pub(super) fn new(socket: &Path) -> Self {
        let own = std::fs::read_to_string("/proc/self/status").map(|text| status(&text)).unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // tier-supervisor itself has capabilities: a reader that sees none of them sees nothing.
        let blind = match own.capabilities {
            Some(0) | None => Some(
                "it cannot be told what a process may do: /proc shows no capability of tier-supervisor itself"
                    .to_owned(),
            ),
            Some(_) if mounts.is_empty() => Some("/proc/self/mountinfo cannot be read".to_owned()),
            Some(_) => None,
        };
        let socket = std::fs::canonicalize(socket).ok().and_then(|socket| {
            // The socket must exist where it is said to be, or there is nothing to compare with.
            std::fs::metadata(&socket).ok().filter(|metadata| metadata.dev() != 0)?;
            place(&mounts, &socket)
        });
        Self { blind, socket }
    }

    /// Everything that is not as it must be; empty when it is.
    pub(super) fn problems(&self, spec: &ContainerSpec, pid: u32) -> Vec<String> {
        if let Some(blind) = &self.blind {
            return vec![blind.clone()];
        }
        let file = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        match (file("status"), file("mountinfo")) {
            (Ok(text), Ok(mounts)) => {
                let mut problems = of_status(spec, &status(&text));
                problems.extend(self.of_mounts(&mounts));
                problems
            }
            (Err(error), _) | (_, Err(error)) => vec![format!("/proc/{pid} cannot be read: {error}")],
        }
    }

    fn of_mounts(&self, mounts: &str) -> Vec<String> {
        let mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
        let mut problems = Vec::new();
        // The last one mounted at a point is the one that is seen.
        match mounts.iter().rfind(|mount| mount.point == Path::new("/")) {
            Some(root) if root.read_only => {}
            Some(_) => problems.push("its root can be written to".to_owned()),
            None => problems.push("its root is not to be seen".to_owned()),
        }
        let named = |mount: &&Mount| {
            [&mount.point, &mount.root].iter().any(|path| {
                let name = path.file_name().unwrap_or_default();
                ["docker.sock", "containerd.sock", "podman.sock"].iter().any(|socket| name == *socket)
            })
        };
        let holds = |mount: &&Mount| {
            let socket = self.socket.as_ref();
            socket.is_some_and(|socket| socket.device == mount.device && socket.path.starts_with(&mount.root))
        };
        if let Some(mount) = mounts.iter().find(|mount| named(mount) || holds(mount)) {
            problems.push(format!("it can reach an engine's socket through {}", mount.point.display()));
        }
        problems
    }
}

/// Bits of the capabilities that a specification may name (capability.h of Linux). One that is not here counts as none.
const CAPABILITIES: [(&str, u64); 2] = [("SETGID", 1 << 6), ("SETUID", 1 << 7)];

fn of_status(spec: &ContainerSpec, status: &Status) -> Vec<String> {
    let mut problems = Vec::new();
    let given = CAPABILITIES
        .iter()
        .filter(|(name, _)| spec.cap_add.iter().any(|given| given == name))
        .fold(0, |set, (_, bit)| set | bit);
    match status.capabilities {
        // It may have none beside those it was given.
        Some(had) if had & !given == 0 => {}
        Some(had) => problems.push(format!("it has or could gain capabilities ({had:#x})")),
        None => problems.push("its capabilities are not to be seen".to_owned()),
    }
    match spec.confinement {
        Confinement::Standard if !status.no_new_privileges => problems.push("it may gain privileges".to_owned()),
        // Whoever is confined less must reach nobody.
        Confinement::RootlessDaemon if !spec.networks.is_empty() => {
            problems.push("it is confined less than others, and is on a network".to_owned());
        }
        Confinement::Standard | Confinement::RootlessDaemon => {}
    }
    if !status.filtered {
        problems.push("its system calls are not filtered".to_owned());
    }
    if status.uid != Some(spec.uid) {
        problems.push(format!("it does not run as uid {}", spec.uid));
    }
    problems
}

fn status(text: &str) -> Status {
    let mut status = Status::default();
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name {
            // Real, effective, saved, file system: no_new_privs keeps them as they are.
            "Uid" => status.uid = value.split_ascii_whitespace().next().and_then(|uid| uid.parse().ok()),
            "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => {
                // One that cannot be read counts as all of them.
                let set = u64::from_str_radix(value, 16).unwrap_or(u64::MAX);
                status.capabilities = Some(status.capabilities.unwrap_or_default() | set);
            }
            "NoNewPrivs" => status.no_new_privileges = value == "1",
            // SECCOMP_MODE_FILTER (proc_pid_status(5)).
            "Seccomp" => status.filtered = value == "2",
            _ => {}
        }
    }
    status
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug)]
struct Mount {
    device: String,
    /// What of the file system is mounted.
    root: PathBuf,
    point: PathBuf,
    read_only: bool,
}

fn mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let (root, point) = (PathBuf::from(fields.next()?), PathBuf::from(fields.next()?));
    let read_only = fields.next()?.split(',').any(|option| option == "ro");
    Some(Mount { device, root, point, read_only })
}

/// Where a path of this mount namespace lies.
fn place(mounts: &str, path: &Path) -> Option<Place> {
    let mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
    let on = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    // The longest mount point is the one that is seen; of equal ones the last.
    let on = on.max_by_key(|mount| mount.point.components().count())?;
    Some(Place { device: on.device.clone(), path: on.root.join(path.strip_prefix(&on.point).ok()?) })
}

/// Whether the permission bits let that user read, as the kernel decides it without capabilities.
pub(super) fn may_read(uid: u32, gid: u32, owner: u32, group: u32, mode: u32) -> bool {
    let bit = if uid == owner {
        0o400
    } else if gid == group {
        0o040
    } else {
        0o004
    };
    mode & bit != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::plan::samples;

    const CONFINED: &str = "Name:\tzeroclaw\nUid:\t65534\t65534\t65534\t65534\nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
    const VM: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        25 22 0:23 / /run rw,nosuid shared:5 - tmpfs tmpfs rw\n";
    const CONTAINER: &str = "500 400 0:60 / / ro,relatime - overlay overlay rw\n\
        501 500 0:61 / /proc rw - proc proc rw\n\
        502 500 8:1 /var/lib/assistant/drill/render/x /etc/assistant ro - ext4 /dev/sda1 rw\n";

    #[test]
    fn every_set_of_capabilities_counts() {
        let confined = Status { uid: Some(65534), capabilities: Some(0), no_new_privileges: true, filtered: true };
        assert_eq!(status(CONFINED), confined);
        for mode in ["0", "1", "x"] {
            assert!(!status(&CONFINED.replace("Seccomp:\t2", &format!("Seccomp:\t{mode}"))).filtered, "{mode}");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let more = CONFINED.replace(&format!("{set}:\t0000000000000000"), &format!("{set}:\t0000000000000400"));
            assert_eq!(status(&more).capabilities, Some(0x400), "{set}");
        }
        assert_eq!(status("").capabilities, None);
        assert_eq!(status("CapEff:\tx\n").capabilities, Some(u64::MAX));
    }

    #[test]
    fn a_rootless_daemon_may_gain_two_capabilities_and_nobody_else_any() {
        let mut spec = samples::desired().containers[3].clone();
        spec.uid = 65_534;
        let bounded = CONFINED.replace("CapBnd:\t0000000000000000", "CapBnd:\t00000000000000c0");
        let daemon = status(&bounded.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0"));
        assert_eq!(of_status(&spec, &status(CONFINED)), Vec::<String>::new());
        assert_eq!(of_status(&spec, &daemon).len(), 2, "capabilities, and privileges that can be gained");
        spec.cap_add = vec!["SETUID".to_owned(), "SETGID".to_owned()];
        assert_eq!(of_status(&spec, &daemon).len(), 1, "two capabilities do not make a daemon");
        spec.confinement = Confinement::RootlessDaemon;
        assert_eq!(of_status(&spec, &daemon), ["it is confined less than others, and is on a network"]);
        spec.networks.clear();
        assert_eq!(of_status(&spec, &daemon), Vec::<String>::new());
        let more = status(&bounded.replace("00c0", "20c0").replace("NoNewPrivs:\t1", "NoNewPrivs:\t0"));
        assert_eq!(of_status(&spec, &more).len(), 1, "CAP_NET_RAW is not among them");
        let unfiltered = status(&bounded.replace("Seccomp:\t2", "Seccomp:\t0"));
        assert_eq!(of_status(&spec, &unfiltered), ["its system calls are not filtered"]);
    }

    #[test]
    fn sees_a_root_that_can_be_written_to() {
        let reader = Reader { blind: None, socket: None };
        assert!(reader.of_mounts(CONTAINER).is_empty());
        assert_eq!(reader.of_mounts(&CONTAINER.replace("/ ro,", "/ rw,")), ["its root can be written to"]);
        // Read-only below, writable on top of it.
        let covered = format!("{CONTAINER}510 500 0:70 / / rw - tmpfs tmpfs rw\n");
        assert_eq!(reader.of_mounts(&covered).len(), 1);
        assert_eq!(reader.of_mounts("").len(), 1);
    }

    #[test]
    fn sees_the_engines_socket_however_it_is_mounted() {
        let socket = place(VM, Path::new("/run/docker.sock"));
        assert_eq!(socket, Some(Place { device: "0:23".to_owned(), path: "/docker.sock".into() }));
        let reader = Reader { blind: None, socket };
        for mounted in [
            "0:23 /docker.sock /var/run/docker.sock rw",
            "0:23 /docker.sock /innocent rw",
            "0:23 / /host-run ro",
            "0:99 /elsewhere/docker.sock /x rw",
            "0:99 /x /containerd.sock rw",
        ] {
            let mounts = format!("{CONTAINER}600 500 {mounted} - tmpfs tmpfs rw\n");
            assert_eq!(reader.of_mounts(&mounts).len(), 1, "{mounted}");
        }
        let harmless = format!("{CONTAINER}600 500 0:23 /assistant/x /run/assistant rw - tmpfs tmpfs rw\n");
        assert!(reader.of_mounts(&harmless).is_empty());
    }

    #[test]
    fn reads_by_the_first_class_that_fits() {
        assert!(may_read(5, 5, 5, 0, 0o400) && may_read(5, 7, 0, 7, 0o040) && may_read(5, 5, 0, 0, 0o004));
        // The owner's own bits decide for the owner, even when everyone else may.
        assert!(!may_read(5, 5, 5, 0, 0o044) && !may_read(5, 7, 0, 7, 0o404) && !may_read(5, 5, 0, 0, 0o440));
    }

    #[test]
    fn the_reader_sees_itself() {
        let own = status(&std::fs::read_to_string("/proc/self/status").unwrap());
        assert!(own.uid.is_some() && own.capabilities.is_some());
        assert!(place(&std::fs::read_to_string("/proc/self/mountinfo").unwrap(), Path::new("/proc/self")).is_some());
    }
}
