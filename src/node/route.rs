//! Carrying out what the core decided: one lock of the core for a whole read, then the outboxes.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::timeout;

use super::inbox::Inbox;
use super::outbox::{Outbox, Pushed, frame_lengths};
use super::uplink::FirstLink;
use super::{Shared, lock};
use crate::broker::{Action, Actions, Broker, Delivery, Handled, LinkId, Sharing, Source};
use crate::wire::{EnvelopeHead, FRAME_MAX, Frames};

/// The other end of a link, where frames for it go.
#[derive(Clone)]
pub(super) enum Target {
    Socket(Arc<Outbox>),
    Local(Arc<Inbox>),
}

impl Target {
    fn push(&self, bytes: &[u8], from: LinkId, delivery: Delivery) -> (usize, Pushed) {
        match self {
            Self::Socket(outbox) => match outbox.push(bytes, delivery) {
                Pushed::Taken => (bytes.len(), Pushed::Taken),
                other => (0, other),
            },
            Self::Local(inbox) => inbox.push(bytes, from, delivery),
        }
    }

    /// Waits until there may be room, or the target is closed; of an inbox, since the call.
    fn room(&self) -> impl Future<Output = ()> + Send {
        let given_back = match self {
            Self::Socket(_) => None,
            Self::Local(inbox) => Some(inbox.room()),
        };
        async move {
            match (self, given_back) {
                (Self::Socket(outbox), _) => outbox.room().await,
                (Self::Local(_), given_back) => {
                    if let Some(given_back) = given_back {
                        given_back.await;
                    }
                }
            }
        }
    }

    fn flush(&self) {
        if let Self::Socket(outbox) = self {
            outbox.flush();
        }
    }
}

/// Scratch space of one sender, used again for each of its reads.
#[derive(Default)]
pub(super) struct Router {
    actions: Actions,
    steps: Vec<(Action, Option<Target>)>,
    dirty: Vec<Arc<Outbox>>,
}

