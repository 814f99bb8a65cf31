//! Turns the frames that the kernel table drops into events: `egress.denied.<tier>` with layer `packet`.
//!
//! It owns the NFLOG group, the meaning of its reports, and the counting: every dropped frame of a container is in exactly
//! one event, which leaves within a second of the frame; segments that TCP repeats by itself are one attempt. It decides
//! and drops nothing: if nobody listens here, frames die all the same, and are one number in the next start's first event.

mod attempt;
mod frame;
mod ledger;
mod mark;
mod socket;
mod tally;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use assistant_proto::event::{Attachment, EgressDenied, EventId, Layer, Scope};
use service_kit::bus::Bus;
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
use tally::{Counted, Segment, Segments, Tally};

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
    with(&ledger, Ledger::look).await?;
    let mut batches = socket::listen(NFLOG_GROUP).with_context(|| {
        format!("NFLOG group {NFLOG_GROUP} cannot be had; if another tier-supervisor runs, stop one of them")
    })?;
    let mut mark = Mark::new().context("no socket to ask for reports with")?;
    let mut counter = Counter { tally: Tally::new(), segments: Segments::default(), turns };
    let unheard = ledger.take();
    if unheard > 0 {
        counter.record(Instant::now(), Attempt::unheard(), unheard);
    }
    let mut notes = tokio::time::interval_at(tokio::time::Instant::now() + NOTED_EVERY, NOTED_EVERY);
    loop {
        let next = counter.tally.next_close();
        // Each arm is cancel-safe: `recv` takes a batch or leaves it, the others hold nothing.
        tokio::select! {
            () = stop.cancelled() => break,
            batch = batches.recv() => {
                let batch = batch.context("the NFLOG thread ended")?.context("reading NFLOG")?;
                let known = Arc::clone(&principals.borrow());
                mark.see(Instant::now(), &batch.reports);
                counter.count(Instant::now(), &known, batch);
            }
            () = wait_until(next) => {}
            () = wait_until(mark.next()) => mark.ask(Instant::now()),
            _ = notes.tick() => with(&ledger, Ledger::note).await?,
        }
        for counted in counter.tally.close(Instant::now()) {
            emit(&bus, counted);
        }
    }
    for counted in counter.tally.close_all() {
        emit(&bus, counted);
    }
    // The group is still held, by the thread that reads it: what comes now was not counted, but nearly nothing does.
    with(&ledger, Ledger::note).await
}

/// Works with the ledger where blocking does no harm.
async fn with(ledger: &Ledger, work: fn(&Ledger)) -> anyhow::Result<()> {
    let ledger = ledger.clone();
    Ok(tokio::task::spawn_blocking(move || work(&ledger)).await?)
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
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
                self.record(now, attempt, 1);
            }
        }
        if batch.lost > 0 {
            self.record(now, Attempt::lost(), batch.lost);
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
        principals.attempt(cause, report.interface, packet)
    }

    fn record(&mut self, now: Instant, attempt: Attempt, count: u64) {
        let tier = attempt.origin.tier.clone();
        let turns = &self.turns;
        self.tally.record(now, attempt, count, || match &tier {
            Scope::Tier(tier) => turns.current(tier),
            Scope::Stack => TurnContext { turn: None, attachment: Attachment::Background, parent: None },
        });
    }
}

fn emit(bus: &Bus, counted: Counted<TurnContext>) {
    let Counted { attempt, count, context } = counted;
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
        fix: attempt.fix().to_owned(),
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
