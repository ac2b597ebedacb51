//! Cores that are linked to each other: names, requests, broadcasts, and links that are lost.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod events;
#[path = "../support_node/mod.rs"]
mod support_node;
mod world;

use nlbus::broker::{Access, Action, LinkKind, Names, Rights};
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, Header, errno, flag, mode, nlm};
use support_node::bus::{REMOTE, SERVICE, STRANGER};
use support_node::frames::{Said, ask, control, data, exception, head_of, payload_of, push};
use world::{End, World};

const SEEDS: std::ops::Range<u64> = 0..60;

fn payloads(frames: &[Vec<u8>]) -> Vec<&[u8]> {
    frames.iter().map(|frame| payload_of(frame)).collect()
}

fn is_overrun(frame: &[u8]) -> bool {
    Header::parse(payload_of(frame)).is_ok_and(|header| header.kind == nlm::OVERRUN)
}

// --- names and requests ---

#[test]
fn a_request_to_a_name_of_another_broker_comes_back_with_the_askers_numbers() {
    let mut world = World::new(2, 1);
    let service = world.client(1, SERVICE);
    let there = world.provide(service, "route");
    world.link(0, "hub", 1);
    let asker = world.client(0, STRANGER);
    let here = world.discover(asker, "route@hub").addr.unwrap();
    for port in [0, 6] {
        world.send(asker, &ask(here, port, 41, b"?"));
        let request = world.received(service).pop().unwrap();
        let head = head_of(&request);
        assert_eq!((head.dst, head.sequence, head.pid), (0, 41, 77));
        assert_eq!(head.flags, flag::ASK | 0x100, "one hop");
        let answer = EnvelopeHead { flags: flag::RESPONSE, dst: head.src, src: 0, ..head };
        world.send(service, &data(answer, b"!"));
        let got = world.received(asker).pop().unwrap();
        let head = head_of(&got);
        assert_eq!((head.dst, head.src, head.sequence, head.pid), (port, here, 41, 77));
        assert_eq!(payload_of(&got), b"!");
    }
    assert_eq!(there, 0x1_0003);
}

#[test]
fn connects_address_stands_for_the_first_subsystem_of_the_other_broker() {
    let mut world = World::new(2, 1);
    let service = world.client(1, SERVICE);
    world.provide(service, "route");
    let address = world.uplink(0, "hub", &[]);
    world.wire(0, address, 1, REMOTE);
    world.settle();
    let asker = world.client(0, STRANGER);
    world.send(asker, &ask(address, 0, 1, b"?"));
    assert_eq!(payloads(&world.received(service)), [b"?"]);
}

#[test]
fn a_name_may_lead_through_several_brokers() {
    let mut world = World::new(3, 1);
    let service = world.client(2, SERVICE);
    world.provide(service, "route");
    world.link(0, "b", 1);
    world.link(1, "c", 2);
    let asker = world.client(0, STRANGER);
    let here = world.discover(asker, "route@c@b").addr.unwrap();
    world.send(asker, &ask(here, 0, 1, b"?"));
    let request = world.received(service).pop().unwrap();
    assert_eq!(head_of(&request).flags & flag::HOPS_MASK, 0x200);
    assert_eq!(world.discover(asker, "route@b").errno, Some(errno::ENOENT), "b has no such name");
    assert_eq!(world.discover(asker, "route@x").errno, Some(errno::ENOENT), "nor is there an x");
}

#[test]
fn a_request_that_comes_through_more_than_eight_brokers_is_eloop() {
    for (brokers, arrives) in [(9, true), (10, false)] {
        let mut world = World::new(brokers, 1);
        let service = world.client(brokers - 1, SERVICE);
        world.provide(service, "s");
        for at in 0..brokers - 1 {
            world.link(at, "u", at + 1);
        }
        let asker = world.client(0, STRANGER);
        let name = format!("s{}", "@u".repeat(brokers - 1));
        let here = world.discover(asker, &name).addr.unwrap();
        world.send(asker, &ask(here, 0, 1, b"?"));
        assert_eq!(world.received(service).len(), usize::from(arrives));
        if !arrives {
            let got = world.received(asker).pop().unwrap();
            assert_eq!(exception(&got).0, errno::ELOOP);
            assert_eq!(world.brokers[brokers - 2].counters().looped, 1);
        }
    }
}

