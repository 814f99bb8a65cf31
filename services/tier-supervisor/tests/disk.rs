//! A small filesystem that fills up, with a real nats-server on it: `$ASSISTANT_NATS_SERVER_BIN` (`tests/run.sh unit` sets
//! it), or else the one on the PATH. Needs root, for the filesystem.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may panic, and says when it is skipped"
)]

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use tier_supervisor::disk::{Keeper, Sizes};
use tier_supervisor::observed::Disk;
use tier_supervisor::provision;

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
/// As the real ones, of a disk of 96 MiB.
const SIZES: Sizes = Sizes { low: 32 * MIB, enough: 40 * MIB, last: 4 * MIB, kept: 24 * MIB };

/// A filesystem in memory; gone when dropped.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"])
            .arg(directory.path())
            .status()
            .expect("mount is there");
        assert!(mounted.success(), "a filesystem could not be mounted");
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn keeper(&self) -> Keeper {
        Keeper::new(self.path().join("disk-reserve"), SIZES)
    }

    /// Writes until so much is left, or until nothing is.
    fn fill(&self, name: &str, left: u64) -> Result<(), std::io::Error> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.path().join(name))?;
        while free(self.path()) > left {
            file.write_all(&vec![1; 256 << 10])?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still have a file open.
        drop(Command::new("umount").arg("-l").arg(self.directory.path()).status());
    }
}

fn free(path: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(path).unwrap();
    found.blocks_available().saturating_mul(found.fragment_size())
}

struct Server {
    child: Child,
    ports: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[allow(clippy::disallowed_methods, reason = "which programs are at hand is the environment's to say")]
fn program() -> OsString {
    std::env::var_os("ASSISTANT_NATS_SERVER_BIN").unwrap_or_else(|| "nats-server".into())
}

impl Server {
    fn start(store: &Path) -> Self {
        let ports = tempfile::tempdir().unwrap();
        // As in production: an acknowledged message is on disk, and the streams may be larger than it.
        let config = ports.path().join("nats.conf");
        let text =
            format!("jetstream {{ store_dir: \"{}\", sync_interval: always, max_file_store: 4GB }}\n", store.display());
        std::fs::write(&config, text).unwrap();
        let child = Command::new(program())
            .arg("-c")
            .arg(&config)
            .args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"])
            .arg(ports.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is on the PATH or named by ASSISTANT_NATS_SERVER_BIN; `tests/run.sh tools` builds it");
        Self { child, ports }
    }

    /// With the streams of the stack.
    async fn jetstream(&self) -> Context {
        let file = self.ports.path().join(format!("nats-server_{}.ports", self.child.id()));
        let deadline = Instant::now() + PATIENCE;
        let url = loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
                break value["nats"][0].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "nats-server did not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let client = async_nats::ConnectOptions::new().request_timeout(Some(PATIENCE)).connect(url).await.unwrap();
        let jetstream = jetstream::new(client);
        provision::ensure(&jetstream).await.unwrap();
        jetstream
    }
}

/// Commits a record, as the services do; whether it was acknowledged.
async fn commit(jetstream: &Context) -> bool {
    let Ok(sent) = jetstream.publish("egress.denied.tasks", vec![b'x'; 32 << 10].into()).await else { return false };
    matches!(tokio::time::timeout(PATIENCE, sent).await, Ok(Ok(_)))
}

async fn recorded(jetstream: &Context) -> u64 {
    jetstream.get_stream(provision::EVENTS).await.unwrap().cached_info().state.messages
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: needs root, for a filesystem of its own");
    }
    is_root
}

#[tokio::test]
async fn the_reserve_is_there_for_the_bus_when_others_have_filled_the_disk() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::mount();
    let directories: [PathBuf; 1] = [disk.path().to_owned()];
    let mut keeper = disk.keeper();
    let server = Server::start(&disk.path().join("jetstream"));
    let jetstream = server.jetstream().await;
    let before = keeper.look(&directories).unwrap();
    assert!(before.reserved && before.disk == Disk::Enough, "{before:?}");
    assert!(commit(&jetstream).await);

    // Who writes as much as it likes is told to stop early, and the reserve stays.
    disk.fill("tier", SIZES.low - MIB).unwrap();
    let low = keeper.look(&directories).unwrap();
    assert!(low.reserved && low.disk == Disk::Low, "{low:?}");
    assert!(commit(&jetstream).await);

    // Others go on. What they left is less than the last records need: those are in the reserve.
    disk.fill("others", MIB).unwrap();
    let given_up = keeper.look(&directories).unwrap();
    assert!(!given_up.reserved && given_up.disk == Disk::Low, "{given_up:?}");
    for _ in 0..256 {
        assert!(commit(&jetstream).await, "8 MiB of records, with {} bytes free", free(disk.path()));
    }
    assert_eq!(recorded(&jetstream).await, 258);

    // With room again everything is as before.
    disk.remove("others");
    disk.remove("tier");
    let after = keeper.look(&directories).unwrap();
    assert!(after.reserved && after.disk == Disk::Enough, "{after:?}");
    assert!(commit(&jetstream).await);
}

#[tokio::test]
async fn without_it_a_full_disk_ends_the_bus_and_with_it_a_start_is_possible() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::mount();
    let directories: [PathBuf; 1] = [disk.path().to_owned()];
    let mut keeper = disk.keeper();
    let server = Server::start(&disk.path().join("jetstream"));
    let jetstream = server.jetstream().await;
    assert!(commit(&jetstream).await && commit(&jetstream).await);
    assert!(keeper.look(&directories).unwrap().reserved);

    // Faster than anybody looks: control for what the reserve is good for.
    assert!(disk.fill("others", 0).is_err(), "control: the disk is full");
    let mut acknowledged = 2;
    while commit(&jetstream).await {
        acknowledged += 1;
        assert!(acknowledged < 100, "control: a full disk takes no records");
    }
    let given_up = keeper.look(&directories).unwrap();
    assert!(!given_up.reserved && given_up.disk == Disk::Low && given_up.free > 16 * MIB, "{given_up:?}");
    assert!(!commit(&jetstream).await, "control: the server has given up storing, though there is room");

    drop(server);
    let server = Server::start(&disk.path().join("jetstream"));
    let jetstream = server.jetstream().await;
    assert_eq!(recorded(&jetstream).await, acknowledged, "nothing that was acknowledged is lost");
    assert!(commit(&jetstream).await);
}
