//! A double of Squid as the way out of the bridge: CONNECT with a user's name and password, and nothing else.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) const USER: &str = "channels";
pub(crate) const PASSWORD: &str = "password-of-the-channels";

/// What it does with a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Allow,
    /// Answers with a status.
    Refuse(u16),
    /// Closes without an answer.
    Drop,
    /// Keeps every connection there is, and carries nothing any more: as when whoever is behind it is gone without a word.
    Silence,
}

pub(crate) struct SquidDouble {
    pub(crate) address: SocketAddrV4,
    /// Every target that was asked for.
    pub(crate) connects: Arc<Mutex<Vec<String>>>,
    manner: watch::Sender<Manner>,
    accepting: JoinHandle<()>,
}

impl Drop for SquidDouble {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl SquidDouble {
    /// Leads every connection to `upstream`.
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("not IPv4") };
        let manner = watch::channel(Manner::Allow).0;
        let connects: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, changes) = (Arc::clone(&connects), manner.subscribe());
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, upstream, Arc::clone(&log), changes.clone()));
            }
        });
        Self { address, connects, manner, accepting }
    }

    /// Changes what it does, and ends every connection there is, except for silence.
    pub(crate) fn be(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }
}

async fn serve(
    mut stream: TcpStream,
    upstream: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    mut manner: watch::Receiver<Manner>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let expected = format!("basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}"))).to_ascii_lowercase();
    let authorized = head.to_ascii_lowercase().contains(&format!("proxy-authorization: {expected}\r\n"));
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    log.lock().unwrap().push(target.unwrap_or("not a CONNECT").to_owned());
    let now = *manner.borrow_and_update();
    let status = match now {
        Manner::Drop => return,
        Manner::Silence => {
            let _changed = manner.changed().await;
            return;
        }
        Manner::Refuse(status) => status,
        Manner::Allow if !authorized || target.is_none() => 407,
        Manner::Allow => 200,
    };
    let _written = stream.write_all(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes()).await;
    if status == 200 {
        let mut there = TcpStream::connect(upstream).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut stream, &mut there) => {}
            _ = manner.changed() => {}
        }
        let now = *manner.borrow_and_update();
        if now == Manner::Silence {
            let _changed = manner.changed().await;
        }
    }
}
