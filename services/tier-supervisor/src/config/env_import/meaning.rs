//! The table of variables, and the settings that their values make.

use std::collections::BTreeMap;

use assistant_proto::config::Confidentiality;
use assistant_proto::name::{SecretName, TierName};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::super::env_file::Variable;
use super::super::problem::{At, Report, suggestion};
use super::super::route::Endpoint;
use super::super::settings::DEFAULT_BOT;

/// Variable -> name of its secret.
const SECRETS: [(&str, &str); 5] = [
    ("PRIVATEMODE_API_KEY", TEE_KEY),
    ("OPENAI_API_KEY", OPEN_KEY),
    ("MARVIN_API_KEY", "marvin_api_key"),
    ("AMAZING_MARVIN_API_KEY", "marvin_api_key"),
    (BOT_TOKEN, "telegram_bot_token"),
];
const TEE_KEY: &str = "privatemode_api_key";
const OPEN_KEY: &str = "openai_api_key";

const BOT_TOKEN: &str = "TELEGRAM_BOT_TOKEN";
const BOT_USERS: &str = "TELEGRAM_ALLOWED_USER_IDS";
const OTLP: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

const SETTINGS: [&str; 7] = [
    "OPENAI_BASE_URL",
    "OPENAI_MODEL",
    "OPENAI_THINKER_MODEL",
    "PRIVATEMODE_MODEL",
    "PRIVATEMODE_THINKER_MODEL",
    BOT_USERS,
    OTLP,
];

/// The variable by which a person chooses what stands behind a name that tiers use.
pub(crate) fn model_variable(class: Confidentiality, name: &str) -> &'static str {
    match (class, name) {
        (Confidentiality::None, "thinker") => "OPENAI_THINKER_MODEL",
        (Confidentiality::None, _) => "OPENAI_MODEL",
        (Confidentiality::Required, "thinker") => "PRIVATEMODE_THINKER_MODEL",
        (Confidentiality::Required, _) => "PRIVATEMODE_MODEL",
    }
}

/// Of PrivateMode's models, the one that a stack gets which names none.
const PRIVATEMODE_MODEL: &str = "gpt-oss-120b";

/// What the older stack needed -> why nothing reads it any more.
const NOT_NEEDED: [(&str, &str); 5] = [
    ("ONECLI_DB_PASSWORD", "there is no such database"),
    (
        "ONECLI_SECRET_ENCRYPTION_KEY",
        "the stack makes and keeps its own keys; keep this one as long as you keep the old vault",
    ),
    ("LITELLM_MASTER_KEY", "the stack makes and keeps it"),
    ("LITELLM_VIRTUAL_KEY", "the stack makes and keeps it; agents hold no model key"),
    ("SSH_PUBLIC_KEY", "it is for logging in to the VM; nothing in the stack reads it"),
];

/// Families of such variables: beginning, end, why.
const NOT_NEEDED_LIKE: [(&str, &str, &str); 3] = [
    ("ONECLI_TOKEN_", "", "the stack makes a token for each container itself"),
    ("MCP_", "_TOKEN", "the stack makes a token for each container itself"),
    ("LITELLM_", "", "the stack makes and keeps it"),
];

/// What a variable is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    Secret(SecretName),
    Setting,
    NotNeeded(&'static str),
    Unknown(String),
}

pub(super) fn of(name: &str) -> Meaning {
    if let Some(secret) = secret_of(name) {
        return Meaning::Secret(secret);
    }
    if SETTINGS.contains(&name) || bot_of(name, BOT_USERS).is_some() {
        return Meaning::Setting;
    }
    if let Some((_, why)) = NOT_NEEDED.iter().find(|(known, _)| *known == name) {
        return Meaning::NotNeeded(why);
    }
    let family = NOT_NEEDED_LIKE.iter().find(|(begin, end, _)| {
        name.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end)).is_some_and(|word| !word.is_empty())
    });
    match family {
        Some((_, _, why)) => Meaning::NotNeeded(why),
        None => Meaning::Unknown(suggestion(name, SECRETS.iter().map(|(name, _)| *name).chain(SETTINGS))),
    }
}

/// The variable of `.env` that a secret is taken from.
pub(in crate::config) fn variable_of(secret: &SecretName) -> Option<&'static str> {
    SECRETS.iter().find(|(_, known)| *known == secret.as_str()).map(|(variable, _)| *variable)
}

fn secret_of(name: &str) -> Option<SecretName> {
    if let Some((_, secret)) = SECRETS.iter().find(|(known, _)| *known == name) {
        return secret.parse().ok();
    }
    bot_of(name, BOT_TOKEN).and_then(|bot| token_secret(&bot))
}

