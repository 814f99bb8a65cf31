//! What comes back: without secrets, readable, and otherwise as it was.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Response;

use crate::peers::{chunks, text};
use crate::world::{SECRET, World, body_of, json_of};

#[tokio::test]
async fn secrets_are_scrubbed_across_chunks_and_in_every_form() {
    let json = serde_json::to_string(SECRET).unwrap();
    let percent: String = SECRET.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let forms = [
        SECRET.to_owned(),
        STANDARD.encode(SECRET),
        STANDARD.encode(format!("a{SECRET}")),
        STANDARD.encode(format!("ab{SECRET}")),
        URL_SAFE_NO_PAD.encode(SECRET),
        hex::encode(SECRET),
        percent,
        json[1..json.len() - 1].to_owned(),
    ];
    for form in forms {
        let whole = format!("before <{form}> after");
        for size in [1, 3, 7, whole.len()] {
            let world = World::new().await;
            let parts: Vec<Bytes> = whole.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
            let in_header = form.clone();
            world.origin.answers(move |_| {
                Response::builder().header("x-echo", &in_header).body(chunks(parts.clone())).unwrap()
            });
            let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
            let header = response.headers()["x-echo"].to_str().unwrap().to_owned();
            let body = String::from_utf8(body_of(response).await.to_vec()).unwrap();
            for text in [&header, &body] {
                assert!(!text.contains(&form), "{form} in chunks of {size}: {text}");
                assert!(text.matches('*').count() >= form.len() / 2, "{text}");
            }
            assert!(body.starts_with("before <") && body.ends_with("> after"), "{body}");
            assert_eq!(body.len(), whole.len());
        }
    }
}

#[tokio::test]
async fn harmless_answers_and_redirects_pass_as_they_are() {
    let world = World::new().await;
    world.origin.answers(|_| {
        Response::builder()
            .status(302)
            .header("location", "https://elsewhere.example/next")
            .header("x-request-id", "r1")
            .header("alt-svc", "h3=\":443\"")
            .body(text("moved"))
            .unwrap()
    });
    let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
    assert_eq!(response.status(), 302);
    assert_eq!(response.headers()["location"], "https://elsewhere.example/next");
    assert_eq!(response.headers()["x-request-id"], "r1");
    assert!(!response.headers().contains_key("alt-svc"));
    assert_eq!(body_of(response).await, "moved");
    assert_eq!(world.gate.connects().len(), 1, "a redirect is not followed");
}

#[tokio::test]
async fn what_a_host_issues_for_the_secret_stays_here() {
    let world = World::new().await;
    world.origin.answers(|_| {
        Response::builder()
            .header("set-cookie", "session=as-good-as-the-secret")
            .header("set-cookie", "b=c")
            .header("authorization", "Bearer fresh")
            .header("x-refresh-token", "fresh")
            .header("x-auth-user", "fresh")
            .header("etag", "e")
            .body(text("ok"))
            .unwrap()
    });
    let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
    let mut names: Vec<&str> = response.headers().keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date", "etag"]);
}

#[tokio::test]
async fn answers_that_cannot_be_searched_are_refused() {
    for (status, header, reason) in [
        (200, ("content-encoding", "gzip"), "answer-encoded"),
        (206, ("content-range", "bytes 0-1/2"), "answer-partial"),
    ] {
        let world = World::new().await;
        world.origin.answers(move |_| {
            Response::builder().status(status).header(header.0, header.1).body(text(SECRET)).unwrap()
        });
        let response = world.tunnel().await.fetch("GET", "/api/x", "").await;
        assert_eq!(response.status(), 502);
        let answer = json_of(response).await;
        assert_eq!(answer["reason"], reason);
        assert_eq!(world.only_denial().await["reason"], reason);
        // It had left all the same.
        assert_eq!(world.wait_for("egress.allowed", 1).await[0]["status"], status);
    }
}

#[tokio::test]
async fn answers_stream_while_they_come() {
    let world = World::new().await;
    let (more, rest) = tokio::sync::mpsc::channel::<Bytes>(4);
    let rest = std::sync::Mutex::new(Some(rest));
    world.origin.answers(move |_| {
        use http_body_util::BodyExt;
        let rest = rest.lock().unwrap().take().unwrap();
        let frames = futures::stream::unfold(rest, |mut rest| async move {
            let part = rest.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(part)), rest))
        });
        Response::new(BodyExt::boxed(http_body_util::StreamBody::new(SyncStream(Box::pin(frames)))))
    });
    more.send(Bytes::from("data: one\n\n")).await.unwrap();
    let mut tunnel = world.tunnel().await;
    let mut body = tunnel.fetch("GET", "/api/events", "").await.into_body();
    for event in ["data: one\n\n", "data: two\n\n"] {
        use http_body_util::BodyExt;
        // The second is only sent once the first has come through: nothing is held back.
        let frame = tokio::time::timeout(crate::world::DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), event);
        if event.contains("one") {
            more.send(Bytes::from("data: two\n\n")).await.unwrap();
        }
    }
}

/// Only ever polled through `&mut`.
struct SyncStream<S>(std::pin::Pin<Box<S>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}
