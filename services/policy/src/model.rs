//! The decision on model calls. What permits one is the stack's model route for the tier's class of confidentiality, not
//! a rule of the tier: the route says which models there are. A tier has the route of its own class and no other, and a
//! [`ModelPermit`] carries the class, so that whoever sends cannot take the wrong way.

use assistant_proto::config::{Confidentiality, ModelRoute};
use assistant_proto::name::{PrincipalName, TierName};

use crate::denial::Denial;

/// What events name as the rule of a model call.
pub const MODEL_RULE: &str = "model-route";

/// What one class of tiers is offered. Made by [`offer`] only.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    route: &'a ModelRoute,
}

/// Proof that the route of a class offers a model to a principal. Owns the name: what is sent is read from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPermit {
    principal: PrincipalName,
    model: String,
    confidential: Confidentiality,
}

impl ModelPermit {
    /// Who may call it.
    #[must_use]
    pub fn principal(&self) -> &PrincipalName {
        &self.principal
    }

    /// The model, by the one name that tiers and LiteLLM use.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whose route it goes by.
    #[must_use]
    pub fn confidential(&self) -> Confidentiality {
        self.confidential
    }

    /// See [`MODEL_RULE`].
    #[must_use]
    pub fn rule(&self) -> &'static str {
        MODEL_RULE
    }
}

/// What a tier of a class is offered.
///
/// # Errors
/// `no-model-route`: there is none for that class, and another class's is never taken in its place.
pub fn offer<'a>(routes: &'a [ModelRoute], tier: &TierName, class: Confidentiality) -> Result<Offer<'a>, Denial> {
    if let Some(route) = routes.iter().find(|route| route.confidential == class) {
        return Ok(Offer { route });
    }
    Err(match class {
        Confidentiality::Required => Denial::new(
            "no-model-route",
            format!("the prompts of tier {tier} are confidential, and the stack has no attested model route"),
            format!(
                "set PRIVATEMODE_API_KEY in .env and run deploy/up.sh; or, if its prompts may go to any model, set \
                 `confidential: none` under `model` of tier {tier} in tiers.yaml"
            ),
        ),
        Confidentiality::None => Denial::new(
            "no-model-route",
            format!("tier {tier} uses the model route without attestation, and the stack has none"),
            format!(
                "set OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL in .env and run deploy/up.sh; or set \
                 `confidential: required` under `model` of tier {tier} in tiers.yaml, where the stack has an attested route"
            ),
        ),
    })
}

impl<'a> Offer<'a> {
    /// The names the tier may use.
    #[must_use]
    pub fn models(self) -> &'a [String] {
        &self.route.models
    }

    /// Decides a call by the name of the model, which has to be the route's own spelling.
    ///
    /// # Errors
    /// `model-not-offered`, with the names there are.
    pub fn decide(self, principal: &PrincipalName, model: &str) -> Result<ModelPermit, Denial> {
        if self.route.models.iter().any(|offered| offered == model) {
            return Ok(ModelPermit {
                principal: principal.clone(),
                model: model.to_owned(),
                confidential: self.route.confidential,
            });
        }
        Err(Denial::new(
            "model-not-offered",
            "the request names a model that this tier is not offered",
            format!("use one of: {}; the list is the stack's model route", self.route.models.join(", ")),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn route(confidential: Confidentiality, models: &[&str]) -> ModelRoute {
        ModelRoute {
            confidential,
            litellm: "10.87.4.11:4000".parse().unwrap(),
            key_file: "/none".into(),
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            provider: String::new(),
            upstream: Vec::new(),
        }
    }

    #[test]
    fn only_offered_names_are_permitted() {
        let routes = [route(Confidentiality::None, &["assistant", "thinker"])];
        let agent = "zeroclaw-tasks".parse().unwrap();
        let offer = offer(&routes, &"tasks".parse().unwrap(), Confidentiality::None).unwrap();
        assert_eq!(offer.models(), ["assistant", "thinker"]);
        let permit = offer.decide(&agent, "thinker").unwrap();
        assert_eq!((permit.model(), permit.principal()), ("thinker", &agent));
        for other in ["vendor-1", "Assistant", "", "assistant "] {
            let denial = offer.decide(&agent, other).unwrap_err();
            assert_eq!(denial.reason, "model-not-offered", "{other}");
            assert!(denial.fix.contains("assistant, thinker"), "{}", denial.fix);
        }
    }

    #[test]
    fn a_class_has_its_own_route_or_none() {
        let tier = "tasks".parse().unwrap();
        let agent = "zeroclaw-tasks".parse().unwrap();
        let classes = [Confidentiality::Required, Confidentiality::None];
        let both = classes.map(|class| route(class, &["assistant"]));
        for class in classes {
            let permit = offer(&both, &tier, class).unwrap().decide(&agent, "assistant").unwrap();
            assert_eq!(permit.confidential(), class);
            let others: Vec<_> = both.iter().filter(|route| route.confidential != class).cloned().collect();
            for routes in [&others[..], &[]] {
                let denial = offer(routes, &tier, class).unwrap_err();
                assert_eq!(denial.reason, "no-model-route");
                assert!(denial.fix.contains(".env") && denial.fix.contains("tier tasks"), "{}", denial.fix);
            }
        }
    }
}
