//! The core and bytes that nobody meant.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use nlbus::broker::{Access, Actions, Broker, Limits, LinkKind};
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, align4};
use proptest::collection::vec;
use proptest::prelude::*;
use support_node::frames::{control, data};

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic_and_stop_their_link_alone(
        chunks in vec(vec(any::<u8>(), 0..200), 0..8),
        seeds in vec((any::<u16>(), any::<u32>(), any::<u32>(), vec(any::<u8>(), 0..80)), 0..8),
    ) {
        let mut broker = Broker::new(Limits::default(), std::num::NonZeroU32::MIN);
        let mut actions = Actions::default();
        let kind = LinkKind::stream(Access::ALL);
        let (hostile, other) = (broker.link_up(kind.clone()).unwrap(), broker.link_up(kind).unwrap());
        // proper frames with arbitrary contents, then anything
        let proper = seeds.iter().map(|(flags, dst, src, payload)| {
            data(EnvelopeHead { flags: *flags, sequence: 1, pid: 2, dst: *dst, src: *src }, payload)
        });
        for mut bytes in proper.chain(chunks.iter().cloned()) {
            let length = bytes.len();
            let handled = broker.handle_bytes(hostile, &mut bytes, &mut actions);
            prop_assert!(handled.consumed <= length);
            prop_assert_eq!(bytes.len(), length);
            actions.clear();
            if handled.fault.is_some() {
                broker.link_down(hostile, &mut actions);
                break;
            }
        }
        actions.clear();
        let mut hello = control(0, 1, Command::Discover, |control| {
            control.string(ControlAttribute::Host, "nobody")
        });
        let handled = broker.handle_bytes(other, &mut hello, &mut actions);
        prop_assert_eq!((handled.consumed, handled.fault), (align4(hello.len()), None));
        prop_assert_eq!(actions.list.len(), 1);
    }
}
