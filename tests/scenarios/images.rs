//! External images, pulled for real from a registry on loopback by the scripts that `deploy/up.sh` uses. Needs no stack,
//! and leaves nothing behind: neither images, nor a line in the project's own lock file.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod registry;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use assistant_tests::harness::command::{Output, run, run_within};
use assistant_tests::harness::root;
use registry::Registry;
use serde_json::{Value, json};

/// An image that can only be pulled.
const WHOLE: &str = "registry-test";
const REPOSITORY: &str = "test/program";
const PROGRAM: &str = "/usr/local/bin/nats-server";
const ABSENT: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";

/// A registry, and a list of external images and a lock of its own.
struct World {
    registry: Registry,
    dir: tempfile::TempDir,
    program: String,
}

impl World {
    /// `repository:tag` is both the whole image and, when asked for, the one that nats is taken from.
    async fn new() -> Self {
        let registry = Registry::start().await.unwrap();
        let program =
            run("sh", &["-c", "command -v nats-server"]).await.unwrap().ok().expect("tests/run.sh system builds it");
        let world = Self { registry, dir: tempfile::tempdir().unwrap(), program: program.trim().to_owned() };
        std::fs::write(world.lock(), "# A head that stays.\n").unwrap();
        world.external(|_| {});
        world
    }

    fn lock(&self) -> PathBuf {
        self.dir.path().join("images.lock")
    }

    fn locked(&self) -> String {
        std::fs::read_to_string(self.lock()).unwrap()
    }

    fn reference(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.registry.host())
    }

    /// The line that the lock must hold.
    fn line(&self, digest: &str) -> String {
        format!("# A head that stays.\n{WHOLE} {} {digest}\n", self.reference("1.0"))
    }

    /// Writes the list of external images, with changes.
    fn external(&self, change: impl FnOnce(&mut Value)) {
        let mut images = json!({
            WHOLE: {
                "reference": self.reference("1.0"), "drop_in": true, "user": "8709:8700", "directories": "var/lib/assistant",
                "prove": {"run": [PROGRAM, "--version"], "says": "nats-server"},
            },
            "nats": {
                "reference": self.reference("2.15.2-test"), "drop_in": true, "take": {PROGRAM: "bin/nats-server"},
                "prove": {"run": [PROGRAM, "--version"], "says": "nats-server"},
            },
        });
        change(&mut images);
        std::fs::write(self.dir.path().join("external.json"), images.to_string()).unwrap();
    }

    async fn publish(&self, tag: &str, marker: &str) -> String {
        self.registry.publish(&format!("{REPOSITORY}:{tag}"), &self.program, PROGRAM, marker).await.unwrap()
    }

    /// `deploy/images.sh`, in a place where nothing was compiled.
    async fn images(&self, policy: &str, arguments: &[&str]) -> Output {
        let cache = format!("XDG_CACHE_HOME={}", self.dir.path().join("cache").display());
        self.images_with(&cache, policy, arguments).await
    }

    async fn images_with(&self, cache: &str, policy: &str, arguments: &[&str]) -> Output {
        let script = root().join("deploy/images.sh");
        let settings = [
            format!("ASSISTANT_EXTERNAL_IMAGES={}", self.dir.path().join("external.json").display()),
            format!("ASSISTANT_IMAGES_LOCK={}", self.lock().display()),
            format!("ASSISTANT_IMAGES={policy}"),
            cache.to_owned(),
        ];
        let mut all: Vec<&str> = settings.iter().map(String::as_str).collect();
        all.push(script.to_str().unwrap());
        all.extend_from_slice(arguments);
        run_within(Duration::from_secs(300), "env", &all, None).await.unwrap()
    }

    /// The local image that a successful `get` names.
    async fn pulled(&self, name: &str) -> String {
        let text = self.images("pull", &["get", name]).await.ok().unwrap();
        image_in(&text, name)
    }
}

fn image_in(text: &str, name: &str) -> String {
    let start = format!("{name}: pull ");
    text.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("no image in {text}")).to_owned()
}

async fn is_here(image: &str) -> bool {
    run("docker", &["image", "inspect", image]).await.unwrap().status == 0
}

async fn inspect(image: &str, what: &str) -> String {
    run("docker", &["image", "inspect", "--format", what, image]).await.unwrap().ok().unwrap().trim().to_owned()
}

fn refused(output: &Output, parts: &[&str]) {
    assert_ne!(output.status, 0, "{}", output.all());
    for part in parts {
        assert!(output.all().contains(part), "{part:?} is missing in: {}", output.all());
    }
}

