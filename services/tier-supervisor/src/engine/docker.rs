//! Docker over its Unix socket. The only module that names the client library.
//!
//! It owns the connection and the calls; `body` spells a specification in Docker's words, `inventory` reads what Docker
//! has, `fault` tells its errors apart. It decides nothing.

mod body;
mod fault;
mod inventory;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assistant_proto::config::Mode;
use bollard::models::{ContainerInspectResponse, EventMessage, NetworkConnectRequest, NetworkDisconnectRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, ListNetworksOptions, ListVolumesOptions, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Mutex, mpsc};

use self::fault::{Subject, understood};
use super::{Engine, EngineError, Inventory, LogLine};
use crate::desired::{ContainerSpec, NetworkSpec, VolumeSpec};

/// Where Docker listens unless somebody moved it.
pub const SOCKET: &str = "/var/run/docker.sock";

/// Deadline of a call. Creating and starting take well under a second; a machine that builds images meanwhile is slow.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Grace between SIGTERM and SIGKILL. The services drain within it.
const STOP_GRACE_SECONDS: i32 = 15;
/// What of a log is read at most.
const MOST_LOG_BYTES: usize = 256 * 1024;

/// The engine behind one socket. Connects when first asked, and again after it was away: Docker may have been upgraded
/// meanwhile, so its API version is negotiated anew.
#[derive(Debug)]
pub struct Docker {
    socket: PathBuf,
    client: Mutex<Option<bollard::Docker>>,
}

impl Docker {
    /// Docker at its usual socket, or at another one.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), client: Mutex::new(None) }
    }

    async fn client(&self) -> Result<bollard::Docker, EngineError> {
        let mut held = self.client.lock().await;
        if let Some(client) = &*held {
            return Ok(client.clone());
        }
        let asked = async {
            let path = self.socket.to_string_lossy();
            bollard::Docker::connect_with_unix(&path, CALL_DEADLINE.as_secs() * 2, bollard::API_DEFAULT_VERSION)?
                .negotiate_version()
                .await
        };
        let client = self.deadline("name its version", Subject::Engine, asked).await?;
        *held = Some(client.clone());
        Ok(client)
    }

    /// One call: a deadline, the library's error told apart, and the connection forgotten when nobody answered.
    async fn call<T>(
        &self,
        what: &str,
        subject: Subject<'_>,
        call: impl AsyncFnOnce(&bollard::Docker) -> Result<T, bollard::errors::Error> + Send,
    ) -> Result<T, EngineError>
    where
        T: Send,
    {
        let client = self.client().await?;
        let outcome = self.deadline(what, subject, call(&client)).await;
        if matches!(&outcome, Err(error) if error.is_unavailable()) {
            *self.client.lock().await = None;
        }
        outcome
    }

    async fn deadline<T>(
        &self,
        what: &str,
        subject: Subject<'_>,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(CALL_DEADLINE, call).await {
            Ok(outcome) => outcome.map_err(|error| understood(&self.socket, what, subject, error)),
            Err(_) => Err(EngineError::TooSlow { call: what.to_owned(), seconds: CALL_DEADLINE.as_secs() }),
        }
    }
}

impl Engine for Docker {
    async fn inventory(&self) -> Result<Inventory, EngineError> {
        let networks = self
            .call("list networks", Subject::Engine, async |docker| {
                docker.list_networks(None::<ListNetworksOptions>).await
            })
            .await?;
        let volumes = self
            .call("list volumes", Subject::Engine, async |docker| docker.list_volumes(None::<ListVolumesOptions>).await)
            .await?;
        let listed = self
            .call("list containers", Subject::Engine, async |docker| {
                docker.list_containers(Some(ListContainersOptionsBuilder::new().all(true).build())).await
            })
            .await?;
        let mut containers = Vec::with_capacity(listed.len());
        let mut restart_policies = BTreeMap::new();
        for mut found in listed.into_iter().filter_map(inventory::container) {
            if found.owner.is_ours() {
                match self.inspect(&found.id, &found.name).await {
                    Ok(inspected) => {
                        found.state = inventory::state(&inspected);
                        restart_policies.insert(found.name.clone(), inventory::restart_policy(&inspected));
                    }
                    // Removed between the two questions.
                    Err(EngineError::Vanished { .. }) => continue,
                    Err(error) => return Err(error),
                }
            }
            containers.push(found);
        }
        Ok(Inventory {
            networks: networks.into_iter().filter_map(inventory::network).collect(),
            volumes: volumes.volumes.unwrap_or_default().into_iter().map(inventory::volume).collect(),
            containers,
            restart_policies,
        })
    }

