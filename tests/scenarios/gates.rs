//! The pages on loopback: who gets them, and who does not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use assistant_proto::tier::WatchStackRequest;
use assistant_proto::tier::tier_service_client::TierServiceClient;
use assistant_tests::harness::command::{Output, run};
use assistant_tests::harness::site::Site;
use assistant_tests::harness::{agent, until};

const JAEGER: (&str, u16) = ("jaeger", 16686);
/// What Jaeger answers whatever was traced: its own name is among them, or nothing is.
const SERVICES: &str = "/api/services";
/// Nobody's.
const NOBODY: &str = "65534";

async fn sites() -> Vec<(String, u16)> {
    let mut client = TierServiceClient::new(agent::connect("tier-supervisor").await.unwrap());
    let mut watch = client.watch_stack(WatchStackRequest {}).await.unwrap().into_inner();
    let stack = watch.message().await.unwrap().unwrap();
    let site = |site: assistant_proto::tier::Site| {
        assert_eq!(site.problem, "", "{}", site.name);
        let host = site.url.strip_prefix("http://").unwrap();
        let (name, port) = host.rsplit_once(':').unwrap();
        assert_eq!(name, format!("{}.localhost", site.name));
        (site.name, port.parse().unwrap())
    };
    stack.sites.into_iter().map(site).collect()
}

