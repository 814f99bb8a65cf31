//! The sections of a tier that say with whom it talks: `channels` (people) and `model`.

use assistant_proto::config::Confidentiality;

use super::problem::{Report, suggestion};
use super::settings::DEFAULT_BOT;
use super::tier::Channel;
use super::tiers::World;
use super::tree::{Fields, Value};

/// Messengers that come later, so that the message for them is not "no such field".
const LATER: [&str; 3] = ["matrix", "signal", "whatsapp"];

/// The channels of a tier. Without the section it belongs to the default bot, where there is one; `channels: {}` leaves
/// the terminal only.
pub(super) fn channels(fields: &Fields<'_>, world: &World<'_>, report: &mut Report<'_>) -> Vec<Channel> {
    let bots = || world.settings.telegram.iter().map(|bot| bot.name.as_str());
    let Some(node) = fields.node("channels") else {
        let default = bots().find(|name| *name == DEFAULT_BOT);
        return default.map(|bot| Channel::Telegram { bot: bot.to_owned() }).into_iter().collect();
    };
    let Some(section) = Fields::open(node, "\"channels\"", report) else { return Vec::new() };
    let mut channels = Vec::new();
    for entry in section.entries() {
        if LATER.contains(&entry.key.as_str()) {
            report.problem(entry.at, "this channel is not supported yet", "remove it for now; telegram is there");
            continue;
        }
        if entry.key != "telegram" {
            report.problem(entry.at, "this channel does not exist", suggestion(&entry.key, ["telegram"]));
            continue;
        }
        let (at, bot) = match &entry.node.value {
            Value::Null => (entry.at, DEFAULT_BOT),
            _ => {
                let Some(telegram) = Fields::of(&entry.node, "\"telegram\"", &["bot"], report) else { continue };
                match telegram.text("bot", report) {
                    Some(bot) => bot,
                    None if telegram.node("bot").is_some() => continue,
                    None => (entry.at, DEFAULT_BOT),
                }
            }
        };
        if bots().any(|known| known == bot) {
            channels.push(Channel::Telegram { bot: bot.to_owned() });
        } else {
            let fix = match bots().next() {
                Some(_) => suggestion(bot, bots()),
                None => "write TELEGRAM_BOT_TOKEN and TELEGRAM_ALLOWED_USER_IDS into .env (for a bot called family: \
                         TELEGRAM_BOT_TOKEN_FAMILY), then run deploy/up.sh again; or remove this"
                    .to_owned(),
            };
            report.problem(at, "there is no such Telegram bot", fix);
        }
    }
    channels
}

/// The model of a tier and its class. Without a word about it, what is most confidential here, and `assistant`.
pub(super) fn model(
    fields: &Fields<'_>,
    world: &World<'_>,
    report: &mut Report<'_>,
) -> Option<(String, Confidentiality)> {
    let routes = world.settings.routes();
    let section = match fields.node("model") {
        None => None,
        Some(node) => Some(Fields::of(node, "\"model\"", &["name", "confidential"], report)?),
    };
    let mut class = routes.default_class();
    if let Some(section) = &section
        && let Some((at, text)) = section.text("confidential", report)
    {
        class = match text {
            "required" => Confidentiality::Required,
            "none" => Confidentiality::None,
            other => {
                report.problem(at, "this is no class of confidentiality", suggestion(other, ["required", "none"]));
                return None;
            }
        };
        if routes.models(class).is_none() {
            let (what, fix) = match class {
                Confidentiality::Required => (
                    "there is no attested model here, and prompts of this tier may go to no other",
                    "write PRIVATEMODE_API_KEY into .env and run deploy/up.sh again, or write confidential: none",
                ),
                Confidentiality::None => (
                    "there is no model here but the attested one",
                    "write OPENAI_BASE_URL and OPENAI_MODEL into .env and run deploy/up.sh again, or remove this",
                ),
            };
            report.problem(at, what, fix);
            return None;
        }
    }
    let models = routes.models(class)?;
    let names = || models.keys().map(String::as_str);
    let named = match &section {
        Some(section) if section.node("name").is_some() => Some(section.text("name", report)?),
        _ => None,
    };
    let name = match named {
        Some((_, name)) if models.contains_key(name) => name,
        Some((at, name)) => {
            report.problem(at, "there is no such model", suggestion(name, names()));
            return None;
        }
        None => names().find(|name| *name == "assistant").or_else(|| names().next())?,
    };
    Some((name.to_owned(), class))
}
