//! UDP sockets by URL.
//!
//! A datagram is sent and received whole or not at all; its sender is whoever it says it is. What
//! may travel this way is the caller's matter.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::error::{DialError, ListenError};
use super::options::{DialOptions, ListenOptions, SocketOptions};
use super::resolve::resolve;
use crate::url::{BusUrl, TransportKind};

/// The longest datagram over IPv4 in bytes: 65,535 less the IP and UDP headers (RFC 768). A longer
/// one is refused by `send` with `EMSGSIZE`.
pub const UDP_DATAGRAM_BYTES_MAX: usize = 65_507;

/// A socket that receives the datagrams sent to a udp URL.
///
/// Of a name with several addresses the first that this machine has is bound. `[::]` takes IPv6
/// alone. Port 0 asks for a free one: see [`UdpSocket::local_addr`]. Of the options only the buffer
/// sizes are used; what does not fit the receive buffer is dropped by the kernel.
///
/// # Errors
/// See [`ListenError`]; a URL of another scheme is [`ListenError::Unsupported`].
///
/// # Cancel safety
/// Cancel-safe: dropping the future closes what it opened.
pub async fn bind_udp(url: &BusUrl, options: &ListenOptions) -> Result<UdpSocket, ListenError> {
    if url.transport() != TransportKind::Udp {
        return Err(ListenError::Unsupported { url: url.clone() });
    }
    let addresses = resolve(url).await.map_err(|error| ListenError::resolve(url, error))?;
    first_of(&addresses, |address| {
        // No SO_REUSEADDR: under UDP it would let another process take the datagrams.
        let socket = open(address, &options.socket)?;
        socket.bind(&address.into())?;
        Ok(socket)
    })
    .map_err(|error| ListenError::from_io(url, error))
}

/// A socket on a free port that sends to a udp URL, and receives from there alone.
///
/// Of a name with several addresses the first that has a route is used. Nobody is asked: that
/// nothing listens there shows, if at all, as a refused connection of a later `send`.
/// [`DialOptions::connect_timeout`] bounds looking up the name.
///
/// # Errors
/// See [`DialError`]; a URL of another scheme is [`DialError::Unsupported`].
///
/// # Cancel safety
/// Cancel-safe: dropping the future closes what it opened.
pub async fn connect_udp(url: &BusUrl, options: &DialOptions) -> Result<UdpSocket, DialError> {
    if url.transport() != TransportKind::Udp {
        return Err(DialError::Unsupported { url: url.clone() });
    }
    let (started, after) = (Instant::now(), options.connect_timeout);
    let addresses = match timeout(after, resolve(url)).await {
        Ok(outcome) => outcome.map_err(|error| DialError::resolve(url, error))?,
        Err(_) => return Err(DialError::Timeout { url: url.clone(), after }),
    };
    first_of(&addresses, |address| {
        let socket = open(address, &options.socket)?;
        socket.connect(&address.into())?;
        Ok(socket)
    })
    .map_err(|error| DialError::from_io(url, started.elapsed(), error))
}

/// The first socket that succeeds, or the first error.
fn first_of(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> io::Result<Socket>,
) -> io::Result<UdpSocket> {
    let mut failure = None;
    for &address in addresses {
        match attempt(address) {
            Ok(socket) => return UdpSocket::from_std(socket.into()),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

fn open(address: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    options.size_buffers(&socket)?;
    Ok(socket)
}
