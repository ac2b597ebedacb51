//! A netlink socket that tasks can wait for.

use std::io;
use std::sync::Arc;

use netlink_sys::Socket;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::unix::AsyncFd;

use super::confine::Confined;

/// The receive buffer that is asked for (DESIGN: events come in bursts, and are lost when it is full).
const RECEIVE_BUFFER_BYTES: usize = 32 << 20;

/// Bound to a port id of the kernel's choice; in no groups.
pub(super) struct NetlinkSocket {
    socket: AsyncFd<Arc<Socket>>,
    port_id: u32,
}

impl NetlinkSocket {
    /// Opens a socket on the confined thread, with a receive buffer of 32 MiB where the process may have
    /// it, else as large as anybody's.
    pub(super) async fn open(confined: &Confined, protocol: u16) -> io::Result<Self> {
        let opened = confined.run(async move {
            let mut socket = Socket::new(isize::from(protocol as i16))?;
            socket.set_non_blocking(true)?;
            let port_id = socket.bind_auto()?.port_number();
            let socket = Arc::new(socket);
            Ok(Self { socket: watch(socket)?, port_id })
        });
        let opened = opened.await?;
        let socket = Arc::clone(opened.socket.get_ref());
        let enlarge = async move {
            let forced = set_socket_recv_buffer_size_force(&*socket, RECEIVE_BUFFER_BYTES);
            if forced.is_err() {
                let _ = set_socket_recv_buffer_size(&*socket, RECEIVE_BUFFER_BYTES);
            }
        };
        confined.run_privileged(enlarge).await;
        Ok(opened)
    }

    /// The socket's port id.
    pub(super) fn port_id(&self) -> u32 {
        self.port_id
    }

    /// The socket itself, for its options, which any thread may set.
    pub(super) fn shared(&self) -> Arc<Socket> {
        Arc::clone(self.socket.get_ref())
    }

    /// Sends to the kernel. Without a destination address: with one, Linux would look at the sender's
    /// rights alone, and not at the opener's.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.socket.get_ref(), message, SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// The length of the next datagram, which stays; `None` if there is none.
    pub(super) fn peek(&self) -> io::Result<Option<usize>> {
        let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        some(recv(self.socket.get_ref(), &mut [0u8; 0][..], flags).map(|(_, length)| length))
    }

    /// Takes the next datagram: its whole length, which is above `buffer.len()` if it was cut; `None` if
    /// there is none. The kernel cuts a dump by the length of the largest buffer it was given so far.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        some(recv(self.socket.get_ref(), buffer, flags).map(|(_, length)| length))
    }

    /// Waits until there may be a datagram. Cancel-safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        loop {
            let mut guard = self.socket.readable().await?;
            match self.peek() {
                Ok(None) => guard.clear_ready(),
                // an error is for `receive` to report, which takes it off the socket
                Ok(Some(_)) | Err(_) => return Ok(()),
            }
        }
    }
}

#[expect(unsafe_code, reason = "what AsyncFd asks for cannot be said in types")]
fn watch(socket: Arc<Socket>) -> io::Result<AsyncFd<Arc<Socket>>> {
    // SAFETY: `Socket` answers `as_raw_fd` with one descriptor all its life and closes it when it is
    // dropped; the `Arc` that the `AsyncFd` owns keeps that from happening before it is deregistered.
    unsafe { Ok(AsyncFd::register(socket)?) }
}

fn some(result: Result<usize, rustix::io::Errno>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
