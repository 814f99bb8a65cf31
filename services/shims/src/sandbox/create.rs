//! What a container of the sandbox may be: read from the body of `POST /containers/create` into a closed type.
//!
//! Owns the meaning of each field of that body. A field is either understood, or must have its default, or the whole
//! call is refused with the field named; fields of newer engines that nobody here has heard of fall under the second.
//! What the daemon gets is written by [`body`] from the parsed value alone, and nothing of the original reaches it.
//! Does not know HTTP, ids or who asks.
//!
//! The fields are those of the Docker Engine API 1.41 to 1.52 (docs.docker.com/reference/api/engine).

pub mod body;
mod fields;

use self::fields::{Fields, path};
use super::json::Json;
use super::refusal::{Operation, Reason, Refused};
use crate::visible::visible;

/// Where the workspace is inside a container, and where its command starts.
pub const WORKSPACE_INSIDE: &str = "/workspace";
/// The daemon takes no less: 6 MiB.
const MEMORY_LEAST: i64 = 6 * 1024 * 1024;
/// The daemon takes no less: a hundredth of a processor.
const NANO_CPUS_LEAST: i64 = 10_000_000;
const SHM_MOST: i64 = 64 * 1024 * 1024;
const ARGUMENTS_MOST: usize = 1_024;
const VARIABLES_MOST: usize = 256;

/// What every container of this sandbox has in common: said by the operator's configuration.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The one image, exactly as clients must name it.
    pub image: String,
    /// The workspace as the daemon sees it, absolute; clients must name the same.
    pub workspace: String,
    /// Bytes; also what a container gets that asks for nothing.
    pub memory_most: i64,
    /// Billionths of a processor; also what a container gets that asks for nothing.
    pub nano_cpus_most: i64,
    /// Processes; also what a container gets that asks for nothing.
    pub pids_most: i64,
}

/// How the workspace is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `:ro`
    ReadOnly,
    /// `:rw`, or nothing said.
    ReadWrite,
}

/// Which standard streams the client attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// One container, as it may be. All else about it is fixed: see [`body`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    command: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    environment: Vec<String>,
    attached: Streams,
    open_stdin: bool,
    stdin_once: bool,
    workspace: Option<Access>,
    memory: i64,
    nano_cpus: i64,
    pids: i64,
    shm: i64,
    read_only_root: bool,
    auto_remove: bool,
    init: Option<bool>,
}

/// Fields of the body itself that must have their default.
const DEFAULTS: &[(&str, Reason, &str)] = &[
    ("Hostname", Reason::NotNeeded, "a host name"),
    ("Domainname", Reason::NotNeeded, "a domain name"),
    ("ExposedPorts", Reason::Network, "exposed ports"),
    ("Tty", Reason::NotNeeded, "a terminal"),
    ("Healthcheck", Reason::NotNeeded, "a health check"),
    ("ArgsEscaped", Reason::NotNeeded, "escaped arguments"),
    ("Volumes", Reason::Mount, "volumes"),
    ("NetworkDisabled", Reason::Network, "a network setting"),
    ("MacAddress", Reason::Network, "a hardware address"),
    ("OnBuild", Reason::NotNeeded, "build triggers"),
    ("Labels", Reason::NotNeeded, "labels"),
    ("StopSignal", Reason::NotNeeded, "a stop signal"),
    ("StopTimeout", Reason::NotNeeded, "a stop timeout"),
    ("Shell", Reason::NotNeeded, "another shell"),
];

