//! The core without a socket: who gets which frame, under which addresses.

mod support_node;

use nlbus::broker::{
    Access, Action, Delivery, EVERYBODY, Limits, LinkId, LinkKind, RETURN_BASE, Rights,
    SUBSYSTEM_BASE, Source,
};
use nlbus::wire::{
    Command, ControlAttribute, EnvelopeHead, FRAME_MAX, Fault, Header, Key, LEGACY_FRAME_MAX,
    Malformed, PAYLOAD_OFFSET, errno, flag,
};
use support_node::bus::{Bus, REMOTE, SERVICE, STRANGER};
use support_node::frames::{ask, control, data, exception, head_of, message, push};

/// A bus with a provider of `route` on port 7 of a local link, and its address.
fn served() -> (Bus, LinkId, u32) {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    (bus, service, address)
}

// --- addresses ---

#[test]
fn subsystems_get_addresses_in_order_from_0x00010003() {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    assert_eq!(SUBSYSTEM_BASE, 0x0001_0003);
    for (number, name) in ["route", "generic", "audit"].into_iter().enumerate() {
        assert_eq!(bus.provide(service, name, number as u32), 0x0001_0003 + number as u32);
    }
    let listed: Vec<_> = bus.broker.subsystems().collect();
    assert_eq!(listed, [("route", 0x10003, 1), ("generic", 0x10004, 1), ("audit", 0x10005, 1)]);
}

#[test]
fn a_name_keeps_its_address_while_its_providers_come_and_go() {
    let (mut bus, service, address) = served();
    bus.provide(service, "generic", 8);
    bus.down(service);
    let other = bus.up(SERVICE);
    assert_eq!(bus.provide(other, "audit", 1), address + 2);
    assert_eq!(bus.provide(other, "route", 2), address);
    assert!(bus.remove(other, "route", 2).is_ack());
    assert_eq!(bus.provide(other, "route", 3), address);
}

// --- requests and answers ---

#[test]
fn a_request_and_its_answer_change_nothing_but_addresses() {
    let (mut bus, service, address) = served();
    let asker = bus.up(STRANGER);
    let payload = message(0x300, 41, b"payload!");
    let request = EnvelopeHead {
        flags: flag::ASK | 0x0300 | 0x40,
        sequence: 0xdead_beef,
        pid: 0x8000_0001,
        dst: address,
        src: 5,
    };
    let got = bus.send_one(asker, &data(request, &payload));
    let back = got.head().src;
    assert_eq!((got.to, got.delivery), (service, Delivery::Hold));
    assert!((RETURN_BASE..EVERYBODY).contains(&back));
    assert_eq!(got.frame, data(EnvelopeHead { dst: 7, src: back, ..request }, &payload));

    let answer = EnvelopeHead { flags: flag::RESPONSE, dst: back, src: 7, ..request };
    let got = bus.send_one(service, &data(answer, b"answer"));
    assert_eq!((got.to, got.delivery), (asker, Delivery::Reply));
    assert_eq!(got.frame, data(EnvelopeHead { dst: 5, src: address, ..answer }, b"answer"));

    let counters = bus.counters();
    assert_eq!((counters.frames, counters.requests, counters.replies), (3, 1, 1));
}

#[test]
fn a_client_of_the_original_gets_its_answer_at_0() {
    let (mut bus, service, address) = served();
    let asker = bus.up(STRANGER);
    let got = bus.send_one(asker, &push(0x0001_0003, 0, 65_534, b"request"));
    let got = bus.send_one(service, &push(got.head().src, 7, 65_534, b"answer"));
    assert_eq!(got.frame, push(0, address, 65_534, b"answer"));
}

