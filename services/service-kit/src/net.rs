//! Listeners that serve one interface only.
//!
//! Linux answers on any local address whatever interface a packet came in by (the weak host model, RFC 1122 section
//! 3.3.4.2), so a listener bound to one network's *address* can still be reached from another network. Binding to the
//! *device* (`SO_BINDTODEVICE`, no capability needed since Linux 5.7) closes that. Docker numbers a container's
//! interfaces at random from start to start, so the device is found by its fixed address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 1024;
/// Bytes of datagrams that may wait; the kernel caps it at `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Listens on TCP `address:port`, on the interface that owns the address and no other. Addresses of 127.0.0.0/8 are
/// bound without a device.
///
/// # Errors
/// `AddrNotAvailable` when no interface has the address (the network is not attached yet), otherwise the system's.
pub async fn bind_tcp_on_address(address: Ipv4Addr, port: u16) -> io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    prepare(&socket, address)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(address), port).into())?;
    socket.listen(BACKLOG)?;
    tokio::net::TcpListener::from_std(socket.into())
}

/// Listens on UDP `address:port`, on the interface that owns the address and no other.
///
/// # Errors
/// As [`bind_tcp_on_address`].
pub async fn bind_udp_on_address(address: Ipv4Addr, port: u16) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // As much as the system allows: what does not fit is lost before anybody can look at it.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    prepare(&socket, address)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(address), port).into())?;
    tokio::net::UdpSocket::from_std(socket.into())
}

fn prepare(socket: &Socket, address: Ipv4Addr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if !address.is_loopback() {
        let device = device_of(address)?;
        socket.bind_device(Some(device.as_bytes()))?;
    }
    Ok(())
}

fn device_of(address: Ipv4Addr) -> io::Result<String> {
    nix::ifaddrs::getifaddrs()?
        .find(|interface| {
            interface.address.as_ref().and_then(|a| a.as_sockaddr_in()).is_some_and(|a| a.ip() == address)
        })
        .map(|interface| interface.interface_name)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("no interface has the address {address}; is the container attached to that network?"),
            )
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[tokio::test]
    async fn loopback_binds_and_a_foreign_address_is_named() {
        let listener = bind_tcp_on_address(Ipv4Addr::LOCALHOST, 0).await.unwrap();
        assert!(tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.is_ok());
        let error = bind_tcp_on_address(Ipv4Addr::new(203, 0, 113, 77), 0).await.unwrap_err();
        assert!(error.to_string().contains("203.0.113.77"), "{error}");
        assert!(bind_udp_on_address(Ipv4Addr::LOCALHOST, 0).await.is_ok());
    }
}
