//! `nats sub 'egress.denied.>'` and the like, as a person types it, in the background.

use std::fmt::Debug;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use assistant_proto::event::{EgressDenied, Event};
use service_kit::task::{OnEnd, Tasks};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A running `nats sub` for one kind of event. Ends when dropped.
#[derive(Debug)]
pub struct Watch<E> {
    _child: Child,
    seen: Arc<Mutex<Vec<(Instant, E)>>>,
}

/// Attempts that died.
pub type Denials = Watch<EgressDenied>;

impl<E: Event + Clone + Debug> Watch<E> {
    /// Starts the bare command, with no context or server named, and waits until it listens.
    ///
    /// # Errors
    /// When it cannot be started or does not connect.
    pub async fn watch(tasks: &Tasks) -> anyhow::Result<Self> {
        Self::watch_by(tasks, "nats", &["sub", &format!("{}.>", E::TYPE)]).await
    }

    /// The same by another program that runs it: as another user, say.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub async fn watch_by(tasks: &Tasks, program: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("nats")?;
        let seen: Arc<Mutex<Vec<(Instant, E)>>> = Arc::default();
        let out = child.stdout.take().context("no standard output")?;
        let err = child.stderr.take().context("no standard error")?;
        let list = Arc::clone(&seen);
        let (ready, listening) = tokio::sync::oneshot::channel();
        let ready = Arc::new(Mutex::new(Some(ready)));
        let tell = Arc::clone(&ready);
        let heard = move |line: &str| {
            if line.contains("Subscribing on")
                && let Some(ready) = tell.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                let _receiver_gone = ready.send(());
            }
        };
        let heard_err = heard.clone();
        tasks.spawn("nats-sub", OnEnd::Expected, async move {
            let mut lines = BufReader::new(out).lines();
            while let Some(line) = lines.next_line().await? {
                heard(&line);
                if let Ok(event) = serde_json::from_str(&line) {
                    list.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), event));
                }
            }
            Ok(())
        });
        tasks.spawn("nats-sub-err", OnEnd::Expected, async move {
            let mut lines = BufReader::new(err).lines();
            while let Some(line) = lines.next_line().await? {
                heard_err(&line);
            }
            Ok(())
        });
        tokio::time::timeout(Duration::from_secs(10), listening).await.context("`nats sub` did not connect")??;
        Ok(Self { _child: child, seen })
    }

    /// All that was seen so far.
    #[must_use]
    pub fn seen(&self) -> Vec<(Instant, E)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those that fit, so far.
    #[must_use]
    pub fn those(&self, fits: impl Fn(&E) -> bool) -> Vec<E> {
        self.seen().into_iter().map(|(_, event)| event).filter(|event| fits(event)).collect()
    }

    /// Waits for one that fits.
    ///
    /// # Errors
    /// When none came in time; says what came.
    pub async fn wait(&self, what: &str, fits: impl Fn(&E) -> bool) -> anyhow::Result<E> {
        let found = super::until(what, Duration::from_secs(10), || {
            let found = self.seen().into_iter().map(|(_, event)| event).find(|event| fits(event));
            async move { Ok(found) }
        })
        .await;
        found.with_context(|| {
            let seen: Vec<String> = self.seen().iter().map(|(_, event)| format!("{event:?}")).collect();
            format!("seen: {seen:#?}")
        })
    }
}

impl Denials {
    /// How long after it happened the first one that fits was heard; none where none was, or it does not say when.
    #[must_use]
    pub fn late(&self, fits: impl Fn(&EgressDenied) -> bool) -> Option<Duration> {
        let (heard, event) = self.seen().into_iter().find(|(_, event)| fits(event))?;
        let happened = OffsetDateTime::parse(&event.observed_at, &Rfc3339).ok()?;
        (OffsetDateTime::now_utc() - heard.elapsed() - happened).try_into().ok()
    }
}
