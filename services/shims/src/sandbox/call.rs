//! The calls of the Docker API that exist here, read from a request line into a closed type and written anew from it.
//!
//! Owns paths and queries. Knows neither bodies nor which containers there are.

mod query;

use std::fmt;

use http::Method;

use self::query::Query;
use super::refusal::{Operation, Reason, Refused};
use crate::visible::visible;

/// The oldest API that is spoken: the first of engine 20.10's that has every field we write.
const MINOR_LEAST: u16 = 40;
/// The newest that has been read for what its fields mean.
const MINOR_MOST: u16 = 52;

/// `/v1.<minor>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version(u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1.{}", self.0)
    }
}

/// A container's full id, 64 hex digits in lower case. Names and short ids are not accepted: they could mean another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Only a full id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let right = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        right.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Until when a wait lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Also where nothing was said.
    NotRunning,
    /// `docker run`
    NextExit,
    /// `docker run --rm`
    Removed,
}

/// Which part of the logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    follow: bool,
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    /// Seconds since 1970, with an optional fraction; checked text.
    since: Option<String>,
    until: Option<String>,
    /// `None` is all.
    tail: Option<u32>,
}

/// Which streams an attachment carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    stream: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    logs: bool,
}

/// Signals that a client forwards or a person sends.
const SIGNALS: [(&str, u8); 10] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("PIPE", 13),
    ("TERM", 15),
    ("CONT", 18),
    ("WINCH", 28),
];

/// A call on one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `POST attach`
    Attach(Attach),
    /// `POST start`
    Start,
    /// `POST wait`
    Wait(Until),
    /// `GET logs`
    Logs(Logs),
    /// `POST kill` with the signal's name
    Kill(&'static str),
    /// `DELETE`
    Remove {
        /// Running or not.
        force: bool,
        /// Its anonymous volumes, of which it has none.
        volumes: bool,
    },
}

/// Everything that can be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Whether anybody is there, and what it speaks.
    Ping,
    /// A new container; its settings are in the body.
    Create(Version),
    /// On a container.
    On(Version, ContainerId, Action),
}

impl Action {
    /// Its name in records.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self {
            Self::Attach(_) => Operation::Attach,
            Self::Start => Operation::Start,
            Self::Wait(_) => Operation::Wait,
            Self::Logs(_) => Operation::Logs,
            Self::Kill(_) => Operation::Kill,
            Self::Remove { .. } => Operation::Remove,
        }
    }
}

impl Call {
    /// Its name in records.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self {
            Self::Ping => Operation::Ping,
            Self::Create(_) => Operation::Create,
            Self::On(_, _, action) => action.operation(),
        }
    }

    /// Reads a method and a target in origin form.
    ///
    /// # Errors
    /// Where there is no such call here.
    pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Self, Refused> {
        if !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-.:".contains(&byte)) {
            let detail = format!("the path {:?} has characters that no call here has", visible(path.as_bytes(), 120));
            return Err(Refused::new(Operation::Other, Reason::Malformed, &detail));
        }
        if path == "/_ping" && (method == Method::GET || method == Method::HEAD) {
            Query::of(Operation::Ping, query)?.finish()?;
            return Ok(Self::Ping);
        }
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let (version, segments) = match segments.as_slice() {
            [first, rest @ ..] if is_version(first) => (Some(*first), rest),
            all => (None, all),
        };
        let offered = match segments {
            ["containers", "create"] if method == Method::POST => {
                Query::of(Operation::Create, query)?.finish()?;
                Some((Operation::Create, None))
            }
            ["containers", id, "attach"] if method == Method::POST => Some(on((*id, attach(query)?))),
            ["containers", id, "start"] if method == Method::POST => {
                Query::of(Operation::Start, query)?.finish()?;
                Some(on((*id, Action::Start)))
            }
            ["containers", id, "wait"] if method == Method::POST => Some(on((*id, wait(query)?))),
            ["containers", id, "logs"] if method == Method::GET => Some(on((*id, logs(query)?))),
            ["containers", id, "kill"] if method == Method::POST => Some(on((*id, kill(query)?))),
            ["containers", id] if method == Method::DELETE => Some(on((*id, remove(query)?))),
            _ => None,
        };
        let Some((operation, action)) = offered else {
            return Err(not_offered(method, path, segments));
        };
        let version = supported(operation, version)?;
        match action {
            None => Ok(Self::Create(version)),
            Some((id, action)) => match ContainerId::parse(id) {
                Some(id) => Ok(Self::On(version, id, action)),
                None => {
                    let detail =
                        format!("{:?} is not the full id of a container of this sandbox", visible(id.as_bytes(), 80));
                    Err(Refused::new(operation, Reason::ForeignContainer, &detail))
                }
            },
        }
    }

    /// Method and target for the daemon.
    #[must_use]
    pub fn target(&self) -> (Method, String) {
        match self {
            Self::Ping => (Method::GET, "/_ping".to_owned()),
            Self::Create(version) => (Method::POST, format!("/{version}/containers/create")),
            Self::On(version, id, action) => {
                let (method, rest) = action.target();
                (method, format!("/{version}/containers/{id}{rest}"))
            }
        }
    }
}

