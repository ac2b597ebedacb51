//! Redis: PUBLISH for requests, answers and broadcasts, a list for pushes.
//!
//! A puller takes what there is, up to 512 messages, in one BLMPOP, and waits in the server while there is
//! nothing; BLPOP would be a round trip for each message.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, bail};

use crate::engine::{Cut, Dialect, Port, Role, Stream};
use crate::nats::{number, push_number};

const TAKE: &[u8] =
    b"*7\r\n$6\r\nBLMPOP\r\n$1\r\n0\r\n$1\r\n1\r\n$3\r\npsh\r\n$4\r\nLEFT\r\n$5\r\nCOUNT\r\n$3\r\n512\r\n";

/// A server.
pub(crate) struct Redis {
    pub(crate) port: u16,
}

impl Dialect for Redis {
    type Port = RedisPort;

    fn open(&self, role: Role) -> anyhow::Result<(Box<dyn Stream>, RedisPort)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        let subscription = match role {
            Role::Asks(number) => format!("SUBSCRIBE {}\r\n", inbox(number as u32)),
            Role::Answers => "SUBSCRIBE req\r\n".to_owned(),
            Role::Subscribes => "SUBSCRIBE pub\r\n".to_owned(),
            Role::Pulls | Role::Pushes(_) | Role::Publishes | Role::Idles => String::new(),
        };
        // with RESP3 a connection that has subscribed may publish
        stream.write_all(format!("HELLO 3\r\n{subscription}PING\r\n").as_bytes())?;
        let mut said = Vec::new();
        while !said.ends_with(b"+PONG\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("redis-server closed the connection")?;
            said.push(byte[0]);
        }
        let pulls = role == Role::Pulls;
        let to: &[u8] = match role {
            Role::Asks(_) => b"*3\r\n$7\r\nPUBLISH\r\n$3\r\nreq\r\n",
            Role::Pushes(_) => b"*3\r\n$5\r\nRPUSH\r\n$3\r\npsh\r\n",
            _ => b"*3\r\n$7\r\nPUBLISH\r\n$3\r\npub\r\n",
        };
        let port = RedisPort { to: to.to_vec(), pulls, take: pulls, ..RedisPort::default() };
        Ok((Box::new(stream), port))
    }

    fn run(&self) -> u32 {
        1
    }
}

fn inbox(number: u32) -> String {
    format!("i{number:02}")
}

#[derive(Default)]
pub(crate) struct RedisPort {
    /// What a message begins with, up to its length.
    to: Vec<u8>,
    pulls: bool,
    /// It is time for the next BLMPOP.
    take: bool,
    /// The list's name has come, its elements are next.
    named: bool,
    /// How many strings come before the next payload.
    skip: usize,
    /// How many payloads come then.
    payloads: usize,
}

impl Port for RedisPort {
    #[inline]
    fn emit(&mut self, payload: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        out.extend_from_slice(&self.to);
        push_string(payload, out);
        Ok(())
    }

    #[inline]
    fn cut(&mut self, bytes: &[u8]) -> anyhow::Result<Option<Cut>> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let [kind, rest @ .., _] = &bytes[..end] else { bail!("redis-server sent an empty line") };
        let mut cut = Cut { length: end + 1, payload: None };
        match kind {
            b':' | b'+' => {}
            b'*' | b'>' => {
                let count = number(rest)?;
                if !self.pulls {
                    (self.skip, self.payloads) = (count.saturating_sub(1), 1);
                } else if self.named {
                    (self.named, self.payloads) = (false, count);
                } else {
                    (self.named, self.skip) = (true, 1);
                }
            }
            b'$' => {
                let payload = end + 1..end + 1 + number(rest)?;
                cut.length = payload.end + 2;
                if cut.length > bytes.len() {
                    return Ok(None);
                }
                if self.skip > 0 {
                    self.skip -= 1;
                } else {
                    self.payloads = self.payloads.saturating_sub(1);
                    self.take |= self.pulls && self.payloads == 0;
                    cut.payload = Some(payload);
                }
            }
            _ => bail!("redis-server says {}", String::from_utf8_lossy(rest)),
        }
        Ok(Some(cut))
    }

    fn answer(&mut self, item: &[u8], cut: &Cut, out: &mut Vec<u8>) -> anyhow::Result<()> {
        let payload = &item[cut.payload.clone().unwrap_or_default()];
        // there is no reply-to: the asker's number stands in the payload
        let asker = payload.get(4..8).and_then(|bytes| bytes.first_chunk());
        let asker = asker.context("a request is cut short")?;
        out.extend_from_slice(b"*3\r\n$7\r\nPUBLISH\r\n");
        push_string(inbox(u32::from_le_bytes(*asker)).as_bytes(), out);
        push_string(payload, out);
        Ok(())
    }

    fn follow_up(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.take) {
            out.extend_from_slice(TAKE);
        }
    }
}

fn push_string(string: &[u8], out: &mut Vec<u8>) {
    out.push(b'$');
    push_number(string.len(), out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(string);
    out.extend_from_slice(b"\r\n");
}
