//! Puts the parts together and runs them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
use crate::attendant::Attendants;
use crate::channels::telegram::{self, Telegram};
use crate::channels::terminal::{self, Terminal};
use crate::channels::{Channel, Channels, Pace, Statuses};
use crate::config::Config;
use crate::control::Control;
use crate::dashboard::files::Files;
use crate::dashboard::history::History;
use crate::dashboard::{self, Dashboard};
use crate::delivery::Delivery;
use crate::egress;
use crate::inbox::Inbox;
use crate::intake::{self, Intake};
use crate::outbox::Outbox;
use crate::outgoing::{Outgoing, Store};
use crate::post::{CONSUMER, INBOX, OUTBOX, Post};
use crate::record::Records;
use crate::registry::Registry;
use crate::reply::links::Reach;
use crate::turn::{Patience, Runner};

/// How often the gateways are asked for their health.
const PROBE: Duration = Duration::from_secs(5);

/// The service.
#[derive(Debug)]
pub struct ChannelBridge {
    terminal: Arc<Terminal>,
    inbox: Inbox,
    outbox: Outbox,
    intake: Intake,
    statuses: Statuses,
    dashboards: Vec<Dashboard>,
    /// Replies that the process before did not get rid of.
    left: Vec<Outgoing>,
}

impl ChannelBridge {
    /// Puts a bridge together over a bus of choice: the service's own, or a double in a test.
    ///
    /// # Errors
    /// When a token, a password, a certificate or the state directory cannot be used.
    pub async fn assemble(
        config: Config,
        cx: &Context,
        post: Arc<dyn Post>,
        patience: Patience,
        pace: Pace,
    ) -> anyhow::Result<Self> {
        let config = config.0;
        let statuses = Statuses::default();
        let channels = messengers(&config, cx, pace, &statuses)?;
        let mut gateways = BTreeMap::new();
        let mut reach = BTreeMap::new();
        let mut sockets = Vec::new();
        for tier in config.tiers {
            sockets.extend(tier.dashboard_socket.map(|socket| (tier.name.clone(), socket)));
            let token = read_secret(&tier.gateway_token_file)
                .with_context(|| format!("the gateway token of tier {} cannot be used", tier.name))?;
            // A pattern that is none was a problem of the configuration; here it opens nothing.
            let reachable = Reach::parse(tier.reachable.iter().map(String::as_str)).unwrap_or_default();
            reach.insert(tier.name.clone(), reachable);
            gateways.insert(tier.name, Gateway::new(tier.gateway, token));
        }
        let reach = Arc::new(reach);
        let records = Records::open(&config.state_dir).await.context("state_dir cannot be used")?;
        let store = Store::open(&config.state_dir).await.context("state_dir cannot be used")?;
        let registry = Registry::default();
        let timeout = Duration::from_secs(u64::from(config.approval_timeout_secs));
        let desk = Desk::new(Arc::clone(&post), registry.clone(), timeout);
        let spawning = (cx.tasks.clone(), cx.shutdown.clone());
        let (delivery, left) = Delivery::open(channels, store, records.clone(), Arc::clone(&post), spawning, pace)
            .await
            .context("state_dir cannot be used")?;
        let runner = Runner {
            gateways: gateways.clone(),
            post: Arc::clone(&post),
            records: records.clone(),
            desk: desk.clone(),
            registry: registry.clone(),
            acknowledgers: config.acknowledgers.into_iter().collect(),
            patience,
        };
        let attendants = Attendants {
            delivery: delivery.clone(),
            registry: registry.clone(),
            desk: desk.clone(),
            reach: Arc::clone(&reach),
            tasks: cx.tasks.clone(),
        };
        let allowed = config.telegram.iter().map(|bot| {
            let ids = bot.allowed_user_ids.iter().map(ToString::to_string).collect();
            ((telegram::KIND.to_owned(), bot.name.clone()), ids)
        });
        let intake = Intake::new(intake::Parts {
            post: Arc::clone(&post),
            records: records.clone(),
            registry: registry.clone(),
            desk: desk.clone(),
            delivery: delivery.clone(),
            allowed: allowed.collect(),
            approval_timeout: timeout,
            ignored: intake::Parts::nobody_ignored(),
        });
        let history = History::new(&config.state_dir);
        let terminal = Terminal {
            kind: terminal::KIND,
            gateways,
            post: Arc::clone(&post),
            records: records.clone(),
            registry: registry.clone(),
            desk,
            shutdown: cx.shutdown.clone(),
        };
        let dashboards = match &config.dashboard_files {
            Some(files) => dashboards(cx, files, sockets, &terminal, &history, &reach)?,
            None => Vec::new(),
        };
        Ok(Self {
            terminal: Arc::new(terminal),
            inbox: Inbox::new(runner, attendants, history, cx.tasks.clone(), cx.shutdown.clone()),
            outbox: Outbox { post, records, registry, delivery, reach },
            intake,
            statuses,
            dashboards,
            left,
        })
    }

