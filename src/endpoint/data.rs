//! Bodies of users' programs: cut into frames, and joined again (proto-spec/data.md).

use bytes::Bytes;

use crate::wire::{
    EnvelopeHead, HEADER_LEN, Header, LEGACY_FRAME_MAX, Message, PAYLOAD_MAX, PAYLOAD_OFFSET,
    align4, flag, nlm,
};

/// The default bound of a body that is joined from parts, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Who the messages of a body are from: their sequence number and port id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) sequence: u32,
    pub(super) pid: u32,
}

impl Numbers {
    pub(super) fn of(header: &Header) -> Self {
        Self { sequence: header.sequence, pid: header.pid }
    }
}

/// The longest body that fits one frame of at most `frame_max` bytes.
pub(super) fn whole_max(frame_max: usize) -> usize {
    let frame_max = frame_max.max(LEGACY_FRAME_MAX) & !3;
    (frame_max - PAYLOAD_OFFSET).min(PAYLOAD_MAX) - HEADER_LEN
}

/// The frames of `body`, none longer than `frame_max`. [`flag::LAST`] in `head` is set on the last alone.
pub(super) fn frames(
    head: EnvelopeHead,
    numbers: Numbers,
    body: &[u8],
    frame_max: usize,
) -> Vec<u8> {
    let whole_max = whole_max(frame_max);
    if body.len() <= whole_max {
        let mut out = Vec::with_capacity(PAYLOAD_OFFSET + HEADER_LEN + align4(body.len()));
        emit(head, data(numbers, 0, body.len()), body, &mut out);
        return out;
    }
    let part_max = whole_max & !3;
    let count = body.len().div_ceil(part_max);
    let mut out = Vec::with_capacity(body.len() + (count + 1) * (PAYLOAD_OFFSET + HEADER_LEN + 8));
    let before = EnvelopeHead { flags: head.flags & !flag::LAST, ..head };
    for part in body.chunks(part_max) {
        emit(before, data(numbers, nlm::MULTI, part.len()), part, &mut out);
    }
    let mut end = [0; 8];
    // what is longer has no place in the address space of the receiver's limits either
    end[4..].copy_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    emit(head, done_header(numbers, end.len()), &end, &mut out);
    out
}

/// The frame that ends an answer behind its last body.
pub(super) fn end_frame(head: EnvelopeHead, numbers: Numbers) -> Vec<u8> {
    let mut out = Vec::new();
    emit(head, done_header(numbers, 4), &[0; 4], &mut out);
    out
}

fn data(numbers: Numbers, flags: u16, length: usize) -> Header {
    let Numbers { sequence, pid } = numbers;
    Header { length: (HEADER_LEN + length) as u32, kind: nlm::DATA, flags, sequence, pid }
}

fn done_header(numbers: Numbers, length: usize) -> Header {
    Header { kind: nlm::DONE, ..data(numbers, nlm::MULTI, length) }
}

/// Appends one frame; the body is copied once.
fn emit(head: EnvelopeHead, header: Header, body: &[u8], out: &mut Vec<u8>) {
    let length = HEADER_LEN + body.len();
    let before = head.before_payload(length).unwrap_or_else(|too_big| {
        unreachable!("parts are cut to less than {}", too_big.max);
    });
    out.extend_from_slice(&before);
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(body);
    out.resize(out.len() + align4(length) - length, 0);
}

/// What a payload is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One body, from this offset to this one.
    Whole(usize, usize),
    /// Something else than data: the payload itself is the body.
    Opaque,
    /// Messages of which not each is a whole body.
    Messages,
}

/// What `payload` is, and the header of its first message, zero if it has none.
pub(super) fn shape(payload: &[u8]) -> (Shape, Header) {
    let Ok(first) = Message::parse(payload) else { return (Shape::Opaque, Header::default()) };
    let shape = match first.header.kind {
        nlm::DATA if first.header.flags & nlm::MULTI == 0 => {
            let end = first.bytes().len();
            if align4(end) >= payload.len() {
                Shape::Whole(HEADER_LEN, end)
            } else {
                Shape::Messages
            }
        }
        nlm::DATA | nlm::DONE | nlm::ERROR | nlm::OVERRUN | nlm::NOOP => Shape::Messages,
        _ => Shape::Opaque,
    };
    (shape, first.header)
}

/// The body in `payload`, as an offset and an end, if it is whole or opaque.
pub(super) fn whole(payload: &[u8]) -> (usize, usize) {
    match shape(payload).0 {
        Shape::Whole(start, end) => (start, end),
        _ => (0, payload.len()),
    }
}

/// The bytes that another program pushed or broadcast, out of the payload that they came in: what is not
/// of type DATA (proto-spec/data.md) is its own body.
pub fn body_of(payload: &Bytes) -> Bytes {
    let (start, end) = whole(payload);
    payload.slice(start..end)
}

