//! The way to a model: through the ingress and LiteLLM, with the provider's key, which nobody else has.

use std::time::Duration;

use assistant_proto::config::{Confidentiality, LITELLM_PORT};
use assistant_proto::egress::ShowTraceRequest;
use assistant_proto::egress::egress_service_client::EgressServiceClient;
use assistant_proto::event::{EgressDenied, EgressPermitted, Layer, ModelCalled};
use assistant_proto::secret::secret_service_client::SecretServiceClient;
use assistant_proto::secret::{ListModelsRequest, ModelPresence, ModelProvider};
use assistant_tests::doubles::MODEL_HOST;
use assistant_tests::doubles::record::{Arrival, Entry};
use assistant_tests::harness::agent::Door;
use assistant_tests::harness::bus::{Denials, Watch};
use assistant_tests::harness::command::{inside, run};
use assistant_tests::harness::plain::Plain;
use assistant_tests::harness::{
    AGENT, SANDBOX, SANDBOXED_AGENT, SERVER, STATE, TIER, UPDATES_AGENT, UPDATES_SERVER, agent, probe, search, sink,
    until,
};
use serde_json::{Value, json};
use service_kit::task::Tasks;

const LITELLM: &str = "assistant-litellm";
/// The provider's list of models, which the stack asks for on its own.
const LIST: &str = "/v1/models";
const SUPERVISOR: &str = "/usr/local/lib/assistant/bin/tier-supervisor";
const BROKER: &str = "assistant-secret-broker";

fn provider_key() -> String {
    std::fs::read_to_string(format!("{STATE}/secrets/model_api_key")).unwrap().trim().to_owned()
}

fn master_key() -> String {
    let file = format!("{STATE}/render/{BROKER}/etc/litellm/none.key");
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

/// What the model was asked, but for its list, which is no tier's question: path, whether with the right key, header names, status.
fn asked(entries: &[Entry]) -> Vec<(String, bool, Vec<String>, u16)> {
    let read = |arrival: &&Arrival| match arrival {
        Arrival::Request { path, authorized, headers, status, .. } if path != LIST => {
            Some((path.clone(), *authorized, headers.clone(), *status))
        }
        _ => None,
    };
    sink::requests_to(entries, MODEL_HOST).iter().filter_map(read).collect()
}

/// Asks the ingress as the agent could: with the agent's own token, from its container. Status and body.
async fn ask(path: &str, body: Option<&Value>) -> (String, String) {
    let door = Door::of(AGENT).await.unwrap();
    let bearer = format!("Authorization: Bearer {}", door.token);
    let url = format!("http://models:4000{path}");
    let text = body.map(ToString::to_string);
    let mut arguments = vec!["curl", "-sS", "-m", "30", "-w", "\n%{http_code}", "-H", &bearer];
    if let Some(text) = &text {
        arguments.extend(["-H", "Content-Type: application/json", "-d", text]);
    }
    arguments.push(&url);
    let said = inside(AGENT, &arguments).await.unwrap();
    let (body, status) = said.out.rsplit_once('\n').unwrap_or_else(|| panic!("{said:?}"));
    (status.to_owned(), body.to_owned())
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "!say hello"}]})
}

