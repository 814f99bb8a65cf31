//! A page of the stack as a browser gets it: over 127.0.0.1, by the name of its site, with a cookie.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::command::run;

const WITHIN: Duration = Duration::from_secs(30);
const MOST: usize = 8 << 20;
/// Where `up.sh` installs it.
const SUPERVISOR: &str = "/usr/local/lib/assistant/bin/tier-supervisor";

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The rest, chunks and all.
    pub body: String,
}

impl Answer {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(named, _)| named.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// A site in one browser.
#[derive(Debug, Clone)]
pub struct Site {
    /// `tasks.localhost:3001`
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `name=value`, once it has logged in.
    pub cookie: Option<String>,
}

impl Site {
    /// Before anybody has logged in.
    #[must_use]
    pub fn new(name: &str, port: u16) -> Self {
        Self { host: format!("{name}.localhost:{port}"), port, cookie: None }
    }

    /// By a link, as the operator gets it.
    ///
    /// # Errors
    /// When there is no link, or it does not log in.
    pub async fn log_in(name: &str, port: u16) -> anyhow::Result<Self> {
        let link = run(SUPERVISOR, &["login", name]).await?.ok()?;
        let mut site = Self::new(name, port);
        let origin = format!("http://{}", site.host);
        let path = link.trim().strip_prefix(&origin).with_context(|| format!("a link to {link:?}"))?;
        let answer = site.get(path).await?;
        anyhow::ensure!(answer.status == 303, "{answer:?}");
        let cookie = answer.header("set-cookie").context("no cookie")?;
        site.cookie = cookie.split(';').next().map(str::to_owned);
        Ok(site)
    }

    /// The header lines of a request, without its end.
    #[must_use]
    pub fn head(&self, method: &str, path: &str) -> String {
        let cookie = self.cookie.as_ref().map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{cookie}", self.host)
    }

    /// A page.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(&format!("{}\r\n", self.head("GET", path))).await
    }

    /// These bytes.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn send(&self, request: &str) -> anyhow::Result<Answer> {
        let exchange = async {
            let mut stream = TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port)).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            let mut piece = vec![0; 16 << 10];
            while let read @ 1.. = stream.read(&mut piece).await? {
                answer.extend_from_slice(piece.get(..read).unwrap_or_default());
                anyhow::ensure!(answer.len() < MOST, "an answer without end");
            }
            let text = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
            Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
        };
        tokio::time::timeout(WITHIN, exchange).await.context("no answer in time")?
    }
}
