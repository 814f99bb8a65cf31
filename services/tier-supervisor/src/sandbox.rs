//! Turns the refusals of the sandboxes' filters into events: `egress.denied.<tier>` with layer `sandbox`.
//!
//! A filter is on no network, so it writes its refusals on standard output, a JSON line each. This module reads that log
//! through the engine, from where it was last read, and owns the place up to which each was read: a refusal becomes exactly
//! one event, across restarts of this process, of the filter and of the bus. It decides nothing: what is refused was
//! refused, whether or not anybody reads.
//!
//! Refusals wait in the filter's log, which has a bounded size, while the bus is away.

mod line;
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use assistant_proto::event::{Attachment, EgressDenied, EventId, Layer, Scope};
use assistant_proto::name::{PrincipalName, TierName};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use service_kit::bus::Bus;
use service_kit::turns::{TurnContext, Turns};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::desired::Role;
use crate::desired::containers::agent_name;
use crate::engine::{Engine, LogLine};
use crate::reconciler::{Picture, Stack};
use crate::vm::Vm;
use line::Refusal;
use place::{Pending, Place};

/// Lines on their way from the engine: some kilobytes each; the engine waits when they are more.
const LINES: usize = 64;
/// How long the bus may take to store one.
const STORED_WITHIN: Duration = Duration::from_secs(10);
/// Pause before a log is asked for again that ended, or that nobody gave.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// What is older than that was not made in the turn that runs now.
const RECENT: Duration = Duration::from_secs(5);
/// So long after a log was opened what is older than the place counts as read before; later only the clock was set back.
const REPLAYED_WITHIN: Duration = Duration::from_secs(2);

/// A filter whose log is read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    /// The engine's id.
    id: String,
    tier: TierName,
}

/// Follows the log of every filter there is until `stop`.
///
/// # Errors
/// When the place of a log cannot be kept: to be started again.
pub async fn run<E: Engine, V: Vm>(
    stack: Arc<Stack<E, V>>,
    bus: Bus,
    turns: Turns,
    places: PathBuf,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    crate::files::private_directory(&places)?;
    let mut pictures = stack.watch();
    let mut running: BTreeMap<String, (Filter, CancellationToken)> = BTreeMap::new();
    let mut followers: FuturesUnordered<Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>>> =
        FuturesUnordered::new();
    loop {
        let wanted = filters(&pictures.borrow_and_update());
        running.retain(|name, (filter, cancel)| {
            let stays = wanted.get(name) == Some(filter);
            if !stays {
                cancel.cancel();
            }
            stays
        });
        for (name, filter) in wanted {
            if running.contains_key(&name) {
                continue;
            }
            let cancel = stop.child_token();
            let reader = Reader {
                engine: stack.engine(),
                bus: bus.clone(),
                turns: turns.clone(),
                path: places.join(format!("{name}.json")),
                filter: filter.clone(),
            };
            let cancelled = cancel.clone();
            followers.push(Box::pin(async move { reader.follow(&cancelled).await }));
            running.insert(name, (filter, cancel));
        }
        // Cancel-safe: a picture stays to be seen, a follower that ended stays ended.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = pictures.changed() => changed?,
            Some(ended) = followers.next() => ended?,
        }
    }
}

/// The filters that exist, running or not: what one said last is to be read, too.
fn filters(picture: &Picture) -> BTreeMap<String, Filter> {
    let specs = picture.desired.containers.iter().filter(|spec| spec.role == Role::SandboxFilter);
    specs
        .filter_map(|spec| {
            let found = picture.found(spec)?;
            Some((spec.name.clone(), Filter { id: found.id.clone(), tier: spec.tier.clone()? }))
        })
        .collect()
}

struct Reader<'a, E> {
    engine: &'a E,
    bus: Bus,
    turns: Turns,
    path: PathBuf,
    filter: Filter,
}

