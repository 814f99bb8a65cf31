#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;

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
        let server = McpServer { name: "marvin".parse().unwrap(), address, token_file, tools: vec!["a".to_owned()] };
        Self { session: Session::new(server, tasks), seen, release, _stop: stop.drop_guard(), _dir: dir }
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

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn many_who_want_the_list_ask_once() {
    let double = Double::start(&["tools/list"]).await;
    let session = &double.session;
    let listing = async {
        tokio::join!(session.list(soon()), async {
            double.wait_for("tools/list").await;
            let (mut second, mut third) = (Box::pin(session.list(soon())), Box::pin(session.list(soon())));
            assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut third).is_pending());
            double.release.notify_one();
            assert!(second.await.is_ok() && third.await.is_ok());
        })
    };
    assert!(timeout(Duration::from_secs(20), listing).await.unwrap().0.is_ok());
    assert_eq!(double.count("tools/list"), 1);
    double.release.notify_one();
    assert!(session.list(soon()).await.is_ok());
    assert_eq!(double.count("tools/list"), 2, "who comes later gets a new list");
}

#[tokio::test]
async fn a_failure_ends_only_the_session_it_happened_in() {
    let double = Double::start(&[]).await;
    let session = &double.session;
    let (first, _) = session.ready().await.unwrap();
    session.forget(first);
    let (second, _) = session.ready().await.unwrap();
    session.forget(first);
    assert_eq!(session.initialised().map(|(generation, _)| generation), Some(second));
    assert_eq!(double.count("initialize"), 2);
}

#[tokio::test]
async fn a_deadline_holds_while_another_initialises() {
    let double = Double::start(&["initialize"]).await;
    let session = &double.session;
    let mut stuck = Box::pin(session.list(Instant::now() + Duration::from_secs(3_600)));
    let outcome = async {
        tokio::select! {
            _ = &mut stuck => panic!("nobody answers it"),
            () = double.wait_for("initialize") => {}
        }
        session.ask("tools/call", Map::new(), Instant::now() + Duration::from_millis(50), ANSWER_MOST).await
    };
    let outcome = timeout(Duration::from_secs(20), outcome).await.unwrap();
    assert!(matches!(outcome, Err(SessionError::TimedOut)));
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
