//! The reference is `ip -j` on the same kernel: on this host as it is, and in a namespace full of
//! everything.

mod against_ip;
mod hostile;
mod made_up;
mod namespace;

use bytes::Bytes;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Family, Object, Options, Table, render_json, render_table};

const NLMSG_DONE: u16 = 3;

pub(super) const OBJECTS: [Object; 5] =
    [Object::Link, Object::Addr, Object::Route, Object::Neigh, Object::Rule];

/// What the kernel of this thread's namespace answers to the requests of `object`.
pub(super) fn dumps(object: Object, options: &Options) -> Vec<Vec<Bytes>> {
    let socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    object.requests(options).iter().map(|request| dump(&socket, request)).collect()
}

fn dump(socket: &Socket, request: &[u8]) -> Vec<Bytes> {
    socket.send(request, 0).unwrap();
    let mut messages = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().unwrap();
        let mut rest = Bytes::from(datagram);
        while !rest.is_empty() {
            let len = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let message = rest.slice(..len);
            rest = rest.slice(len.next_multiple_of(4).min(rest.len())..);
            match u16::from_ne_bytes(message[4..6].try_into().unwrap()) {
                NLMSG_DONE => return messages,
                kind => assert!(kind >= 16, "the kernel refused: {message:?}"),
            }
            messages.push(message);
        }
    }
}

pub(super) fn table(object: Object, options: &Options, dumps: &[Vec<Bytes>]) -> String {
    let mut text = Vec::new();
    render_table(object, options, dumps, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}
