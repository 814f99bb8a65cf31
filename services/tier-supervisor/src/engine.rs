//! The container engine as the rest of the crate sees it: a trait of the few things that are asked of it.
//!
//! It owns the seam and its errors. What an engine is called, how it is reached and how it spells things is known only
//! beneath `engine/`; what should be done is decided in `plan`.

pub mod docker;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::SystemTime;

use assistant_proto::config::Mode;
use tokio::sync::mpsc;

use crate::desired::{ContainerSpec, NetworkSpec, VolumeSpec};
use crate::observed::{Container, Network, Volume};

/// What the engine has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// Every network.
    pub networks: Vec<Network>,
    /// Every volume; `top` is not filled in.
    pub volumes: Vec<Volume>,
    /// Every container.
    pub containers: Vec<Container>,
    /// Restart policy of each container of ours, by name.
    pub restart_policies: BTreeMap<String, String>,
}

/// A line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When the engine heard it: nanoseconds since the epoch. Lines may have the same.
    pub at: u64,
    /// The line without its end, cut off at 8 KiB; raw.
    pub text: Vec<u8>,
}

/// What is asked of a container engine. Every call has a deadline of its own; none is retried here.
pub trait Engine: Send + Sync + 'static {
    /// Everything there is, ours or not.
    fn inventory(&self) -> impl Future<Output = Result<Inventory, EngineError>> + Send;

    /// Makes a network with our labels.
    fn create_network(&self, mode: Mode, spec: &NetworkSpec) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Removes a network by id. Gone already is success.
    fn remove_network(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Takes a container, whatever its state, off a network. Not on it is success.
    fn detach(&self, network: &str, container_id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Makes a volume with our labels and says where it lies.
    fn create_volume(&self, mode: Mode, spec: &VolumeSpec)
    -> impl Future<Output = Result<PathBuf, EngineError>> + Send;

    /// Removes a volume. Gone already is success.
    fn remove_volume(&self, name: &str) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Makes a container that is on all its networks, and does not start it. On failure nothing of it is left behind.
    fn create_container(
        &self,
        mode: Mode,
        spec: &ContainerSpec,
    ) -> impl Future<Output = Result<String, EngineError>> + Send;

    /// Starts a container by id. Running already is success.
    fn start_container(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Stops a container by id, with the grace its processes need to drain. Not running is success.
    fn stop_container(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Sends a signal to a container's first process, which hands it on.
    fn signal_container(&self, id: &str, signal: &str) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Removes a container by id, with its anonymous volumes; kills it if it runs. Gone already is success.
    fn remove_container(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// The last lines of the log since a point in time, raw, at most 256 KiB.
    fn log_tail(
        &self,
        id: &str,
        since: SystemTime,
        lines: u16,
    ) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send;

    /// Hands on what a container says on standard output, line by line: what it said since a second of the epoch, then what
    /// it says. Waits where the reader does; ends without an error when the container does.
    fn follow_log(
        &self,
        id: &str,
        since: u64,
        lines: &mpsc::Sender<LogLine>,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Calls `notify` whenever something of interest has changed. Ends only with an error.
    fn watch(&self, notify: impl Fn() + Send) -> impl Future<Output = Result<(), EngineError>> + Send;
}

/// Why the engine did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers at the socket.
    #[error(
        "Docker does not answer at {socket}: {why}; start it (systemctl start docker, or dockerd) and it goes on by itself"
    )]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What happened.
        why: String,
    },
    /// It did not answer in time.
    #[error("Docker did not answer within {seconds} s when asked to {call}")]
    TooSlow {
        /// What was asked.
        call: String,
        /// How long it had.
        seconds: u64,
    },
    /// The image of a container does not exist here.
    #[error("image {image} does not exist on this machine; run deploy/up.sh, which builds or pulls it")]
    ImageMissing {
        /// Which image.
        image: String,
    },
    /// Something foreign has the name.
    #[error("the name {name} is taken by something that is not ours; rename or remove it")]
    NameTaken {
        /// Which name.
        name: String,
    },
    /// The thing is not there any more.
    #[error("{what} vanished while it was worked on")]
    Vanished {
        /// Which thing.
        what: String,
    },
    /// It said no.
    #[error("Docker refused to {call} (status {status}): {message}")]
    Refused {
        /// What was asked.
        call: String,
        /// HTTP status.
        status: u16,
        /// What it said, made harmless.
        message: String,
    },
    /// Its answer makes no sense.
    #[error("Docker answered {call} in a way that is not understood: {why}")]
    NotUnderstood {
        /// What was asked.
        call: String,
        /// Why.
        why: String,
    },
}

impl EngineError {
    /// Whether the engine as a whole is away, rather than one thing wrong.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TooSlow { .. })
    }
}
