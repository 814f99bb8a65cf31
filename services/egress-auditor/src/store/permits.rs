//! Looking for the permits of tunnels. A permit is an `egress.permitted` of secret-broker's proxy; it fits a tunnel of the
//! same tier, host and port that began soon after it, and of the same trace where the tunnel's trace is known. One permit is
//! for one tunnel: what a tunnel has used fits no other.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension};

use assistant_proto::event::{EgressPermitted, Event, Layer};
use serde::{Deserialize, Serialize};

/// A tunnel whose permit is looked for. Times are RFC 3339, UTC, with milliseconds: such times sort as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the tunnel is called: asked for again, it finds the permit that it has used.
    pub key: String,
    /// Whose tunnel.
    pub tier: String,
    /// Where to.
    pub host: String,
    /// Port there.
    pub port: u16,
    /// The permit's trace, 32 hex digits; none where any will do, a used one included: of such a tunnel the line that came with
    /// its permit was not read, and may have been judged before.
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

    /// The permit that it has used, or else the oldest that nobody has.
    fn choose<'a>(&self, candidates: &'a [Candidate], taken: &HashMap<String, String>) -> Option<&'a Candidate> {
        let fits = |candidate: &&Candidate| self.is_met_by(&candidate.permit);
        let is_own = |candidate: &&Candidate| taken.get(&candidate.id).is_some_and(|tunnel| *tunnel == self.key);
        let is_free = |candidate: &&Candidate| self.trace.is_none() || !taken.contains_key(&candidate.id);
        let fitting = || candidates.iter().filter(fits);
        fitting().find(is_own).or_else(|| fitting().find(is_free))
    }
}

/// A permit that a tunnel has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// The event's id.
    pub permit: String,
    /// When it was given (RFC 3339).
    pub at: String,
    /// The tunnel's key.
    pub tunnel: String,
}

/// What a look for permits found.
#[derive(Debug, Default)]
pub struct Matched {
    /// The wanted ones without a permit, by their places.
    pub missing: Vec<usize>,
    /// Permits that are used now and were not before.
    pub used: Vec<Used>,
}

/// A permit as it is matched.
struct Candidate {
    id: String,
    permit: EgressPermitted,
}

/// Finds a permit for each of the wanted. One that is older than the store's memory counts as met: its permit may have been
/// let go.
pub(super) fn permits(connection: &Connection, wanted: &[Wanted], used: &[Used]) -> rusqlite::Result<Matched> {
    let memory: Option<String> = connection
        .query_row("SELECT recorded_at FROM record ORDER BY sequence LIMIT 1", [], |row| row.get(0))
        .optional()?;
    let Some(memory) = memory else { return Ok(Matched::default()) };
    let mut open: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, wanted) in wanted.iter().enumerate() {
        if wanted.from >= memory {
            open.entry(wanted.tier.as_str()).or_default().push(at);
        }
    }
    let mut statement = connection.prepare(
        "SELECT recorded_at, payload, event_id FROM record WHERE type = ?1 AND tier = ?2 ORDER BY sequence DESC",
    )?;
    let mut taken: HashMap<String, String> =
        used.iter().map(|used| (used.permit.clone(), used.tunnel.clone())).collect();
    let mut matched = Matched::default();
    for (tier, places) in open {
        let mut candidates = Vec::new();
        let mut rows = statement.query([EgressPermitted::TYPE, tier])?;
        while let Some(row) = rows.next()? {
            let recorded_at: String = row.get(0)?;
            let is_over = |at: &usize| wanted.get(*at).is_none_or(|wanted| wanted.not_recorded_before > recorded_at);
            if places.iter().all(is_over) {
                break;
            }
            let Ok(permit) = serde_json::from_str::<EgressPermitted>(row.get_ref(1)?.as_str()?) else { continue };
            if places.iter().any(|at| wanted.get(*at).is_some_and(|wanted| wanted.is_met_by(&permit))) {
                candidates.push(Candidate { id: row.get(2)?, permit });
            }
        }
        candidates.sort_by(|a, b| a.permit.observed_at.cmp(&b.permit.observed_at));
        for at in in_turn(wanted, places) {
            let Some(wanted) = wanted.get(at) else { continue };
            match wanted.choose(&candidates, &taken) {
                None => matched.missing.push(at),
                Some(_) if wanted.trace.is_none() => {}
                Some(chosen) => {
                    if taken.insert(chosen.id.clone(), wanted.key.clone()).is_none() {
                        let (permit, at) = (chosen.id.clone(), chosen.permit.observed_at.clone());
                        matched.used.push(Used { permit, at, tunnel: wanted.key.clone() });
                    }
                }
            }
        }
    }
    matched.missing.sort_unstable();
    Ok(matched)
}

/// The earliest tunnel first: all of them may be opened equally long after their permits, so that if each can have one, each
/// that takes the oldest leaves enough for the others.
fn in_turn(wanted: &[Wanted], mut places: Vec<usize>) -> Vec<usize> {
    places.sort_by(|a, b| wanted.get(*a).map(|wanted| &wanted.to).cmp(&wanted.get(*b).map(|wanted| &wanted.to)));
    places
}
