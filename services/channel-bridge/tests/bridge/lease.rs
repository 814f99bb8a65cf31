//! From the start of a turn to its end: the lease that the other services watch, an agent that does not stop by itself,
//! and the span that covers it all.

use std::sync::atomic::Ordering;
use std::time::Duration;

use channel_bridge::turn::Patience;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::agent_double::Journal;
use crate::stack::{Stack, failure, patience, reply, rest, until};

fn position(journal: &Journal, entry: &str) -> Option<usize> {
    journal.lock().unwrap().iter().position(|known| known == entry)
}

#[tokio::test]
async fn a_running_turn_is_announced_again_and_again_and_never_after_its_end() {
    let stack = Stack::with_patience(Patience { beat: Duration::from_millis(20), ..patience() }).await;
    let beats = |turn: usize| {
        let started = stack.post.announced.lock().unwrap().get(turn).cloned();
        let beats = stack.post.beats.lock().unwrap();
        beats.iter().filter(|(event, _, _)| Some(event) == started.as_ref()).map(|beat| (beat.1, beat.2)).collect()
    };
    for turn in 0..2 {
        let mut updates = stack.open("hang", "c").await;
        until("it beats", || {
            let beats: Vec<_> = beats(turn);
            beats.len() >= 2
        })
        .await;
        // A beat that does not get through harms nobody; the next one is on its way.
        stack.post.away.store(true, Ordering::SeqCst);
        until("it goes on", || {
            let beats: Vec<_> = beats(turn);
            beats.len() >= 4
        })
        .await;
        stack.post.away.store(false, Ordering::SeqCst);
        rest(&mut stack.open("/stop", "c").await).await;
        assert_eq!(reply(&rest(&mut updates).await).1, "cancelled");
        assert_eq!(beats(turn)[..4], [(1, 1), (1, 2), (1, 3), (1, 4)]);
    }
    // All beats were the announcement over again: none was left out above.
    let known: usize = (0..2).map(|turn| beats(turn).len()).sum();
    assert_eq!(stack.post.beats.lock().unwrap().len(), known);
    // While the second one beat, the first one was silent.
    for started in stack.post.announced.lock().unwrap().iter() {
        let ended = position(&stack.journal, &format!("ended {}", started.turn)).unwrap();
        let after = stack.journal.lock().unwrap()[ended..].to_vec();
        assert!(!after.contains(&format!("beat {}", started.turn)), "{after:?}");
    }
}

#[tokio::test]
async fn a_turn_that_takes_too_long_is_cancelled_before_it_ends() {
    let stack = Stack::with_patience(Patience { whole: Duration::from_millis(1500), ..patience() }).await;
    let updates = stack.say("hang").await;
    assert!(failure(&updates).0.starts_with("the turn took longer than"), "{updates:?}");
    cancelled_then_ended(&stack);
}

#[tokio::test]
async fn a_silent_agent_is_cancelled_and_waited_for_only_so_long() {
    let brief = Patience { silence: Duration::from_millis(200), stopping: Duration::from_millis(300), ..patience() };
    let stack = Stack::with_patience(brief).await;
    for verb in ["hang", "deaf"] {
        let updates = stack.say(verb).await;
        assert!(failure(&updates).0.starts_with("the agent said nothing"), "{updates:?}");
        cancelled_then_ended(&stack);
        if verb == "hang" {
            stack.journal.lock().unwrap().clear();
        }
    }
    // The connection does not outlive the turn.
    until("the deaf agent is left alone", || position(&stack.journal, "left alone").is_some()).await;
}

fn cancelled_then_ended(stack: &Stack) {
    let journal = stack.journal.lock().unwrap().clone();
    let cancelled = journal.iter().position(|entry| entry == "cancelled");
    let ended = journal.iter().position(|entry| entry.starts_with("ended "));
    assert!(cancelled.is_some() && cancelled < ended, "{journal:?}");
}

/// Writes down which spans end.
struct Ends(Journal);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ends {
    fn on_close(&self, id: tracing::span::Id, cx: Context<'_, S>) {
        let name = cx.span(&id).unwrap().name();
        if name.starts_with("turn") {
            self.0.lock().unwrap().push(format!("closed {name}"));
        }
    }
}

#[tokio::test]
async fn the_root_span_lasts_as_long_as_the_turn() {
    let stack = Stack::start().await;
    let subscriber = tracing_subscriber::registry().with(Ends(stack.journal.clone()));
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut updates = stack.open("hang", "c").await;
    until("it is prompted", || stack.agent.texts().len() == 1).await;
    assert_eq!(position(&stack.journal, "closed turn"), None);
    rest(&mut stack.open("/stop", "c").await).await;
    rest(&mut updates).await;
    until("the root span ends", || position(&stack.journal, "closed turn").is_some()).await;
    assert!(position(&stack.journal, "closed turn.run") < position(&stack.journal, "closed turn"));
    // One whose process ends in the middle of it: the span ends with what it covered here.
    let _updates = stack.open("hang", "c").await;
    until("it is prompted", || stack.agent.texts().len() == 2).await;
    stack.journal.lock().unwrap().clear();
    stack.cx.shutdown.deadline().cancel();
    stack.cx.tasks.finished().await;
    assert!(position(&stack.journal, "closed turn").is_some());
}