#[tokio::test]
async fn a_call_names_litellm_and_where_it_went() {
    let tasks = Tasks::default();
    let called = Watch::<ModelCalled>::watch(&tasks).await.unwrap();
    let permitted = Watch::<EgressPermitted>::watch(&tasks).await.unwrap();
    let turn = agent::say(TIER, "!say hello").await.unwrap();
    let event = called.wait("the call", |event| event.trace_id == turn.trace_id).await.unwrap();
    assert_eq!((event.model.as_str(), event.status, event.tier.as_str()), ("assistant", 200, TIER));
    assert_eq!(event.confidential, Some(Confidentiality::None));
    assert!(event.api_base.contains(MODEL_HOST), "{event:?}");
    let of_the_call = |event: &EgressPermitted| event.trace_id == turn.trace_id && event.layer == Layer::Models;
    let left = permitted.wait("that it may leave", of_the_call).await.unwrap();
    assert_eq!((left.host.as_str(), left.port, left.layer), (LITELLM, LITELLM_PORT, Layer::Models), "{left:?}");

    let client = EgressServiceClient::new(agent::connect("egress-auditor").await.unwrap());
    let line = until("LiteLLM in the trace", Duration::from_secs(20), || {
        let (mut client, trace_id) = (client.clone(), turn.trace_id.clone());
        async move {
            let lines = client.show_trace(ShowTraceRequest { trace_id }).await?.into_inner().lines;
            // Spans come one after the other; before the root is there, what hangs from it seems to be one.
            let whole = lines.iter().any(|line| line.name == "turn" && line.depth == 0);
            Ok(lines.into_iter().find(|line| whole && line.name == "broker.litellm"))
        }
    })
    .await
    .unwrap();
    assert_eq!(line.attributes.get("server.address").map(String::as_str), Some(LITELLM), "{line:?}");
    assert!(line.depth >= 2, "it hangs under the turn: {line:?}");
    for bytes in ["bytes_out", "bytes_in"] {
        let number = line.attributes.get(bytes).and_then(|number| number.parse::<u64>().ok());
        assert!(number.is_some_and(|number| number > 0), "{bytes} of the call itself: {line:?}");
    }
}

#[tokio::test]
async fn the_model_sees_the_providers_key_and_no_other() {
    let cursor = sink::now().await.unwrap();
    let turn = agent::say(TIER, "!say hello").await.unwrap();
    assert_eq!(turn.failure, "");
    let requests = asked(&sink::since(cursor).await.unwrap());
    assert!(requests.iter().any(|(path, ..)| path.starts_with("/v1/chat/completions")), "{requests:?}");
    for (path, authorized, headers, _) in &requests {
        assert!(authorized, "{path} came with another key");
        assert_eq!(headers.iter().filter(|name| *name == "authorization").count(), 1, "{headers:?}");
        for name in ["api-key", "x-api-key", "x-litellm-api-key", "proxy-authorization", "traceparent", "cookie"] {
            assert!(!headers.iter().any(|header| header == name), "{name} left: {headers:?}");
        }
    }

    // The control: the model tells these keys apart.
    let tier = Door::of(AGENT).await.unwrap().token;
    let plain = Plain::make().await.unwrap();
    let url = format!("https://{MODEL_HOST}/v1/models");
    let mut statuses = Vec::new();
    for key in [tier, master_key(), provider_key()] {
        let bearer = format!("Authorization: Bearer {key}");
        let command = ["curl", "-sSk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", &bearer, &url];
        statuses.push(plain.run(&command).await.unwrap().out);
    }
    plain.remove().await;
    assert_eq!(statuses, ["401", "401", "200"], "control: the tier's token, LiteLLM's master key, the provider's key");
}

#[tokio::test]
async fn only_the_broker_reaches_litellm() {
    let addresses = probe::addresses(LITELLM).await.unwrap();
    assert!(addresses.len() >= 2, "{addresses:?}");
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    for (network, address) in &addresses {
        assert!(!probe::opens(AGENT, address, LITELLM_PORT).await.unwrap(), "{network}");
        let fits = |e: &EgressDenied| e.layer == Layer::Packet && e.host == *address && e.port == Some(LITELLM_PORT);
        let event = denials.wait("the denial", fits).await.unwrap();
        assert_eq!(event.tier.as_str(), TIER);
    }
    let models = addresses.iter().find(|(network, _)| network.ends_with("models")).unwrap();
    assert!(probe::opens(BROKER, &models.1, LITELLM_PORT).await.unwrap(), "control: the broker reaches it");
}

