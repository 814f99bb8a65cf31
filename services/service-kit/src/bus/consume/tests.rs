#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistant_proto::event::{EventId, FloorChecked};

use super::*;
use crate::bus::live::{Live, PATIENCE, checked, eventually};
use crate::task::{OnEnd, Tasks};

#[test]
fn the_subject_must_fit_the_value() {
    let body = br#"{"passed":1,"failed":0,"checked_at":""}"#;
    assert!(decode::<FloorChecked>("floor.checked.stack", body).is_ok());
    assert!(decode::<FloorChecked>("floor.checked.tasks", body).is_err());
    assert!(decode::<FloorChecked>("floor.checked.stack", b"{}").is_err());
}

#[tokio::test]
async fn what_waits_behind_a_long_one_is_neither_delivered_again_nor_handled_twice() {
    let server = Live::start().await;
    server.work_queue("QUEUE", "floor.>").await;
    let wait = Duration::from_millis(500);
    server.consumer("QUEUE", "reader", |config| config.ack_wait = wait).await;
    let (bus, tasks) = (server.bus().await, Tasks::default());
    for _ in 0..5 {
        bus.commit(&checked(), EventId::unique(), None, PATIENCE).await.unwrap();
    }
    let handled = Arc::new(Mutex::new(BTreeMap::<String, Vec<u64>>::new()));
    let (reader, seen) = (bus.clone(), Arc::clone(&handled));
    tasks.spawn("reader", OnEnd::Expected, async move {
        let handler = |received: Received<FloorChecked>| {
            let seen = Arc::clone(&seen);
            async move {
                let first = seen.lock().unwrap().is_empty();
                seen.lock().unwrap().entry(received.id).or_default().push(received.deliveries);
                if first {
                    // Work that takes several times as long as the server waits.
                    tokio::time::sleep(wait * 4).await;
                }
                Ok(())
            }
        };
        reader.consume("QUEUE", "reader", handler).await
    });
    eventually("all are handled", async || server.stored("QUEUE").await == 0).await;
    bus.close();
    tasks.finished().await;
    let handled = handled.lock().unwrap();
    assert_eq!(handled.len(), 5);
    assert!(handled.values().all(|deliveries| *deliveries == [1]), "{handled:?}");
}

#[tokio::test]
async fn what_cannot_be_decoded_is_kept_before_it_leaves_its_stream() {
    let server = Live::start().await;
    server.work_queue("INBOX", "floor.>").await;
    server.consumer("INBOX", "bridge", |_| {}).await;
    let (bus, tasks) = (server.bus().await, Tasks::default());
    let mut headers = HeaderMap::new();
    headers.insert("ce-id", "precious");
    headers.insert("Nats-Expected-Stream", "INBOX");
    let text = "not JSON, but somebody wrote it";
    server.jetstream().publish_with_headers("floor.checked.stack", headers, text.into()).await.unwrap().await.unwrap();
    bus.commit(&checked(), EventId::unique(), None, PATIENCE).await.unwrap();

    let (reader, handled) = (bus.clone(), Arc::new(Mutex::new(0)));
    let seen = Arc::clone(&handled);
    tasks.spawn("reader", OnEnd::Expected, async move {
        let handler = |_: Received<FloorChecked>| {
            *seen.lock().unwrap() += 1;
            std::future::ready(Ok(()))
        };
        reader.consume("INBOX", "bridge", handler).await
    });
    // Without a place to put it, it stays where it is, and holds up nothing.
    eventually("the other one is handled", async || *handled.lock().unwrap() == 1).await;
    let mut inbox = server.jetstream().get_stream("INBOX").await.unwrap();
    eventually("it has been tried more than once", async || {
        let info = inbox.consumer_info("bridge").await.unwrap();
        info.num_redelivered > 0
    })
    .await;
    assert_eq!(inbox.info().await.unwrap().state.messages, 1);

    server.stream("UNDECODABLE", "undecodable.*").await;
    eventually("it is set aside", async || server.stored("INBOX").await == 0).await;
    let aside = server.jetstream().get_stream("UNDECODABLE").await.unwrap();
    let kept = aside.get_raw_message(1).await.unwrap();
    assert_eq!((kept.subject.as_str(), kept.payload.as_ref()), ("undecodable.INBOX", text.as_bytes()));
    let value = |name: &str| kept.headers.get(name).map(ToString::to_string);
    assert_eq!(value("ce-id").as_deref(), Some("precious"));
    assert_eq!(value("undecodable-subject").as_deref(), Some("floor.checked.stack"));
    assert!(value("undecodable-reason").is_some_and(|reason| reason.contains("Syntax")));
    assert_eq!(value("Nats-Expected-Stream"), None);
    assert_eq!(server.stored("UNDECODABLE").await, 1);
    bus.close();
    tasks.finished().await;
}

