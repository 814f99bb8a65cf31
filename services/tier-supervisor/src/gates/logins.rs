//! Logins, in tier-supervisor: makes the links, and remembers in memory which tickets are out and who has logged in, so
//! that a gates' process that is started anew knows both. Also how each gate stands, because a link to a port that somebody
//! else holds would hand them the ticket.
//!
//! It has hashes only. Whoever may call tier-supervisor's socket is an operator; that is what a link attests.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::admission::{MOST_SESSIONS, MOST_TICKETS, make_room, random};
use super::told::{Hash, Session, Ticket, Told, now};
use crate::desired::Gate;

/// How long a ticket can be used.
pub const TICKET_SECONDS: u64 = 600;
/// How long the gates' process may take to know of a ticket.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// Tickets on their way to the gates' process; it reads faster than anybody asks for links.
const WAITING: usize = 64;
/// Sessions of all sites at a time; of each site the gates' process keeps fewer.
const MOST_SESSIONS_OF_ALL: usize = MOST_SESSIONS * 32;

/// A link that logs in once.
#[derive(Clone, PartialEq, Eq)]
pub struct Link {
    /// Name of the site.
    pub site: String,
    /// `http://<site>.localhost:<port>/login?ticket=...`
    pub url: String,
    /// Seconds since 1970.
    pub expires: u64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("site", &self.site).field("url", &"<redacted>").finish_non_exhaustive()
    }
}

/// Why there is no link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// What is behind this gate authenticates by itself.
    #[error("{name} is no site: it has no login here")]
    NoSite {
        /// The gate.
        name: String,
    },
    /// Nobody of ours listens there; a link would hand the ticket to whoever does.
    #[error("{name} is not open: {why}")]
    NotOpen {
        /// The gate.
        name: String,
        /// Why, and what to do.
        why: String,
    },
    /// The gates' process does not take the ticket.
    #[error("the gates' process does not answer; it is started again by itself, ask again in a moment")]
    NoAnswer,
    /// The system has no random numbers.
    #[error("the system's random number generator failed")]
    Random,
}

/// How a gate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It listens.
    Open,
    /// It does not, for this reason.
    Closed(String),
}

/// Tickets and sessions, and how the gates stand.
#[derive(Debug)]
pub struct Logins {
    state: Mutex<State>,
    /// Raised when anything of it has changed.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// And whether the living process knows it.
    tickets: Vec<(Ticket, bool)>,
    sessions: Vec<Session>,
    /// By where they listen.
    standing: BTreeMap<SocketAddrV4, Standing>,
    /// To the living process.
    process: Option<mpsc::Sender<Ticket>>,
}

impl Default for Logins {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Logins {
    /// A link to a site, once the gates' process knows its ticket.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn link(&self, gate: &Gate) -> Result<Link, LinkError> {
        let name = || gate.name.clone();
        let Some(site) = gate.site() else { return Err(LinkError::NoSite { name: name() }) };
        let secret = random().ok_or(LinkError::Random)?;
        let expires = now().saturating_add(TICKET_SECONDS);
        let ticket = Ticket { site: name(), hash: Hash::of(&secret), expires };
        {
            let mut state = self.lock();
            match state.standing.get(&gate.listen) {
                Some(Standing::Open) => {}
                Some(Standing::Closed(why)) => return Err(LinkError::NotOpen { name: name(), why: why.clone() }),
                None => {
                    let why = "it is being opened; ask again in a moment".to_owned();
                    return Err(LinkError::NotOpen { name: name(), why });
                }
            }
            let process = state.process.clone().ok_or(LinkError::NoAnswer)?;
            process.try_send(ticket.clone()).map_err(|_| LinkError::NoAnswer)?;
            state.forget(now());
            make_room(&mut state.tickets, MOST_TICKETS);
            state.tickets.push((ticket.clone(), false));
        }
        let mut changes = self.changed.subscribe();
        let known = changes.wait_for(|_| {
            let state = self.lock();
            // One that was used already is known all the more.
            state.tickets.iter().find(|(known, _)| known.hash == ticket.hash).is_none_or(|(_, known)| *known)
        });
        match tokio::time::timeout(KNOWN_WITHIN, known).await {
            Ok(Ok(_)) => Ok(Link { site: name(), url: format!("{site}/login?ticket={secret}"), expires }),
            Ok(Err(_)) | Err(_) => Err(LinkError::NoAnswer),
        }
    }

    /// How a gate stands; none while it is not known yet.
    #[must_use]
    pub fn standing(&self, gate: &Gate) -> Option<Standing> {
        self.lock().standing.get(&gate.listen).cloned()
    }

