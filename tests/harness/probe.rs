//! Probes joined to a container's network namespace, with tools of ours and, where asked, NET_RAW: so that the packet
//! wall is tested and not a missing capability.

use anyhow::Context as _;
use serde_json::Value;

use super::command::{Output, run};

/// The probe image of this build.
///
/// # Errors
/// When `deploy/up.sh` has not built it.
pub fn image() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/var/lib/assistant/images.json").context("run deploy/up.sh --drill first")?;
    let images: Value = serde_json::from_str(&text)?;
    images.get("probe").and_then(Value::as_str).map(str::to_owned).context("no probe image in images.json")
}

/// Runs a command in the network namespace of a container.
///
/// # Errors
/// When Docker fails.
pub async fn joined(container: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let network = format!("container:{container}");
    let image = image()?;
    let mut all = vec!["run", "--rm", "--network", &network, "--cap-add", "NET_RAW", "--cap-add", "NET_ADMIN", &image];
    all.extend_from_slice(arguments);
    run("docker", &all).await
}

/// Addresses of a container, by network.
///
/// # Errors
/// When there is no such container.
pub async fn addresses(container: &str) -> anyhow::Result<Vec<(String, String)>> {
    let out = run("docker", &["inspect", "--format", "{{json .NetworkSettings.Networks}}", container]).await?.ok()?;
    let networks: Value = serde_json::from_str(&out)?;
    let networks = networks.as_object().context("no networks")?;
    Ok(networks
        .iter()
        .filter_map(|(name, network)| Some((name.clone(), network.get("IPAddress")?.as_str()?.to_owned())))
        .collect())
}

/// Whether a TCP connection from a container's namespace opens within two seconds.
///
/// # Errors
/// When Docker fails.
pub async fn opens(container: &str, address: &str, port: u16) -> anyhow::Result<bool> {
    let port = port.to_string();
    Ok(joined(container, &["nc", "-z", "-w", "2", address, &port]).await?.status == 0)
}
