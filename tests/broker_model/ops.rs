//! What the model test does to the bus, at random.

use nlbus::broker::{Access, Carrier, LinkKind, RETURN_BASE, Rights, SUBSYSTEM_BASE};
use nlbus::wire::{LEGACY_FRAME_MAX, PAYLOAD_OFFSET, flag};
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) const NAMES: [&str; 3] = ["route", "generic", "audit"];
/// How many ports a link uses.
pub(crate) const PORTS: u32 = 4;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Up(LinkKind),
    Down(usize),
    /// A link sends frames, cut at some places.
    Batch(usize, Vec<Step>, Vec<usize>),
    /// A link sends what is not a frame.
    Garbage(usize),
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Hello(u32),
    Provide(usize, u32),
    Remove(usize, u32),
    Subscribe(Filter),
    Unsubscribe(u32),
    Frame { to: To, src: u32, flags: u16, length: usize, word: u32 },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Filter {
    All,
    Address(u32),
    Name(usize),
    Word(u32),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    Address(u32),
    /// One of the return addresses that there have been.
    Back(usize),
}

pub(crate) fn kinds() -> impl Strategy<Value = LinkKind> {
    let rights = |use_bus, provide| Access::reading(Rights { use_bus, provide, control: false });
    prop_oneof![
        4 => Just(LinkKind::stream(rights(true, false))),
        3 => Just(LinkKind { access: rights(true, true), carrier: Carrier::Local, peer: String::new() }),
        2 => Just(LinkKind::stream(rights(true, true))),
        1 => Just(LinkKind::stream(rights(false, false))),
    ]
}

pub(crate) fn steps() -> impl Strategy<Value = Step> {
    let filter = prop_oneof![
        3 => Just(Filter::All),
        1 => (0u32..4).prop_map(|n| Filter::Address(SUBSYSTEM_BASE + n)),
        1 => (0..NAMES.len()).prop_map(Filter::Name),
        1 => (0u32..2).prop_map(Filter::Word),
    ];
    let to = prop_oneof![
        2 => prop_oneof![Just(0), Just(u32::MAX)].prop_map(To::Address),
        6 => (0u32..4).prop_map(|n| To::Address(SUBSYSTEM_BASE + n)),
        6 => any::<usize>().prop_map(To::Back),
        1 => (0u32..3, 0u32..12).prop_map(|(g, n)| To::Address(RETURN_BASE | g << 21 | n)),
        1 => prop_oneof![1u32..9, Just(0x10002), Just(0x20000), Just(RETURN_BASE - 1)]
            .prop_map(To::Address),
    ];
    let flags = prop_oneof![
        4 => Just(flag::ASK),
        2 => Just(0),
        1 => Just(flag::RESPONSE),
        1 => Just(flag::ASK | flag::EXCEPTION | flag::RESPONSE),
        1 => any::<u16>().prop_map(|flags| flags & !flag::CONTROL),
    ];
    let legacy = LEGACY_FRAME_MAX - PAYLOAD_OFFSET;
    let length =
        prop_oneof![30 => 8usize..40, 1 => legacy - 4..legacy + 8, 1 => 20_000usize..20_010];
    let frame = (to, 0..PORTS, flags, length, 0u32..2)
        .prop_map(|(to, src, flags, length, word)| Step::Frame { to, src, flags, length, word });
    prop_oneof![
        1 => prop_oneof![LEGACY_FRAME_MAX as u32..20_100, Just(u32::MAX), 0u32..20_000]
            .prop_map(Step::Hello),
        2 => (0..NAMES.len(), 0..PORTS).prop_map(|(name, port)| Step::Provide(name, port)),
        1 => (0..NAMES.len(), 0..PORTS).prop_map(|(name, port)| Step::Remove(name, port)),
        2 => filter.prop_map(Step::Subscribe),
        1 => (1_020u32..1_024).prop_map(Step::Unsubscribe),
        12 => frame,
    ]
}

pub(crate) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => kinds().prop_map(Op::Up),
        1 => any::<usize>().prop_map(Op::Down),
        12 => (any::<usize>(), vec(steps(), 1..8), vec(any::<usize>(), 0..4))
            .prop_map(|(from, steps, cuts)| Op::Batch(from, steps, cuts)),
        1 => any::<usize>().prop_map(Op::Garbage),
    ];
    vec(op, 1..60)
}
