//! Requests: bytes ↔ commands.

use bytes::Bytes;

use super::super::machine::{
    Command, Create, NAME_BYTES_MAX, RECEIVE_QUEUES_MAX, Receive, Refusal, Send, Subscribe,
};
use super::super::options::{Kind, QueueOptions};
use super::record::{attribute_len, is_of_record, number, options_to_bytes, set_option};
use super::{Body, QUEUE_TYPE, QUEUE_VERSION, attr, cmd, flag};
use crate::store::SendId;
use crate::wire::{Attribute, Attributes, Message, errno};

/// Ids that one request may name.
const IDS_MAX: usize = 8_000;

/// Headers that one message may have.
pub const HEADERS_MAX: usize = 1_024;

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Something of the queues.
    Command(Command),
    /// The end of the broker.
    Shutdown,
}

/// Attributes of a request as they came.
#[derive(Default)]
struct Fields<'a> {
    queue: Option<&'a [u8]>,
    further: Vec<&'a [u8]>,
    ids: &'a [u8],
    sender: Option<&'a [u8]>,
    sequence: u64,
    ttl: Option<u64>,
    reply_to: Option<&'a [u8]>,
    record: Record<'a>,
    kind: u64,
    options: Option<QueueOptions>,
    lease: Option<u64>,
    flags: u64,
    count: Option<u64>,
    credit_bytes: Option<u64>,
    timeout: u64,
    consumer: u64,
    prefix: &'a [u8],
    payload_max: u64,
    from: u64,
}

/// The attributes of a record: one piece of the request, as our clients send it, or put together.
#[derive(Default)]
struct Record<'a> {
    piece: &'a [u8],
    joined: Vec<u8>,
}

impl<'a> Record<'a> {
    /// Adds an attribute with its padding, of which the last in a message may have none.
    fn add(&mut self, attribute: &'a [u8], length: usize) {
        if self.piece.is_empty() && self.joined.is_empty() {
            self.piece = attribute;
            return;
        }
        let mut before = std::mem::take(&mut self.joined);
        before.extend_from_slice(std::mem::take(&mut self.piece));
        before.extend_from_slice(attribute);
        before.resize(before.len() + attribute_len(length) - attribute.len(), 0);
        self.joined = before;
    }

    fn bytes(self) -> Bytes {
        if self.joined.is_empty() { Bytes::copy_from_slice(self.piece) } else { self.joined.into() }
    }
}

impl<'a> Fields<'a> {
    fn read(message: &Message<'a>) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        let region = &message.body()[4..];
        let mut attributes = Attributes::new(region, 0);
        let mut headers = 0;
        loop {
            let at = attributes.offset();
            let Some(attribute) = attributes.next() else { break };
            let attribute =
                attribute.map_err(|malformed| invalid(format!("malformed {malformed}")))?;
            if is_of_record(attribute.kind) {
                headers += usize::from(attribute.kind == attr::HEADER);
                if headers > HEADERS_MAX {
                    return Err(invalid(format!("more than {HEADERS_MAX} headers")));
                }
                if attribute.kind == attr::REPLY_TO {
                    fields.reply_to = Some(attribute.payload);
                }
                let end = attributes.offset();
                fields.record.add(&region[at..end], attribute.payload.len());
            } else {
                fields.take(attribute)?;
            }
        }
        Ok(fields)
    }

    fn take(&mut self, Attribute { kind, payload }: Attribute<'a>) -> Result<(), Refusal> {
        match kind {
            attr::QUEUE if self.queue.is_none() => self.queue = Some(payload),
            attr::QUEUE if self.further.len() < RECEIVE_QUEUES_MAX => self.further.push(payload),
            attr::QUEUE => return Err(invalid(format!("more than {RECEIVE_QUEUES_MAX} queues"))),
            attr::ID => self.ids = payload,
            attr::SENDER => self.sender = Some(payload),
            attr::SEQUENCE => self.sequence = number(payload),
            attr::TTL => self.ttl = Some(number(payload)),
            attr::KIND => self.kind = number(payload),
            attr::FLAGS => self.flags = number(payload),
            attr::COUNT => self.count = Some(number(payload)),
            attr::CREDIT_BYTES => self.credit_bytes = Some(number(payload)),
            attr::TIMEOUT => self.timeout = number(payload),
            attr::CONSUMER => self.consumer = number(payload),
            attr::PREFIX => self.prefix = payload,
            attr::PAYLOAD_MAX => self.payload_max = number(payload),
            attr::FROM => self.from = number(payload),
            _ => {
                if kind == attr::LEASE {
                    self.lease = Some(number(payload));
                }
                if !set_option(self.options.get_or_insert_default(), kind, payload) {
                    return Err(invalid(format!("unknown attribute {kind}")));
                }
            }
        }
        Ok(())
    }

