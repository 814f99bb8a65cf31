//! Links, sessions, and who has none.

use tier_supervisor::desired::Gate;

use crate::browser::Site;
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_logged_in_is_told_how_and_gets_nothing_else() {
    let world = World::start().await;
    for gate in [&world.tasks, &world.jaeger] {
        let stranger = Site::of(gate);
        for cookie in [None, Some(format!("assistant-{}=guess", gate.name)), Some("x=y".to_owned())] {
            let stranger = Site { cookie, ..stranger.clone() };
            let answer = stranger.get("/api/secrets").await;
            assert_eq!(answer.status, 401);
            assert!(answer.body.contains(&format!("tier-supervisor login {}</pre>", gate.name)), "{}", answer.body);
            assert_eq!(stranger.post("/api", "a").await.status, 401);
        }
    }
    assert!(world.upstream.seen().is_empty() && world.jaegers.seen().is_empty());
    // Control: it is the session that makes the difference.
    for (gate, upstream) in [(&world.tasks, &world.upstream), (&world.jaeger, &world.jaegers)] {
        let answer = world.logged_in(gate).await.get("/api/secrets?a=b").await;
        assert_eq!((answer.status, answer.body.contains("last")), (200, true), "{answer:?}");
        let seen = upstream.seen();
        assert_eq!((seen.len(), seen[0].path.as_str()), (1, "/api/secrets?a=b"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_logs_in_once_at_its_own_site() {
    let world = World::start().await;
    let link = world.supervisor.logins.link(&world.tasks).await.unwrap();
    let ticket = link.url.split_once("/login").unwrap().1;
    // At another site it is refused, and not used up.
    let mut elsewhere = Site::of(&world.jaeger);
    assert_eq!(elsewhere.open(&format!("/login{ticket}")).await.status, 401);
    // By a page that shows it as a picture, neither.
    let mut site = Site::of(&world.tasks);
    let picture = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"];
    assert_eq!(site.send("GET", &format!("/login{ticket}"), &picture, "").await.status, 403);
    assert_eq!(site.send("HEAD", &format!("/login{ticket}"), &[], "").await.status, 401);

    let answer = site.open(&link.url).await;
    assert_eq!((answer.status, answer.all("location")), (303, vec!["/"]));
    let cookie = answer.all("set-cookie")[0];
    assert!(cookie.starts_with("assistant-tasks="), "{cookie}");
    for attribute in ["; Path=/", "; HttpOnly", "; SameSite=Strict"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.to_ascii_lowercase().contains("domain"), "of this host alone: {cookie}");
    assert_eq!(site.get("/").await.status, 200);

    let mut second = Site::of(&world.tasks);
    let again = second.open(&link.url).await;
    assert_eq!((again.status, &second.cookie), (401, &None));
    assert!(again.body.contains("was used before"), "{}", again.body);
    // The cookie of one site is nothing at another one, by either name.
    let value = site.cookie.as_ref().unwrap().split_once('=').unwrap().1.to_owned();
    for cookie in [format!("assistant-tasks={value}"), format!("assistant-jaeger={value}")] {
        let foreign = Site { cookie: Some(cookie), ..Site::of(&world.jaeger) };
        assert_eq!(foreign.get("/").await.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_followed_on_another_page_goes_on_by_itself() {
    let world = World::start().await;
    let mut site = Site::of(&world.tasks);
    let link = world.supervisor.logins.link(&world.tasks).await.unwrap();
    let path = link.url.strip_prefix(&site.origin()).unwrap().to_owned();
    let followed = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    let answer = site.send("GET", &path, &followed, "").await;
    // A redirect would come without the cookie (SameSite=Strict counts who began).
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("http-equiv=\"refresh\""), "{}", answer.body);
    site.cookie = Some(answer.all("set-cookie")[0].split(';').next().unwrap().to_owned());
    assert_eq!(site.get("/").await.status, 200);
    assert_eq!(site.get("/login").await.status, 303);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_out_is_out() {
    let world = World::start().await;
    let (site, other) = (world.logged_in(&world.tasks).await, world.logged_in(&world.tasks).await);
    assert!(site.get("/logout").await.body.contains("<form method=\"post\""));
    // Not by a page of somebody else's.
    let foreign = site.send("POST", "/logout", &["Origin: http://evil.example"], "").await;
    assert_eq!((foreign.status, site.get("/").await.status), (403, 200));
    let answer = site.post("/logout", "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.all("set-cookie")[0].starts_with("assistant-tasks=;"), "{answer:?}");
    assert_eq!(site.get("/").await.status, 401, "the cookie is worth nothing, wherever it is kept");
    assert_eq!(other.get("/").await.status, 200, "another browser is not concerned");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_link_leads_to_who_else_has_the_port() {
    let world = World::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(listen) = taken.local_addr().unwrap() else { return };
    let squatted = Gate { listen, ..world.tasks.clone() };
    world.supervisor.wanted.send(vec![squatted.clone(), world.jaeger.clone()]).unwrap();
    crate::world::wait_for("a refusal", async || {
        let refused = world.supervisor.logins.link(&squatted).await;
        refused.is_err_and(|error| error.to_string().contains("is taken by"))
    })
    .await;
    world.supervisor.logins.link(&world.jaeger).await.unwrap();
}