#[test]
fn each_port_of_a_link_has_a_return_address_of_its_own_and_keeps_it() {
    let (mut bus, service, address) = served();
    let (one, two) = (bus.up(STRANGER), bus.up(STRANGER));
    let mut back = Vec::new();
    for (link, port) in [(one, 1), (one, 2), (two, 1), (one, u32::MAX), (two, 0)] {
        let head = bus.send_one(link, &ask(address, port, 1, b"")).head();
        assert!(!back.contains(&(link, port, head.src)));
        assert_eq!(bus.send_one(link, &ask(address, port, 2, b"")).head().src, head.src);
        back.push((link, port, head.src));
    }
    assert_eq!(bus.broker.returns_len(), 5);
    for (link, port, at) in back.iter().rev() {
        let got = bus.send_one(service, &push(*at, 7, 3, b""));
        assert_eq!((got.to, got.head().dst, got.head().src), (*link, *port, address));
    }
}

#[test]
fn the_return_address_outlives_hello_and_control() {
    let (mut bus, _, address) = served();
    let asker = bus.up(STRANGER);
    let before = bus.send_one(asker, &ask(address, 4, 1, b"")).head().src;
    bus.hello(asker, FRAME_MAX as u32);
    bus.subscribe(asker);
    assert_eq!(bus.send_one(asker, &ask(address, 4, 2, b"")).head().src, before);
}

#[test]
fn a_stale_return_address_never_reaches_a_newer_link_in_the_same_slot() {
    let (mut bus, service, address) = served();
    let slot_of = |address: u32| address & 0x1f_ffff;
    let mut stale_of = std::collections::HashMap::<u32, Vec<u32>>::new();
    let mut tried = 0;
    for _ in 0..3_000 {
        let asker = bus.up(STRANGER);
        let back = bus.send_one(asker, &ask(address, 0, 1, b"")).head().src;
        assert_eq!(bus.send_one(service, &push(back, 7, 1, b"in time")).to, asker);
        for stale in stale_of.entry(slot_of(back)).or_default() {
            assert_ne!(*stale, back);
            assert_eq!(bus.send(service, &push(*stale, 7, 1, b"late")), []);
            let got = bus.send_one(service, &ask(*stale, 7, 1, b"late"));
            assert_eq!((got.to, exception(&got.frame).0), (service, errno::ENOENT));
            tried += 1;
        }
        assert_eq!(
            bus.down(asker),
            [Action::Gone { to: service, address: back }],
            "the provider is told"
        );
        stale_of.entry(slot_of(back)).or_default().push(back);
        let newer = bus.up(STRANGER);
        assert_eq!(newer.index(), asker.index(), "the link's slot is used again");
        assert_ne!(newer, asker);
        assert_eq!(bus.send(service, &push(back, 7, 1, b"late")), []);
        bus.down(newer);
    }
    assert!(tried > 1_000, "slots of return addresses were used again: {tried}");
    assert_eq!(bus.counters().stale, 2 * tried + 3_000);
    assert_eq!(bus.broker.returns_len(), 0, "nothing is left behind");
}

#[test]
fn a_port_that_provides_no_more_asks_under_a_return_address() {
    let (mut bus, first, address) = served();
    let second = bus.up(SERVICE);
    let elsewhere = bus.provide(second, "other", 1);
    assert_eq!(bus.send_one(second, &ask(address, 1, 1, b"")).head().src, elsewhere);
    bus.remove(second, "other", 1);
    let back = bus.send_one(second, &ask(address, 1, 2, b"")).head().src;
    assert!(back >= RETURN_BASE, "{back:#x}");
    assert_eq!(bus.send_one(first, &push(back, 7, 2, b"")).to, second);
}

#[test]
fn a_link_that_is_down_sends_nothing_and_goes_down_only_once() {
    let (mut bus, _, address) = served();
    let asker = bus.up(STRANGER);
    let newer = {
        bus.down(asker);
        bus.up(STRANGER)
    };
    assert_eq!(bus.send(asker, &ask(address, 0, 1, b"")), []);
    assert_eq!(bus.down(asker), []);
    assert_eq!(bus.broker.links_len(), 2);
    assert_eq!(bus.send(newer, &ask(address, 0, 1, b"")).len(), 1);
}