    fn queue(&self) -> Result<String, Refusal> {
        match self.queue {
            Some(name) if self.further.is_empty() => name_of(name),
            None => Err(invalid("the name of the queue is missing")),
            Some(_) => Err(invalid("there is more than one queue")),
        }
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & u64::from(flag) != 0
    }

    fn ids(&self) -> Result<Vec<u64>, Refusal> {
        let (ids, rest) = self.ids.as_chunks::<8>();
        if ids.is_empty() || !rest.is_empty() || ids.len() > IDS_MAX {
            return Err(invalid(format!("1 to {IDS_MAX} ids of 8 bytes each are needed")));
        }
        Ok(ids.iter().map(|id| u64::from_le_bytes(*id)).collect())
    }

    fn send_id(&self) -> Result<Option<SendId>, Refusal> {
        let Some(sender) = self.sender else { return Ok(None) };
        let sender = sender.try_into().map_err(|_| invalid("a sender has 16 bytes"))?;
        Ok(Some(SendId { sender: u128::from_le_bytes(sender), sequence: self.sequence }))
    }

    fn command(self, command: u8) -> Result<Asked, Refusal> {
        let count =
            |default: u32| self.count.map_or(default, |count| count.min(u32::MAX.into()) as u32);
        let prefix = || name_of(self.prefix);
        Ok(Asked::Command(match command {
            cmd::CREATE => Command::Create(Create {
                queue: if self.queue.is_none() { None } else { Some(self.queue()?) },
                kind: if self.kind == 1 { Kind::Transient } else { Kind::Persistent },
                exclusive: self.has(flag::EXCLUSIVE),
                options: self.options,
            }),
            cmd::DESTROY => {
                Command::Destroy { queue: self.queue()?, if_empty: self.has(flag::IF_EMPTY) }
            }
            cmd::LIST => Command::List { prefix: prefix()?, alive: self.has(flag::ALIVE) },
            cmd::SEND => Command::Send(Send {
                queue: self.queue()?,
                create: self.has(flag::CREATE),
                send_id: self.send_id()?,
                ttl_ms: self.ttl,
                reply_to: self.reply_to.map(name_of).transpose()?,
                record: self.record.bytes(),
            }),
            cmd::RECEIVE => Command::Receive(Receive {
                queues: self
                    .queue
                    .iter()
                    .chain(&self.further)
                    .map(|name| name_of(name))
                    .collect::<Result<_, _>>()?,
                messages_max: count(1),
                timeout_ms: self.timeout,
                lease_ms: self.lease,
                auto_ack: self.has(flag::AUTO_ACK),
            }),
            cmd::ACK => Command::Ack {
                queue: self.queue()?,
                ids: self.ids()?,
                force: self.has(flag::FORCE),
            },
            cmd::NACK => Command::Nack { queue: self.queue()?, ids: self.ids()? },
            cmd::EXTEND => Command::Extend {
                queue: self.queue()?,
                ids: self.ids()?,
                lease_ms: self
                    .lease
                    .ok_or_else(|| invalid("the length of the lease is missing"))?,
            },
            cmd::SUBSCRIBE => Command::Subscribe(Subscribe {
                queue: self.queue()?,
                credit: count(256),
                credit_bytes: self.credit_bytes.unwrap_or(1 << 20),
                lease_ms: self.lease,
            }),
            cmd::UNSUBSCRIBE => Command::Unsubscribe { consumer: self.consumer as u32 },
            cmd::DIAGNOSTICS => Command::Diagnostics {
                prefix: prefix()?,
                entries_max: count(0),
                payload_max: self.payload_max.min(u32::MAX.into()) as u32,
            },
            cmd::TRACE => {
                Command::Trace { from: self.from, timeout_ms: self.timeout, prefix: prefix()? }
            }
            cmd::PURGE => Command::Purge { queue: self.queue()? },
            cmd::WITHDRAW => Command::Withdraw {
                queue: self.queue()?,
                send_id: self.send_id()?.ok_or_else(|| invalid("the sender is missing"))?,
            },
            cmd::SHUTDOWN => return Ok(Asked::Shutdown),
            other => {
                let text = format!("there is no command {other}");
                return Err(Refusal { errno: errno::EOPNOTSUPP, text });
            }
        }))
    }
}

/// Reads one message of a request.
///
/// # Errors
/// What to answer.
pub fn parse_request(message: &Message<'_>) -> Result<Asked, Refusal> {
    let body = message.body();
    match body {
        [command, QUEUE_VERSION, 0, 0, ..] if message.header.kind == QUEUE_TYPE => {
            Fields::read(message)?.command(*command)
        }
        [_, version, 0, 0, ..] if message.header.kind == QUEUE_TYPE => Err(Refusal {
            errno: errno::EPROTONOSUPPORT,
            text: format!("version {version} is not spoken here"),
        }),
        _ => Err(invalid(format!("it is no message of type {QUEUE_TYPE} with its two headers"))),
    }
}

