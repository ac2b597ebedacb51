//! The bare relay: what a broker could cost at least.
//!
//! It reads a batch, finds where frames end, and writes them on. There is no routing: no tables, no rights, no
//! names, and nothing in a frame is rewritten. Connections are counted as they come, from 0, and a frame goes to
//! the connection whose number is its `dst`, runs of such frames in one write; `EVERYBODY` is all others.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, bail};
use nlbus::wire::{EnvelopeHead, Frames};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use crate::secure::{Acceptor, Secured};

/// As `dst`: all connections but the sender's.
pub(crate) const EVERYBODY: u32 = u32::MAX;

/// What one read asks for, as in the broker.
const READ_BYTES: usize = 128 * 1024;
/// What may wait for one connection before who sends to it is no longer read.
const WAITING_BYTES_MAX: usize = 4 << 20;
const LISTENER: u64 = u64::MAX;

/// Serves until it is killed. Says where it listens as a broker of ours does.
pub(crate) fn serve(tls: bool) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let acceptor = if tls { Some(Acceptor::from_input()?) } else { None };
    println!("listening on tcp://{}", listener.local_addr()?);
    Relay::new(listener, acceptor)?.run()
}

struct Relay {
    epoll: OwnedFd,
    listener: TcpListener,
    acceptor: Option<Acceptor>,
    links: Vec<Option<Link>>,
    buffer: Box<[u8]>,
    /// Runs of the last read: target, start, end.
    runs: Vec<(u32, usize, usize)>,
}

struct Link {
    socket: Socket,
    half: Vec<u8>,
    /// What the socket did not take, from `at` on.
    waiting: Vec<u8>,
    at: usize,
    /// What it is watched for.
    interest: epoll::EventFlags,
}

enum Socket {
    Plain(TcpStream),
    Secured(Box<Secured<rustls::ServerConnection>>),
}

impl Relay {
    fn new(listener: TcpListener, acceptor: Option<Acceptor>) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN)?;
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Ok(Self { epoll, listener, acceptor, links: Vec::new(), buffer, runs: Vec::new() })
    }

    fn run(mut self) -> anyhow::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(128);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                let at = event.data.u64();
                if at == LISTENER {
                    self.accept()?;
                    continue;
                }
                let (at, flags) = (at as usize, event.flags);
                if flags.contains(epoll::EventFlags::OUT) {
                    self.write(at, &[])?;
                    self.watch_all()?;
                }
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP) {
                    self.read(at)?;
                }
            }
        }
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nodelay(true)?;
        let socket = match &self.acceptor {
            None => {
                stream.set_nonblocking(true)?;
                Socket::Plain(stream)
            }
            Some(acceptor) => Socket::Secured(Box::new(acceptor.accept(stream)?)),
        };
        let interest = epoll::EventFlags::IN;
        let data = epoll::EventData::new_u64(self.links.len() as u64);
        epoll::add(&self.epoll, &socket, data, interest)?;
        let (half, waiting) = (Vec::new(), Vec::new());
        self.links.push(Some(Link { socket, half, waiting, at: 0, interest }));
        Ok(())
    }

    fn read(&mut self, at: usize) -> anyhow::Result<()> {
        loop {
            let Some(link) = &mut self.links[at] else { return Ok(()) };
            let start = link.half.len();
            self.buffer[..start].copy_from_slice(&link.half);
            link.half.clear();
            let room = READ_BYTES - start;
            let read = match link.socket.read(&mut self.buffer[start..]) {
                Ok(0) => {
                    self.links[at] = None;
                    return Ok(());
                }
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.links[at] = None;
                    return Ok(());
                }
            };
            let end = start + read;
            self.runs.clear();
            let mut frames = Frames::new(&mut self.buffer[..end], nlbus::wire::FRAME_MAX);
            while let Some((start, frame)) = frames.next_frame() {
                let dst = EnvelopeHead::read(frame).map_or(EVERYBODY, |(_, head)| head.dst);
                let end = start + frame.len();
                match self.runs.last_mut() {
                    Some((last, _, last_end)) if *last == dst => *last_end = end,
                    _ => self.runs.push((dst, start, end)),
                }
            }
            let consumed = frames.consumed();
            if let Some(fault) = frames.fault() {
                bail!("connection {at} sent what is not a frame: {fault}");
            }
            link.half.extend_from_slice(&self.buffer[consumed..end]);
            self.send_runs(at)?;
            let more = matches!(&self.links[at], Some(Link { socket: Socket::Secured(_), .. }));
            if read < room || !more {
                return Ok(());
            }
        }
    }

    fn send_runs(&mut self, from: usize) -> anyhow::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let runs = std::mem::take(&mut self.runs);
        let mut full = false;
        for (dst, start, end) in &runs {
            let bytes = &buffer[*start..*end];
            if *dst == EVERYBODY {
                for to in (0..self.links.len()).filter(|to| *to != from) {
                    full |= self.write(to, bytes)?;
                }
            } else {
                full |= self.write(*dst as usize, bytes)?;
            }
        }
        self.buffer = buffer;
        self.runs = runs;
        if full {
            // nobody is read until all have room: the loads have one direction each
            self.watch_all()?;
        }
        Ok(())
    }

    /// Writes what the socket takes; whether too much waits.
    fn write(&mut self, to: usize, bytes: &[u8]) -> anyhow::Result<bool> {
        let Some(Some(link)) = self.links.get_mut(to) else { return Ok(false) };
        let written = if link.waiting.is_empty() {
            let result = write_some(&mut link.socket, bytes);
            result.map(|count| link.waiting.extend_from_slice(&bytes[count..]))
        } else {
            link.waiting.extend_from_slice(bytes);
            let result = write_some(&mut link.socket, &link.waiting[link.at..]);
            result.map(|count| link.at += count)
        };
        if link.at == link.waiting.len() {
            link.waiting.clear();
            link.at = 0;
        }
        if written.is_err() {
            self.links[to] = None;
            return Ok(false);
        }
        let blocked = !link.waiting.is_empty() || link.socket.flush().is_err();
        let full = link.waiting.len() - link.at > WAITING_BYTES_MAX;
        let mut interest = link.interest;
        interest.set(epoll::EventFlags::OUT, blocked);
        Self::watch(&self.epoll, to, link, interest)?;
        Ok(full)
    }

    /// Reads from all connections if none has too much waiting, else from none.
    fn watch_all(&mut self) -> anyhow::Result<()> {
        let full = self
            .links
            .iter()
            .flatten()
            .any(|link| link.waiting.len() - link.at > WAITING_BYTES_MAX);
        for (at, link) in self.links.iter_mut().enumerate() {
            let Some(link) = link else { continue };
            let mut interest = link.interest;
            interest.set(epoll::EventFlags::IN, !full);
            Self::watch(&self.epoll, at, link, interest)?;
        }
        Ok(())
    }

    fn watch(
        epoll: &OwnedFd,
        at: usize,
        link: &mut Link,
        interest: epoll::EventFlags,
    ) -> anyhow::Result<()> {
        if interest != link.interest {
            link.interest = interest;
            let data = epoll::EventData::new_u64(at as u64);
            epoll::modify(epoll, &link.socket, data, interest).context("epoll_ctl")?;
        }
        Ok(())
    }
}

fn write_some(socket: &mut Socket, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes),
            Self::Secured(stream) => stream.read(bytes),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Secured(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Secured(stream) => stream.flush(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(stream) => stream.as_fd(),
            Self::Secured(stream) => stream.as_fd(),
        }
    }
}
