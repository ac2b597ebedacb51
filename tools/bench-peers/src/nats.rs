//! NATS: subjects of three bytes, a queue group for pullers, an inbox for each asker.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, bail};

use crate::engine::{Cut, Dialect, Port, Role, Stream};

const CONNECT: &str =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\"}\r\n";

/// A server.
pub(crate) struct Nats {
    pub(crate) port: u16,
}

impl Dialect for Nats {
    type Port = NatsPort;

    fn open(&self, role: Role) -> anyhow::Result<(Box<dyn Stream>, NatsPort)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        let subscription = match role {
            Role::Asks(number) => format!("SUB in{number} 1\r\n"),
            Role::Answers => "SUB req 1\r\n".to_owned(),
            Role::Pulls => "SUB psh q 1\r\n".to_owned(),
            Role::Subscribes => "SUB pub 1\r\n".to_owned(),
            Role::Pushes(_) | Role::Publishes | Role::Idles => String::new(),
        };
        let to = match role {
            Role::Asks(number) => format!("PUB req in{number} "),
            Role::Pushes(_) => "PUB psh ".to_owned(),
            _ => "PUB pub ".to_owned(),
        };
        stream.write_all(format!("{CONNECT}{subscription}PING\r\n").as_bytes())?;
        let mut said = Vec::new();
        while !said.ends_with(b"PONG\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("nats-server closed the connection")?;
            said.push(byte[0]);
        }
        Ok((Box::new(stream), NatsPort { to: to.into_bytes(), pinged: false }))
    }

    fn run(&self) -> u32 {
        1
    }
}

pub(crate) struct NatsPort {
    /// What a message begins with, up to its length.
    to: Vec<u8>,
    pinged: bool,
}

impl Port for NatsPort {
    #[inline]
    fn emit(&mut self, payload: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        out.extend_from_slice(&self.to);
        push_number(payload.len(), out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    #[inline]
    fn cut(&mut self, bytes: &[u8]) -> anyhow::Result<Option<Cut>> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line = &bytes[..end - 1];
        if line.starts_with(b"MSG ") {
            let size = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
            let payload = end + 1..end + 1 + number(size)?;
            let length = payload.end + 2;
            return Ok((length <= bytes.len()).then_some(Cut { length, payload: Some(payload) }));
        }
        if line.starts_with(b"-ERR") {
            bail!("nats-server says {}", String::from_utf8_lossy(line));
        }
        self.pinged |= line.starts_with(b"PING");
        Ok(Some(Cut { length: end + 1, payload: None }))
    }

    fn answer(&mut self, item: &[u8], cut: &Cut, out: &mut Vec<u8>) -> anyhow::Result<()> {
        // MSG subject sid reply-to size
        let reply_to =
            item.split(|byte| *byte == b' ').nth(3).context("a request has a reply-to")?;
        let payload = &item[cut.payload.clone().unwrap_or_default()];
        out.extend_from_slice(b"PUB ");
        out.extend_from_slice(reply_to);
        out.push(b' ');
        push_number(payload.len(), out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn follow_up(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.pinged) {
            out.extend_from_slice(b"PONG\r\n");
        }
    }
}

/// Decimal digits as a number.
pub(crate) fn number(digits: &[u8]) -> anyhow::Result<usize> {
    let mut number = 0_usize;
    for digit in digits {
        if !digit.is_ascii_digit() || number > 1 << 32 {
            bail!("{:?} is no length", String::from_utf8_lossy(digits));
        }
        number = number * 10 + usize::from(digit - b'0');
    }
    Ok(number)
}

/// A number as decimal digits.
pub(crate) fn push_number(number: usize, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
