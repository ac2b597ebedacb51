//! Whatever bytes come as requests or answers of queues: a value or an error, never a panic.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use bytes::Bytes;
use nlbus::service::queue::machine::{
    Command, Machine, MachineOptions, RECEIVE_QUEUES_MAX, Receive, Send, Subscribe,
};
use nlbus::service::queue::protocol::{
    Asked, Body, HEADERS_MAX, QUEUE_TYPE, Record, attr, cmd, emit_command, options_from_bytes,
    options_to_bytes, parse_request, read_answers,
};
use nlbus::service::queue::{Mode, Policy, QueueOptions};
use nlbus::store::{Loaded, SendId, Time};
use nlbus::wire::{Message, MessageBuilder, Messages, errno};
use proptest::prelude::*;

/// A message of the right type with any command and any attributes behind each other.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let attribute = (0..60_u16, prop::collection::vec(any::<u8>(), 0..20));
    (0..45_u8, prop::collection::vec(attribute, 0..8), any::<u32>()).prop_map(
        |(command, attributes, sequence)| {
            let head = [command, 1, 0, 0];
            let builder = MessageBuilder::new(QUEUE_TYPE, 0).sequence(sequence).body(&head);
            let built = attributes
                .into_iter()
                .fold(builder, |builder, (kind, value)| builder.attribute(kind, &value).unwrap());
            built.finish()
        },
    )
}

fn read_all(bytes: &[u8]) -> Vec<Command> {
    let mut commands = Vec::new();
    for message in Messages::new(bytes).map_while(Result::ok) {
        if let Ok(Asked::Command(command)) = parse_request(&message) {
            commands.push(command);
        }
    }
    let bytes = Bytes::copy_from_slice(bytes);
    let _ = read_answers(&bytes, |_, _| {});
    let _ = Record::read(&bytes);
    let _ = options_from_bytes(&bytes);
    commands
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn any_attributes_in_any_order_do_the_machine_no_harm(
        messages in prop::collection::vec(message(), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut machine = Machine::new(MachineOptions::default(), true, Loaded::default(), Time(1));
        let mut effects = Vec::new();
        for (token, message) in messages.iter().enumerate() {
            read_all(&message[..cut.index(message.len())]);
            for command in read_all(message) {
                machine.handle(Time(token as u64), 7, token as u64, command);
                machine.poll_effects(Time(token as u64), &mut effects);
                if machine.poll_batch().is_some() {
                    machine.handle_stored(Time(token as u64), Ok(()));
                }
            }
        }
        machine.handle_time(Time(u64::MAX));
        machine.handle_gone(Time(u64::MAX), 7);
        machine.poll_effects(Time(u64::MAX), &mut effects);
    }

    #[test]
    fn a_command_survives_its_bytes(
        queue in "[a-z]{1,9}",
        payload in prop::collection::vec(any::<u8>(), 0..300),
        number in 1..1_000_u64,
        yes in any::<bool>(),
    ) {
        let record = Record {
            correlation: Bytes::from_static(b"c"),
            headers: vec![("h".to_owned(), Bytes::copy_from_slice(&payload))],
            payload: payload.clone().into(),
            ..Record::default()
        };
        let send_id = SendId { sender: number.into(), sequence: number };
        let options = QueueOptions::default()
            .mode(if yes { Mode::Fanout } else { Mode::Share })
            .policy(if yes { Policy::Block } else { Policy::DropOldest })
            .lease_ms(number)
            .dead_letter(yes.then(|| "dead".to_owned()));
        prop_assert_eq!(options_from_bytes(&options_to_bytes(&options)).unwrap(), options);
        let commands = [
            Command::Send(Send {
                queue: queue.clone(),
                create: yes,
                send_id: yes.then_some(send_id),
                ttl_ms: Some(number),
                reply_to: None,
                record: record.to_bytes().into(),
            }),
            Command::Receive(Receive {
                queues: vec![queue.clone(), "other".to_owned()],
                messages_max: 5,
                timeout_ms: number,
                lease_ms: yes.then_some(number),
                auto_ack: yes,
            }),
            Command::Subscribe(Subscribe {
                queue: queue.clone(),
                credit: 3,
                credit_bytes: number,
                lease_ms: None,
            }),
            Command::Ack { queue: queue.clone(), ids: vec![number, 2], force: yes },
            Command::Destroy { queue: queue.clone(), if_empty: yes },
            Command::Withdraw { queue, send_id },
        ];
        let mut body = Body::default();
        for (sequence, command) in commands.iter().enumerate() {
            emit_command(command, sequence as u32, &mut body);
        }
        let read: Vec<Command> = Messages::new(body.as_bytes())
            .map(|message| match parse_request(&message.unwrap()).unwrap() {
                Asked::Command(command) => command,
                Asked::Shutdown => panic!("none was asked for"),
            })
            .collect();
        prop_assert_eq!(read.as_slice(), commands.as_slice());
        prop_assert_eq!(Record::read(&record.to_bytes().into()), record);
    }
}

#[test]
fn a_payload_that_is_longer_than_an_attribute_is_put_together_again() {
    let payload: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let record = Record { payload: payload.into(), ..Record::default() };
    assert_eq!(Record::read(&record.to_bytes().into()), record);
    let empty = MessageBuilder::new(QUEUE_TYPE, 0).finish();
    assert!(parse_request(&Message::parse(&empty).unwrap()).is_err());
}

#[test]
fn more_headers_names_or_bytes_of_a_name_than_a_message_may_have_are_refused() {
    let outcome = |command: u8, attributes: &[(u16, &[u8])]| {
        let head = [command, 1, 0, 0];
        let builder = MessageBuilder::new(QUEUE_TYPE, 0).body(&head);
        let built = attributes
            .iter()
            .fold(builder, |builder, (kind, value)| builder.attribute(*kind, value).unwrap());
        let bytes = built.finish();
        parse_request(&Message::parse(&bytes).unwrap()).map_err(|refusal| refusal.errno)
    };
    let queue = (attr::QUEUE, &b"q"[..]);
    let header = (attr::HEADER, &b"h\0"[..]);
    let name = vec![b'x'; 256];
    for (command, many, max) in
        [(cmd::SEND, header, HEADERS_MAX), (cmd::RECEIVE, queue, RECEIVE_QUEUES_MAX)]
    {
        let mut attributes = vec![queue];
        attributes.extend(vec![many; max]);
        assert!(outcome(command, &attributes).is_ok());
        attributes.push(many);
        assert_eq!(outcome(command, &attributes), Err(errno::EINVAL));
    }
    for (length, ok) in [(255, true), (256, false)] {
        let reply_to = (attr::REPLY_TO, &name[..length]);
        assert_eq!(outcome(cmd::SEND, &[queue, reply_to]).is_ok(), ok);
        assert_eq!(outcome(cmd::DESTROY, &[(attr::QUEUE, &name[..length])]).is_ok(), ok);
    }
}
