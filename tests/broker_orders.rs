//! The core's commands from afar: the secret, orders for the node, lists, chosen numbers.

mod support_node;

use nlbus::broker::{Action, Answer, Delivery, Limits, Order};
use nlbus::wire::{
    CID_CHOSEN_FIRST, Command, Control, ControlAttribute, EnvelopeHead, Key, LEGACY_FRAME_MAX,
    errno, kind, right,
};
use support_node::bus::{Bus, REMOTE, SERVICE, STRANGER};
use support_node::frames::{Said, ask, control, head_of};

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

fn unsubscribe(bus: &mut Bus, link: nlbus::broker::LinkId, cid: u32) -> Said {
    bus.control(link, Command::Unsubscribe, |control| control.u32(ControlAttribute::Cid, cid))
}

// --- REGISTER ---

fn register(bus: &mut Bus, link: nlbus::broker::LinkId, secret: &[u8]) -> Option<i32> {
    bus.control(link, Command::Register, |c| c.bytes(ControlAttribute::Secret, secret)).errno
}

#[test]
fn the_secret_gives_the_right_to_control_and_unregister_takes_back_that_alone() {
    let mut bus = Bus::default();
    bus.broker.set_secret(Some(b"open sesame"));
    let link = bus.up(STRANGER);
    let other = bus.up(STRANGER);
    for wrong in [&b"open sesam"[..], b"open sesame!", b"", b"Open sesame"] {
        assert_eq!(register(&mut bus, link, wrong), Some(errno::EPERM));
    }
    assert_eq!(bus.counters().forbidden, 4);
    assert_eq!(bus.refused(link, Command::Stats), Some(errno::EPERM));
    assert_eq!(register(&mut bus, link, b"open sesame"), None);
    assert_eq!(bus.refused(link, Command::Stats), None);
    assert_eq!(bus.refused(other, Command::Stats), Some(errno::EPERM), "each link its own");
    assert_eq!(bus.refused(link, Command::Provide), Some(errno::EPERM), "and no other right");
    assert_eq!(bus.refused(link, Command::Unregister), None);
    assert_eq!(bus.refused(link, Command::Stats), Some(errno::EPERM));
    let owner = bus.up(SERVICE);
    assert_eq!(bus.refused(owner, Command::Unregister), None);
    assert_eq!(bus.refused(owner, Command::Stats), None, "it has the right without the secret");
}

#[test]
fn a_broker_without_a_secret_refuses_every_one() {
    let mut bus = Bus::default();
    let link = bus.up(STRANGER);
    assert_eq!(register(&mut bus, link, b""), Some(errno::EPERM));
    assert_eq!(register(&mut bus, link, b"x"), Some(errno::EPERM));
    let said = bus.control(link, Command::Register, |c| Ok(c));
    assert_eq!(said.errno, Some(errno::EINVAL), "no secret at all");
}

// --- orders and lists ---

#[test]
fn an_order_is_the_nodes_to_carry_out_and_is_answered_by_the_core() {
    let mut bus = Bus::default();
    let link = bus.up(REMOTE);
    let frame = control(3, 44, Command::Connect, |c| {
        c.string(ControlAttribute::Host, "tls://far:1")?
            .string(ControlAttribute::SslKey, "")?
            .string(ControlAttribute::Text, "hub")
    });
    assert!(bus.send(link, &frame).is_empty());
    let [Action::Order { link: of, head, order }] = &bus.actions.list[..] else {
        panic!("{:?}", bus.actions.list)
    };
    let url = "tls://far:1".parse().unwrap();
    let (name, files) = (Some("hub".to_owned()), nlbus::broker::OrderFiles::default());
    assert_eq!((*of, order), (link, &Order::Connect { url, name, files }));
    let head = *head;
    bus.actions.clear();
    bus.broker.answer(link, head, Ok(Answer::address(0x1_0009)), &mut bus.actions);
    let said = Said::of(&bus.actions.scratch);
    assert_eq!((said.command, said.addr), (Some(Command::Ack), Some(0x1_0009)));
    let head = head_of(&bus.actions.scratch);
    assert_eq!((head.dst, head.sequence, head.pid), (3, 44, 77));
    // nobody waits for one that asks and does not read, now that others may be served
    let [Action::Send { delivery: Delivery::Must, .. }] = &bus.actions.list[..] else {
        panic!("{:?}", bus.actions.list)
    };
    bus.down(link);
    bus.up(REMOTE);
    bus.actions.clear();
    bus.broker.answer(link, head, Ok(Answer::done()), &mut bus.actions);
    assert!(bus.actions.list.is_empty(), "a newer link in the same slot gets nothing");
}

#[test]
fn a_url_that_is_none_is_einval_and_one_of_an_unknown_scheme_eprotonosupport() {
    let mut bus = Bus::default();
    let link = bus.up(REMOTE);
    for (url, wanted) in [
        ("", errno::EINVAL),
        ("tcp://", errno::EINVAL),
        ("127.0.0.1", errno::EINVAL),
        ("ftp://host", errno::EPROTONOSUPPORT),
    ] {
        for command in [Command::Connect, Command::Serve, Command::Shutdown] {
            let said = bus.control(link, command, |c| c.string(ControlAttribute::Host, url));
            assert_eq!(said.errno, Some(wanted), "{command:?} {url:?}");
        }
    }
}

