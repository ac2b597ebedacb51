//! Netlink through the broker, beside a netlink socket of one's own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nlbus::wire::{
    Envelope, EnvelopeHead, ErrorMessage, Header, MessageBuilder, Messages, flag, nlm,
};

use super::Bench;
use super::engine::frames::Link;
use super::engine::{Counts, Outcome, Watch, histogram};
use super::report::{Report, Row};
use super::{Meter, Usage};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
/// The loopback interface has this index in every namespace.
const LOOPBACK_INDEX: i32 = 1;
/// The longest datagram that the kernel makes of a dump.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

/// One link by its index, and all addresses: each through the broker and without it.
pub(super) fn measure(bench: &Bench<'_>) -> anyhow::Result<Report> {
    let mut broker = ThroughBroker::open(bench)?;
    let mut raw = Raw::open()?;
    let seconds = bench.args.seconds / 4;
    let mut rows = Vec::new();
    for (request, dump, name) in
        [(get_link(), false, "getlink"), (get_addresses(), true, "getaddr")]
    {
        let mut meter = Meter::new(bench, name);
        let through = repeat(&mut broker, &request, dump, seconds, &mut meter)?;
        rows.push(row(name, through, meter.used()?));
        let alone = repeat(&mut raw, &request, dump, seconds, &mut ())?;
        rows.push(row(&format!("{name} raw"), alone, None));
    }
    Ok(Report::of(bench, rows))
}

fn row(name: &str, outcome: Outcome, usage: Option<Usage>) -> Row {
    Row { name: name.to_owned(), plan: None, outcome, usage }
}

fn get_link() -> Vec<u8> {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&LOOPBACK_INDEX.to_le_bytes());
    MessageBuilder::new(RTM_GETLINK, nlm::REQUEST).body(&body).finish()
}

fn get_addresses() -> Vec<u8> {
    MessageBuilder::new(RTM_GETADDR, nlm::REQUEST | nlm::DUMP).body(&[0; 8]).finish()
}

/// Where netlink requests go.
trait Asked {
    /// Asks, and takes the answer to its end: how many messages it had.
    fn ask(&mut self, request: &mut [u8], dump: bool) -> anyhow::Result<u64>;
}

/// Asks one after another. The same request has the same number of messages in each answer, or the system
/// changed under it; an answer to another request is an error at once.
fn repeat(
    asked: &mut impl Asked,
    request: &[u8],
    dump: bool,
    seconds: Duration,
    watch: &mut dyn Watch,
) -> anyhow::Result<Outcome> {
    let mut request = request.to_vec();
    let mut latency = histogram()?;
    let mut counts = Counts::default();
    asked.ask(&mut request, dump)?;
    watch.begin();
    let start = Instant::now();
    loop {
        let now = Instant::now();
        if now - start >= seconds {
            break;
        }
        watch.progress((now - start).as_secs_f64() / seconds.as_secs_f64());
        counts.sent += 1;
        if asked.ask(&mut request, dump)? == 0 {
            bail!("the kernel answered nothing");
        }
        counts.received += 1;
        latency.saturating_record(now.elapsed().as_nanos() as u64);
    }
    let measured = start.elapsed().as_secs_f64();
    watch.end();
    Ok(Outcome { messages: counts.received, seconds: measured, latency, counts })
}

struct ThroughBroker {
    link: Link,
    head: EnvelopeHead,
    frame: Vec<u8>,
}

impl ThroughBroker {
    fn open(bench: &Bench<'_>) -> anyhow::Result<Self> {
        let mut link = bench.nlbus.connect()?;
        let dst = link.discover("route").context("no kernel is behind this broker")?;
        let head = EnvelopeHead { flags: flag::ASK, dst, ..EnvelopeHead::default() };
        Ok(Self { link, head, frame: Vec::new() })
    }
}

impl Asked for ThroughBroker {
    fn ask(&mut self, request: &mut [u8], dump: bool) -> anyhow::Result<u64> {
        self.head.sequence += 1;
        number(request, self.head.sequence);
        self.frame.clear();
        self.head.emit(request, &mut self.frame)?;
        self.link.send(&self.frame)?;
        let mut found = 0;
        loop {
            self.link.receive(&mut self.frame)?;
            let envelope = Envelope::parse(&self.frame)?;
            if envelope.head.sequence != self.head.sequence {
                bail!("an answer to another request came");
            }
            if messages(envelope.payload()?, self.head.sequence, dump, &mut found)? {
                return Ok(found);
            }
        }
    }
}

struct Raw {
    socket: Socket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Raw {
    fn open() -> anyhow::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        socket.bind_auto().context("cannot bind a netlink socket")?;
        Ok(Self { socket, sequence: 0, datagram: Vec::with_capacity(DATAGRAM_BYTES_MAX) })
    }
}

impl Asked for Raw {
    fn ask(&mut self, request: &mut [u8], dump: bool) -> anyhow::Result<u64> {
        self.sequence += 1;
        number(request, self.sequence);
        self.socket.send(request, 0)?;
        let mut found = 0;
        loop {
            self.datagram.clear();
            self.socket.recv(&mut self.datagram, 0)?;
            if messages(&self.datagram, self.sequence, dump, &mut found)? {
                return Ok(found);
            }
        }
    }
}

/// Writes a sequence number into a netlink message.
fn number(request: &mut [u8], sequence: u32) {
    if let Some(place) = request.get_mut(8..12) {
        place.copy_from_slice(&sequence.to_le_bytes());
    }
}

/// Counts the messages of one datagram; whether the answer has its end.
fn messages(datagram: &[u8], sequence: u32, dump: bool, found: &mut u64) -> anyhow::Result<bool> {
    for message in Messages::new(datagram) {
        let message = message?;
        let Header { kind, sequence: answered, .. } = message.header;
        if answered != sequence {
            bail!("the kernel answered another request");
        }
        match kind {
            nlm::DONE => return Ok(true),
            nlm::ERROR => {
                let code = ErrorMessage::parse(&message).map(|error| error.code)?;
                bail!("the kernel answered with error {}", -code);
            }
            _ => *found += 1,
        }
    }
    Ok(!dump)
}
