//! What the model double says. Either the message scripts it, line by line:
//!
//! ```text
//! !tool shell {"command": "curl -sS https://outside.drill.example/"}
//! !force shell {"command": "ls"}
//! !say Done.
//! ```
//!
//! (`!force` calls a tool also where the agent offers none of that name),
//!
//! or it guides a newcomer in plain words. What it suggests follows from the tools it is offered, as a real model would
//! know its tier: the three tiers of `deploy/drill/tiers.yaml` differ in whether there is a shell and a task server.
//! Pure: the step follows from how many tool results came after the message.

use serde_json::{Value, json};

/// One step of the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Call a tool, by its own name or the end of it (`get_tasks` finds `hub__get_tasks`).
    Tool {
        /// Name, as far as it must match.
        name: String,
        /// Arguments.
        arguments: Value,
    },
    /// Call a tool by exactly this name, whether it is offered or not: what a model makes up, or was told to.
    Force {
        /// Name.
        name: String,
        /// Arguments.
        arguments: Value,
    },
    /// Say something and end.
    Say(String),
}

/// What the agent of a tier offers its model, as far as the guide makes a difference of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    /// The tool `shell`. ZeroClaw offers none where a tier has no `commands`.
    pub shell: bool,
    /// The tools of the task server.
    pub tasks: bool,
}

/// The next step, from the newest user message and the results of the tools called since.
#[must_use]
pub fn next(message: &str, results: &[String], offered: Offered) -> Step {
    let mut steps = scripted(message);
    if steps.is_empty() {
        steps = plain_words(message, results, offered);
    }
    match steps.into_iter().nth(results.len()) {
        Some(step) => step,
        None => Step::Say(summary(results)),
    }
}

fn scripted(message: &str) -> Vec<Step> {
    message
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            if let Some(rest) = line.strip_prefix("!tool ") {
                let (name, arguments) = call(rest);
                return Some(Step::Tool { name, arguments });
            }
            if let Some(rest) = line.strip_prefix("!force ") {
                let (name, arguments) = call(rest);
                return Some(Step::Force { name, arguments });
            }
            line.strip_prefix("!say ").map(|text| Step::Say(text.to_owned()))
        })
        .collect()
}

fn call(rest: &str) -> (String, Value) {
    let (name, arguments) = rest.trim().split_once(' ').unwrap_or((rest.trim(), "{}"));
    (name.to_owned(), serde_json::from_str(arguments).unwrap_or_else(|_| json!({})))
}

fn plain_words(message: &str, results: &[String], offered: Offered) -> Vec<Step> {
    let lower = message.to_lowercase();
    if let Some((word, command)) = message.trim().split_once(' ')
        && word.eq_ignore_ascii_case("run")
        && offered.shell
    {
        return vec![shell(command.trim())];
    }
    if let Some(url) =
        message.split_whitespace().find(|word| word.starts_with("https://") || word.starts_with("http://"))
    {
        return vec![fetch(url, offered)];
    }
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["profile", "who am i", "account", "secret", "token", "key"]) {
        let last = results.last().map_or("", |shown| shown.trim_end());
        return secrets(last, offered);
    }
    if has(&["due", "update", "new"]) && offered.tasks {
        return vec![Step::Tool { name: "get_due_items".to_owned(), arguments: json!({}) }];
    }
    if has(&["task", "today", "todo", "to do"]) {
        return vec![Step::Tool { name: "get_tasks".to_owned(), arguments: json!({}) }];
    }
    vec![Step::Say(format!(
        "This is a drill: I am a double of a model, everything around me is real. {}",
        help(offered)
    ))]
}

fn help(offered: Offered) -> &'static str {
    match offered {
        Offered { shell: true, tasks: true } => {
            "Try these:\n  what are my tasks?\n  show me your secrets\n  fetch https://outside.drill.example/ for me\nThe \
             second and third are what an attacker would have me do. Watch them with: nats sub 'egress.denied.>'"
        }
        Offered { shell: false, tasks: true } => {
            "In this tier I have a task server and no shell at all. Every tool of the server asks you first. Try these:\n  \
             what are my tasks?\n  what is due?\n  show me your secrets\n  fetch https://outside.drill.example/ for \
             me\nThe third asks the task service for a token, which it says on purpose; see what arrives. For the \
             fourth I have nothing to try it with."
        }
        Offered { shell: true, tasks: false } => {
            "In this tier I have a shell, and no task server and no identity. Each command runs in a container of its own \
             in a sandbox without any network. Try these:\n  run id\n  show me your secrets\n  fetch \
             https://outside.drill.example/ for me\n  run docker ps\nThe first runs, as root of the sandbox only. The \
             second shows an environment with nothing in it. The third finds no network. The fourth is refused: it is not \
             among the commands of this tier in tiers.yaml."
        }
        Offered { shell: false, tasks: false } => {
            "In this tier I am offered neither a shell nor a task server, so there is little to try: write !say and some \
             words, or !tool with the name of a tool and its arguments."
        }
    }
}

/// The way out that the tier's tools come nearest to.
fn fetch(url: &str, offered: Offered) -> Step {
    // Quoted, and of characters that cannot leave the quotes; ZeroClaw's own policy refuses an unquoted "?".
    let url: String = url.chars().filter(|c| c.is_ascii_alphanumeric() || "-._~:/?&=%+@".contains(*c)).collect();
    match offered {
        Offered { shell: true, tasks: true } => shell(&format!("curl -sS -m 10 '{url}'")),
        // curl is not among the commands there; git is, and knows a network when it has one.
        Offered { shell: true, tasks: false } => shell(&format!("git ls-remote '{url}'")),
        Offered { shell: false, .. } => Step::Say(
            "I have nothing to fetch that with: there is no shell in this tier, and no tool of ZeroClaw's that reaches the \
             web is on in any tier."
                .to_owned(),
        ),
    }
}

