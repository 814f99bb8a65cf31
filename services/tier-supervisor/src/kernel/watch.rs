//! Keeps the table standing between two looks of the reconciler, which needs the engine for them and this does not.

use std::sync::Arc;
use std::time::Duration;

use assistant_proto::event::{EventId, FloorBreached};
use service_kit::bus::Bus;
use service_kit::clock;
use tokio_util::sync::CancellationToken;

use super::{Mended, Standing};

/// A table that was flushed stays away for at most this long, and the time that it takes to load it.
const EVERY: Duration = Duration::from_millis(250);

/// Looks until `stop`, and puts the table back whenever it is not as it was loaded. In the network namespace of the VM.
///
/// # Errors
/// When the table cannot be looked at or put back: to be started again.
pub async fn watch(standing: Arc<Standing>, bus: Bus, stop: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let looking = Arc::clone(&standing);
        // Not cancelled in the middle: it is short, and a table is put back as a whole.
        let mended = tokio::task::spawn_blocking(move || looking.mend()).await?;
        let (detail, fix) = match &mended {
            Ok(Mended::Stood) => continue,
            Ok(Mended::Again) => (
                "the kernel table was not as it was loaded; it was loaded again".to_owned(),
                "nothing to do if it was you; otherwise find what else writes nftables (nft monitor)",
            ),
            Err(error) => (
                format!("it is not known whether the kernel table stands: {error}"),
                "tier-supervisor tries again by itself; if this stays, run deploy/down.sh, then see nft list ruleset",
            ),
        };
        tracing::error!(detail, fix, "the kernel table was touched");
        let event = FloorBreached {
            check: "kernel-table".to_owned(),
            detail,
            fix: fix.to_owned(),
            checked_at: clock::now_rfc3339(),
        };
        bus.emit(&event, EventId::unique(), None);
        mended?;
    }
}
