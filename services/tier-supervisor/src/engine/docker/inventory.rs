//! Reads what Docker has into this crate's words. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::SystemTime;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary, EndpointSettings,
    Network as DockerNetwork, Volume as DockerVolume,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::engine::LogLine;
use crate::observed::{Container, Endpoint, Network, Owner, State, Volume};

/// What Docker calls the network of a container that is on none.
const NO_NETWORK: &str = "none";

fn owner(labels: Option<&HashMap<String, String>>) -> Owner {
    Owner::from_labels(|name| labels.and_then(|labels| labels.get(name)).map(String::as_str))
}

/// A network; none when Docker leaves out its name or id.
pub(super) fn network(found: DockerNetwork) -> Option<Network> {
    Some(Network { owner: owner(found.labels.as_ref()), id: found.id?, name: found.name? })
}

/// A volume.
pub(super) fn volume(found: DockerVolume) -> Volume {
    Volume {
        owner: owner(Some(&found.labels)),
        name: found.name,
        mountpoint: PathBuf::from(found.mountpoint),
        top: None,
    }
}

/// A container as the list shows it; its state is for [`state`] to say.
pub(super) fn container(found: ContainerSummary) -> Option<Container> {
    let name = found.names?.into_iter().next()?;
    let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    Some(Container {
        id: found.id?,
        name: name.strip_prefix('/').unwrap_or(&name).to_owned(),
        owner: owner(found.labels.as_ref()),
        state: State::Unknown,
        networks: networks
            .into_iter()
            // Docker lists the absence of a network like one.
            .filter(|(name, _)| name != NO_NETWORK)
            .map(|(name, settings)| (name, endpoint(&settings)))
            .collect::<BTreeMap<_, _>>(),
        image: found.image.unwrap_or_default(),
    })
}

fn endpoint(settings: &EndpointSettings) -> Endpoint {
    let fixed = settings.ipam_config.as_ref().and_then(|config| config.ipv4_address.as_deref());
    let given = settings.ip_address.as_deref();
    let parse = |text: Option<&str>| text.and_then(|text| text.parse::<Ipv4Addr>().ok());
    Endpoint {
        network_id: settings.network_id.clone().unwrap_or_default(),
        // While it runs, the address it has; before, the one it asked for.
        address: parse(given).or_else(|| parse(fixed)),
    }
}

/// The state of an inspected container.
pub(super) fn state(inspected: &ContainerInspectResponse) -> State {
    let Some(state) = &inspected.state else { return State::Broken };
    match state.status {
        Some(ContainerStateStatusEnum::RUNNING) => running(state),
        Some(ContainerStateStatusEnum::CREATED) => State::Created,
        Some(ContainerStateStatusEnum::EXITED) => State::Exited { code: state.exit_code.unwrap_or(-1) },
        _ => State::Broken,
    }
}

/// Restart policy of an inspected container, as Docker spells it; "unknown" when it does not say.
pub(super) fn restart_policy(inspected: &ContainerInspectResponse) -> String {
    let policy = inspected.host_config.as_ref().and_then(|host| host.restart_policy.as_ref());
    policy.and_then(|policy| policy.name).map_or_else(|| "unknown".to_owned(), |name| name.to_string())
}

/// Most of a line that is kept.
const MOST_LINE: usize = 8 * 1024;

/// A piece of a log with timestamps: RFC 3339 with nanoseconds, a space, the line. None when it does not begin so.
pub(super) fn log_line(piece: &[u8]) -> Option<LogLine> {
    let space = piece.iter().position(|byte| *byte == b' ')?;
    let (time, text) = (piece.get(..space)?, piece.get(space.saturating_add(1)..)?);
    let at = OffsetDateTime::parse(std::str::from_utf8(time).ok()?, &Rfc3339).ok()?;
    let at = u64::try_from(at.unix_timestamp_nanos()).ok()?;
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    Some(LogLine { at, text: text.get(..MOST_LINE).unwrap_or(text).to_vec() })
}

fn running(state: &ContainerState) -> State {
    let pid = state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    match pid {
        Some(pid) => State::Running { pid, started_at: started_at(state) },
        None => State::Broken,
    }
}

fn started_at(state: &ContainerState) -> SystemTime {
    state
        .started_at
        .as_deref()
        .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
        .map_or(SystemTime::UNIX_EPOCH, SystemTime::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Duration;

    use super::*;

    /// As Docker 20.10 answers, cut down.
    const LISTED: &str = r#"{
      "Id": "4c01", "Names": ["/zeroclaw-tasks"], "Image": "assistant/zeroclaw:1", "State": "created",
      "Labels": {"assistant.managed": "true", "assistant.mode": "drill", "assistant.spec": "ab"},
      "NetworkSettings": {"Networks": {"assistant-tier-tasks": {
        "IPAMConfig": {"IPv4Address": "10.87.16.20"}, "NetworkID": "n16", "IPAddress": ""}}}
    }"#;

    #[test]
    fn a_container_that_never_ran_has_the_address_it_asked_for() {
        let summary: ContainerSummary = serde_json::from_str(LISTED).unwrap();
        let found = container(summary).unwrap();
        assert_eq!(found.name, "zeroclaw-tasks");
        assert!(found.owner.was_made_from(assistant_proto::config::Mode::Drill, "ab"));
        let endpoint = found.networks.get("assistant-tier-tasks").unwrap();
        assert_eq!(endpoint.address, Some(Ipv4Addr::new(10, 87, 16, 20)));
        assert_eq!(endpoint.network_id, "n16");
    }

    #[test]
    fn a_container_on_no_network_is_on_none() {
        let none = LISTED.replace("assistant-tier-tasks", "none");
        let found = container(serde_json::from_str(&none).unwrap()).unwrap();
        assert!(found.networks.is_empty(), "{:?}", found.networks);
    }

    #[test]
    fn lines_of_a_log_have_their_time() {
        let line = log_line(b"1970-01-01T00:00:01.000000002Z {\"a\": \xff}\n").unwrap();
        assert_eq!((line.at, line.text.as_slice()), (1_000_000_002, &b"{\"a\": \xff}"[..]));
        let long = [b"2026-01-02T03:04:05Z ".as_slice(), &[b'x'; 20_000]].concat();
        assert_eq!(log_line(&long).unwrap().text.len(), MOST_LINE);
        assert_eq!(log_line(b"2026-01-02T03:04:05Z \n").unwrap().text, b"");
        for bad in [&b""[..], b"hello", b"hello world", b"1969-01-01T00:00:00Z x"] {
            assert_eq!(log_line(bad), None);
        }
    }

    #[test]
    fn states_as_docker_spells_them() {
        let read = |text: &str| {
            let inspected =
                ContainerInspectResponse { state: serde_json::from_str(text).unwrap(), ..Default::default() };
            state(&inspected)
        };
        assert_eq!(
            read(r#"{"Status":"running","Running":true,"Pid":42,"StartedAt":"1970-01-01T00:00:01.5Z"}"#),
            State::Running { pid: 42, started_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1500) }
        );
        // An engine that died uncleanly leaves 255.
        assert_eq!(read(r#"{"Status":"exited","Pid":0,"ExitCode":255}"#), State::Exited { code: 255 });
        assert_eq!(read(r#"{"Status":"created","Pid":0}"#), State::Created);
        assert_eq!(read(r#"{"Status":"paused","Running":true,"Pid":42}"#), State::Broken);
        assert_eq!(read(r#"{"Status":"running","Pid":0}"#), State::Broken);
        assert_eq!(read(r#"{"Status":"dead","Pid":0}"#), State::Broken);
    }
}