    /// A process begins: what it must be told first, and what it is to be told later.
    pub(super) fn begin(&self) -> (Vec<Told>, mpsc::Receiver<Ticket>) {
        let (process, tickets) = mpsc::channel(WAITING);
        let mut state = self.lock();
        state.forget(now());
        state.process = Some(process);
        state.standing.clear();
        for (_, known) in &mut state.tickets {
            *known = false;
        }
        let sessions = state.sessions.iter().cloned().map(Told::Session);
        let told = sessions.chain(state.tickets.iter().map(|(ticket, _)| Told::Ticket(ticket.clone()))).collect();
        (told, tickets)
    }

    /// A process has ended.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        state.process = None;
        state.standing.clear();
        self.raise(state);
    }

    pub(super) fn stands(&self, listen: SocketAddrV4, standing: Standing) {
        let mut state = self.lock();
        state.standing.insert(listen, standing);
        self.raise(state);
    }

    /// Gates that are not wanted any more stand in no way.
    pub(super) fn wanted(&self, gates: &[Gate]) {
        let mut state = self.lock();
        state.standing.retain(|listen, _| gates.iter().any(|gate| gate.listen == *listen));
        self.raise(state);
    }

    pub(super) fn knows(&self, ticket: Hash) {
        let mut state = self.lock();
        state.tickets.iter_mut().filter(|(known, _)| known.hash == ticket).for_each(|(_, known)| *known = true);
        self.raise(state);
    }

    pub(super) fn logged_in(&self, ticket: Hash, session: Session) {
        let mut state = self.lock();
        state.tickets.retain(|(known, _)| known.hash != ticket);
        make_room(&mut state.sessions, MOST_SESSIONS_OF_ALL);
        state.sessions.push(session);
        self.raise(state);
    }

    pub(super) fn logged_out(&self, session: Hash) {
        let mut state = self.lock();
        state.sessions.retain(|known| known.hash != session);
        self.raise(state);
    }

    fn raise(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self, now: u64) {
        self.tickets.retain(|(ticket, _)| ticket.expires > now);
        self.sessions.retain(|session| session.expires > now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use super::*;
    use crate::desired::{GateKind, Upstream};

    fn gate(kind: GateKind) -> Gate {
        Gate { name: "tasks".to_owned(), listen: "127.0.0.1:3001".parse().unwrap(), kind }
    }

    fn site() -> Gate {
        gate(GateKind::Site(Upstream::Unix("/x".into())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_is_given_once_the_process_knows_its_ticket() {
        let logins = Logins::default();
        let why = logins.link(&gate(GateKind::Tcp("10.87.1.5:4222".parse().unwrap()))).await.unwrap_err();
        assert!(matches!(why, LinkError::NoSite { .. }));
        assert!(matches!(logins.link(&site()).await, Err(LinkError::NotOpen { .. })), "no process yet");
        let (told, mut tickets) = logins.begin();
        assert!(told.is_empty());
        // Whoever holds the port would get the ticket.
        logins.stands(site().listen, Standing::Closed("nginx has it".to_owned()));
        let why = logins.link(&site()).await.unwrap_err();
        assert_eq!(why, LinkError::NotOpen { name: "tasks".to_owned(), why: "nginx has it".to_owned() });
        assert!(tickets.try_recv().is_err());
        logins.stands(site().listen, Standing::Open);
        let site = site();
        let asks = logins.link(&site);
        let process = async {
            let ticket = tickets.recv().await.unwrap();
            logins.knows(ticket.hash);
            ticket
        };
        let (link, ticket) = tokio::join!(asks, process);
        let link = link.unwrap();
        let secret = link.url.strip_prefix("http://tasks.localhost:3001/login?ticket=").unwrap();
        assert_eq!((secret.len(), Hash::of(secret)), (43, ticket.hash));
        assert!(!format!("{link:?}{logins:?}").contains(secret), "a ticket is shown to nobody but who asked");
        // A process that takes nothing.
        assert_eq!(logins.link(&site).await, Err(LinkError::NoAnswer));
        logins.ended();
        assert!(matches!(logins.link(&site).await, Err(LinkError::NotOpen { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_process_is_told_what_the_last_one_knew_and_not_what_was_used_up() {
        let logins = Logins::default();
        let (_, mut tickets) = logins.begin();
        logins.stands(site().listen, Standing::Open);
        let site = site();
        let (first, second) = tokio::join!(async { tokio::join!(logins.link(&site), logins.link(&site)) }, async {
            let pair = (tickets.recv().await.unwrap(), tickets.recv().await.unwrap());
            logins.knows(pair.0.hash);
            logins.knows(pair.1.hash);
            pair
        });
        assert!(first.0.is_ok() && first.1.is_ok());
        let session = |text: &str| Session {
            site: "tasks".to_owned(),
            hash: Hash::of(text),
            uid: 1000,
            expires: now().saturating_add(60),
        };
        logins.logged_in(second.0.hash, session("a"));
        let (told, _) = logins.begin();
        assert_eq!(told, [Told::Session(session("a")), Told::Ticket(second.1.clone())]);
        logins.logged_out(session("a").hash);
        assert_eq!(logins.begin().0, [Told::Ticket(second.1)]);
    }
}
