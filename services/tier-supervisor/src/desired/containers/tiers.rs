//! The containers of a tier: its ZeroClaw and its MCP servers. Each is on one network, alone with the doors.

use assistant_proto::config::{GATEWAY_PORT, MCP_PORT, PROXY_PORT};

use super::super::{
    Attachment, ContainerSpec, DesiredError, EnvVar, Limits, Mount, MountSource, Ready, RenderedFile, Role, VolumeSpec,
};
use super::{ETC, Parts, agent_name, limits, plain, sandbox, server_name};
use crate::addresses::{self, HOST_AGENT, HOST_AUDITOR, HOST_BROKER};
use crate::config::{Runtime, Server, Tier};
use crate::render;

pub(super) const UID_AGENT: u32 = 65_534;
const UID_MCP: u32 = 8_710;

/// Key of our ZeroClaw in images.json.
const ZEROCLAW: &str = "zeroclaw";
/// The same, with a Docker client.
const ZEROCLAW_DOCKER: &str = "zeroclaw-docker";

/// How references of images begin that are built here.
const OUR_IMAGES: &str = "assistant/";
/// What speaks HTTP for a program that speaks on standard input and output.
const WRAPPER: &str = "/usr/lib/assistant/mcp-stdio";

type Made = Result<(ContainerSpec, Vec<VolumeSpec>), DesiredError>;

pub(super) fn agent(parts: &Parts<'_>, tier: &Tier) -> Made {
    let name = agent_name(&tier.name)?;
    let image = match tier.runtime {
        // The same ZeroClaw, with a Docker client; unless the file names an image of its own.
        Runtime::Docker if tier.image == ZEROCLAW => parts.image(ZEROCLAW_DOCKER)?,
        Runtime::Docker | Runtime::Native => {
            let missing = DesiredError::Missing { what: "the image of an agent" };
            parts.images.reference(&tier.image).ok_or(missing)?.to_owned()
        }
    };
    let limits =
        Limits { memory_bytes: tier.limits.memory_bytes, pids: tier.limits.pids, nano_cpus: tier.limits.nano_cpus };
    let mut spec = parts.container(name.as_str(), Role::Agent, image, UID_AGENT, UID_AGENT, limits);
    spec.tier = Some(tier.name.clone());
    spec.inert_default_route = true;
    let network = addresses::tier_network(&tier.name);
    parts.attach(&mut spec, &network, HOST_AGENT)?;
    spec.entrypoint = Some(vec!["/usr/local/bin/zeroclaw".to_owned()]);
    spec.command = vec!["daemon".to_owned()];
    spec.working_dir = Some("/zeroclaw-data".to_owned());
    spec.ready = Ready::HttpInNetns { port: GATEWAY_PORT, path: "/health".to_owned() };

    let token = parts.principal_token(&name)?.expose();
    let broker = parts.address(&network, HOST_BROKER)?;
    let proxy = format!("http://{name}:{token}@{broker}:{PROXY_PORT}");
    let secret = |name: &str| EnvVar { name: name.to_owned(), value: proxy.clone(), secret: true };
    let no_proxy = render::no_proxy(&tier.no_proxy);
    spec.env = vec![
        plain("HOME", "/zeroclaw-data"),
        secret("HTTPS_PROXY"),
        secret("HTTP_PROXY"),
        plain("NO_PROXY", &no_proxy),
        plain("SSL_CERT_FILE", format!("{ETC}/ca.pem")),
        // curl reads the lower-case spelling of HTTP_PROXY only.
        secret("http_proxy"),
        secret("https_proxy"),
        plain("no_proxy", no_proxy.as_str()),
    ];

    parts.public(&mut spec, "ca.pem", parts.material.pki.intercept.certificate.clone());
    let config = parts.settings.render_dir(name.as_str()).join("config.toml");
    let mut volume = parts.data(&mut spec, name.as_str(), "/zeroclaw-data");
    volume.directories = vec![".zeroclaw".to_owned()];
    sandbox::join(parts, tier, &mut spec, &mut volume);
    // After the volume: it lies inside it.
    spec.mounts.push(Mount {
        source: MountSource::Bind(config.clone()),
        target: "/zeroclaw-data/.zeroclaw/config.toml".to_owned(),
        read_only: true,
    });
    spec.files.push(RenderedFile {
        path: config,
        uid: UID_AGENT,
        gid: UID_AGENT,
        mode: 0o400,
        content: render::zeroclaw_toml(parts, tier)?.into(),
        secret: true,
    });
    let resolver = parts.address(&network, HOST_AUDITOR)?;
    parts.resolve(&mut spec, Some(resolver));
    Ok((spec, vec![volume]))
}

pub(super) fn mcp_server(parts: &Parts<'_>, tier: &Tier, server: &Server) -> Made {
    let name = server_name(&tier.name, &server.name)?;
    let missing = DesiredError::Missing { what: "the image of an MCP server" };
    let image = parts.images.reference(&server.image).ok_or(missing)?.to_owned();
    let role = Role::McpServer(server.name.clone());
    let mut spec = parts.container(name.as_str(), role, image, UID_MCP, UID_MCP, limits(512, 128, 10));
    spec.tier = Some(tier.name.clone());
    spec.inert_default_route = true;
    let network = addresses::tools_network(&tier.name);
    let address = parts.server_address(&tier.name, &server.name)?;
    spec.networks.push(Attachment { network: network.clone(), address });
    let broker = parts.address(&network, HOST_BROKER)?;
    spec.entrypoint = Some(vec![WRAPPER.to_owned()]);
    if !spec.image.starts_with(OUR_IMAGES) {
        // An image of somebody else has no wrapper in it. This one is linked statically: it needs nothing of the image.
        spec.mounts.push(Mount {
            source: MountSource::Bind(parts.settings.bin_dir.join("mcp-stdio")),
            target: WRAPPER.to_owned(),
            read_only: true,
        });
    }
    spec.command = [
        "--listen",
        &format!("0.0.0.0:{MCP_PORT}"),
        "--token-file",
        &format!("{ETC}/wrapper.token"),
        "--proxy-token-file",
        &format!("{ETC}/principal.token"),
        "--proxy-name",
        name.as_str(),
        "--proxy",
        &format!("http://{broker}:{PROXY_PORT}"),
        "--ca",
        &format!("{ETC}/ca.pem"),
        "--env-file",
        &format!("{ETC}/env"),
        "--",
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    spec.command.extend(server.command.iter().cloned());
    spec.working_dir = Some("/tmp".to_owned());
    spec.ready = Ready::TcpInNetns { port: MCP_PORT };
    let wrapper = parts.wrapper_token(&name)?.expose().to_owned();
    let principal = parts.principal_token(&name)?.expose().to_owned();
    parts.private(&mut spec, "wrapper.token", wrapper);
    parts.private(&mut spec, "principal.token", principal);
    parts.public(&mut spec, "ca.pem", parts.material.pki.intercept.certificate.clone());
    parts.public(&mut spec, "env", render::env_file(&server.env));
    let resolver = parts.address(&network, HOST_AUDITOR)?;
    parts.resolve(&mut spec, Some(resolver));
    Ok((spec, Vec::new()))
}
