//! The body that the daemon gets: every field of it is a field of these types, and what guards is written in, not taken
//! from anywhere.

use serde::Serialize;

use super::{Access, Create, Policy, WORKSPACE_INSIDE};

/// Microseconds; the quota is this many times the processors.
const CPU_PERIOD: i64 = 100_000;
/// One processor.
const NANO: i64 = 1_000_000_000;

/// Writes the body for a container.
#[must_use]
pub fn body(create: &Create, policy: &Policy) -> Vec<u8> {
    let mount = create.workspace.map(|access| Mount {
        kind: "bind",
        source: &policy.workspace,
        target: WORKSPACE_INSIDE,
        read_only: access == Access::ReadOnly,
        bind_options: BindOptions { propagation: "rprivate" },
    });
    let body = Body {
        image: &policy.image,
        user: "0:0",
        working_dir: WORKSPACE_INSIDE,
        cmd: create.command.as_deref(),
        entrypoint: create.entrypoint.as_deref(),
        env: &create.environment,
        attach_stdin: create.attached.stdin,
        attach_stdout: create.attached.stdout,
        attach_stderr: create.attached.stderr,
        open_stdin: create.open_stdin,
        stdin_once: create.stdin_once,
        tty: false,
        host_config: HostConfig {
            privileged: false,
            cap_drop: ["ALL"],
            security_opt: ["no-new-privileges"],
            network_mode: "none",
            // No other container can join it, and it joins no other.
            ipc_mode: "private",
            mounts: mount.as_slice(),
            readonly_rootfs: create.read_only_root,
            auto_remove: create.auto_remove,
            init: create.init,
            restart_policy: RestartPolicy { name: "no" },
            memory: create.memory,
            memory_swap: create.memory,
            pids_limit: create.pids,
            shm_size: create.shm,
            // Not NanoCpus: a daemon that has no control groups refuses those, but only warns about these.
            cpu_period: CPU_PERIOD,
            cpu_quota: create.nano_cpus / NANO * CPU_PERIOD + create.nano_cpus % NANO * CPU_PERIOD / NANO,
        },
    };
    // Strings, numbers and booleans: nothing that could fail to be written. An empty body is refused by the daemon.
    serde_json::to_vec(&body).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    image: &'a str,
    user: &'static str,
    working_dir: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<&'a [String]>,
    env: &'a [String],
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    open_stdin: bool,
    stdin_once: bool,
    tty: bool,
    host_config: HostConfig<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig<'a> {
    privileged: bool,
    cap_drop: [&'static str; 1],
    security_opt: [&'static str; 1],
    network_mode: &'static str,
    ipc_mode: &'static str,
    mounts: &'a [Mount<'a>],
    readonly_rootfs: bool,
    auto_remove: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<bool>,
    restart_policy: RestartPolicy,
    memory: i64,
    memory_swap: i64,
    pids_limit: i64,
    shm_size: i64,
    cpu_period: i64,
    cpu_quota: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Mount<'a> {
    #[serde(rename = "Type")]
    kind: &'static str,
    source: &'a str,
    target: &'static str,
    read_only: bool,
    bind_options: BindOptions,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BindOptions {
    propagation: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: &'static str,
}
