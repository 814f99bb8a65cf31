#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What the docker clients of Debian 12 (20.10.24) and of Docker (28.2.2) sent for ZeroClaw's `docker run`.
const CLIENTS: [&str; 2] =
    [include_str!("../../../tests/docker/client-20.10.jsonl"), include_str!("../../../tests/docker/client-28.jsonl")];

fn policy() -> Policy {
    Policy {
        image: "assistant-sandbox:latest".to_owned(),
        workspace: "/zeroclaw-data/workspace".to_owned(),
        memory_most: 2 << 30,
        nano_cpus_most: 2_000_000_000,
        pids_most: 512,
    }
}

fn recorded(client: &str) -> Value {
    let requests = client.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let body = requests.filter_map(|request| Some(request["body"].as_str()?.to_owned())).find(|body| !body.is_empty());
    serde_json::from_str(&body.unwrap()).unwrap()
}

fn parse(body: &Value) -> Result<Create, Refused> {
    Create::parse(body.to_string().as_bytes(), &policy())
}

fn rebuilt(body: &Value) -> Value {
    serde_json::from_slice(&super::body::body(&parse(body).unwrap(), &policy())).unwrap()
}

/// A body as small as it may be.
fn least() -> Value {
    json!({"Image": "assistant-sandbox:latest", "HostConfig": {"NetworkMode": "none"}})
}

/// Sets `HostConfig.Memory` or `Tty`.
fn with(mut body: Value, path: &str, value: Value) -> Value {
    let mut at = &mut body;
    for part in path.split('.') {
        at = &mut at[part];
    }
    *at = value;
    body
}

#[test]
fn what_clients_really_send_becomes_what_the_daemon_should_get() {
    for client in CLIENTS {
        let expected = json!({
            "Image": "assistant-sandbox:latest",
            "User": "0:0",
            "WorkingDir": "/workspace",
            "Cmd": ["sh", "-c", "true"],
            "Env": ["MYKEY=myvalue"],
            "AttachStdin": true,
            "AttachStdout": true,
            "AttachStderr": true,
            "OpenStdin": true,
            "StdinOnce": true,
            "Tty": false,
            "HostConfig": {
                "Privileged": false,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "NetworkMode": "none",
                "IpcMode": "private",
                "Mounts": [{
                    "Type": "bind",
                    "Source": "/zeroclaw-data/workspace",
                    "Target": "/workspace",
                    "ReadOnly": false,
                    "BindOptions": {"Propagation": "rprivate"},
                }],
                "ReadonlyRootfs": true,
                "AutoRemove": true,
                "Init": true,
                "RestartPolicy": {"Name": "no"},
                "Memory": 512 << 20,
                "MemorySwap": 512 << 20,
                "PidsLimit": 512,
                "ShmSize": 64 << 20,
                "CpuPeriod": 100_000,
                "CpuQuota": 100_000,
            },
        });
        assert_eq!(rebuilt(&recorded(client)), expected);
    }
}

#[test]
fn what_is_left_out_is_bounded_all_the_same() {
    let host = rebuilt(&least())["HostConfig"].clone();
    assert_eq!(
        (&host["Memory"], &host["CpuQuota"], &host["PidsLimit"], &host["Mounts"]),
        (&json!(2_u64 << 30), &json!(200_000), &json!(512), &json!([]))
    );
}

