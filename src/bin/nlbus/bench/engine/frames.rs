//! Our own frames, over plain sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};
use nlbus::url::{BusUrl, TransportKind, UnixAddress};
use nlbus::wire::{
    Command, Control, ControlAttribute, ControlBuilder, Envelope, EnvelopeHead, ErrorMessage,
    FRAME_MAX, Message, PAYLOAD_OFFSET, PROTOCOL_VERSION, TooBig, flag, frame_length, mode,
};

use super::{Cut, Dialect, Port, Role, Stream};

/// How long a broker may take to answer while nothing else goes on.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Tells one run from another, on one broker and over time.
pub(crate) fn new_run() -> u32 {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    (nanoseconds as u32) ^ std::process::id().rotate_left(16)
}

/// How connections are made.
type Dial = Box<dyn Fn() -> anyhow::Result<Box<dyn Stream>>>;

/// A broker of ours.
pub(crate) struct Nlbus {
    dial: Dial,
    run: u32,
}

impl Nlbus {
    /// The broker at `url`.
    ///
    /// # Errors
    /// If the URL is neither tcp nor unix: TLS and datagrams are not driven.
    pub(crate) fn new(url: BusUrl) -> anyhow::Result<Self> {
        if url.is_tls() || !matches!(url.transport(), TransportKind::Tcp | TransportKind::Unix) {
            bail!("only tcp:// and unix:// are measured, not {url}");
        }
        let dialed = move || dial(&url).with_context(|| format!("cannot connect to {url}"));
        Ok(Self::over(Box::new(dialed)))
    }

    /// The broker at the other end of connections that `dial` makes.
    pub(crate) fn over(dial: Dial) -> Self {
        Self { dial, run: new_run() }
    }

    /// The name that is provided and asked in this run.
    fn name(&self) -> String {
        format!("bench-{:08x}", self.run)
    }

    /// Connects and says HELLO.
    pub(crate) fn connect(&self) -> anyhow::Result<Link> {
        let mut link = Link { stream: (self.dial)()?, sequence: 0 };
        link.control(Command::Hello, |control| {
            control
                .u32(ControlAttribute::Version, PROTOCOL_VERSION)?
                .u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
        })?;
        Ok(link)
    }
}

impl Dialect for Nlbus {
    type Port = FramePort;

    fn open(&self, role: Role) -> anyhow::Result<(Box<dyn Stream>, FramePort)> {
        let mut link = self.connect()?;
        let mut head = EnvelopeHead { pid: std::process::id(), ..EnvelopeHead::default() };
        match role {
            Role::Idles | Role::Publishes => {}
            Role::Asks(_) | Role::Pushes(_) => {
                head.dst = link.discover(&self.name())?;
                head.flags = if matches!(role, Role::Asks(_)) { flag::ASK } else { 0 };
            }
            Role::Answers => drop(link.provide(&self.name(), 0)?),
            Role::Pulls => drop(link.provide(&self.name(), mode::PULL)?),
            Role::Subscribes => drop(link.control(Command::Subscribe, |control| Ok(control))?),
        }
        Ok((link.stream, FramePort { head }))
    }

    fn run(&self) -> u32 {
        self.run
    }
}

fn dial(url: &BusUrl) -> anyhow::Result<Box<dyn Stream>> {
    if let Some(address) = url.unix_address() {
        let address = match address {
            UnixAddress::Path(path) => SocketAddr::from_pathname(path)?,
            UnixAddress::Abstract(name) => SocketAddr::from_abstract_name(name)?,
        };
        let stream = UnixStream::connect_addr(&address)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        return Ok(Box::new(stream));
    }
    let host = url.host().ok_or_else(|| anyhow!("a URL without a host"))?.to_string();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, url.port().unwrap_or_default()))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    Ok(Box::new(stream))
}

/// A link that one thread uses, to say one thing after another.
pub(crate) struct Link {
    stream: Box<dyn Stream>,
    sequence: u32,
}

impl Link {
    /// The address of a name.
    pub(crate) fn discover(&mut self, name: &str) -> anyhow::Result<u32> {
        let found =
            self.control(Command::Discover, |control| control.string(ControlAttribute::Host, name));
        found?.ok_or_else(|| anyhow!("the broker knows {name:?}, but not its address"))
    }

