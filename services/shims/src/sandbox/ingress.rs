//! The socket that the agent's docker client calls: reads a request, has it decided, and hands the answer back.
//!
//! One request a connection, so that nothing can follow a request unseen. Owns framing, bounds on what a client may
//! send and for how long, and the order of things: refusals are recorded before they are answered, and a start is
//! entered in the book before the daemon hears of it. What is decided lies in [`super::call`] and [`super::create`].

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::attachment::{Attachment, HangUp};
use super::call::{Action, Call, ContainerId, Version as ApiVersion};
use super::containers::{Admission, Containers};
use super::create::{Create, Policy, body};
use super::daemon::{Daemon, Failed, Stream};
use super::refusal::{Ledger, Operation, Reason, Refused};
use super::{Ready, note};
use crate::accept;

/// Two for each container that runs, and some for calls that pass.
const CONNECTIONS_MOST: usize = 128;
/// Attachments, waits and logs: what has no end in time.
const STREAMS_MOST: usize = 96;
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// A kernel takes single arguments of 128 KiB; this leaves room for how JSON writes them.
const BODY_MOST: usize = 1024 * 1024;
/// Of the daemon's answer to a wait.
const WAIT_MOST: u64 = 64 * 1024;

/// What every connection needs.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) policy: Policy,
    pub(crate) daemon: Daemon,
    pub(crate) containers: Containers,
    pub(crate) ledger: Ledger,
    pub(crate) ready: Ready,
    streams: Arc<Semaphore>,
}

type Answer = Response<Either<Full<Bytes>, Stream>>;

/// What a call comes to, if not to an answer.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Failed(#[from] Failed),
    /// The daemon's own no.
    #[error("{1}")]
    Answered(StatusCode, String),
}

impl Desk {
    pub(crate) fn new(policy: Policy, daemon: Daemon, containers: Containers, ledger: Ledger, ready: Ready) -> Self {
        Self { policy, daemon, containers, ledger, ready, streams: Arc::new(Semaphore::new(STREAMS_MOST)) }
    }
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: UnixListener, desk: Arc<Desk>, stop: CancellationToken) {
    let connection = |stream| connection(stream, Arc::clone(&desk));
    accept::serve(listener, CONNECTIONS_MOST, stop, note, connection).await;
}

/// An attachment between the answer that announces it and the end of HTTP on its connection.
type Slot = Arc<Mutex<Option<Attachment>>>;

