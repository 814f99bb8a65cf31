//! Which containers were created here, and who is present at each.
//!
//! A container of the sandbox lives while a client is present at it: attached, or waiting for its end. A command that
//! runs out of time is ended by killing the *client*; where nobody is left, the container is removed. A container may
//! therefore be started only while somebody is attached, and there can never be more than [`CONTAINERS_MOST`].
//! Owns that book. Calls nobody: who must go is put on a queue that [`super::daemon`] works through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::call::{ContainerId, Until};
use super::refusal::{Operation, Reason, Refused};

/// Containers at once, running or not.
pub const CONTAINERS_MOST: usize = 32;

/// The book.
#[derive(Debug, Clone)]
pub struct Containers {
    book: Arc<Mutex<Book>>,
    leaving: mpsc::Sender<ContainerId>,
}

#[derive(Debug, Default)]
struct Book {
    entries: HashMap<ContainerId, Entry>,
    /// Being created: they count, but have no id yet.
    reserved: usize,
    /// Orders entries by age.
    created: u64,
}

#[derive(Debug)]
struct Entry {
    age: u64,
    auto_remove: bool,
    /// Attached or waiting.
    present: usize,
    attached: usize,
    started: bool,
    ended: bool,
    /// On the queue; once only, so the queue is never fuller than the book.
    leaving: bool,
}

/// Room for one more container.
#[derive(Debug)]
pub struct Room {
    book: Arc<Mutex<Book>>,
}

/// What to do about a full book.
#[derive(Debug)]
pub enum Admission {
    /// Go on.
    Room(Room),
    /// Remove this one, at which nobody is present, and ask again.
    Instead(ContainerId),
}

/// One client's presence at one container. The last to go without an end takes the container along.
#[derive(Debug)]
pub struct Presence {
    id: ContainerId,
    containers: Containers,
    attached: bool,
    /// Whether the end of what this client waits for is the end of a run.
    tells_end: bool,
}

impl Containers {
    /// An empty book, and the queue of those that must go.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<ContainerId>) {
        // Room for every entry of the book, each of which is put there once, and for some that a client removed meanwhile.
        // What finds no room is removed when the book is full.
        let (leaving, queue) = mpsc::channel(4 * CONTAINERS_MOST);
        (Self { book: Arc::default(), leaving }, queue)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more.
    ///
    /// # Errors
    /// Where there are as many as there may be and somebody is present at each.
    pub fn admit(&self) -> Result<Admission, Refused> {
        let mut book = self.book();
        if book.entries.len() + book.reserved < CONTAINERS_MOST {
            book.reserved += 1;
            return Ok(Admission::Room(Room { book: Arc::clone(&self.book) }));
        }
        let oldest = book.entries.iter().filter(|(_, entry)| entry.present == 0).min_by_key(|(_, entry)| entry.age);
        oldest.map(|(id, _)| Admission::Instead(id.clone())).ok_or_else(|| {
            let detail = format!("there are {CONTAINERS_MOST} containers at work; wait until one has ended");
            Refused::new(Operation::Create, Reason::TooMany, &detail)
        })
    }

    /// Refuses ids that are not in the book.
    ///
    /// # Errors
    /// Where the container was not created here, or is gone.
    pub fn known(&self, id: &ContainerId, operation: Operation) -> Result<(), Refused> {
        if self.book().entries.contains_key(id) { Ok(()) } else { Err(foreign(id, operation)) }
    }

    /// A client that attaches.
    ///
    /// # Errors
    /// Where the container was not created here, or is gone.
    pub fn attach(&self, id: &ContainerId) -> Result<Presence, Refused> {
        self.present(id, Operation::Attach, |entry| {
            entry.attached += 1;
            false
        })
    }

    /// A client that waits.
    ///
    /// # Errors
    /// Where the container was not created here, or is gone.
    pub fn wait(&self, id: &ContainerId, until: Until) -> Result<Presence, Refused> {
        // Waiting for "not running" on what was never started returns at once.
        self.present(id, Operation::Wait, |entry| entry.started || until != Until::NotRunning)
    }

