//! The floor check, first form: does every wall stand, looked at from the VM, now?
//!
//! It owns the questions and their answers in words. What a container may do is read from the kernel (`/proc/<pid>`), not
//! from what the engine says it asked the kernel for; only what the kernel does not know (networks, restart policy) comes
//! from the engine. A question that could not be asked is a failed one. Where a reader could be blind, it is first shown
//! something it must see.
//!
//! It changes nothing, and sends nothing: probes from inside containers are the drill's.
//!
//! [`check`] blocks; async callers go through `spawn_blocking`.

mod confined;
mod gates;
mod members;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::desired::{Confinement, ContainerSpec, Desired};
use crate::kernel::{self, ContainerPort};
use crate::observed::Container;
use crate::{netns, routes};
use confined::Reader;

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which question, in kebab case, for example `egress-alone`.
    pub check: &'static str,
    /// Whether the wall stands.
    pub passed: bool,
    /// What was seen: names of ours, numbers, addresses.
    pub detail: String,
    /// What to do; empty where it passed.
    pub fix: String,
}

/// What the engine says, that the kernel does not know.
#[derive(Debug, Clone, Copy)]
pub struct Engine<'a> {
    /// Every container, ours or not.
    pub containers: &'a [Container],
    /// Restart policy by container name; a container of ours that is missing here fails its check.
    pub restart_policies: &'a BTreeMap<String, String>,
    /// Docker's socket, which no container of ours may have.
    pub socket: &'a Path,
}

/// Asks everything.
#[must_use]
pub fn check(desired: &Desired, ports: &[ContainerPort], engine: Engine<'_>) -> Vec<Verdict> {
    let mut verdicts = vec![members::egress_alone(desired, engine.containers)];
    verdicts.extend(members::as_desired(desired, engine.containers));
    verdicts.push(kernel_table(desired, ports));
    verdicts.push(no_ipv6(desired, ports));
    verdicts.push(drill_routes(desired));
    verdicts.push(gates::on_loopback(desired));
    let reader = Reader::new(engine.socket);
    for spec in &desired.containers {
        verdicts.push(restart_policy(spec, engine));
        verdicts.extend(gates::page_sockets(spec));
        let running = engine.containers.iter().find(|container| container.name == spec.name);
        // While the stack starts, files of what does not exist yet are still to be written.
        if running.is_some() {
            verdicts.push(readable_files(spec));
        }
        match running.and_then(Container::pid) {
            Some(pid) => {
                let looks = [confined(&reader, spec, pid), no_router(spec, pid), prepared(desired, spec, pid)];
                // A process that ended meanwhile cannot be judged, and what does not run breaks no wall. A pid that is used
                // again by then fails as before: another process is not as specified.
                if Path::new(&format!("/proc/{pid}")).exists() {
                    verdicts.extend(looks);
                } else {
                    verdicts.push(passed("container-confined", format!("{} ended while it was looked at", spec.name)));
                }
            }
            // What does not run breaks no wall; that it should run is another's worry. Said, so that it is not mistaken for
            // a look that was taken.
            None => verdicts.push(passed("container-confined", format!("{} does not run", spec.name))),
        }
    }
    verdicts
}

fn passed(check: &'static str, detail: String) -> Verdict {
    Verdict { check, passed: true, detail, fix: String::new() }
}

fn failed(check: &'static str, detail: String, fix: impl Into<String>) -> Verdict {
    Verdict { check, passed: false, detail, fix: fix.into() }
}

fn kernel_table(desired: &Desired, ports: &[ContainerPort]) -> Verdict {
    const CHECK: &str = "kernel-table";
    const FIX: &str = "tier-supervisor loads it again by itself within seconds; if this stays, find what else writes nftables (nft monitor)";
    let wanted = kernel::ruleset(desired, ports);
    // Control: with one subnet less it is another table, and the comparison must say so.
    let mut less = desired.clone();
    less.networks.pop();
    let other = kernel::ruleset(&less, &[]);
    match (kernel::matches_loaded(&wanted), kernel::matches_loaded(&other)) {
        (Ok(true), Ok(false)) => passed(CHECK, format!("loaded as desired, {} ports of containers in it", ports.len())),
        (Ok(true), Ok(true)) => {
            failed(CHECK, "the comparison cannot tell two tables apart".to_owned(), "report this: it is a bug")
        }
        (Ok(false), _) => failed(CHECK, "what is loaded is not the desired table".to_owned(), FIX),
        (Err(error), _) | (_, Err(error)) => failed(CHECK, error.to_string(), FIX),
    }
}

fn no_ipv6(desired: &Desired, ports: &[ContainerPort]) -> Verdict {
    const CHECK: &str = "no-ipv6";
    const FIX: &str = "tier-supervisor switches it off by itself within seconds; if this stays, find what sets net.ipv6.conf.*.disable_ipv6";
    match kernel::speak_ipv6(&kernel::ruleset(desired, ports)) {
        Ok(loud) if loud.is_empty() => passed(CHECK, "no bridge of ours, and no port, speaks IPv6".to_owned()),
        Ok(loud) => failed(CHECK, format!("IPv6 is on at {}", loud.join(", ")), FIX),
        Err(error) => failed(CHECK, error.to_string(), FIX),
    }
}

