//! Every part killed in the middle of a turn, and the kernel table taken away. While it is away nothing gets out that was
//! not allowed before; the message that was taken is answered once, or a sentence says why not; and the stack mends
//! itself. Beside it somebody tries to get out all the time, by every way a tier has.

use std::time::Duration;

use assistant_proto::egress::VerifyChainRequest;
use assistant_proto::egress::egress_service_client::EgressServiceClient;
use assistant_proto::event::FloorBreached;
use assistant_proto::tier::tier_service_client::TierServiceClient;
use assistant_proto::tier::{WatchStackRequest, WatchStackResponse};
use assistant_tests::doubles::telegram::SentMessage;
use assistant_tests::doubles::{MARVIN_HOST, OUTSIDE, OUTSIDE_HOST};
use assistant_tests::harness::bus::Watch;
use assistant_tests::harness::command::run;
use assistant_tests::harness::plain::{self, Plain};
use assistant_tests::harness::prober::{Prober, TARGET, now};
use assistant_tests::harness::telegram::{Chat, OWNER, unique_word};
use assistant_tests::harness::{
    SANDBOX, SANDBOXED, SANDBOXED_AGENT, SERVER, TIER, UPDATES, UPDATES_AGENT, agent, sink, until,
};
use service_kit::task::Tasks;

/// From the kill of any part until everything runs, is ready, and the floor was checked.
const MENDED_WITHIN: Duration = Duration::from_secs(60);
/// The supervisor looks at the table four times a second; loading it takes a while on a busy machine.
const TABLE_BACK_WITHIN: Duration = Duration::from_secs(5);
/// An answer, or the sentence instead of it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);
const BRIDGE: &str = "assistant-channel-bridge";

/// Who is killed, and whose turn it is in the middle of.
struct Victims {
    parts: &'static [&'static str],
    tier: &'static str,
    /// A tool call that needs it.
    tool: &'static str,
    /// What that gives once everything is well again.
    gives: &'static str,
}

const OF_TASKS: Victims = Victims { parts: &[], tier: TIER, tool: "!tool get_tasks {}", gives: "Water the plants" };

/// First process of a container in the VM, while it runs.
async fn process_of(container: &str) -> anyhow::Result<String> {
    let format = "{{.State.Running}} {{.State.Pid}}";
    let said = run("docker", &["container", "inspect", "--format", format, container]).await?.ok()?;
    let pid = said.trim().strip_prefix("true ").map(str::to_owned);
    pid.ok_or_else(|| anyhow::anyhow!("{container} does not run"))
}

async fn stack() -> anyhow::Result<WatchStackResponse> {
    let mut client = TierServiceClient::new(agent::connect("tier-supervisor").await?);
    let mut watch = client.watch_stack(WatchStackRequest {}).await?.into_inner();
    watch.message().await?.ok_or_else(|| anyhow::anyhow!("the supervisor says nothing of the stack"))
}

/// Waits until each has another process than before and the supervisor finds nothing to do.
async fn mended(before: &[(&str, String)]) {
    until("the stack to mend itself", MENDED_WITHIN, || async {
        for (container, process) in before {
            anyhow::ensure!(process_of(container).await? != *process, "{container} still is what was killed");
        }
        let stack = stack().await?;
        anyhow::ensure!(stack.converged, "{} {}", stack.current_step, stack.problem);
        Ok(Some(()))
    })
    .await
    .unwrap();
}

/// What the bot says last of a message: its answer, or why there is none.
fn is_last_word(message: &SentMessage, word: &str) -> bool {
    message.text.contains(word) || message.text.contains("This did not work: ")
}

fn code_of(question: &SentMessage) -> Option<String> {
    let code = question.text.rsplit_once("YES ").and_then(|(_, rest)| rest.split_whitespace().next());
    code.map(str::to_owned).filter(|_| question.text.contains("The agent asks for permission"))
}

/// Nothing of what the prober tried arrived, though it tried while the part was away.
async fn nothing_got_out(prober: Prober, cursor: sink::Cursor, killed_at: Duration, mended_at: Duration) {
    let unique = prober.unique.clone();
    let tries = prober.end().await.unwrap();
    assert!(tries.between(killed_at, mended_at) >= 3, "control: it was tried in the meantime: {tries:?}");
    assert_eq!(tries.through, Vec::<String>::new(), "the door opened");
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sink::packets_to(&arrived, TARGET).is_empty(), "a packet got out");
    assert!(sink::packets_to(&arrived, &OUTSIDE.to_string()).is_empty(), "a connection got out");
    assert!(sink::queries_for(&arrived, &unique).is_empty(), "a name got out");
}

