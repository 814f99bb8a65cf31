//! A gate that joins each connection byte by byte to its target. What is behind it authenticates by itself.

use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::net::TcpStream;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A target that is away closes the connection; either end may close its half.
pub(super) async fn join(mut client: TcpStream, target: SocketAddrV4) {
    if let Ok(Ok(mut target)) = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(target)).await {
        // How it ended is told to both by the way it closes.
        drop(tokio::io::copy_bidirectional(&mut client, &mut target).await);
    }
}