    async fn create_network(&self, mode: Mode, spec: &NetworkSpec) -> Result<(), EngineError> {
        let what = format!("create network {}", spec.name);
        self.call(&what, Subject::Making(&spec.name), async |docker| {
            docker.create_network(body::network(mode, spec)).await
        })
        .await?;
        Ok(())
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        let what = format!("remove network {id}");
        let outcome =
            self.call(&what, Subject::Existing("the network"), async |docker| docker.remove_network(id).await).await;
        unless_vanished(outcome)
    }

    async fn detach(&self, network: &str, container_id: &str) -> Result<(), EngineError> {
        let what = format!("take a container off network {network}");
        let outcome = self
            .call(&what, Subject::Existing("the container or its network"), async |docker| {
                let request = NetworkDisconnectRequest { container: container_id.to_owned(), force: Some(true) };
                docker.disconnect_network(network, request).await
            })
            .await;
        unless_vanished(outcome)
    }

    async fn create_volume(&self, mode: Mode, spec: &VolumeSpec) -> Result<PathBuf, EngineError> {
        let what = format!("create volume {}", spec.name);
        let made = self
            .call(&what, Subject::Making(&spec.name), async |docker| {
                docker.create_volume(body::volume(mode, spec)).await
            })
            .await?;
        let made = inventory::volume(made);
        // Docker answers with the existing one where the name is taken.
        if made.owner.is_of(mode) {
            Ok(made.mountpoint)
        } else {
            Err(EngineError::NameTaken { name: spec.name.clone() })
        }
    }

