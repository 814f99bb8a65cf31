//! The model route: a LiteLLM per class of confidentiality, and the TEE proxy of the confidential one. None of them is on
//! a tier's network; the confidential LiteLLM is on `models` alone, so it reaches nothing but the proxy.

use assistant_proto::config::{Confidentiality, LITELLM_PORT, Mode, SQUID_PORT};
use assistant_proto::name::SecretName;

use super::super::outward::{TEE_IMAGE, has_route, has_tee};
use super::super::{ASSISTANT_GID, ContainerSpec, Content, DesiredError, EnvVar, Ready, Role, VolumeSpec};
use super::{DATA, ETC, Parts, limits, plain};
use crate::addresses::{HOST_LITELLM, HOST_LITELLM_CONFIDENTIAL, HOST_SQUID, HOST_TEE, MODELS, TRANSIT};
use crate::render;
use crate::tokens::{SQUID_MODELS_USER, SQUID_TEE_USER};

const UID_LITELLM: u32 = 8711;
const UID_TEE: u32 = 8712;
/// Where the TEE proxy listens, on `models`.
pub(crate) const TEE_PORT: u16 = 8080;

type Made = Result<(ContainerSpec, Vec<VolumeSpec>), DesiredError>;

/// What of the model route this configuration has.
pub(super) fn all(parts: &Parts<'_>) -> Result<Vec<(ContainerSpec, Vec<VolumeSpec>)>, DesiredError> {
    let mut made = Vec::new();
    if has_tee(parts) {
        made.push(tee_proxy(parts)?);
    }
    for class in [Confidentiality::Required, Confidentiality::None] {
        if has_route(parts, class) {
            made.push(litellm(parts, class)?);
        }
    }
    Ok(made)
}

/// Host number of the LiteLLM of a class on `models`.
pub(crate) fn host(class: Confidentiality) -> u8 {
    match class {
        Confidentiality::None => HOST_LITELLM,
        Confidentiality::Required => HOST_LITELLM_CONFIDENTIAL,
    }
}

fn litellm(parts: &Parts<'_>, class: Confidentiality) -> Made {
    let name = match class {
        Confidentiality::None => "assistant-litellm",
        Confidentiality::Required => "assistant-litellm-confidential",
    };
    let image = parts.image("litellm")?;
    // It takes 350 MiB at rest.
    let limits = limits(1024, 128, 20);
    let mut spec = parts.container(name, Role::LiteLlm(class), image, UID_LITELLM, ASSISTANT_GID, limits);
    let address = parts.attach(&mut spec, MODELS, host(class))?;
    spec.entrypoint = Some(vec!["/usr/local/bin/litellm-serve".to_owned()]);
    spec.command = vec!["--listen".to_owned(), format!("{address}:{LITELLM_PORT}")];
    if parts.settings.mode == Mode::Drill {
        spec.command.push("--only-these-roots".to_owned());
    }
    // Its answer to /health/readiness would be one more request through Python every few seconds; it listens only once it
    // has read its configuration.
    spec.ready = Ready::TcpInNetns { port: LITELLM_PORT };
    parts.public(&mut spec, "litellm.yaml", render::litellm_config(parts, class)?);
    let master = parts.material.tokens.litellm(class).ok_or(DesiredError::Missing { what: "LiteLLM's master key" })?;
    parts.private(&mut spec, "keys/LITELLM_MASTER_KEY", render::master_key(master));
    if class == Confidentiality::None {
        parts.attach(&mut spec, TRANSIT, HOST_LITELLM)?;
        if let Some(secret) = parts.settings.model.as_ref().and_then(|model| model.key_secret.as_ref()) {
            secret_file(parts, &mut spec, "keys/MODEL_API_KEY", secret)?;
        }
        let proxy = squid_url(parts, SQUID_MODELS_USER)?;
        parts.private(&mut spec, "keys/HTTPS_PROXY", proxy.clone());
        parts.private(&mut spec, "keys/HTTP_PROXY", proxy);
        parts.roots(&mut spec);
    }
    parts.resolve(&mut spec, None);
    Ok((spec, Vec::new()))
}

/// The published image, with its own entrypoint. It verifies the enclave before it listens; an open port means attested.
fn tee_proxy(parts: &Parts<'_>) -> Made {
    let missing = DesiredError::Missing { what: "the image of the TEE proxy" };
    let image = parts.images.reference(TEE_IMAGE).ok_or(missing)?.to_owned();
    let tee = parts.settings.tee.as_ref().ok_or(DesiredError::Missing { what: "the attested model route" })?;
    let name = "assistant-privatemode";
    let mut spec = parts.container(name, Role::TeeProxy, image, UID_TEE, ASSISTANT_GID, limits(256, 128, 10));
    parts.attach(&mut spec, MODELS, HOST_TEE)?;
    parts.attach(&mut spec, TRANSIT, HOST_TEE)?;
    spec.command = [
        format!("--apiKey=@{ETC}/keys/privatemode_api_key"),
        format!("--port={TEE_PORT}"),
        // The log of manifests is kept: what was trusted, and since when.
        format!("--workspace={DATA}"),
        "--nvidiaOCSPAllowUnknown=false".to_owned(),
        "--nvidiaOCSPRevokedGracePeriod=0".to_owned(),
    ]
    .to_vec();
    let proxy = squid_url(parts, SQUID_TEE_USER)?;
    let secret = |name: &str| EnvVar { name: name.to_owned(), value: proxy.clone(), secret: true };
    spec.env = vec![secret("HTTPS_PROXY"), plain("NO_PROXY", "127.0.0.1,localhost")];
    if parts.settings.mode == Mode::Drill && !parts.material.upstream_roots.is_empty() {
        // Something else stands in its place, and the drill's hosts in that of its hosts.
        spec.env.push(plain("SSL_CERT_FILE", format!("{ETC}/roots/0.pem")));
        parts.roots(&mut spec);
    }
    spec.ready = Ready::TcpInNetns { port: TEE_PORT };
    secret_file(parts, &mut spec, "keys/privatemode_api_key", &tee.key_secret)?;
    let volume = parts.data(&mut spec, "privatemode", DATA);
    parts.resolve(&mut spec, None);
    Ok((spec, vec![volume]))
}

/// Squid's address with a service's user and password: for programs that know nothing else.
pub(super) fn squid_url(parts: &Parts<'_>, user: &'static str) -> Result<String, DesiredError> {
    let password = parts.material.tokens.squid_user(user).ok_or(DesiredError::Missing { what: "a user of Squid" })?;
    let squid = parts.address(TRANSIT, HOST_SQUID)?;
    Ok(format!("http://{user}:{}@{squid}:{SQUID_PORT}", password.expose()))
}

/// Hands on a SaaS secret without reading it.
pub(super) fn secret_file(
    parts: &Parts<'_>,
    spec: &mut ContainerSpec,
    name: &str,
    secret: &SecretName,
) -> Result<(), DesiredError> {
    let sha256 = parts.material.secrets.get(secret).ok_or(DesiredError::Missing { what: "the hash of a secret" })?;
    let source = parts.settings.secret_file(secret);
    parts.private(spec, name, Content::CopyOf { source, sha256: sha256.clone() });
    Ok(())
}
