//! tier-supervisor as a service: what it is made of and which tasks it runs.
//!
//! Its own configuration is rendered like everybody else's: [`prepare`] reads supervisor.json and what it names, and writes
//! what the service host needs to know beside the state. Everything else is read again when the service is built.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use assistant_proto::config::{Bus, Common, NATS_PORT, OTLP_PORT, Telemetry};
use assistant_proto::tier::tier_service_server::TierServiceServer;
use serde::{Deserialize, Serialize};
use service_kit::host::{Context, Health, Service, ServiceConfig};
use service_kit::task::OnEnd;
use service_kit::turns::Turns;
use time::OffsetDateTime;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tonic::service::Routes;

use crate::addresses::{BUS, HOST_COLLECTOR, HOST_NATS, TELEMETRY};
use crate::config::{Images, Settings, Tiers};
use crate::control::Control;
use crate::desired::{ASSISTANT_GID, ControlDirectory, Desired};
use crate::engine::Engine;
use crate::engine::docker::{self, Docker};
use crate::files;
use crate::kernel::{self, Standing};
use crate::nflog::{self, Ledger, Principals};
use crate::prepare::{Inputs, stack_problems};
use crate::reconciler::{Apply, Reconciler, Stack};
use crate::vm::{self, Linux};
use crate::wanted::{self, Wanted};
use crate::{disk, gates, provision, sandbox};

const NAME: &str = "tier-supervisor";
/// Requests for a round that wait for the reconciler; one operator sends one at a time.
const APPLIES: usize = 8;

/// What the service host reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service needs.
    pub common: Common,
    /// supervisor.json.
    pub settings: PathBuf,
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }
}

/// Every problem of supervisor.json, images.json, tiers.yaml and what they name. Makes nothing. With `images`, these are
/// taken in place of images.json, which is not there yet.
#[must_use]
pub fn problems(settings: &Path, images: Option<Images>) -> Vec<String> {
    let settings = match Settings::load(settings) {
        Ok(settings) => settings,
        Err(error) => return vec![error.to_string()],
    };
    let mut problems = Vec::new();
    match images.map_or_else(|| Images::load(&settings.images_file), Ok) {
        Err(error) => problems.push(error.to_string()),
        Ok(images) => {
            if let Err(found) = Tiers::load(&settings, &images) {
                problems.extend(found.0.iter().map(ToString::to_string));
            }
        }
    }
    problems.extend(stack_problems(&settings));
    problems
}

/// Reads everything, makes what must exist once, and computes what should be.
fn load(settings: &Settings) -> Result<(Inputs, Desired), Vec<String>> {
    let routes = vm::occupied().map_err(|error| vec![error.to_string()])?;
    let inputs =
        Inputs::prepare(settings.clone(), &routes, OffsetDateTime::now_utc()).map_err(|error| error.sentences())?;
    let desired = inputs.desired().map_err(|error| vec![error.to_string()])?;
    Ok((inputs, desired))
}

