//! A person on Telegram: who is answered, by which tier, how often, and what is in an answer.

use std::collections::BTreeSet;
use std::time::Duration;

use assistant_proto::event::{ApprovalDecided, ApprovalOutcome, ChannelIgnored, TurnStarted};
use assistant_tests::doubles::record::{Arrival, Entry};
use assistant_tests::doubles::telegram::SentMessage;
use assistant_tests::doubles::{MARVIN_HOST, OUTSIDE, OUTSIDE_HOST, TELEGRAM_HOST};
use assistant_tests::harness::bus::Watch;
use assistant_tests::harness::command::{inside, run};
use assistant_tests::harness::telegram::{Chat, OWNER, fault, faults_are_over, state, unique_word};
use assistant_tests::harness::{AGENT, SANDBOXED, TIER, agent, sink, until};
use serde_json::json;
use service_kit::task::Tasks;

const STRANGER: i64 = 1_000_666;
const BRIDGE: &str = "assistant-channel-bridge";
const NOTE: &str = "by-telegram.txt";

/// Statuses of the double's answers to attempts at sending a message.
fn sendings(entries: &[Entry]) -> Vec<u16> {
    let status = |arrival: &&Arrival| match arrival {
        Arrival::Request { path, status, authorized: true, .. } if path.ends_with("/sendMessage") => Some(*status),
        _ => None,
    };
    sink::requests_to(entries, TELEGRAM_HOST).iter().filter_map(status).collect()
}

/// Turns that began with a message on Telegram. Each is said again and again while it lasts.
fn turned(turns: &Watch<TurnStarted>) -> BTreeSet<String> {
    turns.those(|turn| turn.channel == "telegram").iter().map(|turn| turn.turn.to_string()).collect()
}

#[tokio::test]
async fn the_first_tier_answers_once_and_nothing_is_fetched() {
    let tasks = Tasks::default();
    let turns = Watch::<TurnStarted>::watch(&tasks).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let owner = Chat::private(OWNER).await.unwrap();
    let word = unique_word();
    owner.write(&format!("!say {word} https://{OUTSIDE_HOST}/?q=secret https://{MARVIN_HOST}/help")).await.unwrap();
    let answer = owner.hears(&[&word]).await.unwrap();
    assert!(answer.text.starts_with(&format!("[{TIER}] ")), "{answer:?}");
    assert_eq!(answer.links, [format!("https://{MARVIN_HOST}/help")], "one is a link, and only one: {answer:?}");
    assert_eq!(answer.fetched, Vec::<String>::new(), "Telegram's servers were to look at what is behind it");
    turns.wait("the turn", |turn| turn.channel == "telegram" && turn.tier.as_str() == TIER).await.unwrap();

    let all = owner.heard_in_the_end().await.unwrap();
    assert_eq!(all.iter().filter(|message| message.text.contains(&word)).count(), 1, "{all:?}");
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sendings(&arrived).len() >= 2, "control: what was sent went over the wire");
    assert!(sink::packets_to(&arrived, &OUTSIDE.to_string()).is_empty(), "{arrived:?}");
    assert!(sink::queries_for(&arrived, OUTSIDE_HOST).is_empty(), "{arrived:?}");
}