/// Fields of `HostConfig` that must have their default.
const HOST_DEFAULTS: &[(&str, Reason, &str)] = &[
    ("Privileged", Reason::Privileged, "privileged containers"),
    ("SecurityOpt", Reason::SecurityOpt, "security options"),
    ("CapAdd", Reason::CapAdd, "capabilities"),
    ("Capabilities", Reason::CapAdd, "capabilities"),
    ("Devices", Reason::Device, "devices"),
    ("DeviceCgroupRules", Reason::Device, "device rules"),
    ("DeviceRequests", Reason::Device, "device requests"),
    ("PidMode", Reason::HostNamespace, "another process namespace"),
    ("IpcMode", Reason::HostNamespace, "another IPC namespace"),
    ("UTSMode", Reason::HostNamespace, "another host name namespace"),
    ("UsernsMode", Reason::HostNamespace, "another user namespace"),
    ("CgroupnsMode", Reason::HostNamespace, "another control group namespace"),
    ("Cgroup", Reason::HostNamespace, "another container's control group"),
    ("CgroupParent", Reason::HostNamespace, "a parent control group"),
    ("Mounts", Reason::Mount, "mounts other than by --volume"),
    ("Tmpfs", Reason::Mount, "temporary file systems"),
    ("VolumesFrom", Reason::Mount, "volumes of other containers"),
    ("VolumeDriver", Reason::Mount, "volume drivers"),
    ("StorageOpt", Reason::Mount, "storage options"),
    ("Links", Reason::Network, "links"),
    ("PortBindings", Reason::Network, "ports"),
    ("PublishAllPorts", Reason::Network, "ports"),
    ("ExtraHosts", Reason::Network, "host names"),
    ("Dns", Reason::Network, "resolvers"),
    ("DnsOptions", Reason::Network, "resolver options"),
    ("DnsSearch", Reason::Network, "search domains"),
    ("Runtime", Reason::Runtime, "another runtime"),
    ("Isolation", Reason::Runtime, "an isolation technology"),
    ("Sysctls", Reason::Sysctl, "kernel settings"),
    ("GroupAdd", Reason::User, "more groups"),
    ("OomScoreAdj", Reason::Limits, "another out-of-memory score"),
    ("OomKillDisable", Reason::Limits, "an exception from the out-of-memory killer"),
    ("KernelMemory", Reason::Limits, "kernel memory limits"),
    ("KernelMemoryTCP", Reason::Limits, "kernel memory limits"),
    ("MemoryReservation", Reason::Limits, "memory reservations"),
    ("CpuShares", Reason::Limits, "processor shares (use --cpus)"),
    ("CpuPeriod", Reason::Limits, "processor periods (use --cpus)"),
    ("CpuQuota", Reason::Limits, "processor quotas (use --cpus)"),
    ("CpuRealtimePeriod", Reason::Limits, "real-time processors"),
    ("CpuRealtimeRuntime", Reason::Limits, "real-time processors"),
    ("CpusetCpus", Reason::Limits, "chosen processors"),
    ("CpusetMems", Reason::Limits, "chosen memory nodes"),
    ("CpuCount", Reason::Limits, "processor counts (use --cpus)"),
    ("CpuPercent", Reason::Limits, "processor percentages (use --cpus)"),
    ("IOMaximumIOps", Reason::Limits, "disk limits"),
    ("IOMaximumBandwidth", Reason::Limits, "disk limits"),
    ("BlkioWeight", Reason::Limits, "disk weights"),
    ("BlkioWeightDevice", Reason::Limits, "disk weights"),
    ("BlkioDeviceReadBps", Reason::Limits, "disk limits"),
    ("BlkioDeviceWriteBps", Reason::Limits, "disk limits"),
    ("BlkioDeviceReadIOps", Reason::Limits, "disk limits"),
    ("BlkioDeviceWriteIOps", Reason::Limits, "disk limits"),
    ("Ulimits", Reason::Limits, "ulimits"),
    ("ContainerIDFile", Reason::NotNeeded, "a file for the id"),
];

