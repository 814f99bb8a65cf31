//! What is open, what is not, and what an agent's answer can do to a page.

use bytes::Bytes;
use http_body_util::Full;
use serde_json::json;

use super::browser::{HOST, Page, ask, get, json_of, request, send};
use crate::agent_double::TOKEN;
use crate::stack::Stack;

fn answer(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn the_page_and_its_scripts_come_from_the_release() {
    let stack = Stack::with_dashboard(600).await;
    let socket = stack.socket();
    let home = get(&socket, "/").await;
    assert_eq!((home.status().as_u16(), &home.headers()["location"]), (302, &"/agent/default".parse().unwrap()));
    let page = get(&socket, "/agent/default").await;
    assert!(page.status() == 200 && page.headers()["content-type"] == "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self' 'sha256-"), "{policy}");
    assert!(policy.contains(&format!("connect-src 'self' ws://{HOST};")), "{policy}");
    assert!(!policy.contains("unsafe-inline") && !policy.contains("unsafe-eval"), "{policy}");
    let script = get(&socket, "/_app/assets/a-1.js").await;
    assert!(script.status() == 200 && script.body() == "// the script");
    assert!(script.headers()["content-type"].to_str().unwrap().starts_with("text/javascript"));
    for path in
        ["/_app/../secret", "/_app/%2e%2e/secret", "/_app/assets/../../../secret", "/_app//etc/passwd", "/_app/"]
    {
        let refused = get(&socket, path).await;
        assert_eq!(refused.status(), 404, "{path}");
        assert_eq!(json_of(&refused)["code"], "no_such_page", "{path}");
    }
    // None of it came from the agent.
    assert!(stack.agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_what_is_listed_reaches_the_agent_and_with_its_token() {
    let stack = Stack::with_dashboard(600).await;
    let socket = stack.socket();
    *stack.agent.api.lock().unwrap() = answer("200 OK\r\ncontent-type: application/json", r#"{"model":"m"}"#);
    for path in ["/api/config", "/api/cron", "/api/plugins", "/api/memory", "/admin/reload", "/acp", "/metrics"] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let refused = ask(&socket, method, path).await;
            assert_eq!((refused.status().as_u16(), &json_of(&refused)["code"]), (403, &json!("closed_here")), "{path}");
        }
    }
    assert!(stack.agent.asked.lock().unwrap().is_empty(), "{:?}", stack.agent.asked);
    // The control: what is listed is asked, with the token and with nothing that the browser sent.
    let wanted = request("GET", "/api/status?agent=default&x=1").header("cookie", "gate=1").header("x-own", "1");
    let status = send(&socket, wanted.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(json_of(&status), json!({"model": "m"}));
    let asked = stack.agent.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].starts_with("GET /api/status?agent=default HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[0].contains(&format!("authorization: Bearer {TOKEN}\r\n")), "{asked:?}");
    assert!(!asked[0].contains("cookie") && !asked[0].contains("x-own"), "{asked:?}");
}

#[tokio::test]
async fn the_bridge_answers_for_itself_what_leads_to_the_chat() {
    let stack = Stack::with_dashboard(600).await;
    let socket = stack.socket();
    let health = json_of(&get(&socket, "/health").await);
    assert_eq!((&health["status"], &health["require_pairing"]), (&json!("ok"), &json!(false)));
    assert_eq!(json_of(&get(&socket, "/api/config/map-keys?path=agents").await)["keys"], json!(["default"]));
    let fields = json_of(&get(&socket, "/api/config/list?prefix=agents.default").await);
    assert_eq!((fields["entries"].as_array().unwrap().len(), &fields["entries"][0]["value"]), (1, &json!("true")));
    assert!(stack.agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_agents_answer_is_data_or_nothing() {
    let stack = Stack::with_dashboard(600).await;
    let socket = stack.socket();
    let told = |bytes: Vec<u8>| *stack.agent.api.lock().unwrap() = bytes;
    // Cookies, content types and other headers of the agent go nowhere; its text cannot reorder or hide.
    told(answer(
        "200 OK\r\ncontent-type: text/html\r\nset-cookie: a=b\r\nx-odd: 1\r\nrefresh: 0; url=https://evil.example\
         \r\naccess-control-allow-origin: *\r\nlink: <https://evil.example>; rel=preload",
        "{\"model\":\"a\u{202e}<script>\"}",
    ));
    let status = get(&socket, "/api/status").await;
    assert_eq!(json_of(&status), json!({"model": "a\\u{202e}<script>"}));
    for header in ["set-cookie", "x-odd", "refresh", "access-control-allow-origin", "link"] {
        assert!(!status.headers().contains_key(header), "{header}");
    }
    let huge = format!("\"{}\"", "x".repeat(2 << 20));
    let deep = "[".repeat(100_000);
    for (head, body) in [
        ("200 OK\r\ncontent-type: application/json", "<html><script>alert(1)</script></html>"),
        ("200 OK\r\ncontent-type: application/json", huge.as_str()),
        ("200 OK\r\ncontent-type: application/json", deep.as_str()),
        ("401 Unauthorized\r\nwww-authenticate: Basic", "{}"),
        ("302 Found\r\nlocation: https://evil.example/", "{}"),
        ("500 No", "{}"),
    ] {
        told(answer(head, body));
        let refused = get(&socket, "/api/status").await;
        assert_eq!(refused.status(), 502, "{head}");
        assert_eq!(json_of(&refused)["code"], "agent_did_not_answer", "{head}");
        assert!(!refused.headers().contains_key("location") && !refused.headers().contains_key("www-authenticate"));
        assert!(refused.body().len() < 400, "{head}");
    }
    told(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec());
    assert_eq!(get(&socket, "/api/status").await.status(), 502);
}

#[tokio::test]
async fn who_is_not_sent_by_the_gate_or_by_this_site_gets_nothing() {
    let stack = Stack::with_dashboard(600).await;
    let socket = stack.socket();
    let status = |request: hyper::http::request::Builder| {
        let socket = socket.clone();
        async move { send(&socket, request.body(Full::<Bytes>::default()).unwrap()).await.status().as_u16() }
    };
    let bare = |site: Option<&str>| {
        let request = hyper::Request::get("/health").header("host", HOST);
        site.into_iter().fold(request, |request, site| request.header("assistant-site", site))
    };
    assert_eq!(status(bare(None)).await, 403);
    assert_eq!(status(bare(Some("updates"))).await, 403);
    assert_eq!(status(bare(Some("tasks")).header("assistant-site", "updates")).await, 403);
    assert_eq!(status(bare(Some("tasks")).header("origin", "http://updates.localhost:42001")).await, 403);
    assert_eq!(status(bare(Some("tasks")).header("origin", "null")).await, 403);
    // The control.
    assert_eq!(status(bare(Some("tasks"))).await, 200);
    assert_eq!(status(bare(Some("tasks")).header("origin", format!("http://{HOST}"))).await, 200);

    let chat = format!("ws://{HOST}/ws/chat?session_id=s&agent=default");
    let foreign = Page::try_open(&socket, &chat, |request| {
        request.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
    });
    assert!(foreign.await.is_err());
    assert!(Page::try_open(&socket, &format!("ws://{HOST}/ws/nodes"), |_| {}).await.is_err());
    assert!(Page::try_open(&socket, &format!("ws://{HOST}/acp?agent=default"), |_| {}).await.is_err());
    assert!(Page::try_open(&socket, &chat, |_| {}).await.is_ok());
    // Without an upgrade there is no chat.
    assert_eq!(ask(&socket, "GET", "/ws/chat?session_id=s").await.status(), 405);
}

#[tokio::test]
async fn the_socket_is_for_the_group_and_replaces_a_dead_one() {
    use std::os::unix::fs::PermissionsExt;
    let stack = Stack::with_dashboard(600).await;
    let mode = std::fs::metadata(stack.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // A process that comes after binds over it.
    let (mut bridge, cx, _post) = stack.reborn().await;
    bridge.start_dashboards(&cx);
    assert_eq!(get(&stack.socket(), "/health").await.status(), 200);
}