impl Action {
    fn target(&self) -> (Method, String) {
        match self {
            Self::Attach(attach) => {
                let mut rest = "/attach?".to_owned();
                for (name, wanted) in [
                    ("stream=1&", attach.stream),
                    ("stdin=1&", attach.stdin),
                    ("stdout=1&", attach.stdout),
                    ("stderr=1&", attach.stderr),
                    ("logs=1&", attach.logs),
                ] {
                    rest.push_str(if wanted { name } else { "" });
                }
                rest.pop();
                (Method::POST, rest)
            }
            Self::Start => (Method::POST, "/start".to_owned()),
            Self::Wait(until) => {
                let until = match until {
                    Until::NotRunning => "not-running",
                    Until::NextExit => "next-exit",
                    Until::Removed => "removed",
                };
                (Method::POST, format!("/wait?condition={until}"))
            }
            Self::Logs(logs) => {
                let flag = |flag: bool| if flag { "1" } else { "0" };
                let mut rest = format!(
                    "/logs?follow={}&stdout={}&stderr={}&timestamps={}",
                    flag(logs.follow),
                    flag(logs.stdout),
                    flag(logs.stderr),
                    flag(logs.timestamps)
                );
                for (name, value) in [("since", &logs.since), ("until", &logs.until)] {
                    if let Some(value) = value {
                        rest.push_str(&format!("&{name}={value}"));
                    }
                }
                if let Some(tail) = logs.tail {
                    rest.push_str(&format!("&tail={tail}"));
                }
                (Method::GET, rest)
            }
            Self::Kill(signal) => (Method::POST, format!("/kill?signal={signal}")),
            Self::Remove { force, volumes } => {
                (Method::DELETE, format!("?force={}&v={}", u8::from(*force), u8::from(*volumes)))
            }
        }
    }
}

/// An id that is not yet known to be one, and what to do with it.
type Offered<'a> = (Operation, Option<(&'a str, Action)>);

fn on<'a>((id, action): (&'a str, Action)) -> Offered<'a> {
    (action.operation(), Some((id, action)))
}

fn is_version(segment: &str) -> bool {
    let mut bytes = segment.bytes();
    bytes.next() == Some(b'v') && bytes.next().is_some_and(|byte| byte.is_ascii_digit())
}

fn supported(operation: Operation, version: Option<&str>) -> Result<Version, Refused> {
    let wrong = |detail: String| Refused::new(operation, Reason::ApiVersion, &detail);
    let Some(text) = version else {
        return Err(wrong("calls must name the API version, as in /v1.41/...".to_owned()));
    };
    let minor =
        text.strip_prefix("v1.").filter(|minor| matches!(minor.len(), 1 | 2)).and_then(|minor| minor.parse().ok());
    match minor {
        Some(minor) if (MINOR_LEAST..=MINOR_MOST).contains(&minor) => Ok(Version(minor)),
        _ => {
            let text = visible(text.as_bytes(), 20);
            Err(wrong(format!(
                "API {text} is not supported; v1.{MINOR_LEAST} to v1.{MINOR_MOST} are (DOCKER_API_VERSION)"
            )))
        }
    }
}

fn attach(query: Option<&str>) -> Result<Action, Refused> {
    let mut query = Query::of(Operation::Attach, query)?;
    let attach = Attach {
        stream: query.flag("stream")?,
        stdin: query.flag("stdin")?,
        stdout: query.flag("stdout")?,
        stderr: query.flag("stderr")?,
        logs: query.flag("logs")?,
    };
    query.finish()?;
    if !(attach.stream || attach.logs) {
        return Err(Refused::new(
            Operation::Attach,
            Reason::Parameter,
            "attach without stream=1 or logs=1 carries nothing",
        ));
    }
    Ok(Action::Attach(attach))
}

