//! A plain Docker bridge whose traffic is led into the drill's internet: the control that shows what the sink would
//! have seen if there were no walls.

use anyhow::Context as _;

use super::command::{Output, run};
use super::probe;

/// Its name.
pub const NETWORK: &str = "assistant-test-plain";
const BRIDGE: &str = "as-plain";
const SUBNET: &str = "10.86.250.0/24";
/// The VM's address on it.
pub const GATEWAY: &str = "10.86.250.1";
/// The table that tier-supervisor made for the drill.
const TABLE: &str = "8787";

/// A plain bridge; removed by [`Plain::remove`].
#[derive(Debug)]
pub struct Plain;

impl Plain {
    /// Makes the bridge and checks that its route leads into the drill, and nowhere else.
    ///
    /// # Errors
    /// When it does not: nothing may be sent then.
    pub async fn make() -> anyhow::Result<Self> {
        Self.remove().await;
        let bridge = format!("com.docker.network.bridge.name={BRIDGE}");
        run("docker", &["network", "create", "--subnet", SUBNET, "--gateway", GATEWAY, "--opt", &bridge, NETWORK])
            .await?
            .ok()?;
        run("ip", &["rule", "add", "iif", BRIDGE, "lookup", TABLE]).await?.ok()?;
        for address in ["203.0.113.66", "198.51.100.77", "169.254.169.254"] {
            let route = run("ip", &["route", "get", address, "from", "10.86.250.9", "iif", BRIDGE]).await?.ok()?;
            anyhow::ensure!(route.contains("dev as-drill0"), "{address} would not go into the drill: {route}");
        }
        Ok(Self)
    }

    /// Runs a command of the probe image on the bridge, resolver included.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let image = probe::image().context("images")?;
        let mut all = vec!["run", "--rm", "--network", NETWORK, "--dns", "198.51.100.53", &image];
        all.extend_from_slice(arguments);
        run("docker", &all).await
    }

    /// Removes the bridge. What is not there is not missed.
    pub async fn remove(&self) {
        for arguments in [["rule", "del", "iif", BRIDGE, "lookup", TABLE]] {
            if let Err(error) = run("ip", &arguments).await {
                tracing::debug!(%error, "no rule");
            }
        }
        if let Err(error) = run("docker", &["network", "rm", NETWORK]).await {
            tracing::debug!(%error, "no network");
        }
    }
}
