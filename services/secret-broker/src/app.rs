//! The service as a whole: which listeners there are, and which tasks.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use assistant_proto::config::{MCP_PORT, MODELS_PORT, PROXY_PORT};
use service_kit::host::{Context, Service};
use service_kit::net::bind_tcp_on_address;
use service_kit::task::OnEnd;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::service::Routes;

use crate::config::Config;
use crate::control::Control;
use crate::identity::Network;
use crate::mcp::serve_mcp;
use crate::models::serve_models;
use crate::page;
use crate::proxy::serve_proxy;
use crate::state::{State, Tier};

/// How long a network may take to appear in the container: Docker attaches further networks after the first.
const ATTACH_DEADLINE: Duration = Duration::from_secs(20);
const ATTACH_POLL: Duration = Duration::from_millis(200);
/// Between tries to reach Squid again, once it could not be reached.
const PROBE_PAUSE: Duration = Duration::from_secs(2);

/// secret-broker.
#[derive(Debug)]
pub struct Broker {
    state: Arc<State>,
    doors: Vec<BoundDoor>,
}

#[derive(Debug)]
struct BoundDoor {
    tier: Arc<Tier>,
    kind: Kind,
    listener: TcpListener,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Proxy(Network),
    Models,
    Mcp,
}

impl Kind {
    fn port(self) -> u16 {
        match self {
            Self::Proxy(_) => PROXY_PORT,
            Self::Models => MODELS_PORT,
            Self::Mcp => MCP_PORT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Proxy(Network::Tier) => "proxy",
            Self::Proxy(Network::Tools) => "tools-proxy",
            Self::Models => "models",
            Self::Mcp => "mcp",
        }
    }
}

impl Service for Broker {
    const NAME: &'static str = "secret-broker";
    const GRPC_SERVICES: &'static [&'static str] = &["assistant.secret.v1.SecretService"];
    type Config = Config;

    async fn build(Config(config): Config, cx: &Context) -> anyhow::Result<Self> {
        let places: Vec<_> =
            config.tiers.iter().map(|tier| (tier.name.clone(), tier.tier_address, tier.tools_address)).collect();
        let state = Arc::new(State::open(config, cx.bus.clone(), cx.tasks.clone())?);
        let mut doors = Vec::new();
        for (name, tier_address, tools_address) in places {
            let Some(tier) = state.tiers.get(&name) else { continue };
            let on_tier = [Kind::Proxy(Network::Tier), Kind::Models, Kind::Mcp].map(|kind| (kind, tier_address));
            let on_tools = tools_address.map(|address| (Kind::Proxy(Network::Tools), address));
            for (kind, address) in on_tier.into_iter().chain(on_tools) {
                let listener = bind(address, kind.port()).await.with_context(|| {
                    format!("cannot listen on {address}:{} ({} of tier {name})", kind.port(), kind.name())
                })?;
                doors.push(BoundDoor { tier: Arc::clone(tier), kind, listener });
            }
        }
        Ok(Self { state, doors })
    }

    fn control(&self) -> Routes {
        Routes::new(Control::server(Arc::clone(&self.state)))
    }

    async fn start(self, cx: &Context) -> anyhow::Result<()> {
        self.state.turns.follow(cx, Self::NAME);
        watch_squid(&self.state, cx);
        let (state, draining) = (Arc::clone(&self.state), cx.shutdown.draining());
        cx.tasks.spawn("denials", OnEnd::Critical, async move {
            state.denials.tell(draining).await;
            Ok(())
        });
        let (state, draining) = (Arc::clone(&self.state), cx.shutdown.draining());
        cx.tasks.spawn("models", OnEnd::Expected, async move {
            draining.cancelled().await;
            state.models.keep_no_more();
            Ok(())
        });
        self.state.models.follow_providers(&cx.shutdown.draining());
        serve_pages(&self.state, cx);
        for BoundDoor { tier, kind, listener } in self.doors {
            let name = format!("{}-{}", kind.name(), tier.name);
            let (state, draining) = (Arc::clone(&self.state), cx.shutdown.draining());
            cx.tasks.spawn(name, OnEnd::Critical, async move {
                match kind {
                    Kind::Proxy(network) => serve_proxy(state, tier, network, listener, draining).await,
                    Kind::Models => serve_models(state, tier, listener, draining).await,
                    Kind::Mcp => serve_mcp(state, tier, listener, draining).await,
                }
            });
        }
        Ok(())
    }
}

/// The pages about MCP servers. They are for people: what the agents have does not wait for them, and one that cannot be
/// served is tried again.
fn serve_pages(state: &Arc<State>, cx: &Context) {
    for tier in state.tiers.values() {
        let Some(socket) = tier.tools_page.clone() else { continue };
        let (tier, tasks, draining) = (Arc::clone(tier), cx.tasks.clone(), cx.shutdown.draining());
        cx.tasks.spawn_restarting(format!("tools-page-{}", tier.name), move || {
            page::serve(Arc::clone(&tier), socket.clone(), tasks.clone(), draining.clone())
        });
    }
}

/// Binds, waiting for the network to be attached.
async fn bind(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let deadline = Instant::now() + ATTACH_DEADLINE;
    loop {
        match bind_tcp_on_address(address, port).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                tokio::time::sleep(ATTACH_POLL).await;
            }
            outcome => return outcome,
        }
    }
}

/// Says in health when Squid cannot be reached, and finds out by itself when it can be again.
fn watch_squid(state: &Arc<State>, cx: &Context) {
    let (state, health, draining) = (Arc::clone(state), cx.health.clone(), cx.shutdown.draining());
    cx.tasks.spawn("squid-health", OnEnd::Expected, async move {
        let mut reachable = state.upstream.reachable();
        loop {
            if *reachable.borrow_and_update() {
                health.report("squid", Ok(()));
                tokio::select! {
                    () = draining.cancelled() => return Ok(()),
                    changed = reachable.changed() => changed?,
                }
            } else {
                health.report(
                    "squid",
                    Err("Squid cannot be reached; see whether the container assistant-squid runs".to_owned()),
                );
                tokio::select! {
                    () = draining.cancelled() => return Ok(()),
                    () = tokio::time::sleep(PROBE_PAUSE) => state.upstream.probe().await,
                }
            }
        }
    });
}
