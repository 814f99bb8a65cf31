//! Squid's log: the file with rotation, truncation and restarts, and the feed beside it.

use std::time::{Duration, UNIX_EPOCH};

use assistant_proto::egress::ListRecordsRequest;
use assistant_proto::egress::egress_service_server::EgressService;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tonic::Request;

use crate::stage::{Place, SQUID, STRANGER, Stage, connect, spans_of, texts, total, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A line as Squid 5.7 writes it. `n` gives it its place in time and log.
fn line(n: u64, sport: u16, host: &str, status: &str, mode: &str, tp: &str) -> String {
    format!(
        r#"{{"ts":1795363{:03}.500,"start":1795363{n:03}.000,"seq":{n},"mx":{},"src":"10.87.3.2","sport":{sport},"host":"{host}","port":"443","dst":"-","st":200,"ss":"{status}","in":637,"out":1895,"ms":500,"sni":"{host}","mode":"{mode}","err":"-","tier":"tasks","user":"tasks","tp":"{tp}"}}"#,
        n,
        n + 50,
    )
}

fn denied(n: u64, host: &str) -> String {
    line(n, 40_000, host, "TCP_DENIED", "bump", "-")
}

fn rotate(place: &Place) {
    for n in (0..4).rev() {
        let from = place.path(&format!("log/access.log.{n}"));
        if from.exists() {
            std::fs::rename(from, place.path(&format!("log/access.log.{}", n + 1))).unwrap();
        }
    }
    std::fs::rename(place.path("log/access.log"), place.path("log/access.log.0")).unwrap();
}

async fn hosts_recorded(stage: &Stage) -> Vec<String> {
    let request = Request::new(ListRecordsRequest { limit: 1000, ..Default::default() });
    let mut records = stage.control.list_records(request).await.unwrap().into_inner().records;
    records.reverse();
    // Not what the record says about itself.
    records.into_iter().filter(|record| record.r#type != "audit.incomplete").map(|record| record.host).collect()
}

async fn incomplete(stage: &Stage) -> Vec<String> {
    let request = ListRecordsRequest { limit: 1000, r#type: "audit.incomplete".to_owned(), ..Default::default() };
    let records = stage.control.list_records(Request::new(request)).await.unwrap().into_inner().records;
    records.into_iter().map(|record| record.reason).collect()
}

#[tokio::test]
async fn a_tunnel_is_one_event_and_one_span_with_the_times_of_its_lines() {
    let place = Place::new();
    let stage = place.start().await;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    place.log(&[line(1, 7, "good.example", "NONE_NONE", "splice", &parent)]);
    // The decision alone is no event: nothing is known of what went through.
    place.log(&[denied(2, "marker.example"), line(9, 7, "good.example", "TCP_TUNNEL", "splice", "-")]);
    let event = until("the tunnel is published", || {
        let events = stage.published("egress.allowed.tasks");
        if events.len() == 1 { Ok(events[0].clone()) } else { Err(format!("{events:?}")) }
    })
    .await;
    assert_eq!((event["host"].as_str(), event["method"].as_str()), (Some("good.example"), Some("CONNECT")));
    assert_eq!((event["bytes_out"].as_u64(), event["bytes_in"].as_u64()), (Some(637), Some(1895)));
    assert_eq!((event["status"].as_u64(), event["port"].as_u64()), (Some(200), Some(443)));
    assert_eq!(event["trace_id"], TRACE);

    let spans = spans_of(TRACE);
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!(spans[0].name, "squid.tunnel");
    assert_eq!(spans[0].parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!(spans[0].start_time, UNIX_EPOCH + Duration::from_secs(1_795_363_001));
    assert_eq!(spans[0].end_time, UNIX_EPOCH + Duration::from_millis(1_795_363_009_500));
    stage.stop().await;
}

#[tokio::test]
async fn rotation_truncation_and_restarts_lose_nothing_and_repeat_nothing() {
    let place = Place::new();
    place.log(&[denied(1, "before.example")]);
    let stage = place.start().await;
    stage.denials("what was there before", |events| events.len() == 1).await;
    place.log(&[denied(2, "grown.example"), line(3, 9, "open.example", "NONE_NONE", "splice", "-")]);
    rotate(&place);
    place.log(&[denied(4, "rotated.example")]);
    stage.denials("across a rotation", |events| events.len() == 3).await;
    stage.stop().await;

    // While nobody reads: two rotations, and the close of a tunnel that was open.
    rotate(&place);
    place.log(&[denied(5, "unwatched.example")]);
    rotate(&place);
    place.log(&[line(6, 9, "open.example", "TCP_TUNNEL", "splice", "-")]);
    let stage = place.start().await;
    until("the tunnel of before the restart", || {
        let events = stage.published("egress.allowed.tasks");
        if events.iter().any(|event| event["bytes_in"] == 1895) { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;

    std::fs::File::create(place.path("log/access.log")).unwrap();
    place.log(&[denied(7, "truncated.example")]);
    stage.denials("after a truncation", |events| texts(events, "host").contains(&"truncated.example")).await;
    stage.kill().await;

    // Without a checkpoint everything that is left is read again; the store knows it.
    std::fs::remove_file(place.path("store/squid-log.checkpoint.json")).unwrap();
    place.log(&[denied(8, "last.example")]);
    let stage = place.start().await;
    stage.denials("after the loss of the checkpoint", |events| texts(events, "host").contains(&"last.example")).await;
    let mut hosts = hosts_recorded(&stage).await;
    hosts.sort();
    let mut expected = [
        "before.example",
        "grown.example",
        "rotated.example",
        "unwatched.example",
        "open.example",
        "truncated.example",
        "last.example",
    ];
    expected.sort_unstable();
    assert_eq!(hosts, expected);
    assert_eq!(incomplete(&stage).await, ["squid-log-truncated"]);
    stage.stop().await;
}

#[tokio::test]
async fn a_log_that_was_put_away_unread_is_on_record_once() {
    let place = Place::new();
    place.log(&[denied(1, "read.example")]);
    let stage = place.start().await;
    stage.denials("what was there before", |events| events.len() == 1).await;
    stage.stop().await;
    let checkpoint = place.path("store/squid-log.checkpoint.json");
    let before = std::fs::read(&checkpoint).unwrap();
    // More rotations than old ones are kept, while nobody reads.
    place.log(&[denied(2, "never-read.example")]);
    std::fs::remove_file(place.path("log/access.log")).unwrap();
    place.log(&[denied(3, "later.example")]);
    for _ in 0..2 {
        let stage = place.start().await;
        until("the later line", || {
            let events = stage.published("egress.denied.");
            if texts(&events, "host").contains(&"later.example") { Ok(()) } else { Err(format!("{events:?}")) }
        })
        .await;
        assert_eq!(incomplete(&stage).await, ["squid-log-gone"]);
        stage.kill().await;
        // The checkpoint of before, as if the end had come before a new one was written.
        std::fs::write(&checkpoint, &before).unwrap();
    }
}

#[tokio::test]
async fn file_and_feed_together_count_each_line_once() {
    let place = Place::new();
    let stage = place.start().await;
    let mut feed = connect(SQUID, stage.feed).await;
    let say = |line: &str| format!("{line}\n").into_bytes();

    // The feed first, then the file; then the other way round.
    feed.write_all(&say(&denied(1, "feed-first.example"))).await.unwrap();
    place.log(&[denied(1, "feed-first.example"), denied(2, "file-first.example")]);
    stage.denials("both", |events| events.len() == 2).await;
    feed.write_all(&say(&denied(2, "file-first.example"))).await.unwrap();
    // A line that the file never gets: counted from the feed, once, also when the file gets it late.
    let late = denied(3, "lost.example");
    feed.write_all(&say(&late)).await.unwrap();
    feed.write_all(&say(&late)).await.unwrap();
    let events = stage.denials("from the feed alone", |events| events.len() == 3).await;
    assert_eq!(texts(&events, "host"), ["feed-first.example", "file-first.example", "lost.example"]);
    place.log(&[late, denied(4, "end.example")]);
    let events = stage.denials("the end", |events| texts(events, "host").contains(&"end.example")).await;
    assert_eq!(total(&events), 4, "{events:#?}");
    stage.stop().await;
}

#[tokio::test]
async fn only_squid_may_speak_on_the_feed() {
    let place = Place::new();
    let stage = place.start().await;
    let mut intruder = connect(STRANGER, stage.feed).await;
    // It may already be closed when this is written.
    let _sent: std::io::Result<()> = intruder.write_all(format!("{}\n", denied(1, "forged.example")).as_bytes()).await;
    // Beyond the grace period nothing of it may have been counted; the control behind it was.
    let mut squid = connect(SQUID, stage.feed).await;
    squid.write_all(format!("{}\n", denied(2, "real.example")).as_bytes()).await.unwrap();
    let events = stage.denials("control", |events| texts(events, "host").contains(&"real.example")).await;
    assert!(!texts(&events, "host").contains(&"forged.example"), "{events:#?}");
    let intrusion = events.iter().find(|event| event["reason"] == "not-squid").unwrap();
    assert_eq!((intrusion["tier"].as_str(), intrusion["host"].as_str()), (Some("stack"), Some("127.0.0.66")));
    stage.stop().await;
}

#[tokio::test]
async fn a_line_that_cannot_be_read_is_itself_an_event() {
    let place = Place::new();
    let stage = place.start().await;
    place.log(&["{\"ts\":\"\u{1b}[2J".to_owned(), denied(1, "after.example")]);
    let events = stage.denials("both", |events| events.len() == 2).await;
    assert_eq!(texts(&events, "reason"), ["line-unreadable", "host-not-allowed"]);
    let text = serde_json::to_string(&events).unwrap();
    assert!(!text.contains("[2J"), "nothing of the line is repeated: {text}");
    stage.stop().await;
}

#[tokio::test]
async fn equal_lines_that_cannot_be_read_are_an_event_each_and_stay_so() {
    let place = Place::new();
    let stage = place.start().await;
    let long = "x".repeat(egress_auditor::line::MOST_LINE_BYTES + 1);
    place.log(&["{".to_owned(), "{".to_owned(), long.clone(), long]);
    stage.denials("four", |events| events.len() == 4).await;
    stage.kill().await;
    // Read again from the beginning, they are known.
    std::fs::remove_file(place.path("store/squid-log.checkpoint.json")).unwrap();
    place.log(&[denied(1, "after.example")]);
    let stage = place.start().await;
    stage.denials("control", |events| texts(events, "host").contains(&"after.example")).await;
    assert_eq!(hosts_recorded(&stage).await, ["", "", "", "", "after.example"]);
    stage.stop().await;
}

#[tokio::test]
async fn a_denial_that_waited_for_the_password_helper_is_one_event_whichever_line_comes_first() {
    let place = Place::new();
    let stage = place.start().await;
    let two = |n: u64, sport: u16, host: &str| {
        let refused = line(n, sport, host, "TCP_DENIED", "bump", "-").replace(r#""err":"-""#, r#""err":"TCP_RESET""#);
        let echo = line(n + 1, sport, host, "NONE_NONE", "-", "-")
            .replace(r#""st":200"#, r#""st":403"#)
            .replace(r#""err":"-""#, r#""err":"TCP_RESET""#);
        (refused, echo)
    };
    let (refused, echo) = two(1, 50_001, "first.example");
    place.log(&[refused, echo]);
    let (refused, echo) = two(3, 50_002, "second.example");
    place.log(&[echo, refused, denied(5, "control.example")]);
    let events = stage.denials("control", |events| texts(events, "host").contains(&"control.example")).await;
    assert_eq!(texts(&events, "host"), ["first.example", "second.example", "control.example"]);
    assert_eq!(hosts_recorded(&stage).await.len(), 3);
    stage.stop().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_said_and_the_feed_still_counts() {
    let place = Place::new();
    std::os::unix::fs::symlink("/etc/hostname", place.path("log/access.log")).unwrap();
    let stage = place.start().await;
    until("not healthy", || {
        let problems = stage.cx.health.problems();
        if problems.iter().any(|(part, _)| *part == "squid-log") { Ok(()) } else { Err(format!("{problems:?}")) }
    })
    .await;
    let mut feed = connect(SQUID, stage.feed).await;
    feed.write_all(format!("{}\n", denied(1, "unseen.example")).as_bytes()).await.unwrap();
    let events = stage.denials("from the feed alone", |events| !events.is_empty()).await;
    assert_eq!(events[0]["host"], "unseen.example");
    std::fs::remove_file(place.path("log/access.log")).unwrap();
    place.log(&[denied(2, "healed.example")]);
    stage.denials("from the file again", |events: &[Value]| events.len() == 2).await;
    assert!(stage.cx.health.problems().is_empty());
    stage.stop().await;
}

#[tokio::test]
async fn a_tunnel_that_nobody_permitted_is_told_even_across_a_restart() {
    let place = Place::new();
    let stage = place.start().await;
    // A record from before, so that the store can say that it has no permit; the tunnels are a minute ahead of it.
    place.log(&[denied(1, "first.example")]);
    stage.denials("the first", |events| events.len() == 1).await;
    let seconds = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
    let decision = |n: u64, host: &str, user: &str| {
        line(n, 7, host, "NONE_NONE", "splice", &format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .replace(&format!("{}", 1_795_363_000 + n), &seconds.to_string())
            .replace("\"tasks\"", &format!("\"{user}\""))
    };
    place.log(&[decision(2, "model.example", "models"), decision(3, "evil.example", "tasks")]);
    until("it waits in the checkpoint", || {
        let text = std::fs::read_to_string(place.path("store/squid-log.checkpoint.json")).unwrap_or_default();
        let waiting = serde_json::from_str::<Value>(&text).unwrap_or_default()["waiting"].clone();
        if texts(waiting.as_array().unwrap_or(&Vec::new()), "host") == ["evil.example"] { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(stage.published("floor.breached").is_empty(), "a permit may still be on its way");
    stage.kill().await;

    let stage = place.start().await;
    let breaches = until("the breach", || {
        let events = stage.published("floor.breached.stack");
        if events.is_empty() { Err("none".to_owned()) } else { Ok(events) }
    })
    .await;
    assert_eq!(breaches.len(), 1, "a service's tunnels have no permits: {breaches:?}");
    assert!(breaches[0]["detail"].as_str().unwrap().contains("evil.example:443 for the user tasks"), "{breaches:?}");
    stage.stop().await;
}
