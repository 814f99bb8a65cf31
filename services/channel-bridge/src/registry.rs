//! Turns that are under way, and who watches them. In memory: a client that is gone after a restart is gone.
//!
//! Nothing here decides whether a turn runs. A turn without a watcher runs all the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use assistant_proto::name::TurnId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::envelope::{Conversation, Person, Update};

/// Updates that may wait for one client. A client on the same machine that is this far behind has stopped reading; it is
/// let go rather than allowed to hold up the turn. The reply is not lost: it is in the outbox and in the record.
const QUEUE: usize = 8192;

/// The turns under way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    live: Arc<Mutex<HashMap<TurnId, Live>>>,
}

#[derive(Debug)]
struct Live {
    person: Person,
    trace_id: String,
    stop: CancellationToken,
    taken_up: bool,
    watchers: Vec<Watcher>,
    /// Root span of the turn, where this process made it: open until the turn is over.
    root: Span,
}

/// Somebody who is told what happens.
#[derive(Debug)]
struct Watcher {
    updates: mpsc::Sender<Update>,
    /// Looks after this turn on behalf of a person, and is nobody itself: that it heard something does not mean that
    /// anybody was shown it, and what concerns other turns is not for it.
    attendant: bool,
}

/// A turn that was told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The turn.
    pub turn: TurnId,
    /// Its trace.
    pub trace_id: String,
}

impl Registry {
    /// Watches a turn from now on.
    #[must_use]
    pub fn watch(&self, turn: &TurnId, person: &Person, trace_id: &str) -> mpsc::Receiver<Update> {
        self.add(turn, person, trace_id, false)
    }

    /// Looks after a turn from now on, on behalf of its person. What is heard so does not count as shown.
    #[must_use]
    pub fn attend(&self, turn: &TurnId, person: &Person, trace_id: &str) -> mpsc::Receiver<Update> {
        self.add(turn, person, trace_id, true)
    }

    /// Watches every turn of a person that waits or runs, from now on.
    #[must_use]
    pub fn join(&self, person: &Person) -> Vec<mpsc::Receiver<Update>> {
        let mut joined = Vec::new();
        for live in self.lock().values_mut().filter(|live| live.person == *person) {
            let (updates, receiver) = mpsc::channel(QUEUE);
            live.watchers.push(Watcher { updates, attendant: false });
            joined.push(receiver);
        }
        joined
    }

    fn add(&self, turn: &TurnId, person: &Person, trace_id: &str, attendant: bool) -> mpsc::Receiver<Update> {
        let (updates, receiver) = mpsc::channel(QUEUE);
        let mut live = self.lock();
        let live = live.entry(turn.clone()).or_insert_with(|| Live::new(person, trace_id));
        live.watchers.push(Watcher { updates, attendant });
        receiver
    }

    /// Keeps the root span of a watched turn open until [`Registry::end_root`], or until the turn is forgotten.
    pub fn hold_root(&self, turn: &TurnId, root: Span) {
        if let Some(live) = self.lock().get_mut(turn)
            && live.root.is_none()
        {
            live.root = root;
        }
    }

    /// The turn is over, in this process at least: its root span ends.
    pub fn end_root(&self, turn: &TurnId) {
        if let Some(live) = self.lock().get_mut(turn) {
            live.root = Span::none();
        }
    }

    /// A turn is taken up; the token says when its person wants it to stop.
    #[must_use]
    pub fn take_up(&self, turn: &TurnId, person: &Person, trace_id: &str) -> CancellationToken {
        let mut live = self.lock();
        let live = live.entry(turn.clone()).or_insert_with(|| Live::new(person, trace_id));
        live.taken_up = true;
        live.stop.clone()
    }

    /// Tells everybody who watches the turn.
    pub fn say(&self, turn: &TurnId, update: &Update) {
        if let Some(live) = self.lock().get_mut(turn) {
            live.say(update);
        }
    }

    /// Tells everybody who watches any turn of a conversation, and whoever looks after the turn it is about; false when
    /// there is nobody who watches.
    #[must_use]
    pub fn say_in(&self, conversation: &Conversation, about: &TurnId, update: &Update) -> bool {
        let mut heard = false;
        for (turn, live) in self.lock().iter_mut().filter(|(_, live)| live.person.conversation == *conversation) {
            heard |= live.say_to(update, |watcher| !watcher.attendant || turn == about);
        }
        heard
    }

    /// The turn is over: tells everybody who watches, and forgets it. False when nobody watched.
    #[must_use]
    pub fn finish(&self, turn: &TurnId, last: &Update) -> bool {
        self.lock().remove(turn).is_some_and(|mut live| live.say(last))
    }

    /// A watcher has gone before its turn began: forgets the turn unless it runs or somebody else watches it.
    pub fn give_up(&self, turn: &TurnId) {
        let mut live = self.lock();
        if live
            .get(turn)
            .is_some_and(|live| !live.taken_up && live.watchers.iter().all(|watcher| watcher.updates.is_closed()))
        {
            live.remove(turn);
        }
    }