#[test]
fn only_local_providers_are_told_of_askers_that_are_gone() {
    let (mut bus, service, address) = served();
    let remote = bus.up(REMOTE);
    bus.provide(remote, "route", 1);
    bus.up(SERVICE); // provides nothing
    let asker = bus.up(STRANGER);
    let one = bus.send_one(asker, &ask(address, 1, 1, b"")).head().src;
    let two = bus.send_one(asker, &ask(address, 2, 1, b"")).head().src;
    let mut gone = bus.down(asker);
    gone.sort_by_key(|action| matches!(action, Action::Gone { address, .. } if *address == two));
    let gone_of = |address| Action::Gone { to: service, address };
    assert_eq!(gone, [gone_of(one), gone_of(two)]);
}

#[test]
fn only_a_provider_may_send_to_a_return_address() {
    let (mut bus, _, address) = served();
    let (asker, thief) = (bus.up(STRANGER), bus.up(SERVICE));
    let back = bus.send_one(asker, &ask(address, 0, 1, b"")).head().src;

    assert_eq!(bus.send(thief, &push(back, 0, 1, b"forged")), []);
    assert_eq!((bus.counters().forbidden, bus.counters().dropped), (1, 1));

    let got = bus.send_one(thief, &ask(back, 3, 1, b"forged"));
    assert_eq!((got.to, exception(&got.frame).0), (thief, errno::EPERM));
    assert_eq!((got.head().dst, got.head().src), (3, back));
    assert_eq!((bus.counters().forbidden, bus.counters().exceptions), (2, 1));

    bus.provide(thief, "other", 0);
    assert_eq!(bus.send_one(thief, &push(back, 0, 1, b"")).to, asker);
    // what it was asked before it withdraws, it may still answer
    bus.remove(thief, "other", 0);
    assert_eq!(bus.send_one(thief, &push(back, 0, 1, b"")).to, asker);
    assert_eq!(bus.counters().forbidden, 2);
}

#[test]
fn a_link_without_the_right_to_use_the_bus_may_send_nothing() {
    let (mut bus, _, address) = served();
    let mute = bus.up(LinkKind::stream(Access::reading(Rights::NONE)));
    for dst in [0, EVERYBODY, address, RETURN_BASE, 5] {
        let got = bus.send_one(mute, &ask(dst, 0, 1, b""));
        assert_eq!((got.to, exception(&got.frame).0), (mute, errno::EPERM));
        assert_eq!(bus.send(mute, &push(dst, 0, 1, b"")), []);
    }
    let counters = bus.counters();
    assert_eq!((counters.forbidden, counters.exceptions, counters.dropped), (10, 5, 5));
    assert_eq!(counters.requests + counters.broadcasts + counters.stale, 0);
}

#[test]
fn a_subsystem_without_a_provider_is_enoent() {
    let (mut bus, service, address) = served();
    let asker = bus.up(STRANGER);
    bus.down(service);
    let got = bus.send_one(asker, &ask(address, 0, 1, b""));
    assert_eq!((got.to, exception(&got.frame).0), (asker, errno::ENOENT));
}

#[test]
fn a_provider_may_ask_as_well() {
    let (mut bus, service, address) = served();
    let other = bus.up(SERVICE);
    bus.provide(other, "other", 1);
    let got = bus.send_one(other, &ask(address, 1, 1, b""));
    assert_eq!((got.to, got.head().src), (service, address + 1), "its port has an address");
    let got = bus.send_one(other, &ask(address, 2, 1, b""));
    assert!(got.head().src >= RETURN_BASE);
    let got = bus.send_one(service, &push(address + 1, 7, 1, b""));
    assert_eq!((got.to, got.head().dst), (other, 1));
}

// --- exceptions ---

