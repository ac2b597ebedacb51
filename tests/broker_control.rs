//! The core's control messages, rights and limits, each at its bound and one past it.

mod support_node;

use nlbus::broker::{Access, Action, Limits, LinkKind, Rights};
use nlbus::wire::{
    Command, ControlAttribute, ENVELOPE_LEN, EnvelopeHead, FRAME_MAX, HEADER_LEN, Key,
    LEGACY_FRAME_MAX, PAYLOAD_OFFSET, errno, flag,
};
use support_node::bus::{Bus, REMOTE, SERVICE, STRANGER};
use support_node::frames::{Said, ask, control, data, exception, head_of, payload_of, push};

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

fn rights(use_bus: bool, provide: bool, control: bool) -> LinkKind {
    LinkKind::stream(Access::reading(Rights { use_bus, provide, control }))
}

fn unsubscribe(bus: &mut Bus, link: nlbus::broker::LinkId, cid: u32) -> Said {
    bus.control(link, Command::Unsubscribe, |control| control.u32(ControlAttribute::Cid, cid))
}

// --- answers ---

#[test]
fn an_answer_has_swapped_addresses_and_the_envelopes_numbers() {
    let mut bus = Bus::default();
    let link = bus.up(STRANGER);
    let head = EnvelopeHead { flags: 0, sequence: 1234, pid: 4321, dst: 0x10003, src: 6 };
    for (command, answer) in [(Command::Subscribe, Command::Ack), (Command::Provide, Command::Err)]
    {
        let mut frame = Vec::new();
        nlbus::wire::ControlBuilder::new(&mut frame, head, command).finish();
        // the inner numbers are another pair: they are not looked at
        frame[PAYLOAD_OFFSET + 8..PAYLOAD_OFFSET + 16].copy_from_slice(&[9; 8]);
        let got = bus.send_one(link, &frame);
        assert_eq!(got.head(), EnvelopeHead { flags: flag::CONTROL, dst: 6, src: 0x10003, ..head });
        let inner = nlbus::wire::Header::parse(payload_of(&got.frame)).unwrap();
        assert_eq!((inner.sequence, inner.pid, inner.flags), (1234, 0, 0));
        assert_eq!(Said::of(&got.frame).command, Some(answer));
    }
    assert_eq!(bus.counters().control, 2);
}

#[test]
fn noop_ack_and_err_are_never_answered_even_when_malformed() {
    let mut bus = Bus::default();
    let link = bus.up(rights(false, false, false));
    for command in [Command::Noop, Command::Ack, Command::Err] {
        let frame = control(0, 1, command, |c| c.string(ControlAttribute::Error, "no"));
        let mut variants = vec![frame.clone()];
        for (at, value) in [
            (PAYLOAD_OFFSET, 21),                    // length differs
            (PAYLOAD_OFFSET + 4, 2),                 // not CONTROL
            (PAYLOAD_OFFSET + 6, 4),                 // NLM_F_ACK
            (PAYLOAD_OFFSET + HEADER_LEN + 1, 1),    // version
            (PAYLOAD_OFFSET + HEADER_LEN + 2, 1),    // reserved
            (PAYLOAD_OFFSET + HEADER_LEN + 4, 1),    // attribute too short
            (PAYLOAD_OFFSET + HEADER_LEN + 4, 99),   // attribute past the end
            (PAYLOAD_OFFSET + HEADER_LEN + 6, 99),   // attribute unknown
            (PAYLOAD_OFFSET + HEADER_LEN + 7, 0x80), // nested
            (6, (flag::CONTROL | flag::ASK) as u8),  // the sender asks
        ] {
            let mut malformed = frame.clone();
            malformed[at] = value;
            variants.push(malformed);
        }
        for frame in variants {
            assert_eq!(bus.send(link, &frame), [], "{command:?}");
        }
    }
}