/// `family` of `TELEGRAM_BOT_TOKEN_FAMILY`.
fn bot_of(name: &str, base: &str) -> Option<String> {
    let bot = name.strip_prefix(base)?.strip_prefix('_')?.to_ascii_lowercase().replace('_', "-");
    (bot.parse::<TierName>().is_ok() && bot != DEFAULT_BOT).then_some(bot)
}

fn token_secret(bot: &str) -> Option<SecretName> {
    match bot {
        DEFAULT_BOT => "telegram_bot_token".parse().ok(),
        other => format!("telegram_bot_token_{}", other.replace('-', "_")).parse().ok(),
    }
}

/// Whether a value is empty, or what an example has in its place.
pub(super) fn is_unset(value: &str) -> bool {
    let lower = value.to_ascii_lowercase().replace('_', "-");
    value.trim().is_empty()
        || ["replace-with", "change-me", "changeme"].iter().any(|word| lower.contains(word))
        || lower.starts_with("placeholder")
        || (lower.starts_with('<') && lower.ends_with('>'))
}

/// The values that are set.
#[derive(Debug, Default)]
pub(super) struct Values {
    settings: BTreeMap<String, (At, String)>,
    secrets: BTreeMap<SecretName, (At, Zeroizing<String>)>,
}

impl Values {
    pub(super) fn set(&mut self, variable: &Variable) {
        self.settings.insert(variable.name.clone(), (variable.at, variable.value.to_string()));
    }

