//! The authoritative name server, with a log of every question.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record as ResourceRecord, RecordType};
use service_kit::task::{OnEnd, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::record::{Arrival, Record};
use super::{MARVIN, MARVIN_HOST, MODEL, MODEL_HOST, OUTSIDE, OUTSIDE_HOST, TELEGRAM, TELEGRAM_HOST, critical};

const TTL_SECONDS: u32 = 5;

/// Serves UDP and TCP port 53 on `address`.
///
/// # Errors
/// When a socket cannot be bound.
pub async fn start(tasks: &Tasks, address: Ipv4Addr, record: Arc<Record>) -> anyhow::Result<()> {
    let udp = tokio::net::UdpSocket::bind((address, 53)).await?;
    let tcp = tokio::net::TcpListener::bind((address, 53)).await?;
    let log = Arc::clone(&record);
    critical(tasks, "dns-udp".to_owned(), async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (count, peer) = udp.recv_from(&mut buffer).await?;
            if let Some(answer) = buffer.get(..count).and_then(|query| answer(query, &peer.to_string(), &log)) {
                udp.send_to(&answer, peer).await.ok();
            }
        }
    });
    let open = tasks.clone();
    critical(tasks, "dns-tcp".to_owned(), async move {
        loop {
            let (mut stream, peer) = tcp.accept().await?;
            let log = Arc::clone(&record);
            open.spawn("dns-tcp-connection", OnEnd::Expected, async move {
                let length = stream.read_u16().await?;
                let mut query = vec![0; usize::from(length)];
                stream.read_exact(&mut query).await?;
                if let Some(answer) = answer(&query, &peer.to_string(), &log) {
                    stream.write_u16(u16::try_from(answer.len())?).await?;
                    stream.write_all(&answer).await?;
                }
                Ok(())
            });
        }
    });
    Ok(())
}

fn address_of(name: &str) -> Option<Ipv4Addr> {
    match name {
        MODEL_HOST => Some(MODEL),
        MARVIN_HOST => Some(MARVIN),
        OUTSIDE_HOST => Some(OUTSIDE),
        TELEGRAM_HOST => Some(TELEGRAM),
        _ => None,
    }
}

fn answer(query: &[u8], source: &str, record: &Record) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    record.add(Arrival::Query {
        name: name.clone(),
        record_type: u16::from(question.query_type()),
        source: source.to_owned(),
    });
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    match address_of(&name) {
        Some(address) if question.query_type() == RecordType::A => {
            reply.add_answer(ResourceRecord::from_rdata(question.name().clone(), TTL_SECONDS, RData::A(A(address))));
        }
        Some(_) => {}
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    reply.add_query(question);
    reply.to_vec().ok()
}
