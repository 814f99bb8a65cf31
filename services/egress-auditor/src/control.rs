//! `assistant.egress.v1.EgressService`: what operators ask. Everything here reads; nothing changes anything.

use std::sync::Arc;

use assistant_proto::egress::egress_service_server::EgressService;
use assistant_proto::egress::{
    ExplainRequest, ExplainResponse, ListRecordsRequest, ListRecordsResponse, Record as RecordMessage,
    ShowTraceRequest, ShowTraceResponse, TraceLine, VerifyChainRequest, VerifyChainResponse, WatchDeniedRequest,
    WatchDeniedResponse,
};
use assistant_proto::event::{EgressDenied, Event};
use policy::explain::Book;
use service_kit::task::{OnEnd, Tasks};
use service_kit::text::harmless_line;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::answer;
use crate::jaeger::{Jaeger, ShowError, TraceId};
use crate::record::Record;
use crate::store::{Filter, ReadError, Reader};

const MOST_RECORDS: u32 = 10_000;
const RECORDS_BY_DEFAULT: u32 = 100;
const MOST_BACKLOG: u32 = 1000;
/// Records read at a time for a watcher. A watcher that is slow falls behind in the store, not in memory.
const PAGE: u32 = 200;
/// Messages between the store and a watcher's connection.
const WATCH_QUEUE: usize = 64;
const MOST_FIELD_CHARS: usize = 1000;

/// The service.
#[derive(Debug, Clone)]
pub struct Control {
    reader: Reader,
    jaeger: Jaeger,
    book: Arc<Book>,
    tasks: Tasks,
    draining: CancellationToken,
}

impl Control {
    /// Over a store, a Jaeger and the rules; watchers end at `draining`.
    #[must_use]
    pub fn new(reader: Reader, jaeger: Jaeger, book: Book, tasks: Tasks, draining: CancellationToken) -> Self {
        Self { reader, jaeger, book: Arc::new(book), tasks, draining }
    }
}

#[tonic::async_trait]
impl EgressService for Control {
    type WatchDeniedStream = ReceiverStream<Result<WatchDeniedResponse, Status>>;

