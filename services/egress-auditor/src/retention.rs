//! How long records are kept: asks the store again and again to let go of what is beyond its size or age, and says so when
//! it cannot. What is let go, and what stands in its place, is the store's business (`store::prune`).

use std::time::{Duration, SystemTime};

use assistant_proto::config::Retention;
use service_kit::clock;
use service_kit::host::Health;
use tokio_util::sync::CancellationToken;

use crate::figures::Figures;
use crate::store::{Limits, Look, PruneError, Store};

const LOOK_EVERY: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(24 * 3600);
const HEALTH_PART: &str = "audit-retention";

/// Keeps the store within its limits until `draining`. Run it in `Tasks::spawn_restarting`.
///
/// # Errors
/// Never; a store that cannot be written is the health's to say.
pub async fn keep(
    store: Store,
    retention: Retention,
    figures: Figures,
    health: Health,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let limits = limits(retention, SystemTime::now());
        // Cancel-safe: what was asked of the writer is done by it or not at all.
        let looked = tokio::select! {
            looked = store.prune(limits.clone()) => looked,
            () = draining.cancelled() => return Ok(()),
        };
        if let Err(PruneError::Closed(_)) = looked {
            return Ok(());
        }
        if let Ok(look) = &looked {
            figures.store_holds(look.bytes);
            figures.pruned(look.pruned);
        }
        let again = looked.as_ref().is_ok_and(|look| look.pruned > 0 && !look.held);
        health.report(HEALTH_PART, judge(looked, &limits));
        // Others get their turn with the writer between two commits: the channels are fair.
        if again {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = draining.cancelled() => return Ok(()),
        }
    }
}

fn limits(retention: Retention, now: SystemTime) -> Limits {
    let ago = |days: u32| {
        let age = DAY.saturating_mul(days);
        // Before the epoch nothing was recorded.
        clock::rfc3339(now.checked_sub(age).filter(|at| *at > SystemTime::UNIX_EPOCH).unwrap_or(SystemTime::UNIX_EPOCH))
    };
    Limits {
        most_bytes: u64::from(retention.most_mib) << 20,
        before: ago(retention.days),
        overdue: ago(retention.days.saturating_add(1)),
    }
}

/// The sentence names no number that changes, so that it is said once and not at every look.
fn judge(looked: Result<Look, PruneError>, limits: &Limits) -> Result<(), String> {
    match looked {
        // A quarter more: records that wait for the bus for a while are no reason to alarm anybody.
        Ok(look) if look.held && look.bytes > limits.most_bytes.saturating_add(limits.most_bytes / 4) => Err(format!(
            "the audit store is larger than its {} MiB, and its oldest records cannot be let go, because egress-auditor's own \
             events among them never came back from the bus: see whether assistant-nats runs",
            limits.most_bytes >> 20
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the audit store cannot let go of its oldest records ({error}); see its log")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn days_become_times() {
        let now = SystemTime::UNIX_EPOCH + DAY * 1000;
        let limits = limits(Retention { most_mib: 3, days: 999 }, now);
        assert_eq!(limits.most_bytes, 3 << 20);
        assert_eq!(
            (limits.before.as_str(), limits.overdue.as_str()),
            ("1970-01-02T00:00:00.000Z", "1970-01-01T00:00:00.000Z")
        );
        assert_eq!(super::limits(Retention { most_mib: 3, days: u32::MAX }, now).before, "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn only_what_is_held_and_too_large_is_a_problem() {
        let limits = limits(Retention { most_mib: 100, days: 31 }, SystemTime::now());
        let look = |mib: u64, held| Ok(Look { bytes: mib << 20, pruned: 0, held });
        assert_eq!(judge(look(200, false), &limits), Ok(()));
        assert_eq!(judge(look(120, true), &limits), Ok(()));
        assert!(judge(look(126, true), &limits).unwrap_err().contains("assistant-nats"));
        assert!(judge(Err(PruneError::Database(rusqlite::Error::InvalidQuery)), &limits).is_err());
    }
}
