//! Receives Squid's live feed: the same lines as in the file, over TCP, the moment they are written. Squid drops lines
//! rather than wait for a slow reader, so the feed is a signal and a second witness, never the truth.
//!
//! Only Squid's address is believed; who else connects is hung up on and counted as a denial.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use assistant_proto::event::Scope;
use service_kit::task::{OnEnd, Tasks};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::denials::{Denials, What, Who};
use crate::line::MOST_LINE_BYTES;

/// Squid holds one connection per log; after a reconfigure the old one may linger.
const MOST_CONNECTIONS: usize = 4;
const CHUNK: usize = 64 * 1024;

/// Accepts the feed until `draining` and hands each line, without its line feed, to `lines`.
///
/// # Errors
/// When the listener fails.
pub async fn receive(
    listener: Arc<TcpListener>,
    squid: Ipv4Addr,
    lines: mpsc::Sender<Vec<u8>>,
    denials: Denials,
    tasks: Tasks,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let (stream, source) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = draining.cancelled() => return Ok(()),
        };
        if source.ip() != IpAddr::V4(squid) {
            let stranger = Who { tier: Scope::Stack, principal: None };
            denials.note(stranger, What::FeedIntruder, source.ip().to_string(), source.ip());
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("Squid opened more feed connections than it has logs; the new one is closed");
            continue;
        };
        let (lines, draining) = (lines.clone(), draining.clone());
        tasks.spawn("squid-feed-connection", OnEnd::Expected, async move {
            let _held_until_the_end = place;
            tokio::select! {
                outcome = split(stream, &lines) => outcome?,
                () = draining.cancelled() => {}
            }
            Ok(())
        });
    }
}

/// No deadline: a Squid that has nothing to say is silent for hours. The connection count is what bounds it.
async fn split(mut stream: impl AsyncRead + Unpin, lines: &mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let mut buffer = vec![0_u8; CHUNK];
    let mut line = Vec::new();
    let mut skipping = false;
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        for &byte in buffer.get(..length).unwrap_or_default() {
            if byte == b'\n' {
                let complete = std::mem::take(&mut line);
                // A line too long is left to the file, which says so.
                if !std::mem::take(&mut skipping) && lines.send(complete).await.is_err() {
                    return Ok(());
                }
            } else if skipping || line.len() >= MOST_LINE_BYTES {
                skipping = true;
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[tokio::test]
    async fn lines_are_split_and_bounded() {
        let (sender, mut lines) = mpsc::channel(16);
        let mut input = b"a\n\nbc\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', MOST_LINE_BYTES + CHUNK));
        input.extend_from_slice(b"\nd\nhalf");
        split(input.as_slice(), &sender).await.unwrap();
        drop(sender);
        let mut got = Vec::new();
        while let Some(line) = lines.recv().await {
            got.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(got, ["a", "", "bc", "d"]);
    }
}
