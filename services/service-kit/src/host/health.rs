//! `grpc.health.v1`: SERVING only while the service is ready and every part of it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthRpc, HealthServer};
use tonic_health::server::HealthReporter;

use crate::bus::Bus;
use crate::task::{OnEnd, Tasks};

/// What a service says of itself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    services: &'static [&'static str],
    state: Arc<Mutex<State>>,
    changed: Arc<tokio::sync::Notify>,
}

#[derive(Debug, Default)]
struct State {
    ready: bool,
    draining: bool,
    problems: BTreeMap<&'static str, String>,
    /// Parts that ever reported.
    parts: BTreeSet<&'static str>,
    bus: Option<Bus>,
}

impl State {
    fn serving(&self) -> bool {
        self.ready && !self.draining && self.problems.is_empty()
    }
}

impl Health {
    pub(super) fn new(services: &'static [&'static str]) -> (Self, HealthServer<impl HealthRpc>) {
        let (reporter, server) = tonic_health::server::health_reporter();
        let health = Self { reporter, services, state: Arc::default(), changed: Arc::new(tokio::sync::Notify::new()) };
        (health, server)
    }

    /// For tests: nobody asks.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(&[]).0
    }

    /// Reports one part of the service: fine, or the problem in a sentence.
    pub fn report(&self, part: &'static str, state: Result<(), String>) {
        let mut locked = self.lock();
        locked.parts.insert(part);
        let before = locked.problems.get(part).cloned();
        match state {
            Ok(()) => {
                if locked.problems.remove(part).is_some() {
                    tracing::info!(part, "recovered");
                }
            }
            Err(problem) => {
                if before.as_deref() != Some(&problem) {
                    tracing::warn!(part, %problem, "not healthy");
                }
                locked.problems.insert(part, problem);
            }
        }
        drop(locked);
        self.changed.notify_one();
    }

    /// Every problem at this moment, one per part.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        self.lock().problems.iter().map(|(part, problem)| (*part, problem.clone())).collect()
    }

    /// Every part that ever reported, and whether it has a problem.
    pub(crate) fn parts(&self) -> Vec<(&'static str, bool)> {
        let state = self.lock();
        state.parts.iter().map(|part| (*part, state.problems.contains_key(part))).collect()
    }

    /// Whether the answer is SERVING.
    pub(crate) fn serving(&self) -> bool {
        self.lock().serving()
    }

    pub(super) fn ready(&self) {
        self.lock().ready = true;
        self.changed.notify_one();
    }

    pub(super) fn draining(&self) {
        self.lock().draining = true;
        self.changed.notify_one();
    }

    pub(super) fn follow_bus(&self, bus: &Bus) {
        self.lock().bus = Some(bus.clone());
    }

    /// Spawns the task that publishes changes until `stop`. Critical: without it the last answer would stand for ever.
    pub(super) fn spawn(&self, tasks: &Tasks, stop: CancellationToken) {
        let health = self.clone();
        tasks.spawn("health", OnEnd::Critical, async move {
            tokio::select! {
                () = health.publish() => {}
                () = stop.cancelled() => {}
            }
            Ok(())
        });
    }

    async fn publish(&self) {
        loop {
            let status = { if self.serving() { ServingStatus::Serving } else { ServingStatus::NotServing } };
            // The empty name is the server as a whole, as the health protocol defines it.
            self.reporter.set_service_status("", status).await;
            for service in self.services {
                self.reporter.set_service_status(service, status).await;
            }
            let bus = self.lock().bus.clone();
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            }
            if let Some(bus) = bus {
                // A service starts and works without the bus, so its absence is said, not fatal.
                self.report_bus(bus.is_connected());
            }
        }
    }

    fn report_bus(&self, connected: bool) {
        let known = self.lock().problems.contains_key("bus");
        if connected && known {
            self.report("bus", Ok(()));
        } else if !connected && !known {
            self.report("bus", Err("NATS does not answer; events are queued".to_owned()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn parts_are_known_from_their_first_report_on() {
        let health = Health::detached();
        health.ready();
        assert!(health.serving() && health.parts().is_empty());
        health.report("docker", Ok(()));
        health.report("bus", Err("away".to_owned()));
        assert_eq!(health.parts(), [("bus", true), ("docker", false)]);
        assert!(!health.serving());
        health.report("bus", Ok(()));
        assert_eq!(health.parts(), [("bus", false), ("docker", false)]);
        assert!(health.serving());
        health.draining();
        assert!(!health.serving());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_serves_behind_a_dead_health() {
        let (tasks, stop) = (Tasks::default(), CancellationToken::new());
        Health::detached().spawn(&tasks, stop.clone());
        stop.cancel();
        let end = tokio::time::timeout(std::time::Duration::from_secs(60), tasks.critical_end()).await;
        assert_eq!(end.unwrap(), "health: it returned");
    }
}
