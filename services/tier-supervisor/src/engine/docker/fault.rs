//! Tells Docker's errors apart by whose fault they are.

use std::path::Path;

use bollard::errors::Error;
use service_kit::text::harmless_line;

use crate::engine::EngineError;

/// Docker's messages may repeat what a container or an image says.
const MOST_MESSAGE: usize = 400;

/// What a call was about, for an error that names it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    /// The engine as a whole.
    Engine,
    /// A network or volume that is made: its name may be taken.
    Making(&'a str),
    /// A container that is made from an image.
    MakingFrom {
        /// The container's name.
        name: &'a str,
        /// The image reference.
        image: &'a str,
    },
    /// Something that exists.
    Existing(&'a str),
}

/// Says in this crate's words what went wrong.
pub(super) fn understood(socket: &Path, call: &str, subject: Subject<'_>, error: Error) -> EngineError {
    let unreachable = |why: String| EngineError::Unreachable { socket: socket.to_owned(), why };
    match error {
        Error::DockerResponseServerError { status_code, message } => refused(call, subject, status_code, &message),
        Error::DockerStreamError { error } => refused(call, subject, 500, &error),
        Error::SocketNotFoundError(_) => unreachable("there is no socket".to_owned()),
        Error::IOError { err } => unreachable(err.to_string()),
        Error::HyperResponseError { err } => unreachable(err.to_string()),
        Error::HyperLegacyError { err } => unreachable(cause(&err)),
        Error::RequestTimeoutError => EngineError::TooSlow { call: call.to_owned(), seconds: 120 },
        other => {
            EngineError::NotUnderstood { call: call.to_owned(), why: harmless_line(&other.to_string(), MOST_MESSAGE) }
        }
    }
}

fn refused(call: &str, subject: Subject<'_>, status: u16, message: &str) -> EngineError {
    match (status, subject) {
        (404, Subject::MakingFrom { image, .. }) if message.to_ascii_lowercase().contains("no such image") => {
            EngineError::ImageMissing { image: image.to_owned() }
        }
        (404, Subject::Existing(what)) => EngineError::Vanished { what: what.to_owned() },
        (409, Subject::MakingFrom { name, .. } | Subject::Making(name)) => {
            EngineError::NameTaken { name: name.to_owned() }
        }
        _ => EngineError::Refused { call: call.to_owned(), status, message: harmless_line(message, MOST_MESSAGE) },
    }
}

/// The innermost cause: the outer ones only say "client error (Connect)".
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(subject: Subject<'_>, status_code: u16, message: &str) -> EngineError {
        let error = Error::DockerResponseServerError { status_code, message: message.to_owned() };
        understood(Path::new("/run/d.sock"), "create container a", subject, error)
    }

    #[test]
    fn faults_are_told_apart() {
        let making = Subject::MakingFrom { name: "a", image: "assistant/squid:1" };
        let missing = told(making, 404, "No such image: assistant/squid:1");
        assert!(matches!(&missing, EngineError::ImageMissing { image } if image == "assistant/squid:1"), "{missing}");
        assert!(missing.to_string().contains("deploy/up.sh"));
        let network_gone = told(making, 404, "network assistant-bus not found");
        assert!(matches!(network_gone, EngineError::Refused { status: 404, .. }), "{network_gone}");
        assert!(matches!(told(making, 409, "Conflict."), EngineError::NameTaken { .. }));
        assert!(matches!(told(Subject::Existing("a"), 404, "No such container"), EngineError::Vanished { .. }));
        let refused = told(Subject::Existing("a"), 500, "bad \u{1b}[31m thing");
        assert_eq!(refused.to_string(), "Docker refused to create container a (status 500): bad \\u{1b}[31m thing");
        assert!(!refused.is_unavailable());
        let gone =
            understood(Path::new("/run/d.sock"), "x", Subject::Engine, Error::SocketNotFoundError(String::new()));
        assert!(gone.is_unavailable());
    }
}
