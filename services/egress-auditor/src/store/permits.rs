//! Looking for the permits of tunnels. A permit is an `egress.permitted` of secret-broker's proxy; it fits a tunnel of the
//! same tier, host and port that began soon after it, and of the same trace where the tunnel's trace is known.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};

use assistant_proto::event::{EgressPermitted, Event, Layer};

/// A tunnel whose permit is looked for. Times are RFC 3339, UTC, with milliseconds: such times sort as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Whose tunnel.
    pub tier: String,
    /// Where to.
    pub host: String,
    /// Port there.
    pub port: u16,
    /// The permit's trace, 32 hex digits; none where any will do.
    pub trace: Option<String>,
    /// The permit is not older.
    pub from: String,
    /// And not younger.
    pub to: String,
    /// Records from before this need not be looked at. Some way before `from`, because a clock may have been set.
    pub not_recorded_before: String,
}

impl Wanted {
    fn is_met_by(&self, permit: &EgressPermitted) -> bool {
        permit.layer == Layer::Broker
            && permit.port == self.port
            && permit.host.eq_ignore_ascii_case(&self.host)
            && permit.observed_at >= self.from
            && permit.observed_at <= self.to
            && self.trace.as_ref().is_none_or(|trace| *trace == permit.trace_id)
    }
}

/// The wanted ones without a permit, by their places. One that is older than the store's memory is not among them: its
/// permit may have been let go.
pub(super) fn without_permit(connection: &Connection, wanted: &[Wanted]) -> rusqlite::Result<Vec<usize>> {
    let memory: Option<String> = connection
        .query_row("SELECT recorded_at FROM record ORDER BY sequence LIMIT 1", [], |row| row.get(0))
        .optional()?;
    let Some(memory) = memory else { return Ok(Vec::new()) };
    let mut open: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, wanted) in wanted.iter().enumerate() {
        if wanted.from >= memory {
            open.entry(wanted.tier.as_str()).or_default().push(at);
        }
    }
    let mut statement = connection
        .prepare("SELECT recorded_at, payload FROM record WHERE type = ?1 AND tier = ?2 ORDER BY sequence DESC")?;
    let mut missing = Vec::new();
    for (tier, mut places) in open {
        let mut rows = statement.query([EgressPermitted::TYPE, tier])?;
        while let Some(row) = rows.next()? {
            let recorded_at: String = row.get(0)?;
            let is_over = |at: &usize| wanted.get(*at).is_none_or(|wanted| wanted.not_recorded_before > recorded_at);
            if places.is_empty() || places.iter().all(is_over) {
                break;
            }
            let Ok(permit) = serde_json::from_str::<EgressPermitted>(row.get_ref(1)?.as_str()?) else { continue };
            places.retain(|at| wanted.get(*at).is_some_and(|wanted| !wanted.is_met_by(&permit)));
        }
        missing.extend(places);
    }
    missing.sort_unstable();
    Ok(missing)
}
