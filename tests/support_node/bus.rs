//! The core without a node: bytes in, frames out.

use std::num::NonZeroU32;

use nlbus::broker::{
    Access, Action, Actions, Broker, Counters, Delivery, Handled, Limits, LinkId, LinkKind, Rights,
    Source,
};
use nlbus::wire::{Command, ControlAttribute, ControlBuilder, EnvelopeHead, TooBig, kind};

use super::frames::{Said, control, head_of, payload_of, split};

pub(crate) const STRANGER: LinkKind = LinkKind::stream(Access::reading(Rights::USE));
pub(crate) const SERVICE: LinkKind = LinkKind::LOCAL;
/// May do everything, from behind a socket, and has not said HELLO.
pub(crate) const REMOTE: LinkKind = LinkKind::stream(Access::ALL);

/// A frame on its way to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) to: LinkId,
    pub(crate) delivery: Delivery,
    pub(crate) frame: Vec<u8>,
}

impl Got {
    pub(crate) fn head(&self) -> EnvelopeHead {
        head_of(&self.frame)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        payload_of(&self.frame)
    }
}

/// A core and the list it fills.
pub(crate) struct Bus {
    pub(crate) broker: Broker,
    pub(crate) actions: Actions,
}

impl Default for Bus {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Bus {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { broker: Broker::new(limits, NonZeroU32::MIN), actions: Actions::default() }
    }

    pub(crate) fn up(&mut self, kind: LinkKind) -> LinkId {
        self.broker.link_up(kind).unwrap()
    }

    pub(crate) fn down(&mut self, link: LinkId) -> Vec<Action> {
        self.actions.clear();
        self.broker.link_down(link, &mut self.actions);
        self.actions.list.clone()
    }

    pub(crate) fn counters(&self) -> Counters {
        *self.broker.counters()
    }

    /// Hands over bytes as they are; what the core did with them, and which frames go where.
    pub(crate) fn handle(&mut self, from: LinkId, bytes: &[u8]) -> (Handled, Vec<Got>) {
        self.actions.clear();
        let mut bytes = bytes.to_vec();
        let handled = self.broker.handle_bytes(from, &mut bytes, &mut self.actions);
        (handled, self.got(&bytes))
    }

    /// Takes a link down: which frames go where because of that.
    pub(crate) fn down_frames(&mut self, link: LinkId) -> Vec<Got> {
        self.down(link);
        self.got(&[])
    }

    fn got(&self, bytes: &[u8]) -> Vec<Got> {
        let mut got = Vec::new();
        for action in &self.actions.list {
            let Action::Send { to, source, range, delivery } = action else { continue };
            let from = match source {
                Source::Input => bytes,
                Source::Scratch => self.actions.scratch.as_slice(),
            };
            for frame in split(&from[range.clone()]) {
                got.push(Got { to: *to, delivery: *delivery, frame });
            }
        }
        got
    }

    /// Hands over whole frames that make sense: which frames go where.
    pub(crate) fn send(&mut self, from: LinkId, frames: &[u8]) -> Vec<Got> {
        let (handled, got) = self.handle(from, frames);
        assert_eq!((handled.fault, handled.consumed), (None, frames.len()));
        got
    }

    /// Sends one frame of which one comes out.
    pub(crate) fn send_one(&mut self, from: LinkId, frame: &[u8]) -> Got {
        let mut got = self.send(from, frame);
        assert_eq!(got.len(), 1, "{got:?}");
        got.remove(0)
    }

    /// Sends a control message from port 0; the answer, which goes to the sender.
    pub(crate) fn control(
        &mut self,
        from: LinkId,
        command: Command,
        fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
    ) -> Said {
        let got = self.send_one(from, &control(0, 9, command, fill));
        assert_eq!((got.to, got.delivery), (from, Delivery::Hold));
        Said::of(&got.frame)
    }

    pub(crate) fn try_provide(&mut self, link: LinkId, name: &str, port: u32) -> Said {
        self.control(link, Command::Provide, |control| {
            control.string(ControlAttribute::Host, name)?.u32(ControlAttribute::Port, port)
        })
    }

    /// Provides; the address.
    pub(crate) fn provide(&mut self, link: LinkId, name: &str, port: u32) -> u32 {
        let said = self.try_provide(link, name, port);
        assert!(said.is_ack(), "{said:?}");
        said.addr.unwrap()
    }

    pub(crate) fn remove(&mut self, link: LinkId, name: &str, port: u32) -> Said {
        self.control(link, Command::Remove, |control| {
            control.string(ControlAttribute::Host, name)?.u32(ControlAttribute::Port, port)
        })
    }

    /// Subscribes to everything; the subscription's number.
    pub(crate) fn subscribe(&mut self, link: LinkId) -> u32 {
        let said = self.control(link, Command::Subscribe, |c| Ok(c));
        assert!(said.is_ack(), "{said:?}");
        said.cid.unwrap()
    }

    pub(crate) fn hello(&mut self, link: LinkId, frame_max: u32) -> Said {
        self.control(link, Command::Hello, |control| {
            control.u32(ControlAttribute::Version, 1)?.u32(ControlAttribute::FrameMax, frame_max)
        })
    }

    /// What becomes of a command with everything in it that some command needs: `None` if it is carried out,
    /// here or by the node, else the error number.
    pub(crate) fn refused(&mut self, link: LinkId, command: Command) -> Option<i32> {
        let host = match command {
            Command::Connect | Command::Serve | Command::Shutdown => "tcp://127.0.0.1:1",
            _ => "name",
        };
        let frame = control(0, 9, command, |control| {
            let control = control.string(ControlAttribute::Host, host)?;
            let control = control.string(ControlAttribute::Text, "info")?;
            let control = control.string(ControlAttribute::Secret, "open sesame")?;
            let control = control.u32(ControlAttribute::Addr, 0x10003)?;
            let control = control.u32(ControlAttribute::Kind, kind::LINK)?;
            let control = control.u32(ControlAttribute::Version, 1)?;
            control.u32(ControlAttribute::FrameMax, 20_000)
        });
        let got = self.send(link, &frame);
        let orders =
            self.actions.list.iter().filter(|action| matches!(action, Action::Order { .. }));
        match (got.as_slice(), orders.count()) {
            ([answer], 0) => Said::of(&answer.frame).errno,
            ([], 1) => None,
            other => panic!("{command:?}: {other:?}"),
        }
    }
}
