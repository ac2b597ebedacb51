//! The wire layer against arbitrary bytes and values.

use nlbus::wire::{
    Attributes, CDATA, Command, Control, ControlAttribute, ControlBuilder, Envelope, EnvelopeHead,
    ErrorMessage, FRAME_MAX, Fault, Frames, Header, Key, Malformed, Message, MessageBuilder,
    Messages, align4, flag, frame_length,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn heads() -> impl Strategy<Value = EnvelopeHead> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    (any::<u16>(), numbers).prop_map(|(flags, (sequence, pid, dst, src))| EnvelopeHead {
        flags,
        sequence,
        pid,
        dst,
        src,
    })
}

fn headers() -> impl Strategy<Value = Header> {
    (any::<u32>(), any::<u16>(), heads()).prop_map(|(length, kind, head)| Header {
        length,
        kind,
        flags: head.flags,
        sequence: head.sequence,
        pid: head.pid,
    })
}

fn keys() -> impl Strategy<Value = Key> {
    any::<(u32, u32, u32)>().prop_map(|(offset, key, mask)| Key { offset, key, mask })
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    (heads(), vec(any::<u8>(), 0..200)).prop_map(|(head, payload)| {
        let mut bytes = Vec::new();
        head.emit(&payload, &mut bytes).expect("200 bytes fit");
        bytes
    })
}

/// A message's type, flags, sequence number and body.
type Parts = (u16, u16, u32, Vec<u8>);

/// A control message as values.
#[derive(Clone, Debug, Default)]
struct Wanted {
    strings: Vec<(ControlAttribute, String)>,
    numbers: Vec<(ControlAttribute, u32)>,
    secret: Option<Vec<u8>>,
    keys: Vec<Key>,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    use ControlAttribute::{
        Addr, Cid, Errno, Error, FrameMax, Host, Mode, Port, SslCa, SslCert, SslKey,
    };
    let texts = proptest::sample::subsequence(vec![Host, SslKey, SslCert, SslCa, Error], 0..=5);
    let numbers =
        proptest::sample::subsequence(vec![Addr, Cid, Errno, FrameMax, Mode, Port], 0..=6);
    let secret = proptest::option::of(vec(1..=u8::MAX, 0..40));
    let values = (vec("[^\0]{0,20}", 5), vec(any::<u32>(), 5));
    (texts, numbers, secret, vec(keys(), 0..5), values).prop_map(
        |(texts, numbers, secret, keys, (strings, words))| Wanted {
            strings: texts.into_iter().zip(strings).collect(),
            numbers: numbers.into_iter().zip(words).collect(),
            secret,
            keys,
        },
    )
}

impl Wanted {
    fn emit(&self, head: EnvelopeHead, command: Command) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut builder = ControlBuilder::new(&mut frame, head, command);
        if let Some(secret) = &self.secret {
            builder = builder.bytes(ControlAttribute::Secret, secret).expect("it fits");
        }
        for (kind, text) in &self.strings {
            builder = builder.string(*kind, text).expect("it fits");
        }
        for key in &self.keys {
            builder = builder.key(*key).expect("it fits");
        }
        for (kind, number) in &self.numbers {
            builder = builder.u32(*kind, *number).expect("it fits");
        }
        builder.finish();
        frame
    }

    fn string(&self, kind: ControlAttribute) -> Option<&str> {
        self.strings.iter().find(|(k, _)| *k == kind).map(|(_, text)| text.as_str())
    }

    fn number(&self, kind: ControlAttribute) -> Option<u32> {
        self.numbers.iter().find(|(k, _)| *k == kind).map(|(_, number)| *number)
    }
}

/// The borders of frames as a reader would find them that looks at one frame at a time and copies:
/// whole frames, what is left, and whether it can be the beginning of a frame.
fn naive_frames(mut bytes: &[u8], frame_max: usize) -> (Vec<Vec<u8>>, Vec<u8>, bool) {
    let mut frames = Vec::new();
    loop {
        if bytes.len() < 4 {
            return (frames, bytes.to_vec(), true);
        }
        let length = bytes.iter().take(4).rev().fold(0usize, |sum, &b| sum * 256 + usize::from(b));
        if length < 28 || length > frame_max || length % 4 != 0 {
            return (frames, bytes.to_vec(), false);
        }
        if bytes.len() < length {
            return (frames, bytes.to_vec(), true);
        }
        frames.push(bytes[..length].to_vec());
        bytes = &bytes[length..];
    }
}