#[tokio::test]
async fn jaeger_is_for_who_has_logged_in() {
    let (name, port) = JAEGER;
    let stranger = Site::new(name, port).get(SERVICES).await.unwrap();
    assert_eq!(stranger.status, 401);
    assert!(stranger.body.contains("tier-supervisor login jaeger"), "{}", stranger.body);
    assert!(!stranger.body.contains("secret-broker"), "{}", stranger.body);
    // Control.
    let site = Site::log_in(name, port).await.unwrap();
    let services = until("services in Jaeger", Duration::from_secs(60), || async {
        let answer = site.get(SERVICES).await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.body.contains("secret-broker").then_some(answer))
    })
    .await
    .unwrap();
    assert_eq!(services.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(services.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn every_site_asks_for_a_login_and_answers_to_its_own_name() {
    let sites = sites().await;
    for wanted in ["tasks", "mcp-tasks", "updates", "unrestricted", "jaeger"] {
        assert!(sites.iter().any(|(name, _)| name == wanted), "{wanted} not in {sites:?}");
    }
    for (name, port) in sites {
        assert_eq!(Site::new(&name, port).get("/").await.unwrap().status, 401, "{name}");
        let site = Site::log_in(&name, port).await.unwrap();
        let own = site.get("/").await.unwrap();
        assert!((200..400).contains(&own.status), "{name}: {own:?}");
        // A page whose name was made to lead here.
        let rebound = Site { host: format!("evil.example:{port}"), ..site.clone() };
        assert_eq!(rebound.get("/").await.unwrap().status, 421, "{name}");
        let plain = Site { host: format!("127.0.0.1:{port}"), ..site.clone() }.get("/x").await.unwrap();
        assert_eq!((plain.status, plain.header("location")), (307, Some(format!("http://{}/x", site.host).as_str())));
        // A page of somebody else's.
        let foreign = format!("{}Origin: http://evil.example\r\nContent-Length: 0\r\n\r\n", site.head("POST", "/"));
        assert_eq!(site.send(&foreign).await.unwrap().status, 403, "{name}");
    }
}

/// `curl` as another user of this machine.
async fn as_nobody(site: &Site, path: &str) -> Output {
    let (host, url) = (format!("Host: {}", site.host), format!("http://127.0.0.1:{}{path}", site.port));
    let cookie = site.cookie.clone().unwrap_or_default();
    let identity = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    let arguments = [&identity[0], &identity[1], "--clear-groups", "curl", "-sS", "-m", "10", "--noproxy", "*"];
    let request = ["-H", &host, "-b", &cookie, "-w", "\n%{http_code}", &url];
    let all: Vec<&str> = arguments.into_iter().chain(request).collect();
    run("setpriv", &all).await.unwrap()
}

#[tokio::test]
async fn another_user_of_the_machine_gets_the_login_page() {
    let (name, port) = JAEGER;
    let site = Site::log_in(name, port).await.unwrap();
    assert_eq!(site.get(SERVICES).await.unwrap().status, 200);
    // Whoever serves another port of this name is sent the cookie: it is worth nothing to another user.
    for cookie in [site.cookie.clone(), None] {
        let said = as_nobody(&Site { cookie, ..site.clone() }, SERVICES).await;
        assert!(said.out.ends_with("\n401") && said.out.contains("tier-supervisor login"), "{said:?}");
    }
    // Control: the same user with a link of its own. That may be had by operators alone.
    let link = run("/usr/local/lib/assistant/bin/tier-supervisor", &["login", name]).await.unwrap().ok().unwrap();
    let path = link.trim().split_once(&site.host).unwrap().1.to_owned();
    assert!(as_nobody(&Site { cookie: None, ..site.clone() }, &path).await.out.ends_with("\n303"));
    let arguments =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/local/lib/assistant/bin/tier-supervisor", "login"];
    let refused = run("setpriv", &arguments).await.unwrap();
    assert!(refused.status != 0 && !refused.all().contains("ticket="), "{refused:?}");
}

/// Every address of this machine.
async fn addresses() -> Vec<IpAddr> {
    let listed = run("ip", &["-o", "address", "show"]).await.unwrap().ok().unwrap();
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
    listed.lines().filter_map(address).collect()
}

#[tokio::test]
async fn nothing_listens_but_on_loopback() {
    let connects = |address: IpAddr, port| {
        TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2)).is_ok()
    };
    let mut ports: Vec<u16> = sites().await.into_iter().map(|(_, port)| port).collect();
    ports.push(4222);
    let others: Vec<IpAddr> =
        addresses().await.into_iter().filter(|at| *at != IpAddr::V4(Ipv4Addr::LOCALHOST)).collect();
    assert!(!others.is_empty(), "this machine has no other address to try");
    for port in ports {
        assert!(connects(Ipv4Addr::LOCALHOST.into(), port), "control: {port}");
        for address in
            others.iter().filter(|address| !matches!(address, IpAddr::V6(six) if six.is_unicast_link_local()))
        {
            assert!(!connects(*address, port), "{address}:{port}");
        }
    }
    // What listens belongs to the gates' user.
    let listed = run("ss", &["-Hltne"]).await.unwrap().ok().unwrap();
    let jaeger = listed.lines().find(|line| line.contains("127.0.0.1:16686")).unwrap();
    assert!(jaeger.contains("uid:8713"), "{jaeger}");
}

#[tokio::test]
async fn the_sockets_of_pages_are_for_the_gates_alone() {
    for (service, uid) in [("channel-bridge", "8703"), ("secret-broker", "8701")] {
        let directory = format!("/run/assistant-pages/{service}");
        let stands = run("stat", &["-c", "%u %g %a", &directory]).await.unwrap().ok().unwrap();
        assert_eq!(stands.trim(), format!("{uid} 8713 2750"));
        let socket = format!("{directory}/tasks.sock");
        let asks = |user: &'static str| {
            let socket = socket.clone();
            async move {
                let identity = [format!("--reuid={user}"), format!("--regid={user}")];
                let curl = ["curl", "-sS", "-m", "10", "-o", "/dev/null", "--unix-socket", &socket];
                let all = [identity[0].as_str(), &identity[1], "--clear-groups"];
                let url = ["-H", "Host: tasks.localhost:3001", "http://tasks.localhost/"];
                let all: Vec<&str> = all.into_iter().chain(curl).chain(url).collect();
                run("setpriv", &all).await.unwrap()
            }
        };
        assert_ne!(asks(NOBODY).await.status, 0, "{service}");
        let control = asks("8713").await;
        assert_eq!(control.status, 0, "control, {service}: {control:?}");
    }
}
