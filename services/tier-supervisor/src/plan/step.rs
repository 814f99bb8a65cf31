//! The vocabulary of a plan.

use std::fmt;

use assistant_proto::event::Scope;

use crate::desired::{ContainerSpec, Desired, MountSource, NetworkKind, NetworkSpec};

/// One thing to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Why.
    pub reason: String,
}

/// One thing to do. Names refer to the desired state; ids to what was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Replace the kernel table and read it back.
    LoadTable,
    /// Lead what leaves our bridges into the drill's internet.
    ClaimRoutes,
    /// Take a container off a network.
    Detach {
        /// The engine's id.
        container_id: String,
        /// Its name.
        container: String,
        /// The network's name.
        network: String,
        /// Whether the container is not ours.
        foreign: bool,
    },
    /// Stop a container of ours.
    StopContainer {
        /// The engine's id.
        id: String,
        /// Its name.
        name: String,
    },
    /// Remove a container of ours.
    RemoveContainer {
        /// The engine's id.
        id: String,
        /// Its name.
        name: String,
    },
    /// Remove a network of ours.
    RemoveNetwork {
        /// The engine's id.
        id: String,
        /// Its name.
        name: String,
    },
    /// Make a network.
    CreateNetwork {
        /// Its name.
        name: String,
    },
    /// Make a volume and give it to its user.
    CreateVolume {
        /// Its name.
        name: String,
    },
    /// Give the top directory of a volume to its user.
    OwnVolume {
        /// Its name.
        name: String,
    },
    /// Write the rendered files of a container, and remove strangers among them.
    WriteFiles {
        /// The container's name.
        name: String,
    },
    /// Make the directory of a container's control socket and the link to it.
    OpenSocketDirectory {
        /// The container's name.
        name: String,
    },
    /// Make a container.
    CreateContainer {
        /// Its name.
        name: String,
    },
    /// Start a container, name its ports in the kernel table, prepare its namespace.
    StartContainer {
        /// Its name.
        name: String,
    },
    /// Prepare the namespace of a container that runs already.
    AdoptContainer {
        /// Its name.
        name: String,
    },
    /// See whether a container that was prepared is ready. Not yet is no failure until its time is over.
    AwaitReady {
        /// Its name.
        name: String,
    },
    /// Put Squid's log aside and have it begin a new one.
    RotateLog {
        /// The engine's id.
        id: String,
        /// The container's name.
        name: String,
    },
}

/// What the failure of a step means for those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// A wall: nothing after it may happen.
    Wall,
    /// A part of the stack that others need.
    Stack,
    /// A part of one tier, or one that nothing else needs to start: the others go on.
    Part,
}