/// The whole story of one kill.
async fn killed_in_a_turn(victims: Victims) {
    let Victims { parts, tier, tool, gives } = victims;
    // Not of the tier whose turn it is, nor of one whose container is killed.
    let from = if tier == SANDBOXED { UPDATES_AGENT } else { SANDBOXED_AGENT };
    let owner = Chat::new_group(OWNER).await.unwrap();
    owner.write(&format!("/tier {tier}")).await.unwrap();
    owner.hears(&[&format!("[{tier}] From now on")]).await.unwrap();
    let word = unique_word();
    let note = format!(r#"!tool file_write {{"path":"killed.txt","content":"{word}-note"}}"#);
    owner.write(&format!("{note}\n{tool}\n!say {word}-end")).await.unwrap();
    let question = owner.hears(&["The agent asks for permission"]).await.unwrap();
    let code = code_of(&question).unwrap();

    let cursor = sink::now().await.unwrap();
    let prober = Prober::of_agent(from, OUTSIDE_HOST).await.unwrap();
    let mut before = Vec::new();
    for part in parts {
        before.push((*part, process_of(part).await.unwrap()));
    }
    let killed_at = now();
    for (_, process) in &before {
        run("kill", &["-KILL", process]).await.unwrap().ok().unwrap();
    }
    // In the middle of it the agent goes on: back to the model, to its tool, to its answer.
    owner.write(&format!("NO {code}")).await.unwrap();
    mended(&before).await;
    let mended_at = now();
    prober.tries_again(3).await.unwrap();
    nothing_got_out(prober, cursor, killed_at, mended_at).await;

    // A bridge that was killed has forgotten its question, takes the message up again and asks once more.
    let end = format!("{word}-end");
    until("the answer, or why there is none", ANSWERED_WITHIN, || async {
        let heard = owner.heard().await?;
        if heard.iter().any(|message| is_last_word(message, &end)) {
            return Ok(Some(()));
        }
        let asked = heard.iter().rev().find_map(code_of).filter(|newest| *newest != code);
        if let (Some(newest), true) = (&asked, parts.contains(&BRIDGE)) {
            let told = heard.iter().any(|message| message.text.contains("Denied."));
            if !told {
                owner.write(&format!("NO {newest}")).await?;
                owner.hears(&["Denied."]).await?;
            }
        }
        anyhow::bail!("heard so far: {heard:#?}")
    })
    .await
    .unwrap();
    let all = owner.heard_in_the_end().await.unwrap();
    let last_words: Vec<&SentMessage> = all.iter().filter(|message| is_last_word(message, &end)).collect();
    assert_eq!(last_words.len(), 1, "answered once: {all:#?}");

    let turn = agent::say(tier, tool).await.unwrap();
    assert!(turn.reply.contains(gives), "everything works again: {turn:?}");
}

#[tokio::test]
async fn what_the_prober_sends_arrives_where_there_is_no_wall() {
    let plain = Plain::make().await.unwrap();
    let cursor = sink::now().await.unwrap();
    let prober = Prober::of_network(plain::NETWORK).await.unwrap();
    prober.tries_again(3).await.unwrap();
    let unique = prober.unique.clone();
    prober.end().await.unwrap();
    plain.remove().await;
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sink::packets_to(&arrived, TARGET).len() >= 3, "control: packets arrive");
    assert!(sink::queries_for(&arrived, &unique).len() >= 3, "control: names arrive");

    let tried = async || {
        let prober = Prober::of_agent(SANDBOXED_AGENT, MARVIN_HOST).await.unwrap();
        prober.tries_again(3).await.unwrap();
        prober.end().await.unwrap().through
    };
    let (_, through) = agent::during_turn(SANDBOXED, tried).await.unwrap();
    assert!(!through.is_empty(), "control: the door opens to a host that is allowed");
}

#[tokio::test]
async fn secret_broker() {
    killed_in_a_turn(Victims { parts: &["assistant-secret-broker"], ..OF_TASKS }).await;
}

#[tokio::test]
async fn egress_auditor() {
    killed_in_a_turn(Victims { parts: &["assistant-egress-auditor"], ..OF_TASKS }).await;
    chain_is_whole().await;
}

#[tokio::test]
async fn channel_bridge() {
    killed_in_a_turn(Victims { parts: &[BRIDGE], ..OF_TASKS }).await;
}

#[tokio::test]
async fn nats() {
    killed_in_a_turn(Victims { parts: &["assistant-nats"], ..OF_TASKS }).await;
    chain_is_whole().await;
}

#[tokio::test]
async fn squid() {
    killed_in_a_turn(Victims { parts: &["assistant-squid"], ..OF_TASKS }).await;
}

#[tokio::test]
async fn litellm() {
    killed_in_a_turn(Victims { parts: &["assistant-litellm"], ..OF_TASKS }).await;
}

#[tokio::test]
async fn an_mcp_server() {
    killed_in_a_turn(Victims { parts: &[SERVER], ..OF_TASKS }).await;
}

#[tokio::test]
async fn an_agent() {
    killed_in_a_turn(Victims { parts: &[UPDATES_AGENT], tier: UPDATES, tool: "!say still here", gives: "still here" })
        .await;
}

#[tokio::test]
async fn a_sandbox_and_its_filter() {
    let parts = &[SANDBOX, "sandbox-unrestricted-filter"];
    let tool = r#"!tool shell {"command":"id"}"#;
    killed_in_a_turn(Victims { parts, tier: SANDBOXED, tool, gives: "uid=0(root)" }).await;
}