async fn connection(stream: UnixStream, desk: Arc<Desk>) {
    let gone = match HangUp::of(&stream) {
        Ok(gone) => gone,
        Err(error) => return note(&format!("cannot watch a connection: {error}")),
    };
    let slot = Slot::default();
    let service = service_fn(|request| {
        let (desk, slot) = (Arc::clone(&desk), Arc::clone(&slot));
        async move { Ok::<_, Infallible>(answer(request, &desk, &slot).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(32 * 1024)
        .keep_alive(false)
        // A client may close its sending side and still wait; one that closed both is seen by `gone`.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let finished = async {
        match served.await {
            // Answered with 400 or 431 already.
            Err(error) if error.is_parse() || error.is_parse_too_large() => {
                let detail = format!("the request is no HTTP that can be told apart: {error}");
                desk.ledger.note(&Refused::new(Operation::Other, Reason::Malformed, &detail));
            }
            // Peers hang up as they like, or say nothing; that is not worth a line.
            Ok(()) | Err(_) => {}
        }
        let attachment = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(attachment) = attachment {
            attachment.carry().await;
        }
    };
    // Dropping the other half drops its claim on a container, which is how that ends. What must not be cut off in the
    // middle is a task of its own: see `create`.
    tokio::select! {
        // First, so that a client that is gone is not taken for one whose input has ended. Both are dropped together.
        biased;
        () = gone.wait() => {}
        () = finished => {}
    }
}

async fn answer(request: Request<Incoming>, desk: &Arc<Desk>, slot: &Slot) -> Answer {
    match decide(request, desk, slot).await {
        Ok(answer) => answer,
        Err(Wrong::Refused(refused)) => refuse(desk, &refused),
        Err(Wrong::Failed(failed)) => {
            let status = match failed {
                Failed::Down { .. } => StatusCode::SERVICE_UNAVAILABLE,
                Failed::Broken(_) => StatusCode::BAD_GATEWAY,
                Failed::Slow(_) => StatusCode::GATEWAY_TIMEOUT,
            };
            note(&failed.to_string());
            message(status, &failed.to_string())
        }
        Err(Wrong::Answered(status, said)) => message(status, &said),
    }
}

/// Records, then tells.
fn refuse(desk: &Desk, refused: &Refused) -> Answer {
    desk.ledger.note(refused);
    message(StatusCode::FORBIDDEN, &format!("refused by the sandbox: {}", refused.detail))
}

async fn decide(request: Request<Incoming>, desk: &Arc<Desk>, slot: &Slot) -> Result<Answer, Wrong> {
    let uri = request.uri();
    if request.version() != Version::HTTP_11 || uri.authority().is_some() || uri.scheme().is_some() {
        let detail = "requests are HTTP/1.1 with a plain path";
        return Err(Refused::new(Operation::Other, Reason::Malformed, detail).into());
    }
    let call = Call::parse(request.method(), uri.path(), uri.query())?;
    let operation = call.operation();
    // Clients of Docker say the length of what they send. Without any other way there is nothing to disagree about.
    if request.headers().contains_key(TRANSFER_ENCODING) {
        let detail = "bodies come with their length, not in chunks";
        return Err(Refused::new(operation, Reason::Framing, detail).into());
    }
    if !matches!(call, Call::Create(_)) && !request.body().is_end_stream() {
        return Err(Refused::new(operation, Reason::Framing, "this call has no body").into());
    }
    match call {
        Call::Ping => ping(desk, &call).await,
        Call::Create(version) => create(request, desk, version).await,
        Call::On(_, ref id, Action::Attach(_)) => attach(request, desk, &call, id, slot).await,
        Call::On(_, ref id, ref action) => act(desk, &call, id, action).await,
    }
}

async fn ping(desk: &Desk, call: &Call) -> Result<Answer, Wrong> {
    let answer = desk.daemon.call(call, Vec::new()).await?;
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(b"OK"))));
    *response.status_mut() = answer.status();
    // What clients choose their version by.
    for name in ["api-version", "ostype", "docker-experimental", "builder-version"] {
        if let Some(value) = answer.header(name) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

async fn create(request: Request<Incoming>, desk: &Arc<Desk>, version: ApiVersion) -> Result<Answer, Wrong> {
    let body = whole_body(request).await?;
    let create = Create::parse(&body, &desk.policy)?;
    // A container that the daemon made and the book does not know would be nobody's. So this goes on without its client.
    let desk = Arc::clone(desk);
    let tasks = desk.ready.tasks().clone();
    match tasks.spawn(make(desk, version, create)).await {
        Ok(answer) => answer,
        Err(_) => Err(Failed::Broken("the creation was cut off".to_owned()).into()),
    }
}

async fn make(desk: Arc<Desk>, version: ApiVersion, create: Create) -> Result<Answer, Wrong> {
    desk.ready.check()?;
    let room = loop {
        match desk.containers.admit() {
            Ok(Admission::Room(room)) => break room,
            Ok(Admission::Instead(id)) => {
                desk.daemon.remove(&id).await?;
                desk.containers.gone(&id);
            }
            // Recorded here, because nobody may be left to hand it to.
            Err(refused) => return Ok(refuse(&desk, &refused)),
        }
    };
    let answer = desk.daemon.call(&Call::Create(version), body::body(&create, &desk.policy)).await?;
    let status = answer.status();
    if status == StatusCode::NOT_FOUND {
        // A client would take 404 for a reason to pull.
        let said = format!(
            "the image {} is not in the sandbox; it is still being loaded, or was not built",
            desk.policy.image
        );
        return Err(Wrong::Answered(StatusCode::SERVICE_UNAVAILABLE, said));
    }
    if status != StatusCode::CREATED {
        return Err(Wrong::Answered(client_status(status), answer.message().await));
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Made {
        id: String,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Said {
        id: String,
        /// The daemon's would be that it cannot enforce limits, which the container around it does.
        warnings: [String; 0],
    }
    let made: Option<Made> = serde_json::from_slice(&answer.whole().await?).ok();
    let id = made.and_then(|made| ContainerId::parse(&made.id));
    let id = id.ok_or_else(|| Failed::Broken("it named no container that it created".to_owned()))?;
    let said = Said { id: id.to_string(), warnings: [] };
    room.fill(id, create.auto_remove());
    Ok(json(StatusCode::CREATED, serde_json::to_vec(&said).unwrap_or_default()))
}

async fn attach(
    mut request: Request<Incoming>,
    desk: &Desk,
    call: &Call,
    id: &ContainerId,
    slot: &Slot,
) -> Result<Answer, Wrong> {
    let asked = request.headers().get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"tcp"));
    if !asked {
        let detail = "streams are attached with Upgrade: tcp, as every docker client since 1.9 does";
        return Err(Refused::new(Operation::Attach, Reason::Framing, detail).into());
    }
    let presence = desk.containers.attach(id)?;
    let permit = stream_permit(desk, Operation::Attach)?;
    let answer = desk.daemon.call_upgrading(call).await?;
    let status = answer.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal_of_daemon(desk, id, status, answer.message().await));
    }
    let kind = answer.header(CONTENT_TYPE.as_str());
    let daemon = answer.upgraded().await?;
    let client = hyper::upgrade::on(&mut request);
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Attachment { client, daemon, presence, permit });
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    headers.insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/vnd.docker.raw-stream")));
    Ok(response)
}