    pub(super) fn secret(&mut self, secret: &SecretName, variable: &Variable, report: &mut Report<'_>) {
        let (at, name, value) = (variable.at, &variable.name, &variable.value);
        if value.len() > 4_096 || !value.bytes().all(|b| (0x21..0x7f).contains(&b)) {
            report.problem(at, format!("{name} is no key: it has blanks or other than ASCII letters"), "copy it again");
            return;
        }
        if name.starts_with(BOT_TOKEN) && !is_bot_token(value) {
            report.problem(at, format!("{name} is not the token of a bot"), "@BotFather gives it: <number>:<letters>");
            return;
        }
        match self.secrets.get(secret) {
            Some((first, other)) if **other != **value => {
                let what = format!("{name} and line {} are two values for secret {secret}", first.line);
                report.problem(at, what, "keep one");
            }
            Some(_) => {}
            None => {
                self.secrets.insert(secret.clone(), (at, value.clone()));
            }
        }
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = (&SecretName, &Zeroizing<String>)> {
        self.secrets.iter().map(|(name, (_, value))| (name, value))
    }

    fn setting(&self, name: &str) -> Option<(At, &str)> {
        self.settings.get(name).map(|(at, value)| (*at, value.as_str()))
    }

    /// In the shape of supervisor.json. `kept` are the secrets that are there from earlier.
    pub(super) fn settings(&self, kept: &[SecretName], report: &mut Report<'_>) -> Value {
        let mut settings = Map::new();
        let has = |name: &str| {
            self.secrets.keys().any(|secret| secret.as_str() == name)
                || kept.iter().any(|secret| secret.as_str() == name)
        };
        if let Some(open) = self.open_route(has(OPEN_KEY), report) {
            settings.insert("model".to_owned(), open);
        }
        if has(TEE_KEY) {
            let model = self.model("PRIVATEMODE_MODEL", report).unwrap_or(PRIVATEMODE_MODEL);
            let thinker = self.model("PRIVATEMODE_THINKER_MODEL", report).unwrap_or(model);
            let tee = json!({"key_secret": TEE_KEY, "models": {"assistant": model, "thinker": thinker}});
            settings.insert("tee".to_owned(), tee);
        } else if let Some((at, _)) = self.setting("PRIVATEMODE_MODEL") {
            report.remark(
                at,
                "PRIVATEMODE_MODEL has no effect without PRIVATEMODE_API_KEY",
                "add the key, or remove it",
            );
        }
        let bots = self.bots(kept, &has, report);
        if !bots.is_empty() {
            settings.insert("telegram".to_owned(), Value::Array(bots));
        }
        if let Some((at, url)) = self.setting(OTLP) {
            match url.parse::<Endpoint>() {
                Ok(_) => {
                    settings.insert("otlp_export".to_owned(), url.into());
                }
                Err(error) => {
                    report.problem(at, format!("{OTLP}: {error}"), "for example https://otlp.example.org:4318")
                }
            }
        }
        Value::Object(settings)
    }

    fn open_route(&self, has_key: bool, report: &mut Report<'_>) -> Option<Value> {
        let url = self.setting("OPENAI_BASE_URL");
        let model = self.model("OPENAI_MODEL", report);
        let Some((at, url)) = url else {
            let key = self.secrets.iter().find(|(name, _)| name.as_str() == OPEN_KEY).map(|(_, (at, _))| *at);
            if let Some(at) = key.or(self.setting("OPENAI_MODEL").map(|(at, _)| at)) {
                let fix = "add OPENAI_BASE_URL, for example https://llm.example.org/v1 or http://192.168.1.20:11434/v1";
                report.problem(at, "this says nothing about where the model is", fix);
            }
            return None;
        };
        if let Err(error) = url.parse::<Endpoint>() {
            report.problem(at, format!("OPENAI_BASE_URL: {error}"), "for example https://llm.example.org/v1");
        }
        if model.is_none() && self.setting("OPENAI_MODEL").is_none() {
            report.problem(
                at,
                "there is an endpoint, and no model of it is named",
                "add OPENAI_MODEL=<its name there>",
            );
        }
        let model = model?;
        let thinker = self.model("OPENAI_THINKER_MODEL", report).unwrap_or(model);
        Some(json!({
            "base_url": url, "key_secret": has_key.then_some(OPEN_KEY),
            "models": {"assistant": model, "thinker": thinker}
        }))
    }

    fn model(&self, name: &str, report: &mut Report<'_>) -> Option<&str> {
        let (at, value) = self.setting(name)?;
        let fine = value.len() <= 128 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/@+-".contains(&b));
        if !fine {
            report.problem(at, format!("{name} is not the name of a model"), "write it as the provider does");
        }
        fine.then_some(value)
    }

    /// Every bot that has a token, the default one first.
    fn bots(&self, kept: &[SecretName], has: &impl Fn(&str) -> bool, report: &mut Report<'_>) -> Vec<Value> {
        let mut bots = Vec::new();
        let names = self.bot_names(kept);
        for name in &names {
            let variable = |base: &str| match name.as_str() {
                DEFAULT_BOT => base.to_owned(),
                other => format!("{base}_{}", other.to_ascii_uppercase().replace('-', "_")),
            };
            let users = self.setting(&variable(BOT_USERS));
            let Some(secret) = token_secret(name) else { continue };
            if !has(secret.as_str()) {
                // The people of the default bot are those of the others too.
                if let Some((at, _)) = users.filter(|_| name != DEFAULT_BOT || names.len() == 1) {
                    let what = format!("{} has no effect without {}", variable(BOT_USERS), variable(BOT_TOKEN));
                    report.remark(at, what, "add the token, or remove it");
                }
                continue;
            }
            // A bot for a tier of its own answers the same people, unless it is told others.
            let token_at = self.secrets.get(&secret).map_or(At { line: 1, column: 1 }, |(at, _)| *at);
            let Some((at, text)) = users.or(self.setting(BOT_USERS)) else {
                let fix = format!("add {}=<your numeric id>; @userinfobot tells it", variable(BOT_USERS));
                report.problem(token_at, format!("nobody may talk to the Telegram bot {name}"), fix);
                continue;
            };
            match user_ids(text) {
                Some(ids) => {
                    bots.push(json!({"name": name, "token_secret": secret.as_str(), "allowed_user_ids": ids}));
                }
                None => {
                    let fix = "numbers above 0, separated by commas; a group is not a person";
                    report.problem(at, "these are not the numeric ids of people", fix);
                }
            }
        }
        bots
    }

    fn bot_names(&self, kept: &[SecretName]) -> Vec<String> {
        let mut names = vec![DEFAULT_BOT.to_owned()];
        let tokens =
            self.secrets.keys().chain(kept).filter_map(|secret| secret.as_str().strip_prefix("telegram_bot_token_"));
        let users = self.settings.keys().filter_map(|name| bot_of(name, BOT_USERS));
        for name in tokens.map(|bot| bot.replace('_', "-")).chain(users) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

fn is_bot_token(text: &str) -> bool {
    text.split_once(':').is_some_and(|(number, rest)| {
        !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
            && rest.len() >= 20
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    })
}

fn user_ids(text: &str) -> Option<Vec<i64>> {
    let words = text.split([',', ' ', ';']).map(str::trim).filter(|word| !word.is_empty());
    let mut ids: Vec<i64> = Vec::new();
    for word in words {
        let id = word.parse().ok().filter(|id| *id > 0)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    (!ids.is_empty()).then_some(ids)
}