#[test]
fn two_who_ask_for_the_same_name_at_once_are_both_answered_after_one_question() {
    let mut world = World::new(2, 1);
    let service = world.client(1, SERVICE);
    world.provide(service, "route");
    world.link(0, "hub", 1);
    let (one, other) = (world.client(0, STRANGER), world.client(0, STRANGER));
    let before = world.brokers[1].counters().control;
    for asker in [one, other] {
        let frame =
            control(0, 9, Command::Discover, |c| c.string(ControlAttribute::Host, "route@hub"));
        world.give(asker, &frame);
    }
    world.settle();
    let [one, other] = [one, other].map(|asker| Said::of(&world.received(asker)[0]).addr.unwrap());
    assert_eq!(one, other);
    assert_eq!(world.brokers[1].counters().control, before + 1);
}

#[test]
fn what_belongs_to_another_broker_cannot_be_provided_here() {
    let mut world = World::new(2, 1);
    world.link(0, "hub", 1);
    let client = world.client(0, SERVICE);
    for name in ["route@hub", "@hub", "@other", "a@b@hub"] {
        let said =
            world.control(client, Command::Provide, |c| c.string(ControlAttribute::Host, name));
        assert_eq!(said.errno, Some(errno::EPERM), "{name}");
    }
    world.provide(client, "route@elsewhere");
}

#[test]
fn what_is_exported_is_provided_there_while_somebody_provides_it_here() {
    let mut world = World::new(2, 1);
    let local = world.client(0, SERVICE);
    world.provide(local, "route");
    let uplink = world.uplink(0, "hub", &[("route", "route@edge"), ("late", "late@edge")]);
    world.wire(0, uplink, 1, REMOTE);
    world.settle();
    let asker = world.client(1, STRANGER);
    let address = world.discover(asker, "route@edge").addr.unwrap();
    world.send(asker, &ask(address, 3, 7, b"?"));
    let request = world.received(local).pop().unwrap();
    let head = head_of(&request);
    let answer = EnvelopeHead { flags: flag::RESPONSE, dst: head.src, src: 0, ..head };
    world.send(local, &data(answer, b"!"));
    assert_eq!(payloads(&world.received(asker)), [b"!"]);
    assert_eq!(world.discover(asker, "late@edge").errno, Some(errno::ENOENT));
    let late = world.client(0, SERVICE);
    world.provide(late, "late");
    assert!(world.discover(asker, "late@edge").is_ack());
    world.down(late);
    world.settle();
    assert_eq!(world.discover(asker, "late@edge").errno, Some(errno::ENOENT));
}

#[test]
fn what_an_asker_leaves_behind_is_released_at_every_broker_on_the_way() {
    let mut world = World::new(3, 1);
    let service = world.client(2, SERVICE);
    world.provide(service, "s");
    world.link(0, "b", 1);
    world.link(1, "c", 2);
    let asker = world.client(0, STRANGER);
    let here = world.discover(asker, "s@c@b").addr.unwrap();
    for port in 0..5 {
        world.send(asker, &ask(here, port, 1, b"?"));
    }
    let askers: Vec<_> = world.received(service).iter().map(|frame| head_of(frame).src).collect();
    assert_eq!(world.brokers.iter().map(|b| b.returns_len()).collect::<Vec<_>>(), [5, 5, 5]);
    world.down(asker);
    world.settle();
    assert_eq!(world.brokers.iter().map(|b| b.returns_len()).collect::<Vec<_>>(), [0, 0, 0]);
    let mut gone: Vec<_> = world
        .noted
        .iter()
        .filter_map(|(at, action)| match action {
            Action::Gone { address, .. } if *at == 2 => Some(*address),
            _ => None,
        })
        .collect();
    gone.sort_unstable();
    assert_eq!(gone, askers, "and its service lets go");
}

// --- links that are lost ---

