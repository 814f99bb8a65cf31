//! The running drill: where its parts are and what opens their doors. Only of a drill, whose secrets open nothing else.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use assistant_tests::doubles::{MARVIN, MARVIN_HOST, MODEL, MODEL_HOST};
use assistant_tests::harness::place::Place;
use assistant_tests::harness::{AGENT, SERVER, STATE, TIER, sink};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::request::{Ask, Route};

const PROXY_PORT: u16 = 10255;
const MODELS_PORT: u16 = 4000;
/// What is added to a request so that it has about 1 KB.
const PADDING: usize = 800;

/// What is measured.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) agent: Place,
    pub(crate) server: Place,
    pub(crate) broker: Place,
    pub(crate) squid: Place,
    pub(crate) auditor: Place,
    pub(crate) bridge: Place,
    /// ZeroClaw's gateway.
    pub(crate) gateway: SocketAddrV4,
    tier_address: Ipv4Addr,
    tools_address: Ipv4Addr,
    squid_address: SocketAddrV4,
    litellm_address: SocketAddrV4,
}

impl Stack {
    /// Looks whether the drill runs, and where.
    ///
    /// # Errors
    /// When it does not: nothing is measured then.
    pub(crate) async fn find() -> anyhow::Result<Self> {
        anyhow::ensure!(
            nix::unistd::geteuid().is_root(),
            "only root may enter the namespaces of containers: sudo tests/bench.sh"
        );
        sink::now().await.context("the drill is not up; run deploy/up.sh --drill first")?;
        let broker = config("assistant-secret-broker")?;
        let bridge = config("assistant-channel-bridge")?;
        let of_tier = |config: &Value, field: &str| -> anyhow::Result<String> {
            let tiers = config.get("tiers").and_then(Value::as_array).context("no tiers")?;
            let tier = tiers.iter().find(|tier| tier.get("name").and_then(Value::as_str) == Some(TIER));
            let value = tier.and_then(|tier| tier.get(field)).and_then(Value::as_str);
            Ok(value.with_context(|| format!("no {field} in the rendered configuration"))?.to_owned())
        };
        Ok(Self {
            agent: Place::of(AGENT).await?,
            server: Place::of(SERVER).await?,
            broker: Place::of("assistant-secret-broker").await?,
            squid: Place::of("assistant-squid").await?,
            auditor: Place::of("assistant-egress-auditor").await?,
            bridge: Place::of("assistant-channel-bridge").await?,
            gateway: of_tier(&bridge, "gateway")?.parse()?,
            tier_address: of_tier(&broker, "tier_address")?.parse()?,
            tools_address: of_tier(&broker, "tools_address")?.parse()?,
            squid_address: broker.get("squid").and_then(Value::as_str).context("no address of Squid")?.parse()?,
            litellm_address: broker
                .pointer("/models/0/litellm")
                .and_then(Value::as_str)
                .context("no address of LiteLLM")?
                .parse()?,
        })
    }

    /// To the task service: direct, through Squid, through broker and Squid.
    ///
    /// # Errors
    /// When a file of the drill is missing.
    pub(crate) fn to_task_service(&self) -> anyhow::Result<[Route; 3]> {
        let drill = trust("doubles/ca.pem")?;
        let ask = |token: String| Ask {
            method: Method::GET,
            path: "/api/todayItems",
            headers: vec![("x-api-token", token), ("x-padding", "x".repeat(PADDING))],
            body: Bytes::new(),
        };
        let real = ask(secret("secrets/marvin_api_key")?);
        let direct = Route {
            name: "direct, from Squid's place",
            place: self.squid.clone(),
            dial: SocketAddrV4::new(MARVIN, 443),
            tunnel: None,
            tls: Some(drill),
            host: MARVIN_HOST,
            ask: real,
        };
        let through_squid = Route {
            name: "Squid, from the broker's place",
            place: self.broker.clone(),
            dial: self.squid_address,
            tunnel: Some(self.squid_user(TIER)?),
            ..direct.clone()
        };
        let through_both = Route {
            name: "broker and Squid, from the MCP server's place",
            place: self.server.clone(),
            dial: self.tools_proxy(),
            tunnel: Some(self.principal()?),
            tls: Some(trust("pki/intercept-ca.pem")?),
            ask: ask("PLACEHOLDER_MARVIN_API_KEY".to_owned()),
            ..direct.clone()
        };
        Ok([direct, through_squid, through_both])
    }

