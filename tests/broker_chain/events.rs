//! Broadcasts between cores: filters, rings, hops.

use nlbus::broker::{Access, LinkKind, Names, Rights};
use nlbus::wire::{Command, ControlAttribute};

use super::support_node::bus::{SERVICE, STRANGER};
use super::support_node::frames::{head_of, push};
use super::world::{End, World};
use super::{SEEDS, payloads};

/// Everybody is linked to the next one, the last one to the first.
fn ring(brokers: usize, seed: u64) -> World {
    let mut world = World::new(brokers, seed);
    for at in 0..brokers {
        world.link(at, "next", (at + 1) % brokers);
    }
    world
}

#[test]
fn a_broadcast_passes_both_ways_and_only_where_somebody_wants_it() {
    let mut world = World::new(3, 1);
    world.link(0, "b", 1);
    world.link(2, "b", 1);
    let sender = world.client(0, STRANGER);
    world.send(sender, &push(0, 0, 0, b"nobody wants this"));
    assert_eq!(world.crossed, 0);
    let listener = world.client(2, STRANGER);
    let cid = world.subscribe(listener);
    world.send(sender, &push(0, 0, 0, b"x"));
    assert_eq!(payloads(&world.received(listener)), [b"x"]);
    assert_eq!(world.crossed, 2);
    let back = world.client(0, STRANGER);
    world.subscribe(back);
    world.crossed = 0;
    world.send(listener, &push(0, 0, 0, b"y"));
    assert_eq!(payloads(&world.received(back)), [b"y"]);
    assert_eq!(world.crossed, 2, "nothing goes back to where it came from");
    world.unsubscribe(listener, cid);
    world.received(listener);
    world.crossed = 0;
    world.send(sender, &push(0, 0, 0, b"z"));
    assert_eq!(world.crossed, 0, "the one that listens is here");
    assert_eq!(payloads(&world.received(back)), [b"z"]);
}

#[test]
fn a_filter_holds_at_the_far_broker_already() {
    let mut world = World::new(2, 1);
    world.link(0, "hub", 1);
    let listener = world.client(0, STRANGER);
    let said = world.control(listener, Command::Subscribe, |c| {
        c.key(nlbus::wire::Key { offset: 0, key: 5, mask: u32::MAX })
    });
    assert!(said.is_ack());
    let sender = world.client(1, STRANGER);
    for word in [4u32, 5, 6] {
        world.send(sender, &push(0, 0, 0, &word.to_le_bytes()));
    }
    assert_eq!(payloads(&world.received(listener)), [5u32.to_le_bytes()]);
    assert_eq!(world.crossed, 1);
}

#[test]
fn a_ring_of_brokers_delivers_a_broadcast_once_in_whatever_order_it_goes_around() {
    for seed in SEEDS {
        for brokers in [2, 3, 4, 6] {
            let mut world = ring(brokers, seed);
            // and a short cut
            world.link(0, "across", brokers / 2);
            let listeners: Vec<End> = (0..brokers).map(|at| world.client(at, STRANGER)).collect();
            for listener in &listeners {
                world.subscribe(*listener);
            }
            let senders: Vec<End> = (0..brokers).map(|at| world.client(at, STRANGER)).collect();
            for round in 0..4u8 {
                for (at, sender) in senders.iter().enumerate() {
                    world.give(*sender, &push(0, 0, 0, &[round, at as u8]));
                }
            }
            world.settle();
            let mut wanted: Vec<[u8; 2]> =
                (0..4).flat_map(|round| (0..brokers).map(move |at| [round, at as u8])).collect();
            wanted.sort_unstable();
            for listener in listeners {
                let frames = world.received(listener);
                let mut got = payloads(&frames);
                for frame in &frames {
                    let head = head_of(frame);
                    let plain = (head.flags, head.sequence, head.pid, head.dst, head.src);
                    assert_eq!(plain, (0, 0, 0, 0, 0), "one of the original sees no mark");
                }
                got.sort_unstable();
                assert_eq!(got, wanted, "seed {seed}, {brokers} brokers");
            }
        }
    }
}

#[test]
fn in_a_ring_who_listens_to_a_name_hears_each_broadcast_once_whichever_copy_comes_first() {
    for seed in SEEDS {
        let mut world = ring(3, seed);
        let service = world.client(1, SERVICE);
        world.provide(service, "s");
        let some = Access {
            rights: Rights::USE,
            read: Names::Only(["s@next".to_owned()].into()),
            write: Names::None,
        };
        let kinds = [STRANGER, STRANGER, STRANGER, LinkKind::stream(some)];
        let [by_name, all, both, restricted] = kinds.map(|kind| world.client(0, kind));
        let name = world.discover(by_name, "s@next").addr.unwrap();
        let to_name = |world: &mut World, listener: End| {
            world.control(listener, Command::Subscribe, |c| c.u32(ControlAttribute::Addr, name));
        };
        to_name(&mut world, by_name);
        to_name(&mut world, both);
        for listener in [all, both, restricted] {
            world.subscribe(listener);
        }
        let behind = world.client(2, STRANGER);
        world.subscribe(behind);
        for round in 0..4u8 {
            world.give(service, &push(0, 0, 0, &[round]));
        }
        world.settle();
        for (who, listener) in [by_name, all, both, restricted, behind].into_iter().enumerate() {
            let frames = world.received(listener);
            let mut got = payloads(&frames);
            got.sort_unstable();
            assert_eq!(got, [[0], [1], [2], [3]], "seed {seed}, listener {who}");
        }
    }
}

#[test]
fn nothing_of_a_subscription_is_left_anywhere_in_a_ring_when_it_ends() {
    for seed in SEEDS {
        let mut world = ring(4, seed);
        world.link(3, "across", 1);
        let listener = world.client(0, STRANGER);
        let cid = world.subscribe(listener);
        assert!(world.brokers.iter().all(|broker| broker.subscriptions_len() > 0));
        if seed % 2 == 0 {
            world.unsubscribe(listener, cid);
        } else {
            world.down(listener);
            world.settle();
        }
        let left: Vec<_> = world.brokers.iter().map(|b| b.subscriptions_len()).collect();
        assert_eq!(left, [0; 4], "seed {seed}");
    }
}

#[test]
fn a_broadcast_goes_through_eight_brokers_and_no_further() {
    let mut world = World::new(11, 1);
    for at in 0..10 {
        world.link(at, "u", at + 1);
    }
    let listener = world.client(0, STRANGER);
    world.subscribe(listener);
    for (at, heard) in [(8, 1), (9, 0)] {
        let sender = world.client(at, STRANGER);
        world.send(sender, &push(0, 0, 0, b"x"));
        assert_eq!(world.received(listener).len(), heard, "from broker {at}");
    }
}
