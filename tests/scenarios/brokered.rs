//! The tool call that works, with the token that the tier never has.

use std::cell::Cell;
use std::time::Duration;

use assistant_proto::channel::ApprovalRequested;
use assistant_proto::egress::ListRecordsRequest;
use assistant_proto::egress::egress_service_client::EgressServiceClient;
use assistant_proto::event::{EgressPermitted, Event, FloorBreached};
use assistant_tests::doubles::MARVIN_HOST;
use assistant_tests::doubles::record::Arrival;
use assistant_tests::harness::bus::Watch;
use assistant_tests::harness::command::{inside, run};
use assistant_tests::harness::{AGENT, SERVER, STATE, TIER, agent, metrics, search, sink, until};
use service_kit::task::Tasks;

fn token() -> String {
    std::fs::read_to_string(format!("{STATE}/secrets/marvin_api_key")).unwrap().trim().to_owned()
}

#[tokio::test]
async fn the_task_service_gets_the_real_token_and_the_tier_an_answer() {
    let cursor = sink::now().await.unwrap();
    let turn = agent::say(TIER, "what are my tasks?").await.unwrap();
    assert_eq!(turn.failure, "");
    assert!(turn.reply.contains("Water the plants"), "{turn:?}");
    let arrived = sink::since(cursor).await.unwrap();
    let calls: Vec<_> = arrived
        .iter()
        .filter_map(|entry| match &entry.arrival {
            Arrival::Request { host, path, authorized, headers, .. } if host == MARVIN_HOST => {
                Some((path.clone(), *authorized, headers.clone()))
            }
            _ => None,
        })
        .collect();
    assert!(calls.iter().any(|(path, authorized, _)| path.starts_with("/api/todayItems") && *authorized), "{calls:?}");
    // Nothing of the stack's own headers leaves.
    for (_, _, headers) in &calls {
        for name in ["traceparent", "proxy-authorization", "via", "x-forwarded-for", "forwarded"] {
            assert!(!headers.iter().any(|header| header == name), "{name} left: {headers:?}");
        }
    }
}

/// Of the auditor's comparison, seen by Prometheus.
const JUDGED_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_ordinary_tunnel_is_matched_with_its_permit_and_no_breach() {
    let tasks = Tasks::default();
    let breaches = Watch::<FloorBreached>::watch(&tasks).await.unwrap();
    let with = "sum(assistant_tunnels_with_permit_total)";
    let before = metrics::value(with).await.unwrap().unwrap_or_default();
    let turn = agent::say(TIER, "what are my tasks?").await.unwrap();
    assert!(turn.reply.contains("Water the plants"), "{turn:?}");
    // Judged, and found. Prometheus may still remember the count of an earlier start; it falls to nothing then.
    let floor = Cell::new(before);
    until("the tunnel's match", JUDGED_WITHIN, || async {
        let now = metrics::value(with).await?.unwrap_or_default();
        floor.set(floor.get().min(now));
        Ok((now > floor.get()).then_some(()))
    })
    .await
    .unwrap();
    let told = breaches.those(|event| event.check == "a permit for every tunnel" && event.detail.contains(MARVIN_HOST));
    assert_eq!(told, [], "the control is denied::squid_denies_on_its_own: the same host without a permit is one");
    let mut client = EgressServiceClient::new(agent::connect("egress-auditor").await.unwrap());
    let request = ListRecordsRequest { tier: TIER.to_owned(), r#type: EgressPermitted::TYPE.to_owned(), limit: 100 };
    let records = client.list_records(request).await.unwrap().into_inner().records;
    assert!(records.iter().any(|record| record.trace_id == turn.trace_id && record.host == MARVIN_HOST), "{records:?}");
}

#[tokio::test]
async fn a_token_that_the_service_says_back_is_scrubbed() {
    // GET /api/me of the double echoes the token it was shown.
    let cursor = sink::now().await.unwrap();
    // Not on the list of what runs unasked, so a person says yes.
    let yes = |approval: &ApprovalRequested| format!("YES {}", approval.code);
    let turn = agent::say_deciding(TIER, "scrub", "!tool get_account_info {}", yes).await.unwrap();
    let arrived = sink::since(cursor).await.unwrap();
    let echoed = arrived.iter().any(|entry| {
        matches!(&entry.arrival, Arrival::Request { path, authorized: true, status: 200, .. } if path == "/api/me")
    });
    assert!(echoed, "control: the double was not asked for the profile; tools: {:?} {}", turn.tools, turn.reply);
    assert!(turn.reply.contains("drill@example.org"), "{turn:?}");
    assert!(!turn.reply.contains(&token()), "the token came back");
}

#[tokio::test]
async fn the_token_is_nowhere_in_the_tier() {
    let token = token();
    assert!(token.len() >= 16, "control: there is a token to look for");
    for container in [AGENT, SERVER] {
        let state = run("docker", &["inspect", container]).await.unwrap().ok().unwrap();
        assert!(!state.contains(&token), "{container}: in its Docker configuration");
        assert_eq!(search::files(container, &token, &[]).await.unwrap(), "", "{container}: in its files");
        assert_eq!(search::processes(container, &token).await.unwrap(), Vec::<String>::new(), "{container}");
        let memory = search::memory(container, &token).await.unwrap();
        assert!(memory.bytes > 0, "control: no memory of {container} was read");
        assert_eq!(memory.found, Vec::<String>::new(), "{container}: in its memory");
    }
    // The same search finds the placeholder, so it would find the token.
    let agent_env = inside(SERVER, &["cat", "/etc/assistant/env"]).await.unwrap().ok().unwrap();
    assert!(agent_env.contains("PLACEHOLDER"), "control: {agent_env}");
}

#[tokio::test]
async fn the_token_is_in_no_record_and_no_other_process() {
    let token = token();
    let turn = agent::say(TIER, "what are my tasks?").await.unwrap();
    assert!(turn.reply.contains("Water the plants"), "{turn:?}");
    let names =
        run("docker", &["ps", "--format", "{{.Names}}", "--filter", "label=assistant.managed=true"]).await.unwrap();
    for container in names.ok().unwrap().lines() {
        let logs = run("docker", &["logs", container]).await.unwrap();
        assert!(!logs.all().contains(&token), "{container}: in its log");
        let memory = search::memory(container, &token).await.unwrap();
        assert!(memory.bytes > 0, "control: no memory of {container} was read");
        if container == "assistant-secret-broker" {
            assert_ne!(memory.found, Vec::<String>::new(), "control: the search finds it where it must be");
        } else {
            assert_eq!(memory.found, Vec::<String>::new(), "{container}: in its memory");
        }
    }
    // Bus, audit store, Squid's log, conversations: whatever lies on a volume.
    let volumes =
        run("docker", &["volume", "ls", "-q", "--filter", "name=assistant-drill"]).await.unwrap().ok().unwrap();
    let mut kept = 0;
    for volume in volumes.lines() {
        let place =
            run("docker", &["volume", "inspect", "--format", "{{.Mountpoint}}", volume]).await.unwrap().ok().unwrap();
        let found = run("grep", &["-rlsaF", &token, place.trim()]).await.unwrap();
        assert_eq!(found.out, "", "{volume}");
        kept += run("grep", &["-rlsaF", &turn.trace_id, place.trim()]).await.unwrap().out.lines().count();
    }
    assert!(kept >= 2, "control: the same search finds the turn's trace id on bus and audit store, found {kept}");
}