impl Create {
    /// Reads a body.
    ///
    /// # Errors
    /// The first thing about it that may not be, named.
    pub fn parse(bytes: &[u8], policy: &Policy) -> Result<Self, Refused> {
        let json = Json::parse(bytes)
            .map_err(|error| refused(Reason::Malformed, &format!("the body cannot be understood: {error}")))?;
        let mut top = Fields::of("", json)?;
        // The host configuration first: what is dangerous lies there, and is what a record should name.
        let mut host = Fields::of("HostConfig", top.take("HostConfig"))?;
        host.defaults(HOST_DEFAULTS)?;
        for masked in ["MaskedPaths", "ReadonlyPaths"] {
            // An empty list is no default here: it uncovers what the daemon would cover.
            if host.take(masked) != Json::Null {
                return Err(refused(
                    Reason::SecurityOpt,
                    &format!("HostConfig.{masked}: system paths stay covered; leave it out"),
                ));
            }
        }
        network_is_none(&mut host)?;
        quiet_settings(&mut host)?;
        let (memory, nano_cpus, pids, shm) = limits(&mut host, policy)?;
        let workspace = workspace(&mut host, policy)?;
        let read_only_root = host.flag("ReadonlyRootfs")?;
        let auto_remove = host.flag("AutoRemove")?;
        let init = match host.take("Init") {
            Json::Null => None,
            Json::Bool(init) => Some(init),
            _ => return Err(host.wrong("Init", "true or false")),
        };
        host.finish()?;

        top.defaults(DEFAULTS)?;
        networking_is_empty(top.take("NetworkingConfig"))?;
        let image = top.text("Image")?;
        if image != policy.image {
            let detail = format!("Image: the only image is {}, not {}", policy.image, visible(image.as_bytes(), 80));
            return Err(refused(Reason::Image, &detail));
        }
        // Root of the daemon's user namespace is the user whom the agent runs as; any other could not share the
        // workspace with it.
        let user = top.text("User")?;
        if !["", "0", "root", "0:0", "root:root"].contains(&user.as_str()) {
            return Err(refused(Reason::User, "User: the only user is 0, which owns the workspace; leave --user out"));
        }
        // A directory that is looked up inside the container has been a way out of it (CVE-2024-21626), links included.
        let directory = top.text("WorkingDir")?;
        if !["", WORKSPACE_INSIDE].contains(&directory.as_str()) {
            return Err(refused(Reason::Mount, "WorkingDir: commands start in /workspace; use cd in the command"));
        }
        let create = Self {
            command: top.words("Cmd", ARGUMENTS_MOST)?,
            entrypoint: top.words("Entrypoint", ARGUMENTS_MOST)?,
            environment: environment(&mut top)?,
            attached: Streams {
                stdin: top.flag("AttachStdin")?,
                stdout: top.flag("AttachStdout")?,
                stderr: top.flag("AttachStderr")?,
            },
            open_stdin: top.flag("OpenStdin")?,
            stdin_once: top.flag("StdinOnce")?,
            workspace,
            memory,
            nano_cpus,
            pids,
            shm,
            read_only_root,
            auto_remove,
            init,
        };
        top.finish()?;
        Ok(create)
    }

    /// Whether the daemon removes it when it ends.
    #[must_use]
    pub fn auto_remove(&self) -> bool {
        self.auto_remove
    }
}

fn refused(reason: Reason, detail: &str) -> Refused {
    Refused::new(Operation::Create, reason, detail)
}

fn network_is_none(host: &mut Fields) -> Result<(), Refused> {
    let mode = host.text("NetworkMode")?;
    if mode == "none" {
        return Ok(());
    }
    let detail = format!(
        "HostConfig.NetworkMode: the sandbox has no network; say --network none, not {:?}",
        visible(mode.as_bytes(), 80)
    );
    Err(refused(Reason::Network, &detail))
}

/// What may be said about an endpoint: nothing, on no network but `none`.
fn networking_is_empty(config: Json) -> Result<(), Refused> {
    let mut config = match config {
        Json::Null => return Ok(()),
        config => Fields::of("NetworkingConfig", config)?,
    };
    let foreign = match config.take("EndpointsConfig") {
        Json::Null => None,
        Json::Object(endpoints) => endpoints.into_iter().find(|endpoint| !is_bare(endpoint)).map(|(name, _)| name),
        _ => return Err(config.wrong("EndpointsConfig", "an object")),
    };
    if let Some(name) = foreign {
        let detail = format!(
            "NetworkingConfig.EndpointsConfig: the sandbox has no network; leave {:?} out",
            visible(name.as_bytes(), 80)
        );
        return Err(refused(Reason::Network, &detail));
    }
    config.finish()
}

/// An endpoint on the network `none` of which every setting is its default.
fn is_bare((name, settings): &(String, Json)) -> bool {
    name == "none"
        && match settings {
            Json::Object(settings) => settings.values().all(Json::is_default),
            settings => settings.is_default(),
        }
}