#[test]
fn what_weakens_nothing_is_accepted() {
    let harmless = [
        ("HostConfig.CapDrop", json!(["ALL"])),
        ("HostConfig.CapDrop", json!(["NET_RAW", "CHOWN"])),
        ("HostConfig.Init", json!(false)),
        ("HostConfig.ReadonlyRootfs", json!(false)),
        ("HostConfig.AutoRemove", json!(false)),
        ("HostConfig.Binds", json!(["/zeroclaw-data/workspace:/workspace:ro"])),
        ("HostConfig.Binds", json!(["/zeroclaw-data/workspace:/workspace"])),
        ("HostConfig.Memory", json!(6 << 20)),
        ("HostConfig.NanoCpus", json!(10_000_000)),
        ("HostConfig.PidsLimit", json!(1)),
        ("HostConfig.ShmSize", json!(1024)),
        ("HostConfig.MemorySwappiness", json!(-1)),
        ("HostConfig.ConsoleSize", json!([50, 200])),
        ("HostConfig.SomethingNew", json!([])),
        ("SomethingNew", json!("")),
        ("Entrypoint", json!(["sh", "-c"])),
        ("User", json!("root")),
        ("WorkingDir", json!("/workspace")),
        ("Env", json!(["PASSED_ON", "EMPTY=", "SPACES= a = b ", "_x1=é"])),
        ("NetworkingConfig", json!({"EndpointsConfig": {"none": {"IPAMConfig": {}, "Links": null, "GwPriority": 0}}})),
    ];
    for (path, value) in harmless {
        let body = with(least(), path, value.clone());
        assert!(parse(&body).is_ok(), "{path} = {value}: {:?}", parse(&body));
    }
}

