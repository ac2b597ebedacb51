//! The knobs of sockets: what each means, its unit, its default, and what raising it costs.

use std::io;
use std::time::Duration;

use socket2::Socket;

use super::tls::{TlsClient, TlsServer};

/// How long [`dial`](super::dial) tries by default.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long [`Accepted::handshake`](super::Accepted::handshake) waits for its peer by default.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections the kernel keeps ready for `accept` by default.
///
/// The kernel lowers it to `net.core.somaxconn`, 4096 on current systems.
pub const BACKLOG: u32 = 1024;

/// How long a TCP connection is silent before it is probed, by default.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// The time between two probes, by default.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How many unanswered probes end a connection, by default.
pub const KEEPALIVE_RETRIES: u32 = 4;

/// How [`dial`](super::dial) and [`connect_udp`](super::connect_udp) reach a URL.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// The time for everything: looking up the name, all addresses, the TLS handshake.
    /// Default [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// Certificates; a TLS URL cannot be dialed without. Other URLs do not use it. Default `None`.
    pub tls: Option<TlsClient>,
    /// The name that the server's certificate must have: a DNS name or an IP address. Default
    /// `None`: the host of the URL. A unix URL has none, so there it must be set.
    pub server_name: Option<String>,
    /// Options of the socket.
    pub socket: SocketOptions,
}

impl Default for DialOptions {
    fn default() -> DialOptions {
        DialOptions {
            connect_timeout: CONNECT_TIMEOUT,
            tls: None,
            server_name: None,
            socket: SocketOptions::default(),
        }
    }
}

/// How [`Listener::bind`](super::Listener::bind) and [`bind_udp`](super::bind_udp) serve a URL.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Connections that the kernel keeps ready for `accept`; further ones wait or are refused.
    /// Each holds kernel memory for a socket. Default [`BACKLOG`].
    pub backlog: u32,
    /// Permissions of a unix socket file, as in `0o660`: who may write may connect.
    /// Default `None`: 0o777 less the umask of the process. Nothing can connect before the
    /// permissions are set. An abstract name has none.
    pub unix_mode: Option<u32>,
    /// The user, by number, that a unix socket file belongs to. Giving a file away takes root.
    /// Default `None`: the user of the process.
    pub unix_user: Option<u32>,
    /// The group, by number, likewise; one's own groups can be given without being root.
    pub unix_group: Option<u32>,
    /// Certificates; a TLS URL cannot be served without. Other URLs do not use it. Default `None`.
    pub tls: Option<TlsServer>,
    /// The time for one TLS handshake. Default [`HANDSHAKE_TIMEOUT`].
    pub handshake_timeout: Duration,
    /// Options of the socket, and of each accepted one.
    pub socket: SocketOptions,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            backlog: BACKLOG,
            unix_mode: None,
            unix_user: None,
            unix_group: None,
            tls: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            socket: SocketOptions::default(),
        }
    }
}

/// Options of each socket. `TCP_NODELAY` is no option: it is always on.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// Probes on a silent TCP connection; `None` turns them off. Default: on.
    pub keepalive: Option<Keepalive>,
    /// `SO_SNDBUF` in bytes. Default `None`: the kernel sizes it, for TCP as the connection needs.
    /// The kernel doubles the value and lowers it to twice `net.core.wmem_max` without an error.
    pub send_buffer_bytes: Option<usize>,
    /// `SO_RCVBUF` in bytes, as above with `net.core.rmem_max`.
    pub receive_buffer_bytes: Option<usize>,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions {
            keepalive: Some(Keepalive::default()),
            send_buffer_bytes: None,
            receive_buffer_bytes: None,
        }
    }
}

impl SocketOptions {
    /// To be called before `connect` and `listen`, so that the sizes count for TCP's window.
    pub(super) fn size_buffers(&self, socket: &Socket) -> io::Result<()> {
        if let Some(bytes) = self.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(())
    }
}

/// When a silent TCP connection counts as dead: by default after 60 s + 4 × 15 s (tcp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe, in whole seconds. Default [`KEEPALIVE_IDLE`].
    pub idle: Duration,
    /// Time between probes, in whole seconds. Default [`KEEPALIVE_INTERVAL`].
    pub interval: Duration,
    /// Unanswered probes that end the connection. Default [`KEEPALIVE_RETRIES`].
    pub retries: u32,
}

impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { idle: KEEPALIVE_IDLE, interval: KEEPALIVE_INTERVAL, retries: KEEPALIVE_RETRIES }
    }
}
