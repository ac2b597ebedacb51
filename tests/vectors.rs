//! Frames captured from the original implementation (`proto-spec/vectors/`), read and written again.

#![allow(clippy::unwrap_used)] // helpers fail as the tests do that call them

use nlbus::wire::{
    Attributes, CONTROL_TYPE, Command, Control, ControlAttribute, ControlBuilder, ENVELOPE_LEN,
    Envelope, EnvelopeHead, ErrorMessage, FRAME_MAX, Fault, Frames, Header, Key, Malformed,
    Message, MessageBuilder, Messages, TRANSPORT_TYPE, ValueType, flag, nlm,
};
use serde::Deserialize;
use serde_json::Value;

/// What our rules refuse, though the original took or sent it.
const REFUSED: [(&str, Malformed); 4] = [
    ("control/no-cdata", Malformed::new(Fault::FrameTooShort, 0)),
    ("noop", Malformed::new(Fault::FrameTooShort, 0)),
    ("control/inner-type-0", Malformed::new(Fault::NotControl, 28 + 4)),
    ("control/empty-cdata", Malformed::new(Fault::HeaderCut, 28)),
];

/// A captured frame or netlink datagram.
#[derive(Debug, Deserialize)]
struct Vector {
    name: String,
    direction: String,
    transport: String,
    hex: String,
    decoded: Option<Decoded>,
}

#[derive(Debug, Deserialize)]
struct Decoded {
    nlhdr: Option<Nlhdr>,
    envmsghdr: Option<Addresses>,
    #[serde(default)]
    attrs: Vec<Nla>,
    #[serde(default)]
    inner: Value,
}

