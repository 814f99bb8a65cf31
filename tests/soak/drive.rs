//! The turns: of ten in a tier seven by the terminal and three by Telegram; three of them with a tool, two in which
//! something is tried that is refused, one in which a person is asked.
//!
//! A conversation by the terminal ends after fifty turns and another begins, as people do it; each tier has one chat on
//! Telegram, which never ends. What of that an agent keeps is its own affair: it trims what it sends to the model, and
//! keeps what was said in a database, which grows by what was said.

use anyhow::Context as _;

use crate::doubles::{MARVIN_HOST, OUTSIDE_HOST};
use crate::harness::agent::{self, Turn};
use crate::harness::command::inside;
use crate::harness::telegram::{Chat, OWNER, unique_word};
use crate::harness::{SANDBOXED, SANDBOXED_AGENT, TIER, UPDATES, UPDATES_AGENT};

/// Turns of one conversation by the terminal.
const CONVERSATION: u32 = 50;
/// More failures than this, and going on would show nothing new.
const MOST_FAILURES: usize = 10;
/// What the task service knows.
const A_TASK: &str = "Water the plants";
/// An address that is nobody's door.
const AN_ADDRESS: &str = "203.0.113.77";

/// What a turn does, beside being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Words by the terminal.
    Words,
    /// Words by Telegram.
    WordsByTelegram,
    /// A tool, by the terminal: through broker and Squid to the task service, or a container of the sandbox.
    Tool,
    /// The same by Telegram.
    ToolByTelegram,
    /// Something that is refused.
    Refused,
    /// A person is asked.
    Asked,
}

/// The order of a tier's turns, again and again.
const ACTS: [Act; 10] = [
    Act::Words,
    Act::WordsByTelegram,
    Act::Tool,
    Act::Refused,
    Act::Words,
    Act::ToolByTelegram,
    Act::Asked,
    Act::WordsByTelegram,
    Act::Refused,
    Act::Tool,
];

/// Which turn of a tier does what.
#[must_use]
pub fn act(number: u32) -> Act {
    let at = usize::try_from(number).unwrap_or(0) % ACTS.len();
    ACTS.get(at).copied().unwrap_or(Act::Words)
}

/// Somebody who talks to one tier.
#[derive(Debug)]
pub struct Talker {
    tier: &'static str,
    chat: Chat,
    run: String,
    made: u32,
    /// Attempts that must have become denials.
    pub refused: u32,
    /// Turns that went wrong, and how.
    pub failures: Vec<String>,
}

/// All three.
///
/// # Errors
/// When a chat cannot be opened.
pub async fn talkers() -> anyhow::Result<Vec<Talker>> {
    let run = uuid::Uuid::new_v4().simple().to_string();
    let mut all = Vec::new();
    for tier in [TIER, UPDATES, SANDBOXED] {
        let mut chat = Chat::new_group(OWNER).await?;
        chat.write(&format!("/tier {tier}")).await?;
        let answer = chat.hears(&[&format!("[{tier}] From now on this chat belongs to {tier}.")]).await?;
        chat.forget_until(&answer);
        all.push(Talker { tier, chat, run: run.clone(), made: 0, refused: 0, failures: Vec::new() });
    }
    Ok(all)
}

impl Talker {
    /// Makes turns, one after the other. A turn that goes wrong is remembered.
    ///
    /// # Errors
    /// When too many went wrong.
    pub async fn talk(&mut self, turns: u32) -> anyhow::Result<()> {
        for _ in 0..turns {
            let act = act(self.made);
            if let Err(error) = self.turn(act).await {
                tracing::error!(tier = self.tier, turn = self.made, ?act, "{error:#}");
                self.failures.push(format!("{} turn {}, {act:?}: {error:#}", self.tier, self.made));
                anyhow::ensure!(self.failures.len() <= MOST_FAILURES, "too much went wrong: {:#?}", self.failures);
            }
            self.made = self.made.saturating_add(1);
        }
        Ok(())
    }

    async fn turn(&mut self, act: Act) -> anyhow::Result<()> {
        match act {
            Act::Words => {
                let word = unique_word();
                self.say(&format!("!say {word}"), &word).await
            }
            Act::Tool => {
                let (order, expected) = self.tool();
                self.say(order, expected).await
            }
            Act::WordsByTelegram => {
                let word = unique_word();
                self.write(&format!("!say {word}"), &word).await
            }
            Act::ToolByTelegram => {
                let (order, expected) = self.tool();
                self.write(order, expected).await
            }
            Act::Refused => self.try_what_is_refused().await,
            Act::Asked => {
                let order = r#"!tool file_write {"path":"soak.txt","content":"soak"}"#;
                let turn = self.turn_by_terminal(order, "NO").await?;
                anyhow::ensure!(!turn.reply.is_empty(), "nothing was said: {turn:?}");
                Ok(())
            }
        }
    }