/// Makes the supervisor's own socket directory and configuration; says where that is.
///
/// # Errors
/// With every problem, one sentence each.
pub fn prepare(settings_file: &Path) -> Result<PathBuf, Vec<String>> {
    let one = |problem: String| vec![problem];
    let settings = Settings::load(settings_file).map_err(|error| one(error.to_string()))?;
    let (inputs, _) = load(&settings)?;
    vm::ensure_group().map_err(|error| one(error.to_string()))?;
    let path = settings.run_dir.join(NAME);
    let control_socket = path.join("api.sock");
    let link = settings.run_dir.join(format!("{NAME}.sock"));
    let directory = ControlDirectory { path, uid: 0, gid: ASSISTANT_GID, link };
    vm::open_directory(&directory, settings.operator.uid).map_err(|error| one(error.to_string()))?;

    let address = |network: &str, host: u8| {
        inputs.addresses.host(network, host).ok_or_else(|| one("an address was not chosen; this is a bug".to_owned()))
    };
    let config = Config {
        common: Common {
            mode: settings.mode,
            bus: Bus {
                url: format!("tls://{}:{NATS_PORT}", address(BUS, HOST_NATS)?),
                ca_file: settings.state_dir.join("pki/internal-ca.pem"),
                nkey_seed_file: settings.state_dir.join("nkeys").join(format!("{NAME}.nk")),
                inbox_prefix: format!("_INBOX_{NAME}"),
            },
            telemetry: Telemetry {
                otlp_endpoint: match settings.otlp {
                    true => Some(format!("http://{}:{OTLP_PORT}", address(TELEMETRY, HOST_COLLECTOR)?)),
                    false => None,
                },
                log_filter: settings.log_filter.clone(),
            },
            control_socket,
        },
        settings: settings_file.to_owned(),
    };
    let text = serde_json::to_vec_pretty(&config).map_err(|error| one(error.to_string()))?;
    let path = settings.state_dir.join(format!("{NAME}.json"));
    files::write_atomically(&path, &text, 0o600).map_err(|error| one(error.to_string()))?;
    Ok(path)
}

/// The service.
#[derive(Debug)]
pub struct Supervisor {
    settings: Settings,
    stack: Arc<Stack<Docker, Linux>>,
    wanted: watch::Sender<Wanted>,
    applies: mpsc::Sender<Apply>,
    received: mpsc::Receiver<Apply>,
    principals: watch::Receiver<Arc<Principals>>,
    ledger: Ledger,
    standing: Arc<Standing>,
    logins: Arc<gates::Logins>,
    health: Health,
    draining: tokio_util::sync::CancellationToken,
}