/// Each is refused for its own reason, with the field named, from an otherwise perfect call.
#[test]
fn what_is_dangerous_is_refused_by_name() {
    use Reason::*;
    let bind = "/zeroclaw-data/workspace:/workspace";
    let dangerous = [
        ("HostConfig.Privileged", json!(true), Privileged),
        ("HostConfig.Privileged", json!("true"), Privileged),
        ("HostConfig.Privileged", json!(1), Privileged),
        ("HostConfig.SecurityOpt", json!(["seccomp=unconfined"]), SecurityOpt),
        ("HostConfig.SecurityOpt", json!(["apparmor=unconfined"]), SecurityOpt),
        ("HostConfig.SecurityOpt", json!(["systempaths=unconfined"]), SecurityOpt),
        ("HostConfig.SecurityOpt", json!(["no-new-privileges=false"]), SecurityOpt),
        ("HostConfig.SecurityOpt", json!(["label=disable"]), SecurityOpt),
        ("HostConfig.MaskedPaths", json!([]), SecurityOpt),
        ("HostConfig.MaskedPaths", json!(["/proc/kcore"]), SecurityOpt),
        ("HostConfig.ReadonlyPaths", json!([]), SecurityOpt),
        ("HostConfig.ReadonlyPaths", json!({}), SecurityOpt),
        ("HostConfig.CapAdd", json!(["SYS_ADMIN"]), CapAdd),
        ("HostConfig.CapAdd", json!(["ALL"]), CapAdd),
        ("HostConfig.CapAdd", json!("ALL"), CapAdd),
        ("HostConfig.Capabilities", json!(["CAP_SYS_ADMIN"]), CapAdd),
        ("HostConfig.Devices", json!([{"PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/kmsg"}]), Device),
        ("HostConfig.DeviceCgroupRules", json!(["a *:* rwm"]), Device),
        ("HostConfig.DeviceRequests", json!([{"Count": -1, "Capabilities": [["gpu"]]}]), Device),
        ("HostConfig.PidMode", json!("host"), HostNamespace),
        ("HostConfig.PidMode", json!("container:0123"), HostNamespace),
        ("HostConfig.IpcMode", json!("host"), HostNamespace),
        ("HostConfig.IpcMode", json!("shareable"), HostNamespace),
        ("HostConfig.UTSMode", json!("host"), HostNamespace),
        ("HostConfig.UsernsMode", json!("host"), HostNamespace),
        ("HostConfig.CgroupnsMode", json!("host"), HostNamespace),
        ("HostConfig.Cgroup", json!("container:0123"), HostNamespace),
        ("HostConfig.CgroupParent", json!("/"), HostNamespace),
        ("HostConfig.Mounts", json!([{"Type": "bind", "Source": "/", "Target": "/x"}]), Mount),
        (
            "HostConfig.Mounts",
            json!([{"Type": "bind", "Source": "/zeroclaw-data/workspace", "Target": "/workspace"}]),
            Mount,
        ),
        ("HostConfig.Tmpfs", json!({"/x": ""}), Mount),
        ("HostConfig.VolumesFrom", json!(["0123"]), Mount),
        ("HostConfig.VolumeDriver", json!("local"), Mount),
        ("HostConfig.StorageOpt", json!({"size": "100G"}), Mount),
        ("HostConfig.Binds", json!(["/:/workspace"]), Mount),
        ("HostConfig.Binds", json!(["/run/sandbox:/workspace:rw"]), Mount),
        ("HostConfig.Binds", json!([format!("{bind}/deeper")]), Mount),
        ("HostConfig.Binds", json!(["/zeroclaw-data/workspace/../..:/workspace"]), Mount),
        ("HostConfig.Binds", json!(["/zeroclaw-data/workspace/link:/workspace"]), Mount),
        ("HostConfig.Binds", json!(["/zeroclaw-data/workspace/:/workspace"]), Mount),
        ("HostConfig.Binds", json!(["/zeroclaw-data/workspace:/etc"]), Mount),
        ("HostConfig.Binds", json!(["/zeroclaw-data/workspace:/"]), Mount),
        ("HostConfig.Binds", json!([format!("{bind}:rw,rshared")]), Mount),
        ("HostConfig.Binds", json!([format!("{bind}:z")]), Mount),
        ("HostConfig.Binds", json!(["workspace:/workspace"]), Mount),
        ("HostConfig.Binds", json!([bind, "/:/host"]), Mount),
        ("HostConfig.Binds", json!([bind, bind]), Mount),
        ("HostConfig.NetworkMode", json!("bridge"), Network),
        ("HostConfig.NetworkMode", json!("host"), Network),
        ("HostConfig.NetworkMode", json!("default"), Network),
        ("HostConfig.NetworkMode", json!(""), Network),
        ("HostConfig.NetworkMode", json!("container:0123"), Network),
        ("HostConfig.NetworkMode", json!("None"), Network),
        ("HostConfig.PortBindings", json!({"80/tcp": [{"HostPort": "80"}]}), Network),
        ("HostConfig.PublishAllPorts", json!(true), Network),
        ("HostConfig.Links", json!(["other:alias"]), Network),
        ("HostConfig.ExtraHosts", json!(["a:127.0.0.1"]), Network),
        ("HostConfig.Dns", json!(["1.1.1.1"]), Network),
        ("HostConfig.DnsSearch", json!(["example.org"]), Network),
        ("HostConfig.DnsOptions", json!(["ndots:1"]), Network),
        ("NetworkingConfig.EndpointsConfig", json!({"bridge": {}}), Network),
        ("NetworkingConfig.EndpointsConfig", json!({"none": {"IPAddress": "10.0.0.1"}}), Network),
        ("ExposedPorts", json!({"80/tcp": {}}), Network),
        ("MacAddress", json!("02:00:00:00:00:01"), Network),
        ("HostConfig.Runtime", json!("crun"), Runtime),
        ("HostConfig.Isolation", json!("process"), Runtime),
        ("HostConfig.Sysctls", json!({"kernel.core_pattern": "|/x"}), Sysctl),
        ("HostConfig.GroupAdd", json!(["0"]), User),
        ("HostConfig.OomScoreAdj", json!(-1000), Limits),
        ("HostConfig.OomKillDisable", json!(true), Limits),
        ("HostConfig.Memory", json!(1_u64 << 40), Limits),
        ("HostConfig.Memory", json!(-1), Limits),
        ("HostConfig.Memory", json!(1), Limits),
        ("HostConfig.MemorySwap", json!(-1), Limits),
        ("HostConfig.MemorySwappiness", json!(100), Limits),
        ("HostConfig.NanoCpus", json!(64_000_000_000_i64), Limits),
        ("HostConfig.NanoCpus", json!(-1), Limits),
        ("HostConfig.PidsLimit", json!(-1), Limits),
        ("HostConfig.PidsLimit", json!(1_000_000), Limits),
        ("HostConfig.ShmSize", json!(1_u64 << 40), Limits),
        ("HostConfig.CpusetCpus", json!("0-63"), Limits),
        ("HostConfig.CpuShares", json!(262_144), Limits),
        ("HostConfig.CpuRealtimeRuntime", json!(950_000), Limits),
        ("HostConfig.BlkioDeviceReadBps", json!([{"Path": "/dev/vda", "Rate": 1}]), Limits),
        ("HostConfig.Ulimits", json!([{"Name": "core", "Soft": -1, "Hard": -1}]), Limits),
        ("HostConfig.RestartPolicy", json!({"Name": "always", "MaximumRetryCount": 0}), NotNeeded),
        ("HostConfig.LogConfig", json!({"Type": "syslog", "Config": {"syslog-address": "tcp://1.1.1.1"}}), NotNeeded),
        ("HostConfig.LogConfig", json!({"Type": "", "Config": {"max-size": "1t"}}), NotNeeded),
        ("HostConfig.ContainerIDFile", json!("/x"), NotNeeded),
        ("HostConfig.Annotations", json!({"run.oci.keep_original_groups": "1"}), UnknownField),
        ("HostConfig.privileged", json!(true), UnknownField),
        ("HostConfig.PRIVILEGED", json!(true), UnknownField),
        ("HostConfig.capadd", json!(["ALL"]), UnknownField),
        ("hostconfig", json!({"Privileged": true}), UnknownField),
        ("Image", json!("debian:bookworm"), Image),
        ("Image", json!("assistant-sandbox"), Image),
        ("Image", json!("assistant-sandbox:latest@sha256:00"), Image),
        ("User", json!("1000"), User),
        ("User", json!("0:8700"), User),
        ("WorkingDir", json!("/proc/self/fd/7"), Mount),
        ("WorkingDir", json!("/workspace/link"), Mount),
        ("WorkingDir", json!("/workspace/.."), Mount),
        ("Volumes", json!({"/x": {}}), Mount),
        ("Healthcheck", json!({"Test": ["CMD", "true"]}), NotNeeded),
        ("Tty", json!(true), NotNeeded),
        ("Labels", json!({"a": ""}), NotNeeded),
        ("Hostname", json!("vm"), NotNeeded),
        ("StopSignal", json!("SIGKILL"), NotNeeded),
        ("Shell", json!(["/bin/sh"]), NotNeeded),
        ("Cmd", json!("sh -c true"), Malformed),
        ("Cmd", json!(["a\0b"]), Malformed),
        ("Cmd", json!([1]), Malformed),
        ("Cmd", json!(vec!["x"; 2_000]), Malformed),
        ("Entrypoint", json!({"a": 1}), Malformed),
        ("Env", json!(["=x"]), Malformed),
        ("Env", json!(["A B=x"]), Malformed),
        ("Env", json!(["1A=x"]), Malformed),
        ("AttachStdin", json!("yes"), Malformed),
        ("HostConfig.Init", json!("yes"), Malformed),
        ("HostConfig.Memory", json!(1e9), Malformed),
        ("HostConfig.Binds", json!("/:/workspace"), Malformed),
        ("HostConfig.ConsoleSize", json!(["x"]), Malformed),
    ];
    assert!(dangerous.len() >= 100);
    for client in CLIENTS {
        for (path, value, reason) in &dangerous {
            let refused = parse(&with(recorded(client), path, value.clone())).expect_err(path);
            assert_eq!(
                (refused.operation, refused.reason),
                (Operation::Create, *reason),
                "{path} = {value}: {refused}"
            );
            assert!(refused.detail.starts_with(path), "{path} = {value}: {refused}");
        }
    }
}