#[tokio::test]
async fn all_that_only_watches() {
    let parts = &["assistant-otel-collector", "assistant-jaeger", "assistant-prometheus"];
    killed_in_a_turn(Victims { parts, ..OF_TASKS }).await;
}

/// The bus and the record, and both doors, at once.
#[tokio::test]
async fn every_service_at_once() {
    let parts = &[
        "assistant-nats",
        "assistant-egress-auditor",
        "assistant-squid",
        "assistant-secret-broker",
        "assistant-channel-bridge",
    ];
    killed_in_a_turn(Victims { parts, ..OF_TASKS }).await;
    chain_is_whole().await;
}

async fn chain_is_whole() {
    let mut client = EgressServiceClient::new(agent::connect("egress-auditor").await.unwrap());
    let chain = client.verify_chain(VerifyChainRequest {}).await.unwrap().into_inner();
    assert!(chain.intact && chain.records > 0, "{chain:?}");
}

/// The process of tier-supervisor itself, whoever keeps it running.
async fn supervisor() -> anyhow::Result<String> {
    let unit = ["show", "-p", "MainPID", "--value", "assistant-tier-supervisor.service"];
    let process = match std::fs::read_to_string("/run/assistant-daemons/tier-supervisor.child") {
        Ok(process) => process,
        Err(_) => run("systemctl", &unit).await?.ok()?,
    };
    let process = process.trim().to_owned();
    let program = std::fs::read_link(format!("/proc/{process}/exe"))?;
    anyhow::ensure!(program.ends_with("tier-supervisor"), "process {process} is {}", program.display());
    Ok(process)
}

#[tokio::test]
async fn tier_supervisor() {
    let started = async || {
        let list = ["ps", "-q", "--no-trunc", "--filter", "label=assistant.mode=drill"];
        let mut ids: Vec<String> =
            run("docker", &list).await.unwrap().ok().unwrap().lines().map(str::to_owned).collect();
        ids.sort();
        ids
    };
    let (containers, before) = (started().await, supervisor().await.unwrap());
    let cursor = sink::now().await.unwrap();
    let prober = Prober::of_agent(SANDBOXED_AGENT, OUTSIDE_HOST).await.unwrap();
    let killed_at = now();
    run("kill", &["-KILL", &before]).await.unwrap().ok().unwrap();
    let turn = agent::say(TIER, "!tool get_tasks {}").await.unwrap();
    assert!(turn.reply.contains("Water the plants"), "everything goes on without it: {turn:?}");
    until("another supervisor that finds nothing to do", MENDED_WITHIN, || async {
        let stack = stack().await?;
        Ok((supervisor().await? != before && stack.converged).then_some(()))
    })
    .await
    .unwrap();
    let mended_at = now();
    nothing_got_out(prober, cursor, killed_at, mended_at).await;
    assert_eq!(started().await, containers, "it took over what ran");
}

async fn tables() -> anyhow::Result<Vec<String>> {
    let listed = run("nft", &["list", "tables"]).await?.ok()?;
    let ours =
        listed.lines().filter_map(|line| line.strip_prefix("table ")).filter(|name| name.ends_with(" assistant"));
    Ok(ours.map(str::to_owned).collect())
}

#[tokio::test]
async fn the_kernel_table() {
    let tasks = Tasks::default();
    let breaches = Watch::<FloorBreached>::watch(&tasks).await.unwrap();
    let before = tables().await.unwrap();
    assert!(before.len() >= 3, "control: there is a table in each family: {before:?}");
    let cursor = sink::now().await.unwrap();
    let prober = Prober::of_agent(SANDBOXED_AGENT, OUTSIDE_HOST).await.unwrap();
    let taken_at = now();
    let all: Vec<String> = before.iter().map(|table| format!("delete table {table}")).collect();
    run("nft", &[&all.join("; ")]).await.unwrap().ok().unwrap();
    until("the table to be back", TABLE_BACK_WITHIN, || async { Ok((tables().await? == before).then_some(())) })
        .await
        .unwrap();
    let back_at = now();
    breaches.wait("the breach", |event| event.check.contains("table")).await.unwrap();
    prober.tries_again(3).await.unwrap();
    let unique = prober.unique.clone();
    let tries = prober.end().await.unwrap();
    assert!(tries.between(taken_at, back_at) >= 1, "control: it was tried in the meantime: {tries:?}");
    assert_eq!(tries.through, Vec::<String>::new());
    // Networks of tiers lead nowhere even without it.
    let arrived = sink::since(cursor).await.unwrap();
    assert!(sink::packets_to(&arrived, TARGET).is_empty(), "a packet got out");
    assert!(sink::queries_for(&arrived, &unique).is_empty(), "a name got out");
    let turn = agent::say(TIER, "!tool get_tasks {}").await.unwrap();
    assert!(turn.reply.contains("Water the plants"), "everything works: {turn:?}");
}