#[test]
fn an_unknown_address_with_ask_comes_back_with_swapped_addresses_and_the_inner_header() {
    let mut bus = Bus::default();
    let (asker, subscriber) = (bus.up(STRANGER), bus.up(STRANGER));
    bus.subscribe(subscriber);
    let inner = message(0x305, 41, b"sixteen bytes...");
    for dst in [1, 0x0001_0002, 0x0001_0003, 0x0001_ffff, 0x0002_0000, RETURN_BASE - 1] {
        let got = bus.send_one(asker, &ask(dst, 5, 99, &inner));
        assert_eq!((got.to, got.delivery), (asker, Delivery::Hold));
        let head = got.head();
        assert_eq!((head.dst, head.src, head.sequence, head.pid), (5, dst, 99, 77));
        let (number, request, text) = exception(&got.frame);
        assert_eq!((number, request), (errno::ENOENT, Header::parse(&inner).unwrap()));
        assert!(text.contains(&format!("{dst:#010x}")), "{text}");
    }
    assert_eq!(bus.counters().exceptions, 6);
    assert_eq!(bus.counters().broadcasts, 0, "it does not go to subscribers");
}

#[test]
fn an_exception_for_a_payload_without_a_message_embeds_zeros() {
    let mut bus = Bus::default();
    let asker = bus.up(STRANGER);
    let no_cdata = {
        let mut frame = ask(9, 5, 99, b"");
        frame[26] = 1; // the attribute is none that is known
        frame
    };
    for frame in [ask(9, 5, 99, b"text"), ask(9, 5, 99, b""), no_cdata] {
        let got = bus.send_one(asker, &frame);
        assert_eq!(exception(&got.frame).1, Header::default());
    }
}

#[test]
fn nothing_answers_an_exception() {
    let mut bus = Bus::default();
    let asker = bus.up(STRANGER);
    let head = |flags| EnvelopeHead { flags, sequence: 1, pid: 2, dst: 9, src: 3 };
    let flags = flag::ASK | flag::EXCEPTION | flag::RESPONSE;
    assert_eq!(bus.send(asker, &data(head(flags), b"")), []);
    assert_eq!((bus.counters().exceptions, bus.counters().dropped), (0, 1));
}

#[test]
fn a_frame_longer_than_the_target_takes_comes_back_as_emsgsize() {
    let (mut bus, service, address) = served();
    let asker = bus.up(STRANGER);
    let back = bus.send_one(asker, &ask(address, 0, 1, b"")).head().src;
    let at_most = vec![1; LEGACY_FRAME_MAX - PAYLOAD_OFFSET];
    let too_much = vec![1; LEGACY_FRAME_MAX - PAYLOAD_OFFSET + 1];

    assert_eq!(bus.send_one(service, &ask(back, 7, 1, &at_most)).to, asker);
    let got = bus.send_one(service, &ask(back, 7, 1, &too_much));
    assert_eq!((got.to, exception(&got.frame).0), (service, errno::EMSGSIZE));
    assert_eq!(bus.send(service, &push(back, 7, 1, &too_much)), []);
    let counters = bus.counters();
    assert_eq!((counters.too_long, counters.exceptions, counters.dropped), (2, 1, 1));
    assert_eq!(counters.replies, 1);

    bus.hello(asker, LEGACY_FRAME_MAX as u32 + 4);
    assert_eq!(bus.send_one(service, &push(back, 7, 1, &too_much)).to, asker);
    let beyond = [&too_much[..], &[0; 4]].concat();
    assert_eq!(bus.send(service, &push(back, 7, 1, &beyond)), []);
    assert_eq!(bus.counters().too_long, 3);
}

// --- broadcasts ---

