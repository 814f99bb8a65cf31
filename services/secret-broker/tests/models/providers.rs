//! Whether the provider has the models that stand behind the stack's names: asked through LiteLLM, told to operators, and
//! to who calls one that is not there.

use assistant_proto::config::{LITELLM_PROVIDER_MODELS, UpstreamModel};
use assistant_proto::secret::secret_service_server::SecretService as _;
use assistant_proto::secret::{ListModelsRequest, ListRemarksRequest, ModelPresence, ModelProvider};
use http::StatusCode;
use secret_broker::control::Control;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use tokio_util::sync::CancellationToken;
use tonic::Request;

use crate::stand::{MODEL_KEY, PATIENCE, Setup, Stand, ask, post};
use crate::{CHAT, hello, reason, with_json};

fn upstream(assistant: &str, thinker: &str) -> Vec<UpstreamModel> {
    let model = |name: &str, upstream: &str, variable: &str| UpstreamModel {
        name: name.to_owned(),
        upstream: upstream.to_owned(),
        named_in: format!("{variable} in .env"),
    };
    vec![model("assistant", assistant, "OPENAI_MODEL"), model("thinker", thinker, "OPENAI_THINKER_MODEL")]
}

/// A provider that answers the question for its list with this, and every call with 404.
async fn listing(names: (&str, &str), status: u16, list: Value) -> Stand {
    let setup = Setup { upstream: upstream(names.0, names.1), ..Setup::default() };
    Stand::new(setup, move |arrived| match arrived.path.as_str() {
        LITELLM_PROVIDER_MODELS => with_json(status, &list),
        _ => with_json(404, &json!({"error": {"message": "sk-provider-key has no such model"}})),
    })
    .await
}

fn two() -> Value {
    json!({"object": "list", "data": [{"id": "real-large"}, {"id": "real-small", "owned_by": "\u{1b}[2J"}]})
}

async fn provider(stand: &Stand) -> ModelProvider {
    let control = Control::new(Arc::clone(&stand.state));
    let mut answer =
        control.list_models(Request::new(ListModelsRequest { ask_anew: false })).await.unwrap().into_inner();
    assert_eq!(answer.providers.len(), 1, "one route, one provider");
    answer.providers.remove(0)
}

async fn remarks(stand: &Stand) -> Vec<String> {
    let control = Control::new(Arc::clone(&stand.state));
    control.list_remarks(Request::new(ListRemarksRequest {})).await.unwrap().into_inner().remarks
}

async fn call(stand: &Stand, model: &str) -> (StatusCode, String, String) {
    let mut body = hello();
    body["model"] = json!(model);
    let answer = ask(stand.models().await, post(CHAT, body.to_string())).await;
    (answer.status, reason(&answer), answer.text())
}

#[tokio::test]
async fn a_model_that_is_not_there_is_told_with_those_that_are() {
    let stand = listing(("reel-large", "real-small"), 200, two()).await;
    // Before anybody asked, a failed call is what it is.
    assert_eq!(call(&stand, "assistant").await.1, "model-refused");

    let provider = provider(&stand).await;
    assert!(provider.has_list && !provider.confidential, "{provider:?}");
    assert_eq!((provider.listed, provider.listed_total), (vec!["real-large".to_owned(), "real-small".to_owned()], 2));
    let presence: Vec<_> = provider.models.iter().map(|model| (model.name.as_str(), model.presence())).collect();
    assert_eq!(presence, [("assistant", ModelPresence::NotListed), ("thinker", ModelPresence::Listed)]);

    let sentence = "https://llm.example/v1 lists no model \"reel-large\", which stands behind assistant; set OPENAI_MODEL in \
                    .env to one that it lists, and run deploy/up.sh: real-large, real-small";
    assert_eq!(remarks(&stand).await, [sentence]);

    let (status, why, text) = call(&stand, "assistant").await;
    assert_eq!((status, why.as_str()), (StatusCode::NOT_FOUND, "model-not-at-provider"));
    for part in ["lists no model \\\"reel-large\\\"", "OPENAI_MODEL in .env", "real-large, real-small"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("sk-provider-key"), "{text}");
    // The control: a model that is there, and fails all the same.
    assert_eq!(call(&stand, "thinker").await.1, "model-refused");
}

