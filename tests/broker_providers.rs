//! Which provider of a name takes a frame, and what becomes of what it took.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use nlbus::broker::{Limits, LinkId};
use nlbus::wire::{EnvelopeHead, flag};
use support_node::bus::{Bus, REMOTE, SERVICE, STRANGER};
use support_node::frames::{ask, data, push};

/// A bus with a provider of `route` on port 7 of a local link, and its address.
fn served() -> (Bus, LinkId, u32) {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    (bus, service, address)
}

#[test]
fn several_providers_of_a_name_share_its_requests() {
    let (mut bus, first, address) = served();
    let (second, third) = (bus.up(SERVICE), bus.up(REMOTE));
    assert_eq!(bus.provide(second, "route", 20), address);
    assert_eq!(bus.provide(third, "route", 30), address);
    let asker = bus.up(STRANGER);
    let mut counts = std::collections::HashMap::new();
    for number in 1..=30 {
        let got = bus.send_one(asker, &ask(address, 0, number, b""));
        *counts.entry((got.to, got.head().dst)).or_insert(0) += 1;
    }
    let even = [((first, 7), 10), ((second, 20), 10), ((third, 30), 10)];
    assert_eq!(counts, even.into_iter().collect());

    bus.down(second);
    bus.remove(third, "route", 30);
    for number in 1..=5 {
        assert_eq!(bus.send_one(asker, &ask(address, 0, number, b"")).to, first);
    }
}

#[test]
fn the_parts_of_one_message_go_to_one_provider() {
    let (mut bus, _, address) = served();
    let second = bus.up(SERVICE);
    bus.provide(second, "route", 20);
    let asker = bus.up(STRANGER);
    for number in 1..=6 {
        let parts: Vec<LinkId> =
            (0..4).map(|_| bus.send_one(asker, &ask(address, 0, number, b"")).to).collect();
        assert!(parts.iter().all(|to| *to == parts[0]), "{parts:?}");
    }
    // one who gives no numbers sends no parts
    let targets: std::collections::HashSet<LinkId> =
        (0..2).map(|_| bus.send_one(asker, &ask(address, 0, 0, b"")).to).collect();
    assert_eq!(targets.len(), 2);
}

#[test]
fn one_link_may_provide_a_name_on_two_ports() {
    let (mut bus, service, address) = served();
    bus.provide(service, "route", 8);
    let asker = bus.up(STRANGER);
    let mut ports: Vec<u32> =
        (1..=4).map(|n| bus.send_one(asker, &ask(address, 0, n, b"")).head().dst).collect();
    ports.sort_unstable();
    assert_eq!(ports, [7, 7, 8, 8]);
    bus.remove(service, "route", 7);
    assert_eq!(bus.send_one(asker, &ask(address, 0, 4, b"")).head().dst, 8);
}

/// A provider behind a connection, and the address of its name.
fn remote() -> (Bus, LinkId, u32) {
    let mut bus = Bus::default();
    let provider = bus.up(REMOTE);
    let address = bus.provide(provider, "echo", 7);
    (bus, provider, address)
}

#[test]
fn a_provider_that_goes_with_requests_open_leaves_its_askers_an_exception() {
    let (mut bus, provider, address) = remote();
    let (asker, other) = (bus.up(STRANGER), bus.up(STRANGER));
    let asked = bus.send_one(asker, &ask(address, 3, 11, b""));
    bus.send_one(other, &ask(address, 0, 12, b""));
    let answered = bus.send_one(asker, &ask(address, 3, 13, b""));
    let head = EnvelopeHead {
        flags: flag::RESPONSE | flag::LAST,
        sequence: 13,
        dst: answered.head().src,
        src: 7,
        ..EnvelopeHead::default()
    };
    bus.send_one(provider, &data(head, b"done"));
    // one who does not ask is not told
    bus.send_one(asker, &push(address, 3, 14, b""));

    let mut told = bus.down_frames(provider);
    told.sort_by_key(|got| got.head().sequence);
    let heads: Vec<EnvelopeHead> = told.iter().map(|got| got.head()).collect();
    let exception = flag::EXCEPTION | flag::RESPONSE;
    assert_eq!(heads.len(), 2, "{heads:?}");
    assert_eq!((told[0].to, heads[0].dst, heads[0].sequence), (asker, 3, 11));
    assert_eq!((told[1].to, heads[1].dst, heads[1].sequence), (other, 0, 12));
    assert!(heads.iter().all(|head| head.flags == exception && head.src == address));
    assert_eq!(heads[0].pid, asked.head().pid);
}

#[test]
fn open_requests_are_bounded_and_those_past_the_bound_are_counted() {
    let mut limits = Limits::default();
    limits.open_requests_per_link_max = 2;
    let mut bus = Bus::new(limits);
    let provider = bus.up(REMOTE);
    let address = bus.provide(provider, "echo", 7);
    let asker = bus.up(STRANGER);
    for number in 1..=3 {
        bus.send_one(asker, &ask(address, 0, number, b""));
    }
    assert_eq!(bus.counters().untracked, 1);
    assert_eq!(bus.down_frames(provider).len(), 2);
}
