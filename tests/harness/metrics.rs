//! What Prometheus holds, asked from its own network namespace: nobody else but Grafana may.

use anyhow::Context as _;
use assistant_proto::config::PROMETHEUS_PORT;
use serde_json::Value;

use super::probe;

const CONTAINER: &str = "assistant-prometheus";

/// The value of a query that gives one series; none where it gives none.
///
/// # Errors
/// When Prometheus does not answer, or with more than one series.
pub async fn value(query: &str) -> anyhow::Result<Option<f64>> {
    let addresses = probe::addresses(CONTAINER).await?;
    let (_, address) = addresses.first().context("Prometheus is on no network")?;
    let url = format!("http://{address}:{PROMETHEUS_PORT}/api/v1/query");
    let query = format!("query={query}");
    let said = probe::joined(CONTAINER, &["curl", "-sSG", "-m", "10", "--data-urlencode", &query, &url]).await?.ok()?;
    let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let series = answer.pointer("/data/result").and_then(Value::as_array).with_context(|| said.clone())?;
    anyhow::ensure!(series.len() <= 1, "more than one series: {said}");
    let Some(series) = series.first() else { return Ok(None) };
    let text = series.pointer("/value/1").and_then(Value::as_str).with_context(|| said.clone())?;
    Ok(Some(text.parse()?))
}
