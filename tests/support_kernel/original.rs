//! A client as the original's: it knows no HELLO, sends whole frames, and takes what comes.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use nlbus::url::{BusUrl, TransportKind};
use nlbus::wire::{Envelope, EnvelopeHead, LEGACY_FRAME_MAX, Messages, flag, nlm};
use serde_json::Value;

use super::PATIENCE;

/// A socket of either kind.
pub(crate) trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

pub(crate) struct Original {
    stream: Box<dyn Stream>,
}

impl Original {
    pub(crate) fn connect(url: &BusUrl) -> Self {
        match url.transport() {
            TransportKind::Tcp => {
                let address = url.to_string().trim_start_matches("tcp://").to_owned();
                Self::over_tcp(TcpStream::connect(address).unwrap())
            }
            _ => {
                let path = url.to_string().trim_start_matches("unix://").to_owned();
                Self::over_unix(UnixStream::connect(path).unwrap())
            }
        }
    }

    pub(crate) fn over_tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: Box::new(stream) }
    }

    pub(crate) fn over_unix(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: Box::new(stream) }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(frame).unwrap();
    }

    /// The next frame, which is never longer than such a client takes.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 4];
        self.stream.read_exact(&mut frame).unwrap();
        let length = u32::from_le_bytes(frame[..].try_into().unwrap()) as usize;
        assert!((28..=LEGACY_FRAME_MAX).contains(&length), "a frame of {length} bytes");
        frame.resize(length, 0);
        self.stream.read_exact(&mut frame[4..]).unwrap();
        frame
    }

    /// Sends a request of netlink, and takes the frames of its answer: to the end of a dump, else one.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Vec<Vec<u8>> {
        self.send(request);
        let mut frames = Vec::new();
        loop {
            let frame = self.receive();
            assert_eq!(head(&frame).flags & flag::CONTROL, 0, "nobody asked for control");
            let last = Messages::new(payload(&frame)).map(Result::unwrap).last().unwrap();
            let over = last.header.kind == nlm::DONE || last.header.flags & nlm::MULTI == 0;
            frames.push(frame);
            if over {
                return frames;
            }
        }
    }

    /// Asserts that the other end closes the connection and sends nothing more.
    pub(crate) fn assert_closed(&mut self) {
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The bytes of a captured frame.
pub(crate) fn vector(name: &str) -> Vec<u8> {
    let text = include_str!("../../proto-spec/vectors/original.json");
    let vectors: Vec<Value> = serde_json::from_str(text).unwrap();
    let found = vectors.iter().find(|vector| vector["name"] == name);
    let hex = found.unwrap_or_else(|| panic!("no vector {name}"))["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn head(frame: &[u8]) -> EnvelopeHead {
    EnvelopeHead::read(frame).unwrap().1
}

pub(crate) fn payload(frame: &[u8]) -> &[u8] {
    Envelope::parse(frame).unwrap().payload().unwrap()
}

/// A request frame as a client of the original sends it: no flags, `src` 0, to 0x00010003.
pub(crate) fn frame(sequence: u32, message: &[u8]) -> Vec<u8> {
    frame_with(EnvelopeHead { flags: 0, sequence, pid: 77, dst: 0x0001_0003, src: 0 }, message)
}

/// A request frame of who knows of ASK, from `port`.
pub(crate) fn asking(sequence: u32, port: u32, message: &[u8]) -> Vec<u8> {
    let (flags, dst) = (flag::ASK, 0x0001_0003);
    frame_with(EnvelopeHead { flags, sequence, pid: 77, dst, src: port }, message)
}

fn frame_with(head: EnvelopeHead, message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    head.emit(message, &mut frame).unwrap();
    frame
}