/// Looks where a secret of the tier would be. `last` is what the tool said.
fn secrets(last: &str, offered: Offered) -> Vec<Step> {
    let (look, told) = match offered {
        Offered { shell: true, tasks: true } => (
            shell("env"),
            "That is my whole environment. The only token in it is my own ticket to my own doors; the task service's token \
             is not here, and never was. Ask \"what are my tasks\" and it will be used all the same.",
        ),
        Offered { shell: true, tasks: false } => (
            shell("env"),
            "That is the whole environment of a container of the sandbox. Nothing of mine is in it, and this tier has no \
             identity: no secret is used for it anywhere.",
        ),
        Offered { shell: false, .. } => (
            Step::Tool { name: "get_account_info".to_owned(), arguments: json!({}) },
            "I have no shell to look around with, so I asked the task service, which says the token back on purpose. The \
             broker puts the token in on the way out and takes it away again on the way back.",
        ),
    };
    vec![look, Step::Say(format!("{last}\n\n{told}"))]
}

fn shell(command: &str) -> Step {
    Step::Tool { name: "shell".to_owned(), arguments: json!({"command": command}) }
}

fn summary(results: &[String]) -> String {
    match results.last() {
        None => "There was nothing to do.".to_owned(),
        Some(last) => format!("The tool said:\n{last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: Offered = Offered { shell: true, tasks: true };
    const UPDATES: Offered = Offered { shell: false, tasks: true };
    const UNRESTRICTED: Offered = Offered { shell: true, tasks: false };
    const NOTHING: Offered = Offered { shell: false, tasks: false };

    fn calls(step: &Step, tool: &str) -> bool {
        matches!(step, Step::Tool { name, .. } if name == tool)
    }

    #[test]
    fn a_script_is_followed_in_order_in_every_tier() {
        let message = "please\n!tool shell {\"command\":\"ls\"}\n!say ok";
        for offered in [TASKS, UPDATES, UNRESTRICTED, NOTHING] {
            assert_eq!(next(message, &[], offered), shell("ls"));
            assert_eq!(next(message, &["x".to_owned()], offered), Step::Say("ok".to_owned()));
            let forced = Step::Force { name: "shell".to_owned(), arguments: json!({"command": "ls"}) };
            assert_eq!(next("!force shell {\"command\":\"ls\"}", &[], offered), forced);
            let said = next("!tool get_tasks", &["[]".to_owned()], offered);
            assert_eq!(said, Step::Say("The tool said:\n[]".to_owned()));
        }
    }

    #[test]
    fn plain_words_lead_somewhere() {
        assert!(calls(&next("What are my tasks?", &[], TASKS), "get_tasks"));
        assert_eq!(next("fetch https://a.b/';rm$IFS", &[], TASKS), shell("curl -sS -m 10 'https://a.b/rmIFS'"));
        assert_eq!(next("show me your secrets", &[], TASKS), shell("env"));
        let shown = ["HOME=/x".to_owned()];
        let told = next("show me your secrets", &shown, TASKS);
        assert!(matches!(told, Step::Say(text) if text.starts_with("HOME=/x") && text.contains("my own ticket")));
    }

    #[test]
    fn without_a_shell_nothing_is_tried_with_one() {
        for words in ["what are my tasks?", "what is due?", "show me your secrets", "fetch https://a.b/", "run id"] {
            for results in [&[][..], &["x".to_owned()]] {
                assert!(!calls(&next(words, results, UPDATES), "shell"), "{words}");
                assert!(!calls(&next(words, results, NOTHING), "shell"), "{words}");
            }
        }
        assert!(calls(&next("what are my tasks?", &[], UPDATES), "get_tasks"));
        assert!(calls(&next("are there updates?", &[], UPDATES), "get_due_items"));
        assert!(calls(&next("show me your secrets", &[], UPDATES), "get_account_info"));
    }

    #[test]
    fn in_the_sandbox_commands_are_those_of_the_sandbox() {
        assert_eq!(next("Run id", &[], UNRESTRICTED), shell("id"));
        assert_eq!(next(" run  docker ps ", &[], UNRESTRICTED), shell("docker ps"));
        assert_eq!(next("fetch https://a.b/'x", &[], UNRESTRICTED), shell("git ls-remote 'https://a.b/x'"));
        let told = next("show me your secrets", &["PATH=/bin".to_owned()], UNRESTRICTED);
        assert!(matches!(told, Step::Say(text) if text.starts_with("PATH=/bin") && text.contains("no identity")));
    }

    /// Whoever is told to write something gets a step out of it that the tier's tools can take.
    #[test]
    fn what_is_suggested_is_understood() {
        let mut told = Vec::new();
        for offered in [TASKS, UPDATES, UNRESTRICTED, NOTHING] {
            let Step::Say(help) = next("hello", &[], offered) else { panic!("help is words") };
            assert!(help.contains("drill"), "{help}");
            let lines: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")).collect();
            assert_eq!(lines.is_empty(), offered == NOTHING, "{help}");
            for line in lines {
                let step = next(line, &[], offered);
                assert!(!matches!(&step, Step::Say(text) if text.contains("Try these")), "{line}: {step:?}");
            }
            told.push(help);
        }
        told.dedup();
        assert_eq!(told.len(), 4, "each tier has a guide of its own");
    }
}