fn drill_routes(desired: &Desired) -> Verdict {
    const CHECK: &str = "drill-routes";
    match (routes::verify(desired), desired.drill_table) {
        (Ok(()), Some(_)) => passed(CHECK, "whatever leaves a bridge of ours is led into the drill".to_owned()),
        (Ok(()), None) => passed(CHECK, "a live stack, and no rule of a drill is left".to_owned()),
        (Err(error), _) => {
            failed(CHECK, error.to_string(), "run deploy/up.sh again; it makes the drill's namespace and routes anew")
        }
    }
}

fn restart_policy(spec: &ContainerSpec, engine: Engine<'_>) -> Verdict {
    const CHECK: &str = "restart-policy";
    let name = &spec.name;
    let exists = engine.containers.iter().any(|found| &found.name == name && found.owner.is_ours());
    match engine.restart_policies.get(name).map(String::as_str) {
        Some("no" | "") => passed(CHECK, format!("{name}: only tier-supervisor starts it")),
        Some(policy) => failed(
            CHECK,
            format!("{name} has restart policy {policy:?}: Docker would start it before the kernel table is loaded"),
            format!("docker rm -f {name}; tier-supervisor makes it again"),
        ),
        // A conflict of names keeps it from being made: that breaks no wall.
        None if !exists => passed(CHECK, format!("{name} is not there")),
        None => failed(
            CHECK,
            format!("the restart policy of {name} is not known"),
            "tier-supervisor asks again by itself; if this stays, restart Docker",
        ),
    }
}

fn confined(reader: &Reader, spec: &ContainerSpec, pid: u32) -> Verdict {
    const CHECK: &str = "container-confined";
    let name = &spec.name;
    let problems = reader.problems(spec, pid);
    if problems.is_empty() {
        return passed(
            CHECK,
            match spec.confinement {
                Confinement::Standard => {
                    format!(
                        "{name}: no capability, no new privileges, filtered calls, read-only root, no engine socket"
                    )
                }
                Confinement::RootlessDaemon => format!(
                    "{name}: no capability beside {}, no network, filtered calls, read-only root, no engine socket",
                    spec.cap_add.join(" and ")
                ),
            },
        );
    }
    failed(
        CHECK,
        format!("{name}: {}", problems.join("; ")),
        format!("docker rm -f {name}; tier-supervisor makes it again as it must be"),
    )
}

fn no_router(spec: &ContainerSpec, pid: u32) -> Verdict {
    const CHECK: &str = "container-no-router";
    let name = &spec.name;
    match netns::forwards(pid) {
        Ok(false) => passed(CHECK, format!("{name}: hands on no packets ({} networks)", spec.networks.len())),
        // One network: there is nothing to hand on between.
        Ok(true) if spec.networks.len() < 2 => passed(CHECK, format!("{name}: on one network only")),
        Ok(true) => failed(
            CHECK,
            format!("{name} would hand on packets between its {} networks", spec.networks.len()),
            format!("docker rm -f {name}; tier-supervisor makes it again with net.ipv4.ip_forward=0"),
        ),
        Err(error) => failed(CHECK, format!("{name}: {error}"), "run the check again"),
    }
}

fn prepared(desired: &Desired, spec: &ContainerSpec, pid: u32) -> Verdict {
    const CHECK: &str = "container-routes";
    let name = &spec.name;
    let what = if spec.inert_default_route { "every attempt becomes a frame; no IPv6" } else { "no IPv6" };
    match netns::is_prepared(pid, spec, desired) {
        Ok(true) => passed(CHECK, format!("{name}: {what}")),
        Ok(false) => failed(
            CHECK,
            format!(
                "{name}: its routes, its neighbour entry or its IPv6 switch are not as prepared: attempts may die unseen"
            ),
            format!("docker restart is not enough: docker rm -f {name}; tier-supervisor makes and prepares it again"),
        ),
        Err(error) => failed(CHECK, format!("{name}: {error}"), "run the check again"),
    }
}

/// What is mounted into a container and is not secret (the public half of the stack's CA, above all) can be read by whom
/// it is for; what is secret by nobody else.
fn readable_files(spec: &ContainerSpec) -> Verdict {
    const CHECK: &str = "rendered-files";
    let name = &spec.name;
    let problem = spec.files.iter().find_map(|file| {
        let path = file.path.display();
        let metadata = match std::fs::symlink_metadata(&file.path) {
            Ok(metadata) => metadata,
            Err(error) => return Some(format!("{path} cannot be looked at: {error}")),
        };
        let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode());
        if !metadata.is_file() {
            return Some(format!("{path} is not a regular file"));
        }
        if file.secret && mode & 0o007 != 0 {
            return Some(format!("{path} is secret and everyone may read it (mode {:o})", mode & 0o777));
        }
        if !confined::may_read(spec.uid, spec.gid, uid, gid, mode) {
            return Some(format!(
                "{path} cannot be read by uid {} (owner {uid}:{gid}, mode {:o})",
                spec.uid,
                mode & 0o777
            ));
        }
        None
    });
    match problem {
        None => passed(
            CHECK,
            format!("{name}: {} files, readable by uid {} and as secret as they must be", spec.files.len(), spec.uid),
        ),
        Some(problem) => {
            failed(CHECK, format!("{name}: {problem}"), "tier-supervisor writes it again by itself within seconds")
        }
    }
}
