//! The life of a program that serves until it is told to stop.

use std::future::{Future, pending};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs `serve` on one thread. SIGTERM or SIGINT cancels its token, and what it is doing then is finished.
///
/// # Errors
/// When there is no runtime or no signal to be had, and what `serve` says.
pub fn until_told<F, R>(serve: F) -> anyhow::Result<()>
where
    F: FnOnce(CancellationToken) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("cannot receive SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot receive SIGINT")?;
        let told = async {
            // Both are cancel-safe; the first ends the wait.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
            // Keeps the select below waiting for `serve` to finish its work.
            pending::<()>().await;
        };
        tokio::select! {
            result = serve(stop.clone()) => result,
            () = told => Ok(()),
        }
    })
}
