//! Requests, answers, records and options of queues: any bytes are read without harm, and what was read means
//! the same when it is written and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nlbus::service::queue::machine::Command;
use nlbus::service::queue::protocol::{
    Asked, Body, Record, emit_command, options_from_bytes, options_to_bytes, parse_request,
    read_answers, reply_to_of, with_dead_letter,
};
use nlbus::wire::{Message, Messages};

/// Longer texts could outgrow an attribute once what is no UTF-8 is replaced.
const LENGTH_MAX: usize = 20_000;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let _ = read_answers(&bytes, |_, _| {});
    let _ = reply_to_of(&bytes);
    if data.len() > LENGTH_MAX {
        return;
    }
    for message in Messages::new(data).map_while(Result::ok) {
        let Some(command) = command(&message) else { continue };
        let mut body = Body::default();
        emit_command(&command, 7, &mut body);
        let message = Message::parse(body.as_bytes()).expect("what was written is a message");
        let again = self::command(&message).expect("what was written is a command");
        // one NUL at the end of a name is no part of it
        if !format!("{command:?}").contains("\\0") {
            assert_eq!(again, command);
        }
    }
    let record = Record::read(&bytes).to_bytes();
    let again = Record::read(&record.clone().into());
    if !format!("{again:?}").contains("\\0") {
        assert_eq!(Record::read(&again.to_bytes().into()), again);
    }
    let dead = with_dead_letter(&record, "q", 1, 2);
    assert_eq!(with_dead_letter(&dead, "q", 1, 2), dead, "it does not grow");
    if let Ok(options) = options_from_bytes(data) {
        let again = options_from_bytes(&options_to_bytes(&options)).expect("it was written");
        assert!(again == options || format!("{options:?}").contains("\\0"));
    }
});

fn command(message: &Message<'_>) -> Option<Command> {
    match parse_request(message) {
        Ok(Asked::Command(command)) => Some(command),
        _ => None,
    }
}
