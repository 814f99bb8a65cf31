//! What the scripts in deploy/ say themselves, before there is a program of ours to ask: mistakes that plainly are some.
//! Nothing here needs root, Docker or the network, and nothing is changed.

use std::path::Path;
use std::process::{Command, Output};

use crate::stack::{project, write};

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.as_slice(), output.stderr.as_slice()].concat()).unwrap()
}

fn refused(output: &Output, parts: &[&str]) {
    let said = said(output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("Error: ") && said.contains("What to do: "), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

fn script(name: &str, arguments: &[&str]) -> Output {
    Command::new("bash").arg(project().join("deploy").join(name)).args(arguments).output().unwrap()
}

/// A function of deploy/lib, for a project and a .env of its own.
fn function(call: &str, root: &Path, env_file: &Path) -> Output {
    let text = format!(
        "set -euo pipefail; . \"$1\"; ASSISTANT_ROOT=$2 ASSISTANT_STATE=$2/state LIVE_SETTINGS=$2/live.json; {call}"
    );
    let all = project().join("deploy/lib/all.sh");
    let arguments = ["-c".as_ref(), text.as_ref(), "bash".as_ref(), all.as_os_str(), root.as_os_str()];
    Command::new("bash").args(arguments).env("ASSISTANT_ENV_FILE", env_file).output().unwrap()
}

#[test]
fn options_and_arguments_that_cannot_be_meant() {
    refused(&script("up.sh", &["--pull", "--build"]), &["--build and --pull contradict each other"]);
    refused(&script("up.sh", &["--build", "--drill", "--pull"]), &["--build and --pull contradict each other"]);
    let twice = script("up.sh", &["--build", "--build", "--help"]);
    assert!(twice.status.success(), "{}", said(&twice));
    assert_eq!(script("explain.sh", &[]).status.code(), Some(2));
    refused(&script("trace.sh", &[&"0".repeat(32)]), &["of zeros only"]);
    refused(&script("trace.sh", &["abc\u{1b}[2J"]), &["'abc[2J' is not a trace id, which is 32 hex digits"]);
    assert_eq!(script("trace.sh", &[]).status.code(), Some(2));
}

#[test]
fn fields_of_tiers_yaml_that_there_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        write(&dir.path().join("tiers.yaml"), text, 0o644);
        function("check_tiers_fields live", dir.path(), Path::new("/nonexistent"))
    };
    let wrong = check("tires:\r\n  - name: tasks\ndefaults: {}\nhunter2hunter2: 1\nport: 3001\n");
    refused(&wrong, &["line 1: tiers.yaml has no field tires ", "line 4: ", "(not shown)", "line 5: ", "field port "]);
    assert!(!said(&wrong).contains("hunter2"), "{}", said(&wrong));
    for fine in ["tiers:\n  - name: tasks\n    port: 1\n", "---\n# a: b\n\ndefaults: {image: x}\ntiers: []\n", ""] {
        let output = check(fine);
        assert!(output.status.success() && said(&output).is_empty(), "{fine}: {}", said(&output));
    }
    // The project's own.
    for mode in ["live", "drill"] {
        let output = function(&format!("check_tiers_fields {mode}"), &project(), Path::new("/nonexistent"));
        assert!(output.status.success() && said(&output).is_empty(), "{mode}: {}", said(&output));
    }
}

#[test]
fn what_env_still_has_from_the_example() {
    let dir = tempfile::tempdir().unwrap();
    let env_file = dir.path().join("env");
    write(&dir.path().join("tiers.yaml"), "tiers: [{name: a, port: 3001}]\n", 0o644);
    let check = |text: &str| {
        write(&env_file, text, 0o600);
        function("check_live", dir.path(), &env_file)
    };
    let example = std::fs::read_to_string(project().join(".env.example")).unwrap();
    let still = |name: &str| format!("({name} is in {}, but still has the value of the example)", env_file.display());
    refused(&check(&example), &["  - a model. ", &still("PRIVATEMODE_API_KEY")]);
    refused(&check("export OPENAI_BASE_URL=\"<url>\"\n"), &["  - a model. ", &still("OPENAI_BASE_URL")]);
    let home = "OPENAI_BASE_URL=http://192.168.1.20:11434/v1\nOPENAI_MODEL=x\n";
    refused(
        &check(&format!("{home}OPENAI_API_KEY=REPLACE_WITH_your_key\n")),
        &["OPENAI_API_KEY in ", "still has the value of the example"],
    );
    refused(
        &check(&format!("{home}TELEGRAM_ALLOWED_USER_IDS=5\nTELEGRAM_BOT_TOKEN='REPLACE_WITH_the_token'\n")),
        &["TELEGRAM_BOT_TOKEN in ", "still has the value of the example"],
    );
    // What is not needed may stay as the example has it.
    let output = check(&format!("{home}{example}"));
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
}