    fn present(
        &self,
        id: &ContainerId,
        operation: Operation,
        tells_end: impl FnOnce(&mut Entry) -> bool,
    ) -> Result<Presence, Refused> {
        let mut book = self.book();
        let entry = book.entries.get_mut(id).filter(|entry| !entry.leaving).ok_or_else(|| foreign(id, operation))?;
        entry.present += 1;
        let tells_end = tells_end(entry);
        let attached = operation == Operation::Attach;
        Ok(Presence { id: id.clone(), containers: self.clone(), attached, tells_end })
    }

    /// Permits a start. To be called before the daemon is: from here on, absence removes the container. One that may
    /// not be started is removed, as the daemon does it where a start fails: a client that waits for that would wait
    /// for ever.
    ///
    /// # Errors
    /// Where the container is not ours, or nobody is present.
    pub fn start(&self, id: &ContainerId) -> Result<(), Refused> {
        let mut book = self.book();
        let entry = book.entries.get_mut(id).ok_or_else(|| foreign(id, Operation::Start))?;
        // One that only waits is a client that means to go (docker run -d).
        if entry.attached == 0 {
            entry.leave(id, &self.leaving);
            let detail = "nobody is attached to this container; the sandbox runs nothing in the background (docker run without -d)";
            return Err(Refused::new(Operation::Start, Reason::Detached, detail));
        }
        entry.started = true;
        entry.ended = false;
        Ok(())
    }

    /// The daemon has it no more.
    pub fn gone(&self, id: &ContainerId) {
        self.book().entries.remove(id);
    }

    /// Whether the daemon's container of this id is in the book.
    #[must_use]
    pub fn has(&self, id: &ContainerId) -> bool {
        self.book().entries.contains_key(id)
    }
}

impl Entry {
    fn leave(&mut self, id: &ContainerId, leaving: &mpsc::Sender<ContainerId>) {
        self.leaving = self.leaving || leaving.try_send(id.clone()).is_ok();
    }
}

impl Room {
    /// The daemon created it.
    pub fn fill(self, id: ContainerId, auto_remove: bool) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.created += 1;
        let age = book.created;
        let entry = Entry { age, auto_remove, present: 0, attached: 0, started: false, ended: false, leaving: false };
        book.entries.insert(id, entry);
        // `self` is dropped after the guard and gives the reservation back.
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.reserved = book.reserved.saturating_sub(1);
    }
}

