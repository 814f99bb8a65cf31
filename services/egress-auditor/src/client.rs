//! The commands for a person: `trace`, `denied`, `verify`, `explain`. A gRPC client over the control socket; being allowed to open
//! the socket is the permission.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use assistant_proto::egress::egress_service_client::EgressServiceClient;
use assistant_proto::egress::{
    ExplainRequest, ListRecordsRequest, ShowTraceRequest, VerifyChainRequest, WatchDeniedRequest,
};
use assistant_proto::event::{EgressDenied, Event};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::picture;

const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks for spans that are still on their way.
const RETRY: Duration = Duration::from_millis(300);
/// A trace counts as complete when it has not grown for this long.
const SETTLED: Duration = Duration::from_millis(900);
/// Of the question, so much is repeated.
const MOST_ASKED_CHARS: usize = 300;
/// Denials shown.
const BACKLOG: u32 = 50;
/// A list of ten thousand records, each of a kilobyte.
const MOST_MESSAGE_BYTES: usize = 32 * 1024 * 1024;

async fn connect(socket: &Path) -> anyhow::Result<EgressServiceClient<Channel>> {
    let path = socket.to_str().context("the socket's path is not UTF-8")?;
    let channel = Endpoint::from_shared(format!("unix://{path}"))?
        .connect_timeout(DEADLINE)
        .connect()
        .await
        .with_context(|| {
            format!(
                "egress-auditor does not answer on {path}; is the stack up (deploy/up.sh), and may you open the socket?"
            )
        })?;
    Ok(EgressServiceClient::new(channel).max_decoding_message_size(MOST_MESSAGE_BYTES))
}

fn show(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints a trace once it is there and has stopped growing, at the latest after `wait`.
///
/// # Errors
/// When there is none by then, or the service does not answer.
pub async fn trace(socket: &Path, id: &str, wait: Duration) -> anyhow::Result<()> {
    let mut client = connect(socket).await?;
    let until = Instant::now() + wait;
    let mut found: Option<(assistant_proto::egress::ShowTraceResponse, Instant)> = None;
    loop {
        let mut request = tonic::Request::new(ShowTraceRequest { trace_id: id.to_owned() });
        request.set_timeout(DEADLINE);
        let now = Instant::now();
        match client.show_trace(request).await {
            Ok(response) => {
                let response = response.into_inner();
                let since = match &found {
                    Some((known, since)) if known.lines.len() == response.lines.len() => *since,
                    _ => now,
                };
                found = Some((response, since));
            }
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unavailable) && now < until => {}
            Err(status) => return Err(said(status)),
        }
        if let Some((response, since)) = &found
            && (now >= until || now.saturating_duration_since(*since) >= SETTLED)
        {
            return show(&picture::trace(response));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Prints the newest denials, and with `follow` each one as it happens.
///
/// # Errors
/// When the service does not answer or stops.
pub async fn denied(socket: &Path, tier: &str, follow: bool) -> anyhow::Result<()> {
    let mut client = connect(socket).await?;
    if follow {
        let request = WatchDeniedRequest { tier: tier.to_owned(), backlog: BACKLOG };
        let mut stream = client.watch_denied(request).await.map_err(said)?.into_inner();
        while let Some(response) = stream.message().await.map_err(said)? {
            if let Some(record) = response.record {
                show(&picture::denied(&record))?;
            }
        }
        anyhow::bail!("egress-auditor ended the stream")
    }
    let request = ListRecordsRequest { tier: tier.to_owned(), r#type: EgressDenied::TYPE.to_owned(), limit: BACKLOG };
    let mut records = client.list_records(request).await.map_err(said)?.into_inner().records;
    if records.is_empty() {
        return show("nothing was denied yet\n");
    }
    records.reverse();
    for record in &records {
        show(&picture::denied(record))?;
    }
    Ok(())
}

/// Verifies the chain; false when it is broken.
///
/// # Errors
/// When the service does not answer.
pub async fn verify(socket: &Path) -> anyhow::Result<bool> {
    let mut client = connect(socket).await?;
    let response = client.verify_chain(VerifyChainRequest {}).await.map_err(said)?.into_inner();
    show(&picture::verified(&response))?;
    Ok(response.intact)
}

/// Explains a request; false when it is denied.
///
/// # Errors
/// When the service does not answer, or knows no such tier or container.
pub async fn explain(socket: &Path, request: ExplainRequest, json: bool) -> anyhow::Result<bool> {
    let mut client = connect(socket).await?;
    let asked = format!("{} {}", request.method, request.url);
    let response = client.explain(request).await.map_err(said)?.into_inner();
    let asked = service_kit::text::harmless_line(&asked, MOST_ASKED_CHARS);
    show(&if json { picture::explained_json(&response) } else { picture::explained(&asked, &response) })?;
    Ok(response.allowed)
}

/// What the service said, without the wrapping of the protocol.
fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", service_kit::text::harmless_line(status.message(), 500))
}