#[tokio::test]
async fn an_unknown_model_is_answered_with_those_there_are() {
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let (status, list) = ask("/v1/models", None).await;
    assert!(status == "200" && list.contains("assistant") && list.contains("thinker"), "{status} {list}");
    assert!(!list.contains("drill-model"), "what stands behind a name is nobody's business: {list}");
    // What the model was asked by that, apart from the turn around it: the agent waits.
    let asking = async |model: &str| {
        let cursor = sink::now().await.unwrap();
        let answer = ask("/v1/chat/completions", Some(&chat(model))).await;
        (answer, asked(&sink::since(cursor).await.unwrap()))
    };
    let work = async || (asking("drill-model").await, asking("thinker").await);
    let (turn, (unknown, known)) = agent::during_turn(TIER, work).await.unwrap();
    let ((status, body), requests) = unknown;
    assert_eq!(status, "404", "{body}");
    assert!(body.contains("assistant, thinker"), "{body}");
    assert_eq!(requests, [], "the model was asked");
    let fits = |e: &EgressDenied| e.layer == Layer::Models && e.reason == "model-not-offered";
    let event = denials.wait("the denial", fits).await.unwrap();
    assert_eq!(event.trace_id, turn.trace_id, "the event leads to the turn");
    let ((status, body), requests) = known;
    assert!(status == "200" && body.contains("hello"), "control: the other name is answered: {status} {body}");
    assert_eq!(requests.len(), 1, "control: and the model was asked: {requests:?}");
}

/// The broker's view of the one provider of a drill, once `wanted` says yes to it.
async fn provider(what: &str, wanted: impl Fn(&ModelProvider) -> bool) -> anyhow::Result<ModelProvider> {
    let client = SecretServiceClient::new(agent::connect("secret-broker").await?);
    until(what, Duration::from_secs(30), || {
        let (mut client, wanted) = (client.clone(), &wanted);
        async move {
            let answer = client.list_models(ListModelsRequest { ask_anew: true }).await?.into_inner();
            Ok(answer.providers.into_iter().find(|provider| provider.has_list && wanted(provider)))
        }
    })
    .await
}

#[tokio::test]
async fn a_model_that_its_host_does_not_have_is_told_with_those_it_has() {
    let status = async || run(SUPERVISOR, &["status"]).await.map(|said| said.out);
    let missing =
        |provider: &ModelProvider| provider.models.iter().any(|model| model.presence() == ModelPresence::NotListed);
    provider("the model is listed", |provider| !missing(provider)).await.unwrap();
    let before = status().await.unwrap();
    let cursor = sink::now().await.unwrap();
    // In a turn, because calls are; the agent waits. Nothing is judged before the model has its name again.
    let work = async || {
        let named = sink::name_model(Some("drill-model-2")).await;
        let told = provider("that it is not listed", missing).await;
        let shown = status().await;
        let said = ask("/v1/chat/completions", Some(&chat("assistant"))).await;
        sink::name_model(None).await.unwrap();
        named.and_then(|()| Ok((told?, shown?, said)))
    };
    let (_, outcome) = agent::during_turn(TIER, work).await.unwrap();
    let (told, shown, (code, said)) = outcome.unwrap();
    provider("the model is listed again", |provider| !missing(provider)).await.unwrap();
    let after = status().await.unwrap();

    assert_eq!(told.listed, ["drill-model-2"]);
    let sentence = "lists no model \"drill-model\", which stands behind assistant and thinker; set \
                    model.models.assistant in supervisor.json to one that it lists, and run deploy/up.sh: drill-model-2";
    assert!(matches!(told.remarks.as_slice(), [one] if one.contains(sentence)), "{:?}", told.remarks);
    assert!(shown.contains(sentence), "{shown}");
    assert!(!before.contains("lists no model") && !after.contains("lists no model"), "control: {before}\n{after}");
    let body: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code.as_str(), body["reason"].as_str()), ("404", Some("model-not-at-provider")), "{said}");
    let (detail, fix) = sentence.split_once("; ").unwrap();
    assert!(said.contains(&detail.replace('"', "\\\"")) && said.contains(fix), "the same words: {said}");
    // LiteLLM alone has the key that opened the list.
    let entries = sink::since(cursor).await.unwrap();
    let lists = sink::requests_to(&entries, MODEL_HOST).into_iter().filter_map(|arrival| match arrival {
        Arrival::Request { path, authorized, headers, .. } if path == LIST => Some((*authorized, headers.clone())),
        _ => None,
    });
    let lists: Vec<_> = lists.collect();
    assert!(!lists.is_empty() && lists.iter().all(|(authorized, _)| *authorized), "{lists:?}");
    for (_, headers) in &lists {
        assert!(!headers.iter().any(|name| name == "cookie" || name == "traceparent"), "{headers:?}");
    }
}

