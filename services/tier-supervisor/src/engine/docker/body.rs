//! Spells a specification in Docker's words. Pure.
//!
//! What every container has, whatever its specification says, stands here and nowhere else: read-only root, no
//! capabilities beyond the listed ones, no core dumps, no restart by Docker, a capped log; and what the two ways of being
//! confined mean.

use std::collections::HashMap;

use assistant_proto::config::Mode;
use assistant_proto::name::TierName;
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Ipam,
    IpamConfig, Mount as DockerMount, MountBindOptions, MountBindOptionsPropagationEnum, MountType, MountVolumeOptions,
    NetworkCreateRequest, NetworkingConfig, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
    VolumeCreateRequest,
};

use crate::desired::{
    Attachment, Confinement, ContainerSpec, Mount, MountSource, NetworkKind, NetworkSpec, VolumeSpec,
};
use crate::observed::{LABEL_MANAGED, LABEL_MODE, LABEL_ROLE, LABEL_SPEC, LABEL_TIER};
use crate::plan::network_hash;

/// What the kernel does for any container of ours, by the names of system calls: what Docker's own profile lets a
/// container without capabilities do, less what goes round the walls. That is every socket but Unix, IP and the listing of
/// interfaces, because nftables never sees AF_VSOCK, which leads to the hypervisor; io_uring, which opens sockets that no
/// filter sees; 32-bit calls, whose socketcall hides its arguments; ptrace and the like, which nobody here needs.
///
/// It is part of every specification's hash: who changes it has every container made again.
const SYSTEM_CALLS: &str = include_str!("seccomp.json");

/// The same for a rootless Docker daemon, and what makes containers inside a user namespace: other namespaces, mounts, a
/// root of their own. Still no socket but Unix, IP and netlink, no io_uring, no ptrace, no bpf, no module, no 32-bit calls:
/// what is nested cannot have what the daemon has not.
const ROOTLESS_SYSTEM_CALLS: &str = include_str!("seccomp-rootless.json");

/// Docker's options for its bridge driver.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const INHIBIT_IPV4: &str = "com.docker.network.bridge.inhibit_ipv4";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";

fn labels(mode: Mode, role: &str, tier: Option<&TierName>, spec: Option<String>) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (LABEL_MANAGED.to_owned(), "true".to_owned()),
        (LABEL_MODE.to_owned(), mode.as_str().to_owned()),
        (LABEL_ROLE.to_owned(), role.to_owned()),
    ]);
    if let Some(tier) = tier {
        labels.insert(LABEL_TIER.to_owned(), tier.to_string());
    }
    if let Some(spec) = spec {
        labels.insert(LABEL_SPEC.to_owned(), spec);
    }
    labels
}

/// A network.
pub(super) fn network(mode: Mode, spec: &NetworkSpec) -> NetworkCreateRequest {
    let egress = spec.kind == NetworkKind::Egress;
    let mut options =
        HashMap::from([(BRIDGE_NAME.to_owned(), spec.bridge.clone()), (MASQUERADE.to_owned(), egress.to_string())]);
    if spec.kind == NetworkKind::Isolated {
        // Also on engines that know gateway_mode_ipv4=isolated: this one works on all of them, and the floor check looks.
        options.insert(INHIBIT_IPV4.to_owned(), "true".to_owned());
    }
    NetworkCreateRequest {
        name: spec.name.clone(),
        driver: Some("bridge".to_owned()),
        internal: Some(!egress),
        attachable: Some(false),
        enable_ipv6: Some(false),
        ipam: Some(Ipam {
            driver: Some("default".to_owned()),
            config: Some(vec![IpamConfig {
                subnet: Some(spec.subnet.to_string()),
                gateway: Some(spec.gateway.to_string()),
                ..IpamConfig::default()
            }]),
            options: None,
        }),
        options: Some(options),
        labels: Some(labels(mode, "network", spec.tier.as_ref(), Some(network_hash(spec)))),
        ..NetworkCreateRequest::default()
    }
}

