//! The accept loop of the programs that serve: so many connections at once, each a task, until it is time to stop.
//!
//! Not here: what a connection is served with, and for how long.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// After a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections come from.
pub(crate) trait Listen {
    /// A connection.
    type Stream: Send + 'static;

    /// The next one. Cancel-safe.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves at most `most` connections at once, until `stop`; whoever comes above that waits. Those that are open at the end
/// are cut. What goes wrong is said to `note`.
pub(crate) async fn serve<L, F>(
    listener: L,
    most: usize,
    stop: CancellationToken,
    note: fn(&str),
    connection: impl Fn(L::Stream) -> F,
) where
    L: Listen,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        // `next` and `join_next` are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    note(&format!("a connection failed: {error}"));
                }
            }
            accepted = listener.next(), if connections.len() < most => match accepted {
                Ok(stream) => {
                    connections.spawn(connection(stream));
                }
                Err(error) => {
                    // Out of descriptors, or the peer is gone already; neither is helped by spinning.
                    note(&format!("cannot accept: {error}"));
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn hears(stream: &mut UnixStream) -> Option<u8> {
        stream.read_u8().await.ok()
    }

    #[tokio::test]
    async fn who_is_above_the_limit_waits_and_who_is_there_at_the_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        // Greets, and stays until its peer says something.
        let connection = |mut stream: UnixStream| async move {
            stream.write_u8(1).await.unwrap();
            drop(stream.read_u8().await);
        };
        let clients = async {
            let mut first = UnixStream::connect(&path).await.unwrap();
            assert_eq!(hears(&mut first).await, Some(1));
            let mut second = UnixStream::connect(&path).await.unwrap();
            let early = tokio::time::timeout(Duration::from_millis(50), hears(&mut second)).await;
            assert!(early.is_err(), "the second is served beside the first");
            drop(first);
            assert_eq!(hears(&mut second).await, Some(1));
            stop.cancel();
            assert_eq!(hears(&mut second).await, None);
        };
        let done = async { tokio::join!(serve(listener, 1, stop.clone(), |_| {}, connection), clients) };
        tokio::time::timeout(Duration::from_secs(20), done).await.unwrap();
    }
}