#[test]
fn requests_in_flight_fail_at_once_when_the_link_is_lost_and_work_again_when_it_is_back() {
    let mut world = World::new(2, 1);
    let service = world.client(1, SERVICE);
    world.provide(service, "s");
    let uplink = world.uplink(0, "hub", &[]);
    let ends = world.wire(0, uplink, 1, REMOTE);
    world.settle();
    let asker = world.client(0, STRANGER);
    let here = world.discover(asker, "s@hub").addr.unwrap();
    world.send(asker, &ask(here, 4, 1, b"?"));
    let waiting = control(0, 9, Command::Discover, |c| c.string(ControlAttribute::Host, "t@hub"));
    world.give(asker, &waiting);
    world.cut(ends);
    let got = world.received(asker);
    assert_eq!(got.len(), 2, "{got:?}");
    let failed = got.iter().find(|frame| head_of(frame).flags & flag::CONTROL == 0).unwrap();
    assert_eq!((exception(failed).0, head_of(failed).dst), (errno::EHOSTUNREACH, 4));
    let refused = got.iter().find(|frame| head_of(frame).flags & flag::CONTROL != 0).unwrap();
    assert_eq!(Said::of(refused).errno, Some(errno::EHOSTUNREACH));
    world.send(asker, &ask(here, 4, 2, b"?"));
    let got = world.received(asker).pop().unwrap();
    assert_eq!(exception(&got).0, errno::EHOSTUNREACH, "while it is down");
    assert_eq!(world.discover(asker, "s@hub").errno, Some(errno::EHOSTUNREACH));
    let listener = world.client(0, STRANGER);
    world.subscribe(listener);
    world.send(asker, &push(here, 4, 3, b"not for everybody"));
    assert!(world.received(listener).is_empty());
    world.received(service);
    world.wire(0, uplink, 1, REMOTE);
    world.settle();
    world.send(asker, &ask(here, 4, 5, b"again"));
    assert_eq!(payloads(&world.received(service)), [b"again"], "without asking for the name");
}

#[test]
fn who_listens_through_a_link_is_told_when_it_is_lost_and_hears_again_when_it_is_back() {
    let mut world = World::new(2, 1);
    let service = world.client(1, SERVICE);
    world.provide(service, "s");
    let uplink = world.uplink(0, "hub", &[]);
    let ends = world.wire(0, uplink, 1, REMOTE);
    world.settle();
    let (all, one) = (world.client(0, STRANGER), world.client(0, STRANGER));
    world.control(all, Command::Hello, |c| {
        c.u32(ControlAttribute::Version, 1)?.u32(ControlAttribute::FrameMax, 65_560)
    });
    world.subscribe(all);
    let said =
        world.control(one, Command::Subscribe, |c| c.string(ControlAttribute::Host, "s@hub"));
    assert!(said.is_ack(), "{said:?}");
    world.send(service, &push(0, 0, 0, b"event 1"));
    for end in [all, one] {
        assert_eq!(payloads(&world.received(end)), [b"event 1"]);
    }
    world.cut(ends);
    for end in [all, one] {
        let got = world.received(end);
        assert!(got.len() == 1 && is_overrun(&got[0]), "{got:?}");
    }
    world.send(service, &push(0, 0, 0, b"event 2"));
    world.wire(0, uplink, 1, REMOTE);
    world.settle();
    let got = world.received(one);
    assert!(got.len() == 1 && is_overrun(&got[0]), "the subsystem is back: {got:?}");
    world.received(all);
    world.send(service, &push(0, 0, 0, b"event 3"));
    for end in [all, one] {
        assert_eq!(payloads(&world.received(end)), [b"event 3"]);
    }
}

// --- trust ---