#[tokio::test]
async fn the_first_pull_locks_and_later_starts_need_no_registry() {
    let mut world = World::new().await;
    let digest = world.publish("1.0", "first").await;
    let image = world.pulled(WHOLE).await;
    assert_eq!(world.locked(), world.line(&digest));
    let source = format!("{}@{digest}", world.reference("1.0").rsplit_once(':').unwrap().0);
    assert_eq!(inspect(&image, r#"{{index .Config.Labels "assistant.pulled"}}"#).await, source);

    world.registry.silence();
    assert_eq!(world.pulled(WHOLE).await, image, "from what is there");
    run("docker", &["image", "rm", &image]).await.unwrap().ok().unwrap();
    assert_eq!(world.pulled(WHOLE).await, image, "made again from the pulled image");
    // It may only be pulled, but what is here needs no pulling.
    let built = world.images("build", &["get", WHOLE]).await.ok().unwrap();
    assert_eq!(image_in(&built, WHOLE), image);

    world.registry.forget().await.unwrap();
    for policy in ["pull", "auto"] {
        let output = world.images(policy, &["get", WHOLE]).await;
        refused(&output, &["cannot be had", &world.registry.host(), "does not answer", "What to do"]);
    }
    assert_eq!(world.locked(), world.line(&digest));
    // The control: it was the registry.
    world.registry.answer().await.unwrap();
    assert_eq!(world.pulled(WHOLE).await, image);
}

#[tokio::test]
async fn a_tag_that_moved_is_refused_until_it_is_accepted() {
    let world = World::new().await;
    let old = world.publish("1.0", "old").await;
    let image = world.pulled(WHOLE).await;
    world.images("auto", &["check"]).await.ok().unwrap();
    world.registry.forget().await.unwrap();
    let new = world.publish("1.0", "new").await;
    assert_ne!(old, new);

    for policy in ["auto", "pull"] {
        let output = world.images(policy, &["get", WHOLE]).await;
        refused(&output, &["refused", &old, &new, &world.reference("1.0"), "deploy/images.sh update registry-test"]);
    }
    refused(&world.images("auto", &["check"]).await, &["MOVED", &old, &new]);
    assert_eq!(world.locked(), world.line(&old), "nothing was accepted");
    assert!(!is_here(&image).await);

    let output = world.images("auto", &["update", WHOLE]).await.ok().unwrap();
    assert!(output.contains(&old) && output.contains(&new), "{output}");
    assert_eq!(world.locked(), world.line(&new));
    assert_ne!(world.pulled(WHOLE).await, image);
    world.images("auto", &["check"]).await.ok().unwrap();
}

#[tokio::test]
async fn a_moved_tag_does_not_touch_what_is_here() {
    let world = World::new().await;
    let digest = world.publish("1.0", "first").await;
    world.publish("2.0", "second").await;
    let image = world.pulled(WHOLE).await;
    let other = world.registry.retag(REPOSITORY, "2.0", "1.0").await.unwrap();
    assert_ne!(other, digest);
    refused(&world.images("auto", &["check"]).await, &["MOVED", &digest, &other]);
    assert_eq!(world.pulled(WHOLE).await, image);
    assert_eq!(world.locked(), world.line(&digest));
}

#[tokio::test]
async fn a_lock_that_was_edited_is_refused() {
    let world = World::new().await;
    let digest = world.publish("1.0", "first").await;
    std::fs::write(world.lock(), world.line(ABSENT)).unwrap();
    refused(&world.images("auto", &["get", WHOLE]).await, &["refused", ABSENT, &digest, "images.lock", "What to do"]);
    assert!(!world.locked().contains(&digest));

    for (line, complaint) in [
        (format!("{WHOLE} {} sha256:1234", world.reference("1.0")), "line 1 has no sha256 digest"),
        (format!("{WHOLE} {digest}"), "line 1 is not <name> <reference> <digest>"),
        (format!("a b {digest}\na b {digest}"), "line 2 names a again"),
    ] {
        std::fs::write(world.lock(), line).unwrap();
        refused(&world.images("auto", &["get", WHOLE]).await, &["images.lock is not right", complaint]);
    }
    std::fs::write(world.lock(), world.line(&digest)).unwrap();
    world.pulled(WHOLE).await;
}

#[tokio::test]
async fn content_that_does_not_have_its_digest_is_refused() {
    let world = World::new().await;
    world.publish("1.0", "first").await;
    world.pulled(WHOLE).await;
    world.registry.forget().await.unwrap();
    let locked = world.locked();
    let largest = world.registry.largest_blob().unwrap();
    let content = std::fs::read(&largest).unwrap();
    let mut changed = content.clone();
    let last = changed.len() - 9;
    changed[last] ^= 1;
    std::fs::write(&largest, &changed).unwrap();
    refused(&world.images("auto", &["get", WHOLE]).await, &["does not have the digest", "What to do"]);
    // Neither may a first pull lock it.
    std::fs::write(world.lock(), "# A head that stays.\n").unwrap();
    refused(&world.images("auto", &["get", WHOLE]).await, &["does not have the digest"]);
    assert_eq!(world.locked(), "# A head that stays.\n");

    std::fs::write(&largest, &content).unwrap();
    world.pulled(WHOLE).await;
    assert_eq!(world.locked(), locked);
}

#[tokio::test]
async fn a_program_that_is_taken_lies_where_the_built_one_does() {
    let mut world = World::new().await;
    world.publish("2.15.2-test", "nats").await;
    let text = world.images("auto", &["get", "nats"]).await.ok().unwrap();
    let image = image_in(&text, "nats");
    assert!(image.starts_with("assistant/nats:"), "{image}");
    assert_eq!(inspect(&image, "{{.Config.User}}").await, "8705:8700");
    let base = inspect(&image, r#"{{index .Config.Labels "org.opencontainers.image.base.name"}}"#).await;
    assert!(base.starts_with("assistant/base:"), "{base}");

    // Where its program is compiled already, nothing is pulled: the registry need not even answer.
    world.registry.forget().await.unwrap();
    world.registry.silence();
    let cache = PathBuf::from(&world.program).ancestors().nth(5).unwrap().display().to_string();
    let output = world.images_with(&format!("XDG_CACHE_HOME={cache}"), "auto", &["get", "nats"]).await.ok().unwrap();
    assert!(output.contains("nats: build"), "{output}");
    // Nor does a machine without a registry wait, or fail.
    let output = world.images("auto", &["get", "nats"]).await.ok().unwrap();
    assert!(output.contains("nats: build"), "{output}");
    refused(&world.images("pull", &["get", "nats"]).await, &["does not answer", "ASSISTANT_IMAGES=build"]);
}

#[tokio::test]
async fn a_registry_that_never_answers_is_not_waited_for() {
    let world = World::new().await;
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/{REPOSITORY}:2.15.2-test", silent.local_addr().unwrap());
    world.external(|images| {
        images["nats"]["reference"] = json!(reference);
        images["nats2"] = images["nats"].clone();
        images["nats2"]["take"].take();
        images["nats2"]["user"] = json!("8709:8700");
        images["nats2"]["directories"] = json!("var/lib/assistant");
    });
    let started = Instant::now();
    let output = world.images("auto", &["get", "nats"]).await.ok().unwrap();
    assert!(output.contains("nats: build"), "{output}");
    refused(&world.images("auto", &["get", "nats2"]).await, &["does not answer"]);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_image_that_is_laid_out_otherwise_is_not_used() {
    let world = World::new().await;
    world.publish("2.15.2-test", "nats").await;
    world.publish("1.0", "first").await;
    world.external(|images| images["nats"]["take"] = json!({"/bin/elsewhere": "bin/nats-server"}));
    refused(&world.images("pull", &["get", "nats"]).await, &["has no /bin/elsewhere"]);
    let output = world.images("auto", &["get", "nats"]).await.ok().unwrap();
    assert!(output.contains("nats: build, built here: nats has no /bin/elsewhere"), "{output}");
    world.external(|images| images[WHOLE]["prove"]["says"] = json!("another version"));
    refused(&world.images("auto", &["get", WHOLE]).await, &["does not run here as it should", "another version"]);
    assert_eq!(world.locked(), "# A head that stays.\n");
}

#[tokio::test]
async fn a_list_for_several_architectures_is_locked_as_a_list() {
    let world = World::new().await;
    world.publish("here", "here").await;
    let (ours, other) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "arm64"),
        _ => ("arm64", "amd64"),
    };
    world.registry.publish_for(other, REPOSITORY, "here", "1.0").await.unwrap();
    refused(&world.images("pull", &["get", WHOLE]).await, &[other, ours]);
    assert_eq!(world.locked(), "# A head that stays.\n");

    world.registry.publish_for(other, REPOSITORY, "here", "there").await.unwrap();
    let list = world.registry.publish_list(REPOSITORY, "1.0", &[(other, "there"), (ours, "here")]).await.unwrap();
    let image = world.pulled(WHOLE).await;
    assert_eq!(world.locked(), world.line(&list));
    assert_eq!(inspect(&image, "{{.Architecture}}").await, ours);
}

#[tokio::test]
async fn a_list_of_images_that_is_wrong_is_said_at_once() {
    let world = World::new().await;
    world.external(|images| {
        images[WHOLE]["reference"] = json!("no-registry-and-no-tag");
        images["nats"]["reference"] = json!(world.reference("1.0"));
    });
    refused(&world.images("auto", &["get", WHOLE]).await, &[WHOLE, "<registry>/<repository>:<tag>", "nats is v2.15.2"]);
    refused(&world.images("sometimes", &["get", WHOLE]).await, &["external.json"]);
    world.external(|_| {});
    refused(&world.images("sometimes", &["get", WHOLE]).await, &["ASSISTANT_IMAGES", "sometimes"]);
    refused(&world.images("auto", &["get", "nothing"]).await, &["'nothing'", "images.sh list"]);
}

#[tokio::test]
async fn a_check_of_nothing_says_so() {
    let world = World::new().await;
    let said = world.images("auto", &["check"]).await.ok().unwrap();
    assert!(said.contains("No tag is locked in "), "{said}");
}

/// The list that is shipped: well formed, without a digest, and named by tags of the versions that are built.
#[tokio::test]
async fn the_shipped_list_is_right() {
    let output = run(root().join("deploy/images.sh").to_str().unwrap(), &["list"]).await.unwrap().ok().unwrap();
    for name in ["nats", "jaeger", "otel-collector", "grafana", "privatemode-proxy", "zeroclaw"] {
        assert!(output.lines().any(|line| line.starts_with(&format!("{name}  "))), "{name} not in {output}");
    }
}
