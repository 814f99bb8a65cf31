//! Who may come in: tickets that were not used yet, and sessions. The gates' process has hashes only; tier-supervisor has
//! the same ones, so that a process that is started anew goes on where the last one ended.
//!
//! It decides about tickets and sessions, and about nothing else of a request.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio_util::sync::CancellationToken;

use super::told::{Hash, Said, Session, Ticket};

/// Tickets at a time. Every run of up.sh makes one for each site; the oldest make room.
pub(super) const MOST_TICKETS: usize = 512;
/// Sessions of one site at a time: browsers of one household, many times over. The oldest make room.
pub(super) const MOST_SESSIONS: usize = 64;
/// How long a session lasts.
pub(super) const SESSION_SECONDS: u64 = 7 * 24 * 3600;

/// What tells tier-supervisor.
type Tell = dyn Fn(Said) + Send + Sync;

/// Tickets and sessions of every site.
pub(super) struct Admission {
    state: Mutex<State>,
    tell: Box<Tell>,
}

#[derive(Default)]
struct State {
    tickets: Vec<Ticket>,
    sessions: Vec<Open>,
}

struct Open {
    session: Session,
    ended: CancellationToken,
}

/// A session that lasts as long as `ended` is not cancelled.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    pub(super) hash: Hash,
    pub(super) ended: CancellationToken,
    /// Seconds since 1970.
    pub(super) expires: u64,
}

impl Admission {
    pub(super) fn new(tell: impl Fn(Said) + Send + Sync + 'static) -> Self {
        Self { state: Mutex::default(), tell: Box::new(tell) }
    }

    /// A new ticket, which is then known.
    pub(super) fn expect(&self, ticket: Ticket) {
        let hash = ticket.hash;
        let mut state = self.lock();
        if !state.tickets.contains(&ticket) {
            make_room(&mut state.tickets, MOST_TICKETS);
            state.tickets.push(ticket);
        }
        drop(state);
        (self.tell)(Said::Knows { ticket: hash });
    }

    /// A session of an earlier process.
    pub(super) fn restore(&self, session: Session) {
        let mut state = self.lock();
        if !state.sessions.iter().any(|open| open.session == session) {
            state.sessions.push(Open { session, ended: CancellationToken::new() });
        }
    }

    /// Uses a ticket up and opens a session of that user; gives the value of its cookie. None: there is no such ticket for
    /// this site. That it is used up is told before anything else happens, so that it stays used whatever happens to us.
    pub(super) fn log_in(&self, site: &str, ticket: &str, uid: u32, now: u64) -> Option<String> {
        let hash = Hash::of(ticket);
        let mut state = self.lock();
        state.forget(now);
        // All are looked at, whichever fits.
        let found = state.tickets.iter().enumerate().fold(None, |found, (index, ticket)| {
            let fits = (ticket.hash == hash) & (ticket.site == site);
            if fits { Some(index) } else { found }
        });
        let cookie = random()?;
        state.tickets.remove(found?);
        let expires = now.saturating_add(SESSION_SECONDS);
        let session = Session { site: site.to_owned(), hash: Hash::of(&cookie), uid, expires };
        let of_site = |open: &&Open| open.session.site == site;
        while state.sessions.iter().filter(of_site).count() >= MOST_SESSIONS {
            let Some(oldest) = state.sessions.iter().position(|open| open.session.site == site) else { break };
            self.end(state.sessions.remove(oldest));
        }
        (self.tell)(Said::LoggedIn { ticket: hash, session: session.clone() });
        state.sessions.push(Open { session, ended: CancellationToken::new() });
        Some(cookie)
    }

    /// The session that one of these values belongs to, if it is of this site and of this user.
    pub(super) fn admit(&self, site: &str, values: &[&str], uid: u32, now: u64) -> Option<Admitted> {
        let hashes: Vec<Hash> = values.iter().map(|value| Hash::of(value)).collect();
        let mut state = self.lock();
        state.forget(now);
        state.sessions.iter().fold(None, |found, open| {
            let fits = hashes.iter().fold(false, |fits, hash| fits | (*hash == open.session.hash));
            match fits & (open.session.site == site) & (open.session.uid == uid) {
                true => {
                    Some(Admitted { hash: open.session.hash, ended: open.ended.clone(), expires: open.session.expires })
                }
                false => found,
            }
        })
    }

    /// Ends a session, and what still runs in it.
    pub(super) fn log_out(&self, hash: Hash) {
        let mut state = self.lock();
        if let Some(found) = state.sessions.iter().position(|open| open.session.hash == hash) {
            self.end(state.sessions.remove(found));
        }
    }

