//! The launcher of LiteLLM's image against the files that are rendered for it, with a stand-in for LiteLLM that says what it
//! was given.

use std::path::Path;
use std::process::{Command, Output};

use crate::stack::{project, write};

const STAND_IN: &str = "
import json, os, sys
def run_server():
    print(json.dumps({'argv': sys.argv, 'env': dict(os.environ), 'proc': open('/proc/self/environ').read()}))
";
const MASTER: &str = "keys/LITELLM_MASTER_KEY";

fn start(dir: &Path, more: &[&str]) -> Output {
    let at = |name: &str| dir.join(name).display().to_string();
    Command::new("/usr/bin/python3")
        .arg("-I")
        .arg(project().join("deploy/images/litellm/litellm-serve"))
        .args(["--listen", "10.87.4.11:4000", "--config", &at("litellm.yaml"), "--keys", &at("keys")])
        .args(["--roots", &at("roots"), "--site", &at("site")])
        .args(more)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HTTPS_PROXY", "http://of-the-image.example")
        .env("OPENAI_API_KEY", "of-the-image")
        .output()
        .unwrap()
}

fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("site/litellm/__init__.py", STAND_IN),
        ("litellm.yaml", "{}"),
        (MASTER, "sk-master"),
        ("keys/MODEL_API_KEY", "real-key\n"),
        ("keys/HTTPS_PROXY", "http://models:pw@10.87.3.8:3128"),
    ] {
        write(&dir.path().join(name), text, 0o600);
    }
    dir
}

#[test]
fn keys_reach_litellm_and_nothing_of_the_outer_environment_does() {
    let dir = files();
    let output = start(dir.path(), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let variable = |name: &str| said["env"][name].as_str();
    assert_eq!(variable("LITELLM_MASTER_KEY"), Some("sk-master"));
    assert_eq!(variable("MODEL_API_KEY"), Some("real-key"));
    assert_eq!(variable("https_proxy"), Some("http://models:pw@10.87.3.8:3128"));
    assert_eq!(variable("HTTPS_PROXY"), variable("https_proxy"));
    assert_eq!((variable("NO_PROXY"), variable("OPENAI_API_KEY")), (Some(""), None));
    assert_eq!(variable("LITELLM_LOCAL_MODEL_COST_MAP"), Some("True"));
    let shown = said["proc"].as_str().unwrap();
    assert!(!shown.contains("real-key") && !shown.contains("sk-master") && !shown.contains("models:pw"), "{shown}");
    let arguments: Vec<&str> = said["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(arguments[3..7], ["--host", "10.87.4.11", "--port", "4000"]);
    assert_eq!(variable("SSL_CERT_FILE"), None, "the machine's own roots");
}

#[test]
fn roots_are_put_together_or_stand_alone() {
    let dir = files();
    write(&dir.path().join("roots/0.pem"), "-----DRILL-----", 0o644);
    for (more, alone) in [(&["--only-these-roots"][..], true), (&[], false)] {
        let output = start(dir.path(), more);
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let roots = std::fs::read_to_string(said["env"]["SSL_CERT_FILE"].as_str().unwrap()).unwrap();
        assert!(roots.contains("DRILL"));
        assert_eq!(!roots.contains("BEGIN CERTIFICATE"), alone);
    }
}

#[test]
fn what_it_cannot_use_is_refused_without_repeating_it() {
    for (name, text, why) in [
        (MASTER, None, "is missing"),
        (MASTER, Some(""), "is empty"),
        ("keys/MODEL_API_KEY", Some("two words"), "not one word"),
        ("keys/MODEL_API_KEY", Some("a\nb"), "not one word"),
        ("keys/MODEL_API_KEY", Some("k\u{e9}y"), "not plain text"),
        ("keys/lower", Some("secret-value"), "not named like a variable"),
        ("litellm.yaml", None, "is missing"),
    ] {
        let dir = files();
        match text {
            Some(text) => write(&dir.path().join(name), text, 0o600),
            None => std::fs::remove_file(dir.path().join(name)).unwrap(),
        }
        let output = start(dir.path(), &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{name} {text:?}: {said}");
        assert!(!said.contains("two words") && !said.contains("secret-value"), "{said}");
    }
}