#[test]
fn a_frame_for_nobody_in_particular_goes_to_subscribers_with_a_wiped_header() {
    let mut bus = Bus::default();
    let (sender, subscriber, other) = (bus.up(STRANGER), bus.up(STRANGER), bus.up(STRANGER));
    bus.subscribe(subscriber);
    let wiped = data(EnvelopeHead::default(), b"news");
    for dst in [0, EVERYBODY, 5, 0x0001_0003] {
        let head = EnvelopeHead { flags: 0x0204, sequence: 9, pid: 8, dst, src: 6 };
        let got = bus.send_one(sender, &data(head, b"news"));
        assert_eq!((got.to, got.delivery, &got.frame), (subscriber, Delivery::Shed, &wiped));
    }
    // ASK changes nothing where subscribers are meant
    for dst in [0, EVERYBODY] {
        assert_eq!(bus.send_one(sender, &ask(dst, 6, 9, b"news")).frame, wiped);
    }
    let counters = bus.counters();
    assert_eq!((counters.broadcasts, counters.unwanted), (6, 0));
    assert_eq!(bus.send(other, &push(0, 0, 0, b"news")).len(), 1);
    assert_eq!(bus.broker.returns_len(), 0, "a broadcast takes no return address");
}

#[test]
fn a_broadcast_that_nobody_wants_is_counted() {
    let mut bus = Bus::default();
    let (sender, subscriber) = (bus.up(STRANGER), bus.up(STRANGER));
    assert_eq!(bus.send(sender, &push(0, 0, 0, b"news")), []);
    assert_eq!((bus.counters().broadcasts, bus.counters().unwanted), (1, 1));
    let never = Key { offset: 0, key: 1, mask: 1 };
    bus.control(subscriber, Command::Subscribe, |control| control.key(never));
    assert_eq!(bus.send(sender, &push(0, 0, 0, &[0; 4])), []);
    assert_eq!((bus.counters().broadcasts, bus.counters().unwanted), (2, 2));
    assert_eq!(bus.send(sender, &push(0, 0, 0, &[1, 0, 0, 0])).len(), 1);
    assert_eq!((bus.counters().broadcasts, bus.counters().unwanted), (3, 2));
}

#[test]
fn two_subscriptions_of_a_link_give_one_copy() {
    let mut bus = Bus::default();
    let (sender, subscriber) = (bus.up(STRANGER), bus.up(STRANGER));
    let cids = [bus.subscribe(subscriber), bus.subscribe(subscriber)];
    for _ in 0..2 {
        assert_eq!(bus.send_one(sender, &push(0, 0, 0, b"")).to, subscriber);
    }
    assert!(unsubscribe(&mut bus, subscriber, cids[0]).is_ack());
    assert_eq!(bus.send(sender, &push(0, 0, 0, b"")).len(), 1);
    assert!(unsubscribe(&mut bus, subscriber, cids[1]).is_ack());
    assert_eq!(bus.send(sender, &push(0, 0, 0, b"")), []);
}

#[test]
fn a_subscriber_gets_its_own_broadcasts_too() {
    let mut bus = Bus::default();
    let sender = bus.up(STRANGER);
    bus.subscribe(sender);
    assert_eq!(bus.send_one(sender, &push(0, 3, 4, b"mine")).to, sender);
}

#[test]
fn a_greeted_subscriber_sees_the_subsystem_and_one_of_the_original_does_not() {
    let (mut bus, service, address) = served();
    let (old, new) = (bus.up(STRANGER), bus.up(STRANGER));
    bus.hello(new, FRAME_MAX as u32);
    bus.subscribe(old);
    bus.subscribe(new);
    let subscribed = bus.up(SERVICE);
    bus.subscribe(subscribed);

    let got = bus.send(service, &push(0, 7, 9, b"event"));
    let of = |src| data(EnvelopeHead { src, ..EnvelopeHead::default() }, b"event");
    let seen: Vec<_> = got.iter().map(|got| (got.to, got.frame.clone())).collect();
    assert_eq!(seen, [(old, of(0)), (new, of(address)), (subscribed, of(address))]);

    // a port that provides nothing is not told, not even as a return address
    let got = bus.send(service, &push(0, 8, 9, b"event"));
    assert!(got.iter().all(|got| got.frame == of(0)), "{got:?}");
}