    fn tool(&self) -> (&'static str, &'static str) {
        match self.tier {
            SANDBOXED => (r#"!tool shell {"command":"id"}"#, "uid=0(root)"),
            _ => ("!tool get_tasks {}", A_TASK),
        }
    }

    async fn turn_by_terminal(&self, text: &str, answer: &str) -> anyhow::Result<Turn> {
        let conversation = format!("soak-{}-{}", self.run, self.made / CONVERSATION);
        let turn =
            agent::say_deciding(self.tier, &conversation, text, |asked| format!("{answer} {}", asked.code)).await?;
        anyhow::ensure!(turn.failure.is_empty(), "{}", turn.failure);
        Ok(turn)
    }

    async fn say(&self, text: &str, expected: &str) -> anyhow::Result<()> {
        let turn = self.turn_by_terminal(text, "YES").await?;
        anyhow::ensure!(turn.reply.contains(expected), "the answer lacks {expected:?}: {turn:?}");
        Ok(())
    }

    /// By Telegram; whatever is asked is allowed.
    async fn write(&mut self, text: &str, expected: &str) -> anyhow::Result<()> {
        self.chat.write(text).await?;
        let mut heard = self.chat.hears_one_of(&[expected, "The agent asks for permission"]).await?;
        if !heard.text.contains(expected) {
            let code = heard.text.rsplit_once("YES ").and_then(|(_, rest)| rest.split_whitespace().next());
            let code = code.with_context(|| format!("a question names its code: {heard:?}"))?;
            self.chat.forget_until(&heard);
            self.chat.write(&format!("YES {code}")).await?;
            heard = self.chat.hears(&[expected]).await?;
        }
        self.chat.forget_until(&heard);
        Ok(())
    }

    /// A turn, and an attempt of the tier that dies at one of the walls. Each at something new: equal ones within a
    /// moment would be one event.
    async fn try_what_is_refused(&mut self) -> anyhow::Result<()> {
        let unique = unique_word();
        let name = format!("{unique}.drill.example");
        let walls = self.made / 5 % 3;
        match (self.tier, walls) {
            (TIER, walls) => {
                let command = match walls {
                    0 => format!("curl -sS -m 5 https://{OUTSIDE_HOST}/{unique}"),
                    1 => format!("curl -sS -m 1 --noproxy {AN_ADDRESS} http://{AN_ADDRESS}:8080/"),
                    _ => format!("curl -sS -m 5 --noproxy {name} http://{name}/"),
                };
                let order = format!("!tool shell {}", serde_json::json!({"command": command}));
                let turn = self.turn_by_terminal(&order, "NO").await?;
                anyhow::ensure!(turn.reply.contains("curl: ("), "curl did not fail: {turn:?}");
            }
            (UPDATES, _) => {
                self.say(&format!("!say {unique}"), &unique).await?;
                let asked = inside(UPDATES_AGENT, &["getent", "hosts", &name]).await?;
                anyhow::ensure!(asked.status != 0, "a name was found: {asked:?}");
            }
            (_, 0) => {
                self.say(&format!("!say {unique}"), &unique).await?;
                let asked = inside(SANDBOXED_AGENT, &["docker", "volume", "create", &unique]).await?;
                anyhow::ensure!(asked.status != 0, "a volume was made: {asked:?}");
            }
            (_, _) => {
                self.say(&format!("!say {unique}"), &unique).await?;
                let url = format!("https://{MARVIN_HOST}/api/{unique}");
                let write = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", &url];
                let status = inside(SANDBOXED_AGENT, &write).await?.out;
                anyhow::ensure!(status == "403", "writing was not refused: {status}");
            }
        }
        self.refused = self.refused.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_share() {
        let share = |wanted: &[Act]| (0..1_000).filter(|number| wanted.contains(&act(*number))).count();
        assert_eq!(share(&[Act::WordsByTelegram, Act::ToolByTelegram]), 300);
        assert_eq!(share(&[Act::Tool, Act::ToolByTelegram]), 300);
        assert_eq!(share(&[Act::Refused]), 200);
        assert_eq!(share(&[Act::Asked]), 100);
    }
}