    fn end(&self, open: Open) {
        open.ended.cancel();
        (self.tell)(Said::LoggedOut { session: open.session.hash });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

impl State {
    fn forget(&mut self, now: u64) {
        self.tickets.retain(|ticket| ticket.expires > now);
        self.sessions.retain(|open| {
            let lasts = open.session.expires > now;
            if !lasts {
                open.ended.cancel();
            }
            lasts
        });
    }
}

/// Lets the first go until there is room for one more.
pub(super) fn make_room<T>(held: &mut Vec<T>, most: usize) {
    let surplus = held.len().saturating_add(1).saturating_sub(most);
    held.drain(..surplus.min(held.len()));
}

/// 256 random bits in base64url without padding; none when the system has no random numbers.
pub(super) fn random() -> Option<String> {
    let mut bytes = [0_u8; 32];
    rand::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::Arc;

    use super::*;

    const ALICE: u32 = 1000;
    const MALLORY: u32 = 1001;

    fn admission() -> (Admission, Arc<Mutex<Vec<Said>>>) {
        let said = Arc::<Mutex<Vec<Said>>>::default();
        let tells = Arc::clone(&said);
        (Admission::new(move |told| tells.lock().unwrap().push(told)), said)
    }

    fn ticket(site: &str, text: &str) -> Ticket {
        Ticket { site: site.to_owned(), hash: Hash::of(text), expires: 600 }
    }

    #[test]
    fn a_ticket_is_for_one_site_one_time_and_ten_minutes() {
        let (admission, said) = admission();
        for (text, expires) in [("one", 600), ("late", 600)] {
            admission.expect(Ticket { expires, ..ticket("tasks", text) });
        }
        assert_eq!(admission.log_in("jaeger", "one", ALICE, 0), None, "it is for another site");
        assert_eq!(admission.log_in("tasks", "two", ALICE, 0), None, "nobody gave it out");
        let cookie = admission.log_in("tasks", "one", ALICE, 599).unwrap();
        assert_eq!(admission.log_in("tasks", "one", ALICE, 599), None, "it was used");
        assert_eq!(admission.log_in("tasks", "late", ALICE, 600), None, "it is too old");
        assert!(admission.admit("tasks", &[&cookie], ALICE, 600).is_some());
        let said = said.lock().unwrap();
        assert!(matches!(said.as_slice(), [Said::Knows { .. }, Said::Knows { .. }, Said::LoggedIn { ticket, session }]
            if *ticket == Hash::of("one") && session.uid == ALICE && session.hash == Hash::of(&cookie)));
    }

    #[test]
    fn a_session_is_of_one_site_one_user_and_seven_days() {
        let (admission, _) = admission();
        admission.expect(ticket("tasks", "one"));
        let cookie = admission.log_in("tasks", "one", ALICE, 0).unwrap();
        let admit = |site, values: &[&str], uid, now| admission.admit(site, values, uid, now).is_some();
        assert!(admit("tasks", &["other", &cookie], ALICE, 0));
        assert!(!admit("jaeger", &[&cookie], ALICE, 0));
        assert!(!admit("tasks", &[&cookie], MALLORY, 0), "a cookie that somebody else of this machine has read");
        assert!(!admit("tasks", &["one", ""], ALICE, 0) && !admit("tasks", &[], ALICE, 0));
        assert!(admit("tasks", &[&cookie], ALICE, SESSION_SECONDS - 1));
        let open = admission.admit("tasks", &[&cookie], ALICE, 1).unwrap();
        assert!(!admit("tasks", &[&cookie], ALICE, SESSION_SECONDS));
        assert!(open.ended.is_cancelled(), "what still runs in it ends with it");
    }

    #[test]
    fn a_session_that_was_ended_stays_ended_and_the_next_process_knows_the_others() {
        let (first, said) = admission();
        let cookies: Vec<String> = ["one", "two"]
            .into_iter()
            .map(|text| {
                first.expect(ticket("tasks", text));
                first.log_in("tasks", text, ALICE, 0).unwrap()
            })
            .collect();
        let open = first.admit("tasks", &[&cookies[0]], ALICE, 0).unwrap();
        first.log_out(open.hash);
        assert!(open.ended.is_cancelled());
        assert!(first.admit("tasks", &[&cookies[0]], ALICE, 0).is_none());
        // As tier-supervisor keeps them.
        let (second, _) = admission();
        let mut kept: Vec<Session> = Vec::new();
        for said in said.lock().unwrap().iter() {
            match said {
                Said::LoggedIn { session, .. } => kept.push(session.clone()),
                Said::LoggedOut { session } => kept.retain(|kept| kept.hash != *session),
                _ => {}
            }
        }
        kept.into_iter().for_each(|session| second.restore(session));
        assert!(second.admit("tasks", &[&cookies[0]], ALICE, 0).is_none());
        assert!(second.admit("tasks", &[&cookies[1]], ALICE, 0).is_some());
    }

    #[test]
    fn nothing_grows_without_end() {
        let (admission, _) = admission();
        let mut cookies = Vec::new();
        for number in 0..MOST_SESSIONS + 3 {
            let text = number.to_string();
            admission.expect(ticket("tasks", &text));
            cookies.push(admission.log_in("tasks", &text, ALICE, 0).unwrap());
        }
        let admitted = cookies.iter().filter(|cookie| admission.admit("tasks", &[cookie], ALICE, 0).is_some()).count();
        assert_eq!(admitted, MOST_SESSIONS);
        assert!(admission.admit("tasks", &[&cookies[2]], ALICE, 0).is_none(), "the oldest made room");
        for number in 0..=MOST_TICKETS {
            admission.expect(ticket("jaeger", &number.to_string()));
        }
        assert_eq!(admission.lock().tickets.len(), MOST_TICKETS);
        assert!(admission.log_in("jaeger", "0", ALICE, 0).is_none());
        assert!(admission.log_in("jaeger", "1", ALICE, 0).is_some());
    }
}