/// Settings of which clients send a default that is not an empty value.
fn quiet_settings(host: &mut Fields) -> Result<(), Refused> {
    let mut restart = Fields::of("HostConfig.RestartPolicy", host.take("RestartPolicy"))?;
    let name = restart.text("Name")?;
    if !["", "no"].contains(&name.as_str()) || !restart.take("MaximumRetryCount").is_default() {
        return Err(refused(Reason::NotNeeded, "HostConfig.RestartPolicy: nothing is started again here"));
    }
    restart.finish()?;
    let mut log = Fields::of("HostConfig.LogConfig", host.take("LogConfig"))?;
    if !log.take("Type").is_default() || !log.take("Config").is_default() {
        return Err(refused(Reason::NotNeeded, "HostConfig.LogConfig: the logging driver is not to be chosen"));
    }
    log.finish()?;
    // All are dropped, whichever are named.
    host.words("CapDrop", ARGUMENTS_MOST)?;
    match host.take("ConsoleSize") {
        Json::Null => {}
        Json::List(size) if size.iter().all(|side| matches!(side, Json::Integer(_))) && size.len() <= 2 => {}
        _ => return Err(host.wrong("ConsoleSize", "two numbers")),
    }
    match host.take("MemorySwappiness") {
        Json::Null | Json::Integer(-1 | 0) => Ok(()),
        _ => Err(refused(Reason::Limits, "HostConfig.MemorySwappiness: not to be chosen")),
    }
}

fn limits(host: &mut Fields, policy: &Policy) -> Result<(i64, i64, i64, i64), Refused> {
    let mut bounded = |name: &str, least: i64, most: i64, unit: &str| match host.integer(name)? {
        0 => Ok(most),
        value if (least..=most).contains(&value) => Ok(value),
        value => Err(refused(
            Reason::Limits,
            &format!(
                "HostConfig.{name}: {value} {unit} is not between {least} and {most}; ask for less, or leave it out"
            ),
        )),
    };
    let memory = bounded("Memory", MEMORY_LEAST, policy.memory_most, "bytes")?;
    let nano_cpus = bounded("NanoCpus", NANO_CPUS_LEAST, policy.nano_cpus_most, "billionths of a processor")?;
    let pids = bounded("PidsLimit", 1, policy.pids_most, "processes")?;
    let shm = bounded("ShmSize", 1, SHM_MOST, "bytes")?;
    // Equal to the memory means no swap, which is what all get.
    let swap = host.integer("MemorySwap")?;
    if swap != 0 && swap != memory {
        return Err(refused(Reason::Limits, "HostConfig.MemorySwap: there is no swap for the sandbox; leave it out"));
    }
    Ok((memory, nano_cpus, pids, shm))
}

/// At most one bind, from the workspace itself. Not from beneath it: the daemon would follow a link that the agent laid
/// there to its own files, its socket among them.
fn workspace(host: &mut Fields, policy: &Policy) -> Result<Option<Access>, Refused> {
    let binds = host.words("Binds", ARGUMENTS_MOST)?.unwrap_or_default();
    let bind = match binds.as_slice() {
        [] => return Ok(None),
        [bind] => bind,
        _ => return Err(refused(Reason::Mount, "HostConfig.Binds: there is one mount, the workspace")),
    };
    let plain = format!("{}:{WORKSPACE_INSIDE}", policy.workspace);
    match bind.strip_prefix(&plain) {
        Some("" | ":rw") => Ok(Some(Access::ReadWrite)),
        Some(":ro") => Ok(Some(Access::ReadOnly)),
        _ => {
            let detail = format!(
                "HostConfig.Binds: the only mount is {plain}, with :rw or :ro, not {:?}",
                visible(bind.as_bytes(), 120)
            );
            Err(refused(Reason::Mount, &detail))
        }
    }
}

fn environment(top: &mut Fields) -> Result<Vec<String>, Refused> {
    let variables = top.words("Env", VARIABLES_MOST)?.unwrap_or_default();
    for variable in &variables {
        let (name, _) = variable.split_once('=').unwrap_or((variable, ""));
        let right = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
        if !right {
            let detail = format!("{}: {:?} is no name of a variable", path("", "Env"), visible(name.as_bytes(), 80));
            return Err(refused(Reason::Malformed, &detail));
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests;
