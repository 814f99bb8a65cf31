#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use assistant_proto::event::Layer;
use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use service_kit::bus::Bus;
use service_kit::task::OnEnd;
use service_kit::turns::Turns;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::exchange::read_answer;
use super::*;
use crate::attempt::Attempt;
use crate::ingress::room::Rooms;
use crate::journal::{self, Departure};

struct Double {
    session: Arc<Session>,
    seen: Arc<Mutex<Vec<String>>>,
    /// What `tools/list` waits for.
    release: Arc<Notify>,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

impl Double {
    /// A server that answers at once, but for the methods in `stuck`: `tools/list` waits for `release`, others for ever.
    async fn start(stuck: &'static [&'static str]) -> Self {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, "token").unwrap();
        std::fs::set_permissions(&token_file, PermissionsExt::from_mode(0o600)).unwrap();
        let (seen, release) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Notify>::default());
        let (log, gate, spawner) = (Arc::clone(&seen), Arc::clone(&release), tasks.clone());
        tasks.spawn("double", OnEnd::Expected, async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let (log, gate) = (Arc::clone(&log), Arc::clone(&gate));
                spawner.spawn("double-connection", OnEnd::Expected, async move {
                    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                        let (log, gate) = (Arc::clone(&log), Arc::clone(&gate));
                        async move {
                            let body = request.into_body().collect().await?.to_bytes();
                            let message: Value = serde_json::from_slice(&body).unwrap();
                            let method = message["method"].as_str().unwrap().to_owned();
                            log.lock().unwrap().push(method.clone());
                            match method.as_str() {
                                method if !stuck.contains(&method) => {}
                                "tools/list" => gate.notified().await,
                                _ => std::future::pending().await,
                            }
                            let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": []}});
                            let answer = http::Response::builder()
                                .header(CONTENT_TYPE, "application/json")
                                .body(Full::new(Bytes::from(answer.to_string())))
                                .unwrap();
                            Ok::<_, hyper::Error>(answer)
                        }
                    });
                    let io = TokioIo::new(stream);
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                    Ok(())
                });
            }
        });
        let server = McpServer {
            name: "marvin".parse().unwrap(),
            address,
            token_file,
            tools: ToolRule::Only(vec!["a".to_owned()]),
            source: String::new(),
        };
        Self {
            session: Session::new(server, tasks, Rooms::default().share(), Arc::default()),
            seen,
            release,
            _stop: stop.drop_guard(),
            _dir: dir,
        }
    }

    fn count(&self, method: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| *seen == method).count()
    }

    async fn wait_for(&self, method: &str) {
        while self.count(method) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// As after a decision that was stored.
async fn recorded() -> Recorded {
    let attempt = Attempt::begin(&Turns::new(), &"tasks".parse().unwrap(), Layer::Mcp, "mcp", "test");
    let principal = "zeroclaw-tasks".parse().unwrap();
    journal::record(&Bus::detached(), &attempt, &Departure::of_list(&principal, "marvin", 8811, "tools/marvin"))
        .await
        .unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn many_who_want_the_list_ask_once() {
    let double = Double::start(&["tools/list"]).await;
    let recorded = recorded().await;
    let session = &double.session;
    let listing = async {
        tokio::join!(session.list(soon(), &recorded), async {
            double.wait_for("tools/list").await;
            let (mut second, mut third) =
                (Box::pin(session.list(soon(), &recorded)), Box::pin(session.list(soon(), &recorded)));
            assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut third).is_pending());
            double.release.notify_one();
            assert!(second.await.is_ok() && third.await.is_ok());
        })
    };
    assert!(timeout(Duration::from_secs(20), listing).await.unwrap().0.is_ok());
    assert_eq!(double.count("tools/list"), 1);
    double.release.notify_one();
    assert!(session.list(soon(), &recorded).await.is_ok());
    assert_eq!(double.count("tools/list"), 2, "who comes later gets a new list");
}

