//! A server that is none: it greets, and then does what the test says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use nlbus::url::BusUrl;
use nlbus::wire::{Command, ControlAttribute, ControlBuilder, EnvelopeHead, flag};

use super::frames::head_of;

/// Answers every control message with an ACK that says what HELLO and DISCOVER need, and hands the first
/// other frame to `then`. The connection closes when that returns.
pub(crate) fn fake_server(
    then: impl FnOnce(&mut TcpStream, EnvelopeHead) + Send + 'static,
) -> (BusUrl, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serving = spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        loop {
            let head = read_head(&mut socket);
            if head.flags & flag::CONTROL == 0 {
                return then(&mut socket, head);
            }
            let mut answer = Vec::new();
            let swapped = EnvelopeHead { dst: head.src, src: head.dst, ..head };
            ControlBuilder::new(&mut answer, swapped, Command::Ack)
                .u32(ControlAttribute::Version, 1)
                .unwrap()
                .u32(ControlAttribute::FrameMax, 65_560)
                .unwrap()
                .u32(ControlAttribute::Addr, 0x0001_0003)
                .unwrap()
                .finish();
            socket.write_all(&answer).unwrap();
        }
    });
    (url, serving)
}

fn read_head(socket: &mut TcpStream) -> EnvelopeHead {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut frame = length.to_vec();
    frame.resize(u32::from_le_bytes(length) as usize, 0);
    socket.read_exact(&mut frame[4..]).unwrap();
    head_of(&frame)
}
