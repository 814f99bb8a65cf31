//! gRPC on a Unix socket. Whoever can open the socket is an operator: the directory's owner, group and ACL are the
//! authentication, and tier-supervisor sets them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health as HealthRpc, HealthServer, SERVICE_NAME as HEALTH};
use tonic_reflection::pb::v1::server_reflection_server::SERVICE_NAME as REFLECTION;

use crate::task::{OnEnd, Tasks};

/// Group may use it, others not.
const SOCKET_MODE: u32 = 0o660;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Bind, unlink or chmod failed.
    #[error("cannot listen on {path}; its directory must exist and belong to this service's uid")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody serves there already.
    #[error("another process serves {path}; stop it first")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The descriptors compiled into this binary are broken.
    #[error("reflection cannot be served; this is a bug")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// A bound control socket.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
}

impl Listener {
    /// Binds the socket, over one that a dead process left behind.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Socket { path: path.to_owned(), source };
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(ControlError::InUse { path: path.to_owned() });
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(SOCKET_MODE)).map_err(failed)?;
        Ok(Self { listener })
    }
}

/// Serves `routes`, health and reflection until `stop`; reflection lists `services`, the full names of what `routes` has,
/// and not the other services whose descriptors lie in the same set. Critical: a service nobody can control is stopped.
pub(super) fn serve(
    tasks: &Tasks,
    listener: Listener,
    routes: Routes,
    services: &[&str],
    health: HealthServer<impl HealthRpc>,
    stop: CancellationToken,
) -> Result<(), ControlError> {
    let listed = services.iter().chain(&[HEALTH, REFLECTION]);
    let reflection = listed
        .fold(tonic_reflection::server::Builder::configure(), |builder, name| builder.with_service_name(*name))
        .register_encoded_file_descriptor_set(assistant_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(ControlError::Reflection)?;
    let routes = routes.add_service(health).add_service(reflection);
    tasks.spawn("control", OnEnd::Critical, async move {
        tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener.listener), stop.cancelled_owned())
            .await?;
        Ok(())
    });
    Ok(())
}