/// Feeds `stream` in pieces to a buffer that is walked after each, as a read loop does.
fn chunked_frames(
    stream: &[u8],
    sizes: &[usize],
    frame_max: usize,
) -> (Vec<Vec<u8>>, Vec<u8>, bool) {
    let mut frames = Vec::new();
    let mut buffer = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.len().min(*sizes.next().unwrap_or(&1)));
        rest = later;
        buffer.extend_from_slice(piece);
        let mut walk = Frames::new(&mut buffer, frame_max);
        while let Some((_, frame)) = walk.next_frame() {
            frames.push(frame.to_vec());
        }
        let (consumed, fault) = (walk.consumed(), walk.fault());
        buffer.drain(..consumed);
        if fault.is_some() {
            buffer.extend_from_slice(rest);
            return (frames, buffer, false);
        }
    }
    (frames, buffer, true)
}

/// The attributes of `bytes`, found the slow and obvious way; `None` where the walk must end in a fault.
fn naive_attributes(bytes: &[u8]) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let header = bytes.get(at..at + 4)?;
        let length = usize::from(header[0]) + 256 * usize::from(header[1]);
        if length < 4 {
            return None;
        }
        let payload = bytes.get(at + 4..at + length)?;
        found.push((u16::from(header[2]) + 256 * u16::from(header[3]), payload.to_vec()));
        at += length + (4 - length % 4) % 4;
    }
    Some(found)
}

/// Bytes that are often nearly right: small lengths and kinds, so that walks go on for a while.
fn likely_attributes() -> impl Strategy<Value = Vec<u8>> {
    let one = (0u16..12, 0u16..20, vec(any::<u8>(), 0..9)).prop_map(|(length, kind, payload)| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(payload);
        bytes
    });
    vec(one, 0..6).prop_map(|pieces| pieces.concat())
}

fn read_as_everything(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    let _ = EnvelopeHead::read(bytes);
    let _ = frame_length(bytes, FRAME_MAX);
    if let Ok(envelope) = Envelope::parse(bytes) {
        let _ = envelope.payload().map(Control::parse);
    }
    if let Ok(control) = Control::parse(bytes) {
        assert!(control.keys().filter(|key| key.matches(bytes)).count() <= bytes.len() / 16);
    }
    assert!(Attributes::new(bytes, 0).count() <= bytes.len() / 4 + 1);
    let mut messages = 0;
    for message in Messages::new(bytes) {
        messages += 1;
        if let Ok(message) = message {
            let _ = ErrorMessage::parse(&message);
            assert_eq!(message.bytes().len(), message.header.length as usize);
        }
    }
    assert!(messages <= bytes.len() / 16 + 1);
}