impl Router {
    /// Forgets what a routing that was dropped half-way has left, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.actions.clear();
        self.steps.clear();
        self.dirty.clear();
    }

    /// Routes the whole frames in `bytes`, which came from `from`, and hands them to their targets. Waits
    /// where a target has no room.
    ///
    /// Dropping the future loses what was not handed over yet.
    pub(super) async fn route(
        &mut self,
        shared: &Shared,
        from: LinkId,
        bytes: &mut [u8],
    ) -> Handled {
        let handled =
            self.decide(shared, |broker, actions| broker.handle_bytes(from, bytes, actions));
        self.carry_out(shared, from, bytes).await;
        handled
    }

    /// Has the core do something that concerns the link `of`, and carries out what follows from it. Waits
    /// where a target has no room.
    ///
    /// Dropping the future loses what was not handed over yet.
    pub(super) async fn perform<T>(
        &mut self,
        shared: &Shared,
        of: LinkId,
        what: impl FnOnce(&mut Broker, &mut Actions) -> T,
    ) -> T {
        let done = self.decide(shared, what);
        self.carry_out(shared, of, &[]).await;
        done
    }

    fn decide<T>(
        &mut self,
        shared: &Shared,
        what: impl FnOnce(&mut Broker, &mut Actions) -> T,
    ) -> T {
        let mut core = lock(&shared.core);
        shared.pressure.tell(&mut core.broker);
        let providers = core.broker.providers_version();
        let done = what(&mut core.broker, &mut self.actions);
        if core.broker.providers_version() != providers {
            shared.pressure.providers_changed();
        }
        for action in self.actions.list.drain(..) {
            let target = core.target_of(&action);
            self.steps.push((action, target));
        }
        done
    }

    /// Carries out what the core has decided.
    pub(super) async fn carry_out(&mut self, shared: &Shared, from: LinkId, input: &[u8]) {
        let mut steps = std::mem::take(&mut self.steps);
        for (action, target) in steps.drain(..) {
            match (action, target) {
                (Action::Send { to, source, range, delivery }, Some(target)) => {
                    let actions = std::mem::take(&mut self.actions);
                    let bytes = match source {
                        Source::Input => &input[range],
                        Source::Scratch => &actions.scratch[range],
                    };
                    // what waits is boxed: few frames do, and the future of each link has room for it
                    match target {
                        Target::Socket(outbox) => match outbox.push(bytes, delivery) {
                            pushed @ (Pushed::Full | Pushed::Closed) => {
                                if let Delivery::Share(subsystem) = delivery {
                                    let target = (to, Target::Socket(outbox));
                                    let hold =
                                        self.send_shared(shared, from, target, bytes, subsystem);
                                    Box::pin(hold).await;
                                } else if pushed == Pushed::Full {
                                    let hold = self.send_out(shared, outbox, bytes, delivery);
                                    Box::pin(hold).await;
                                }
                            }
                            pushed => self.pushed(shared, outbox, pushed),
                        },
                        Target::Local(inbox) => {
                            let (taken, pushed) = inbox.push(bytes, from, delivery);
                            match (pushed, delivery) {
                                (Pushed::Full | Pushed::Closed, Delivery::Share(subsystem)) => {
                                    let target = (to, Target::Local(inbox));
                                    let rest = &bytes[taken..];
                                    let hold =
                                        self.send_shared(shared, from, target, rest, subsystem);
                                    Box::pin(hold).await;
                                }
                                (Pushed::Full, _) => {
                                    let rest = &bytes[taken..];
                                    let hold = self.send_in(shared, &inbox, from, rest, delivery);
                                    Box::pin(hold).await;
                                }
                                (Pushed::Shed, _) => {
                                    shared.counters.shed.fetch_add(1, Ordering::Relaxed);
                                }
                                (Pushed::Taken | Pushed::Closed, _) => {}
                            }
                        }
                    }
                    self.actions = actions;
                }
                (Action::Greeted { .. }, Some(Target::Socket(outbox))) => outbox.greet(),
                (Action::EventsChanged, _) => shared.events_changed(),
                (Action::Gone { address, .. }, Some(Target::Local(inbox))) => {
                    inbox.push_gone(address);
                }
                (Action::Order { link, head, order }, _) => shared.order(link, head, order),
                (Action::Linked { address }, _) => shared.linked(address, FirstLink::Up),
                (Action::Refused { link, text }, _) => refused(link, &text),
                _ => {}
            }
        }
        self.steps = steps;
        self.flush();
        self.actions.clear();
    }

    /// Hands a run to a socket that has no room now.
    async fn send_out(
        &mut self,
        shared: &Shared,
        outbox: Arc<Outbox>,
        bytes: &[u8],
        delivery: Delivery,
    ) {
        let mut pushed = outbox.push(bytes, delivery);
        while pushed == Pushed::Full {
            shared.counters.held.fetch_add(1, Ordering::Relaxed);
            self.flush();
            outbox.flush();
            let room = outbox.room();
            if delivery == Delivery::Reply {
                let written = outbox.written();
                let over = timeout(shared.options.reply_hold_max, room).await.is_err();
                // one that is slow is waited for, one that takes nothing is not
                if over && outbox.written() == written {
                    shared.counters.stalled.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("closing a link that does not read its answers");
                    outbox.close();
                }
            } else {
                room.await;
            }
            pushed = outbox.push(bytes, delivery);
        }
        self.pushed(shared, outbox, pushed);
    }

    fn pushed(&mut self, shared: &Shared, outbox: Arc<Outbox>, pushed: Pushed) {
        match pushed {
            Pushed::Shed => {
                shared.counters.shed.fetch_add(1, Ordering::Relaxed);
            }
            // one that is flushed twice has nothing to write the second time
            _ if self.dirty.last().is_none_or(|last| !Arc::ptr_eq(last, &outbox)) => {
                self.dirty.push(outbox);
            }
            _ => {}
        }
    }

    /// Hands a run of pushes to whoever of the providers of `subsystem` has room first, beginning with the
    /// one that was chosen. It is lost if that one's link has ended and there is no other.
    async fn send_shared(
        &mut self,
        shared: &Shared,
        from: LinkId,
        (mut to, mut target): (LinkId, Target),
        bytes: &[u8],
        subsystem: u32,
    ) {
        let mut run = Cow::Borrowed(bytes);
        let mut may_move = true;
        loop {
            let relieved = shared.pressure.relieved();
            let room = target.room();
            let (taken, pushed) = target.push(&run, from, Delivery::Share(subsystem));
            run = match run {
                Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[taken..]),
                Cow::Owned(mut bytes) => Cow::Owned(bytes.split_off(taken)),
            };
            let closed = match pushed {
                Pushed::Taken | Pushed::Shed => {
                    if let Target::Socket(outbox) = &target {
                        self.pushed(shared, Arc::clone(outbox), pushed);
                    }
                    return;
                }
                Pushed::Full => false,
                Pushed::Closed => true,
            };
            shared.counters.held.fetch_add(1, Ordering::Relaxed);
            self.flush();
            target.flush();
            let other = {
                let mut core = lock(&shared.core);
                shared.pressure.tell(&mut core.broker);
                let longest = frame_lengths(&run).max().unwrap_or(0);
                match core.broker.share(from, subsystem, longest, to) {
                    Sharing::With(link, port) if may_move || closed => {
                        let target = core.targets.get(link.index()).cloned().flatten();
                        target.map(|target| (link, target, port))
                    }
                    Sharing::Nobody if closed => return,
                    _ => None,
                }
            };
            if let Some((link, other, port)) = other {
                let mut bytes = run.into_owned();
                let mut frames = Frames::new(&mut bytes, FRAME_MAX);
                while let Some((_, frame)) = frames.next_frame() {
                    let src = EnvelopeHead::read(frame).map_or(0, |(_, head)| head.src);
                    EnvelopeHead::rewrite(frame, port, src);
                }
                run = Cow::Owned(bytes);
                drop(room);
                (to, target) = (link, other);
                // two that are full without being slow would be tried by turns for ever
                may_move = false;
                continue;
            }
            tokio::select! {
                () = room, if !closed => {}
                () = relieved => {}
            }
            may_move = true;
        }
    }

    async fn send_in(
        &mut self,
        shared: &Shared,
        inbox: &Arc<Inbox>,
        from: LinkId,
        mut bytes: &[u8],
        delivery: Delivery,
    ) {
        loop {
            let room = inbox.room();
            let (taken, pushed) = inbox.push(bytes, from, delivery);
            bytes = &bytes[taken..];
            if pushed == Pushed::Shed {
                shared.counters.shed.fetch_add(1, Ordering::Relaxed);
            }
            if pushed != Pushed::Full {
                return;
            }
            shared.counters.held.fetch_add(1, Ordering::Relaxed);
            self.flush();
            room.await;
        }
    }

    fn flush(&mut self) {
        for outbox in self.dirty.drain(..) {
            outbox.flush();
        }
    }
}

