//! The service as a whole: its configuration, what it binds and opens, the tasks it runs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use assistant_proto::config::{AuditorConfig, Common, DNS_PORT, Retention};
use assistant_proto::egress::egress_service_server::EgressServiceServer;
use policy::explain::Book;
use service_kit::host::{self, Context, ServiceConfig};
use service_kit::net;
use service_kit::task::OnEnd;
use service_kit::turns::Turns;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::service::Routes;

use crate::compare::{self, Matching};
use crate::control::Control;
use crate::denials::Denials;
use crate::disk;
use crate::dns::Resolver;
use crate::feed;
use crate::figures::Figures;
use crate::intake::Intake;
use crate::jaeger::Jaeger;
use crate::ledger::Ledger;
use crate::reserve::Reserve;
use crate::retention;
use crate::squid::{Attribution, FEED_QUEUE, Follower};
use crate::store::{self, Reader, Store, Writer};

/// Streams and their durable consumer, made by tier-supervisor. Nothing leaves that is not in the second: it lets go of a
/// decision only when the store has it.
const STREAMS: [&str; 2] = ["EVENTS", "PERMITTED"];
const DURABLE: &str = "auditor";
const LEAST_MIB: u32 = 64;
/// One more than the stream EVENTS keeps.
const LEAST_DAYS: u32 = 31;

/// The configuration file, as tier-supervisor renders it.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(transparent)]
pub struct Config(pub AuditorConfig);

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.0.common
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut listening = BTreeSet::new();
        for (at, zone) in self.0.zones.iter().enumerate() {
            if !listening.insert(zone.listen) {
                problems.push(format!("zones[{at}].listen: another zone has this address; every network has its own"));
            }
            let label = |name: &str| {
                !name.is_empty() && name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            };
            if !zone.names.keys().all(|name| label(name)) {
                problems.push(format!("zones[{at}].names: a name is not one label of letters, digits and '-'"));
            }
            let folded: BTreeSet<_> = zone.names.keys().map(|name| name.to_ascii_lowercase()).collect();
            if folded.len() != zone.names.len() {
                problems
                    .push(format!("zones[{at}].names: two names differ in case only; DNS does not tell them apart"));
            }
            if zone.clients.is_empty() {
                problems.push(format!("zones[{at}].clients: nobody; every query would be refused"));
            }
            if zone.clients.contains_key(&zone.listen) {
                problems.push(format!("zones[{at}].clients: the auditor's own address is one of them"));
            }
        }
        if *self.0.squid_feed.ip() == self.0.squid_address {
            problems.push("squid_address: the same as squid_feed's; Squid is a container of its own".to_owned());
        }
        if Jaeger::new(&self.0.jaeger_url).is_err() {
            problems.push("jaeger_url: not of the form http://<address>:<port>".to_owned());
        }
        if let Err(found) = Book::compile(&self.0.explain) {
            problems.extend(found.iter().map(|problem| format!("explain: {problem}")));
        }
        let Retention { most_mib, days } = self.0.retention;
        if most_mib < LEAST_MIB {
            problems
                .push(format!("retention.most_mib: {most_mib} is less than {LEAST_MIB}, which is used up in no time"));
        }
        if days < LEAST_DAYS {
            problems.push(format!(
                "retention.days: {days} is less than {LEAST_DAYS}; an event that the bus delivers again must still be known"
            ));
        }
        for (name, path) in [("squid_log_dir", &self.0.squid_log_dir), ("store_dir", &self.0.store_dir)] {
            if !path.is_absolute() {
                problems.push(format!("{name}: not an absolute path"));
            }
        }
        problems
    }
}

/// egress-auditor, built and not yet started.
#[derive(Debug)]
pub struct EgressAuditor {
    resolver: Resolver,
    feed: Arc<TcpListener>,
    squid: Ipv4Addr,
    squid_log_dir: PathBuf,
    store_dir: PathBuf,
    retention: Retention,
    tiers: BTreeSet<assistant_proto::name::TierName>,
    store: Store,
    writer: Writer,
    reader: Reader,
    control: Control,
}

impl EgressAuditor {
    /// As [`host::Service::build`], with another port than 53 for the resolvers: tests have no right to 53.
    ///
    /// # Errors
    /// When an address cannot be bound or the store not opened.
    pub async fn assemble(config: AuditorConfig, cx: &Context, dns_port: u16) -> anyhow::Result<Self> {
        let (store, writer, reader) = store::open(&config.store_dir)?;
        let resolver = Resolver::bind(&config.zones, dns_port).await?;
        let (address, port) = (*config.squid_feed.ip(), config.squid_feed.port());
        let feed = net::bind_tcp_on_address(address, port)
            .await
            .with_context(|| format!("the feed of Squid's log cannot be received on {address}:{port}"))?;
        let jaeger = Jaeger::new(&config.jaeger_url).context("jaeger_url")?;
        let book = Book::compile(&config.explain).map_err(|problems| {
            anyhow::anyhow!("rules: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        let control = Control::new(reader.clone(), jaeger, book, cx.tasks.clone(), cx.shutdown.draining());
        Ok(Self {
            resolver,
            feed: Arc::new(feed),
            squid: config.squid_address,
            squid_log_dir: config.squid_log_dir,
            store_dir: config.store_dir,
            retention: config.retention,
            tiers: config.zones.into_iter().map(|zone| zone.tier).collect(),
            store,
            writer,
            reader,
            control,
        })
    }

    /// Where the resolvers listen: UDP and TCP of each zone, in the order of the configuration.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn dns_addresses(&self) -> std::io::Result<Vec<(std::net::SocketAddr, std::net::SocketAddr)>> {
        self.resolver.addresses()
    }

    /// Where Squid's feed is received.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn feed_address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.feed.local_addr()
    }

    /// The implementation of its gRPC service.
    #[must_use]
    pub fn control_plane(&self) -> Control {
        self.control.clone()
    }
}

impl host::Service for EgressAuditor {
    const NAME: &'static str = "egress-auditor";
    const GRPC_SERVICES: &'static [&'static str] = &["assistant.egress.v1.EgressService"];
    type Config = Config;

