//! What reaches what is behind a site, what does not, and what comes back.

use crate::browser::{Site, raw};
use crate::world::{World, site as gate, wait_for};
use tier_supervisor::desired::Upstream as Behind;

#[tokio::test(flavor = "multi_thread")]
async fn one_name_is_served() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let port = site.listen.port();
    // A page whose name was made to lead here (DNS rebinding), with whatever cookie.
    for host in [format!("evil.example:{port}"), "evil.example".to_owned(), format!("jaeger.localhost:{port}")] {
        let rebound = Site { host, ..site.clone() };
        assert_eq!(rebound.get("/").await.status, 421, "{rebound:?}");
    }
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}")] {
        let elsewhere = Site { host, ..site.clone() };
        let answer = elsewhere.get("/a?b=c").await;
        assert_eq!((answer.status, answer.all("location")), (307, vec![format!("{}/a?b=c", site.origin()).as_str()]));
        assert_eq!(elsewhere.post("/", "x").await.status, 421);
    }
    let proxied = format!("GET http://evil.example/ HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", site.host);
    assert_eq!(raw(site.listen, proxied.as_bytes()).await.status, 400);
    assert!(world.upstream.seen().is_empty());
    assert_eq!(site.get("/").await.status, 200);
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_send_nothing() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let own = format!("Origin: {}", site.origin());
    // The same name on another port is another page: whoever listens there.
    let neighbour = format!("Origin: http://tasks.localhost:{}", world.jaeger.listen.port());
    for (method, lines) in [
        ("POST", vec!["Origin: http://evil.example"]),
        ("POST", vec!["Origin: null"]),
        ("POST", vec![neighbour.as_str()]),
        ("POST", vec![own.as_str(), "Sec-Fetch-Site: same-site"]),
        ("POST", vec![]),
        ("DELETE", vec!["Sec-Fetch-Site: cross-site"]),
        ("GET", vec!["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"]),
        ("GET", vec!["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"]),
    ] {
        assert_eq!(site.send(method, "/do", &lines, "").await.status, 403, "{method} {lines:?}");
    }
    assert!(world.upstream.seen().is_empty());
    let allowed = [
        ("POST", vec![own.as_str(), "Sec-Fetch-Site: same-origin"]),
        ("GET", vec!["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"]),
        ("GET", vec!["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]),
    ];
    for (method, lines) in &allowed {
        assert_eq!(site.send(method, "/do", lines, "").await.status, 200, "{method} {lines:?}");
    }
    let seen = world.upstream.seen();
    assert_eq!(seen.iter().map(|seen| seen.method.as_str()).collect::<Vec<_>>(), ["POST", "GET", "GET"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_the_gates_on_both_ways() {
    let world = World::start().await;
    let mut site = world.logged_in(&world.tasks).await;
    site.cookie = site.cookie.map(|cookie| format!("a=b; {cookie}; c=d"));
    let lines = [
        "assistant-site: jaeger",
        "Authorization: Bearer x",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Host: evil.example",
        "Forwarded: for=1.2.3.4",
        "Connection: x-hop",
        "X-Hop: 1",
        "X-Own: kept",
    ];
    let answer = site.send("GET", "/", &lines, "").await;
    let seen = &world.upstream.seen()[0];
    let mut names: Vec<&str> = seen.headers.keys().map(hyper::header::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["assistant-site", "host", "x-own"]);
    assert_eq!(seen.headers["host"], site.host.as_str());
    assert_eq!(seen.headers["assistant-site"], "tasks");
    assert_eq!(answer.status, 200);
    for absent in ["set-cookie", "access-control-allow-origin"] {
        assert!(answer.all(absent).is_empty(), "{absent}: {answer:?}");
    }
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "frame-ancestors 'none'"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("content-type", "text/html"),
    ] {
        assert_eq!(answer.all(name), [value], "{name}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_request() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let origin = format!("Origin: {}", site.origin());
    let inner = format!("GET /smuggled HTTP/1.1\r\nHost: {}\r\n\r\n", site.host);
    let mut refused = 0;
    let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    for (lines, body) in [
        (vec!["Content-Length: 4", "Transfer-Encoding: chunked"], chunk.clone()),
        (vec!["Transfer-Encoding: chunked", "Content-Length: 4"], chunk.clone()),
        (vec!["Content-Length: 4", "Content-Length: 5"], inner.clone()),
        (vec!["Content-Length: 4, 5"], inner.clone()),
        (vec!["Content-Length: +4"], inner.clone()),
        (vec!["Transfer-Encoding: xchunked"], chunk.clone()),
        (vec!["Transfer-Encoding : chunked"], chunk.clone()),
    ] {
        let lines: Vec<&str> = lines.into_iter().chain([origin.as_str(), "Connection: close"]).collect();
        let bytes = format!("{}\r\n{body}", site.head("POST", "/", &lines));
        let answer = raw(site.listen, bytes.as_bytes()).await;
        // What is chunked besides may be read as such (RFC 9112, section 6.3), and goes on framed anew.
        let seen = world.upstream.seen();
        let honest = seen.iter().all(|seen| seen.path == "/" && !seen.headers.contains_key("content-length"));
        assert!(honest && seen.len() <= usize::from(answer.status == 200), "{lines:?} {answer:?} {seen:?}");
        assert_eq!(world.upstream.bodies(), inner.repeat(world.upstream.bodies().matches("/smuggled").count()));
        refused += usize::from(answer.status == 400);
    }
    assert!(refused >= 5, "{refused} of 7");
    let before = world.upstream.bodies();
    // Control: the same bytes as an honest body.
    let head = site.head("POST", "/", &[&origin, "Transfer-Encoding: chunked", "Connection: close"]);
    assert_eq!(raw(site.listen, format!("{head}\r\n{chunk}").as_bytes()).await.status, 200);
    let seen = world.upstream.seen();
    assert_eq!((seen.len(), seen[0].path.as_str()), (1, "/"));
    assert_eq!(world.upstream.bodies(), format!("{before}{inner}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_connections_have_bounds() {
    let world = World::start().await;
    let site = world.logged_in(&world.tasks).await;
    let long = format!("X-Long: {}", "x".repeat(40 << 10));
    assert_eq!(site.send("GET", "/", &[&long], "").await.status, 431);
    let many: Vec<String> = (0..150).map(|number| format!("X-{number}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(site.send("GET", "/", &many, "").await.status, 431);
    assert!(world.upstream.seen().is_empty());
    // All places of this site are taken by somebody who says nothing.
    let mut held = Vec::new();
    for _ in 0..256 {
        held.push(tokio::net::TcpStream::connect(site.listen).await.unwrap());
    }
    wait_for("a full site", async || site.get("/").await.status == 0).await;
    let other = world.logged_in(&world.jaeger).await;
    assert_eq!(other.get("/").await.status, 200, "another site has places of its own");
    drop(held);
    wait_for("a place", async || site.get("/").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_behind_a_site_is_said_in_words() {
    let world = World::start().await;
    let away = gate("tasks", world.tasks.listen, Behind::Unix("/nonexistent/tasks.sock".into()));
    let mut site = world.logged_in(&world.tasks).await;
    assert_eq!(site.get("/").await.status, 200);
    world.supervisor.wanted.send(vec![away.clone()]).unwrap();
    wait_for("the other upstream", async || site.get("/").await.status == 502).await;
    // Who is logged in stays so, whatever is behind the site.
    let answer = site.get("/").await;
    assert!(answer.body.contains("tier-supervisor status</pre>"), "{}", answer.body);
    site.cookie = None;
    assert_eq!(site.get("/").await.status, 401);
}