fn wait(query: Option<&str>) -> Result<Action, Refused> {
    let mut query = Query::of(Operation::Wait, query)?;
    let until = match query.take("condition") {
        None | Some("" | "not-running") => Until::NotRunning,
        Some("next-exit") => Until::NextExit,
        Some("removed") => Until::Removed,
        Some(_) => return Err(query.wrong("condition", "not-running, next-exit or removed")),
    };
    query.finish()?;
    Ok(Action::Wait(until))
}

fn logs(query: Option<&str>) -> Result<Action, Refused> {
    let mut query = Query::of(Operation::Logs, query)?;
    let logs = Logs {
        follow: query.flag("follow")?,
        stdout: query.flag("stdout")?,
        stderr: query.flag("stderr")?,
        timestamps: query.flag("timestamps")?,
        since: query.moment("since")?,
        until: query.moment("until")?,
        tail: match query.take("tail") {
            None | Some("" | "all") => None,
            Some(text) => match text.parse() {
                Ok(lines) if text.bytes().all(|byte| byte.is_ascii_digit()) => Some(lines),
                _ => return Err(query.wrong("tail", "all or a number")),
            },
        },
    };
    query.finish()?;
    Ok(Action::Logs(logs))
}

fn kill(query: Option<&str>) -> Result<Action, Refused> {
    let mut query = Query::of(Operation::Kill, query)?;
    let signal = match query.take("signal") {
        None | Some("") => "KILL",
        Some(text) => {
            let name = text.strip_prefix("SIG").unwrap_or(text);
            let found = SIGNALS.iter().find(|(known, number)| *known == name || number.to_string() == text);
            found
                .ok_or_else(|| {
                    query.wrong("signal", "one of HUP, INT, QUIT, KILL, TERM, USR1, USR2, PIPE, CONT, WINCH")
                })?
                .0
        }
    };
    query.finish()?;
    Ok(Action::Kill(signal))
}

fn remove(query: Option<&str>) -> Result<Action, Refused> {
    let mut query = Query::of(Operation::Remove, query)?;
    let (force, volumes) = (query.flag("force")?, query.flag("v")?);
    query.finish()?;
    Ok(Action::Remove { force, volumes })
}

/// Names what was asked for, so that a record says more than "something".
fn not_offered(method: &Method, path: &str, segments: &[&str]) -> Refused {
    let (operation, why) = match segments {
        ["build" | "session" | "commit" | "grpc", ..] => (Operation::Build, "images are built by the operator only"),
        ["images", "create" | "load", ..] => (Operation::Pull, "the sandbox has one image and no way to another"),
        ["containers", _, "exec"] | ["exec", ..] => {
            (Operation::Exec, "a command is a container of its own: docker run")
        }
        ["containers", _, "archive" | "copy" | "export" | "attach", ..] => {
            (Operation::Copy, "files are shared through the workspace; streams by POST attach")
        }
        ["containers", "json"] | ["containers", _, "json" | "top" | "stats" | "changes"] => {
            (Operation::Inspect, "containers are not shown")
        }
        ["info" | "version" | "events" | "system" | "_ping", ..] => (Operation::Inspect, "the daemon is not shown"),
        ["containers", ..] => (Operation::Change, "containers are run and removed, not changed"),
        ["networks", ..] => (Operation::Network, "the sandbox has no network"),
        ["volumes", ..] => (Operation::Volume, "the workspace is the only volume"),
        ["images" | "distribution", ..] => (Operation::Image, "the sandbox has one image"),
        ["swarm" | "services" | "nodes" | "tasks" | "secrets" | "configs" | "plugins", ..] => {
            (Operation::Cluster, "there is no cluster here, nor plugins")
        }
        _ => (Operation::Other, "no such call"),
    };
    let path = visible(path.as_bytes(), 160);
    let method = visible(method.as_str().as_bytes(), 20);
    let detail =
        format!("{method} {path}: {why}; there are only ping, create, attach, start, wait, logs, kill and remove");
    Refused::new(operation, Reason::NotOffered, &detail)
}

#[cfg(test)]
mod tests;