#[test]
fn a_malformed_control_message_is_refused_whole_and_says_where() {
    let mut bus = Bus::default();
    let link = bus.up(SERVICE);
    let whole = control(0, 1, Command::Subscribe, |control| {
        control.key(Key::default())?.u32(ControlAttribute::Port, 3)
    });
    let genl = PAYLOAD_OFFSET + HEADER_LEN;
    let key = genl + 4;
    let port = key + 16;
    for (what, at, bytes, offset) in [
        ("length", PAYLOAD_OFFSET, &[19u8, 0][..], 0),
        ("type", PAYLOAD_OFFSET + 4, &[15, 0], 4),
        ("version", genl + 1, &[1], 17),
        ("reserved", genl + 2, &[1], 18),
        ("reserved", genl + 3, &[1], 18),
        ("attribute below 4", key, &[3, 0], 20),
        ("attribute past the end", port, &[12, 0], 36),
        ("u32 of three bytes", port, &[7, 0], 40),
        ("key of eight bytes", key, &[12, 0], 24),
        ("unknown", port + 2, &[7, 0], 36),
        ("unknown", port + 2, &[120, 0], 36),
        ("nested", port + 3, &[0x80], 36),
        ("byte order", port + 3, &[0x40], 36),
    ] {
        let mut frame = whole.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        let said = Said::of(&bus.send_one(link, &frame).frame);
        assert_eq!((said.command, said.errno), (Some(Command::Err), Some(errno::EINVAL)), "{what}");
        let text = said.error.unwrap();
        assert!(text.contains(&format!("byte {offset}:")), "{what}: {text}");
    }
    assert_eq!(bus.broker.subscriptions_len(), 0, "nothing of them was used");
    assert!(Said::of(&bus.send_one(link, &whole).frame).is_ack());
}

#[test]
fn a_duplicate_attribute_is_refused() {
    let mut bus = Bus::default();
    let link = bus.up(SERVICE);
    let said = bus.control(link, Command::Provide, |control| {
        control.string(ControlAttribute::Host, "one")?.string(ControlAttribute::Host, "two")
    });
    assert_eq!(said.errno, Some(errno::EINVAL));
    assert_eq!(bus.broker.subsystems().count(), 0);
}

#[test]
fn a_control_frame_without_a_message_is_einval() {
    let mut bus = Bus::default();
    let link = bus.up(SERVICE);
    let head = EnvelopeHead { flags: flag::CONTROL, ..EnvelopeHead::default() };
    let mut no_cdata = data(head, b"");
    no_cdata[ENVELOPE_LEN + 2] = 1;
    for frame in [data(head, b""), data(head, &[14; 16]), data(head, &[14; 19]), no_cdata] {
        let said = Said::of(&bus.send_one(link, &frame).frame);
        assert_eq!((said.command, said.errno), (Some(Command::Err), Some(errno::EINVAL)));
    }
}

#[test]
fn the_control_bit_makes_control_whatever_else_is_set_and_wherever_it_goes() {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    let link = bus.up(STRANGER);
    for dst in [0, address, u32::MAX, 0x8000_0000] {
        let mut frame = control(0, 1, Command::Subscribe, |c| Ok(c));
        frame[6] |= 0x36;
        frame[16..20].copy_from_slice(&dst.to_le_bytes());
        assert_eq!(bus.send_one(link, &frame).to, link);
    }
}

#[test]
fn an_answer_never_repeats_the_secret() {
    let mut bus = Bus::default();
    let secret = "s3cret-s3cret-s3cret";
    for kind in [STRANGER, SERVICE] {
        let link = bus.up(kind);
        for command in [Command::Register, Command::Provide, Command::Subscribe, Command::Stop] {
            let whole = control(0, 1, command, |c| {
                c.string(ControlAttribute::Host, "x")?.string(ControlAttribute::Secret, secret)
            });
            let mut malformed = whole.clone();
            malformed[PAYLOAD_OFFSET + HEADER_LEN + 2] = 1;
            let mut twice = control(0, 1, command, |c| {
                c.string(ControlAttribute::Secret, secret)?.string(ControlAttribute::Secret, secret)
            });
            twice[6] |= flag::ASK as u8;
            for frame in [whole, malformed, twice] {
                for got in bus.send(link, &frame) {
                    let found = got.frame.windows(6).any(|bytes| bytes == b"s3cret");
                    assert!(!found, "{command:?}: {:?}", Said::of(&got.frame));
                }
            }
        }
    }
}

#[test]
fn a_long_name_does_not_make_a_long_answer() {
    let mut bus = Bus::default();
    let link = bus.up(STRANGER);
    let name = "ä".repeat(30_000);
    let said = bus.control(link, Command::Discover, |c| c.string(ControlAttribute::Host, &name));
    assert_eq!(said.errno, Some(errno::ENOENT));
    assert!(said.error.unwrap().len() <= 1_024);
}

