//! A control message that parses is written again to the same meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nlbus::wire::{
    Control, ControlAttribute as Kind, ControlBuilder, Envelope, EnvelopeHead, TooBig, flag,
};

fuzz_target!(|data: &[u8]| {
    let Ok(control) = Control::parse(data) else { return };
    let keys = control.keys().filter(|key| key.matches(data)).count();
    assert!(keys <= data.len() / 16);
    let mut frame = Vec::new();
    // Written NULs and padding can make it outgrow one CDATA; then there is nothing to compare.
    if write(&control, &mut frame).is_err() {
        assert!(frame.is_empty());
        return;
    }
    let Some(command) = control.command() else { return };
    let envelope = Envelope::parse(&frame).expect("what was written parses");
    assert_eq!(envelope.head.flags, flag::CONTROL);
    let payload = envelope.payload().expect("what was written has a payload");
    let again = Control::parse(payload).expect("what was written is sound");
    assert_eq!(again.command(), Some(command));
    assert_eq!(again.header.sequence, control.header.sequence);
    assert_eq!(values(&again), values(&control));
    assert!(again.keys().eq(control.keys()));
});

/// The texts and the numbers of a control message.
type Values<'a> = ([Option<&'a str>; 5], [Option<u32>; 6], Option<&'a [u8]>);

fn values<'a>(control: &Control<'a>) -> Values<'a> {
    let Control { host, ssl_key, ssl_cert, ssl_ca, error, .. } = *control;
    let Control { addr, cid, errno, version, frame_max, port, .. } = *control;
    (
        [host, ssl_key, ssl_cert, ssl_ca, error],
        [addr, cid, errno, version, frame_max, port],
        control.secret,
    )
}

fn write(control: &Control<'_>, frame: &mut Vec<u8>) -> Result<(), TooBig> {
    let Some(command) = control.command() else { return Ok(()) };
    let head = EnvelopeHead { sequence: control.header.sequence, ..EnvelopeHead::default() };
    let mut builder = ControlBuilder::new(frame, head, command);
    let (texts, numbers, secret) = values(control);
    let kinds = [Kind::Host, Kind::SslKey, Kind::SslCert, Kind::SslCa, Kind::Error];
    for (kind, text) in kinds.into_iter().zip(texts) {
        if let Some(text) = text {
            builder = builder.string(kind, text)?;
        }
    }
    let kinds = [Kind::Addr, Kind::Cid, Kind::Errno, Kind::Version, Kind::FrameMax, Kind::Port];
    for (kind, number) in kinds.into_iter().zip(numbers) {
        if let Some(number) = number {
            builder = builder.u32(kind, number)?;
        }
    }
    if let Some(secret) = secret {
        builder = builder.bytes(Kind::Secret, secret)?;
    }
    for key in control.keys() {
        builder = builder.key(key)?;
    }
    builder.finish();
    Ok(())
}