/// A volume. It carries no hash of its specification: a volume is never replaced.
pub(super) fn volume(mode: Mode, spec: &VolumeSpec) -> VolumeCreateRequest {
    VolumeCreateRequest {
        name: Some(spec.name.clone()),
        driver: Some("local".to_owned()),
        labels: Some(labels(mode, "volume", spec.tier.as_ref(), None)),
        ..VolumeCreateRequest::default()
    }
}

/// A place on a network, with its fixed address.
pub(super) fn endpoint(attachment: &Attachment) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(attachment.address.to_string()),
            ..EndpointIpamConfig::default()
        }),
        ..EndpointSettings::default()
    }
}

/// A container on the first of its networks: engines before API 1.44 take one at creation. The others are connected
/// before it is started.
pub(super) fn container(mode: Mode, spec: &ContainerSpec) -> ContainerCreateBody {
    let first = spec.networks.first();
    // With an entrypoint of ours an empty command means none; without one, the image's.
    let command = (spec.entrypoint.is_some() || !spec.command.is_empty()).then(|| spec.command.clone());
    ContainerCreateBody {
        hostname: Some(spec.name.clone()),
        user: Some(format!("{}:{}", spec.uid, spec.gid)),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        tty: Some(false),
        open_stdin: Some(false),
        env: Some(spec.env.iter().map(|variable| format!("{}={}", variable.name, variable.value)).collect()),
        cmd: command,
        // Health is asked by us; an image's own check would run as a process of the container.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        image: Some(spec.image.clone()),
        working_dir: spec.working_dir.clone(),
        entrypoint: spec.entrypoint.clone(),
        labels: Some(labels(mode, spec.role.as_str(), spec.tier.as_ref(), Some(spec.spec_hash()))),
        host_config: Some(host(spec, first.map(|attachment| attachment.network.clone()))),
        networking_config: first.map(|attachment| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(attachment.network.clone(), endpoint(attachment))])),
        }),
        ..ContainerCreateBody::default()
    }
}

fn host(spec: &ContainerSpec, network: Option<String>) -> HostConfig {
    let memory = i64::try_from(spec.limits.memory_bytes).unwrap_or(i64::MAX);
    HostConfig {
        memory: Some(memory),
        // Equal to memory: no swap on top, secrets and prompts do not reach the disk that way.
        memory_swap: Some(memory),
        nano_cpus: Some(i64::try_from(spec.limits.nano_cpus).unwrap_or(i64::MAX)),
        pids_limit: Some(i64::from(spec.limits.pids)),
        ulimits: Some(vec![ResourcesUlimits { name: Some("core".to_owned()), soft: Some(0), hard: Some(0) }]),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), spec.log.max_size_bytes.to_string()),
                ("max-file".to_owned(), spec.log.max_files.to_string()),
            ])),
        }),
        // Never the default bridge, not even for a moment.
        network_mode: Some(network.unwrap_or_else(|| "none".to_owned())),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        auto_remove: Some(false),
        mounts: Some(spec.mounts.iter().map(mount).collect()),
        cap_add: Some(spec.cap_add.clone()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        dns: Some(vec![spec.resolver().to_string()]),
        // A dot: none, instead of the VM's search domains.
        dns_search: Some(vec![".".to_owned()]),
        init: Some(true),
        ipc_mode: Some("private".to_owned()),
        privileged: Some(false),
        publish_all_ports: Some(false),
        readonly_rootfs: Some(true),
        security_opt: Some(security(spec.confinement)),
        masked_paths: proc_paths(spec.confinement),
        readonly_paths: proc_paths(spec.confinement),
        tmpfs: Some(spec.tmpfs.iter().cloned().collect()),
        sysctls: Some(spec.sysctls.iter().cloned().collect()),
        ..HostConfig::default()
    }
}

