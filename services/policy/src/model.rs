//! The decision on model calls. What permits one is the stack's model route, not a rule of the tier: the route says which
//! models there are, under which names, and which key is sent.

use assistant_proto::config::ModelRoute;
use assistant_proto::name::{PrincipalName, SecretName};

use crate::denial::Denial;

/// What events name as the rule of a model call.
pub const MODEL_RULE: &str = "model-route";

/// Proof that the model route offers a model to a principal. Owns both names: what is sent is read from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPermit {
    principal: PrincipalName,
    model: String,
    upstream: String,
    key: Option<SecretName>,
}

impl ModelPermit {
    /// Who may call it.
    #[must_use]
    pub fn principal(&self) -> &PrincipalName {
        &self.principal
    }

    /// The model by the name tiers use.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The model by the name the route's host knows.
    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Which secret is sent as bearer token, if any.
    #[must_use]
    pub fn key(&self) -> Option<&SecretName> {
        self.key.as_ref()
    }

    /// See [`MODEL_RULE`].
    #[must_use]
    pub fn rule(&self) -> &'static str {
        MODEL_RULE
    }
}

/// Decides a model call by the name of the model, which has to be the route's own spelling.
///
/// # Errors
/// `model-not-offered`.
pub fn decide_model(route: &ModelRoute, principal: &PrincipalName, model: &str) -> Result<ModelPermit, Denial> {
    match route.models.get(model) {
        Some(upstream) => Ok(ModelPermit {
            principal: principal.clone(),
            model: model.to_owned(),
            upstream: upstream.clone(),
            key: route.key.clone(),
        }),
        None => {
            let names: Vec<&str> = route.models.keys().map(String::as_str).collect();
            Err(Denial::new(
                "model-not-offered",
                "the request names a model that this tier is not offered",
                format!("use one of: {}; the list is the stack's model route", names.join(", ")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn only_offered_names_are_permitted() {
        let route = ModelRoute {
            base_url: "https://m.example/v1".to_owned(),
            key: Some("key".parse().unwrap()),
            squid_user: "models".to_owned(),
            models: [("assistant".to_owned(), "vendor-1".to_owned())].into(),
        };
        let agent = "zeroclaw-tasks".parse().unwrap();
        let permit = decide_model(&route, &agent, "assistant").unwrap();
        assert_eq!((permit.model(), permit.upstream(), permit.principal()), ("assistant", "vendor-1", &agent));
        assert_eq!(permit.key(), route.key.as_ref());
        for other in ["vendor-1", "Assistant", "", "assistant "] {
            let denial = decide_model(&route, &agent, other).unwrap_err();
            assert_eq!(denial.reason, "model-not-offered", "{other}");
            assert!(denial.fix.contains("assistant") && !denial.fix.contains("vendor"), "{}", denial.fix);
        }
    }
}
