//! What was delivered and is not handled yet. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Messages by lane, each lane in the order of the stream. A message is in it once, however often it is delivered.
#[derive(Debug)]
pub(super) struct Backlog<M> {
    lanes: HashMap<String, Lane<M>>,
}

#[derive(Debug)]
struct Lane<M> {
    running: HashSet<u64>,
    waiting: BTreeMap<u64, M>,
}

impl<M> Default for Backlog<M> {
    fn default() -> Self {
        Self { lanes: HashMap::new() }
    }
}

impl<M> Backlog<M> {
    /// Adds a message. One that waits already is replaced, because the newest delivery is the one to acknowledge; one
    /// that is being handled is not added again.
    pub(super) fn add(&mut self, lane: &str, sequence: u64, message: M) {
        let lane = match self.lanes.get_mut(lane) {
            Some(lane) => lane,
            None => {
                self.lanes.entry(lane.to_owned()).or_insert(Lane { running: HashSet::new(), waiting: BTreeMap::new() })
            }
        };
        if !lane.running.contains(&sequence) {
            lane.waiting.insert(sequence, message);
        }
    }

    /// Takes the first messages of a lane, at most `most`; none while others of it are being handled.
    pub(super) fn begin(&mut self, lane: &str, most: usize) -> Option<Vec<M>> {
        let lane = self.lanes.get_mut(lane).filter(|lane| lane.running.is_empty())?;
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((sequence, message)) = lane.waiting.pop_first()
        {
            lane.running.insert(sequence);
            taken.push(message);
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// What was begun in a lane has been handled.
    pub(super) fn end(&mut self, lane: &str) {
        if let Some(known) = self.lanes.get_mut(lane) {
            known.running.clear();
            if known.waiting.is_empty() {
                self.lanes.remove(lane);
            }
        }
    }

    /// Messages that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &M> {
        self.lanes.values().flat_map(|lane| lane.waiting.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_in_it_once_and_lanes_are_in_order() {
        let mut backlog = Backlog::default();
        backlog.add("a", 1, "1");
        assert_eq!(backlog.begin("a", 10), Some(vec!["1"]));
        for (sequence, message) in [(4, "4"), (2, "2"), (3, "3"), (2, "2 again"), (1, "1 again")] {
            backlog.add("a", sequence, message);
        }
        backlog.add("b", 5, "5");
        assert_eq!(backlog.waiting().count(), 4);
        assert_eq!(backlog.begin("a", 10), None, "one is being handled");
        assert_eq!(backlog.begin("b", 10), Some(vec!["5"]));
        backlog.end("a");
        assert_eq!(backlog.begin("a", 2), Some(vec!["2 again", "3"]));
        backlog.end("a");
        assert_eq!(backlog.begin("a", 2), Some(vec!["4"]));
        backlog.end("a");
        assert_eq!(backlog.begin("a", 2), None);
        // Handled and delivered again: its handler asked for it.
        backlog.add("a", 1, "1 later");
        assert_eq!(backlog.begin("a", 2), Some(vec!["1 later"]));
        backlog.end("a");
        backlog.end("b");
        assert!(backlog.lanes.is_empty(), "nothing is kept for lanes without messages");
    }
}
