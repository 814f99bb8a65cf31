//! Turns the frames that the kernel table drops into events: `egress.denied.<tier>` with layer `packet`.
//!
//! It owns the NFLOG group, the meaning of its reports, and the counting: every dropped frame of a container is in exactly
//! one event, which leaves within a second of the frame; segments that TCP repeats by itself are one attempt. A container
//! that goes on and on is told in one event a second or so, with counts: the kernel reports some of its frames and counts
//! the others for it alone. It decides and drops nothing: if nobody listens here, frames die all the same, and are one
//! number in the next start's first event.

mod attempt;
mod frame;
mod ledger;
mod mark;
mod placing;
mod socket;
mod tally;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use assistant_proto::event::{Attachment, EgressDenied, EventId, Layer, Scope};
use service_kit::bus::Bus;
use service_kit::fold::Moment;
use service_kit::turns::{TurnContext, Turns};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use attempt::Principals;
pub use ledger::Ledger;

use crate::kernel::NFLOG_GROUP;
use attempt::{Attempt, Cause};
use frame::{Packet, Transport};
use ledger::NOTED_EVERY;
use mark::Mark;
use socket::{Batch, Report};
use tally::{Segment, Segments, Tally};

/// How often the counters are looked at while the kernel may have more to count than it reports.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Reports between two looks after which that may be. What one container is granted in a second is more.
const BUSY: usize = 64;

/// Listens until `stop`, then says what it still has. Must run in the VM's own network namespace.
///
/// `principals` must hold a port no later than the kernel table does: set it before loading.
///
/// # Errors
/// When the group cannot be had, or the socket fails: to be started again.
pub async fn run(
    bus: Bus,
    turns: Turns,
    principals: watch::Receiver<Arc<Principals>>,
    ledger: Ledger,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // Before listening, so that no frame is both heard and in this number.
    look(&ledger).await?;
    let mut batches = socket::listen(NFLOG_GROUP).with_context(|| {
        format!("NFLOG group {NFLOG_GROUP} cannot be had; if another tier-supervisor runs, stop one of them")
    })?;
    let listening = ledger.listen();
    let mut mark = Mark::new().context("no socket to ask for reports with")?;
    let mut counter = Counter { tally: tally::tally(), segments: Segments::default(), turns };
    let unheard = ledger.take_unheard();
    if unheard > 0 {
        counter.record(Attempt::unheard(), unheard);
    }
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_EVERY, LOOK_EVERY);
    let (mut looked_at, mut reports, mut busy) = (Instant::now(), 0_usize, 0_u8);
    loop {
        let next = counter.tally.next_due();
        // Each arm is cancel-safe: `recv` takes a batch or leaves it, the others hold nothing.
        tokio::select! {
            () = stop.cancelled() => break,
            batch = batches.recv() => {
                let batch = batch.context("the NFLOG thread ended")?.context("reading NFLOG")?;
                let known = Arc::clone(&principals.borrow());
                mark.see(Instant::now(), &batch.reports);
                reports = reports.saturating_add(batch.reports.len());
                counter.count(Instant::now(), &known, batch);
            }
            () = wait_until(next) => {}
            () = wait_until(mark.next().map(Into::into)) => mark.ask(Instant::now()),
            _ = looks.tick() => {
                // Once more after the last busy second: reports come a moment later than they are counted.
                busy = if std::mem::take(&mut reports) >= BUSY { 2 } else { busy.saturating_sub(1) };
                if busy > 0 || looked_at.elapsed() >= NOTED_EVERY {
                    look(&ledger).await?;
                    looked_at = Instant::now();
                }
            }
        }
        let known = Arc::clone(&principals.borrow());
        counter.unreported(&ledger, &known);
        for folded in counter.tally.due(tokio::time::Instant::now()) {
            emit(&bus, &known, tally::told(folded));
        }
    }
    // The group is still held, by the thread that reads it: what comes now was not counted, but nearly nothing does.
    let looked = look(&ledger).await;
    drop(listening);
    let known = Arc::clone(&principals.borrow());
    counter.unreported(&ledger, &known);
    for folded in counter.tally.rest() {
        emit(&bus, &known, tally::told(folded));
    }
    looked
}