#[test]
fn a_body_means_one_thing() {
    for text in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"Image":"assistant-sandbox:latest"}"#,
        r#"{"Image":"assistant-sandbox:latest","HostConfig":null}"#,
        r#"{"Image":"assistant-sandbox:latest","HostConfig":"none"}"#,
        r#"{"Image":"assistant-sandbox:latest","HostConfig":{"NetworkMode":"none","NetworkMode":"none"}}"#,
        r#"{"Image":"assistant-sandbox:latest","HostConfig":{"NetworkMode":"none"},"HostConfig":{"Privileged":true}}"#,
        r#"{"Image":"assistant-sandbox:latest","HostConfig":{"NetworkMode":"none"}}{}"#,
        r#"{"Image":"assistant-sandbox:latest","HostConfig":{"NetworkMode":"none","Privilege\u0064":true}}"#,
        r#"{"Image":"assistant-sandbox:latest","HostConfig":{"NetworkMode":"none"},"NetworkingConfig":[]}"#,
    ] {
        assert!(Create::parse(text.as_bytes(), &policy()).is_err(), "{text}");
    }
}

/// Names from both tables, real and close to real, so that random bodies meet every rule.
fn any_name() -> impl Strategy<Value = String> {
    let known: Vec<String> = DEFAULTS
        .iter()
        .chain(HOST_DEFAULTS)
        .map(|(name, _, _)| (*name).to_owned())
        .chain(["MaskedPaths", "Memory", "Binds", "Init", "CapDrop", "Cmd", "Env", "User", "Mounts"].map(str::to_owned))
        .collect();
    prop_oneof![4 => proptest::sample::select(known), 1 => "[A-Za-z]{1,12}"]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        3 => Just(Value::Null),
        2 => any::<bool>().prop_map(Value::from),
        2 => prop_oneof![Just(0_i64), any::<i64>(), 1_i64..1 << 32].prop_map(Value::from),
        2 => prop_oneof![
            Just(String::new()),
            Just("host".to_owned()),
            Just("/zeroclaw-data/workspace:/workspace:rw".to_owned()),
            ".{0,12}"
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(".{0,6}", inner, 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is sent: what comes out is refused, or guarded in every respect.
    #[test]
    fn what_the_daemon_gets_is_always_guarded(
        top in proptest::collection::vec((any_name(), any_json()), 0..3),
        host in proptest::collection::vec((any_name(), any_json()), 0..3),
        client in 0_usize..2,
    ) {
        let mut body = recorded(CLIENTS[client]);
        for (name, value) in top {
            body[name] = value;
        }
        for (name, value) in host {
            body["HostConfig"][name] = value;
        }
        if let Ok(create) = parse(&body) {
            let sent: Value = serde_json::from_slice(&super::body::body(&create, &policy())).unwrap();
            let names = |value: &Value| {
                let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
                names.sort();
                names
            };
            let allowed = ["AttachStderr", "AttachStdin", "AttachStdout", "Cmd", "Entrypoint", "Env", "HostConfig",
                "Image", "OpenStdin", "StdinOnce", "Tty", "User", "WorkingDir"];
            prop_assert!(names(&sent).iter().all(|name| allowed.contains(&name.as_str())), "{sent}");
            let host = &sent["HostConfig"];
            let allowed = ["AutoRemove", "CapDrop", "CpuPeriod", "CpuQuota", "Init", "IpcMode", "Memory", "MemorySwap",
                "Mounts", "NetworkMode", "PidsLimit", "Privileged", "ReadonlyRootfs", "RestartPolicy", "SecurityOpt", "ShmSize"];
            prop_assert!(names(host).iter().all(|name| allowed.contains(&name.as_str())), "{sent}");
            prop_assert_eq!(&host["Privileged"], &json!(false));
            prop_assert_eq!(&host["CapDrop"], &json!(["ALL"]));
            prop_assert_eq!(&host["SecurityOpt"], &json!(["no-new-privileges"]));
            prop_assert_eq!(&host["NetworkMode"], &json!("none"));
            prop_assert_eq!(&sent["Image"], &json!(policy().image));
            prop_assert_eq!(&sent["User"], &json!("0:0"));
            prop_assert_eq!(&sent["WorkingDir"], &json!("/workspace"));
            for mount in host["Mounts"].as_array().unwrap() {
                prop_assert_eq!(&mount["Source"], &json!(policy().workspace));
                prop_assert_eq!(&mount["Target"], &json!("/workspace"));
            }
            prop_assert!(host["Mounts"].as_array().unwrap().len() <= 1);
            let number = |name: &str| host[name].as_i64().unwrap();
            prop_assert!((1..=policy().memory_most).contains(&number("Memory")) && number("MemorySwap") == number("Memory"));
            prop_assert!((1..=policy().pids_most).contains(&number("PidsLimit")));
            prop_assert!((1_000..=200_000).contains(&number("CpuQuota")));
        }
    }

    #[test]
    fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Create::parse(&bytes, &policy()).is_err());
    }
}