// --- rights ---

#[test]
fn each_command_needs_its_right() {
    let none = rights(false, false, false);
    let all = [none.clone(), rights(true, false, false), rights(false, true, false)];
    let all = all.into_iter().chain([rights(false, false, true), STRANGER, SERVICE, REMOTE]);
    let all: Vec<_> = all.collect();
    for command in Command::ALL {
        let needs = |rights: Rights| match command {
            Command::Noop | Command::Ack | Command::Err => None,
            Command::Hello | Command::Register | Command::Route | Command::Release => Some(true),
            Command::Subscribe | Command::Unsubscribe | Command::Discover => Some(rights.use_bus),
            Command::Provide | Command::Remove => Some(rights.provide),
            _ => Some(rights.control),
        };
        for kind in &all {
            let Some(enough) = needs(kind.access.rights) else { continue };
            let mut bus = Bus::default();
            bus.broker.set_secret(Some(b"open sesame"));
            let link = bus.up(kind.clone());
            let errno = bus.refused(link, *command);
            assert_eq!(errno == Some(errno::EPERM), !enough, "{command:?} with {kind:?}");
            assert_eq!(bus.counters().forbidden, u64::from(!enough));
            if enough {
                let wrong = match command {
                    // nobody provides the name, and there is no such subscription
                    Command::Subscribe | Command::Discover | Command::Remove => Some(errno::ENOENT),
                    Command::Unsubscribe => Some(errno::EINVAL),
                    Command::Route => Some(errno::EOPNOTSUPP),
                    _ => None,
                };
                assert_eq!(errno, wrong, "{command:?} with {kind:?}");
            }
        }
    }
}

#[test]
fn a_retired_and_an_unknown_command_are_eopnotsupp() {
    let mut bus = Bus::default();
    let link = bus.up(SERVICE);
    let said = bus.control(link, Command::Route, |c| Ok(c));
    assert_eq!(said.errno, Some(errno::EOPNOTSUPP));
    assert!(said.error.unwrap().contains("route"));
    let mut unknown = control(0, 1, Command::Hello, |c| Ok(c));
    unknown[PAYLOAD_OFFSET + HEADER_LEN] = 31;
    let said = Said::of(&bus.send_one(link, &unknown).frame);
    assert_eq!(said.errno, Some(errno::EOPNOTSUPP));
}

// --- HELLO ---

#[test]
fn hello_says_version_and_longest_frame_both_ways() {
    let mut bus = Bus::new(limits(|limits| limits.frame_bytes_max = 40_000));
    let link = bus.up(STRANGER);
    let said = bus.hello(link, FRAME_MAX as u32);
    assert_eq!((said.version, said.frame_max), (Some(1), Some(40_000)));
    assert!(matches!(bus.actions.list[0], Action::Greeted { link: greeted } if greeted == link));
}

#[test]
fn hello_without_what_it_needs_is_refused_and_leaves_the_link_as_it_was() {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    let link = bus.up(STRANGER);
    let back = bus.send_one(link, &ask(address, 0, 1, b"")).head().src;
    let legacy = LEGACY_FRAME_MAX as u32;
    for (version, frame_max) in [
        (None, None),
        (None, Some(legacy)),
        (Some(1), None),
        (Some(0), Some(legacy)),
        (Some(1), Some(0)),
        (Some(1), Some(legacy - 1)),
    ] {
        let said = bus.control(link, Command::Hello, |mut control| {
            if let Some(version) = version {
                control = control.u32(ControlAttribute::Version, version)?;
            }
            match frame_max {
                Some(max) => control.u32(ControlAttribute::FrameMax, max),
                None => Ok(control),
            }
        });
        assert_eq!(said.errno, Some(errno::EINVAL), "{version:?} {frame_max:?}");
        assert_eq!(bus.actions.list.len(), 1, "not greeted");
    }
    assert_eq!(bus.send(service, &push(back, 7, 1, &vec![0; LEGACY_FRAME_MAX])), []);
    // a later version is answered with ours
    let said = bus.control(link, Command::Hello, |control| {
        control.u32(ControlAttribute::Version, 9)?.u32(ControlAttribute::FrameMax, legacy)
    });
    assert_eq!((said.is_ack(), said.version), (true, Some(1)));
}

