//! The core with links, return addresses and subscriptions, and one frame at a time through it.
//!
//! What a frame's buffer is set back to before each use costs a few instructions and is part of every figure.

use nlbus::broker::{Access, Actions, Broker, Limits, LinkId, LinkKind};
use nlbus::wire::{
    Command, ControlAttribute, ControlBuilder, EnvelopeHead, FRAME_MAX, Key, PROTOCOL_VERSION,
    TooBig, flag,
};

/// The payload of every frame, in bytes.
const PAYLOAD: usize = 128;
/// How many ports a link has that only fills the table of return addresses.
const PORTS: usize = 1_000;
/// How many conditions-on-their-own a link has that only fills the table of subscriptions.
const SUBSCRIPTIONS: usize = 1_000;
/// How many frames a batch has.
pub(crate) const BATCH: usize = 64;
/// How many answers are prepared, each to another return address.
const ANSWERS: usize = 1_024;

/// A core and those who use it.
pub(crate) struct World {
    broker: Broker,
    actions: Actions,
    asker: LinkId,
    provider: LinkId,
    /// The provider's.
    address: u32,
    /// Every return address that was made, in order.
    returns: Vec<u32>,
    frame: Vec<u8>,
    batch: Vec<u8>,
    /// Which answer is next.
    turn: usize,
}

impl World {
    /// A provider behind a socket, somebody who asks it, and `returns` return addresses in all.
    pub(crate) fn new(returns: usize) -> Self {
        let mut limits = Limits::default();
        limits.returns_max = usize::MAX;
        let mut broker = Broker::new(limits, std::num::NonZeroU32::MIN);
        let mut actions = Actions::default();
        let provider = greeted(&mut broker, &mut actions);
        let asker = greeted(&mut broker, &mut actions);
        control(&mut broker, provider, &mut actions, Command::Provide, |control| {
            control.string(ControlAttribute::Host, "bench")
        });
        let address = broker.subsystems().next().expect("it is provided").1;
        let frame = frame_of(EnvelopeHead::default());
        let batch = frame.repeat(BATCH);
        let returns_wanted = returns;
        let returns = Vec::with_capacity(returns);
        let mut world =
            Self { broker, actions, asker, provider, address, returns, frame, batch, turn: 0 };
        let mut link = asker;
        for number in 0..returns_wanted {
            if number > 0 && number % PORTS == 0 {
                link = greeted(&mut world.broker, &mut world.actions);
            }
            let src = (number % PORTS) as u32;
            world.send(link, EnvelopeHead { dst: address, src, ..EnvelopeHead::default() });
            let (_, head) = EnvelopeHead::read(&world.frame).expect("a whole frame");
            world.returns.push(head.src);
        }
        assert_eq!(world.broker.returns_len(), returns_wanted, "as many as were asked for");
        world
    }

    /// Adds links that each want every broadcast.
    pub(crate) fn with_subscribers(mut self, count: usize) -> Self {
        for _ in 0..count {
            let link = greeted(&mut self.broker, &mut self.actions);
            subscribe(&mut self.broker, link, &mut self.actions, None);
        }
        self
    }

    /// Adds one link whose condition every broadcast meets, after `others` conditions that none meets.
    pub(crate) fn with_conditions(mut self, others: usize) -> Self {
        let mut link = self.asker;
        for number in 0..others {
            if number % SUBSCRIPTIONS == 0 {
                link = greeted(&mut self.broker, &mut self.actions);
            }
            let key = Key { offset: 4, key: 0x1000 + number as u32, mask: u32::MAX };
            subscribe(&mut self.broker, link, &mut self.actions, Some(key));
        }
        let link = greeted(&mut self.broker, &mut self.actions);
        let key = Key { offset: 4, key: 0xa5a5, mask: 0xffff };
        subscribe(&mut self.broker, link, &mut self.actions, Some(key));
        self
    }

    /// Hands over one frame with this head; what is to be done about it.
    fn send(&mut self, from: LinkId, head: EnvelopeHead) -> usize {
        head.write_over(&mut self.frame);
        self.actions.clear();
        self.broker.handle_bytes(from, &mut self.frame, &mut self.actions);
        self.actions.list.len()
    }

    /// A request that nobody is told about if it is not answered: a push.
    #[inline(never)]
    pub(crate) fn push(&mut self) -> usize {
        self.send(self.asker, EnvelopeHead { dst: self.address, ..EnvelopeHead::default() })
    }

    /// As [`push`](Self::push), a batch at once.
    #[inline(never)]
    pub(crate) fn push_batch(&mut self) -> usize {
        let length = self.frame.len();
        for frame in self.batch.chunks_exact_mut(length) {
            EnvelopeHead::rewrite(frame, self.address, 0);
        }
        self.actions.clear();
        self.broker.handle_bytes(self.asker, &mut self.batch, &mut self.actions);
        self.actions.list.len()
    }

    /// A request that asks, and its answer: two frames.
    #[inline(never)]
    pub(crate) fn ask(&mut self) -> usize {
        let asked = EnvelopeHead { flags: flag::ASK, dst: self.address, ..EnvelopeHead::default() };
        self.send(self.asker, asked);
        let flags = flag::RESPONSE | flag::LAST;
        let answer = EnvelopeHead { flags, dst: self.returns[0], ..EnvelopeHead::default() };
        self.send(self.provider, answer)
    }

    /// An answer to the next of many return addresses that lie all over the table.
    #[inline(never)]
    pub(crate) fn answer(&mut self) -> usize {
        self.turn = (self.turn + 1) % ANSWERS;
        let at = self.turn * self.returns.len() / ANSWERS;
        let head = EnvelopeHead {
            flags: flag::RESPONSE,
            dst: self.returns[at],
            ..EnvelopeHead::default()
        };
        self.send(self.provider, head)
    }

    /// A broadcast.
    #[inline(never)]
    pub(crate) fn broadcast(&mut self) -> usize {
        self.send(self.asker, EnvelopeHead::default())
    }
}

fn frame_of(head: EnvelopeHead) -> Vec<u8> {
    let mut payload = vec![0; PAYLOAD];
    payload[..4].copy_from_slice(&(PAYLOAD as u32).to_le_bytes());
    payload[4..8].copy_from_slice(&0xa5a5_u32.to_le_bytes());
    let mut frame = Vec::new();
    head.emit(&payload, &mut frame).expect("the payload fits");
    frame
}

fn greeted(broker: &mut Broker, actions: &mut Actions) -> LinkId {
    let link = broker.link_up(LinkKind::stream(Access::ALL)).expect("there is room");
    control(broker, link, actions, Command::Hello, |control| {
        control
            .u32(ControlAttribute::Version, PROTOCOL_VERSION)?
            .u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
    });
    link
}

fn subscribe(broker: &mut Broker, link: LinkId, actions: &mut Actions, key: Option<Key>) {
    control(broker, link, actions, Command::Subscribe, |control| match key {
        Some(key) => control.key(key),
        None => Ok(control),
    });
}

fn control(
    broker: &mut Broker,
    link: LinkId,
    actions: &mut Actions,
    command: Command,
    fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
) {
    let mut frame = Vec::new();
    let builder = ControlBuilder::new(&mut frame, EnvelopeHead::default(), command);
    fill(builder).expect("it fits").finish();
    actions.clear();
    let handled = broker.handle_bytes(link, &mut frame, actions);
    assert_eq!((handled.consumed, handled.fault), (frame.len(), None), "{command:?}");
}
