//! Netlink without the bus, to make changes and to know what the kernel itself says.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nlbus::wire::{ErrorMessage, Header, Message, nlm};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::PATIENCE;
use super::message::numbered;
use super::netns::Netns;

/// A blocking netlink socket.
pub(crate) struct Raw {
    socket: Socket,
    sequence: u32,
}

/// How a message goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Send {
    /// By send(2).
    WithoutAddress,
    /// By sendto(2), to port id 0, which is the kernel.
    ToTheKernel,
}

impl Raw {
    /// Opens a socket with this thread's rights, in its namespace.
    pub(crate) fn open(protocol: u16) -> Self {
        let mut socket = Socket::new(isize::from(protocol as i16)).unwrap();
        socket.bind_auto().unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        Self { socket, sequence: 0 }
    }

    pub(crate) fn open_in(netns: &Netns, protocol: u16) -> Self {
        netns.inside(|| Self::open(protocol))
    }

    /// Hears what the kernel tells: in the namespace, in the groups 1 to 33, those that there are.
    pub(crate) fn listen_in(netns: &Netns, protocol: u16) -> Self {
        let raw = Self::open_in(netns, protocol);
        for group in 1..=33 {
            let _ = raw.socket.add_membership(group);
        }
        raw
    }

    /// The next datagram.
    pub(crate) fn receive(&self) -> Vec<u8> {
        self.socket.recv_from_full().unwrap().0
    }

    /// Makes a change; what the kernel answers: an error number if it says no.
    pub(crate) fn change(&mut self, message: Vec<u8>, how: Send) -> Result<(), i32> {
        self.sequence += 1;
        let message = numbered(message, self.sequence, 0);
        send(&self.socket, &message, how).unwrap();
        let answer = self.receive();
        let answer = Message::parse(&answer).unwrap();
        assert_eq!((answer.header.kind, answer.header.sequence), (nlm::ERROR, self.sequence));
        match ErrorMessage::parse(&answer).unwrap().code {
            0 => Ok(()),
            code => Err(-code),
        }
    }

    /// The messages of the kernel's answer to a dump, without the closing NLMSG_DONE.
    pub(crate) fn dump(&mut self, message: Vec<u8>) -> Vec<Vec<u8>> {
        self.sequence += 1;
        send(&self.socket, &numbered(message, self.sequence, 0), Send::WithoutAddress).unwrap();
        let mut found = Vec::new();
        loop {
            let datagram = self.receive();
            for message in nlbus::wire::Messages::new(&datagram) {
                let message = message.unwrap();
                match message.header.kind {
                    nlm::DONE => return found,
                    nlm::ERROR => panic!("{:?}", ErrorMessage::parse(&message)),
                    _ => found.push(message.bytes().to_vec()),
                }
            }
        }
    }
}

fn send(socket: &Socket, message: &[u8], how: Send) -> io::Result<usize> {
    match how {
        Send::WithoutAddress => socket.send(message, 0),
        Send::ToTheKernel => socket.send_to(message, &SocketAddr::new(0, 0), 0),
    }
}

/// Has this thread give up every capability for good.
pub(crate) fn give_up_capabilities() {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).unwrap();
}

/// The header of what a datagram begins with.
pub(crate) fn header(datagram: &[u8]) -> Header {
    Header::parse(datagram).unwrap()
}