impl Service for Supervisor {
    const NAME: &'static str = NAME;
    const GRPC_SERVICES: &'static [&'static str] = &["assistant.tier.v1.TierService"];
    type Config = Config;

    async fn build(config: Config, cx: &Context) -> anyhow::Result<Self> {
        let settings = Settings::load(&config.settings)?;
        let reading = settings.clone();
        let (_, desired) = tokio::task::spawn_blocking(move || load(&reading))
            .await?
            .map_err(|problems| anyhow::anyhow!(problems.join("\n")))?;
        let (told, principals) = watch::channel(Arc::new(Principals::default()));
        let engine_socket = Path::new(docker::SOCKET);
        let ledger = Ledger::at(&settings.state_dir.join("reported-drops"));
        let vm = Linux::new(&settings.state_dir, settings.operator.uid, engine_socket, told, ledger.clone());
        let standing = vm.standing();
        let (wanted, known) = watch::channel(Wanted::new(desired));
        let stack = Arc::new(Stack::new(Docker::at(engine_socket), vm, cx.bus.clone(), known));
        let (applies, received) = mpsc::channel(APPLIES);
        let logins = Arc::default();
        let (health, draining) = (cx.health.clone(), cx.shutdown.draining());
        Ok(Self { settings, stack, wanted, applies, received, principals, ledger, standing, logins, health, draining })
    }

    fn control(&self) -> Routes {
        let control = Control::new(
            Arc::clone(&self.stack),
            self.applies.clone(),
            Arc::clone(&self.logins),
            self.health.clone(),
            self.draining.clone(),
        );
        Routes::new(TierServiceServer::new(control))
    }

    async fn start(self, cx: &Context) -> anyhow::Result<()> {
        let Self { settings, stack, wanted, received, principals, ledger, standing, logins, draining, .. } = self;
        let wake = Arc::new(Notify::new());

        let turns = Turns::new();
        turns.follow(cx, NAME);
        let (bus, stop) = (cx.bus.clone(), draining.clone());
        // Before the reconciler may replace the table, and with it its counters.
        let looked = ledger.clone();
        tokio::task::spawn_blocking(move || looked.look()).await?;
        let nflog_turns = turns.clone();
        cx.tasks.spawn_restarting("nflog", move || {
            nflog::run(bus.clone(), nflog_turns.clone(), principals.clone(), ledger.clone(), stop.clone())
        });

        let (bus, stop) = (cx.bus.clone(), draining.clone());
        cx.tasks
            .spawn_restarting("kernel-table", move || kernel::watch(Arc::clone(&standing), bus.clone(), stop.clone()));

        let (reading, bus, read_turns) = (Arc::clone(&stack), cx.bus.clone(), turns);
        let (places, stop) = (settings.state_dir.join("sandbox-logs"), draining.clone());
        cx.tasks.spawn_restarting("sandbox-logs", move || {
            sandbox::run(Arc::clone(&reading), bus.clone(), read_turns.clone(), places.clone(), stop.clone())
        });

        let program = gates::Program::this().context("which executable is this")?;
        let (gates_wanted, gates_known) = watch::channel(wanted.borrow().desired.gates.clone());
        let (health, stop) = (cx.health.clone(), draining.clone());
        cx.tasks.spawn_restarting("gates", move || {
            gates::supervise(program.clone(), gates_known.clone(), Arc::clone(&logins), health.clone(), stop.clone())
        });
        let (mut newest, stop) = (wanted.subscribe(), draining.clone());
        cx.tasks.spawn("gates-wanted", OnEnd::Expected, async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    changed = newest.changed() => changed?,
                }
                let gates = newest.borrow_and_update().desired.gates.clone();
                gates_wanted.send_if_modified(|known| {
                    let changed = *known != gates;
                    *known = gates;
                    changed
                });
            }
        });

        follow_files(cx, settings, wanted);

        if let Some(jetstream) = cx.bus.jetstream() {
            let (health, stop) = (cx.health.clone(), draining.clone());
            cx.tasks.spawn("streams", OnEnd::Expected, async move {
                provision::run(jetstream, health, stop).await;
                Ok(())
            });
        }

        let (watched, notify, stop, health) =
            (Arc::clone(&stack), Arc::clone(&wake), draining.clone(), cx.health.clone());
        cx.tasks.spawn_restarting("docker-events", move || {
            let (watched, notify, stop, health) =
                (Arc::clone(&watched), Arc::clone(&notify), stop.clone(), health.clone());
            async move {
                let told = || {
                    health.report("docker", Ok(()));
                    notify.notify_one();
                };
                tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    outcome = watched.engine().watch(told) => {
                        let outcome = outcome.map_err(|error| error.to_string());
                        health.report("docker", outcome.clone());
                        outcome.map_err(anyhow::Error::msg)
                    }
                }
            }
        });

        let (watched, notify, stop, health) =
            (Arc::clone(&stack), Arc::clone(&wake), draining.clone(), cx.health.clone());
        cx.tasks.spawn_restarting("disk", move || {
            disk::watch(Arc::clone(&watched), health.clone(), Arc::clone(&notify), stop.clone())
        });

        let reconciler = Reconciler::new(stack);
        cx.tasks.spawn("reconciler", OnEnd::Critical, reconciler.run(wake, received, draining));
        Ok(())
    }
}

/// Follows every file that the desired state is made of.
fn follow_files(cx: &Context, settings: Settings, wanted: watch::Sender<Wanted>) {
    let mut paths = vec![
        settings.tiers_file.clone(),
        settings.allowlist_file.clone(),
        settings.squid_template.clone(),
        settings.images_file.clone(),
        settings.state_dir.join("secrets"),
    ];
    paths.extend(settings.upstream_roots.iter().cloned());
    let reading: wanted::Load = Arc::new(move || load(&settings).map(|(_, desired)| desired));
    // One sender, taken by whichever run of the task is alive.
    let wanted = Arc::new(Mutex::new(wanted));
    let draining = cx.shutdown.draining();
    cx.tasks.spawn_restarting("files", move || {
        let (reading, paths, wanted, draining) =
            (Arc::clone(&reading), paths.clone(), Arc::clone(&wanted), draining.clone());
        async move {
            let wanted = wanted.lock().await;
            wanted::follow(reading, paths, &wanted, draining).await
        }
    });
}