#[tokio::test]
async fn the_question_has_the_master_key_and_nothing_of_a_tier() {
    let stand = listing(("real-large", "real-small"), 200, two()).await;
    assert_eq!(remarks(&stand).await, [] as [&str; 0]);
    // Good news is not asked for again by each who wants to know.
    assert_eq!(remarks(&stand).await, [] as [&str; 0]);
    assert_eq!(provider(&stand).await.models[0].presence(), ModelPresence::Listed);
    let arrived = stand.upstream.all();
    let [question] = arrived.as_slice() else { panic!("{arrived:?}") };
    assert_eq!((question.method.as_str(), question.path.as_str()), ("GET", LITELLM_PROVIDER_MODELS));
    assert_eq!((question.header("authorization"), question.body.len()), (format!("Bearer {MODEL_KEY}").as_str(), 0));
    let mut names: Vec<_> = question.headers.keys().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["accept", "accept-encoding", "authorization", "host", "user-agent"]);
    // It was nobody's call: no permit, no event.
    assert_eq!(stand.bus.emitted(), [] as [(String, Value); 0]);
}

#[tokio::test]
async fn who_has_no_list_cannot_be_checked_and_nothing_is_claimed() {
    let no_list = [
        (404, json!({"error": "no such"}), "answered with status 404"),
        (200, json!({"models": ["x"]}), "no list of models"),
        (200, json!({"data": []}), "its list is empty"),
    ];
    for (status, list, why) in no_list {
        let stand = listing(("reel-large", "real-small"), status, list).await;
        let remarks = remarks(&stand).await;
        assert!(
            matches!(remarks.as_slice(), [one] if one.contains("cannot be checked") && one.contains(why)),
            "{remarks:?}"
        );
        let provider = provider(&stand).await;
        assert!(!provider.has_list && provider.models.iter().all(|model| model.presence() == ModelPresence::Unknown));
        assert_eq!(call(&stand, "assistant").await.1, "model-refused", "{why}");
    }
    for (status, why) in [(401, "refused the stack's key"), (503, "failed with status 503")] {
        let stand = listing(("reel-large", "real-small"), status, json!({})).await;
        let remarks = remarks(&stand).await;
        assert!(
            matches!(remarks.as_slice(), [one] if one.contains("is not known") && one.contains(why)),
            "{remarks:?}"
        );
    }
}

#[tokio::test]
async fn a_list_that_is_too_long_is_not_read() {
    let huge = json!({"data": [{"id": "real-large", "description": "x".repeat(3 * 1024 * 1024)}]});
    let stand = listing(("reel-large", "real-small"), 200, huge).await;
    let said = remarks(&stand).await;
    assert!(matches!(said.as_slice(), [one] if one.contains("is longer than is read")), "{said:?}");
}

#[tokio::test]
async fn it_is_asked_from_the_start_until_it_answers() {
    // LiteLLM takes a while to start.
    let status = Arc::new(AtomicU16::new(503));
    let (now, setup) =
        (Arc::clone(&status), Setup { upstream: upstream("reel-large", "real-small"), ..Setup::default() });
    let stand = Stand::new(setup, move |arrived| match arrived.path.as_str() {
        LITELLM_PROVIDER_MODELS => with_json(now.load(Ordering::SeqCst), &two()),
        _ => with_json(404, &json!({})),
    })
    .await;
    let draining = CancellationToken::new();
    stand.state.models.follow_providers(&draining);
    let waited = tokio::time::timeout(PATIENCE, async {
        while stand.upstream.all().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(call(&stand, "assistant").await.1, "model-refused");
        status.store(200, Ordering::SeqCst);
        while call(&stand, "assistant").await.1 != "model-not-at-provider" {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("it is asked again by itself");
    draining.cancel();
}