#[test]
fn a_second_hello_may_change_the_longest_frame() {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    let link = bus.up(STRANGER);
    let back = bus.send_one(link, &ask(address, 0, 1, b"")).head().src;
    let long = push(back, 7, 1, &vec![0; LEGACY_FRAME_MAX]);
    bus.hello(link, FRAME_MAX as u32);
    assert_eq!(bus.send(service, &long).len(), 1);
    bus.hello(link, LEGACY_FRAME_MAX as u32);
    assert_eq!(bus.send(service, &long), []);
}

// --- subscriptions ---

#[test]
fn subscriptions_count_down_from_1023_on_each_link_and_are_used_again() {
    let mut bus = Bus::default();
    let (one, two) = (bus.up(STRANGER), bus.up(STRANGER));
    assert_eq!([bus.subscribe(one), bus.subscribe(one), bus.subscribe(two)], [1_023, 1_022, 1_023]);
    assert!(unsubscribe(&mut bus, one, 1_023).is_ack());
    assert_eq!([bus.subscribe(one), bus.subscribe(one)], [1_023, 1_021]);
}

#[test]
fn only_the_owner_ends_a_subscription_and_only_once() {
    let mut bus = Bus::default();
    let (owner, thief) = (bus.up(STRANGER), bus.up(SERVICE));
    let cid = bus.subscribe(owner);
    assert_eq!(unsubscribe(&mut bus, thief, cid).errno, Some(errno::ENOENT));
    assert_eq!(bus.send(thief, &push(0, 0, 0, b"")).len(), 1, "it is still there");
    assert!(unsubscribe(&mut bus, owner, cid).is_ack());
    assert_eq!(unsubscribe(&mut bus, owner, cid).errno, Some(errno::ENOENT));
    let said = bus.control(owner, Command::Unsubscribe, |c| Ok(c));
    assert_eq!(said.errno, Some(errno::EINVAL));
    assert_eq!(bus.broker.subscriptions_len(), 0);
}

#[test]
fn events_change_before_the_answer_and_only_with_the_first_and_the_last() {
    let mut bus = Bus::default();
    let (one, two) = (bus.up(STRANGER), bus.up(STRANGER));
    let changed_first = |bus: &Bus| {
        let changes = bus.actions.list.iter().filter(|a| **a == Action::EventsChanged).count();
        assert!(changes <= 1);
        assert!(changes == 0 || bus.actions.list[0] == Action::EventsChanged, "before the ACK");
        changes == 1
    };
    let first = bus.subscribe(one);
    assert!(changed_first(&bus));
    let second = bus.subscribe(two);
    assert!(!changed_first(&bus));
    assert!(unsubscribe(&mut bus, one, first).is_ack());
    assert!(!changed_first(&bus));
    assert!(unsubscribe(&mut bus, two, second).is_ack());
    assert!(changed_first(&bus));

    bus.subscribe(one);
    bus.subscribe(two);
    bus.subscribe(two);
    assert_eq!(bus.down(one), []);
    assert_eq!(bus.down(two), [Action::EventsChanged]);
    let quiet = bus.up(STRANGER);
    assert_eq!(bus.down(quiet), []);
}

#[test]
fn a_subscription_to_a_name_that_never_was_is_enoent() {
    let mut bus = Bus::default();
    let link = bus.up(STRANGER);
    let said =
        bus.control(link, Command::Subscribe, |c| c.string(ControlAttribute::Host, "nothing"));
    assert_eq!(said.errno, Some(errno::ENOENT));
    assert_eq!(bus.broker.subscriptions_len(), 0);
    assert_eq!(bus.subscribe(link), 1_023, "no number was spent");
}

// --- names ---

#[test]
fn discover_finds_what_somebody_provides() {
    let mut bus = Bus::default();
    let (service, link) = (bus.up(REMOTE), bus.up(STRANGER));
    let discover = |bus: &mut Bus, name: &str| {
        bus.control(link, Command::Discover, |c| c.string(ControlAttribute::Host, name))
    };
    assert_eq!(discover(&mut bus, "route").errno, Some(errno::ENOENT));
    let address = bus.provide(service, "route", 7);
    assert_eq!(discover(&mut bus, "route").addr, Some(address));
    assert_eq!(discover(&mut bus, "Route").errno, Some(errno::ENOENT));
    bus.remove(service, "route", 7);
    assert_eq!(discover(&mut bus, "route").errno, Some(errno::ENOENT));
    assert_eq!(discover(&mut bus, "").errno, Some(errno::EINVAL));
    assert_eq!(bus.control(link, Command::Discover, |c| Ok(c)).errno, Some(errno::EINVAL));
}