impl<E: Engine> Reader<'_, E> {
    async fn follow(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut place = load(&self.path).await?;
        loop {
            // Cancelled anywhere: what was not stored is in the file, or not read yet.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                outcome = self.read(&mut place) => outcome?,
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
    }

    /// One stream of the log, to its end.
    async fn read(&self, place: &mut Place) -> anyhow::Result<()> {
        self.settle(place).await?;
        if place.container != self.filter.id {
            *place = Place::of(&self.filter.id);
        }
        let (sender, mut lines) = mpsc::channel(LINES);
        let since = place.seconds();
        let asked = async move {
            if let Err(error) = self.engine.follow_log(&self.filter.id, since, &sender).await {
                tracing::debug!(tier = %self.filter.tier, %error, "the log of a sandbox's filter cannot be read; asked again");
            }
        };
        let opened = Instant::now();
        let mut replay = place.replay();
        let taken = async {
            while let Some(line) = lines.recv().await {
                if opened.elapsed() < REPLAYED_WITHIN && replay.was_read(line.at) {
                    continue;
                }
                self.take(place, &line).await?;
            }
            anyhow::Ok(())
        };
        let ((), taken) = tokio::join!(asked, taken);
        taken
    }

    /// From a line to a stored event. The event is kept beside the place first: should this process end before it knows
    /// that the bus has it, the very same event is said again, which is a no-op where it was heard.
    async fn take(&self, place: &mut Place, line: &LogLine) -> anyhow::Result<()> {
        let nth = place.advance(line.at);
        let id = EventId::derive(&[
            b"sandbox refusal",
            self.filter.id.as_bytes(),
            &line.at.to_be_bytes(),
            &nth.to_be_bytes(),
            &line.text,
        ]);
        place.pending = Some(self.event(id, line));
        self.settle(place).await
    }

    /// Says what is pending until the bus has it, and keeps the place.
    async fn settle(&self, place: &mut Place) -> anyhow::Result<()> {
        let Some(pending) = place.pending.clone() else { return Ok(()) };
        store(&self.path, place).await?;
        loop {
            let said = self.bus.commit(&pending.event, pending.id.parse()?, pending.trace.parse().ok(), STORED_WITHIN);
            match said.await {
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "a sandbox's refusal waits for the bus");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
        place.pending = None;
        store(&self.path, place).await
    }

    fn event(&self, id: EventId, line: &LogLine) -> Pending {
        let Refusal { operation, reason, detail, count } = line::read(&line.text);
        let tier = &self.filter.tier;
        let at = UNIX_EPOCH.checked_add(Duration::from_nanos(line.at)).unwrap_or(UNIX_EPOCH);
        let is_recent = SystemTime::now().duration_since(at).map_or(true, |age| age < RECENT);
        let context = if is_recent {
            self.turns.current(tier)
        } else {
            TurnContext { turn: None, attachment: Attachment::Background, parent: None }
        };
        let span =
            tracing::info_span!("sandbox.deny", otel.kind = "internal", tier = tier.as_str(), operation, reason, count);
        service_kit::trace::span_parent(&span, context.parent);
        let trace =
            service_kit::trace::current_traceparent(&span).or(context.parent).unwrap_or_else(service_kit::trace::fresh);
        tracing::info!(parent: &span, tier = %tier, operation, reason, count, "a sandbox refused a call");
        let principal: Option<PrincipalName> = agent_name(tier).ok();
        let event = EgressDenied {
            tier: Scope::Tier(tier.clone()),
            principal,
            layer: Layer::Sandbox,
            host: String::new(),
            port: None,
            protocol: "docker".to_owned(),
            fix: line::fix(&reason).to_owned(),
            reason,
            detail,
            count,
            turn: context.turn,
            attachment: context.attachment,
            trace_id: trace.trace_id(),
            observed_at: service_kit::clock::rfc3339(at),
        };
        Pending { id: id.as_str().to_owned(), event, trace: trace.to_string() }
    }
}

async fn load(path: &Path) -> anyhow::Result<Place> {
    let path = path.to_owned();
    Ok(tokio::task::spawn_blocking(move || Place::load(&path)).await??)
}

async fn store(path: &Path, place: &Place) -> anyhow::Result<()> {
    let (path, place) = (path.to_owned(), place.clone());
    Ok(tokio::task::spawn_blocking(move || place.store(&path)).await??)
}

#[cfg(test)]
mod tests;