/// Looks at the counters where blocking does no harm.
async fn look(ledger: &Ledger) -> anyhow::Result<()> {
    let ledger = ledger.clone();
    Ok(tokio::task::spawn_blocking(move || ledger.look()).await?)
}

async fn wait_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Counter {
    tally: Tally<TurnContext>,
    segments: Segments,
    turns: Turns,
}

impl Counter {
    fn count(&mut self, now: Instant, principals: &Principals, batch: Batch) {
        for report in &batch.reports {
            if let Some(attempt) = self.attempt(now, principals, report) {
                self.record(attempt, 1);
            }
        }
        if batch.lost > 0 {
            self.record(Attempt::lost(), batch.lost);
        }
    }

    /// What the kernel counted and did not report.
    fn unreported(&mut self, ledger: &Ledger, principals: &Principals) {
        for (container, count) in ledger.take_unreported() {
            self.record(Attempt::flood(principals.origin(&container)), count);
        }
    }

    fn attempt(&mut self, now: Instant, principals: &Principals, report: &Report) -> Option<Attempt> {
        // Another program's rule may use the group; it is not ours to report.
        let cause = Cause::from_prefix(&report.prefix)?;
        let packet = frame::read(report.ethertype, &report.payload);
        if let Packet::Ipv4 {
            source,
            destination,
            transport: Transport::Tcp { source_port, port, opening: Some(sequence) },
        } = packet
        {
            let segment = Segment {
                interface: report.interface,
                source: (source, source_port),
                destination: (destination, port),
                sequence,
            };
            if self.segments.is_repeated(now, segment) {
                return None;
            }
        }
        principals.attempt(now, cause, report.interface, packet)
    }

    fn record(&mut self, attempt: Attempt, count: u64) {
        let context = match &attempt.origin.tier {
            Scope::Tier(tier) => self.turns.current(tier),
            Scope::Stack => TurnContext { turn: None, attachment: Attachment::Background, parent: None },
        };
        self.tally.note_many(attempt.origin.clone(), attempt, context, count, Moment::now());
    }
}

fn emit(bus: &Bus, principals: &Principals, (attempt, count, context): (Attempt, u64, TurnContext)) {
    let reason = attempt.reason.as_str();
    let span = tracing::info_span!(
        "kernel.deny",
        otel.kind = "internal",
        tier = attempt.origin.tier.as_str(),
        principal = attempt.origin.container.as_deref().unwrap_or_default(),
        host = %attempt.host,
        port = attempt.port.unwrap_or_default(),
        protocol = %attempt.protocol,
        reason,
        count,
    );
    service_kit::trace::span_parent(&span, context.parent);
    // Where nothing exports spans, the trace is the turn's, or one that only this event has.
    let trace =
        service_kit::trace::current_traceparent(&span).or(context.parent).unwrap_or_else(service_kit::trace::fresh);
    tracing::info!(
        parent: &span,
        tier = attempt.origin.tier.as_str(),
        host = %attempt.host,
        reason,
        count,
        "the kernel table dropped an attempt"
    );
    let event = EgressDenied {
        principal: attempt.origin.principal(),
        layer: Layer::Packet,
        port: attempt.port,
        reason: reason.to_owned(),
        detail: attempt.detail(),
        fix: attempt.fix(principals.tiers_file()),
        count,
        turn: context.turn,
        attachment: context.attachment,
        trace_id: trace.trace_id(),
        observed_at: service_kit::clock::now_rfc3339(),
        tier: attempt.origin.tier,
        host: attempt.host,
        protocol: attempt.protocol,
    };
    bus.emit(&event, EventId::unique(), Some(trace));
}
