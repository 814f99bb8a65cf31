//! litellm.yaml: which models a LiteLLM knows, and that it neither calls home, nor logs what is said, nor goes elsewhere.
//!
//! Written as JSON, which is YAML, so that no name of a model needs quoting rules of its own. Keys are files that the
//! launcher of the image reads: nothing here is secret.

use std::net::SocketAddrV4;

use assistant_proto::config::{Confidentiality, LITELLM_PROVIDER_MODELS};
use serde_json::{Value, json};

use crate::addresses::{HOST_TEE, MODELS};
use crate::desired::DesiredError;
use crate::desired::containers::models::TEE_PORT;
use crate::desired::containers::{ETC, Parts};
use crate::tokens::Token;

/// Seconds that a model may take for an answer.
const REQUEST_SECONDS: u32 = 600;
/// Seconds that the provider may take to list its models. The broker waits for a little longer.
const LIST_SECONDS: u32 = 6;
/// What LiteLLM sends where nobody asks for a key.
const NO_KEY: &str = "none";

/// File of LiteLLM's master key beneath the broker's /etc/assistant.
pub(crate) fn master_key_file(class: Confidentiality) -> String {
    format!("litellm/{}.key", class.as_str())
}

/// The text of a master key: LiteLLM takes only what begins like this.
pub(crate) fn master_key(token: &Token) -> String {
    format!("sk-{}", token.expose())
}

/// Headers of the question for the provider's list. LiteLLM puts the key in, in its own process.
fn list_headers(api_key: &str) -> Value {
    let mut headers = json!({ "accept": "application/json", "accept-encoding": "identity" });
    if let Some(headers) = headers.as_object_mut().filter(|_| api_key != NO_KEY) {
        headers.insert("authorization".to_owned(), format!("Bearer {api_key}").into());
    }
    headers
}

pub(crate) fn litellm_config(parts: &Parts<'_>, class: Confidentiality) -> Result<String, DesiredError> {
    let missing = DesiredError::Missing { what: "a model route" };
    let (api_base, api_key, models) = match class {
        Confidentiality::Required => {
            let tee = SocketAddrV4::new(parts.address(MODELS, HOST_TEE)?, TEE_PORT);
            // The proxy puts in the account's key itself.
            let models = &parts.settings.tee.as_ref().ok_or(missing)?.models;
            (format!("http://{tee}/v1"), NO_KEY, models)
        }
        Confidentiality::None => {
            let model = parts.settings.model.as_ref().ok_or(missing)?;
            let key = if model.key_secret.is_some() { "os.environ/MODEL_API_KEY" } else { NO_KEY };
            (model.base_url.clone(), key, &model.models)
        }
    };
    // The one other thing that LiteLLM passes on: the provider's own list of models, asked for by the broker alone.
    let provider_models = json!({
        "path": LITELLM_PROVIDER_MODELS,
        "target": format!("{api_base}/models"),
        "methods": ["GET"],
        "include_subpath": false,
        // By LiteLLM's master key. Of the one who asks it passes on a query, and headers that begin with `x-pass-`, whatever
        // stands here; the broker sends neither.
        "auth": true,
        "forward_headers": false,
        "headers": list_headers(api_key),
        "timeout": LIST_SECONDS,
    });
    let list: Vec<Value> = models
        .iter()
        .map(|(name, upstream)| {
            json!({
                "model_name": name,
                "litellm_params": {
                    // "openai/" names the protocol, and keeps LiteLLM from guessing a provider by the rest.
                    "model": format!("openai/{upstream}"),
                    "api_base": api_base,
                    "api_key": api_key,
                },
            })
        })
        .collect();
    let config = json!({
        "model_list": list,
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            // What it would keep in a database or a cache is the broker's to keep, or nobody's.
            "disable_spend_logs": true,
            "disable_error_logs": true,
            "disable_reset_budget": true,
            "disable_master_key_return": true,
            // Else it asks each endpoint for its list of models, at the start and every five minutes.
            "disable_model_info_refresh": true,
            "pass_through_endpoints": [provider_models],
        },
        "litellm_settings": {
            "num_retries": 1,
            "request_timeout": REQUEST_SECONDS,
            // A parameter that the endpoint does not know is an error, not silently another request.
            "drop_params": false,
            "turn_off_message_logging": true,
            "redact_user_api_key_info": true,
            "telemetry": false,
            "success_callback": [],
            "failure_callback": [],
            "callbacks": [],
        },
        // No word of fallbacks: one route, one model. A fallback would be silent in the answer.
        "router_settings": { "num_retries": 1, "timeout": REQUEST_SECONDS, "disable_cooldowns": true },
    });
    let text = serde_json::to_string_pretty(&config);
    let text = text.map_err(|_| DesiredError::Unrenderable { file: "litellm.yaml" })?;
    Ok(format!("# Written by tier-supervisor; changes are overwritten. Keys are read from {ETC}/keys.\n{text}\n"))
}
