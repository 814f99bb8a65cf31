//! The streams of one attached container, carried both ways until one side is through.

use std::io;
use std::os::fd::AsFd as _;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

use super::containers::Presence;

/// An attachment of which the client has been told.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) client: OnUpgrade,
    pub(crate) daemon: Upgraded,
    pub(crate) presence: Presence,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Attachment {
    /// Carries until the daemon has nothing more to say. That the client has nothing more to say only ends the
    /// container's standard input.
    pub(crate) async fn carry(self) {
        let Self { client, daemon, presence, permit } = self;
        let Ok(client) = client.await else { return };
        let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
        let (mut from_daemon, mut to_daemon) = tokio::io::split(TokioIo::new(daemon));
        let input = async {
            // A container that reads no more is no reason to end its output.
            drop(tokio::io::copy(&mut from_client, &mut to_daemon).await);
            drop(to_daemon.shutdown().await);
            std::future::pending::<()>().await;
        };
        let output = async {
            drop(tokio::io::copy(&mut from_daemon, &mut to_client).await);
            drop(to_client.shutdown().await);
        };
        tokio::select! {
            () = output => {}
            () = input => {}
        }
        drop((presence, permit));
    }
}

/// Sees a peer close *both* directions, which ends its claim to whatever it waits for. Reading cannot tell that from a
/// peer that has only sent all it had.
#[derive(Debug)]
pub(crate) struct HangUp(UnixStream);

impl HangUp {
    /// Watches by a descriptor of its own, so that the stream's readiness stays the stream's.
    ///
    /// # Errors
    /// Where there are no more descriptors.
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let descriptor = stream.as_fd().try_clone_to_owned()?;
        Ok(Self(UnixStream::from_std(descriptor.into())?))
    }

    /// Returns when the peer is gone.
    pub(crate) async fn wait(&self) {
        while let Ok(ready) = self.0.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() {
                return;
            }
            // Writes nothing: forgets that it could, so that each round needs a change at the socket. That the peer
            // closed is never forgotten.
            drop(self.0.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into())));
        }
    }
}
