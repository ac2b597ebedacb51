//! PUSH over datagrams: nobody answers, and nobody knows whether anybody was there.

use std::io;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::UdpSocket;

use super::data::{Numbers, frames};
use crate::transport::{DialError, DialOptions, UDP_DATAGRAM_BYTES_MAX, connect_udp};
use crate::url::BusUrl;
use crate::wire::{EnvelopeHead, FRAME_MAX};

/// Pushes to a broker that listens at a udp URL. Each push is one datagram, and may be lost.
#[derive(Debug)]
pub struct UdpPusher {
    socket: UdpSocket,
    sequence: AtomicU32,
}

impl UdpPusher {
    /// A socket for a URL such as `udp://127.0.0.1:9824`. Nobody is asked whether anybody is there.
    ///
    /// # Errors
    /// See [`DialError`].
    ///
    /// Cancel-safe.
    pub async fn connect(url: &BusUrl) -> Result<Self, DialError> {
        let socket = connect_udp(url, &DialOptions::default()).await?;
        Ok(Self { socket, sequence: AtomicU32::new(0) })
    }

    /// Pushes `body` to an address; 0 is whoever subscribed. There are no names, and no parts: a body has
    /// at most 65,460 bytes.
    ///
    /// # Errors
    /// What the system says: `EMSGSIZE` for a longer body, `ECONNREFUSED` if an earlier datagram found
    /// nobody.
    ///
    /// Cancel-safe: sent or not.
    pub async fn push(&self, to: u32, body: &[u8]) -> io::Result<()> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let pid = process::id();
        let head = EnvelopeHead { flags: 0, sequence, pid, dst: to, src: 0 };
        let datagram = frames(head, Numbers { sequence, pid }, body, FRAME_MAX);
        if datagram.len() > UDP_DATAGRAM_BYTES_MAX {
            return Err(io::Error::from_raw_os_error(crate::wire::errno::EMSGSIZE));
        }
        self.socket.send(&datagram).await.map(|_| ())
    }
}