/// Why parts do not make a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unjoined {
    /// They are longer than the limit.
    TooLong,
    /// Some are missing.
    Missing,
}

/// A body of which parts have come.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    sequence: Option<u32>,
    bytes: Vec<u8>,
}

impl Joiner {
    /// Takes one part.
    pub(super) fn part(&mut self, part: &Message<'_>, max: usize) -> Result<(), Unjoined> {
        if self.sequence != Some(part.header.sequence) {
            self.bytes.clear();
            self.sequence = Some(part.header.sequence);
        }
        if part.body().len() > max.saturating_sub(self.bytes.len()) {
            self.bytes = Vec::new();
            return Err(Unjoined::TooLong);
        }
        self.bytes.extend_from_slice(part.body());
        Ok(())
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// No part has come since the last body was whole.
    pub(super) fn is_idle(&self) -> bool {
        self.sequence.is_none()
    }

    /// Takes an NLMSG_DONE of code 0: the body.
    pub(super) fn done(&mut self, done: &Message<'_>) -> Result<Vec<u8>, Unjoined> {
        let bytes = std::mem::take(&mut self.bytes);
        let ours = self.sequence.take() == Some(done.header.sequence);
        let length = done.body().get(4..).and_then(<[u8]>::first_chunk);
        let length = length.map_or(bytes.len(), |length| u32::from_le_bytes(*length) as usize);
        if ours && length == bytes.len() { Ok(bytes) } else { Err(Unjoined::Missing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Envelope, FRAME_MAX, Frames, MessageBuilder, Messages};

    const HEAD: EnvelopeHead =
        EnvelopeHead { flags: flag::RESPONSE | flag::LAST, sequence: 7, pid: 8, dst: 9, src: 10 };
    const NUMBERS: Numbers = Numbers { sequence: 3, pid: 4 };

    fn split(mut run: Vec<u8>, frame_max: usize) -> Vec<Vec<u8>> {
        let length = run.len();
        let mut frames = Frames::new(&mut run, frame_max);
        let mut all = Vec::new();
        while let Some((_, frame)) = frames.next_frame() {
            all.push(frame.to_vec());
        }
        assert_eq!(frames.consumed(), length);
        all
    }

    fn join(frames: &[Vec<u8>], max: usize) -> Result<Vec<u8>, Unjoined> {
        let mut joiner = Joiner::default();
        for frame in frames {
            for message in Messages::new(Envelope::parse(frame).unwrap().payload().unwrap()) {
                let message = message.unwrap();
                match message.header.kind {
                    nlm::DATA => joiner.part(&message, max)?,
                    _ => return joiner.done(&message),
                }
            }
        }
        Err(Unjoined::Missing)
    }

    #[test]
    fn a_body_is_cut_exactly_where_it_outgrows_a_frame_and_joined_again() {
        for frame_max in [LEGACY_FRAME_MAX, 20_001, FRAME_MAX] {
            let fits = whole_max(frame_max);
            for length in [0, 1, fits - 1, fits, fits + 1, 3 * fits, 200_000] {
                let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
                let frames = split(frames(HEAD, NUMBERS, &body, frame_max), frame_max);
                assert_eq!(frames.len() == 1, length <= fits, "{length} at {frame_max}");
                let last = |frame: &Vec<u8>| Envelope::parse(frame).unwrap().head == HEAD;
                assert_eq!(frames.iter().filter(|frame| last(frame)).count(), 1);
                assert!(last(&frames[frames.len() - 1]));
                if let [frame] = frames.as_slice() {
                    let payload = Envelope::parse(frame).unwrap().payload().unwrap();
                    let (start, end) = whole(payload);
                    assert_eq!(payload[start..end], body);
                } else {
                    assert_eq!(join(&frames, length), Ok(body));
                    assert_eq!(join(&frames, length - 1), Err(Unjoined::TooLong));
                }
            }
        }
    }

    #[test]
    fn a_missing_part_is_noticed_wherever_it_stood() {
        let frames = split(frames(HEAD, NUMBERS, &[7; 200_000], FRAME_MAX), FRAME_MAX);
        for missing in 0..frames.len() - 1 {
            let mut frames = frames.clone();
            frames.remove(missing);
            assert_eq!(join(&frames, 1 << 20), Err(Unjoined::Missing), "part {missing}");
        }
    }

    #[test]
    fn what_is_not_data_is_its_own_body() {
        for payload in [&b"add@/devices"[..], b"", b"0123456789abcdef too short"] {
            assert_eq!(whole(payload), (0, payload.len()));
        }
        let netlink = MessageBuilder::new(18, nlm::REQUEST).body(&[0; 16]).finish();
        assert_eq!(whole(&netlink), (0, netlink.len()));
    }
}