#[tokio::test]
async fn a_failure_ends_only_the_session_it_happened_in() {
    let double = Double::start(&[]).await;
    let session = &double.session;
    let (first, _) = session.ready(soon()).await.unwrap();
    session.forget(first);
    let (second, _) = session.ready(soon()).await.unwrap();
    session.forget(first);
    assert_eq!(session.initialised().map(|(generation, _)| generation), Some(second));
    assert_eq!(double.count("initialize"), 2);
}

#[tokio::test]
async fn a_deadline_holds_while_another_initialises() {
    let double = Double::start(&["initialize"]).await;
    let recorded = recorded().await;
    let session = &double.session;
    let mut stuck = Box::pin(session.list(Instant::now() + Duration::from_secs(3_600), &recorded));
    let outcome = async {
        tokio::select! {
            _ = &mut stuck => panic!("nobody answers it"),
            () = double.wait_for("initialize") => {}
        }
        session.ask("tools/call", Map::new(), Instant::now() + Duration::from_millis(50), ANSWER_MOST, None).await
    };
    let outcome = timeout(Duration::from_secs(20), outcome).await.unwrap();
    assert!(matches!(outcome, Err(SessionError::TimedOut)));
}

#[tokio::test]
async fn an_open_server_is_held_to_its_first_list() {
    let double = Double::start(&[]).await;
    let server = McpServer { tools: ToolRule::All, ..double.session.server().clone() };
    let session = Session::new(server, double.session.tasks.clone(), Rooms::default().share(), Arc::default());
    let list = |names: &[&str], text: &str| -> Vec<Arc<Described>> {
        let entries = names.iter().map(|name| json!({"name": name, "description": text}));
        entries.filter_map(Described::read).map(Arc::new).collect()
    };
    assert_eq!(session.pin(1, list(&["a", "b"], "first")), list(&["a", "b"], "first"));
    assert_eq!(
        session.pin(1, list(&["b", "c"], "second")),
        list(&["b"], "first"),
        "taken away, not added, not changed"
    );
    assert_eq!(session.pin(1, list(&["a"], "second")), list(&["a"], "first"));
    assert!(session.has("b").unwrap() && !session.has("c").unwrap());
    assert_eq!(session.pin(2, list(&["c"], "third")), list(&["c"], "third"), "a new session begins anew");
    assert!(session.has("c").unwrap() && !session.has("a").unwrap());
    assert_eq!(double.count("tools/list"), 0, "what is known is not asked");
}

#[test]
fn odd_names_are_no_tools() {
    for (name, plain) in [
        ("get_tasks", true),
        ("a.b-c", true),
        ("", false),
        ("a b", false),
        ("a\u{1b}", false),
        ("\u{e9}", false),
        ("a/b", false),
    ] {
        assert_eq!(is_plain(name), plain, "{name:?}");
    }
    assert!(is_plain(&"a".repeat(128)) && !is_plain(&"a".repeat(129)));
}

#[test]
fn only_the_answer_to_the_question_counts() {
    assert!(matches!(read_answer(br#"{"jsonrpc":"2.0","id":4,"result":{}}"#, 4), Ok(Ok(_))));
    assert!(matches!(
        read_answer("{\"jsonrpc\":\"2.0\",\"id\":4,\"error\":{\"code\":-1,\"message\":\"a\\u001bb\"}}".as_bytes(), 4),
        Ok(Err((-1, text))) if text == "a\\u{1b}b"
    ));
    for bad in [
        "",
        "[]",
        r#"{"jsonrpc":"2.0","id":5,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":"4","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":4}"#,
        r#"{"jsonrpc":"2.0","id":4,"result":1,"error":2}"#,
        r#"{"id":4,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":4,"result":{"a":1,"a":2}}"#,
    ] {
        assert!(matches!(read_answer(bad.as_bytes(), 4), Err(SessionError::Malformed)), "{bad}");
    }
}
