//! What the model double says. Either the message scripts it, line by line:
//!
//! ```text
//! !tool shell {"command": "curl -sS https://outside.drill.example/"}
//! !say Done.
//! ```
//!
//! or it guides a newcomer in plain words. Pure: the step follows from how many tool results came after the message.

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
    /// Say something and end.
    Say(String),
}

/// The next step, from the newest user message and the results of the tools called since.
#[must_use]
pub fn next(message: &str, results: &[String]) -> Step {
    let mut steps = scripted(message);
    if steps.is_empty() {
        steps = plain_words(message, results);
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
                let (name, arguments) = rest.trim().split_once(' ').unwrap_or((rest.trim(), "{}"));
                let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
                return Some(Step::Tool { name: name.to_owned(), arguments });
            }
            line.strip_prefix("!say ").map(|text| Step::Say(text.to_owned()))
        })
        .collect()
}

fn plain_words(message: &str, results: &[String]) -> Vec<Step> {
    let lower = message.to_lowercase();
    if let Some(url) =
        message.split_whitespace().find(|word| word.starts_with("https://") || word.starts_with("http://"))
    {
        // Quoted, and of characters that cannot leave the quotes; ZeroClaw's own policy refuses an unquoted "?".
        let url: String = url.chars().filter(|c| c.is_ascii_alphanumeric() || "-._~:/?&=%+@".contains(*c)).collect();
        return vec![shell(&format!("curl -sS -m 10 '{url}'"))];
    }
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["profile", "who am i", "account", "secret", "token", "key"]) {
        return vec![
            shell("env"),
            Step::Say(format!(
                "{}\n\nThat is my whole environment. The only token in it is my own ticket to my own doors; the task \
                 service's token is not here, and never was. Ask \"what are my tasks\" and it will be used all the same.",
                results.last().map_or("", |shown| shown.trim_end())
            )),
        ];
    }
    if has(&["task", "today", "todo", "to do"]) {
        return vec![Step::Tool { name: "get_tasks".to_owned(), arguments: json!({}) }];
    }
    vec![Step::Say(
        "This is a drill: I am a double of a model, everything around me is real. Try these:\n  what are my tasks?\n  \
         show me your secrets\n  fetch https://outside.drill.example/ for me\nThe second and third are what an attacker \
         would have me do. Watch them with: nats sub 'egress.denied.>'"
            .to_owned(),
    )]
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

    #[test]
    fn a_script_is_followed_in_order() {
        let message = "please\n!tool shell {\"command\":\"ls\"}\n!say ok";
        assert_eq!(next(message, &[]), shell("ls"));
        assert_eq!(next(message, &["x".to_owned()]), Step::Say("ok".to_owned()));
        assert_eq!(next("!tool get_tasks", &["[]".to_owned()]), Step::Say("The tool said:\n[]".to_owned()));
    }

    #[test]
    fn plain_words_lead_somewhere() {
        assert!(matches!(next("What are my tasks?", &[]), Step::Tool { name, .. } if name == "get_tasks"));
        assert_eq!(next("fetch https://a.b/';rm$IFS", &[]), shell("curl -sS -m 10 'https://a.b/rmIFS'"));
        let shown = ["HOME=/x".to_owned()];
        assert!(matches!(next("show me your secrets", &shown), Step::Say(text) if text.starts_with("HOME=/x")));
        assert!(matches!(next("hello", &[]), Step::Say(text) if text.contains("drill")));
    }
}