    /// To the model: direct, through LiteLLM (which goes through Squid), through the model ingress and LiteLLM.
    ///
    /// # Errors
    /// When a file of the drill is missing.
    pub(crate) fn to_model(&self) -> anyhow::Result<[Route; 3]> {
        let ask = |model: &str, path: &'static str, token: &str| {
            let text = format!("!say ok\n{}", "x".repeat(PADDING));
            let body = json!({"model": model, "stream": false, "messages": [{"role": "user", "content": text}]});
            Ask {
                method: Method::POST,
                path,
                headers: vec![
                    ("authorization", format!("Bearer {token}")),
                    ("content-type", "application/json".to_owned()),
                ],
                body: Bytes::from(body.to_string()),
            }
        };
        let path = "/v1/chat/completions";
        let direct = Route {
            name: "direct, from Squid's place",
            place: self.squid.clone(),
            dial: SocketAddrV4::new(MODEL, 443),
            tunnel: None,
            tls: Some(trust("doubles/ca.pem")?),
            host: MODEL_HOST,
            ask: ask("drill-model", path, &secret("secrets/model_api_key")?),
        };
        let through_litellm = Route {
            name: "LiteLLM and Squid, from the broker's place",
            place: self.broker.clone(),
            dial: self.litellm_address,
            tls: None,
            host: "litellm",
            ask: ask("assistant", path, &secret("render/assistant-secret-broker/etc/litellm/none.key")?),
            ..direct.clone()
        };
        let through_ingress = Route {
            name: "ingress, LiteLLM and Squid, from the agent's place",
            place: self.agent.clone(),
            dial: SocketAddrV4::new(self.tier_address, MODELS_PORT),
            tunnel: None,
            tls: None,
            host: "models",
            ask: ask("assistant", path, &secret(&format!("tokens/principal/{AGENT}"))?),
        };
        Ok([direct, through_litellm, through_ingress])
    }

    /// The proxy on the network of the MCP servers.
    pub(crate) fn tools_proxy(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.tools_address, PROXY_PORT)
    }

    /// Squid.
    pub(crate) fn squid_proxy(&self) -> SocketAddrV4 {
        self.squid_address
    }

    /// `Proxy-Authorization` of the MCP server.
    ///
    /// # Errors
    /// When its ticket is not there.
    pub(crate) fn principal(&self) -> anyhow::Result<String> {
        Ok(basic(SERVER, &secret(&format!("tokens/principal/{SERVER}"))?))
    }

    /// `Proxy-Authorization` of a user of Squid.
    ///
    /// # Errors
    /// When its password is not there.
    pub(crate) fn squid_user(&self, user: &str) -> anyhow::Result<String> {
        Ok(basic(user, &secret(&format!("tokens/squid/{user}"))?))
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn config(container: &str) -> anyhow::Result<Value> {
    let path = format!("{STATE}/render/{container}/etc/config.json");
    let text = std::fs::read_to_string(&path).with_context(|| path)?;
    Ok(serde_json::from_str(&text)?)
}

/// A secret of the drill.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn secret(name: &str) -> anyhow::Result<String> {
    let path = format!("{STATE}/{name}");
    Ok(std::fs::read_to_string(&path).with_context(|| path)?.trim().to_owned())
}

/// TLS that believes one authority of the drill and begins anew each time: a resumed handshake would hide its cost.
fn trust(authority: &str) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(Path::new(STATE).join(authority)).with_context(|| authority.to_owned())?)?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
