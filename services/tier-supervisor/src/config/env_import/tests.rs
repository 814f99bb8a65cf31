#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use super::*;

const TOKEN: &str = "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw";

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn import(&self, text: &str) -> Result<Imported, Vec<String>> {
        let file = self.dir.path().join(".env");
        std::fs::write(&file, text).unwrap();
        import(&file, &self.dir.path().join("state")).map_err(|error| match error {
            ImportError::Problems(problems) => problems
                .0
                .iter()
                .map(|problem| format!("{}: {}; {}", problem.line, problem.what, problem.fix))
                .collect(),
            ImportError::File(error) => vec![error.to_string()],
        })
    }

    fn settings(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.dir.path().join("state/env.json")).unwrap()).unwrap()
    }

    fn secret(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.path().join("state/secrets").join(name)).ok()
    }
}

fn fates(imported: &Imported) -> Vec<(String, Fate)> {
    imported.said.iter().map(|said| (said.name.clone(), said.fate.clone())).collect()
}

#[test]
fn everything_that_is_known() {
    let bench = Bench::new();
    let text = format!(
        "PRIVATEMODE_API_KEY=real-privatemode-1\nOPENAI_BASE_URL=http://192.168.1.20:11434/v1\nOPENAI_API_KEY=real-openai-2\n\
         OPENAI_MODEL=qwen3:32b\nTELEGRAM_BOT_TOKEN={TOKEN}\nTELEGRAM_ALLOWED_USER_IDS=\"17, 23\"\nMARVIN_API_KEY='real-$marvin-3'\n\
         OTEL_EXPORTER_OTLP_ENDPOINT=https://otlp.example.org:4318\n"
    );
    let imported = bench.import(&text).unwrap();
    assert!(imported.has_model && imported.remarks.is_empty());
    let taken = |name: &str| Fate::Taken(name.parse().unwrap());
    assert_eq!(
        fates(&imported).into_iter().map(|(_, fate)| fate).collect::<Vec<_>>(),
        [
            taken("privatemode_api_key"),
            Fate::Accepted,
            taken("openai_api_key"),
            Fate::Accepted,
            taken("telegram_bot_token"),
            Fate::Accepted,
            taken("marvin_api_key"),
            Fate::Accepted
        ]
    );
    assert_eq!(bench.secret("marvin_api_key").as_deref(), Some("real-$marvin-3"));
    assert_eq!(bench.secret("telegram_bot_token").as_deref(), Some(TOKEN));
    let path = bench.dir.path().join("state/secrets");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(path.join("openai_api_key")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(
        bench.settings(),
        json!({
            "model": {"base_url": "http://192.168.1.20:11434/v1", "key_secret": "openai_api_key",
                      "models": {"assistant": "qwen3:32b", "thinker": "qwen3:32b"}},
            "tee": {"key_secret": "privatemode_api_key",
                    "models": {"assistant": "gpt-oss-120b", "thinker": "gpt-oss-120b"}},
            "telegram": [{"name": "telegram", "token_secret": "telegram_bot_token", "allowed_user_ids": [17, 23]}],
            "otlp_export": "https://otlp.example.org:4318"
        })
    );
    let said: String = imported.said.iter().map(ToString::to_string).collect();
    let written = std::fs::read_to_string(bench.dir.path().join("state/env.json")).unwrap();
    for value in ["real-", TOKEN] {
        assert!(!said.contains(value) && !written.contains(value), "{value}");
    }
}

#[test]
fn a_secret_that_was_taken_stays_when_its_line_goes_and_changes_when_the_line_does() {
    let bench = Bench::new();
    let users = "TELEGRAM_ALLOWED_USER_IDS=17\n";
    bench.import(&format!("PRIVATEMODE_API_KEY=one\nTELEGRAM_BOT_TOKEN={TOKEN}\n{users}")).unwrap();
    let first = bench.settings();
    assert!(bench.import(users).unwrap().has_model);
    assert_eq!(bench.settings(), first);
    let again = bench.import(&format!("PRIVATEMODE_API_KEY=one\n{users}")).unwrap();
    assert_eq!(again.said[0].fate, Fate::Kept("privatemode_api_key".parse().unwrap()));
    let changed = bench.import(&format!("PRIVATEMODE_API_KEY=two\n{users}")).unwrap();
    assert_eq!(changed.said[0].fate, Fate::Replaced("privatemode_api_key".parse().unwrap()));
    assert_eq!(bench.secret("privatemode_api_key").as_deref(), Some("two"));
    std::fs::remove_file(bench.dir.path().join("state/secrets/privatemode_api_key")).unwrap();
    assert!(!bench.import(users).unwrap().has_model, "removing the file ends it");
}

#[test]
fn values_of_the_example_count_as_unset() {
    for value in [
        "",
        "\"\"",
        "REPLACE_WITH_PRIVATEMODE_API_KEY",
        "change-me",
        "sk-litellm-master-change-me",
        "CHANGE_ME",
        "PLACEHOLDER_X",
        "<your key>",
    ] {
        let bench = Bench::new();
        let imported = bench.import(&format!("PRIVATEMODE_API_KEY='{}'\n", value.trim_matches('"'))).unwrap();
        assert_eq!(imported.said[0].fate, Fate::Unset, "{value}");
        assert!(!imported.has_model && bench.secret("privatemode_api_key").is_none());
    }
}

#[test]
fn what_the_older_stack_needed_is_said_to_be_no_longer_needed() {
    let bench = Bench::new();
    let names = [
        "ONECLI_DB_PASSWORD",
        "ONECLI_SECRET_ENCRYPTION_KEY",
        "LITELLM_MASTER_KEY",
        "LITELLM_VIRTUAL_KEY",
        "ONECLI_TOKEN_PERSONAL",
        "ONECLI_TOKEN_FAMILY",
        "MCP_TASKS_TOKEN",
        "SSH_PUBLIC_KEY",
    ];
    let text: String = names.iter().map(|name| format!("{name}=real-value\n")).collect();
    for said in bench.import(&text).unwrap().said {
        assert!(matches!(said.fate, Fate::NotNeeded(_)), "{said}");
    }
    let imported = bench.import("OPENAI_MODLE=x\nMCP__TOKEN=x\nWHATEVER=x\n").unwrap();
    assert_eq!(imported.said[0].fate, Fate::Unknown("did you mean \"OPENAI_MODEL\"?".to_owned()));
    assert!(imported.said.iter().all(|said| matches!(said.fate, Fate::Unknown(_))), "{:?}", imported.said);
}

#[test]
fn every_problem_at_once_and_nothing_written() {
    let bench = Bench::new();
    let problems = bench
        .import(
            "OPENAI_BASE_URL=http://localhost:11434/v1\nTELEGRAM_BOT_TOKEN=hunter2\nMARVIN_API_KEY=hunter2a\n\
             AMAZING_MARVIN_API_KEY=hunter2b\nOTEL_EXPORTER_OTLP_ENDPOINT=collector\nPRIVATEMODE_API_KEY='hunter2 x'\n",
        )
        .unwrap_err();
    for what in [
        "1: OPENAI_BASE_URL: a loopback address",
        "1: there is an endpoint, and no model of it is named",
        "2: TELEGRAM_BOT_TOKEN is not the token of a bot",
        "4: AMAZING_MARVIN_API_KEY and line 3 are two values for secret marvin_api_key; keep one",
        "5: OTEL_EXPORTER_OTLP_ENDPOINT: it must be",
        "6: PRIVATEMODE_API_KEY is no key",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(what)), "{what}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), 6, "{problems:#?}");
    assert!(problems.iter().all(|problem| !problem.contains("hunter2")));
    assert!(!bench.dir.path().join("state").exists());
}

#[test]
fn bots_and_their_people() {
    let bench = Bench::new();
    let text = format!(
        "TELEGRAM_BOT_TOKEN={TOKEN}\nTELEGRAM_BOT_TOKEN_FAMILY={TOKEN}x\nTELEGRAM_BOT_TOKEN_WORK={TOKEN}y\n\
         TELEGRAM_ALLOWED_USER_IDS=17\nTELEGRAM_ALLOWED_USER_IDS_WORK=23\n"
    );
    bench.import(&text).unwrap();
    let bots: Vec<(Value, Value)> = bench.settings()["telegram"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bot| (bot["name"].clone(), bot["allowed_user_ids"].clone()))
        .collect();
    assert_eq!(bots, [(json!("telegram"), json!([17])), (json!("family"), json!([17])), (json!("work"), json!([23]))]);
    bench.import("TELEGRAM_ALLOWED_USER_IDS=17\n").unwrap();
    assert_eq!(bench.settings()["telegram"].as_array().unwrap().len(), 3, "their tokens are kept");
    for (users, what) in
        [("", "nobody may talk"), ("-1001", "numeric ids"), ("@me", "numeric ids"), (",", "numeric ids")]
    {
        let line = if users.is_empty() { String::new() } else { format!("TELEGRAM_ALLOWED_USER_IDS='{users}'\n") };
        let problems = Bench::new().import(&format!("TELEGRAM_BOT_TOKEN={TOKEN}\n{line}")).unwrap_err();
        assert!(problems[0].contains(what), "{users}: {problems:#?}");
    }
    let without = Bench::new().import("TELEGRAM_ALLOWED_USER_IDS=17\n").unwrap();
    assert!(without.remarks[0].contains("has no effect without TELEGRAM_BOT_TOKEN"), "{:?}", without.remarks);
}

#[test]
fn crlf_and_an_endpoint_without_a_key() {
    let bench = Bench::new();
    bench.import("OPENAI_BASE_URL=https://llm.example.org/v1\r\nOPENAI_MODEL=m\r\nOPENAI_THINKER_MODEL=t\r\n").unwrap();
    assert_eq!(
        bench.settings()["model"],
        json!({"base_url": "https://llm.example.org/v1", "key_secret": null, "models": {"assistant": "m", "thinker": "t"}})
    );
    let problems = Bench::new().import("OPENAI_API_KEY=k\nOPENAI_MODEL=m\n").unwrap_err();
    assert!(problems[0].contains("add OPENAI_BASE_URL"), "{problems:#?}");
}