#[tokio::test]
async fn batches_take_what_waits_in_order_and_are_repeated_as_a_whole() {
    const TOTAL: u64 = 600;
    let server = Live::start().await;
    server.stream("EVENTS", "floor.>").await;
    server.consumer("EVENTS", "auditor", |_| {}).await;
    let (bus, tasks) = (server.bus().await, Tasks::default());
    for n in 0..TOTAL {
        let body = n.to_string();
        server.jetstream().publish("floor.checked.stack", body.into()).await.unwrap().await.unwrap();
    }
    let batches = Arc::new(Mutex::new(Vec::<Vec<u64>>::new()));
    let (reader, seen) = (bus.clone(), Arc::clone(&batches));
    let server = Arc::new(server);
    let source = Arc::clone(&server);
    tasks.spawn("reader", OnEnd::Expected, async move {
        let handler = |raws: Vec<Raw>| {
            let (seen, source) = (Arc::clone(&seen), Arc::clone(&source));
            async move {
                let count = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(raws.iter().map(|raw| raw.stream_sequence).collect());
                    seen.len()
                };
                if count == 1 {
                    let all = usize::try_from(TOTAL).unwrap();
                    source.delivered("EVENTS", "auditor", all).await;
                }
                anyhow::ensure!(count != 2, "the second fails");
                Ok(())
            }
        };
        reader.consume_raw_batch("EVENTS", "auditor", 256, handler).await
    });
    eventually("all are acknowledged", async || {
        server.unacknowledged("EVENTS", "auditor").await == 0 && batches.lock().unwrap().len() > 2
    })
    .await;
    bus.close();
    tasks.finished().await;
    let batches = batches.lock().unwrap();
    assert!(batches.len() < 20, "{} batches", batches.len());
    assert!(batches.iter().all(|batch| batch.len() <= 256 && batch.is_sorted()), "{batches:?}");
    let (failed, handled): (Vec<_>, Vec<_>) = batches.iter().enumerate().partition(|(at, _)| *at == 1);
    let mut handled: Vec<u64> = handled.into_iter().flat_map(|(_, batch)| batch.clone()).collect();
    assert!(failed.iter().all(|(_, batch)| batch.iter().all(|sequence| handled.contains(sequence))));
    handled.sort_unstable();
    assert_eq!(handled, (1..=TOTAL).collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn an_answer_goes_to_the_inbox_of_the_one_who_asks_and_nowhere_else() {
    let server = Live::start().await;
    let (bus, tasks) = (server.bus().await, Tasks::default());
    let client = async_nats::connect(server.address()).await.unwrap();
    let mut forged = client.subscribe("approval.decided.*").await.unwrap();
    let mut inbox = client.subscribe("_INBOX_channel-bridge.x").await.unwrap();
    let (listener, outcomes) = (bus.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&outcomes);
    tasks.spawn("listener", OnEnd::Expected, async move {
        let handler = |received: Received<FloorChecked>| {
            let seen = Arc::clone(&seen);
            async move {
                let outcome = received.reply(&serde_json::json!({})).await.map_err(|error| error.to_string());
                seen.lock().unwrap().push((received.id, outcome.is_ok()));
            }
        };
        listener.subscribe(handler).await
    });
    let ask = async |id: &str, answer_to: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(WANTS_ANSWER, "yes");
        headers.insert("ce-id", id);
        let body = serde_json::to_vec(&checked()).unwrap();
        client.publish_with_reply_and_headers("floor.checked.stack", answer_to, headers, body.into()).await.unwrap();
    };
    eventually("somebody listens", async || {
        ask("probe", "approval.decided.tasks").await;
        !outcomes.lock().unwrap().is_empty()
    })
    .await;
    ask("other", "_INBOX_channel-bridges.x").await;
    ask("right", "_INBOX_channel-bridge.x").await;
    let answer = tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    assert_eq!(answer.payload.as_ref(), b"{}");
    // It is answered last, on the same connection: what had been answered before would be here.
    // While nobody listened yet, the server itself said so there: without a body, with a status.
    while let std::task::Poll::Ready(Some(message)) = futures::poll!(forged.next()) {
        assert_eq!(message.status, Some(async_nats::StatusCode::NO_RESPONDERS), "an answer went where no answer goes");
    }
    assert!(outcomes.lock().unwrap().iter().all(|(id, answered)| *answered == (id == "right")));
    bus.close();
    tasks.finished().await;
}

#[tokio::test]
async fn the_extent_of_a_stream() {
    let server = Live::start().await;
    server.stream("EVENTS", "floor.>").await;
    let bus = server.bus().await;
    for _ in 0..3 {
        bus.commit(&checked(), EventId::unique(), None, PATIENCE).await.unwrap();
    }
    server.jetstream().get_stream("EVENTS").await.unwrap().purge().sequence(3).await.unwrap();
    let extent = bus.extent("EVENTS").await.unwrap();
    assert_eq!((extent.first, extent.last), (3, 3));
    assert!(bus.extent("NONE").await.is_err());
}