#[test]
fn who_may_not_provide_is_not_taken_for_a_broker() {
    let mut world = World::new(1, 1);
    let hello = |world: &mut World, end: End| {
        world.send(
            end,
            &control(0, 9, Command::Hello, |c| {
                c.u32(ControlAttribute::Version, 1)?
                    .u32(ControlAttribute::FrameMax, 65_560)?
                    .u32(ControlAttribute::Mode, mode::BROKER)
            }),
        );
        let frames = world.received(end);
        let answer = nlbus::wire::Control::parse(payload_of(&frames[0])).unwrap();
        answer.mode
    };
    let stranger = world.client(0, STRANGER);
    assert_eq!(hello(&mut world, stranger), None);
    let broker = world.client(0, REMOTE);
    assert_eq!(hello(&mut world, broker), Some(mode::BROKER));
    let listener = world.client(0, STRANGER);
    world.subscribe(listener);
    world.received(broker);
    // a mark of a stranger is not believed: he could have others' broadcasts dropped
    let marked = EnvelopeHead { sequence: 5, pid: 0x999, ..EnvelopeHead::default() };
    for (end, heard) in [(stranger, [1, 1]), (broker, [1, 0])] {
        for count in heard {
            world.send(end, &data(marked, b"x"));
            assert_eq!(world.received(listener).len(), count);
        }
    }
    assert_eq!(world.brokers[0].counters().duplicates, 1);
}

#[test]
fn who_may_read_only_some_names_does_not_hear_what_has_no_name_here() {
    let mut world = World::new(2, 1);
    let service = world.client(1, SERVICE);
    world.provide(service, "s");
    world.link(0, "hub", 1);
    let some = Access {
        rights: Rights::USE,
        read: Names::Only(["t@hub".to_owned()].into()),
        write: Names::None,
    };
    let (some, all) = (world.client(0, LinkKind::stream(some)), world.client(0, STRANGER));
    world.subscribe(some);
    world.subscribe(all);
    world.send(service, &push(0, 0, 0, b"x"));
    assert_eq!(world.received(all).len(), 1);
    assert!(world.received(some).is_empty());
    let sender = world.client(1, STRANGER);
    world.send(sender, &push(0, 0, 0, b"y"));
    assert_eq!(world.received(some).len(), 1, "what no subsystem says is for everybody");
    world.discover(all, "s@hub");
    world.received(all);
    world.send(service, &push(0, 0, 0, b"z"));
    assert_eq!(world.received(all).len(), 1);
    assert!(world.received(some).is_empty(), "nor what has a name that it may not read");
}

#[test]
fn what_has_no_name_stays_so_at_the_second_broker() {
    let mut world = World::new(3, 1);
    let service = world.client(2, SERVICE);
    world.provide(service, "s");
    world.link(0, "next", 1);
    world.link(1, "next", 2);
    let some = Access {
        rights: Rights::USE,
        read: Names::Only(["t".to_owned()].into()),
        write: Names::None,
    };
    let (some, all) = (world.client(0, LinkKind::stream(some)), world.client(0, STRANGER));
    world.subscribe(some);
    world.subscribe(all);
    world.send(service, &push(0, 0, 0, b"x"));
    assert_eq!(world.received(all).len(), 1);
    assert!(world.received(some).is_empty());
}

#[test]
fn bodies_whose_parts_come_by_turns_each_stay_with_one_provider() {
    let mut world = World::new(2, 1);
    let pullers: Vec<End> = (0..3).map(|_| world.client(1, REMOTE)).collect();
    for puller in &pullers {
        world.provide(*puller, "jobs");
    }
    world.link(0, "hub", 1);
    let askers: Vec<End> = (0..5).map(|_| world.client(0, STRANGER)).collect();
    let here = world.discover(askers[0], "jobs@hub").addr.unwrap();
    for askers in askers.iter().skip(1) {
        world.discover(*askers, "jobs@hub");
    }
    let part = |kind: u16, number: u8| {
        let message = nlbus::wire::MessageBuilder::new(kind, nlm::MULTI).sequence(7);
        push(here, 0, 7, &message.body(&[number; 4]).finish())
    };
    for round in 0..6 {
        for (number, asker) in askers.iter().enumerate() {
            let kind = if round == 5 { nlm::DONE } else { nlm::DATA };
            world.give(*asker, &part(kind, number as u8));
        }
    }
    world.settle();
    let mut of = vec![Vec::new(); askers.len()];
    for (puller, end) in pullers.iter().enumerate() {
        for frame in world.received(*end) {
            of[usize::from(payload_of(&frame)[16])].push(puller);
        }
    }
    for pullers in &of {
        assert_eq!(pullers.len(), 6);
        assert!(pullers.iter().all(|puller| *puller == pullers[0]), "{of:?}");
    }
    assert!(of.iter().any(|pullers| pullers[0] != of[0][0]), "and they are shared: {of:?}");
}

