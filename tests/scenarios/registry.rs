//! A real registry on loopback, with images made for it. Owns its process, its storage, and every image of it that lies in
//! the engine: all are gone when it is dropped.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use assistant_tests::harness::command::{run, run_within};
use assistant_tests::harness::until;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Debian's `docker-registry`, storing into a directory of its own.
#[derive(Debug)]
pub(crate) struct Registry {
    process: Option<Child>,
    port: u16,
    dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one on a free port, and waits until it answers.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut registry = Self { process: None, port, dir: tempfile::tempdir()? };
        let config = json!({
            "version": 0.1, "log": {"level": "warn"}, "http": {"addr": format!("127.0.0.1:{port}")},
            "storage": {"filesystem": {"rootdirectory": registry.dir.path().join("storage")}},
        });
        std::fs::write(registry.dir.path().join("config.yml"), config.to_string())?;
        registry.answer().await?;
        Ok(registry)
    }

    /// Answers, again after [`Registry::silence`].
    pub(crate) async fn answer(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.dir.path().join("log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("there is no docker-registry on the PATH; tests/run.sh system puts it there")?;
        self.process = Some(child);
        let url = self.url("");
        until("the registry", Duration::from_secs(20), || async {
            Ok((run("curl", &["-sf", "--noproxy", "*", &url]).await?.status == 0).then_some(()))
        })
        .await
    }

    /// Ends the process; nothing listens afterwards.
    pub(crate) fn silence(&mut self) {
        if let Some(mut process) = self.process.take() {
            let ended = process.kill().and_then(|()| process.wait());
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
    }

    /// `127.0.0.1:<port>`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The file of the largest thing that it stores: a layer.
    pub(crate) fn largest_blob(&self) -> anyhow::Result<PathBuf> {
        let mut found = None;
        for first in std::fs::read_dir(self.dir.path().join("storage/docker/registry/v2/blobs/sha256"))? {
            for blob in std::fs::read_dir(first?.path())? {
                let path = blob?.path().join("data");
                found = found.max(Some((std::fs::metadata(&path)?.len(), path)));
            }
        }
        found.map(|(_, path)| path).context("the registry holds nothing")
    }

    fn url(&self, rest: &str) -> String {
        format!("http://{}/v2/{rest}", self.host())
    }

    /// Puts an image with one static program under `<repository>:<tag>`; another `marker` makes it another image. Gives its
    /// digest. The engine forgets it again.
    pub(crate) async fn publish(&self, name: &str, program: &str, path: &str, marker: &str) -> anyhow::Result<String> {
        let context = tempfile::tempdir()?;
        std::fs::copy(program, context.path().join("program"))?;
        std::fs::write(
            context.path().join("Dockerfile"),
            format!("FROM scratch\nCOPY program {path}\nLABEL marker={marker}\n"),
        )?;
        let reference = format!("{}/{name}", self.host());
        let directory = context.path().to_str().context("a path that is no text")?;
        run("env", &["DOCKER_BUILDKIT=0", "docker", "build", "-q", "-t", &reference, directory]).await?.ok()?;
        run("docker", &["push", "-q", &reference]).await?.ok()?;
        let digests =
            run("docker", &["image", "inspect", "--format", "{{json .RepoDigests}}", &reference]).await?.ok()?;
        let digests: Vec<String> = serde_json::from_str(&digests)?;
        let digest = digests
            .iter()
            .find_map(|digest| digest.strip_prefix(&format!("{}@", reference.rsplit_once(':')?.0)))
            .with_context(|| format!("no digest among {digests:?}"))?
            .to_owned();
        self.forget().await?;
        Ok(digest)
    }

    /// Removes every image of this registry from the engine, also what was made of one.
    pub(crate) async fn forget(&self) -> anyhow::Result<()> {
        for image in self.images() {
            run("docker", &["image", "rm", "-f", &image]).await?.ok()?;
        }
        Ok(())
    }

    /// What the engine holds of this registry, derived images first.
    fn images(&self) -> Vec<String> {
        let list = |arguments: &[&str]| -> Vec<String> {
            let output = Command::new("docker").args(["image", "ls"]).args(arguments).output();
            let text = output.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
        };
        let label = r#"{{index .Config.Labels "assistant.pulled"}}"#;
        let mut images: Vec<String> =
            list(&["--filter", "label=assistant.pulled", "--format", "{{.Repository}}:{{.Tag}}"])
                .into_iter()
                .filter(|image| {
                    let output = Command::new("docker").args(["image", "inspect", "--format", label, image]).output();
                    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).starts_with(&self.host()))
                })
                .collect();
        for format in ["{{.Repository}}:{{.Tag}}", "{{.Repository}}@{{.Digest}}"] {
            let all = list(&["--digests", "--format", format]);
            images
                .extend(all.into_iter().filter(|image| image.starts_with(&self.host()) && !image.ends_with("<none>")));
        }
        images.dedup();
        images
    }

    /// To the byte, since its hash is its name.
    async fn manifest(&self, repository: &str, tag: &str) -> anyhow::Result<String> {
        self.text(&format!("{repository}/manifests/{tag}")).await
    }

    async fn text(&self, path: &str) -> anyhow::Result<String> {
        let accept = format!("Accept: {MANIFEST}");
        run("curl", &["-sf", "--noproxy", "*", "-H", &accept, &self.url(path)]).await?.ok()
    }

    /// Puts a copy of an image, said to be for another architecture, under `<repository>:<tag>`. Gives its digest.
    pub(crate) async fn publish_for(
        &self,
        architecture: &str,
        repository: &str,
        from: &str,
        tag: &str,
    ) -> anyhow::Result<String> {
        let mut manifest: Value = serde_json::from_str(&self.manifest(repository, from).await?)?;
        let config = manifest["config"]["digest"].as_str().context("no configuration")?;
        let mut config: Value = serde_json::from_str(&self.text(&format!("{repository}/blobs/{config}")).await?)?;
        config["architecture"] = json!(architecture);
        let config = config.to_string();
        let digest = sha256(&config).await?;
        let headers = run(
            "curl",
            &["-sf", "--noproxy", "*", "-D", "-", "-X", "POST", &self.url(&format!("{repository}/blobs/uploads/"))],
        )
        .await?
        .ok()?;
        let location = headers
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .context("the registry names no place for a blob")?
            .trim();
        let joint = if location.contains('?') { '&' } else { '?' };
        self.put(&format!("{location}{joint}digest={digest}"), "application/octet-stream", &config).await?;
        manifest["config"]["digest"] = json!(digest);
        manifest["config"]["size"] = json!(config.len());
        self.put(&self.url(&format!("{repository}/manifests/{tag}")), MANIFEST, &manifest.to_string()).await?;
        sha256(&manifest.to_string()).await
    }

    /// Lets another tag lead to what `from` leads to. Gives its digest.
    pub(crate) async fn retag(&self, repository: &str, from: &str, tag: &str) -> anyhow::Result<String> {
        let text = self.manifest(repository, from).await?;
        self.put(&self.url(&format!("{repository}/manifests/{tag}")), MANIFEST, &text).await?;
        sha256(&text).await
    }

    /// Puts a list of images for several architectures under `<repository>:<tag>`. Gives the digest of the list.
    pub(crate) async fn publish_list(
        &self,
        repository: &str,
        tag: &str,
        images: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let mut manifests = Vec::new();
        for (architecture, tag) in images {
            let text = self.manifest(repository, tag).await?;
            manifests.push(json!({"mediaType": MANIFEST, "size": text.len(), "digest": sha256(&text).await?,
                "platform": {"architecture": architecture, "os": "linux"}}));
        }
        let list = json!({"schemaVersion": 2, "mediaType": LIST, "manifests": manifests}).to_string();
        self.put(&self.url(&format!("{repository}/manifests/{tag}")), LIST, &list).await?;
        sha256(&list).await
    }

    async fn put(&self, url: &str, kind: &str, body: &str) -> anyhow::Result<()> {
        let kind = format!("Content-Type: {kind}");
        let arguments = ["-sSf", "--noproxy", "*", "-X", "PUT", "-H", &kind, "--data-binary", "@-", url];
        run_within(Duration::from_secs(20), "curl", &arguments, Some(body)).await?.ok()?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.silence();
        for image in self.images() {
            let removed = Command::new("docker").args(["image", "rm", "-f", &image]).output();
            debug_assert!(removed.is_ok(), "{removed:?}");
        }
    }
}

async fn sha256(text: &str) -> anyhow::Result<String> {
    let sum = run_within(Duration::from_secs(20), "sha256sum", &[], Some(text)).await?.ok()?;
    Ok(format!("sha256:{}", sum.split(' ').next().unwrap_or_default()))
}
