//! Which provider of a name takes a frame, and what becomes of what it took.

mod support_node;

use nlbus::broker::LinkId;
use support_node::bus::{Bus, REMOTE, SERVICE, STRANGER};
use support_node::frames::ask;

/// A bus with a provider of `route` on port 7 of a local link, and its address.
fn served() -> (Bus, LinkId, u32) {
    let mut bus = Bus::default();
    let service = bus.up(SERVICE);
    let address = bus.provide(service, "route", 7);
    (bus, service, address)
}

// --- addresses ---

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