impl Action {
    /// The container it works on, where it works on one.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Detach { container: name, .. }
            | Self::StopContainer { name, .. }
            | Self::RemoveContainer { name, .. }
            | Self::WriteFiles { name }
            | Self::OpenSocketDirectory { name }
            | Self::CreateContainer { name }
            | Self::StartContainer { name }
            | Self::AdoptContainer { name }
            | Self::AwaitReady { name }
            | Self::RotateLog { name, .. } => Some(name),
            Self::LoadTable
            | Self::ClaimRoutes
            | Self::RemoveNetwork { .. }
            | Self::CreateNetwork { .. }
            | Self::CreateVolume { .. }
            | Self::OwnVolume { .. } => None,
        }
    }

    /// The containers that cannot go on when it fails, where these are only some.
    #[must_use]
    pub fn containers<'a>(&'a self, desired: &'a Desired) -> Vec<&'a str> {
        match self {
            Self::CreateVolume { name } | Self::OwnVolume { name } => {
                let mounts = |spec: &&ContainerSpec| {
                    spec.mounts
                        .iter()
                        .any(|mount| matches!(&mount.source, MountSource::Volume(volume) if volume == name))
                };
                desired.containers.iter().filter(mounts).map(|spec| spec.name.as_str()).collect()
            }
            other => other.container().into_iter().collect(),
        }
    }

    /// Whether it brings something up that may need what is still coming up.
    #[must_use]
    pub fn brings_up(&self) -> bool {
        matches!(
            self,
            Self::WriteFiles { .. }
                | Self::OpenSocketDirectory { .. }
                | Self::CreateContainer { .. }
                | Self::StartContainer { .. }
        )
    }

    /// Whether the kernel table is another one afterwards, and the step itself does not load it.
    #[must_use]
    pub fn changes_ports(&self) -> bool {
        matches!(
            self,
            Self::Detach { .. } | Self::StopContainer { .. } | Self::RemoveNetwork { .. } | Self::CreateNetwork { .. }
        )
    }

    /// What its failure means. What tightens (a wall, a removal, a network, a foreign container) must succeed before
    /// anything starts.
    #[must_use]
    pub fn weight(&self, desired: &Desired) -> Weight {
        match self {
            Self::LoadTable
            | Self::ClaimRoutes
            | Self::Detach { .. }
            | Self::StopContainer { .. }
            | Self::RemoveContainer { .. }
            | Self::RemoveNetwork { .. }
            | Self::CreateNetwork { .. } => Weight::Wall,
            Self::CreateVolume { name } | Self::OwnVolume { name } => {
                match desired.volumes.iter().find(|volume| &volume.name == name).and_then(|volume| volume.tier.as_ref())
                {
                    Some(_) => Weight::Part,
                    None => Weight::Stack,
                }
            }
            Self::WriteFiles { name }
            | Self::OpenSocketDirectory { name }
            | Self::CreateContainer { name }
            | Self::StartContainer { name }
            | Self::AdoptContainer { name }
            | Self::AwaitReady { name }
            | Self::RotateLog { name, .. } => match desired.container(name) {
                Some(spec) if spec.tier.is_some() || !spec.role.holds_up_others() => Weight::Part,
                Some(_) | None => Weight::Stack,
            },
        }
    }

    /// Whose event it is.
    #[must_use]
    pub fn scope(&self, desired: &Desired) -> Scope {
        let tier = match self {
            Self::RemoveNetwork { name, .. } | Self::CreateNetwork { name } => {
                desired.network(name).and_then(|network| network.tier.clone())
            }
            Self::Detach { network, .. } => desired.network(network).and_then(|network| network.tier.clone()),
            Self::CreateVolume { name } | Self::OwnVolume { name } => {
                desired.volumes.iter().find(|volume| &volume.name == name).and_then(|volume| volume.tier.clone())
            }
            other => other.container().and_then(|name| desired.container(name)).and_then(|spec| spec.tier.clone()),
        };
        tier.map_or(Scope::Stack, Scope::Tier)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadTable => f.write_str("load the kernel table"),
            Self::ClaimRoutes => f.write_str("lead our bridges into the drill"),
            // A foreign container's name was chosen by somebody else; Docker's alphabet for names is harmless.
            Self::Detach { container, network, .. } => write!(f, "disconnect {container} from network {network}"),
            Self::StopContainer { name, .. } => write!(f, "stop container {name}"),
            Self::RemoveContainer { name, .. } => write!(f, "remove container {name}"),
            Self::RemoveNetwork { name, .. } => write!(f, "remove network {name}"),
            Self::CreateNetwork { name } => write!(f, "create network {name}"),
            Self::CreateVolume { name } => write!(f, "create volume {name}"),
            Self::OwnVolume { name } => write!(f, "give volume {name} to its user"),
            Self::WriteFiles { name } => write!(f, "write the files of {name}"),
            Self::OpenSocketDirectory { name } => write!(f, "open the socket directory of {name}"),
            Self::CreateContainer { name } => write!(f, "create container {name}"),
            Self::StartContainer { name } => write!(f, "start container {name}"),
            Self::AdoptContainer { name } => write!(f, "adopt container {name}"),
            Self::AwaitReady { name } => write!(f, "wait for container {name}"),
            Self::RotateLog { name, .. } => write!(f, "rotate the log of {name}"),
        }
    }
}

/// Hex SHA-256 over every field of a network's specification, with a version of this spelling in front.
#[must_use]
pub fn network_hash(spec: &NetworkSpec) -> String {
    let NetworkSpec { name, bridge, subnet, gateway, kind, tier } = spec;
    let kind = match kind {
        NetworkKind::Isolated => "isolated",
        NetworkKind::Internal => "internal",
        NetworkKind::Egress => "egress",
    };
    let tier = tier.as_ref().map_or("", |tier| tier.as_str());
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in ["network-1", name, bridge, &subnet.to_string(), &gateway.to_string(), kind, tier] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    hex::encode(context.finish().as_ref())
}
