//! Measures from where a part of the stack stands: in the network namespace of its container, so that address and walls
//! are the part's own, and in this process, so that no start of a program is measured.

use std::fs::File;
use std::future::Future;
use std::net::Ipv4Addr;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::{command, probe};

/// The network namespace of a running container.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub container: String,
    pid: u32,
}

impl Place {
    /// Finds a container.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn of(container: &str) -> anyhow::Result<Self> {
        let out = command::run("docker", &["inspect", "--format", "{{.State.Pid}}", container]).await?.ok();
        let pid = out.with_context(|| format!("the container {container} is not there"))?.trim().parse()?;
        anyhow::ensure!(pid != 0, "the container {container} does not run");
        Ok(Self { container: container.to_owned(), pid })
    }

    /// Its address on the network whose name ends like this.
    ///
    /// # Errors
    /// When it is not on such a network.
    pub async fn address(&self, network: &str) -> anyhow::Result<Ipv4Addr> {
        let all = probe::addresses(&self.container).await?;
        let found = all.iter().find(|(name, _)| name.ends_with(network));
        let (_, address) = found.with_context(|| format!("{} is not on {network}", self.container))?;
        Ok(address.parse()?)
    }

    /// Runs work on a thread that has entered the namespace; every socket it opens belongs there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the work fails.
    pub async fn run<T, W, F>(&self, work: W) -> anyhow::Result<T>
    where
        T: Send + 'static,
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = anyhow::Result<T>>,
    {
        let path = format!("/proc/{}/ns/net", self.pid);
        let namespace = File::open(&path).with_context(|| path)?;
        let (tell, told) = oneshot::channel();
        std::thread::Builder::new().name(self.container.clone()).spawn(move || {
            let enter_and_work = || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
            };
            let _receiver_gone = tell.send(enter_and_work());
        })?;
        told.await.with_context(|| format!("the thread in {} panicked", self.container))?
    }
}
