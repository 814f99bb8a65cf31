//! Asks a container once whether it is ready, the way its specification says.

use std::fs::OpenOptions;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::blocking;
use crate::desired::{ContainerSpec, Ready};
use crate::netns;

/// How long one question may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Why a container is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Nobody listens.
    #[error("nothing accepts a connection on {at} yet")]
    NobodyListens {
        /// Address or socket.
        at: String,
    },
    /// It answers, and says that it is not.
    #[error("it answers on {at} that it is not serving")]
    NotServing {
        /// Socket.
        at: String,
    },
    /// It does not answer like a service of ours.
    #[error("it does not answer on {at}: {why}")]
    NoAnswer {
        /// Socket.
        at: String,
        /// Why.
        why: String,
    },
    /// Its log does not say so.
    #[error("its log does not hold \"{needle}\" yet")]
    LogIsSilent {
        /// What is looked for.
        needle: String,
    },
    /// Its namespace could not be entered.
    #[error("its namespace cannot be looked at: {why}")]
    Closed {
        /// Why.
        why: String,
    },
}

/// Asks once.
pub(super) async fn ask(pid: u32, spec: &ContainerSpec) -> Result<(), NotReady> {
    match &spec.ready {
        Ready::Grpc { socket } => {
            let at = socket.display().to_string();
            match tokio::time::timeout(ANSWER_WITHIN, health(socket)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(NotReady::NoAnswer { at, why: format!("not within {} s", ANSWER_WITHIN.as_secs()) }),
            }
        }
        Ready::TcpFromVm { address, port } => {
            let at = SocketAddrV4::new(*address, *port);
            match tokio::time::timeout(ANSWER_WITHIN, tokio::net::TcpStream::connect(at)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(NotReady::NobodyListens { at: at.to_string() }),
            }
        }
        Ready::HttpInNetns { port, path } => {
            let (port, path, at) = (*port, path.clone(), format!("port {port}"));
            inside(at, move || netns::http_ok(pid, port, &path)).await
        }
        Ready::TcpInNetns { port } => {
            let (port, at) = (*port, format!("port {port}"));
            inside(at, move || netns::tcp_open(pid, port)).await
        }
        // The engine's log is asked by whoever has the engine; that it runs, too.
        Ready::LogLine { .. } | Ready::Running => Ok(()),
    }
}

async fn inside(
    at: String,
    question: impl FnOnce() -> Result<bool, netns::NetnsError> + Send + 'static,
) -> Result<(), NotReady> {
    match blocking(question).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(NotReady::NobodyListens { at }),
        Err(error) => Err(NotReady::Closed { why: error.to_string() }),
    }
}

/// `grpc.health.v1` for the server as a whole. The socket's directory belongs to the service, so a symbolic link there
/// could lead root to another socket: it is opened without following one, and only then connected to.
async fn health(socket: &Path) -> Result<(), NotReady> {
    let at = socket.display().to_string();
    let nobody = || NotReady::NobodyListens { at: at.clone() };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(socket)
        .map_err(|_| nobody())?;
    if !opened.metadata().is_ok_and(|metadata| metadata.file_type().is_socket()) {
        return Err(NotReady::NoAnswer { at, why: "that is not a socket".to_owned() });
    }
    let direct: PathBuf = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string());
    let no_answer = |why: String| NotReady::NoAnswer { at: at.clone(), why };
    let channel = Endpoint::try_from(format!("unix://{}", direct.display()))
        .map_err(|error| no_answer(error.to_string()))?
        .connect()
        .await
        .map_err(|_| nobody())?;
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest { service: String::new() })
        .await
        .map_err(|status| no_answer(service_kit::text::harmless_line(status.message(), 200)))?;
    if answer.into_inner().status() == ServingStatus::Serving { Ok(()) } else { Err(NotReady::NotServing { at }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;

    use super::*;

    #[tokio::test]
    async fn health_is_asked_of_a_socket_and_of_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        assert!(matches!(health(&socket).await, Err(NotReady::NobodyListens { .. })));
        let (reporter, service) = tonic_health::server::health_reporter();
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        let asks = async {
            reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            assert!(matches!(health(&socket).await, Err(NotReady::NotServing { .. })));
            reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
            health(&socket).await.unwrap();
            let link = dir.path().join("link.sock");
            std::os::unix::fs::symlink(&socket, &link).unwrap();
            assert!(health(&link).await.is_err(), "a link was followed");
        };
        tokio::select! {
            outcome = server => outcome.unwrap(),
            () = asks => {}
        }
    }
}