#[test]
fn a_subscription_to_a_subsystem_gets_its_broadcasts_alone() {
    let (mut bus, service, address) = served();
    bus.provide(service, "generic", 8);
    let (by_name, by_address) = (bus.up(STRANGER), bus.up(STRANGER));
    let said = bus.control(by_name, Command::Subscribe, |control| {
        control.string(ControlAttribute::Host, "generic")
    });
    assert!(said.is_ack());
    let said = bus.control(by_address, Command::Subscribe, |control| {
        control.u32(ControlAttribute::Addr, address)
    });
    assert!(said.is_ack());
    let to = |bus: &mut Bus, port| {
        bus.send(service, &push(0, port, 0, b"")).iter().map(|got| got.to).collect::<Vec<_>>()
    };
    assert_eq!(to(&mut bus, 7), [by_address]);
    assert_eq!(to(&mut bus, 8), [by_name]);
    assert_eq!(to(&mut bus, 9), []);
}

#[test]
fn all_keys_of_a_subscription_must_match() {
    let mut bus = Bus::default();
    let (sender, subscriber) = (bus.up(STRANGER), bus.up(STRANGER));
    bus.control(subscriber, Command::Subscribe, |control| {
        control
            .key(Key { offset: 4, key: 0xff12, mask: 0xff })?
            .key(Key { offset: 8, key: 0, mask: 0 })?
            .key(Key { offset: 0, key: 7, mask: u32::MAX })
    });
    let mut payload = [7, 0, 0, 0, 0x12, 9, 9, 9];
    assert_eq!(bus.send(sender, &push(0, 0, 0, &payload)).len(), 1);
    assert_eq!(bus.send(sender, &push(0, 0, 0, &payload[..7])), [], "four bytes must be there");
    payload[4] = 0x13;
    assert_eq!(bus.send(sender, &push(0, 0, 0, &payload)), []);
    payload = [8, 0, 0, 0, 0x12, 9, 9, 9];
    assert_eq!(bus.send(sender, &push(0, 0, 0, &payload)), []);
}

#[test]
fn a_broadcast_longer_than_a_subscriber_takes_misses_that_one_alone() {
    let mut bus = Bus::default();
    let (sender, old, new) = (bus.up(STRANGER), bus.up(STRANGER), bus.up(STRANGER));
    bus.hello(new, FRAME_MAX as u32);
    bus.subscribe(old);
    bus.subscribe(new);
    let got = bus.send(sender, &push(0, 0, 0, &vec![0; LEGACY_FRAME_MAX]));
    assert_eq!(got.iter().map(|got| got.to).collect::<Vec<_>>(), [new]);
    assert_eq!((bus.counters().too_long, bus.counters().unwanted), (1, 0));
}

#[test]
fn a_broadcast_without_a_payload_is_dropped_and_counted() {
    let mut bus = Bus::default();
    let (sender, subscriber) = (bus.up(STRANGER), bus.up(STRANGER));
    bus.subscribe(subscriber);
    let mut no_cdata = push(0, 0, 0, b"");
    no_cdata[26] = 1;
    let mut too_short = push(0, 0, 0, b"");
    too_short[24] = 3;
    for frame in [no_cdata, too_short] {
        assert_eq!(bus.send(sender, &frame), []);
    }
    assert_eq!(bus.counters().dropped, 2);
}

// --- streams ---

#[test]
fn adjacent_frames_for_one_target_make_one_action() {
    let (mut bus, service, address) = served();
    let other = bus.up(SERVICE);
    let elsewhere = bus.provide(other, "other", 1);
    let asker = bus.up(STRANGER);
    let one = ask(address, 0, 1, b"12345");
    let two = ask(elsewhere, 0, 2, b"");
    let run = [&one[..], &one, &one, &two, &one].concat();
    bus.send(asker, &run);
    let (a, b) = (one.len() * 3, one.len() * 3 + two.len());
    let send =
        |to, range| Action::Send { to, source: Source::Input, range, delivery: Delivery::Hold };
    let expected = [send(service, 0..a), send(other, a..b), send(service, b..b + one.len())];
    assert_eq!(bus.actions.list, expected);
}

