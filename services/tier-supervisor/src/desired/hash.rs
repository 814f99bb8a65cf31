//! The hash by which a container is recognised as being what is wanted.

use aws_lc_rs::digest::{Context, SHA256};

use super::{Confinement, ContainerSpec, Content, MountSource, Ready};

/// Part of every hash. Raised when the engine begins to create containers differently from equal specifications.
const FORMAT: u64 = 1;
/// Part of every hash, too: a container lives with the system calls that it was made with.
const SYSTEM_CALLS: &str = include_str!("../engine/docker/seccomp.json");
/// The same for a rootless daemon.
const ROOTLESS_SYSTEM_CALLS: &str = include_str!("../engine/docker/seccomp-rootless.json");

/// Feeds values with their length and a field name, so that no two different specifications feed the same bytes.
struct Feed(Context);

impl Feed {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, field: &str, text: &str) {
        self.bytes(field.as_bytes());
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, field: &str, number: impl Into<u64>) {
        self.bytes(field.as_bytes());
        self.0.update(&number.into().to_be_bytes());
    }

    fn count(&mut self, field: &str, count: usize) {
        self.number(field, u64::try_from(count).unwrap_or(u64::MAX));
    }

    fn texts(&mut self, field: &str, texts: &[String]) {
        self.count(field, texts.len());
        for text in texts {
            self.bytes(text.as_bytes());
        }
    }

    fn pairs(&mut self, field: &str, pairs: &[(String, String)]) {
        self.count(field, pairs.len());
        for (name, value) in pairs {
            self.text(name, value);
        }
    }
}

pub(super) fn spec_hash(spec: &ContainerSpec) -> String {
    // Taken apart without `..`: a new field that is not hashed does not compile.
    let ContainerSpec {
        name,
        role,
        tier,
        image,
        entrypoint,
        command,
        uid,
        gid,
        env,
        mounts,
        tmpfs,
        networks,
        dns,
        sysctls,
        cap_add,
        confinement,
        limits,
        log,
        ready,
        files,
        working_dir,
        inert_default_route,
        control,
        pages,
    } = spec;
    let mut feed = Feed(Context::new(&SHA256));
    feed.number("format", FORMAT);
    match confinement {
        Confinement::Standard => feed.text("system calls", SYSTEM_CALLS),
        Confinement::RootlessDaemon => feed.text("rootless daemon", ROOTLESS_SYSTEM_CALLS),
    }
    feed.text("name", name);
    feed.text("role", role.as_str());
    feed.text("tier", tier.as_ref().map_or("", |tier| tier.as_str()));
    feed.text("image", image);
    feed.number("entrypoint given", entrypoint.is_some());
    feed.texts("entrypoint", entrypoint.as_deref().unwrap_or_default());
    feed.texts("command", command);
    feed.number("uid", *uid);
    feed.number("gid", *gid);
    feed.count("env", env.len());
    for variable in env {
        feed.text(&variable.name, &variable.value);
    }
    feed.count("mounts", mounts.len());
    for mount in mounts {
        match &mount.source {
            MountSource::Bind(path) => feed.text("bind", &path.to_string_lossy()),
            MountSource::Volume(volume) => feed.text("volume", volume),
        }
        feed.text("target", &mount.target);
        feed.number("read-only", mount.read_only);
    }
    feed.pairs("tmpfs", tmpfs);
    feed.count("networks", networks.len());
    for attachment in networks {
        feed.text(&attachment.network, &attachment.address.to_string());
    }
    feed.text("dns", &dns.map(|address| address.to_string()).unwrap_or_default());
    feed.pairs("sysctls", sysctls);
    feed.texts("capabilities", cap_add);
    feed.number("memory", limits.memory_bytes);
    feed.number("pids", limits.pids);
    feed.number("cpus", limits.nano_cpus);
    feed.number("log size", log.max_size_bytes);
    feed.number("log files", log.max_files);
    match ready {
        Ready::Grpc { socket } => feed.text("ready grpc", &socket.to_string_lossy()),
        Ready::TcpFromVm { address, port } => feed.text("ready tcp", &format!("{address}:{port}")),
        Ready::HttpInNetns { port, path } => feed.text("ready http inside", &format!("{port}{path}")),
        Ready::TcpInNetns { port } => feed.number("ready tcp inside", *port),
        Ready::LogLine { needle } => feed.text("ready log", needle),
        Ready::Running => feed.text("ready", "running"),
    }
    feed.count("files", files.len());
    for file in files {
        feed.text("file", &file.path.to_string_lossy());
        feed.number("uid", file.uid);
        feed.number("gid", file.gid);
        feed.number("mode", file.mode);
        feed.number("secret", file.secret);
        match &file.content {
            Content::Inline(bytes) => feed.bytes(bytes),
            Content::CopyOf { source, sha256 } => feed.text(&source.to_string_lossy(), sha256),
        }
    }
    feed.text("working directory", working_dir.as_deref().unwrap_or_default());
    feed.number("inert route", *inert_default_route);
    feed.text("control", &control.as_ref().map(|held| format!("{held:?}")).unwrap_or_default());
    feed.text("pages", &pages.as_ref().map(|held| format!("{held:?}")).unwrap_or_default());
    hex::encode(feed.0.finish().as_ref())
}
