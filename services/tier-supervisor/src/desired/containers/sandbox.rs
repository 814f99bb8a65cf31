//! The sandbox of a tier whose shell commands run in containers: a rootless Docker daemon, the filter in front of it, and
//! the volumes between agent, filter and daemon. Neither is on any network, and no two tiers share anything.
//!
//! daemon --(socket volume)-- filter --(api volume)-- agent. The agent sees only the filter's socket, in a volume that it
//! mounts read-only; the workspace is mounted at one path in agent and daemon.

use super::super::{Confinement, ContainerSpec, DesiredError, Limits, Mount, MountSource, Ready, Role, VolumeSpec};
use super::tiers::UID_AGENT;
use super::{Parts, limits, plain};
use crate::config::{Runtime, Tier};

/// Where agent and daemon have the workspace: `--volume` names one path for both.
pub(super) const WORKSPACE: &str = "/zeroclaw-data/workspace";
/// The filter's socket, as the agent's Docker client names it.
const API_SOCKET: &str = "/run/sandbox-api/docker.sock";
/// The daemon's socket. Only the filter has it.
const DAEMON_SOCKET: &str = "/run/sandbox/docker.sock";
/// The one image that the daemon has.
const NESTED_IMAGE: &str = "assistant-sandbox:latest";

type Made = Result<(ContainerSpec, Vec<VolumeSpec>), DesiredError>;

/// The sandbox of a tier, where it has one.
pub(super) fn all(parts: &Parts<'_>, tier: &Tier) -> Result<Vec<(ContainerSpec, Vec<VolumeSpec>)>, DesiredError> {
    match tier.runtime {
        Runtime::Native => Ok(Vec::new()),
        Runtime::Docker => Ok(vec![daemon(parts, tier)?, filter(parts, tier)?]),
    }
}

fn daemon(parts: &Parts<'_>, tier: &Tier) -> Made {
    let image = parts.image("sandbox-daemon")?;
    let name = format!("sandbox-{}", tier.name);
    // What is nested has no control groups of its own: this one holds all of it, and the daemon.
    let limits = Limits {
        memory_bytes: tier.limits.memory_bytes.saturating_add(512 << 20),
        nano_cpus: tier.limits.nano_cpus,
        pids: tier.limits.pids.saturating_add(256),
    };
    let mut spec = parts.container(&name, Role::Sandbox, image, UID_AGENT, UID_AGENT, limits);
    spec.tier = Some(tier.name.clone());
    spec.entrypoint = Some(vec!["/usr/local/bin/sandbox-daemon".to_owned()]);
    spec.confinement = Confinement::RootlessDaemon;
    spec.cap_add = vec!["SETUID".to_owned(), "SETGID".to_owned()];
    // Where it keeps what lives as long as it does; programs are started from there.
    let runtime = format!("size=256m,mode=700,uid={UID_AGENT},gid={UID_AGENT},exec");
    spec.tmpfs.push(("/run/user".to_owned(), runtime));
    // Said when the nested image is there, which the first time takes a while.
    spec.ready = Ready::LogLine { needle: "sandbox-daemon: ready".to_owned() };
    // Its /etc/assistant holds nothing; the directory is mounted like everyone's and must exist.
    parts.public(&mut spec, "README", "The sandbox is configured by its image.\n".to_owned());
    let data = parts.data(&mut spec, &format!("sandbox-data-{}", tier.name), "/var/lib/sandbox");
    let socket = parts.data(&mut spec, &format!("sandbox-socket-{}", tier.name), "/run/sandbox");
    let workspace = parts.data(&mut spec, &workspace_volume(tier), WORKSPACE);
    parts.resolve(&mut spec, None);
    Ok((spec, vec![data, socket, workspace]))
}

fn filter(parts: &Parts<'_>, tier: &Tier) -> Made {
    let image = parts.image("sandbox-filter")?;
    let name = format!("sandbox-{}-filter", tier.name);
    let mut spec = parts.container(&name, Role::SandboxFilter, image, UID_AGENT, UID_AGENT, limits(64, 64, 5));
    spec.tier = Some(tier.name.clone());
    spec.entrypoint = Some(vec!["/usr/local/bin/docker-filter".to_owned()]);
    spec.command = [
        "--listen",
        API_SOCKET,
        "--upstream",
        DAEMON_SOCKET,
        "--image",
        NESTED_IMAGE,
        "--workspace",
        WORKSPACE,
        // ZeroClaw asks for the tier's own limits.
        "--memory-most",
        &tier.limits.memory_bytes.div_ceil(1 << 20).to_string(),
        "--cpus-most",
        &tier.limits.nano_cpus.div_ceil(1_000_000_000).max(1).to_string(),
        "--pids-most",
        &tier.limits.pids.max(2).to_string(),
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    parts.public(&mut spec, "README", "The filter is configured by arguments.\n".to_owned());
    // To connect needs no writable mount.
    mount(parts, &mut spec, &format!("sandbox-socket-{}", tier.name), "/run/sandbox", true);
    let api = parts.data(&mut spec, &api_volume(tier), "/run/sandbox-api");
    parts.resolve(&mut spec, None);
    Ok((spec, vec![api]))
}

/// What the agent of such a tier has more than others.
pub(super) fn join(parts: &Parts<'_>, tier: &Tier, agent: &mut ContainerSpec, data: &mut VolumeSpec) {
    if tier.runtime == Runtime::Native {
        return;
    }
    agent.env.push(plain("DOCKER_HOST", format!("unix://{API_SOCKET}")));
    agent.env.sort_by(|one, other| one.name.cmp(&other.name));
    mount(parts, agent, &api_volume(tier), "/run/sandbox-api", true);
    // The directory it is mounted on, inside the agent's own volume.
    data.directories.push("workspace".to_owned());
    mount(parts, agent, &workspace_volume(tier), WORKSPACE, false);
}

fn workspace_volume(tier: &Tier) -> String {
    format!("workspace-{}", tier.name)
}

fn api_volume(tier: &Tier) -> String {
    format!("sandbox-api-{}", tier.name)
}

fn mount(parts: &Parts<'_>, spec: &mut ContainerSpec, what: &str, target: &str, read_only: bool) {
    let source = MountSource::Volume(parts.volume(what));
    spec.mounts.push(Mount { source, target: target.to_owned(), read_only });
}