    async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        let what = format!("remove volume {name}");
        let outcome = self
            .call(&what, Subject::Existing("the volume"), async |docker| {
                docker.remove_volume(name, Some(RemoveVolumeOptionsBuilder::new().build())).await
            })
            .await;
        unless_vanished(outcome)
    }

    async fn create_container(&self, mode: Mode, spec: &ContainerSpec) -> Result<String, EngineError> {
        let what = format!("create container {}", spec.name);
        let subject = Subject::MakingFrom { name: &spec.name, image: &spec.image };
        let made = self
            .call(&what, subject, async |docker| {
                let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
                docker.create_container(Some(options), body::container(mode, spec)).await
            })
            .await?;
        for attachment in spec.networks.iter().skip(1) {
            let what = format!("connect {} to {}", spec.name, attachment.network);
            let connected = self
                .call(&what, Subject::Engine, async |docker| {
                    let request = NetworkConnectRequest {
                        container: made.id.clone(),
                        endpoint_config: Some(body::endpoint(attachment)),
                    };
                    docker.connect_network(&attachment.network, request).await
                })
                .await;
            if let Err(error) = connected {
                // Half a container must not be found and started later.
                if let Err(left) = self.remove_container(&made.id).await {
                    tracing::warn!(container = %spec.name, %left, "a half-made container is left; it will be replaced");
                }
                return Err(error);
            }
        }
        Ok(made.id)
    }

    async fn start_container(&self, id: &str) -> Result<(), EngineError> {
        let what = format!("start container {id}");
        self.call(&what, Subject::Existing("the container"), async |docker| {
            docker.start_container(id, None::<StartContainerOptions>).await
        })
        .await
    }

    async fn stop_container(&self, id: &str) -> Result<(), EngineError> {
        let what = format!("stop container {id}");
        let outcome = self
            .call(&what, Subject::Existing("the container"), async |docker| {
                let options = StopContainerOptionsBuilder::new().t(STOP_GRACE_SECONDS).build();
                docker.stop_container(id, Some(options)).await
            })
            .await;
        unless_vanished(outcome)
    }

    async fn signal_container(&self, id: &str, signal: &str) -> Result<(), EngineError> {
        let what = format!("send {signal} to container {id}");
        self.call(&what, Subject::Existing("the container"), async |docker| {
            let options = KillContainerOptionsBuilder::new().signal(signal).build();
            docker.kill_container(id, Some(options)).await
        })
        .await
    }

    async fn remove_container(&self, id: &str) -> Result<(), EngineError> {
        let what = format!("remove container {id}");
        let outcome = self
            .call(&what, Subject::Existing("the container"), async |docker| {
                let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                docker.remove_container(id, Some(options)).await
            })
            .await;
        unless_vanished(outcome)
    }

    async fn log_tail(&self, id: &str, since: SystemTime, lines: u16) -> Result<Vec<String>, EngineError> {
        let what = format!("read the log of container {id}");
        let since = since.duration_since(UNIX_EPOCH).ok().and_then(|age| i32::try_from(age.as_secs()).ok());
        let bytes = self
            .call(&what, Subject::Existing("the container"), async |docker| {
                let options = LogsOptionsBuilder::new()
                    .stdout(true)
                    .stderr(true)
                    .since(since.unwrap_or(0))
                    .tail(&lines.to_string())
                    .build();
                let mut output = std::pin::pin!(docker.logs(id, Some(options)));
                let mut bytes = Vec::new();
                while let Some(part) = output.try_next().await? {
                    bytes.extend_from_slice(part.as_ref());
                    if bytes.len() > MOST_LOG_BYTES {
                        bytes.truncate(MOST_LOG_BYTES);
                        break;
                    }
                }
                Ok(bytes)
            })
            .await?;
        Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
    }

    async fn follow_log(&self, id: &str, since: u64, lines: &mpsc::Sender<LogLine>) -> Result<(), EngineError> {
        let what = format!("follow the log of container {id}");
        let client = self.client().await?;
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(false)
            .follow(true)
            .timestamps(true)
            .since(i32::try_from(since).unwrap_or(i32::MAX))
            .tail("all")
            .build();
        let mut output = std::pin::pin!(client.logs(id, Some(options)));
        while let Some(part) = output.next().await {
            match part {
                Ok(part) => {
                    // A line that is not understood has no time: it cannot be told from one that was read.
                    let Some(line) = inventory::log_line(part.as_ref()) else { continue };
                    if lines.send(line).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => {
                    let error = understood(&self.socket, &what, Subject::Existing("the container"), error);
                    if error.is_unavailable() {
                        *self.client.lock().await = None;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn watch(&self, notify: impl Fn() + Send) -> Result<(), EngineError> {
        let client = self.client().await?;
        let kinds = HashMap::from([("type", vec!["container", "network", "volume"])]);
        let options = EventsOptionsBuilder::new().filters(&kinds).build();
        let mut events = std::pin::pin!(client.events(Some(options)));
        // What changed while nobody listened.
        notify();
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    if is_of_interest(&event) {
                        notify();
                    }
                }
                Some(Err(error)) => {
                    *self.client.lock().await = None;
                    return Err(understood(&self.socket, "tell what happens", Subject::Engine, error));
                }
                None => {
                    *self.client.lock().await = None;
                    return Err(EngineError::Unreachable {
                        socket: self.socket.clone(),
                        why: "the stream of events ended".to_owned(),
                    });
                }
            }
        }
    }
}

impl Docker {
    async fn inspect(&self, id: &str, name: &str) -> Result<ContainerInspectResponse, EngineError> {
        let what = format!("inspect container {name}");
        self.call(&what, Subject::Existing(name), async |docker| {
            docker.inspect_container(id, None::<InspectContainerOptions>).await
        })
        .await
    }
}

fn unless_vanished(outcome: Result<(), EngineError>) -> Result<(), EngineError> {
    match outcome {
        Err(EngineError::Vanished { .. }) => Ok(()),
        outcome => outcome,
    }
}

/// Whether an event can change what a plan sees. Commands run in a container and questions about it cannot.
fn is_of_interest(event: &EventMessage) -> bool {
    let action = event.action.as_deref().unwrap_or_default();
    !(action.starts_with("exec_") || matches!(action, "top" | "attach" | "resize" | "export" | "archive-path"))
}
