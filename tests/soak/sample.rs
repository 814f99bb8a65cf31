//! One look at everything that may grow: memory, handles and threads of each part, every volume, every container's log,
//! every JetStream stream.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::harness::parts::{self, Used};
use crate::harness::place::Place;
use crate::harness::{command, page, until};

/// Where the NATS server says how it is, on its own loopback.
const NATS_MONITOR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8222);
const NATS_PAGE: &str = "/jsz?accounts=true&streams=true&consumers=true&config=true";
const NATS: &str = "assistant-nats";
/// For what was said on the bus to be in the audit store.
const DIGESTION: Duration = Duration::from_secs(60);

/// What was there at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Turns that had ended.
    pub turns: u32,
    /// By name of the container or program.
    pub parts: BTreeMap<String, Used>,
    /// When each container was started: one that was started anew begins with small figures.
    pub starts: BTreeMap<String, String>,
    /// Bytes on disk of each volume.
    pub volumes: BTreeMap<String, u64>,
    /// Bytes on disk of each container's log, its older files included.
    pub logs: BTreeMap<String, u64>,
    /// By name of the stream.
    pub streams: BTreeMap<String, Stream>,
}

/// A stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stream {
    /// Bytes it holds.
    pub bytes: u64,
    /// Messages it holds.
    pub messages: u64,
    /// Bytes it may hold; negative without a bound.
    pub most_bytes: i64,
    /// Messages that its consumers have not acknowledged.
    pub unread: u64,
}

impl Sample {
    /// Waits until what has happened is recorded, and looks.
    ///
    /// # Errors
    /// When it is not recorded in time, or a part does not answer.
    pub async fn take(turns: u32) -> anyhow::Result<Self> {
        let streams = until("everything on the bus to be read", DIGESTION, || async {
            let streams = streams().await?;
            let digested = streams.values().all(|stream| stream.unread == 0);
            Ok(digested.then_some(streams))
        })
        .await?;
        let containers = containers().await?;
        let volumes = volumes().await?;
        let log_paths: Vec<(String, PathBuf)> =
            containers.iter().map(|container| (container.name.clone(), container.log.clone())).collect();
        let (volumes, logs) = tokio::task::spawn_blocking(move || {
            let sizes = |all: Vec<(String, PathBuf)>, size: &dyn Fn(&Path) -> u64| {
                all.into_iter().map(|(name, path)| (name, size(&path))).collect::<BTreeMap<_, _>>()
            };
            (sizes(volumes, &on_disk), sizes(log_paths, &log_on_disk))
        })
        .await?;
        let starts = containers.into_iter().map(|container| (container.name, container.started)).collect();
        Ok(Self { turns, parts: parts::by_part().await?, starts, volumes, logs, streams })
    }
}

/// A container, as far as it is looked at here.
struct Container {
    name: String,
    started: String,
    log: PathBuf,
}

async fn of_the_drill(what: &str, format: &str) -> anyhow::Result<Vec<String>> {
    let list = [what, "ls", "--filter", "label=assistant.mode=drill", "--format", format];
    Ok(command::run("docker", &list).await?.ok()?.lines().map(str::to_owned).collect())
}

async fn inspect(what: &str, format: &str, names: &[String]) -> anyhow::Result<String> {
    let mut arguments = vec![what, "inspect", "--format", format];
    arguments.extend(names.iter().map(String::as_str));
    command::run("docker", &arguments).await?.ok()
}

async fn containers() -> anyhow::Result<Vec<Container>> {
    let names = of_the_drill("container", "{{.Names}}").await?;
    anyhow::ensure!(!names.is_empty(), "no container of the drill runs");
    let text = inspect("container", "{{.Name}} {{.State.StartedAt}} {{.LogPath}}", &names).await?;
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut next = || words.next().with_context(|| format!("Docker said: {line}"));
            let name = next()?.trim_start_matches('/').to_owned();
            Ok(Container { name, started: next()?.to_owned(), log: PathBuf::from(next()?) })
        })
        .collect()
}

