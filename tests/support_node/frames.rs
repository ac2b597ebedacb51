//! Frames as tests write and read them.

use nlbus::wire::{
    Command, Control, ControlBuilder, Envelope, EnvelopeHead, ErrorMessage, Frames, Header,
    Message, MessageBuilder, TooBig, flag, nlm,
};

/// A message of a family that is not netlink's own.
pub(crate) const MESSAGE_TYPE: u16 = 0x20;

/// A frame with `payload`.
pub(crate) fn data(head: EnvelopeHead, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    head.emit(payload, &mut frame).unwrap();
    frame
}

/// A frame with a request that asks, from `src` to `dst`.
pub(crate) fn ask(dst: u32, src: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    data(EnvelopeHead { flags: flag::ASK, sequence, pid: 77, dst, src }, payload)
}

/// A frame without flags.
pub(crate) fn push(dst: u32, src: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    data(EnvelopeHead { flags: 0, sequence, pid: 77, dst, src }, payload)
}

/// A control frame from `src`.
pub(crate) fn control(
    src: u32,
    sequence: u32,
    command: Command,
    fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
) -> Vec<u8> {
    let mut frame = Vec::new();
    let head = EnvelopeHead { flags: 0, sequence, pid: 77, dst: 0, src };
    fill(ControlBuilder::new(&mut frame, head, command)).unwrap().finish();
    frame
}

/// A netlink message with `body`.
pub(crate) fn message(flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    MessageBuilder::new(MESSAGE_TYPE, flags).sequence(sequence).pid(5).body(body).finish()
}

/// The NLMSG_DONE that ends a multipart answer, with a code.
pub(crate) fn done(sequence: u32, code: i32) -> Vec<u8> {
    MessageBuilder::new(nlm::DONE, nlm::MULTI)
        .sequence(sequence)
        .pid(5)
        .body(&code.to_le_bytes())
        .finish()
}

/// An acknowledgement: NLMSG_ERROR with code 0.
pub(crate) fn ack(request: &Header) -> Vec<u8> {
    ErrorMessage::emit(0, request, "")
}

/// The frames in `bytes`, which hold whole ones.
pub(crate) fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    let mut frames = Frames::new(&mut bytes, 1 << 20);
    let mut all = Vec::new();
    while let Some((_, frame)) = frames.next_frame() {
        all.push(frame.to_vec());
    }
    assert_eq!(frames.consumed(), length, "whole frames");
    all
}

pub(crate) fn head_of(frame: &[u8]) -> EnvelopeHead {
    Envelope::parse(frame).unwrap().head
}

pub(crate) fn payload_of(frame: &[u8]) -> &[u8] {
    Envelope::parse(frame).unwrap().payload().unwrap()
}

/// What a control answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) command: Option<Command>,
    pub(crate) addr: Option<u32>,
    pub(crate) cid: Option<u32>,
    pub(crate) errno: Option<i32>,
    pub(crate) error: Option<String>,
    pub(crate) version: Option<u32>,
    pub(crate) frame_max: Option<u32>,
}

impl Said {
    /// What the control frame `frame` says.
    pub(crate) fn of(frame: &[u8]) -> Self {
        let control = Control::parse(payload_of(frame)).unwrap();
        Self {
            command: control.command(),
            addr: control.addr,
            cid: control.cid,
            errno: control.errno.map(|errno| errno as i32),
            error: control.error.map(str::to_owned),
            version: control.version,
            frame_max: control.frame_max,
        }
    }

    pub(crate) fn is_ack(&self) -> bool {
        self.command == Some(Command::Ack)
    }
}

/// The NLMSG_ERROR in an EXCEPTION: its number, positive, the header that it embeds, and its text.
pub(crate) fn exception(frame: &[u8]) -> (i32, Header, String) {
    let head = head_of(frame);
    let flags = head.flags & !flag::HOPS_MASK;
    assert_eq!(flags, flag::EXCEPTION | flag::RESPONSE, "{head:?}");
    let message = Message::parse(payload_of(frame)).unwrap();
    assert_eq!(message.header.kind, nlm::ERROR);
    let error = ErrorMessage::parse(&message).unwrap();
    (-error.code, error.request, error.text.unwrap_or_default().to_owned())
}
