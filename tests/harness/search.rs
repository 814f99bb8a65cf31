//! Looks for a secret in a container, from the VM and as root: sees more than the container itself ever could.

use std::io::{Read as _, Seek as _, SeekFrom};

use super::command::run;

/// What a search of memory saw.
#[derive(Debug)]
pub struct Memory {
    /// How much was read.
    pub bytes: usize,
    /// Where it was.
    pub found: Vec<String>,
}

/// Files of a container and of its volumes that hold the secret; `without` names directories from its root.
///
/// # Errors
/// When there is no such container.
pub async fn files(container: &str, secret: &str, without: &[&str]) -> anyhow::Result<String> {
    let pid = run("docker", &["inspect", "--format", "{{.State.Pid}}", container]).await?.ok()?;
    let root = format!("/proc/{}/root", pid.trim());
    // By name: grep knows no other way to leave out a directory.
    let without: Vec<String> =
        ["proc", "sys"].iter().chain(without).map(|name| format!("--exclude-dir={name}")).collect();
    let mut arguments = vec!["-rlsaF", "--devices=skip"];
    arguments.extend(without.iter().map(String::as_str));
    arguments.extend([secret, &root]);
    Ok(run("grep", &arguments).await?.out)
}

/// Environments and arguments of a container's processes that hold the secret.
///
/// # Errors
/// When there is no such container.
pub async fn processes(container: &str, secret: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for process in ids(container).await? {
        for part in ["environ", "cmdline"] {
            // One that ended meanwhile holds nothing any more.
            let content = std::fs::read(format!("/proc/{process}/{part}")).unwrap_or_default();
            if contains(&content, secret) {
                found.push(format!("{part} of {process}"));
            }
        }
    }
    Ok(found)
}

/// Searches every writable mapping of every process of a container: a secret cannot come from elsewhere than a file
/// that was searched already.
///
/// # Errors
/// When there is no such container.
pub async fn memory(container: &str, secret: &str) -> anyhow::Result<Memory> {
    let mut memory = Memory { bytes: 0, found: Vec::new() };
    for process in ids(container).await? {
        let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
        let Ok(mut file) = std::fs::File::open(format!("/proc/{process}/mem")) else { continue };
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (Some(range), Some(mode)) = (fields.next(), fields.next()) else { continue };
            let Some((from, to)) = range.split_once('-') else { continue };
            let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else { continue };
            if !mode.starts_with("rw") {
                continue;
            }
            let mut bytes = Vec::new();
            let length = to.saturating_sub(from);
            if file.seek(SeekFrom::Start(from)).is_ok() && (&file).take(length).read_to_end(&mut bytes).is_ok() {
                memory.bytes = memory.bytes.saturating_add(bytes.len());
                if contains(&bytes, secret) {
                    memory.found.push(format!("process {process}, {line}"));
                }
            }
        }
    }
    Ok(memory)
}

async fn ids(container: &str) -> anyhow::Result<Vec<u32>> {
    let listed = run("docker", &["top", container, "-eo", "pid"]).await?.ok()?;
    Ok(listed.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    memchr::memmem::find(haystack, needle.as_bytes()).is_some()
}
