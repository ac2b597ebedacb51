//! TCP: socket options, dialing several addresses, listening on several addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::debug;

use super::options::{ListenOptions, SocketOptions};

/// How long one address is tried alone before the next is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How often a free port is sought that is free on all addresses of a name.
const FREE_PORT_ATTEMPTS: u32 = 16;

/// Connects to the first address that answers. A dropped future closes all attempts.
pub(super) async fn connect(
    addresses: &[SocketAddr],
    options: &SocketOptions,
) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut rest = addresses.iter().copied();
    let mut failure: Option<io::Error> = None;
    loop {
        if let Some(address) = rest.next() {
            let options = options.clone();
            attempts.spawn(async move { connect_one(address, &options).await });
        }
        let outcome = tokio::select! {
            outcome = attempts.join_next() => outcome,
            () = sleep(ATTEMPT_DELAY), if rest.len() > 0 => continue,
        };
        match outcome {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => {
                let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                if failure.is_none() || refused {
                    failure = Some(error);
                }
            }
            Some(Err(lost)) => failure = Some(io::Error::other(lost)),
            None if rest.len() > 0 => {}
            None => return Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
        }
    }
}

async fn connect_one(address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = open(address, options)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    refuse_itself(&stream)?;
    tune(&stream, options)?;
    Ok(stream)
}

/// A dialed port of the ephemeral range can be picked as the local one too: TCP then connects the
/// socket to itself, though nothing listens.
fn refuse_itself(stream: &TcpStream) -> io::Result<()> {
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// Sets what every TCP connection has, dialed or accepted.
pub(super) fn tune(stream: &TcpStream, options: &SocketOptions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Some(keepalive) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.retries);
        SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    }
    Ok(())
}

/// Listens on all addresses, on one port. An address that this machine does not have (as `::1`
/// where IPv6 is off) is left out as long as another one is there.
pub(super) fn bind(
    addresses: &[SocketAddr],
    options: &ListenOptions,
) -> io::Result<Vec<TcpListener>> {
    let mut attempt = 1;
    loop {
        match bind_all(addresses, options) {
            // The kernel chose a port that is free on the first address alone.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && addresses.len() > 1
                    && addresses[0].port() == 0
                    && attempt < FREE_PORT_ATTEMPTS =>
            {
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

fn bind_all(addresses: &[SocketAddr], options: &ListenOptions) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(addresses.len());
    let mut absent = None;
    for &address in addresses {
        let mut address = address;
        if let Some(first) = listeners.first() {
            address.set_port(first.local_addr()?.port());
        }
        match bind_one(address, options) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_absent(&error) => {
                debug!(%address, %error, "address left out");
                absent = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match absent {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

fn is_absent(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

fn bind_one(address: SocketAddr, options: &ListenOptions) -> io::Result<TcpListener> {
    let socket = open(address, &options.socket)?;
    // Without it, connections of the last run in TIME-WAIT keep the port for a minute.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// A non-blocking socket for the family of the address, with its buffer sizes.
fn open(address: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // Said, not left to net.ipv6.bindv6only: [::] and 0.0.0.0 can then both be bound.
        socket.set_only_v6(true)?;
    }
    options.size_buffers(&socket)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::options::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES};

    async fn pair(options: &ListenOptions) -> (TcpStream, TcpStream) {
        let listeners = bind(&["127.0.0.1:0".parse().unwrap()], options).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let dialed = connect(&[address], &options.socket).await.unwrap();
        let (accepted, _) = listeners[0].accept().await.unwrap();
        tune(&accepted, &options.socket).unwrap();
        (dialed, accepted)
    }

    #[tokio::test]
    async fn both_ends_of_a_connection_have_nodelay_and_keepalive() {
        let (dialed, accepted) = pair(&ListenOptions::default()).await;
        for stream in [&dialed, &accepted] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        }
    }

    #[tokio::test]
    async fn both_ends_of_a_connection_have_the_buffer_sizes_asked_for() {
        let socket = SocketOptions {
            keepalive: None,
            send_buffer_bytes: Some(16 * 1024),
            receive_buffer_bytes: Some(32 * 1024),
        };
        let (dialed, accepted) = pair(&ListenOptions { socket, ..Default::default() }).await;
        for stream in [&dialed, &accepted] {
            let socket = SockRef::from(stream);
            assert!(!socket.keepalive().unwrap());
            assert_eq!(socket.send_buffer_size().unwrap(), 2 * 16 * 1024);
            assert_eq!(socket.recv_buffer_size().unwrap(), 2 * 32 * 1024);
        }
    }

    #[tokio::test]
    async fn a_listener_does_not_wait_for_old_connections_and_takes_one_family() {
        let listeners = bind(&["127.0.0.1:0".parse().unwrap()], &ListenOptions::default()).unwrap();
        assert!(SockRef::from(&listeners[0]).reuse_address().unwrap());
        if let Ok(listeners) = bind(&["[::1]:0".parse().unwrap()], &ListenOptions::default()) {
            assert!(SockRef::from(&listeners[0]).only_v6().unwrap());
        }
    }

    #[tokio::test]
    async fn a_name_with_several_addresses_gets_the_same_free_port_on_each() {
        let addresses = ["127.0.0.1:0", "127.0.0.2:0"].map(|text| text.parse().unwrap());
        let listeners = bind(&addresses, &ListenOptions::default()).unwrap();
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 2);
        assert_eq!(ports[0], ports[1]);
    }

    #[tokio::test]
    async fn an_address_that_this_machine_does_not_have_is_left_out_beside_another() {
        // 192.0.2.0/24 is for documentation (RFC 5737).
        let addresses = ["192.0.2.1:0", "127.0.0.1:0"].map(|text| text.parse().unwrap());
        let listeners = bind(&addresses, &ListenOptions::default()).unwrap();
        assert_eq!(listeners.len(), 1);
        let error = bind(&addresses[..1], &ListenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let listeners = bind(&["127.0.0.1:0".parse().unwrap()], &ListenOptions::default()).unwrap();
        let live = listeners[0].local_addr().unwrap();
        let options = SocketOptions::default();
        // Bound, so that no other test listens there, and never listening.
        let closed = open(live, &options).unwrap();
        closed.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
        let dead = closed.local_addr().unwrap().as_socket().unwrap();
        let stream = connect(&[dead, live], &options).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
        let error = connect(&[dead], &options).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_connection_of_a_port_to_itself_counts_as_refused() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = open(address, &SocketOptions::default()).unwrap();
        socket.bind(&address.into()).unwrap();
        let own = socket.local_addr().unwrap().as_socket().unwrap();
        let stream = TcpSocket::from_std_stream(socket.into()).connect(own).await.unwrap();
        let error = refuse_itself(&stream).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
