//! Events: one socket per subsystem that listens for everybody.

use std::io;
use std::sync::Arc;

use netlink_sys::Socket;
use tracing::{debug, warn};

use super::NETLINK_GENERIC;
use super::confine::Confined;
use super::socket::NetlinkSocket;
use crate::endpoint::Publisher;
use crate::wire::{MessageBuilder, PAYLOAD_MAX, PAYLOAD_OFFSET, align4, errno, nlm};

/// The groups that are joined: of generic netlink "notify", which tells of families; of any other protocol
/// the first 33, which for NETLINK_ROUTE is all but a few of statistics.
fn groups(protocol: u16) -> Vec<u32> {
    if protocol == NETLINK_GENERIC { vec![16] } else { (1..=33).collect() }
}

/// Turns events on and off. Joining is a system call that any thread may make and that takes effect at
/// once, so an acknowledged subscription misses nothing.
#[derive(Clone)]
pub(super) struct Switch {
    socket: Arc<Socket>,
    groups: Arc<[u32]>,
}

impl Switch {
    pub(super) fn set(&self, on: bool) {
        for group in self.groups.iter() {
            let set = match on {
                true => self.socket.add_membership(*group),
                false => self.socket.drop_membership(*group),
            };
            if let Err(error) = set {
                // not every protocol has every group
                debug!(group, on, %error, "cannot change membership");
            }
        }
    }
}

/// The socket that hears events. In no group until the [`Switch`] is on.
pub(super) struct Monitor {
    socket: NetlinkSocket,
    groups: Arc<[u32]>,
}

impl Monitor {
    pub(super) async fn open(confined: &Confined, protocol: u16) -> io::Result<Self> {
        let socket = NetlinkSocket::open(confined, protocol).await?;
        Ok(Self { socket, groups: groups(protocol).into() })
    }

    pub(super) fn switch(&self) -> Switch {
        Switch { socket: self.socket.shared(), groups: Arc::clone(&self.groups) }
    }

    /// Broadcasts what the kernel tells, until the link ends.
    pub(super) async fn run(self, publisher: Publisher) {
        let mut frame = vec![0; align4(PAYLOAD_OFFSET + PAYLOAD_MAX)];
        loop {
            let length = match self.receive(&publisher, &mut frame).await {
                Ok(length) if length <= PAYLOAD_MAX => length,
                Ok(length) => {
                    warn!(length, "an event is longer than any frame");
                    put_overrun(&mut frame)
                }
                Err(error) if error.raw_os_error() == Some(errno::ENOBUFS) => {
                    warn!("the kernel ran out of room for events");
                    put_overrun(&mut frame)
                }
                Err(error) => return debug!(%error, "no further events"),
            };
            if let Err(error) = publisher.publish_in_place(&mut frame, length).await {
                return debug!(%error, "no further events");
            }
        }
    }

    async fn receive(&self, publisher: &Publisher, frame: &mut [u8]) -> io::Result<usize> {
        let buffer = &mut frame[PAYLOAD_OFFSET..PAYLOAD_OFFSET + PAYLOAD_MAX];
        loop {
            if let Some(length) = self.socket.receive(buffer)? {
                return Ok(length);
            }
            tokio::select! {
                ready = self.socket.readable() => ready?,
                () = publisher.ended() => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }
}

/// Puts NLMSG_OVERRUN with an unknown count where a payload goes: its length.
fn put_overrun(frame: &mut [u8]) -> usize {
    let message = MessageBuilder::new(nlm::OVERRUN, 0).body(&0u32.to_le_bytes()).finish();
    frame[PAYLOAD_OFFSET..PAYLOAD_OFFSET + message.len()].copy_from_slice(&message);
    message.len()
}
