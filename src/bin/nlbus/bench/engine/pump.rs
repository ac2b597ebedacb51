//! Connections that are read and written as they are ready.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::ioctl_fionbio;

use super::{Cut, Port};

/// What one read asks for.
const READ_BYTES: usize = 256 * 1024;
/// The longest item that is waited for.
const ITEM_BYTES_MAX: usize = READ_BYTES / 2;
/// How many events one wait takes.
const EVENTS: usize = 128;

/// A connection. Reading has to take whatever there is: it is asked again only when more arrives, or if it
/// filled all of the room that it was given.
pub(crate) trait Stream: Read + Write + AsFd {}

impl<T: Read + Write + AsFd> Stream for T {}

/// What came, to be dealt with.
pub(super) struct Arrival<'a, P> {
    pub(super) port: &'a mut P,
    pub(super) item: &'a [u8],
    pub(super) cut: &'a Cut,
    pub(super) payload: &'a [u8],
    /// What is to be written to the same connection.
    pub(super) out: &'a mut Vec<u8>,
    /// When it was read.
    pub(super) now: Instant,
}

/// All connections of a run.
pub(super) struct Pump<P> {
    epoll: OwnedFd,
    links: Vec<Link<P>>,
    events: Vec<epoll::Event>,
    /// Shared by all: between two reads a link keeps only the beginning of an item.
    buffer: Box<[u8]>,
}

struct Link<P> {
    stream: Box<dyn Stream>,
    port: P,
    half: Vec<u8>,
    out: Vec<u8>,
    written: usize,
    /// The socket is full; epoll says when it is not.
    blocked: bool,
}

impl<P: Port> Pump<P> {
    pub(super) fn new() -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?;
        Ok(Self {
            epoll,
            links: Vec::new(),
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        })
    }

    /// Takes a connection in; its number, counted from 0.
    pub(super) fn add(&mut self, stream: Box<dyn Stream>, port: P) -> anyhow::Result<usize> {
        ioctl_fionbio(&*stream, true).context("cannot make a socket non-blocking")?;
        let at = self.links.len();
        let data = epoll::EventData::new_u64(at as u64);
        epoll::add(&self.epoll, &*stream, data, epoll::EventFlags::IN).context("epoll_ctl")?;
        let (half, out) = (Vec::new(), Vec::new());
        self.links.push(Link { stream, port, half, out, written: 0, blocked: false });
        let (port, out) = self.output(at);
        port.follow_up(out);
        self.flush(at)?;
        Ok(at)
    }

    /// Waits until something is ready, for at most `limit`; the numbers of the connections, in `ready`.
    pub(super) fn wait(&mut self, limit: Duration, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        let limit =
            Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        self.events.clear();
        ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        ready.extend(self.events.iter().map(|event| event.data.u64() as usize));
        Ok(())
    }

    /// Reads what there is, and hands out each message in it.
    pub(super) fn receive(
        &mut self,
        at: usize,
        mut each: impl FnMut(Arrival<'_, P>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Link { stream, port, half, out, .. } = &mut self.links[at];
        loop {
            let mut end = half.len();
            self.buffer[..end].copy_from_slice(half);
            half.clear();
            let room = READ_BYTES - end;
            let read = match stream.read(&mut self.buffer[end..]) {
                Ok(0) => bail!("the broker closed a connection"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error).context("cannot read from the broker"),
            };
            end += read;
            let now = Instant::now();
            let mut start = 0;
            while let Some(cut) = port.cut(&self.buffer[start..end])? {
                let item = &self.buffer[start..start + cut.length];
                if let Some(payload) = cut.payload.clone() {
                    let payload = &item[payload];
                    each(Arrival { port, item, cut: &cut, payload, out, now })?;
                }
                start += cut.length;
            }
            if end - start > ITEM_BYTES_MAX {
                bail!("the broker sent something of more than {ITEM_BYTES_MAX} bytes");
            }
            half.extend_from_slice(&self.buffer[start..end]);
            if read < room {
                break;
            }
        }
        port.follow_up(out);
        Ok(())
    }

    /// The port and the output of a connection, to write more. Follow with [`flush`](Self::flush).
    pub(super) fn output(&mut self, at: usize) -> (&mut P, &mut Vec<u8>) {
        let link = &mut self.links[at];
        (&mut link.port, &mut link.out)
    }

    /// Whether all that was written is with the socket.
    pub(super) fn is_flushed(&self, at: usize) -> bool {
        let link = &self.links[at];
        link.out.is_empty() && !link.blocked
    }

    /// Writes what the socket takes; what it does not take waits until it is ready again.
    pub(super) fn flush(&mut self, at: usize) -> anyhow::Result<()> {
        let link = &mut self.links[at];
        let blocked = match link.write_all() {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) => return Err(error).context("cannot write to the broker"),
        };
        if blocked != link.blocked {
            link.blocked = blocked;
            let out = if blocked { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(at as u64);
            epoll::modify(&self.epoll, &*link.stream, data, epoll::EventFlags::IN | out)
                .context("epoll_ctl")?;
        }
        Ok(())
    }
}

impl<P> Link<P> {
    fn write_all(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        self.stream.flush()
    }
}