#[test]
fn a_port_provides_one_name_and_only_its_own_is_removed() {
    let mut bus = Bus::default();
    let (one, two) = (bus.up(SERVICE), bus.up(SERVICE));
    bus.provide(one, "route", 7);
    assert_eq!(bus.try_provide(one, "other", 7).errno, Some(errno::EEXIST));
    assert_eq!(bus.try_provide(one, "route", 7).errno, Some(errno::EEXIST));
    for (link, name, port) in [(two, "route", 7), (one, "route", 8), (one, "other", 7)] {
        assert_eq!(bus.remove(link, name, port).errno, Some(errno::ENOENT), "{name} {port}");
    }
    assert!(bus.remove(one, "route", 7).is_ack());
    assert_eq!(bus.remove(one, "route", 7).errno, Some(errno::ENOENT));
    for command in [Command::Provide, Command::Remove] {
        assert_eq!(bus.control(one, command, |c| Ok(c)).errno, Some(errno::EINVAL));
    }
}

#[test]
fn a_port_that_asked_first_cannot_become_a_provider() {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    bus.send_one(service, &ask(address, 8, 1, b""));
    assert_eq!(bus.try_provide(service, "other", 8).errno, Some(errno::EEXIST));
}

#[test]
fn the_port_of_provide_is_the_senders_unless_it_is_named() {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let provide = control(42, 1, Command::Provide, |c| c.string(ControlAttribute::Host, "route"));
    let address = Said::of(&bus.send_one(service, &provide).frame).addr.unwrap();
    let asker = bus.up(STRANGER);
    assert_eq!(bus.send_one(asker, &ask(address, 0, 1, b"")).head().dst, 42);
}

#[test]
fn a_name_has_1_to_255_bytes_and_no_space_or_control_character() {
    let mut bus = Bus::default();
    let link = bus.up(SERVICE);
    let (at, past) = ("n".repeat(255), "n".repeat(256));
    for (name, port) in [("a", 1), ("ünï/cødé:1", 2), (at.as_str(), 3)] {
        assert!(bus.try_provide(link, name, port).is_ack(), "{name}");
    }
    for name in ["", "a b", "a\tb", "a\nb", "\u{1b}[31m", "a\u{a0}b", past.as_str()] {
        assert_eq!(bus.try_provide(link, name, 9).errno, Some(errno::EINVAL), "{name:?}");
    }
}

// --- limits ---

#[test]
fn links_are_refused_past_links_max_and_room_comes_back() {
    let mut bus = Bus::new(limits(|limits| limits.links_max = 2));
    let (one, _) = (bus.up(STRANGER), bus.up(STRANGER));
    assert_eq!(bus.broker.link_up(SERVICE), None);
    assert_eq!(bus.counters().links_refused, 1);
    bus.down(one);
    assert!(bus.broker.link_up(STRANGER).is_some());
    assert_eq!(bus.broker.link_up(STRANGER), None);
    assert_eq!(bus.counters().links_refused, 2);
}

#[test]
fn ports_of_a_link_are_bounded() {
    let mut bus = Bus::new(limits(|limits| limits.ports_per_link_max = 3));
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    let asker = bus.up(STRANGER);
    for port in 0..3 {
        assert_eq!(bus.send_one(asker, &ask(address, port, 1, b"")).to, service);
    }
    let got = bus.send_one(asker, &ask(address, 3, 1, b""));
    assert_eq!((got.to, exception(&got.frame).0), (asker, errno::ENOSPC));
    assert_eq!(bus.send(asker, &push(address, 3, 1, b"")), []);
    let counters = bus.counters();
    assert_eq!((counters.over_limit, counters.exceptions, counters.dropped), (2, 1, 1));
    assert_eq!(bus.send_one(asker, &ask(address, 2, 1, b"")).to, service, "the old ones stay");
    let other = bus.up(STRANGER);
    assert_eq!(bus.send_one(other, &ask(address, 3, 1, b"")).to, service, "others have room");

    for port in 8..10 {
        bus.provide(service, "route", port);
    }
    assert_eq!(bus.try_provide(service, "route", 10).errno, Some(errno::ENOSPC));
    assert_eq!(bus.counters().over_limit, 3);
}

