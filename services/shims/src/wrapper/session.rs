//! Requests in flight between HTTP clients and the child of the moment.
//!
//! Owns the numbers requests travel under and who waits for which. Does not own the process: [`super::child`] tells it
//! when a child is ready and when it is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::message;

/// Requests that may wait at once. One agent with one turn needs a handful.
const WAITING_MOST: usize = 64;
/// How long a request waits for a child that is still starting: importing a Python program takes seconds.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// The outcome of a request that reached the child and came back: `result` or `error`, as the child wrote it.
pub type Outcome = Result<Box<RawValue>, Box<RawValue>>;

/// Why a request has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// No child is running.
    #[error("the MCP server is not running: {0}")]
    Down(String),
    /// The child ended, or was ended, before it answered.
    #[error("the MCP server ended before it answered")]
    Ended,
    /// The child wrote a line above the cap.
    #[error("the MCP server wrote an answer above the size limit")]
    TooLong,
    /// Too many requests wait already.
    #[error("too many requests wait for the MCP server")]
    Busy,
    /// The deadline passed.
    #[error("the MCP server did not answer in time")]
    Deadline,
}

/// Lines on their way to a child's standard input.
pub(crate) type Lines = mpsc::Sender<Vec<u8>>;

#[derive(Debug, Clone)]
pub(crate) enum Child {
    Down(String),
    Starting,
    Ready { lines: Lines, initialized: Arc<RawValue> },
}

/// Cheap to clone; all clones are the same session.
#[derive(Debug, Clone)]
pub struct Session {
    child: watch::Sender<Child>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    by_id: HashMap<u64, oneshot::Sender<Result<Outcome, Lost>>>,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self { child: watch::Sender::new(Child::Starting), waiting: Arc::default() }
    }

    pub(crate) fn set(&self, child: Child) {
        self.child.send_replace(child);
    }

    /// Whether the child is up and has answered its handshake; else why not.
    pub(crate) fn health(&self) -> Result<(), String> {
        match &*self.child.borrow() {
            Child::Ready { .. } => Ok(()),
            Child::Starting => Err("the MCP server is starting".to_owned()),
            Child::Down(why) => Err(format!("the MCP server is not running: {why}")),
        }
    }

    /// What the child answered to `initialize`.
    pub(crate) async fn initialized(&self) -> Result<Arc<RawValue>, Lost> {
        self.ready().await.map(|(_, initialized)| initialized)
    }

    /// Sends a request to the child and waits for its outcome. Dropping the future cancels the request at the child.
    pub(crate) async fn request(
        &self,
        method: &str,
        params: Option<&RawValue>,
        within: Duration,
    ) -> Result<Outcome, Lost> {
        let deadline = Instant::now() + within;
        let (lines, _) = timeout_at(deadline, self.ready()).await.map_err(|_| Lost::Deadline)??;
        self.request_on(&lines, method, params, deadline).await
    }

    /// As [`Self::request`], on a child that has not finished its handshake.
    pub(crate) async fn request_on(
        &self,
        lines: &Lines,
        method: &str,
        params: Option<&RawValue>,
        deadline: Instant,
    ) -> Result<Outcome, Lost> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting();
            if waiting.by_id.len() >= WAITING_MOST {
                return Err(Lost::Busy);
            }
            waiting.last = waiting.last.wrapping_add(1);
            let id = waiting.last;
            waiting.by_id.insert(id, sender);
            id
        };
        let ticket = Ticket { session: self, lines, id };
        let line = message::request_line(Some(id), method, params);
        timeout_at(deadline, lines.send(line)).await.map_err(|_| Lost::Deadline)?.map_err(|_| Lost::Ended)?;
        let outcome = timeout_at(deadline, receiver).await.map_err(|_| Lost::Deadline)?;
        drop(ticket);
        outcome.map_err(|_| Lost::Ended)?
    }

    /// A child answered.
    pub(crate) fn resolve(&self, id: u64, outcome: Outcome) {
        if let Some(sender) = self.waiting().by_id.remove(&id) {
            // An error means that the waiter has just left.
            drop(sender.send(Ok(outcome)));
        }
    }

    /// Nothing that waits now will be answered.
    pub(crate) fn lose_all(&self, why: &Lost) {
        let all = std::mem::take(&mut self.waiting().by_id);
        for sender in all.into_values() {
            drop(sender.send(Err(why.clone())));
        }
    }

    async fn ready(&self) -> Result<(Lines, Arc<RawValue>), Lost> {
        let mut child = self.child.subscribe();
        let settled = child.wait_for(|child| !matches!(child, Child::Starting));
        let settled = match tokio::time::timeout(START_PATIENCE, settled).await {
            Ok(Ok(child)) => child.clone(),
            // Closed cannot happen: `self` holds the sender.
            Ok(Err(_)) | Err(_) => return Err(Lost::Down("it is still starting".to_owned())),
        };
        match settled {
            Child::Ready { lines, initialized } => Ok((lines, initialized)),
            Child::Down(why) => Err(Lost::Down(why)),
            Child::Starting => Err(Lost::Ended),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing is left half done under this lock, so what a panicking holder left is usable.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue. Dropped before an answer (deadline passed, client gone), it gives up the place and tells the
/// child, if there is room, that nobody waits.
struct Ticket<'a> {
    session: &'a Session,
    lines: &'a Lines,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.session.waiting().by_id.remove(&self.id).is_none() {
            return;
        }
        let params = RawValue::from_string(format!("{{\"requestId\":{}}}", self.id)).ok();
        let line = message::request_line(None, "notifications/cancelled", params.as_deref());
        // Best effort: a child that reads nothing gets no news either.
        drop(self.lines.try_send(line));
    }
}
