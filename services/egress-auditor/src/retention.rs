//! How long records are kept: asks the store again and again to let go of what is beyond its size or age, and says so when
//! it cannot or must not. What is let go, and what stands in its place, is the store's business (`store::prune`).

use std::time::{Duration, SystemTime};

use assistant_proto::config::Retention;
use service_kit::host::Health;
use tokio::time::Instant;
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
    let mut looked_at = Instant::now();
    loop {
        let elapsed = looked_at.elapsed();
        looked_at = Instant::now();
        let limits = limits(retention, SystemTime::now(), elapsed);
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

fn limits(retention: Retention, now: SystemTime, elapsed: Duration) -> Limits {
    let age = DAY.saturating_mul(retention.days);
    Limits { most_bytes: u64::from(retention.most_mib) << 20, age, now, elapsed }
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
        Ok(look) if look.spared => Err(
            "records of the audit store are too old by the clock, and are kept for now: the clock has leapt, or a tenth of the \
             record has gone for its age within a day. See whether the machine's clock is right (date); if it is, they go by \
             themselves within days"
                .to_owned(),
        ),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the audit store cannot let go of its oldest records ({error}); see its log")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn only_what_is_held_and_too_large_is_a_problem() {
        let limits = limits(Retention { most_mib: 100, days: 31 }, SystemTime::now(), Duration::ZERO);
        assert_eq!((limits.most_bytes, limits.age), (100 << 20, DAY * 31));
        let look = |mib: u64, held| Ok(Look { bytes: mib << 20, held, ..Look::default() });
        assert_eq!(judge(look(200, false), &limits), Ok(()));
        assert_eq!(judge(look(120, true), &limits), Ok(()));
        assert!(judge(look(126, true), &limits).unwrap_err().contains("assistant-nats"));
        let spared = Ok(Look { spared: true, ..Look::default() });
        assert!(judge(spared, &limits).unwrap_err().contains("clock"));
        assert!(judge(Err(PruneError::Database(rusqlite::Error::InvalidQuery)), &limits).is_err());
    }
}