impl Decoded {
    fn inner(&self) -> Vec<Inner> {
        match &self.inner {
            Value::Array(messages) => {
                messages.iter().map(|m| serde_json::from_value(m.clone()).unwrap()).collect()
            }
            Value::Null => Vec::new(),
            other => {
                assert_eq!(other, "");
                Vec::new()
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
struct Nlhdr {
    length: u32,
    r#type: u16,
    flags: u16,
    seq: u32,
    pid: u32,
}

impl From<Nlhdr> for Header {
    fn from(header: Nlhdr) -> Self {
        let Nlhdr { length, r#type: kind, flags, seq: sequence, pid } = header;
        Self { length, kind, flags, sequence, pid }
    }
}

#[derive(Debug, Deserialize)]
struct Addresses {
    dst: u32,
    src: u32,
}

#[derive(Debug, Deserialize)]
struct Nla {
    nla_len: u16,
    nla_type: u16,
    pad: String,
    payload_len: Option<usize>,
    value: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Inner {
    nlhdr: Nlhdr,
    body: Option<String>,
    error: Option<i32>,
    orig_nlhdr: Option<Nlhdr>,
    orig_body: Option<String>,
    cmd: Option<u8>,
    cmd_name: Option<String>,
    version: Option<u8>,
    reserved: Option<u16>,
    attrs: Option<Vec<Nla>>,
}

fn vectors() -> Vec<Vector> {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../proto-spec/vectors/original.json")).unwrap();
    assert_eq!(vectors.len(), 126);
    vectors
}

/// The vectors that hold a frame which our rules take, with its bytes.
fn frames() -> Vec<(Vector, Vec<u8>)> {
    let mut found = Vec::new();
    for vector in vectors() {
        let bytes = unhex(&vector.hex);
        let short = refusal(&vector.name).is_some_and(|m| m.fault == Fault::FrameTooShort);
        if vector.transport != "netlink" && !bytes.is_empty() && !short {
            found.push((vector, bytes));
        }
    }
    assert_eq!(found.len(), 109);
    found
}

fn refusal(name: &str) -> Option<Malformed> {
    REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, malformed)| *malformed)
}

fn unhex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0);
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn every_vector_is_a_frame_or_netlink_datagrams_or_a_silence() {
    let all = vectors();
    let silent = all.iter().filter(|vector| vector.hex.is_empty());
    let netlink = all.iter().filter(|vector| vector.transport == "netlink");
    assert_eq!((silent.count(), netlink.count(), frames().len()), (8, 7, 109));
    for vector in all.iter().filter(|vector| vector.hex.is_empty()) {
        assert!(vector.decoded.is_none(), "{}", vector.name);
        assert_eq!(vector.direction, "server->client", "{}", vector.name);
    }
    let mut names: Vec<_> = all.iter().map(|vector| &vector.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all.len(), "a name stands twice");
    assert!(REFUSED.iter().all(|(name, _)| all.iter().any(|vector| vector.name == *name)));
}

#[test]
fn the_fixed_part_of_every_frame_reads_as_it_was_decoded() {
    for (vector, bytes) in frames() {
        let Some(decoded) = &vector.decoded else { continue };
        let (nlhdr, addresses) = (decoded.nlhdr.unwrap(), decoded.envmsghdr.as_ref().unwrap());
        assert_eq!(Header::parse(&bytes).unwrap(), nlhdr.into(), "{}", vector.name);
        assert_eq!(nlhdr.r#type, TRANSPORT_TYPE);
        let expected = EnvelopeHead {
            flags: nlhdr.flags,
            sequence: nlhdr.seq,
            pid: nlhdr.pid,
            dst: addresses.dst,
            src: addresses.src,
        };
        assert_eq!(Envelope::parse(&bytes).unwrap().head, expected, "{}", vector.name);
        assert_eq!(EnvelopeHead::read(&bytes), Some((TRANSPORT_TYPE, expected)), "{}", vector.name);
    }
}

#[test]
fn the_attributes_of_every_frame_read_as_they_were_decoded() {
    for (vector, bytes) in frames() {
        let Some(decoded) = &vector.decoded else { continue };
        let read = Envelope::parse(&bytes).unwrap().attributes();
        assert_attributes(&vector.name, read, &decoded.attrs, &bytes);
        let payload_len = decoded.attrs[0].payload_len.unwrap();
        let payload = Envelope::parse(&bytes).unwrap().payload().unwrap();
        assert_eq!(payload.len(), payload_len, "{}", vector.name);
    }
}

/// Compares length, type and padding of `read`, whose offsets count from the start of `whole`.
fn assert_attributes(name: &str, mut read: Attributes<'_>, decoded: &[Nla], whole: &[u8]) {
    for nla in decoded {
        let at = read.offset();
        let attribute = read.next().unwrap_or_else(|| panic!("{name}: too few")).unwrap();
        assert_eq!(attribute.kind, nla.nla_type, "{name}");
        assert_eq!(attribute.payload.len() + 4, usize::from(nla.nla_len), "{name}");
        let pad = unhex(&nla.pad);
        let end = at + usize::from(nla.nla_len);
        assert_eq!(whole[end..end + pad.len()], pad, "{name}");
        assert_eq!(read.offset(), end + pad.len(), "{name}");
    }
    assert_eq!(read.next(), None, "{name}");
}

#[test]
fn every_frame_is_written_again_byte_for_byte() {
    for (vector, bytes) in frames() {
        let envelope = Envelope::parse(&bytes).unwrap();
        let mut written = vec![0xee; 3];
        envelope.head.emit(envelope.payload().unwrap(), &mut written).unwrap();
        assert_eq!(written[3..], bytes, "{}", vector.name);
    }
}

#[test]
fn a_stream_of_all_frames_falls_apart_at_their_borders() {
    let frames = frames();
    let mut stream: Vec<u8> = frames.iter().flat_map(|(_, bytes)| bytes).copied().collect();
    let total = stream.len();
    let mut walk = Frames::new(&mut stream, FRAME_MAX);
    for (vector, bytes) in &frames {
        let (_, frame) = walk.next_frame().unwrap();
        assert_eq!(frame, bytes, "{}", vector.name);
    }
    assert_eq!(walk.next_frame(), None);
    assert_eq!((walk.consumed(), walk.fault()), (total, None));
}

#[test]
fn frames_that_the_rules_refuse_are_refused_with_the_named_fault_at_the_named_byte() {
    for (name, expected) in REFUSED {
        let vector = vectors().into_iter().find(|vector| vector.name == name).unwrap();
        assert_eq!(refuse(&mut unhex(&vector.hex)), Some(expected), "{name}");
    }
}

#[test]
fn frames_that_the_rules_take_are_refused_nowhere() {
    for (vector, mut bytes) in frames() {
        assert_eq!(refuse(&mut bytes), refusal(&vector.name), "{}", vector.name);
    }
}

/// The first fault that a broker meets in `bytes`, from the start of the frame.
fn refuse(bytes: &mut [u8]) -> Option<Malformed> {
    let mut walk = Frames::new(bytes, FRAME_MAX);
    let Some((_, frame)) = walk.next_frame() else { return walk.fault() };
    let envelope = match Envelope::parse(frame) {
        Ok(envelope) => envelope,
        Err(malformed) => return Some(malformed),
    };
    let payload = match envelope.payload() {
        Ok(payload) => payload,
        Err(malformed) => return Some(malformed),
    };
    if envelope.head.flags & flag::CONTROL == 0 {
        return None;
    }
    Control::parse(payload).err().map(|malformed| malformed.within(28))
}

#[test]
fn every_inner_message_reads_as_it_was_decoded() {
    let mut seen = 0;
    for vector in vectors() {
        let bytes = unhex(&vector.hex);
        let Some(decoded) = &vector.decoded else { continue };
        let payload = match vector.transport.as_str() {
            "netlink" => &bytes[..],
            _ if bytes.len() < 28 => continue,
            _ => Envelope::parse(&bytes).unwrap().payload().unwrap(),
        };
        let messages: Vec<_> = Messages::new(payload).collect::<Result<_, _>>().unwrap();
        let expected = decoded.inner();
        assert_eq!(messages.len(), expected.len(), "{}", vector.name);
        for (message, inner) in messages.iter().zip(&expected) {
            assert_inner(&vector.name, message, inner);
            seen += 1;
        }
    }
    assert_eq!(seen, 122);
}

fn assert_inner(name: &str, message: &Message<'_>, inner: &Inner) {
    assert_eq!(message.header, inner.nlhdr.into(), "{name}");
    match inner.body.as_deref().map(|body| (body, body.strip_suffix("..."))) {
        Some((_, Some(start))) => assert!(message.body().starts_with(&unhex(start)), "{name}"),
        Some((whole, None)) => assert_eq!(message.body(), unhex(whole), "{name}"),
        None => {}
    }
    if let Some(code) = inner.error {
        let error = ErrorMessage::parse(message).unwrap();
        assert_eq!((message.header.kind, error.code), (nlm::ERROR, code), "{name}");
        assert_eq!(error.request, inner.orig_nlhdr.unwrap().into(), "{name}");
        assert_eq!((error.text, error.offset), (None, None), "{name}");
        let echoed = unhex(inner.orig_body.as_ref().unwrap());
        assert_eq!(message.body()[20..], echoed, "{name}");
    }
    if inner.cmd.is_some() {
        assert_control(name, message.bytes(), inner);
    }
}

fn assert_control(name: &str, bytes: &[u8], inner: &Inner) {
    let control = Control::parse(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let [command, version, r0, r1] = bytes[16..20] else { panic!("{name}") };
    assert_eq!(Some(control.number), inner.cmd, "{name}");
    assert_eq!((Some(command), Some(version)), (inner.cmd, inner.version), "{name}");
    assert_eq!(Some(u16::from_le_bytes([r0, r1])), inner.reserved, "{name}");
    let symbol = inner.cmd_name.as_ref().unwrap().to_lowercase();
    match control.command() {
        Some(command) => assert_eq!(command.symbol(), symbol, "{name}"),
        None => assert_eq!(name, "control/unknown-cmd/request"),
    }
    let decoded = inner.attrs.as_deref().unwrap();
    assert_attributes(name, Attributes::new(&bytes[20..], 20), decoded, bytes);
    let mut keys = control.keys();
    for nla in decoded {
        let kind = ControlAttribute::from_number(nla.nla_type).unwrap();
        let value = nla.value.as_ref().unwrap();
        match kind.value_type() {
            ValueType::Bytes => {
                let mut secret = control.secret.unwrap().to_vec();
                secret.push(0);
                assert_eq!(secret, unhex(value.as_str().unwrap()), "{name}");
            }
            ValueType::String => {
                let text = value.as_str().unwrap();
                let text = text.strip_suffix('\0').unwrap_or(text);
                assert_eq!(string(&control, kind), Some(text), "{name}");
            }
            ValueType::U32 => {
                let number = match kind {
                    ControlAttribute::Addr => control.addr,
                    ControlAttribute::Cid => control.cid,
                    other => panic!("{name}: the original has no {other:?}"),
                };
                assert_eq!(number.map(u64::from), value.as_u64(), "{name}");
            }
            ValueType::U64 | ValueType::Entry => panic!("{name}: the original has no {kind:?}"),
            ValueType::Key => {
                let part = |part: &str| value[part].as_u64().unwrap() as u32;
                let key = Key { offset: part("offset"), key: part("key"), mask: part("mask") };
                assert_eq!(keys.next(), Some(key), "{name}");
            }
        }
    }
    assert_eq!(keys.next(), None, "{name}");
}

fn string<'a>(control: &Control<'a>, kind: ControlAttribute) -> Option<&'a str> {
    match kind {
        ControlAttribute::Host => control.host,
        ControlAttribute::SslKey => control.ssl_key,
        ControlAttribute::SslCert => control.ssl_cert,
        ControlAttribute::SslCa => control.ssl_ca,
        ControlAttribute::Error => control.error,
        other => panic!("{other:?} is no string"),
    }
}

#[test]
fn every_inner_message_is_written_again_byte_for_byte() {
    for vector in vectors() {
        let bytes = unhex(&vector.hex);
        let payload = match vector.transport.as_str() {
            "netlink" => &bytes[..],
            _ if bytes.len() < 28 => continue,
            _ => Envelope::parse(&bytes).unwrap().payload().unwrap(),
        };
        for message in Messages::new(payload).map(Result::unwrap) {
            let header = message.header;
            let builder = MessageBuilder::new(header.kind, header.flags)
                .sequence(header.sequence)
                .pid(header.pid);
            let written = match Control::parse(message.bytes()) {
                Ok(_) if payload.len() % 4 == 0 => control_again(builder, message.bytes()),
                _ => builder.body(message.body()).finish(),
            };
            assert_eq!(written, message.bytes(), "{}", vector.name);
        }
    }
}

fn control_again(builder: MessageBuilder, bytes: &[u8]) -> Vec<u8> {
    let mut builder = builder.body(&bytes[16..20]);
    for attribute in Attributes::new(&bytes[20..], 20).map(Result::unwrap) {
        builder = builder.attribute(attribute.kind, attribute.payload).unwrap();
    }
    builder.finish()
}

/// A client of the original sees no difference between its broker's answers and ours.
#[test]
fn the_control_builder_writes_the_answers_of_the_original_byte_for_byte() {
    let mut compared = 0;
    for (vector, bytes) in frames() {
        let envelope = Envelope::parse(&bytes).unwrap();
        let answer = vector.direction == "server->client" && vector.decoded.is_some();
        if !answer || envelope.head.flags & flag::CONTROL == 0 {
            continue;
        }
        let control = Control::parse(envelope.payload().unwrap()).unwrap();
        assert_eq!(control.header.sequence, envelope.head.sequence, "{}", vector.name);
        assert_eq!((control.header.pid, control.header.kind), (0, CONTROL_TYPE), "{}", vector.name);
        let mut written = Vec::new();
        let head = EnvelopeHead { flags: 0, ..envelope.head };
        let mut builder = ControlBuilder::new(&mut written, head, control.command().unwrap());
        for (kind, value) in
            [(ControlAttribute::Addr, control.addr), (ControlAttribute::Cid, control.cid)]
        {
            if let Some(value) = value {
                builder = builder.u32(kind, value).unwrap();
            }
        }
        if let Some(text) = control.error {
            builder = builder.string(ControlAttribute::Error, text).unwrap();
        }
        builder.finish();
        assert_eq!(written, bytes, "{}", vector.name);
        compared += 1;
    }
    assert_eq!(compared, 32);
}

/// What an answer echoes of its request, shown on each captured pair.
#[test]
fn answers_of_the_original_swap_the_addresses_and_echo_sequence_and_pid() {
    let frames = frames();
    let mut compared = 0;
    for (request, request_bytes) in &frames {
        let Some(stem) = request.name.strip_suffix("/request") else { continue };
        let wanted = format!("{stem}/reply");
        let Some((_, bytes)) = frames.iter().find(|(vector, _)| vector.name == wanted) else {
            continue;
        };
        let asked = Envelope::parse(request_bytes).unwrap().head;
        let expected = EnvelopeHead { dst: asked.src, src: asked.dst, ..asked };
        assert_eq!(Envelope::parse(bytes).unwrap().head, expected, "{stem}");
        let answer = Control::parse(Envelope::parse(bytes).unwrap().payload().unwrap()).unwrap();
        assert!(matches!(answer.command(), Some(Command::Ack | Command::Err)), "{stem}");
        compared += 1;
    }
    assert_eq!(compared, 26);
}

#[test]
fn rewriting_the_addresses_of_a_frame_touches_no_other_byte() {
    for (vector, bytes) in frames() {
        let mut rewritten = bytes.clone();
        EnvelopeHead::rewrite(&mut rewritten, 0x8000_0001, 0x1_0004);
        assert_eq!(rewritten[..16], bytes[..16], "{}", vector.name);
        assert_eq!(rewritten[16..24], [1, 0, 0, 0x80, 4, 0, 1, 0], "{}", vector.name);
        assert_eq!(rewritten[ENVELOPE_LEN..], bytes[ENVELOPE_LEN..], "{}", vector.name);
    }
}