/// Appends a command as a message with this sequence number.
pub fn emit_command(command: &Command, sequence: u32, body: &mut Body) {
    let set = |yes: bool, flag: u32| if yes { flag } else { 0 };
    match command {
        Command::Create(create) => {
            body.begin(cmd::CREATE, sequence);
            if let Some(queue) = &create.queue {
                body.text(attr::QUEUE, queue);
            }
            body.u32(attr::KIND, u32::from(create.kind == Kind::Transient));
            body.flags(set(create.exclusive, flag::EXCLUSIVE));
            if let Some(options) = &create.options {
                body.attributes(&options_to_bytes(options));
            }
        }
        Command::Destroy { queue, if_empty } => {
            body.begin(cmd::DESTROY, sequence).text(attr::QUEUE, queue);
            body.flags(set(*if_empty, flag::IF_EMPTY));
        }
        Command::List { prefix, alive } => {
            body.begin(cmd::LIST, sequence).text(attr::PREFIX, prefix);
            body.flags(set(*alive, flag::ALIVE));
        }
        Command::Send(send) => {
            body.begin(cmd::SEND, sequence).text(attr::QUEUE, &send.queue);
            body.flags(set(send.create, flag::CREATE));
            emit_send_id(send.send_id, body);
            body.maybe(attr::TTL, send.ttl_ms).attributes(&send.record);
        }
        Command::Receive(receive) => {
            body.begin(cmd::RECEIVE, sequence);
            for queue in &receive.queues {
                body.text(attr::QUEUE, queue);
            }
            body.u32(attr::COUNT, receive.messages_max).u64(attr::TIMEOUT, receive.timeout_ms);
            body.maybe(attr::LEASE, receive.lease_ms).flags(set(receive.auto_ack, flag::AUTO_ACK));
        }
        Command::Ack { queue, ids, force } => {
            emit_ids(cmd::ACK, sequence, queue, ids, body).flags(set(*force, flag::FORCE));
        }
        Command::Nack { queue, ids } => {
            emit_ids(cmd::NACK, sequence, queue, ids, body);
        }
        Command::Extend { queue, ids, lease_ms } => {
            emit_ids(cmd::EXTEND, sequence, queue, ids, body).u64(attr::LEASE, *lease_ms);
        }
        Command::Subscribe(subscribe) => {
            body.begin(cmd::SUBSCRIBE, sequence)
                .text(attr::QUEUE, &subscribe.queue)
                .u32(attr::COUNT, subscribe.credit)
                .u64(attr::CREDIT_BYTES, subscribe.credit_bytes)
                .maybe(attr::LEASE, subscribe.lease_ms);
        }
        Command::Unsubscribe { consumer } => {
            body.begin(cmd::UNSUBSCRIBE, sequence).u32(attr::CONSUMER, *consumer);
        }
        Command::Diagnostics { prefix, entries_max, payload_max } => {
            body.begin(cmd::DIAGNOSTICS, sequence)
                .text(attr::PREFIX, prefix)
                .u32(attr::COUNT, *entries_max)
                .u32(attr::PAYLOAD_MAX, *payload_max);
        }
        Command::Trace { from, timeout_ms, prefix } => {
            body.begin(cmd::TRACE, sequence)
                .text(attr::PREFIX, prefix)
                .u64(attr::FROM, *from)
                .u64(attr::TIMEOUT, *timeout_ms);
        }
        Command::Purge { queue } => {
            body.begin(cmd::PURGE, sequence).text(attr::QUEUE, queue);
        }
        Command::Withdraw { queue, send_id } => {
            body.begin(cmd::WITHDRAW, sequence).text(attr::QUEUE, queue);
            emit_send_id(Some(*send_id), body);
        }
    }
    body.end();
}

/// Appends a request to end the broker.
pub(in crate::service::queue) fn emit_shutdown(sequence: u32, body: &mut Body) {
    body.begin(cmd::SHUTDOWN, sequence).end();
}

fn emit_send_id(send_id: Option<SendId>, body: &mut Body) {
    if let Some(SendId { sender, sequence }) = send_id {
        body.bytes(attr::SENDER, &sender.to_le_bytes()).u64(attr::SEQUENCE, sequence);
    }
}

fn emit_ids<'b>(
    command: u8,
    sequence: u32,
    queue: &str,
    ids: &[u64],
    body: &'b mut Body,
) -> &'b mut Body {
    let ids: Vec<[u8; 8]> = ids.iter().map(|id| id.to_le_bytes()).collect();
    body.begin(command, sequence).text(attr::QUEUE, queue).bytes(attr::ID, ids.as_flattened())
}

fn name_of(value: &[u8]) -> Result<String, Refusal> {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    if value.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("a name has at most {NAME_BYTES_MAX} bytes")));
    }
    let name = str::from_utf8(value).map_err(|_| invalid("a name is not UTF-8"))?;
    Ok(name.to_owned())
}

fn invalid(text: impl Into<String>) -> Refusal {
    Refusal { errno: errno::EINVAL, text: text.into() }
}
