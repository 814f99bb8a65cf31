//! squid.conf against Squid itself; see `programs` for where it comes from.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tier_supervisor::desired::Desired;

use crate::outward::{whole, with_model};
use crate::programs::{Server, program, unpack};
use crate::rendered::file;
use crate::stack::{Stack, write};

#[test]
fn squid_accepts_its_configuration() {
    let Some(squid) = program("ASSISTANT_SQUID_BIN") else { return };
    let dir = tempfile::tempdir().unwrap();
    let two = "tiers: [{name: a, port: 3001, egress: {hosts: [serv.amazingmarvin.com]}}, {name: b, port: 3002}]";
    let urls = ["https://model.drill.example:8443/v1", "http://192.168.1.20:11434/v1", "https://192.168.1.20/v1"];
    let stacks = [Stack::drill(), Stack::with_tiers(two), whole()];
    for stack in stacks.into_iter().chain(urls.map(with_model)) {
        let desired = stack.desired();
        let spec = desired.container("assistant-squid").unwrap();
        unpack(spec, dir.path());
        let here = dir.path().display().to_string();
        for helper in ["squid-auth", "sni-helper"] {
            write(&dir.path().join(helper), "#!/bin/sh\ncat\n", 0o755);
        }
        let conf = file(&desired, "assistant-squid", "squid.conf")
            .replace("/etc/assistant", &here)
            .replace("/usr/lib/assistant", &here)
            .replace("/var/spool/squid", &here);
        let path = dir.path().join("squid.conf");
        write(&path, &conf, 0o644);
        let output = Command::new(&squid).args(["-k", "parse", "-f"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let bad = said.lines().filter(|line| ["FATAL", "ERROR", "WARNING"].iter().any(|bad| line.contains(bad)));
        // RFC 9110 wants Via; here nobody upstream is told about the proxy.
        assert_eq!(
            bad.filter(|line| !line.contains("requires the use of Via")).collect::<Vec<_>>(),
            Vec::<&str>::new()
        );
        write(&path, &conf.replace("http_access deny all", "http_access deny nobody all"), 0o644);
        assert!(!Command::new(&squid).args(["-k", "parse", "-f"]).arg(&path).output().unwrap().status.success());
    }
}

/// Squid with this configuration on a loopback port; its helpers admit everybody.
fn start_squid(
    program: &Path,
    desired: &Desired,
    files: impl FnOnce(&Path),
    change: impl Fn(&str) -> String,
) -> Server {
    let dir = tempfile::tempdir().unwrap();
    // Started by root, Squid becomes another user.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    unpack(desired.container("assistant-squid").unwrap(), dir.path());
    files(dir.path());
    let here = dir.path().display().to_string();
    for helper in ["squid-auth", "sni-helper"] {
        write(&dir.path().join(helper), "#!/bin/sh\nwhile read id rest; do echo \"$id OK\"; done\n", 0o755);
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut conf = String::new();
    for line in file(desired, "assistant-squid", "squid.conf").lines() {
        match line.split_once(" ssl-bump ") {
            Some((_, rest)) if line.starts_with("http_port ") => {
                conf.push_str(&format!("http_port 127.0.0.1:{port} ssl-bump {rest}\n"));
            }
            _ => conf.push_str(&format!("{}\n", change(line))),
        }
    }
    for there in ["/etc/assistant", "/usr/lib/assistant", "/var/spool/squid", "/var/log/squid", "/run/squid"] {
        conf = conf.replace(there, &here);
    }
    let path = dir.path().join("squid.conf");
    write(&path, &conf, 0o644);
    let child = Command::new(program).args(["-N", "-f"]).arg(&path).stderr(Stdio::null()).spawn().unwrap();
    Server { child, port, dir }
}

/// The owner's server at home, played by this test on loopback: reached in plain HTTP by one user, and by no other way.
#[test]
fn squid_opens_a_server_at_home_to_one_user_alone() {
    let Some(program) = program("ASSISTANT_SQUID_BIN") else { return };
    let home = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = home.local_addr().unwrap().port();
    let heard = std::thread::spawn(move || {
        let mut heard = Vec::new();
        for connection in home.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0_u8; 4096];
            let count = connection.read(&mut request).unwrap();
            let text = String::from_utf8_lossy(&request[..count]).into_owned();
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi").unwrap();
            let is_last = text.contains("/v1/last");
            heard.push(text);
            if is_last {
                break;
            }
        }
        heard
    });
    let desired = with_model("http://192.168.1.20:11434/v1").desired();
    let lists = |dir: &Path| write(&dir.join("lists/service-models.txt"), "127.0.0.1\n", 0o644);
    let squid = start_squid(&program, &desired, lists, |line| line.replace("11434", &at.to_string()));
    wait_until("Squid listens", || std::net::TcpStream::connect(("127.0.0.1", squid.port)).is_ok());
    let ask = |request: &str, user: Option<&str>| -> String {
        use base64::Engine;
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", squid.port)).unwrap();
        let credentials = user.map(|user| {
            let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:x"));
            format!("Proxy-Authorization: Basic {text}\r\n")
        });
        let text =
            format!("{request} HTTP/1.1\r\nHost: x\r\n{}Connection: close\r\n\r\n", credentials.unwrap_or_default());
        connection.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        drop(connection.read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    let log = || std::fs::read_to_string(squid.dir.path().join("access.log")).unwrap_or_default();
    let denied = || log().lines().filter(|line| line.contains("TCP_DENIED")).count();
    let home = format!("http://127.0.0.1:{at}");
    for (request, user) in [
        (format!("POST {home}/v1/chat"), Some("tasks")),
        (format!("POST {home}/v1/chat"), Some("tee")),
        (format!("POST {home}/v1/chat"), None),
        ("POST http://127.0.0.1:9/v1/chat".to_owned(), Some("models")),
        (format!("POST http://localhost:{at}/v1/chat"), Some("models")),
        (format!("CONNECT 127.0.0.1:{at}"), Some("models")),
        (format!("CONNECT 127.0.0.1:{at}"), Some("tasks")),
        ("CONNECT serv.amazingmarvin.com:443".to_owned(), Some("models")),
    ] {
        let before = denied();
        let answer = ask(&request, user);
        // A denied CONNECT that had to wait for a helper looks like an open one from here.
        let refused = answer.is_empty() || [" 403", " 407"].iter().any(|code| answer.contains(code));
        assert!(refused || request.starts_with("CONNECT"), "{request} as {user:?}: {answer}");
        wait_until("Squid's own word for it", || denied() > before);
    }
    assert!(ask(&format!("POST {home}/v1/last"), Some("models")).contains(" 200"));
    let heard = heard.join().unwrap();
    let [request] = heard.as_slice() else { panic!("{heard:#?}") };
    assert!(request.starts_with("POST /v1/last HTTP/1.1"), "{request}");
    assert!(!request.to_lowercase().contains("proxy-auth"), "{request}");
    // And its line is one that the auditor reads.
    wait_until("its line", || log().contains("TCP_MISS"));
    let log = log();
    assert!(!log.contains("TCP_TUNNEL"), "{log}");
    let line = log.lines().find(|line| line.contains("TCP_MISS")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("\"user\":\"models\"") && line.contains("\"tier\":\"-\""), "{line}");
}

/// What the supervisor does when the log is large, with the signal it sends: no line is lost, and Squid goes on.
#[test]
fn squid_begins_a_new_log_when_told_and_serves_on() {
    let Some(program) = program("ASSISTANT_SQUID_BIN") else { return };
    let squid = start_squid(&program, &Stack::drill().desired(), |_| (), str::to_owned);

    let (log, aside) = (squid.dir.path().join("access.log"), squid.dir.path().join("access.log.0"));
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    // Each attempt is denied and leaves a line. One with credentials asks a helper, which must outlive the signal too.
    let knock = || {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", squid.port)).unwrap();
        let request = "CONNECT nowhere.example:443 HTTP/1.1\r\nHost: nowhere.example:443\r\n\
                       Proxy-Authorization: Basic dGFza3M6eA==\r\n\r\n";
        connection.write_all(request.as_bytes()).unwrap();
        drop(connection.read_to_end(&mut Vec::new()));
    };
    wait_until("Squid listens", || std::net::TcpStream::connect(("127.0.0.1", squid.port)).is_ok());
    knock();
    wait_until("a line", || lines(&log) >= 1);
    let before = lines(&log);
    std::fs::rename(&log, &aside).unwrap();
    knock();
    wait_until("a line in what was put aside", || lines(&aside) > before);
    assert!(!log.exists(), "no new log is begun unless told");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(squid.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    wait_until("a new log", || log.exists());
    let kept = lines(&aside);
    knock();
    wait_until("a line in the new log", || lines(&log) >= 1);
    let line = std::fs::read_to_string(&log).unwrap();
    assert!(line.contains("nowhere.example") && line.contains("\"user\":\"tasks\""), "{line}");
    assert_eq!(lines(&aside), kept, "the old one grows no more");
}

#[allow(clippy::disallowed_methods, reason = "this is the wait for a condition, with a deadline")]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