#[tokio::test]
async fn a_stranger_gets_silence_and_is_an_event() {
    let tasks = Tasks::default();
    let ignored = Watch::<ChannelIgnored>::watch(&tasks).await.unwrap();
    let turns = Watch::<TurnStarted>::watch(&tasks).await.unwrap();
    let (stranger, owner) = (Chat::private(STRANGER).await.unwrap(), Chat::private(OWNER).await.unwrap());
    stranger.write("!say to a stranger").await.unwrap();
    let event = ignored.wait("the stranger", |event| event.sender == STRANGER.to_string()).await.unwrap();
    assert_eq!((event.reason.as_str(), event.count, event.channel.as_str()), ("not-allowed", 1, "telegram"));
    // Who is allowed is answered, and by then the stranger would have been.
    let heard = owner.heard_in_the_end().await.unwrap();
    assert_eq!(heard.len(), 1, "control: the owner is answered: {heard:?}");
    assert_eq!(stranger.heard().await.unwrap(), []);
    assert_eq!(turned(&turns).len(), 1, "only the owner's message was a turn");
    assert_eq!(ignored.those(|event| event.sender == STRANGER.to_string()).len(), 1);
    until("all of it is acknowledged", Duration::from_secs(20), || async {
        Ok((state(u64::MAX).await?.waiting == 0).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_chat_changes_its_tier_and_changes_back() {
    let owner = Chat::new_group(OWNER).await.unwrap();
    for tier in [SANDBOXED, TIER] {
        owner.write(&format!("/tier {tier}")).await.unwrap();
        owner.hears(&[&format!("[{tier}] From now on this chat belongs to {tier}.")]).await.unwrap();
        let word = unique_word();
        owner.write(&format!("!say {word}")).await.unwrap();
        let answer = owner.hears(&[&word]).await.unwrap();
        assert!(answer.text.starts_with(&format!("[{tier}] ")), "{answer:?}");
    }
    owner.write("/tier nosuch").await.unwrap();
    let refused = owner.hears(&["There is no tier of that name"]).await.unwrap();
    assert!(refused.text.starts_with(&format!("[{TIER}] ")) && refused.text.contains(SANDBOXED), "{refused:?}");
    assert!(!refused.text.contains("nosuch"), "what was asked for is not said back: {refused:?}");
}

async fn written() -> bool {
    inside(AGENT, &["find", "/zeroclaw-data", "-name", NOTE]).await.unwrap().out.contains(NOTE)
}

/// Has the agent ask for permission; the code that the bot shows.
async fn asked(owner: &Chat, word: &str) -> String {
    let order = format!("!tool file_write {{\"path\":\"{NOTE}\",\"content\":\"{word}\"}}");
    owner.write(&order).await.unwrap();
    let question = owner.hears(&["The agent asks for permission", word]).await.unwrap();
    code_of(&question)
}

fn code_of(question: &SentMessage) -> String {
    let code = question.text.rsplit_once("YES ").and_then(|(_, rest)| rest.split_whitespace().next());
    code.unwrap_or_else(|| panic!("a question names its code: {question:?}")).to_owned()
}

#[tokio::test]
async fn a_code_decides_for_the_person_who_was_asked_and_nobody_else() {
    assert!(!written().await, "left over from an earlier run");
    let tasks = Tasks::default();
    let ignored = Watch::<ChannelIgnored>::watch(&tasks).await.unwrap();
    let decided = Watch::<ApprovalDecided>::watch(&tasks).await.unwrap();

    let owner = Chat::new_group(OWNER).await.unwrap();
    let code = asked(&owner, &unique_word()).await;
    owner.write(&format!("NO {code}")).await.unwrap();
    owner.hears(&["Denied."]).await.unwrap();
    decided.wait("the no", |event| event.outcome == ApprovalOutcome::Denied).await.unwrap();
    owner.heard_in_the_end().await.unwrap();
    assert!(!written().await, "refused and still written");

    let owner = Chat::new_group(OWNER).await.unwrap();
    let code = asked(&owner, &unique_word()).await;
    // Somebody else with the right code in the same chat; then the right person in another chat.
    owner.of(STRANGER).write(&format!("YES {code}")).await.unwrap();
    ignored.wait("the wrong person", |event| event.sender == STRANGER.to_string()).await.unwrap();
    let elsewhere = Chat::private(OWNER).await.unwrap();
    elsewhere.write(&format!("YES {code}")).await.unwrap();
    elsewhere.hears(&["That did not count"]).await.unwrap();
    assert!(!written().await, "approved by the wrong person, or in the wrong place");
    assert!(decided.those(|event| event.outcome == ApprovalOutcome::Approved).is_empty());

    owner.write(&format!("YES {code}")).await.unwrap();
    owner.hears(&["Approved, this once."]).await.unwrap();
    decided.wait("the yes", |event| event.outcome == ApprovalOutcome::Approved).await.unwrap();
    owner.heard_in_the_end().await.unwrap();
    let is_written = written().await;
    inside(AGENT, &["find", "/zeroclaw-data", "-name", NOTE, "-delete"]).await.unwrap().ok().unwrap();
    assert!(is_written, "control: approved by the right person in the right place, and not written");
}

async fn process_of(container: &str) -> anyhow::Result<String> {
    let said = run("docker", &["inspect", "--format", "{{.State.Running}} {{.State.Pid}}", container]).await?.ok()?;
    let pid = said.trim().strip_prefix("true ").map(str::to_owned);
    pid.ok_or_else(|| anyhow::anyhow!("{container} does not run"))
}

/// Kills the bridge's process and waits until tier-supervisor has started it again.
async fn kill_the_bridge() {
    let before = process_of(BRIDGE).await.unwrap();
    run("kill", &["-KILL", &before]).await.unwrap().ok().unwrap();
    until("a new process of the bridge that answers", Duration::from_secs(60), || async {
        let now = process_of(BRIDGE).await?;
        agent::connect("channel-bridge").await?;
        Ok((now != before).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn killed_between_message_and_answer_it_answers_once() {
    let tasks = Tasks::default();
    let turns = Watch::<TurnStarted>::watch(&tasks).await.unwrap();
    let owner = Chat::new_group(OWNER).await.unwrap();
    let word = unique_word();
    // The answer is there and cannot be sent: killed just then.
    fault(&json!({"method": "sendMessage", "status": 429, "retry_after": 5})).await.unwrap();
    owner.write(&format!("!say {word}")).await.unwrap();
    faults_are_over().await.unwrap();
    assert_eq!(owner.heard().await.unwrap(), [], "control: nothing was sent before");
    kill_the_bridge().await;
    owner.hears(&[&word]).await.unwrap();
    let all = owner.heard_in_the_end().await.unwrap();
    assert_eq!(all.iter().filter(|message| message.text.contains(&word)).count(), 1, "{all:?}");
    assert_eq!(turned(&turns).len(), 2, "one turn for the message and one for the last word");
}

#[tokio::test]
async fn killed_while_the_agent_works_it_answers_once() {
    let owner = Chat::new_group(OWNER).await.unwrap();
    let word = unique_word();
    let code = asked(&owner, &word).await;
    kill_the_bridge().await;
    // The message is taken up again, and so is the question: with another code, since the first is forgotten.
    let again = until("the question once more", Duration::from_secs(120), || async {
        let heard = owner.heard().await?;
        Ok(heard.into_iter().find(|message| message.text.contains("YES ") && !message.text.contains(&code)))
    })
    .await
    .unwrap();
    owner.write(&format!("NO {}", code_of(&again))).await.unwrap();
    owner.hears(&["Denied."]).await.unwrap();
    let all = owner.heard_in_the_end().await.unwrap();
    let answers =
        all.iter().filter(|message| !message.text.contains("permission") && !message.text.contains("Denied.")).count();
    assert_eq!(answers, 2, "the answer and the last word: {all:#?}");
    assert!(!written().await, "nobody approved");
}

#[tokio::test]
async fn it_waits_as_long_as_telegram_says() {
    const WAIT: Duration = Duration::from_secs(3);
    let owner = Chat::new_group(OWNER).await.unwrap();
    let cursor = sink::now().await.unwrap();
    let word = unique_word();
    fault(&json!({"method": "sendMessage", "status": 429, "retry_after": WAIT.as_secs()})).await.unwrap();
    owner.write(&format!("!say {word}")).await.unwrap();
    faults_are_over().await.unwrap();
    let refused = std::time::Instant::now();
    owner.hears(&[&word]).await.unwrap();
    // The refusal was seen up to a tenth of a second late, never early.
    assert!(refused.elapsed() > WAIT - Duration::from_millis(500), "it came after {:?}", refused.elapsed());
    let arrived = sink::since(cursor).await.unwrap();
    assert_eq!(sendings(&arrived), [429, 200], "control: it was refused, and it asked once more");
    let all = owner.heard_in_the_end().await.unwrap();
    assert_eq!(all.iter().filter(|message| message.text.contains(&word)).count(), 1, "{all:?}");
}