/// Forgets a link, and carries out what follows from that, without waiting: what a target has no room
/// for is dropped.
pub(super) fn link_down(shared: &Shared, id: LinkId) {
    let mut actions = Actions::default();
    let steps: Vec<(Action, Option<Target>)> = {
        let mut core = lock(&shared.core);
        core.broker.link_down(id, &mut actions);
        shared.pressure.providers_changed();
        if let Some(target) = core.targets.get_mut(id.index()) {
            *target = None;
        }
        let list = actions.list.drain(..);
        list.map(|action| (action.clone(), core.target_of(&action))).collect()
    };
    for step in steps {
        match step {
            (Action::Send { range, delivery, .. }, Some(target)) => {
                let bytes = &actions.scratch[range];
                match target {
                    Target::Socket(outbox) => {
                        outbox.push(bytes, delivery);
                        outbox.flush();
                    }
                    Target::Local(inbox) => {
                        inbox.push(bytes, id, delivery);
                    }
                }
            }
            (Action::EventsChanged, _) => shared.events_changed(),
            (Action::Gone { address, .. }, Some(Target::Local(inbox))) => inbox.push_gone(address),
            (Action::Refused { link, text }, _) => refused(link, &text),
            _ => {}
        }
    }
}

fn refused(link: LinkId, text: &str) {
    tracing::warn!(%link, text, "another broker has refused");
}