    /// Sends what the process before did not, and asks the messengers for messages.
    pub fn start_messengers(&mut self, cx: &Context) {
        self.outbox.delivery.resume(std::mem::take(&mut self.left));
        let (intake, stop) = (self.intake.clone(), cx.shutdown.draining());
        cx.tasks.spawn("ignored-strangers", OnEnd::Critical, async move {
            intake.publish_ignored(stop).await;
            Ok(())
        });
        for channel in self.outbox.delivery.channels().iter() {
            let (channel, intake, stop) = (Arc::clone(channel), self.intake.clone(), cx.shutdown.draining());
            let name = format!("{} {}", channel.capabilities().kind, channel.account());
            cx.tasks.spawn_restarting(name, move || Arc::clone(&channel).run(intake.clone(), stop.clone()));
        }
    }

    /// Serves the dashboards.
    pub fn start_dashboards(&mut self, cx: &Context) {
        Dashboard::count(&self.dashboards, cx);
        for dashboard in self.dashboards.drain(..) {
            dashboard.spawn(cx);
        }
    }

    /// The messengers.
    #[must_use]
    pub fn channels(&self) -> Channels {
        self.outbox.delivery.channels().clone()
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
        Self::assemble(config, cx, post, Patience::default(), Pace::default()).await
    }

    fn control(&self) -> Routes {
        Routes::new(ChannelServiceServer::new(Control::new(self.terminal(), self.channels(), self.statuses.clone())))
    }

    async fn start(mut self, cx: &Context) -> anyhow::Result<()> {
        self.start_messengers(cx);
        self.start_dashboards(cx);
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

/// The dashboards, their sockets bound.
fn dashboards(
    cx: &Context,
    files: &Path,
    sockets: Vec<(TierName, PathBuf)>,
    terminal: &Terminal,
    history: &History,
    reach: &BTreeMap<TierName, Reach>,
) -> anyhow::Result<Vec<Dashboard>> {
    let files = Arc::new(Files::load(files).context("the dashboard's files cannot be used")?);
    let mut dashboards = Vec::new();
    for (tier, socket) in sockets {
        let Some(gateway) = terminal.gateways.get(&tier).cloned() else { continue };
        let terminal = Terminal {
            kind: dashboard::KIND,
            gateways: BTreeMap::from([(tier.clone(), gateway.clone())]),
            post: Arc::clone(&terminal.post),
            records: terminal.records.clone(),
            registry: terminal.registry.clone(),
            desk: terminal.desk.clone(),
            shutdown: terminal.shutdown.clone(),
        };
        let parts = dashboard::Parts {
            reach: reach.get(&tier).cloned().unwrap_or_default(),
            tier,
            files: Arc::clone(&files),
            gateway,
            terminal: Arc::new(terminal),
            history: history.clone(),
            tasks: cx.tasks.clone(),
            shutdown: cx.shutdown.clone(),
        };
        dashboards.push(Dashboard::bind(&socket, parts)?);
    }
    Ok(dashboards)
}

/// The accounts of the configuration.
fn messengers(
    config: &assistant_proto::config::BridgeConfig,
    cx: &Context,
    pace: Pace,
    statuses: &Statuses,
) -> anyhow::Result<Channels> {
    let Some(egress) = &config.egress else { return Ok(Channels::default()) };
    let mut channels: Vec<Arc<dyn Channel>> = Vec::new();
    for bot in &config.telegram {
        // A client each: no connection, and no TLS ticket, links one bot to another.
        let client = egress::client(config.common.mode, egress).context("the way out for messengers")?;
        channels.push(Arc::new(Telegram::new(bot, client, pace, cx.health.clone(), statuses.clone())?));
    }
    Ok(Channels::new(channels))
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