async fn act(desk: &Desk, call: &Call, id: &ContainerId, action: &Action) -> Result<Answer, Wrong> {
    let operation = action.operation();
    desk.containers.known(id, operation)?;
    let presence = match action {
        Action::Wait(until) => Some(desk.containers.wait(id, *until)?),
        _ => None,
    };
    let streams = match action {
        Action::Wait(_) => Some((WAIT_MOST, stream_permit(desk, operation)?)),
        Action::Logs(_) => Some((u64::MAX, stream_permit(desk, operation)?)),
        _ => None,
    };
    if *action == Action::Start {
        desk.containers.start(id)?;
    }
    let answer = desk.daemon.call(call, Vec::new()).await?;
    let status = answer.status();
    match (status, streams) {
        (StatusCode::OK, Some((most, permit))) => {
            let kind = answer.header(CONTENT_TYPE.as_str());
            let mut response = Response::new(Either::Right(answer.stream(most, permit, presence)));
            if let Some(kind) = kind {
                response.headers_mut().insert(CONTENT_TYPE, kind);
            }
            Ok(response)
        }
        (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, None) => {
            if matches!(action, Action::Remove { .. }) {
                desk.containers.gone(id);
            }
            let mut response = Response::new(Either::Left(Full::default()));
            *response.status_mut() = status;
            Ok(response)
        }
        _ => Err(refusal_of_daemon(desk, id, status, answer.message().await)),
    }
}

/// The daemon's no. What it does not know is out of the book.
fn refusal_of_daemon(desk: &Desk, id: &ContainerId, status: StatusCode, said: String) -> Wrong {
    if status == StatusCode::NOT_FOUND {
        desk.containers.gone(id);
    }
    Wrong::Answered(client_status(status), said)
}

/// Errors stay what they are; anything else at this point is not what the daemon should say.
fn client_status(status: StatusCode) -> StatusCode {
    if status.is_client_error() || status.is_server_error() { status } else { StatusCode::BAD_GATEWAY }
}

fn stream_permit(desk: &Desk, operation: Operation) -> Result<OwnedSemaphorePermit, Refused> {
    Arc::clone(&desk.streams).try_acquire_owned().map_err(|_| {
        let detail = format!("there are {STREAMS_MOST} streams open; wait until one has ended");
        Refused::new(operation, Reason::TooMany, &detail)
    })
}

async fn whole_body(request: Request<Incoming>) -> Result<Bytes, Refused> {
    let refused = |reason, detail: &str| Refused::new(Operation::Create, reason, detail);
    match timeout(BODY_WITHIN, Limited::new(request.into_body(), BODY_MOST).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(refused(Reason::TooLarge, "the body is above 1 MiB"))
        }
        Ok(Err(_)) => Err(refused(Reason::Malformed, "the body did not arrive whole")),
        Err(_) => Err(refused(Reason::TooSlow, "the body took longer than 10 s")),
    }
}

/// An error as clients of Docker show it.
fn message(status: StatusCode, text: &str) -> Answer {
    #[derive(Serialize)]
    struct Message<'a> {
        message: &'a str,
    }
    json(status, serde_json::to_vec(&Message { message: text }).unwrap_or_default())
}

fn json(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
