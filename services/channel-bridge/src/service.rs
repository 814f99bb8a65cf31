//! Puts the parts together and runs them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use assistant_proto::channel::channel_service_server::ChannelServiceServer;
use assistant_proto::event::{ChannelReceived, ChannelReplied};
use assistant_proto::name::TierName;
use futures::future::join_all;
use service_kit::bus::Received;
use service_kit::files::read_secret;
use service_kit::host::{Context, Service};
use service_kit::task::OnEnd;
use tonic::service::Routes;

use crate::acp::Gateway;
use crate::approvals::desk::Desk;
use crate::channels::terminal::Terminal;
use crate::config::Config;
use crate::control::Control;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::post::{CONSUMER, INBOX, OUTBOX, Post};
use crate::record::Records;
use crate::registry::Registry;
use crate::turn::{Patience, Runner};

/// How often the gateways are asked for their health.
const PROBE: Duration = Duration::from_secs(5);

/// The service.
#[derive(Debug)]
pub struct ChannelBridge {
    terminal: Arc<Terminal>,
    inbox: Inbox,
    outbox: Outbox,
}

impl ChannelBridge {
    /// Puts a bridge together over a bus of choice: the service's own, or a double in a test.
    ///
    /// # Errors
    /// When a token or the state directory cannot be used.
    pub async fn assemble(
        config: Config,
        cx: &Context,
        post: Arc<dyn Post>,
        patience: Patience,
    ) -> anyhow::Result<Self> {
        let config = config.0;
        let mut gateways = BTreeMap::new();
        for tier in config.tiers {
            let token = read_secret(&tier.gateway_token_file)
                .with_context(|| format!("the gateway token of tier {} cannot be used", tier.name))?;
            gateways.insert(tier.name, Gateway::new(tier.gateway, token));
        }
        let records = Records::open(&config.state_dir).await.context("state_dir cannot be used")?;
        let registry = Registry::default();
        let timeout = Duration::from_secs(u64::from(config.approval_timeout_secs));
        let desk = Desk::new(Arc::clone(&post), registry.clone(), timeout);
        let runner = Runner {
            gateways: gateways.clone(),
            post: Arc::clone(&post),
            records: records.clone(),
            desk: desk.clone(),
            registry: registry.clone(),
            acknowledgers: config.acknowledgers.into_iter().collect(),
            patience,
        };
        let terminal = Terminal {
            gateways,
            post: Arc::clone(&post),
            records: records.clone(),
            registry: registry.clone(),
            desk,
            shutdown: cx.shutdown.clone(),
        };
        Ok(Self {
            terminal: Arc::new(terminal),
            inbox: Inbox::new(runner, cx.tasks.clone(), cx.shutdown.clone()),
            outbox: Outbox { post, records, registry },
        })
    }

    /// The terminal channel.
    #[must_use]
    pub fn terminal(&self) -> Arc<Terminal> {
        Arc::clone(&self.terminal)
    }

    /// Drives turns.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Sends replies.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }
}

impl Service for ChannelBridge {
    const NAME: &'static str = "channel-bridge";
    const GRPC_SERVICES: &'static [&'static str] = &["assistant.channel.v1.ChannelService"];
    type Config = Config;

    async fn build(config: Config, cx: &Context) -> anyhow::Result<Self> {
        let post: Arc<dyn Post> = Arc::new(cx.bus.clone());
        Self::assemble(config, cx, post, Patience::default()).await
    }

    fn control(&self) -> Routes {
        Routes::new(ChannelServiceServer::new(Control::new(self.terminal())))
    }

    async fn start(self, cx: &Context) -> anyhow::Result<()> {
        let (bus, inbox) = (cx.bus.clone(), self.inbox);
        cx.tasks.spawn_restarting("inbox", move || {
            let (bus, inbox) = (bus.clone(), inbox.clone());
            async move {
                let handle = |received: Received<ChannelReceived>| {
                    let inbox = inbox.clone();
                    async move { inbox.handle(received.event).await.map_err(anyhow::Error::from) }
                };
                bus.consume(INBOX, CONSUMER, handle).await
            }
        });
        let (bus, outbox) = (cx.bus.clone(), self.outbox);
        cx.tasks.spawn_restarting("outbox", move || {
            let (bus, outbox) = (bus.clone(), outbox.clone());
            async move {
                let handle = |received: Received<ChannelReplied>| {
                    let outbox = outbox.clone();
                    async move { outbox.deliver(received.event).await.map_err(anyhow::Error::from) }
                };
                bus.consume(OUTBOX, CONSUMER, handle).await
            }
        });
        let gateways = self.terminal.gateways.clone();
        report(cx, &gateways).await;
        let (watched, draining) = (cx.clone(), cx.shutdown.draining());
        cx.tasks.spawn("gateway-probe", OnEnd::Expected, async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(PROBE) => {}
                    () = draining.cancelled() => return Ok(()),
                }
                report(&watched, &gateways).await;
            }
        });
        Ok(())
    }
}

/// Asks every gateway and reports those that are not there.
async fn report(cx: &Context, gateways: &BTreeMap<TierName, Gateway>) {
    let asked = gateways.iter().map(|(tier, gateway)| async move { (tier, gateway.healthy().await) });
    let problems: Vec<String> = join_all(asked)
        .await
        .into_iter()
        .filter_map(|(tier, health)| health.err().map(|error| format!("{tier}: {error}")))
        .collect();
    cx.health.report("gateways", if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) });
}