/// Logs and stores of other people's programs that have no end: what is said of each. Our own have tests of their own.
///
/// # Errors
/// When Docker does not answer.
pub async fn endless() -> anyhow::Result<Vec<String>> {
    let names = of_the_drill("container", "{{.Names}}").await?;
    let config = ".HostConfig.LogConfig.Config";
    let format = format!(r#"{{{{.Name}}}} {{{{index {config} "max-size"}}}} {{{{index {config} "max-file"}}}}"#);
    let logs = inspect("container", &format, &names).await?;
    let bounded = |line: &&str| {
        let bounds: Vec<&str> = line.split_whitespace().skip(1).collect();
        bounds.len() == 2 && bounds.iter().all(|bound| bound.parse::<u64>().is_ok_and(|bound| bound > 0))
    };
    let endless = logs.lines().filter(|line| !bounded(line));
    let mut endless: Vec<String> = endless.map(|line| format!("the log of a container has no end: {line}")).collect();
    let arguments = inspect("container", "{{json .Config.Cmd}}", &["assistant-prometheus".to_owned()]).await?;
    if !arguments.contains("--storage.tsdb.retention.size=") {
        endless.push(format!("the store of Prometheus has no end: {arguments}"));
    }
    Ok(endless)
}

async fn volumes() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let names = of_the_drill("volume", "{{.Name}}").await?;
    anyhow::ensure!(!names.is_empty(), "the drill has no volumes");
    let text = inspect("volume", "{{.Name}} {{.Mountpoint}}", &names).await?;
    text.lines()
        .map(|line| {
            let (name, path) = line.split_once(' ').with_context(|| format!("Docker said: {line}"))?;
            Ok((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

/// What lies below a path, links not followed. What vanishes while it is looked at counts nothing.
fn on_disk(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let own = metadata.blocks().saturating_mul(512);
    if !metadata.is_dir() {
        return own;
    }
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    below.fold(own, |sum, entry| sum.saturating_add(on_disk(&entry.path())))
}

/// A log and those that were put aside, which have its name with a number.
fn log_on_disk(log: &Path) -> u64 {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return 0;
    };
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let of_log = files.filter(|file| file.file_name().to_str().is_some_and(|file| file.starts_with(name)));
    of_log.map(|file| on_disk(&file.path())).sum()
}

/// What the NATS server says of its streams.
///
/// # Errors
/// When it does not answer, or has none.
pub async fn streams() -> anyhow::Result<BTreeMap<String, Stream>> {
    let page = Place::of(NATS).await?.run(|| page::json(NATS_MONITOR, NATS_PAGE)).await?;
    let streams = read_streams(&page);
    anyhow::ensure!(!streams.is_empty(), "the NATS server names no stream: {page}");
    Ok(streams)
}

fn read_streams(page: &Value) -> BTreeMap<String, Stream> {
    let list = |value: &Value, field: &str| value.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let number = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let accounts = list(page, "account_details");
    let streams = accounts.iter().flat_map(|account| list(account, "stream_detail"));
    streams
        .filter_map(|stream| {
            let name = stream.get("name")?.as_str()?.to_owned();
            let consumers = list(&stream, "consumer_detail");
            let unread = consumers
                .iter()
                .map(|consumer| number(consumer, "/num_pending").saturating_add(number(consumer, "/num_ack_pending")))
                .sum();
            let most_bytes = stream.pointer("/config/max_bytes").and_then(Value::as_i64).unwrap_or(-1);
            let (bytes, messages) = (number(&stream, "/state/bytes"), number(&stream, "/state/messages"));
            Some((name, Stream { bytes, messages, most_bytes, unread }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    #[test]
    fn streams_of_the_monitoring_page() {
        let page = json!({"account_details": [{"name": "ASSISTANT", "stream_detail": [
            {"name": "EVENTS", "config": {"max_bytes": 1_073_741_824}, "state": {"messages": 7, "bytes": 4096},
             "consumer_detail": [{"num_ack_pending": 1, "num_pending": 2}, {"num_ack_pending": 0, "num_pending": 4}]},
            {"name": "BARE", "config": {"max_bytes": -1}, "state": {"messages": 0, "bytes": 0}}
        ]}]});
        let streams = read_streams(&page);
        assert_eq!(streams["EVENTS"], Stream { bytes: 4096, messages: 7, most_bytes: 1 << 30, unread: 7 });
        assert_eq!(streams["BARE"].most_bytes, -1);
        assert!(read_streams(&json!({})).is_empty());
    }

    #[test]
    fn files_below_a_path_and_logs_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::write(directory.path().join(name), vec![1; 64 << 10]).unwrap();
        let before = on_disk(directory.path());
        file("x-json.log");
        let one = on_disk(directory.path());
        assert!(one >= before + (64 << 10), "{before} and then {one}");
        file("x-json.log.1");
        file("other");
        std::os::unix::fs::symlink("/usr", directory.path().join("link")).unwrap();
        let log = log_on_disk(&directory.path().join("x-json.log"));
        assert!((128 << 10..192 << 10).contains(&log), "two files and not the third: {log}");
        assert!(on_disk(directory.path()) < 1 << 20, "a link is not followed");
        assert_eq!(on_disk(Path::new("/nonexistent")), 0);
    }
}