#[test]
fn what_is_for_the_uplinks_own_address_is_for_nobody_else_while_it_is_down() {
    let mut world = World::new(2, 1);
    let uplink = world.uplink(0, "hub", &[]);
    let listener = world.client(0, STRANGER);
    world.subscribe(listener);
    let asker = world.client(0, STRANGER);
    world.send(asker, &push(uplink, 0, 1, b"secret"));
    assert!(world.received(listener).is_empty());
    world.send(asker, &ask(uplink, 0, 2, b"?"));
    assert_eq!(exception(&world.received(asker)[0]).0, errno::EHOSTUNREACH);
    assert_eq!(world.discover(asker, "@hub").errno, Some(errno::EHOSTUNREACH));
    assert_eq!(world.discover(asker, "@nobody").errno, Some(errno::ENOENT));
}

#[test]
fn names_that_wait_for_another_broker_are_bounded() {
    let mut world = World::new(2, 1);
    world.link(0, "hub", 1);
    let asker = world.client(0, STRANGER);
    let long = "x".repeat(300);
    let said = world.discover(asker, &format!("{long}@hub"));
    assert_eq!(said.errno, Some(errno::EINVAL));
    let said = world.discover(asker, &format!("x{}", "@hub".repeat(17)));
    assert_eq!(said.errno, Some(errno::ELOOP));
    let mut busy = 0;
    for number in 0..200 {
        let frame = control(0, number, Command::Discover, |c| {
            c.string(ControlAttribute::Host, &format!("{number}@hub"))?
                .string(ControlAttribute::Text, &"x".repeat(4_000))
        });
        world.give(asker, &frame);
        busy += world
            .received(asker)
            .iter()
            .filter(|frame| Said::of(frame).errno == Some(errno::EBUSY))
            .count();
    }
    assert!(busy > 100, "{busy}");
    world.settle();
    assert_eq!(world.received(asker).len() + busy, 200, "the others are answered");
}

#[test]
fn what_leads_to_changes_is_reached_by_those_only_who_may_make_them() {
    let mut world = World::new(2, 1);
    let service = world.client(1, SERVICE);
    world.provide(service, "s");
    let kind = nlbus::broker::UplinkKind {
        name: "hub".to_owned(),
        writes: true,
        ..nlbus::broker::UplinkKind::default()
    };
    let uplink = world.brokers[0].add_uplink(kind).unwrap();
    world.wire(0, uplink, 1, REMOTE);
    world.settle();
    let (reader, writer) = (world.client(0, STRANGER), world.client(0, REMOTE));
    let here = world.discover(reader, "s@hub").addr.unwrap();
    world.send(reader, &ask(here, 0, 1, b"?"));
    assert_eq!(exception(&world.received(reader)[0]).0, errno::EPERM);
    world.send(writer, &ask(here, 0, 1, b"?"));
    assert_eq!(world.received(service).len(), 1);
}

#[test]
fn an_uplink_has_a_name_of_its_own_and_gives_it_back() {
    let mut world = World::new(1, 1);
    let broker = &mut world.brokers[0];
    let kind = |name: &str| nlbus::broker::UplinkKind {
        name: name.to_owned(),
        ..nlbus::broker::UplinkKind::default()
    };
    let first = broker.add_uplink(kind("")).unwrap();
    assert_eq!(broker.add_uplink(kind("uplink")).unwrap_err().errno, errno::EEXIST);
    let second = broker.add_uplink(kind("")).unwrap();
    assert_ne!(first, second);
    assert_eq!(broker.add_uplink(kind("uplink2")).unwrap_err().errno, errno::EEXIST);
    for name in ["a@b", "a b"] {
        assert_eq!(broker.add_uplink(kind(name)).unwrap_err().errno, errno::EINVAL, "{name}");
    }
    assert_eq!(broker.remove_uplink(first), Some(None));
    assert_eq!(broker.remove_uplink(first), None);
    assert_eq!(broker.add_uplink(kind("")).unwrap(), first, "the same name, the same address");
}
