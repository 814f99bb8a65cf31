//! What a browser, or whoever pretends to be one, sends and gets: written and read as bytes.

use std::net::SocketAddrV4;

use tier_supervisor::desired::Gate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::PATIENCE;

const MOST: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Every value of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(named, _)| named.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }
}

/// Sends these bytes on a connection of their own and reads to its end.
pub(crate) async fn raw(to: SocketAddrV4, bytes: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let mut piece = vec![0; 16 << 10];
        // A gate that closes on us while we still write may reset the connection after its answer.
        while let Ok(read @ 1..) = stream.read(&mut piece).await {
            answer.extend_from_slice(&piece[..read]);
            assert!(u64::try_from(answer.len()).unwrap() < MOST);
        }
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.expect("no answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// A site as one browser sees it.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) listen: SocketAddrV4,
    /// `tasks.localhost:3001`
    pub(crate) host: String,
    /// `name=value`
    pub(crate) cookie: Option<String>,
}

impl Site {
    pub(crate) fn of(gate: &Gate) -> Self {
        Self { listen: gate.listen, host: format!("{}.localhost:{}", gate.name, gate.listen.port()), cookie: None }
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.host)
    }

    /// `lines` are further header lines; Host and the cookie are there.
    pub(crate) fn head(&self, method: &str, path: &str, lines: &[&str]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        if let Some(cookie) = &self.cookie {
            head.push_str(&format!("Cookie: {cookie}\r\n"));
        }
        for line in lines {
            head.push_str(&format!("{line}\r\n"));
        }
        head
    }

    pub(crate) async fn send(&self, method: &str, path: &str, lines: &[&str], body: &str) -> Answer {
        let head = self.head(method, path, lines);
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        raw(self.listen, format!("{head}{length}Connection: close\r\n\r\n{body}").as_bytes()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[&format!("Origin: {}", self.origin())], body).await
    }

    /// Opens a link, and keeps the cookie.
    pub(crate) async fn open(&mut self, url: &str) -> Answer {
        let path = url.strip_prefix(&self.origin()).unwrap_or(url);
        let answer = self.get(path).await;
        if let [cookie] = answer.all("set-cookie").as_slice() {
            self.cookie = Some(cookie.split(';').next().unwrap().to_owned());
        }
        answer
    }
}