proptest! {
    #[test]
    fn a_header_survives_writing_and_reading(header in headers()) {
        prop_assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
    }

    #[test]
    fn an_envelope_survives_writing_and_reading(
        head in heads(),
        payload in vec(any::<u8>(), 0..300),
        before in vec(any::<u8>(), 0..9),
    ) {
        let mut out = before.clone();
        head.emit(&payload, &mut out).unwrap();
        let (kept, frame) = out.split_at(before.len());
        prop_assert_eq!(kept, before);
        let envelope = Envelope::parse(frame).unwrap();
        prop_assert_eq!(envelope.head, head);
        prop_assert_eq!(envelope.payload().unwrap(), &payload[..]);
        prop_assert_eq!(frame.len(), align4(28 + payload.len()));
        prop_assert!(frame[28 + payload.len()..].iter().all(|&pad| pad == 0));
        prop_assert_eq!(&frame[..28], head.before_payload(payload.len()).unwrap());
    }

    #[test]
    fn a_control_message_survives_writing_and_reading(
        wanted in wanted(),
        head in heads(),
        command in proptest::sample::select(Command::ALL),
    ) {
        use ControlAttribute::{
            Addr, Cid, Errno, Error, FrameMax, Host, Mode, Port, SslCa, SslCert, SslKey,
        };
        let frame = wanted.emit(head, command);
        let envelope = Envelope::parse(&frame).unwrap();
        prop_assert_eq!(envelope.head.flags, head.flags | flag::CONTROL);
        let control = Control::parse(envelope.payload().unwrap()).unwrap();
        prop_assert_eq!(control.command(), Some(command));
        prop_assert_eq!((control.header.sequence, control.header.pid), (head.sequence, 0));
        prop_assert_eq!(control.secret, wanted.secret.as_deref());
        prop_assert_eq!(control.host, wanted.string(Host));
        prop_assert_eq!(control.ssl_key, wanted.string(SslKey));
        prop_assert_eq!(control.ssl_cert, wanted.string(SslCert));
        prop_assert_eq!(control.ssl_ca, wanted.string(SslCa));
        prop_assert_eq!(control.error, wanted.string(Error));
        prop_assert_eq!(control.addr, wanted.number(Addr));
        prop_assert_eq!(control.cid, wanted.number(Cid));
        prop_assert_eq!(control.errno, wanted.number(Errno));
        prop_assert_eq!(control.frame_max, wanted.number(FrameMax));
        prop_assert_eq!(control.port, wanted.number(Port));
        prop_assert_eq!(control.mode, wanted.number(Mode));
        prop_assert_eq!(control.version, None);
        prop_assert_eq!(control.keys().collect::<Vec<_>>(), wanted.keys);
    }

    #[test]
    fn inner_messages_survive_writing_and_reading_one_behind_the_other(
        parts in vec((any::<u16>(), any::<u16>(), any::<u32>(), vec(any::<u8>(), 0..40)), 0..6),
    ) {
        let parts: Vec<Parts> = parts;
        let mut payload = Vec::new();
        for (kind, flags, sequence, body) in &parts {
            payload.resize(align4(payload.len()), 0);
            payload.extend(MessageBuilder::new(*kind, *flags).sequence(*sequence).body(body).finish());
        }
        let read: Vec<Parts> = Messages::new(&payload)
            .map(Result::unwrap)
            .map(|m| (m.header.kind, m.header.flags, m.header.sequence, m.body().to_vec()))
            .collect();
        prop_assert_eq!(read, parts);
    }

    #[test]
    fn an_error_message_survives_writing_and_reading(
        code in i32::MIN..0,
        request in headers(),
        text in "[^\0]{0,80}",
    ) {
        let bytes = ErrorMessage::emit(code, &request, &text);
        let error = ErrorMessage::parse(&Message::parse(&bytes).unwrap()).unwrap();
        prop_assert_eq!((error.code, error.request), (code, request));
        prop_assert_eq!(error.text.unwrap_or_default(), text);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_no_walk_is_longer_than_they_are(
        bytes in vec(any::<u8>(), 0..200),
    ) {
        read_as_everything(&bytes);
    }

    #[test]
    fn bytes_that_are_nearly_right_never_panic(
        frame in frames(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = frame;
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        read_as_everything(&bytes);
        read_as_everything(&bytes[24..]);
        read_as_everything(&bytes[28..]);
    }

    #[test]
    fn the_attribute_walk_agrees_with_the_obvious_one(bytes in likely_attributes()) {
        let walked: Result<Vec<_>, Malformed> = Attributes::new(&bytes, 0)
            .map(|found| found.map(|attribute| (attribute.kind, attribute.payload.to_vec())))
            .collect();
        prop_assert_eq!(walked.ok(), naive_attributes(&bytes));
    }

    #[test]
    fn the_payload_of_an_envelope_is_the_first_cdata_of_the_obvious_walk(
        mut attributes in likely_attributes(),
    ) {
        attributes.resize(align4(attributes.len()), 0);
        let mut frame = vec![0; 24];
        frame.extend_from_slice(&attributes);
        let length = frame.len() as u32;
        frame[0..4].copy_from_slice(&length.to_le_bytes());
        frame[4] = 15;
        let payload = Envelope::parse(&frame).unwrap().payload();
        let expected = naive_attributes(&attributes)
            .and_then(|all| all.into_iter().find(|(kind, _)| *kind == CDATA));
        prop_assert_eq!(payload.ok(), expected.as_ref().map(|(_, bytes)| &bytes[..]));
    }

    #[test]
    fn a_stream_in_any_pieces_gives_the_frames_of_the_naive_reader(
        mut frames in vec(frames(), 0..8),
        tail in vec(any::<u8>(), 0..40),
        sizes in vec(1usize..300, 1..6),
        frame_max in prop::sample::select(vec![28usize, 64, 100, 200, FRAME_MAX]),
        spoil in proptest::option::of((any::<prop::sample::Index>(), 0u32..300)),
    ) {
        if let Some((which, length)) = spoil
            && !frames.is_empty()
        {
            let which = which.index(frames.len());
            frames[which][0..4].copy_from_slice(&length.to_le_bytes());
        }
        let mut stream = frames.concat();
        stream.extend(tail);
        let expected = naive_frames(&stream, frame_max);
        prop_assert_eq!(chunked_frames(&stream, &sizes, frame_max), expected);
    }

    #[test]
    fn every_beginning_of_a_frame_is_waited_for_on_a_stream_and_malformed_as_a_whole(
        frame in frames(),
    ) {
        for end in 0..frame.len() {
            let mut start = frame[..end].to_vec();
            let mut walk = Frames::new(&mut start, FRAME_MAX);
            prop_assert!(walk.next_frame().is_none());
            prop_assert_eq!((walk.consumed(), walk.fault()), (0, None));
            let error = Envelope::parse(&frame[..end]).unwrap_err();
            let fault = if end < 24 { Fault::HeaderCut } else { Fault::LengthMismatch };
            prop_assert_eq!(error.fault, fault);
        }
    }

    #[test]
    fn every_beginning_of_a_control_message_is_malformed_even_when_its_length_is_made_to_fit(
        wanted in wanted(),
    ) {
        let frame = wanted.emit(EnvelopeHead::default(), Command::Connect);
        let whole = Envelope::parse(&frame).unwrap().payload().unwrap();
        let borders: Vec<usize> = {
            let mut walk = Attributes::new(&whole[20..], 20);
            let mut borders = vec![20];
            while walk.next().is_some() {
                borders.push(walk.offset());
            }
            borders
        };
        for end in 0..whole.len() {
            prop_assert!(Control::parse(&whole[..end]).is_err());
            if end < 20 {
                continue;
            }
            let mut cut = whole[..end].to_vec();
            cut[0..4].copy_from_slice(&(end as u32).to_le_bytes());
            // Cutting off no more than the padding of an attribute leaves it whole.
            let whole_still = borders.iter().any(|&border| end <= border && border - end < 4)
                && Control::parse(&cut).is_ok();
            prop_assert!(whole_still || Control::parse(&cut).is_err());
            prop_assert_eq!(borders.contains(&end), end % 4 == 0 && Control::parse(&cut).is_ok());
        }
    }

    #[test]
    fn a_rewrite_changes_both_addresses_and_nothing_else(
        frame in frames(),
        dst in any::<u32>(),
        src in any::<u32>(),
    ) {
        let mut rewritten = frame.clone();
        EnvelopeHead::rewrite(&mut rewritten, dst, src);
        let (before, after) = (Envelope::parse(&frame).unwrap(), Envelope::parse(&rewritten).unwrap());
        prop_assert_eq!(after.head, EnvelopeHead { dst, src, ..before.head });
        prop_assert_eq!(after.payload(), before.payload());
    }

    #[test]
    fn a_key_matches_where_the_masked_words_are_equal(key in keys(), message in vec(any::<u8>(), 0..40)) {
        let near = Key { offset: key.offset % 44, ..key };
        let at = near.offset as usize;
        let word = message
            .get(at..at + 4)
            .map(|bytes| bytes.iter().rev().fold(0u32, |sum, &b| (sum << 8) | u32::from(b)));
        let expected = near.mask == 0 || word.is_some_and(|word| (word ^ near.key) & near.mask == 0);
        prop_assert_eq!(near.matches(&message), expected);
        prop_assert_eq!(key.matches(&[]), key.mask == 0);
    }
}