    /// Tells the turns of a person to stop, those that wait included.
    #[must_use]
    pub fn stop(&self, person: &Person) -> Vec<Stopped> {
        let mut stopped = Vec::new();
        for (turn, live) in self.lock().iter().filter(|(_, live)| live.person == *person) {
            live.stop.cancel();
            stopped.push(Stopped { turn: turn.clone(), trace_id: live.trace_id.clone() });
        }
        stopped.sort_by(|a, b| a.turn.cmp(&b.turn));
        stopped
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TurnId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn new(person: &Person, trace_id: &str) -> Self {
        Self {
            person: person.clone(),
            trace_id: trace_id.to_owned(),
            stop: CancellationToken::new(),
            taken_up: false,
            watchers: Vec::new(),
            root: Span::none(),
        }
    }

    fn say(&mut self, update: &Update) -> bool {
        self.say_to(update, |_| true)
    }

    /// True when somebody heard it who is not just an attendant.
    fn say_to(&mut self, update: &Update, whom: impl Fn(&Watcher) -> bool) -> bool {
        self.watchers.retain(|watcher| !whom(watcher) || watcher.updates.try_send(update.clone()).is_ok());
        self.watchers.iter().any(|watcher| !watcher.attendant)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn person(name: &str) -> Person {
        Person {
            conversation: Conversation {
                tier: "tasks".parse().unwrap(),
                channel: "terminal".to_owned(),
                name: name.to_owned(),
            },
            sender: "terminal".to_owned(),
        }
    }

    #[tokio::test]
    async fn everybody_hears_until_the_end() {
        let registry = Registry::default();
        let turn = TurnId::generate();
        let mut one = registry.watch(&turn, &person("a"), "t");
        let mut two = registry.watch(&turn, &person("a"), "t");
        registry.say(&turn, &Update::Text("x".to_owned()));
        assert!(registry.say_in(&person("a").conversation, &turn, &Update::Text("y".to_owned())));
        assert!(!registry.say_in(&person("b").conversation, &turn, &Update::Text("z".to_owned())));
        assert!(registry.finish(&turn, &Update::refused("r", "f")));
        assert!(!registry.finish(&turn, &Update::refused("r", "f")));
        for receiver in [&mut one, &mut two] {
            assert_eq!(receiver.recv().await, Some(Update::Text("x".to_owned())));
            assert_eq!(receiver.recv().await, Some(Update::Text("y".to_owned())));
            assert!(receiver.recv().await.unwrap().is_last());
            assert_eq!(receiver.recv().await, None);
        }
    }

    #[tokio::test]
    async fn who_comes_later_joins_their_own_turns() {
        let registry = Registry::default();
        let (mine, theirs) = (TurnId::generate(), TurnId::generate());
        let _theirs = registry.watch(&theirs, &person("b"), "t");
        assert!(registry.join(&person("a")).is_empty());
        let _stop = registry.take_up(&mine, &person("a"), "t");
        let mut joined = registry.join(&person("a"));
        assert_eq!(joined.len(), 1);
        registry.say(&mine, &Update::Queued);
        registry.say(&theirs, &Update::Text("x".to_owned()));
        assert_eq!(joined[0].recv().await, Some(Update::Queued));
        assert!(joined[0].try_recv().is_err());
    }

    #[tokio::test]
    async fn who_looks_after_a_turn_is_nobody_who_watches() {
        let registry = Registry::default();
        let (mine, other) = (TurnId::generate(), TurnId::generate());
        let mut looking = registry.attend(&mine, &person("a"), "t");
        let mut elsewhere = registry.attend(&other, &person("a"), "t");
        assert!(!registry.say_in(&person("a").conversation, &mine, &Update::Queued));
        assert_eq!(looking.recv().await, Some(Update::Queued));
        assert!(elsewhere.try_recv().is_err());
        let mut watching = registry.watch(&other, &person("a"), "t");
        assert!(registry.say_in(&person("a").conversation, &mine, &Update::Queued));
        assert_eq!(watching.recv().await, Some(Update::Queued));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_let_go() {
        let registry = Registry::default();
        let turn = TurnId::generate();
        let mut receiver = registry.watch(&turn, &person("a"), "t");
        for _ in 0..=QUEUE {
            registry.say(&turn, &Update::Text("x".to_owned()));
        }
        assert!(!registry.finish(&turn, &Update::refused("r", "f")));
        let mut heard = 0;
        while receiver.recv().await.is_some() {
            heard += 1;
        }
        assert_eq!(heard, QUEUE);
    }

    #[test]
    fn stopping_is_for_ones_own_turns() {
        let registry = Registry::default();
        let (mine, theirs) = (TurnId::generate(), TurnId::generate());
        let my_stop = registry.take_up(&mine, &person("a"), "t1");
        let their_stop = registry.take_up(&theirs, &person("b"), "t2");
        assert_eq!(registry.stop(&person("a")), [Stopped { turn: mine, trace_id: "t1".to_owned() }]);
        assert!(my_stop.is_cancelled() && !their_stop.is_cancelled());
        assert!(registry.stop(&person("c")).is_empty());
    }

    #[test]
    fn only_what_nobody_needs_is_given_up() {
        let registry = Registry::default();
        let turn = TurnId::generate();
        let (one, two) = (registry.watch(&turn, &person("a"), "t"), registry.watch(&turn, &person("a"), "t"));
        drop(one);
        registry.give_up(&turn);
        assert_eq!(registry.stop(&person("a")).len(), 1);
        drop(two);
        registry.give_up(&turn);
        assert!(registry.stop(&person("a")).is_empty());
        let _stop = registry.take_up(&turn, &person("a"), "t");
        registry.give_up(&turn);
        assert_eq!(registry.stop(&person("a")).len(), 1);
    }
}