#[tokio::test]
async fn nobody_can_lead_a_call_elsewhere() {
    let ways = [
        ("fallbacks", json!(["vendor/other"])),
        ("api_base", json!("https://outside.drill.example/v1")),
        ("base_url", json!("https://outside.drill.example/v1")),
        ("api_key", json!("sk-mine")),
        ("user_config", json!({"model_list": []})),
        ("mock_response", json!("bought")),
        ("metadata", json!({"x": 1})),
        ("extra_headers", json!({"x": "y"})),
    ];
    let work = async || {
        let mut outcomes = Vec::new();
        for (field, value) in &ways {
            let cursor = sink::now().await.unwrap();
            let mut body = chat("assistant");
            body.as_object_mut().unwrap().insert((*field).to_owned(), value.clone());
            let (status, said) = ask("/v1/chat/completions", Some(&body)).await;
            outcomes.push((*field, status, said, sink::since(cursor).await.unwrap()));
        }
        let cursor = sink::now().await.unwrap();
        let plain = ask("/v1/chat/completions", Some(&chat("assistant"))).await;
        (outcomes, plain, asked(&sink::since(cursor).await.unwrap()))
    };
    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let (_, (outcomes, plain, requests)) = agent::during_turn(TIER, work).await.unwrap();
    for (field, status, said, arrived) in &outcomes {
        assert!(status == "400" && said.contains(field), "{field}: {status} {said}");
        assert_eq!(asked(arrived), [], "{field}: the model was asked");
        assert!(sink::requests_to(arrived, "outside.drill.example").is_empty(), "{field}");
    }
    denials.wait("the denial", |e| e.layer == Layer::Models && e.reason == "field-not-allowed").await.unwrap();
    assert_eq!(plain.0, "200", "control: the same without that field: {plain:?}");
    assert!(requests.len() == 1 && requests.iter().all(|(_, authorized, ..)| *authorized), "control: {requests:?}");
}

#[tokio::test]
async fn the_providers_key_is_with_litellm_alone() {
    let key = provider_key();
    assert!(key.len() >= 16, "control: there is a key to look for");
    // Something to remember it from.
    assert_eq!(agent::say(TIER, "!say hello").await.unwrap().failure, "");
    let tiers = [AGENT, SERVER, UPDATES_AGENT, UPDATES_SERVER, SANDBOXED_AGENT, SANDBOX, "sandbox-unrestricted-filter"];
    for container in tiers.into_iter().chain([BROKER, "assistant-channel-bridge", "assistant-egress-auditor"]) {
        let state = run("docker", &["inspect", container]).await.unwrap().ok().unwrap();
        assert!(!state.contains(&key), "{container}: in its Docker configuration");
        // The sandbox's images are unpacked there; they are older than the key.
        let files = search::files(container, &key, &["overlay2"]).await.unwrap();
        assert_eq!(files, "", "{container}: in its files");
        assert_eq!(search::processes(container, &key).await.unwrap(), Vec::<String>::new(), "{container}");
        let memory = search::memory(container, &key).await.unwrap();
        assert!(memory.bytes > 0, "control: no memory of {container} was read");
        assert_eq!(memory.found, Vec::<String>::new(), "{container}: in its memory");
    }
    let state = run("docker", &["inspect", LITELLM]).await.unwrap().ok().unwrap();
    assert!(!state.contains(&key), "{LITELLM}: in its Docker configuration");
    assert_eq!(search::processes(LITELLM, &key).await.unwrap(), Vec::<String>::new(), "{LITELLM}");
    let memory = search::memory(LITELLM, &key).await.unwrap();
    assert_ne!(memory.found, Vec::<String>::new(), "control: the search finds it where it must be");
    assert_ne!(search::files(LITELLM, &key, &[]).await.unwrap(), "", "control: also in a file");
}