#[test]
fn return_addresses_are_bounded_and_room_comes_back() {
    let mut bus = Bus::new(limits(|limits| limits.returns_max = 2));
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    let (one, two) = (bus.up(STRANGER), bus.up(STRANGER));
    bus.send_one(one, &ask(address, 0, 1, b""));
    bus.send_one(one, &ask(address, 1, 1, b""));
    let got = bus.send_one(two, &ask(address, 0, 1, b""));
    assert_eq!((got.to, exception(&got.frame).0), (two, errno::ENOSPC));
    assert_eq!(bus.counters().over_limit, 1);
    bus.down(one);
    assert_eq!(bus.send_one(two, &ask(address, 0, 1, b"")).to, service);
    assert_eq!(bus.send_one(two, &ask(address, 1, 1, b"")).to, service);
    assert_eq!(bus.send_one(two, &ask(address, 2, 1, b"")).to, two);
}

#[test]
fn subscriptions_of_a_link_are_bounded() {
    for (max, most) in [(2, 2), (5_000, 1_024)] {
        let mut bus = Bus::new(limits(|limits| limits.subscriptions_per_link_max = max));
        let (link, other) = (bus.up(STRANGER), bus.up(STRANGER));
        let cids: Vec<u32> = (0..most).map(|_| bus.subscribe(link)).collect();
        assert_eq!((cids[0], cids[most - 1]), (most as u32 - 1, 0));
        let said = bus.control(link, Command::Subscribe, |c| Ok(c));
        assert_eq!(said.errno, Some(errno::ENOSPC));
        assert_eq!((bus.counters().over_limit, bus.broker.subscriptions_len()), (1, most));
        assert_eq!(bus.subscribe(other), most as u32 - 1);
        assert!(unsubscribe(&mut bus, link, 0).is_ack());
        assert_eq!(bus.subscribe(link), 0);
    }
}

#[test]
fn conditions_of_a_subscription_are_bounded() {
    let mut bus = Bus::new(limits(|limits| limits.keys_per_subscription_max = 3));
    let link = bus.up(STRANGER);
    for (keys, errno) in [(3, None), (4, Some(errno::E2BIG))] {
        let said = bus.control(link, Command::Subscribe, |control| {
            (0..keys).try_fold(control, |control, _| control.key(Key::default()))
        });
        assert_eq!(said.errno, errno, "{keys} keys");
    }
    assert_eq!((bus.counters().over_limit, bus.broker.subscriptions_len()), (1, 1));
}

#[test]
fn names_and_providers_of_a_name_are_bounded() {
    let mut bus = Bus::new(limits(|limits| {
        limits.subsystems_max = 2;
        limits.providers_per_subsystem_max = 2;
        limits.name_bytes_max = 4;
    }));
    let link = bus.up(SERVICE);
    bus.provide(link, "one", 1);
    bus.provide(link, "four", 2);
    assert_eq!(bus.try_provide(link, "fives", 3).errno, Some(errno::EINVAL));
    assert_eq!(bus.try_provide(link, "six", 3).errno, Some(errno::ENOSPC));
    assert_eq!(bus.counters().over_limit, 1);
    bus.provide(link, "one", 3);
    assert_eq!(bus.try_provide(link, "one", 4).errno, Some(errno::ENOSPC));
    assert_eq!(bus.counters().over_limit, 2);
    bus.remove(link, "one", 1);
    bus.provide(link, "one", 4);
    // a name stays, with its address, when nobody provides it any more
    bus.remove(link, "four", 2);
    assert_eq!(bus.try_provide(link, "six", 5).errno, Some(errno::ENOSPC));
}

#[test]
fn control_needs_no_return_address() {
    let mut bus = Bus::new(limits(|limits| limits.returns_max = 0));
    let link = bus.up(STRANGER);
    for port in 0..5 {
        let got = bus.send_one(link, &control(port, 1, Command::Subscribe, |c| Ok(c)));
        assert_eq!(head_of(&got.frame).dst, port);
    }
    assert_eq!(bus.broker.returns_len(), 0);
}