#[test]
fn a_list_comes_in_pieces_that_fit_a_frame_of_the_original_and_names_each_entry_once() {
    let mut bus = Bus::default();
    let link = bus.up(REMOTE);
    for number in 0..700 {
        bus.provide(link, &format!("a-name-that-is-not-short-{number:03}"), number + 1);
    }
    let (mut from, mut names, mut pieces) = (0, Vec::new(), 0);
    loop {
        let frame = control(0, 1, Command::List, |c| {
            c.u32(ControlAttribute::Kind, kind::SUBSYSTEM)?.u64(ControlAttribute::Value, from)
        });
        let got = bus.send_one(link, &frame);
        assert!(got.frame.len() <= LEGACY_FRAME_MAX);
        let answer = Control::parse(got.payload()).unwrap();
        names.extend(answer.entries().map(|entry| entry.host.unwrap().to_owned()));
        pieces += 1;
        match answer.value {
            Some(next) => from = next,
            None => break,
        }
    }
    assert!(pieces > 1);
    assert_eq!(names.len(), 700);
    assert!(names.is_sorted(), "in the order of their addresses");
}

#[test]
fn a_list_says_of_links_what_they_may_do_and_of_subscriptions_what_they_choose() {
    let mut bus = Bus::default();
    let owner = bus.up(REMOTE.peer("here"));
    let guest = bus.up(STRANGER.peer("there"));
    let key = Key { offset: 4, key: 5, mask: 6 };
    bus.control(guest, Command::Subscribe, |c| {
        c.key(key)?.string(ControlAttribute::Group, "alerts")
    });
    let list = |bus: &mut Bus, kind: u32| {
        let frame = control(0, 1, Command::List, |c| c.u32(ControlAttribute::Kind, kind));
        bus.send_one(owner, &frame)
    };
    let links = list(&mut bus, kind::LINK);
    let links: Vec<_> = Control::parse(links.payload())
        .unwrap()
        .entries()
        .map(|entry| (entry.link.unwrap(), entry.host.unwrap().to_owned(), entry.rights.unwrap()))
        .collect();
    let all = right::USE | right::PROVIDE | right::CONTROL;
    assert_eq!(links, [(0, "here".to_owned(), all), (1, "there".to_owned(), right::USE)]);
    let subscriptions = list(&mut bus, kind::SUBSCRIPTION);
    let control = Control::parse(subscriptions.payload()).unwrap();
    let entry = control.entries().next().unwrap();
    assert_eq!((entry.link, entry.cid, entry.group), (Some(1), Some(1_023), Some("alerts")));
    assert_eq!(entry.keys().collect::<Vec<_>>(), [key]);
    let said = bus.control(owner, Command::List, |c| c.u32(ControlAttribute::Kind, 9));
    assert_eq!(said.errno, Some(errno::EINVAL));
    assert_eq!(bus.control(owner, Command::List, |c| Ok(c)).errno, Some(errno::EINVAL));
}

// --- subscriptions whose number is chosen ---

#[test]
fn a_subscription_whose_number_is_chosen_replaces_the_one_before_it() {
    let mut bus = Bus::new(limits(|limits| limits.subscriptions_per_link_max = 2));
    let link = bus.up(STRANGER);
    let other = bus.up(STRANGER);
    let choose = |bus: &mut Bus, cid: u32, group: &str| {
        bus.control(link, Command::Subscribe, |c| {
            c.u32(ControlAttribute::Cid, cid)?.string(ControlAttribute::Group, group)
        })
    };
    assert_eq!(choose(&mut bus, CID_CHOSEN_FIRST - 1, "z").cid, Some(1), "not its to choose");
    assert!(unsubscribe(&mut bus, link, 1).is_ack());
    assert_eq!(choose(&mut bus, CID_CHOSEN_FIRST, "a").cid, Some(CID_CHOSEN_FIRST));
    assert_eq!(choose(&mut bus, CID_CHOSEN_FIRST, "b").cid, Some(CID_CHOSEN_FIRST));
    assert_eq!(bus.broker.subscriptions_len(), 1);
    for (group, wanted) in [("a", 0), ("b", 1)] {
        let mut frame = Vec::new();
        EnvelopeHead::default().emit_to_group(group, b"x", &mut frame).unwrap();
        assert_eq!(bus.send(other, &frame).len(), wanted, "{group}");
    }
    assert!(choose(&mut bus, CID_CHOSEN_FIRST + 1, "c").is_ack());
    let full = choose(&mut bus, CID_CHOSEN_FIRST + 2, "d");
    assert_eq!(full.errno, Some(errno::ENOSPC));
    assert!(unsubscribe(&mut bus, link, CID_CHOSEN_FIRST).is_ack());
    assert_eq!(unsubscribe(&mut bus, link, CID_CHOSEN_FIRST).errno, Some(errno::ENOENT));
    assert_eq!(bus.subscribe(link), 1, "the broker's own numbers are apart");
    let full = bus.control(link, Command::Subscribe, |c| Ok(c));
    assert_eq!(full.errno, Some(errno::ENOSPC), "and count with the others");
}

#[test]
fn a_port_that_is_released_has_a_new_address_when_it_asks_again() {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "s", 1);
    let link = bus.up(STRANGER);
    let src = |bus: &mut Bus, port: u32| bus.send_one(link, &ask(address, port, 1, b"")).head().src;
    let (one, two) = (src(&mut bus, 1), src(&mut bus, 2));
    let said = bus.control(link, Command::Release, |c| c.u32(ControlAttribute::Port, 1));
    assert!(said.is_ack());
    assert_ne!(src(&mut bus, 1), one);
    assert_eq!(src(&mut bus, 2), two);
    let said = bus.control(link, Command::Release, |c| c.u32(ControlAttribute::Port, 99));
    assert!(said.is_ack(), "one that never asked");
    bus.control(service, Command::Release, |c| c.u32(ControlAttribute::Port, 1));
    assert_eq!(src(&mut bus, 2), two, "a port that provides stays");
}
