//! The gates' process: listens, and joins each connection byte by byte to its target. What is behind a gate of kind TCP
//! authenticates by itself.

use std::io::{BufRead, Read, Write};
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use service_kit::task::{OnEnd, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Line, Said, is_standard_input};

/// Connections of one gate at a time: a browser with every dashboard open and a few shells, many times over.
const MOST_CONNECTIONS: usize = 256;
/// The configuration is a line of well under a kilobyte.
const MOST_CONFIG: u64 = 64 << 10;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// After a failure to accept (out of file descriptors), so that it does not spin.
const BREATHE: Duration = Duration::from_millis(100);

/// The whole process. `config` is a file, or `-` for one line on standard input whose end then ends the process.
#[must_use]
pub fn main(config: &Path) -> ExitCode {
    let outcome = read(config).and_then(|gates| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Said::Failed { why: format!("cannot start the runtime: {error}") })?;
        runtime.block_on(serve(gates, is_standard_input(config)))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(said) => {
            say(&said);
            ExitCode::FAILURE
        }
    }
}

fn read(config: &Path) -> Result<Vec<Line>, Said> {
    let failed = |why: String| Said::Failed { why: format!("the gates' configuration {}: {why}", config.display()) };
    let text = if is_standard_input(config) {
        let mut line = String::new();
        std::io::stdin().lock().take(MOST_CONFIG).read_line(&mut line).map_err(|error| failed(error.to_string()))?;
        line
    } else {
        std::fs::read_to_string(config).map_err(|error| failed(error.to_string()))?
    };
    let gates: Vec<Line> = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    match gates.iter().find(|gate| !gate.listen.ip().is_loopback()) {
        // Nothing of ours listens on any other address of the VM.
        Some(gate) => Err(failed(format!("{} would listen on {}, which is not loopback", gate.name, gate.listen))),
        None => Ok(gates),
    }
}

async fn serve(gates: Vec<Line>, until_input_ends: bool) -> Result<(), Said> {
    let mut listeners = Vec::with_capacity(gates.len());
    for gate in gates {
        listeners.push((bind(&gate).await?, gate.target));
    }
    let tasks = Tasks::default();
    for (listener, target) in listeners {
        tasks.spawn("gate", OnEnd::Critical, accept(tasks.clone(), listener, target));
    }
    say(&Said::Ready);
    let (gone, input_ends) = tokio::sync::oneshot::channel::<()>();
    if until_input_ends {
        // A thread, because standard input of a process cannot be read without blocking.
        std::thread::spawn(move || {
            drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
            // The other end sees that it is gone.
            drop(gone);
        });
        tokio::select! {
            _ = input_ends => Ok(()),
            why = tasks.critical_end() => Err(Said::Failed { why }),
        }
    } else {
        Err(Said::Failed { why: tasks.critical_end().await })
    }
}

async fn bind(gate: &Line) -> Result<TcpListener, Said> {
    TcpListener::bind(gate.listen).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Said::Occupied { name: gate.name.clone(), listen: gate.listen },
        _ => Said::Failed { why: format!("cannot listen on {} for {}: {error}", gate.listen, gate.name) },
    })
}

async fn accept(tasks: Tasks, listener: TcpListener, target: SocketAddrV4) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(BREATHE).await;
            continue;
        };
        // Full: the client sees its connection close at once, which says more than one that hangs.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        tasks.spawn("gate-connection", OnEnd::Expected, async move {
            let _place = place;
            join(client, target).await;
            Ok(())
        });
    }
}

/// A target that is away closes the connection; either end may close its half.
async fn join(mut client: TcpStream, target: SocketAddrV4) {
    if let Ok(Ok(mut target)) = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(target)).await {
        // How it ended is told to both by the way it closes.
        drop(tokio::io::copy_bidirectional(&mut client, &mut target).await);
    }
}

fn say(said: &Said) {
    let mut line = serde_json::to_vec(said).unwrap_or_default();
    line.push(b'\n');
    let mut output = std::io::stdout().lock();
    // Nobody listens any more: the end of standard input follows.
    drop(output.write_all(&line).and_then(|()| output.flush()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn v4(address: SocketAddr) -> SocketAddrV4 {
        match address {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(_) => panic!("not IPv4"),
        }
    }

    #[tokio::test]
    async fn joins_both_ways_and_half_closes() {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = listener.local_addr().unwrap();
        let tasks = Tasks::default();
        tasks.spawn("gate", OnEnd::Critical, accept(tasks.clone(), listener, v4(target.local_addr().unwrap())));
        let mut client = TcpStream::connect(gate).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut server, _) = target.accept().await.unwrap();
        let mut asked = [0; 8];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "the half that was closed");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!((&asked, &answer), (b"question", b"answer"));
        // The target is away: closed, not hanging.
        drop(target);
        let mut client = TcpStream::connect(gate).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn says_when_a_port_is_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = v4(taken.local_addr().unwrap());
        let gate = Line { name: "bus".to_owned(), listen, target: listen };
        assert_eq!(bind(&gate).await.unwrap_err(), Said::Occupied { name: "bus".to_owned(), listen });
    }

    #[test]
    fn listens_on_loopback_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = |listen: &str| {
            std::fs::write(file.path(), format!(r#"[{{"name":"bus","listen":"{listen}","target":"10.87.1.5:4222"}}]"#))
                .unwrap();
            read(file.path())
        };
        assert_eq!(config("127.0.0.1:4222").unwrap().len(), 1);
        assert!(config("0.0.0.0:4222").is_err());
        std::fs::write(file.path(), "{}").unwrap();
        assert!(read(file.path()).is_err());
    }
}
