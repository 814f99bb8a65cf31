//! The sandbox's Docker daemon, behind its Unix socket: one call a connection, each written anew.
//!
//! Owns connections to the daemon, deadlines on them, and the removal of containers that have no client left or were
//! there before this process. Decides nothing.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::call::{Call, ContainerId};
use super::containers::Presence;
use crate::visible::visible;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Removing a container with a large layer takes the longest.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Answers that are read whole; a list of containers is the largest.
const BODY_MOST: usize = 1024 * 1024;
/// Of the daemon's own words.
const MESSAGE_MOST: usize = 500;

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Nobody is there.
    #[error("the sandbox does not answer at {socket}: {why}; it is starting, or down")]
    Down {
        /// The daemon's socket.
        socket: PathBuf,
        /// The system's words.
        why: String,
    },
    /// It was there and went away, or spoke something else.
    #[error("the sandbox broke off: {0}")]
    Broken(String),
    /// It is there and does not answer.
    #[error("the sandbox did not answer within {} s", .0.as_secs())]
    Slow(Duration),
}

/// The daemon.
#[derive(Debug, Clone)]
pub struct Daemon {
    socket: PathBuf,
}

/// An answer whose body has not been read.
#[derive(Debug)]
pub struct Answer {
    response: Response<Incoming>,
    driver: JoinSet<()>,
}

impl Daemon {
    /// At a socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn call(&self, call: &Call, body: Vec<u8>) -> Result<Answer, Failed> {
        let (method, target) = call.target();
        self.send(method, &target, body, false).await
    }

    /// Makes a call whose connection then carries streams.
    ///
    /// # Errors
    /// Where there is no answer. An answer other than 101 carries no streams.
    pub async fn call_upgrading(&self, call: &Call) -> Result<Answer, Failed> {
        let (method, target) = call.target();
        self.send(method, &target, Vec::new(), true).await
    }

    async fn send(&self, method: Method, target: &str, body: Vec<u8>, upgrade: bool) -> Result<Answer, Failed> {
        let down = |why: String| Failed::Down { socket: self.socket.clone(), why };
        let stream = match timeout(CONNECT_WITHIN, UnixStream::connect(&self.socket)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(down(error.to_string())),
            Err(_) => return Err(down("it takes no connections".to_owned())),
        };
        let broken = |error: hyper::Error| Failed::Broken(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut driver = JoinSet::new();
        // Ends with the connection, or when the answer is dropped. Its error is also the answer's.
        driver.spawn(async move { drop(connection.with_upgrades().await) });
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().map_err(|_| Failed::Broken(format!("{target} is no target")))?;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("docker"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        }
        match timeout(ANSWER_WITHIN, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(Answer { response, driver }),
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(Failed::Slow(ANSWER_WITHIN)),
        }
    }

    /// Removes a container, running or not. One that is not there is fine.
    ///
    /// # Errors
    /// Where it may still be there.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), Failed> {
        let target = format!("/containers/{id}?force=1&v=1");
        let answer = self.send(Method::DELETE, &target, Vec::new(), false).await?;
        match answer.status() {
            // 409: its removal is under way.
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(()),
            _ => Err(Failed::Broken(answer.message().await)),
        }
    }

    /// Ids of all its containers.
    ///
    /// # Errors
    /// Where they are not to be had.
    pub async fn list(&self) -> Result<Vec<ContainerId>, Failed> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            id: String,
        }
        let answer = self.send(Method::GET, "/containers/json?all=1", Vec::new(), false).await?;
        if answer.status() != StatusCode::OK {
            return Err(Failed::Broken(answer.message().await));
        }
        let listed: Vec<Listed> = serde_json::from_slice(&answer.whole().await?)
            .map_err(|error| Failed::Broken(format!("its list of containers cannot be read: {error}")))?;
        Ok(listed.iter().filter_map(|listed| ContainerId::parse(&listed.id)).collect())
    }
}

impl Answer {
    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header of it, where it is one line of text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<HeaderValue> {
        self.response.headers().get(name).filter(|value| value.to_str().is_ok()).cloned()
    }

    /// The whole body.
    ///
    /// # Errors
    /// Where it is too large, slow or cut off.
    pub async fn whole(self) -> Result<Bytes, Failed> {
        let Self { response, driver } = self;
        let read = timeout(BODY_WITHIN, Limited::new(response.into_body(), BODY_MOST).collect()).await;
        drop(driver);
        match read {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(Failed::Broken(error.to_string())),
            Err(_) => Err(Failed::Slow(BODY_WITHIN)),
        }
    }

    /// What it says is wrong, made harmless.
    pub async fn message(self) -> String {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let status = self.status();
        let said = match self.whole().await {
            Ok(body) => serde_json::from_slice::<Message>(&body).map_or_else(|_| String::new(), |body| body.message),
            Err(_) => String::new(),
        };
        if said.is_empty() { format!("it answered {status}") } else { visible(said.as_bytes(), MESSAGE_MOST) }
    }

    /// The streams behind a 101.
    ///
    /// # Errors
    /// Where the daemon broke off.
    pub async fn upgraded(self) -> Result<Upgraded, Failed> {
        let Self { response, driver } = self;
        let upgraded = timeout(BODY_WITHIN, hyper::upgrade::on(response)).await;
        drop(driver);
        match upgraded {
            Ok(Ok(upgraded)) => Ok(upgraded),
            Ok(Err(error)) => Err(Failed::Broken(error.to_string())),
            Err(_) => Err(Failed::Slow(BODY_WITHIN)),
        }
    }

    /// The body as it comes, without end in time.
    #[must_use]
    pub fn stream(self, most: u64, permit: OwnedSemaphorePermit, presence: Option<Presence>) -> Stream {
        let Self { response, driver } = self;
        Stream { incoming: response.into_body(), left: most, presence, _permit: permit, _driver: driver }
    }
}

/// A body that is handed on while it comes.
#[derive(Debug)]
pub struct Stream {
    incoming: Incoming,
    left: u64,
    presence: Option<Presence>,
    _permit: OwnedSemaphorePermit,
    _driver: JoinSet<()>,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => {
                // Trailers say nothing that a client of Docker reads.
                let data = frame.into_data().unwrap_or_default();
                let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                match self.left.checked_sub(length) {
                    Some(left) => {
                        self.left = left;
                        // The daemon answers a wait at once and says something when it is over. Clients read no further.
                        if let Some(presence) = self.presence.as_ref().filter(|_| length > 0) {
                            presence.ended();
                        }
                        Poll::Ready(Some(Ok(Frame::data(data))))
                    }
                    None => Poll::Ready(Some(Err(Failed::Broken("its answer is too large".to_owned())))),
                }
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Failed::Broken(error.to_string())))),
        }
    }
}
