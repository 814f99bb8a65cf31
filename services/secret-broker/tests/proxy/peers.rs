//! The peers of the broker, on loopback and for real: an HTTPS origin with a CA of its own, and a small CONNECT proxy
//! that stands where Squid stands (Squid itself is part of the system tests).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use service_kit::task::{OnEnd, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

pub type AnswerBody = BoxBody<Bytes, Infallible>;
type Answer = Arc<dyn Fn(&Seen) -> Response<AnswerBody> + Send + Sync>;

/// A certificate authority.
pub struct Ca {
    pub pem: String,
    pub key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        let key_pem = key.serialize_pem();
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem, key_pem }
    }

    fn server(&self, host: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }
}

/// A request as the origin received it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// An HTTPS server that records what it gets and answers as a test says.
#[derive(Clone)]
pub struct Origin {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Mutex<Answer>>,
}

impl Origin {
    pub async fn start(tasks: &Tasks, ca: &Ca, host: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            answer: Arc::new(Mutex::new(Arc::new(|_: &Seen| Response::new(text("ok"))))),
        };
        let (acceptor, serving, tasks_inner) =
            (tokio_rustls::TlsAcceptor::from(ca.server(host)), origin.clone(), tasks.clone());
        tasks.spawn("origin", OnEnd::Expected, async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let (acceptor, origin) = (acceptor.clone(), serving.clone());
                tasks_inner.spawn("origin-connection", OnEnd::Expected, async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return Ok(()) };
                    let service = service_fn(move |request| origin.clone().serve(request));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    // A peer that hangs up is part of many tests.
                    drop(connection);
                    Ok(())
                });
            }
        });
        origin
    }

    pub fn answers(&self, answer: impl Fn(&Seen) -> Response<AnswerBody> + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Arc::new(answer);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    async fn serve(self, request: Request<Incoming>) -> Result<Response<AnswerBody>, hyper::Error> {
        let (parts, body) = request.into_parts();
        let seen = Seen {
            method: parts.method.to_string(),
            target: parts.uri.to_string(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        };
        self.seen.lock().unwrap().push(seen.clone());
        let answer = Arc::clone(&*self.answer.lock().unwrap());
        Ok(answer(&seen))
    }
}

pub fn text(content: impl Into<Bytes>) -> AnswerBody {
    Full::new(content.into()).boxed()
}

/// A body in the chunks given, each a write of its own.
pub fn chunks(parts: Vec<Bytes>) -> AnswerBody {
    let frames = parts.into_iter().map(|part| Ok::<_, Infallible>(Frame::data(part)));
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)))
}

/// What the CONNECT proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Leads every host to the origin.
    Forward,
    /// Resets the connection, as Squid denies.
    Reset,
    /// Closes the connection, as a Squid does that ends.
    HangUp,
    /// Answers with this status.
    Status(u16),
}

/// Stands where Squid stands.
#[derive(Clone)]
pub struct Gate {
    pub address: SocketAddr,
    pub connects: Arc<Mutex<Vec<String>>>,
    pub manner: Arc<Mutex<Manner>>,
    open: Arc<AtomicUsize>,
}

impl Gate {
    pub async fn start(tasks: &Tasks, origin: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Self {
            address: listener.local_addr().unwrap(),
            connects: Arc::default(),
            manner: Arc::new(Mutex::new(Manner::Forward)),
            open: Arc::default(),
        };
        let (serving, tasks_inner) = (gate.clone(), tasks.clone());
        tasks.spawn("gate", OnEnd::Expected, async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let gate = serving.clone();
                tasks_inner.spawn("gate-connection", OnEnd::Expected, async move {
                    gate.open.fetch_add(1, Ordering::SeqCst);
                    let relayed = gate.relay(stream, origin).await;
                    gate.open.fetch_sub(1, Ordering::SeqCst);
                    drop(relayed);
                    Ok(())
                });
            }
        });
        gate
    }

    pub fn connects(&self) -> Vec<String> {
        self.connects.lock().unwrap().clone()
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    async fn relay(&self, mut stream: TcpStream, origin: SocketAddr) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        self.connects.lock().unwrap().push(String::from_utf8(head).unwrap());
        let manner = *self.manner.lock().unwrap();
        match manner {
            Manner::Forward => {}
            Manner::HangUp => return Ok(()),
            Manner::Reset => return stream.set_zero_linger(),
            Manner::Status(status) => {
                return stream.write_all(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes()).await;
            }
        }
        let mut upstream = TcpStream::connect(origin).await?;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        copy_bidirectional(&mut stream, &mut upstream).await?;
        Ok(())
    }
}