#[test]
fn frames_may_come_in_any_chunks() {
    let (mut bus, _, address) = served();
    let asker = bus.up(STRANGER);
    let run: Vec<u8> = (0..4).flat_map(|n| ask(address, 0, n, &vec![1; n as usize])).collect();
    for cut in 0..=run.len() {
        let (handled, mut got) = bus.handle(asker, &run[..cut]);
        assert_eq!(handled.fault, None);
        got.extend(bus.send(asker, &run[handled.consumed..]));
        let sequences: Vec<u32> = got.iter().map(|got| got.head().sequence).collect();
        assert_eq!(sequences, [0, 1, 2, 3], "cut at {cut}");
    }
}

#[test]
fn a_malformed_frame_stops_its_link_after_the_frames_before_it() {
    let (mut bus, _, address) = served();
    let asker = bus.up(STRANGER);
    let good = ask(address, 0, 1, b"good");
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for (frame, fault) in [
        (with(0, &27u32.to_le_bytes()), Fault::FrameTooShort),
        (with(0, &0u32.to_le_bytes()), Fault::FrameTooShort),
        (with(0, &30u32.to_le_bytes()), Fault::FrameUnaligned),
        (with(0, &(FRAME_MAX as u32 + 4).to_le_bytes()), Fault::FrameTooLong),
        (with(0, &u32::MAX.to_le_bytes()), Fault::FrameTooLong),
        (with(4, &14u16.to_le_bytes()), Fault::NotTransport),
    ] {
        let before = bus.counters().malformed;
        let bytes = [&good[..], &frame, &good].concat();
        let (handled, got) = bus.handle(asker, &bytes);
        assert_eq!(handled.fault, Some(Malformed::new(fault, good.len())));
        assert_eq!(handled.consumed, good.len());
        assert_eq!(got.len(), 1, "what came before it is delivered, what comes after is not");
        assert_eq!(bus.counters().malformed, before + 1);
    }
}

#[test]
fn the_frame_limit_is_exact() {
    let mut limits = Limits::default();
    limits.frame_bytes_max = 20_000;
    let mut bus = Bus::new(limits);
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    let asker = bus.up(STRANGER);
    let at = ask(address, 0, 1, &vec![0; 20_000 - PAYLOAD_OFFSET]);
    assert_eq!(at.len(), 20_000);
    assert_eq!(bus.send(asker, &at).len(), 1);
    let past = ask(address, 0, 1, &vec![0; 20_000 - PAYLOAD_OFFSET + 1]);
    let (handled, got) = bus.handle(asker, &past);
    assert_eq!(handled.fault, Some(Malformed::new(Fault::FrameTooLong, 0)));
    assert_eq!((handled.consumed, got.len()), (0, 0));
}

#[test]
fn a_control_frame_between_others_keeps_its_place() {
    let (mut bus, service, address) = served();
    let asker = bus.up(STRANGER);
    let subscribe = control(0, 2, Command::Subscribe, |c| Ok(c));
    let run = [push(0, 0, 1, b"too early"), subscribe, push(0, 0, 3, b"event")].concat();
    let got = bus.send(asker, &run);
    assert_eq!(got.len(), 2, "{got:?}");
    assert_eq!(head_of(&got[0].frame).flags, flag::CONTROL);
    assert_eq!(got[1].payload(), b"event");
    assert_eq!(bus.send_one(asker, &ask(address, 0, 4, b"")).to, service);
}

#[test]
fn a_broker_without_links_is_empty() {
    let broker = Bus::default().broker;
    assert_eq!((broker.links_len(), broker.returns_len(), broker.subscriptions_len()), (0, 0, 0));
    assert_eq!(broker.subsystems().count(), 0);
}

fn unsubscribe(bus: &mut Bus, link: LinkId, cid: u32) -> support_node::frames::Said {
    bus.control(link, Command::Unsubscribe, |control| control.u32(ControlAttribute::Cid, cid))
}