fn security(confinement: Confinement) -> Vec<String> {
    match confinement {
        Confinement::Standard => vec!["no-new-privileges:true".to_owned(), format!("seccomp={SYSTEM_CALLS}")],
        Confinement::RootlessDaemon => {
            // newuidmap gains CAP_SETUID from its file, which no-new-privileges would keep it from; Docker's AppArmor
            // profile forbids every mount.
            vec![format!("seccomp={ROOTLESS_SYSTEM_CALLS}"), "apparmor=unconfined".to_owned()]
        }
    }
}

/// The masked and the read-only paths of /proc. An empty list is none; absent, the engine's own. The kernel lets a user
/// namespace mount a /proc of its own only where the one it sees hides nothing; what stays closed to uid 65534 there is
/// closed by its permissions.
fn proc_paths(confinement: Confinement) -> Option<Vec<String>> {
    match confinement {
        Confinement::Standard => None,
        Confinement::RootlessDaemon => Some(Vec::new()),
    }
}

fn mount(mount: &Mount) -> DockerMount {
    let common =
        DockerMount { target: Some(mount.target.clone()), read_only: Some(mount.read_only), ..DockerMount::default() };
    match &mount.source {
        MountSource::Bind(path) => DockerMount {
            typ: Some(MountType::BIND),
            source: Some(path.to_string_lossy().into_owned()),
            bind_options: Some(MountBindOptions {
                propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
                ..MountBindOptions::default()
            }),
            ..common
        },
        MountSource::Volume(name) => DockerMount {
            typ: Some(MountType::VOLUME),
            source: Some(name.clone()),
            volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }),
            ..common
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::desired::EnvVar;
    use crate::plan::samples;

    /// As it goes over the wire.
    fn wire(spec: &ContainerSpec) -> serde_json::Value {
        serde_json::to_value(container(Mode::Drill, spec)).unwrap()
    }

    #[test]
    fn every_container_is_confined() {
        for spec in &samples::desired().containers {
            let body = wire(spec);
            let host = &body["HostConfig"];
            assert_eq!(host["ReadonlyRootfs"], true);
            assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
            assert_eq!(host["CapAdd"], serde_json::json!([]));
            let confined = serde_json::json!(["no-new-privileges:true", format!("seccomp={SYSTEM_CALLS}")]);
            assert_eq!(host["SecurityOpt"], confined);
            assert_eq!(host["Privileged"], false);
            assert_eq!(host["RestartPolicy"]["Name"], "no");
            assert_eq!(host["Ulimits"], serde_json::json!([{"Name": "core", "Soft": 0, "Hard": 0}]));
            assert_eq!(host["LogConfig"]["Type"], "json-file");
            assert_eq!(host["LogConfig"]["Config"]["max-size"], "10485760");
            assert_eq!(host["MemorySwap"], host["Memory"]);
            // An empty list there would unmask /proc; absent means the engine's own.
            assert!(host.get("MaskedPaths").is_none() && host.get("ReadonlyPaths").is_none());
            assert!(host.get("PortBindings").is_none() && host["PublishAllPorts"] == false);
            assert_eq!(host["Dns"], serde_json::json!(["127.0.0.1"]));
            assert_eq!(body["User"], "8705:8700");
            assert_eq!(body["Healthcheck"]["Test"], serde_json::json!(["NONE"]));
            assert_eq!(body["Labels"][LABEL_SPEC], spec.spec_hash());
            assert_eq!(body["Labels"][LABEL_MODE], "drill");
        }
    }

    #[test]
    fn only_a_rootless_daemon_is_confined_less_and_it_is_on_no_network() {
        let mut spec = samples::desired().containers[0].clone();
        spec.confinement = Confinement::RootlessDaemon;
        spec.cap_add = vec!["SETUID".to_owned(), "SETGID".to_owned()];
        spec.networks.clear();
        let body = wire(&spec);
        let host = &body["HostConfig"];
        let confined = serde_json::json!([format!("seccomp={ROOTLESS_SYSTEM_CALLS}"), "apparmor=unconfined"]);
        assert_eq!(host["SecurityOpt"], confined);
        assert_eq!((&host["MaskedPaths"], &host["ReadonlyPaths"]), (&serde_json::json!([]), &serde_json::json!([])));
        assert_eq!(host["CapAdd"], serde_json::json!(["SETUID", "SETGID"]));
        assert_eq!((&host["CapDrop"], &host["Privileged"]), (&serde_json::json!(["ALL"]), &false.into()));
        assert_eq!((&host["NetworkMode"], &host["ReadonlyRootfs"]), (&"none".into(), &true.into()));
        assert!(body.get("NetworkingConfig").is_none());
        assert_ne!(body["Labels"][LABEL_SPEC], samples::desired().containers[0].spec_hash());
    }

    #[test]
    fn a_rootless_daemon_may_call_what_others_may_and_what_makes_containers() {
        let (standard, rootless) = (allowed(SYSTEM_CALLS), allowed(ROOTLESS_SYSTEM_CALLS));
        let names = |list: &[(String, serde_json::Value)]| -> std::collections::BTreeSet<String> {
            list.iter().map(|(name, _)| name.clone()).collect()
        };
        let more: Vec<String> = names(&rootless).difference(&names(&standard)).cloned().collect();
        let made = "chroot clone3 fsconfig fsmount fsopen fspick listmount mount mount_setattr move_mount open_tree \
            pivot_root setdomainname sethostname setns statmount umount2 unshare";
        assert_eq!(more, made.split_ascii_whitespace().collect::<Vec<_>>());
        assert!(names(&standard).is_subset(&names(&rootless)));
        let families: Vec<u64> = rootless
            .iter()
            .filter(|(name, _)| name == "socket")
            .map(|(_, arguments)| arguments[0]["value"].as_u64().unwrap())
            .collect();
        assert_eq!(families, [1, 2, 10, 16]);
    }

    /// Names of the calls that are allowed, each with the arguments that allow it.
    fn allowed(profile: &str) -> Vec<(String, serde_json::Value)> {
        let profile: serde_json::Value = serde_json::from_str(profile).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        for arch in profile["archMap"].as_array().unwrap() {
            assert!(["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"].contains(&arch["architecture"].as_str().unwrap()));
            assert_eq!(arch["subArchitectures"], serde_json::json!([]), "32-bit calls");
        }
        let rules = profile["syscalls"].as_array().unwrap();
        let allowing = rules.iter().filter(|rule| rule["action"] != "SCMP_ACT_ERRNO");
        allowing
            .inspect(|rule| assert_eq!(rule["action"], "SCMP_ACT_ALLOW"))
            .flat_map(|rule| {
                let names = rule["names"].as_array().unwrap().iter();
                names.map(|name| (name.as_str().unwrap().to_owned(), rule["args"].clone()))
            })
            .collect()
    }

    #[test]
    fn sockets_are_of_kinds_that_the_walls_see() {
        let allowed = allowed(SYSTEM_CALLS);
        let of = |call: &str| -> Vec<(u64, usize)> {
            let rules = allowed.iter().filter(|(name, _)| name == call);
            rules
                .map(|(_, arguments)| {
                    let arguments = arguments.as_array().unwrap();
                    let family = arguments.iter().find(|argument| argument["index"] == 0).unwrap();
                    assert!(arguments.iter().all(|argument| argument["op"] == "SCMP_CMP_EQ"));
                    (family["value"].as_u64().unwrap(), arguments.len())
                })
                .collect()
        };
        // AF_UNIX, AF_INET, AF_INET6, and AF_NETLINK with one protocol.
        assert_eq!(of("socket"), [(1, 1), (2, 1), (10, 1), (16, 2)]);
        assert_eq!(of("socketpair"), [(1, 1)]);
    }

    #[test]
    fn what_goes_round_the_walls_is_not_called() {
        let allowed = allowed(SYSTEM_CALLS);
        let closed = "socketcall io_uring_setup io_uring_enter io_uring_register clone3 unshare setns mount umount2 pivot_root \
            chroot fsopen move_mount open_tree ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp bpf perf_event_open \
            userfaultfd keyctl add_key request_key init_module finit_module delete_module kexec_load reboot swapon \
            open_by_handle_at iopl ioperm modify_ldt syslog acct quotactl sethostname settimeofday clock_settime vmsplice";
        for call in closed.split_ascii_whitespace() {
            assert!(!allowed.iter().any(|(name, _)| name == call), "{call}");
        }
        // Control: the list is read.
        assert!(allowed.iter().any(|(name, arguments)| name == "connect" && arguments.is_null()));
        let namespaces = 0x7e02_0000_u64;
        let clone: Vec<_> =
            allowed.iter().filter(|(name, _)| name == "clone").map(|(_, arguments)| arguments).collect();
        let without = serde_json::json!([{"index": 0, "value": namespaces, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        assert_eq!(clone, [&without]);
    }

    #[test]
    fn a_container_is_made_on_its_first_network_and_on_no_other() {
        let desired = samples::desired();
        let body = wire(desired.container("assistant-squid").unwrap());
        assert_eq!(body["HostConfig"]["NetworkMode"], "assistant-egress");
        let endpoints = body["NetworkingConfig"]["EndpointsConfig"].as_object().unwrap();
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints["assistant-egress"]["IPAMConfig"]["IPv4Address"], "10.87.0.8");
        let mut nowhere = desired.containers[0].clone();
        nowhere.networks.clear();
        assert_eq!(wire(&nowhere)["HostConfig"]["NetworkMode"], "none");
    }

    #[test]
    fn an_empty_command_is_the_images_only_without_an_entrypoint() {
        let mut spec = samples::desired().containers[0].clone();
        assert!(wire(&spec).get("Cmd").is_none());
        spec.entrypoint = Some(vec!["/bin/x".to_owned()]);
        assert_eq!(wire(&spec)["Cmd"], serde_json::json!([]));
        spec.env.push(EnvVar { name: "A".to_owned(), value: "b=c".to_owned(), secret: false });
        assert_eq!(wire(&spec)["Env"], serde_json::json!(["A=b=c"]));
    }

    #[test]
    fn networks_keep_their_kind() {
        let of = |name: &str| {
            let desired = samples::desired();
            serde_json::to_value(network(Mode::Drill, desired.network(name).unwrap())).unwrap()
        };
        let isolated = of("assistant-tier-tasks");
        assert_eq!(isolated["Internal"], true);
        assert_eq!(isolated["Options"][INHIBIT_IPV4], "true");
        assert_eq!(isolated["Options"][MASQUERADE], "false");
        assert_eq!(isolated["Labels"][LABEL_TIER], "tasks");
        assert_eq!(isolated["EnableIPv6"], false);
        assert_eq!(isolated["IPAM"]["Config"][0]["Subnet"], "10.87.16.0/24");
        let internal = of("assistant-bus");
        assert_eq!(internal["Internal"], true);
        assert!(internal["Options"].get(INHIBIT_IPV4).is_none());
        let egress = of("assistant-egress");
        assert_eq!(egress["Internal"], false);
        assert_eq!(egress["Options"][MASQUERADE], "true");
    }

    #[test]
    fn volumes_take_nothing_from_the_image() {
        let body = wire(&samples::desired().containers[0]);
        let mount = &body["HostConfig"]["Mounts"][0];
        assert_eq!((&mount["Type"], &mount["VolumeOptions"]["NoCopy"]), (&"volume".into(), &true.into()));
    }
}
