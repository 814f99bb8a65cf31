//! Joins the engine's containers with the kernel table: which ports it names, and whether it stands.
//!
//! It remembers the ports of running containers: they do not change while a container runs on the same networks. What a
//! table says, and which one was loaded last, is `kernel`'s affair.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::VmError;
use crate::desired::{ContainerSpec, Desired};
use crate::kernel::{self, ContainerPort, Ruleset, Standing};
use crate::netns::{self, Port};
use crate::nflog::{Ledger, Principals};
use crate::observed::{Container, Table};
use crate::plan::is_current;
use crate::routes;

/// Who is where, for whoever has to say whose a dropped frame was. Always told before the table names a port.
pub type PortMap = watch::Sender<Arc<Principals>>;

/// One run of a container on one set of networks.
type Run = (String, u32, Vec<String>);

/// Knows which table should stand.
#[derive(Debug)]
pub(super) struct Keeper {
    map: PortMap,
    ledger: Ledger,
    told: Mutex<Option<(Vec<ContainerPort>, u64)>>,
    seen: Mutex<BTreeMap<Run, Vec<Port>>>,
    standing: Arc<Standing>,
}

impl Keeper {
    pub(super) fn new(map: PortMap, ledger: Ledger) -> Self {
        Self { map, ledger, told: Mutex::default(), seen: Mutex::default(), standing: Arc::default() }
    }

    /// The table as it should stand.
    pub(super) fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing)
    }

    /// How what is loaded compares with what should be. What cannot be read does not stand.
    pub(super) fn compare(&self, desired: &Desired, containers: &[Container]) -> Table {
        let wanted = kernel::ruleset(desired, &self.ports(desired, containers));
        let stands = |ruleset: &Ruleset| match kernel::matches_loaded(ruleset) {
            Ok(stands) => stands,
            Err(error) => {
                tracing::error!(%error, "the kernel table cannot be read back");
                false
            }
        };
        let last = self.standing.loaded();
        if stands(&wanted) {
            self.standing.adopt(wanted);
            Table::Stands
        } else if last.is_some_and(|last| last != wanted && stands(&last)) {
            Table::Outdated
        } else {
            Table::Missing
        }
    }

    /// Loads the table for what is running and reads it back.
    pub(super) fn load(&self, desired: &Desired, containers: &[Container]) -> Result<(), VmError> {
        let ports = self.ports(desired, containers);
        // Its counters go with the table.
        self.ledger.look();
        self.standing.load(&kernel::ruleset(desired, &ports))?;
        Ok(())
    }

    /// Says who is where, when that is something new.
    fn tell(&self, desired: &Desired, ports: &[ContainerPort]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let of = fingerprint(desired);
        if told.as_ref().is_some_and(|(known, known_of)| known == ports && *known_of == of) {
            return;
        }
        let addresses = match nix::ifaddrs::getifaddrs() {
            Ok(found) => found
                .filter_map(|found| found.address.and_then(|address| address.as_sockaddr_in().map(|v4| v4.ip())))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "the VM's own addresses cannot be read; attempts at them are reported as such at others");
                Vec::new()
            }
        };
        let index_of = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        let known = Principals::new(desired, ports, addresses, index_of).after(&self.map.borrow(), Instant::now());
        self.map.send_replace(Arc::new(known));
        *told = Some((ports.to_vec(), of));
    }

    /// Ports of running containers that are made from today's specification. A container whose ports cannot be read gets
    /// none: it is closed.
    pub(super) fn ports(&self, desired: &Desired, containers: &[Container]) -> Vec<ContainerPort> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut current = BTreeMap::new();
        let mut ports = Vec::new();
        for container in containers.iter().filter(|container| is_current(desired, container)) {
            let (Some(pid), Some(spec)) = (container.pid(), desired.container(&container.name)) else { continue };
            let run: Run = (container.id.clone(), pid, container.networks.keys().cloned().collect());
            let found = match seen.remove(&run) {
                Some(found) => found,
                None => match netns::ports(pid) {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(container = %spec.name, %error, "its ports cannot be read; the kernel table has none for it");
                        continue;
                    }
                },
            };
            let named = named(desired, spec, &found);
            // Complete, or to be read again: a container that has just started gets its interfaces one by one.
            if named.len() == spec.networks.len() {
                current.insert(run, found);
            }
            ports.extend(named);
        }
        *seen = current;
        ports.sort();
        self.tell(desired, &ports);
        ports
    }
}

/// Tells one set of flows, networks and names from another, within this process.
fn fingerprint(desired: &Desired) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&desired.flows, &desired.networks, &desired.tiers_file).hash(&mut hasher);
    for container in &desired.containers {
        (&container.name, &container.tier, &container.networks).hash(&mut hasher);
    }
    hasher.finish()
}

/// The ports that are where the specification says.
fn named(desired: &Desired, spec: &ContainerSpec, found: &[Port]) -> Vec<ContainerPort> {
    let on = |attachment: &crate::desired::Attachment| {
        let bridge = &desired.network(&attachment.network)?.bridge;
        let port =
            found.iter().find(|port| port.address == attachment.address && port.bridge.as_ref() == Some(bridge))?;
        Some(ContainerPort {
            container: spec.name.clone(),
            network: attachment.network.clone(),
            address: port.address,
            mac: port.mac,
            ifname: port.host_ifname.clone(),
        })
    };
    spec.networks.iter().filter_map(on).collect()
}

/// Whether every route stands that must.
pub(super) fn routes_stand(desired: &Desired) -> bool {
    match routes::verify(desired) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "routes");
            false
        }
    }
}

/// Prepares a container's namespace, unless it stands already.
pub(super) fn prepare(pid: u32, desired: &Desired, spec: &ContainerSpec) -> Result<(), VmError> {
    if netns::is_prepared(pid, spec, desired).unwrap_or(false) {
        return Ok(());
    }
    netns::prepare(pid, spec, desired)?;
    Ok(())
}