    fn provide(&mut self, name: &str, mode: u32) -> anyhow::Result<Option<u32>> {
        let provided = self.control(Command::Provide, |control| {
            let control = control.string(ControlAttribute::Host, name)?;
            if mode == 0 { Ok(control) } else { control.u32(ControlAttribute::Mode, mode) }
        });
        provided.context("to measure, a link needs the right to provide (docs/config.md)")
    }

    /// Sends a command, and takes its answer: the ADDR in it.
    fn control(
        &mut self,
        command: Command,
        fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
    ) -> anyhow::Result<Option<u32>> {
        self.sequence += 1;
        let head = EnvelopeHead { sequence: self.sequence, ..EnvelopeHead::default() };
        let mut frame = Vec::new();
        fill(ControlBuilder::new(&mut frame, head, command))?.finish();
        self.send(&frame)?;
        loop {
            self.receive(&mut frame)?;
            let envelope = Envelope::parse(&frame)?;
            if envelope.head.flags & flag::CONTROL == 0 {
                continue;
            }
            let answer = Control::parse(envelope.payload()?)?;
            return match answer.command() {
                Some(Command::Ack) => Ok(answer.addr),
                _ => {
                    let text = answer.error.unwrap_or("no reason is given").to_owned();
                    Err(anyhow!("the broker refuses {}: {text}", command.symbol()))
                }
            };
        }
    }

    /// Writes a whole frame.
    pub(crate) fn send(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(frame).context("cannot write to the broker")
    }

    /// Reads a whole frame into `frame`, in place of what it had.
    pub(crate) fn receive(&mut self, frame: &mut Vec<u8>) -> anyhow::Result<()> {
        frame.resize(4, 0);
        self.stream.read_exact(frame).context("cannot read from the broker")?;
        let length = frame_length(frame, FRAME_MAX).map_err(|fault| anyhow!("{fault}"))?;
        frame.resize(length.unwrap_or(PAYLOAD_OFFSET), 0);
        self.stream.read_exact(&mut frame[4..]).context("cannot read from the broker")
    }
}

/// Frames as our brokers take them.
#[derive(Debug)]
pub(crate) struct FramePort {
    /// What stands before each payload, but for the number.
    pub(crate) head: EnvelopeHead,
}

impl Port for FramePort {
    #[inline]
    fn emit(&mut self, payload: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        self.head.sequence = self.head.sequence.wrapping_add(1);
        Ok(self.head.emit(payload, out)?)
    }

    #[inline]
    fn cut(&mut self, bytes: &[u8]) -> anyhow::Result<Option<Cut>> {
        let length = frame_length(bytes, FRAME_MAX).map_err(|fault| anyhow!("{fault}"))?;
        let Some(length) = length.filter(|length| *length <= bytes.len()) else {
            return Ok(None);
        };
        let Some((_, head)) = EnvelopeHead::read(bytes) else { return Ok(None) };
        if head.flags & (flag::EXCEPTION | flag::CONTROL) != 0 {
            return Err(complaint(&bytes[..length]));
        }
        let [l0, l1] = [bytes[24], bytes[25]];
        let end = 24 + usize::from(u16::from_le_bytes([l0, l1]));
        if end < PAYLOAD_OFFSET || end > length {
            bail!("a frame came whose payload does not fit it");
        }
        Ok(Some(Cut { length, payload: Some(PAYLOAD_OFFSET..end) }))
    }

    #[inline]
    fn answer(&mut self, item: &[u8], _: &Cut, out: &mut Vec<u8>) -> anyhow::Result<()> {
        let Some((_, asked)) = EnvelopeHead::read(item) else { bail!("a request was cut short") };
        let head = EnvelopeHead {
            flags: flag::RESPONSE | flag::LAST,
            dst: asked.src,
            src: self.head.src,
            ..asked
        };
        let start = out.len();
        out.extend_from_slice(item);
        head.write_over(&mut out[start..]);
        Ok(())
    }
}

#[cold]
fn complaint(frame: &[u8]) -> anyhow::Error {
    let payload = Envelope::parse(frame).and_then(|envelope| envelope.payload());
    let message = payload.and_then(Message::parse);
    match message.as_ref().map(ErrorMessage::parse) {
        Ok(Ok(error)) => anyhow!("not delivered: {}", error.text.unwrap_or("no reason is given")),
        _ => anyhow!("the broker sent a frame that nobody asked for"),
    }
}