    async fn watch_denied(
        &self,
        request: Request<WatchDeniedRequest>,
    ) -> Result<Response<Self::WatchDeniedStream>, Status> {
        let WatchDeniedRequest { tier, backlog } = request.into_inner();
        if backlog > MOST_BACKLOG {
            return Err(Status::invalid_argument(format!("backlog is at most {MOST_BACKLOG}")));
        }
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let watch =
            Watch { reader: self.reader.clone(), filter: Filter { tier, kind: EgressDenied::TYPE.to_owned() }, sender };
        let draining = self.draining.clone();
        self.tasks.spawn("watch-denied", OnEnd::Expected, async move {
            let sender = watch.sender.clone();
            tokio::select! {
                outcome = watch.run(backlog) => {
                    if let Err(error) = outcome
                        && sender.send(Err(read_failed(&error))).await.is_err()
                    {
                        tracing::debug!("the watcher has gone");
                    }
                }
                () = draining.cancelled() => {
                    let stopping = Status::unavailable("egress-auditor is stopping; watch again");
                    if sender.try_send(Err(stopping)).is_err() {
                        tracing::debug!("the watcher has gone or is slow");
                    }
                }
            }
            Ok(())
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_records(
        &self,
        request: Request<ListRecordsRequest>,
    ) -> Result<Response<ListRecordsResponse>, Status> {
        let ListRecordsRequest { tier, r#type, limit } = request.into_inner();
        let limit = match limit {
            0 => RECORDS_BY_DEFAULT,
            1..=MOST_RECORDS => limit,
            _ => return Err(Status::invalid_argument(format!("limit is at most {MOST_RECORDS}"))),
        };
        let filter = Filter { tier, kind: r#type };
        let records = self.reader.newest(filter, u64::MAX, limit).await.map_err(|error| read_failed(&error))?;
        Ok(Response::new(ListRecordsResponse { records: records.into_iter().map(message).collect() }))
    }

    async fn verify_chain(&self, _: Request<VerifyChainRequest>) -> Result<Response<VerifyChainResponse>, Status> {
        let verified = self.reader.verify().await.map_err(|error| read_failed(&error))?;
        Ok(Response::new(VerifyChainResponse {
            intact: verified.broken_at.is_none(),
            records: verified.records,
            head: hex::encode(verified.head),
            broken_at: verified.broken_at.unwrap_or(0),
            pruned: verified.pruned,
        }))
    }

    async fn show_trace(&self, request: Request<ShowTraceRequest>) -> Result<Response<ShowTraceResponse>, Status> {
        let id: TraceId = request
            .into_inner()
            .trace_id
            .parse()
            .map_err(|error: crate::jaeger::NotATraceId| Status::invalid_argument(error.to_string()))?;
        let nodes = self.jaeger.trace(&id).await.map_err(|error| show_failed(&error))?;
        if nodes.is_empty() {
            return Err(show_failed(&ShowError::NotFound));
        }
        let lines = nodes
            .into_iter()
            .map(|node| TraceLine {
                depth: node.depth,
                service: node.service,
                name: node.name,
                start_micros: node.start_micros,
                duration_micros: node.duration_micros,
                attributes: node.attributes.into_iter().collect(),
                error: node.error,
            })
            .collect();
        Ok(Response::new(ShowTraceResponse { trace_id: id.as_str().to_owned(), lines }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        answer::explain(&self.book, &request.into_inner()).map(Response::new)
    }
}

/// One watcher.
struct Watch {
    reader: Reader,
    filter: Filter,
    sender: mpsc::Sender<Result<WatchDeniedResponse, Status>>,
}

impl Watch {
    /// The backlog up to the head, then what is behind it, page by page. Ends when the client is gone.
    async fn run(self, backlog: u32) -> Result<(), ReadError> {
        let mut head = self.reader.head();
        let mut sent = head.borrow_and_update().sequence;
        let mut past = self.reader.newest(self.filter.clone(), sent, backlog).await?;
        past.reverse();
        if !self.send(past).await {
            return Ok(());
        }
        loop {
            // Cancel-safe: neither arm takes anything.
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return Ok(()) },
                () = self.sender.closed() => return Ok(()),
            }
            let now = head.borrow_and_update().sequence;
            while sent < now {
                let page = self.reader.after(self.filter.clone(), sent, PAGE).await?;
                // A page that is not full was the last: everything up to the head has been looked at.
                let full = u32::try_from(page.len()).unwrap_or(u32::MAX) >= PAGE;
                let last = page.last().map_or(now, |record| record.sequence);
                sent = if full { last } else { last.max(now) };
                if !self.send(page).await {
                    return Ok(());
                }
            }
        }
    }

    async fn send(&self, records: Vec<Record>) -> bool {
        for record in records {
            if self.sender.send(Ok(WatchDeniedResponse { record: Some(message(record)) })).await.is_err() {
                return false;
            }
        }
        true
    }
}

fn message(record: Record) -> RecordMessage {
    let entry = record.entry;
    let detail = entry.detail();
    // Made harmless when it was recorded; again here, because a store can be tampered with.
    let text = |text: String| harmless_line(&text, MOST_FIELD_CHARS);
    RecordMessage {
        sequence: record.sequence,
        recorded_at: text(record.recorded_at),
        r#type: text(entry.kind),
        tier: text(entry.tier),
        principal: text(entry.principal),
        layer: text(entry.layer),
        host: text(entry.host),
        port: u32::from(entry.port),
        reason: text(entry.reason),
        fix: text(entry.fix),
        trace_id: text(entry.trace_id),
        count: entry.count,
        hash: hex::encode(record.hash),
        detail,
    }
}

/// The store is ours: whatever is wrong with it is for the operator to see, as the dependency's fault.
fn read_failed(error: &ReadError) -> Status {
    tracing::error!(%error, source = ?std::error::Error::source(error), "the audit store was not read");
    match error {
        ReadError::Database(_) => Status::internal("the audit store cannot be read; see the log of egress-auditor"),
        ReadError::Stopping(_) => Status::unavailable("egress-auditor is stopping; ask again"),
    }
}

fn show_failed(error: &ShowError) -> Status {
    match error {
        ShowError::NotFound => Status::not_found(
            "no span of this trace is here: they take a second or two to arrive, only those of the newest traces are kept, \
             and a restart of Jaeger forgets all; what was denied is also in the audit record",
        ),
        ShowError::Unreachable(_) | ShowError::Broken(_) | ShowError::Status(_) | ShowError::Malformed(_) => {
            tracing::warn!(%error, source = ?std::error::Error::source(error), "a trace was not shown");
            Status::unavailable(format!("{error}; is assistant-jaeger running?"))
        }
    }
}