impl Presence {
    /// What this client waited for has come: the run is over.
    pub fn ended(&self) {
        if !self.tells_end {
            return;
        }
        let mut book = self.containers.book();
        let Some(entry) = book.entries.get_mut(&self.id) else { return };
        entry.ended = true;
        if entry.auto_remove {
            book.entries.remove(&self.id);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut book = self.containers.book();
        let Some(entry) = book.entries.get_mut(&self.id) else { return };
        entry.present = entry.present.saturating_sub(1);
        entry.attached = entry.attached.saturating_sub(usize::from(self.attached));
        if entry.present == 0 && !entry.ended {
            entry.leave(&self.id, &self.containers.leaving);
        }
    }
}

fn foreign(id: &ContainerId, operation: Operation) -> Refused {
    let detail = format!("container {id} was not created by docker run in this sandbox, or is gone");
    Refused::new(operation, Reason::ForeignContainer, &detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    fn id(n: usize) -> ContainerId {
        ContainerId::parse(&format!("{n:064x}")).unwrap()
    }

    fn create(containers: &Containers, n: usize, auto_remove: bool) -> ContainerId {
        match containers.admit().unwrap() {
            Admission::Room(room) => room.fill(id(n), auto_remove),
            Admission::Instead(other) => panic!("no room, {other} instead"),
        }
        id(n)
    }

    #[test]
    fn a_container_goes_with_its_last_client() {
        let (containers, mut queue) = Containers::new();
        let one = create(&containers, 1, true);
        let attached = containers.attach(&one).unwrap();
        let waiting = containers.wait(&one, Until::Removed).unwrap();
        containers.start(&one).unwrap();
        drop(attached);
        assert!(queue.try_recv().is_err(), "somebody still waits");
        drop(waiting);
        assert_eq!(queue.try_recv().unwrap(), one);
        assert!(containers.attach(&one).is_err(), "it is leaving");
        containers.gone(&one);
        assert_eq!(containers.known(&one, Operation::Kill).unwrap_err().reason, Reason::ForeignContainer);
    }

    #[test]
    fn an_end_that_was_told_keeps_nothing_and_removes_nothing_twice() {
        let (containers, mut queue) = Containers::new();
        let one = create(&containers, 1, true);
        let (attached, waiting) = (containers.attach(&one).unwrap(), containers.wait(&one, Until::Removed).unwrap());
        containers.start(&one).unwrap();
        waiting.ended();
        drop((waiting, attached));
        assert!(queue.try_recv().is_err());
        assert!(!containers.has(&one));

        let kept = create(&containers, 2, false);
        let (attached, waiting) = (containers.attach(&kept).unwrap(), containers.wait(&kept, Until::NextExit).unwrap());
        containers.start(&kept).unwrap();
        waiting.ended();
        drop((attached, waiting));
        assert!(queue.try_recv().is_err());
        assert!(containers.has(&kept), "without --rm it stays, for its logs");
    }

    #[test]
    fn a_wait_that_ends_before_the_start_tells_nothing() {
        let (containers, mut queue) = Containers::new();
        let one = create(&containers, 1, true);
        let early = containers.wait(&one, Until::NotRunning).unwrap();
        let attached = containers.attach(&one).unwrap();
        containers.start(&one).unwrap();
        early.ended();
        drop((early, attached));
        assert_eq!(queue.try_recv().unwrap(), one);
    }

    #[test]
    fn nothing_starts_unseen() {
        let (containers, mut queue) = Containers::new();
        let one = create(&containers, 1, true);
        assert_eq!(containers.start(&one).unwrap_err().reason, Reason::Detached);
        assert_eq!(queue.try_recv().unwrap(), one, "its client may wait for its removal");

        let two = create(&containers, 2, true);
        let waiting = containers.wait(&two, Until::NextExit).unwrap();
        assert_eq!(containers.start(&two).unwrap_err().reason, Reason::Detached, "waiting is not being attached");
        assert_eq!(queue.try_recv().unwrap(), two);
        drop(waiting);
        assert!(queue.try_recv().is_err(), "once is enough");
        assert_eq!(containers.start(&id(9)).unwrap_err().reason, Reason::ForeignContainer);
    }

    #[test]
    fn the_book_is_bounded_and_the_oldest_without_a_client_makes_room() {
        let (containers, _queue) = Containers::new();
        let all: Vec<_> = (0..CONTAINERS_MOST).map(|n| create(&containers, n, false)).collect();
        let present: Vec<_> = all.iter().take(3).map(|id| containers.attach(id).unwrap()).collect();
        match containers.admit().unwrap() {
            Admission::Instead(oldest) => assert_eq!(oldest, id(3)),
            Admission::Room(_) => panic!("there is no room"),
        }
        containers.gone(&id(3));
        let Admission::Room(room) = containers.admit().unwrap() else { panic!("there is room") };
        assert!(matches!(containers.admit().unwrap(), Admission::Instead(_)), "what is being created counts");
        drop(room);
        assert!(matches!(containers.admit().unwrap(), Admission::Room(_)), "a failed creation does not");
        let rest: Vec<_> = all.iter().skip(4).map(|id| containers.attach(id).unwrap()).collect();
        let _last = create(&containers, 99, false);
        let _at_last = containers.attach(&id(99)).unwrap();
        assert_eq!(containers.admit().unwrap_err().reason, Reason::TooMany);
        drop((present, rest));
    }
}