    async fn build(config: Config, cx: &Context) -> anyhow::Result<Self> {
        Self::assemble(config.0, cx, DNS_PORT).await
    }

    fn control(&self) -> Routes {
        Routes::new(EgressServiceServer::new(self.control.clone()))
    }

    async fn start(self, cx: &Context) -> anyhow::Result<()> {
        let (tasks, draining) = (&cx.tasks, cx.shutdown.draining());
        let turns = Turns::new();
        turns.follow(cx, Self::NAME);
        let (figures, reserve) = (Figures::default(), Reserve::default());
        figures.register(&cx.metrics);
        let matching = Matching::new(compare::PATIENCE, figures.clone());
        let mut intakes = Vec::with_capacity(STREAMS.len());
        for stream in STREAMS {
            let (reserve, figures, matching) = (reserve.clone(), figures.clone(), matching.clone());
            let intake = Intake::resume(self.store.clone(), &self.reader, stream, reserve, figures, matching).await?;
            intakes.push((stream, intake));
        }
        tasks.spawn_restarting("audit-retention", {
            let (store, retention, figures) = (self.store.clone(), self.retention, figures.clone());
            let (health, draining) = (cx.health.clone(), draining.clone());
            move || retention::keep(store.clone(), retention, figures.clone(), health.clone(), draining.clone())
        });
        let ledger = Ledger::new(self.store, cx.bus.clone());
        let denials = Denials::new(turns.clone());

        let (writer, health, deadline) = (self.writer, cx.health.clone(), cx.shutdown.deadline());
        tasks.spawn("audit-writer", OnEnd::Critical, {
            let draining = draining.clone();
            async move { writer.run(health, draining, deadline).await }
        });
        tasks.spawn_restarting("audit-disk", {
            let (directory, health, draining) = (self.store_dir.clone(), cx.health.clone(), draining.clone());
            move || {
                let (directory, reserve, figures) = (directory.clone(), reserve.clone(), figures.clone());
                disk::watch(directory, disk::RESERVE, reserve, figures, health.clone(), draining.clone())
            }
        });
        tasks.spawn("denials", OnEnd::Critical, {
            let (denials, ledger, draining) = (denials.clone(), ledger.clone(), draining.clone());
            async move { denials.run(ledger, draining).await }
        });

        let (lines, feed_lines) = mpsc::channel(FEED_QUEUE);
        let follower = Follower::new(
            &self.squid_log_dir,
            self.store_dir,
            feed_lines,
            ledger.clone(),
            Attribution::new(self.tiers, turns),
            matching.clone(),
            cx.health.clone(),
        );
        tasks.spawn_restarting("compare", {
            let (bus, reader, ledger) = (cx.bus.clone(), self.reader.clone(), ledger.clone());
            let draining = draining.clone();
            let compare = matching.compare;
            move || compare.clone().run(bus.clone(), reader.clone(), ledger.clone(), draining.clone())
        });
        tasks.spawn_restarting("model-calls", {
            let (calls, draining) = (matching.calls, draining.clone());
            move || calls.clone().run(draining.clone())
        });
        tasks.spawn("squid-log", OnEnd::Critical, {
            let draining = draining.clone();
            async move { follower.run(draining).await }
        });
        tasks.spawn_restarting("squid-feed", {
            let (listener, squid, denials) = (self.feed, self.squid, denials.clone());
            let (tasks, draining) = (tasks.clone(), draining.clone());
            move || {
                feed::receive(
                    Arc::clone(&listener),
                    squid,
                    lines.clone(),
                    denials.clone(),
                    tasks.clone(),
                    draining.clone(),
                )
            }
        });

        tasks.spawn_restarting("audit-outbox", {
            let (ledger, reader, draining) = (ledger.clone(), self.reader.clone(), draining.clone());
            move || {
                let (ledger, reader, draining) = (ledger.clone(), reader.clone(), draining.clone());
                async move {
                    tokio::select! {
                        outcome = ledger.keep_publishing(reader) => outcome,
                        () = draining.cancelled() => Ok(()),
                    }
                }
            }
        });
        for (stream, intake) in intakes {
            let (bus, draining) = (cx.bus.clone(), draining.clone());
            tasks.spawn_restarting(format!("audit-consumer-{stream}"), move || {
                let (bus, intake, draining) = (bus.clone(), intake.clone(), draining.clone());
                async move {
                    tokio::select! {
                        outcome = intake.run(&bus, DURABLE) => outcome,
                        () = draining.cancelled() => Ok(()),
                    }
                }
            });
        }
        tasks.spawn_restarting("audit-verify", {
            let (reader, health, draining) = (self.reader, cx.health.clone(), draining.clone());
            move || {
                let (reader, health, draining) = (reader.clone(), health.clone(), draining.clone());
                async move {
                    let verified = tokio::select! {
                        verified = reader.verify() => verified?,
                        () = draining.cancelled() => return Ok(()),
                    };
                    if let Some(sequence) = verified.broken_at {
                        tracing::error!(sequence, "the audit store was changed: its hash chain is broken");
                        let problem = format!(
                            "the audit store's hash chain is broken at record {sequence}: somebody or something changed it; \
                             keep a copy of the volume, and start with an empty one"
                        );
                        health.report("audit-chain", Err(problem));
                    }
                    Ok(())
                }
            }
        });
        self.resolver.serve(tasks, &draining, &denials);
        Ok(())
    }
}
