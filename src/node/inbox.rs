//! What waits for a link inside the process: whole frames, with a credit for each sender.
//!
//! One queue serves all senders in the order of arrival, but each sending link may have only so much in
//! it, and a frame counts until the receiver is *done* with it, not only until it was taken. So a
//! service can hand frames on to a task per asker, and a link that sends faster than it is served is
//! held back alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::lock;
use super::outbox::{Pushed, count_frames, frame_lengths, overrun};
use crate::broker::{Delivery, LinkId};

/// What a local link receives.
#[derive(Debug)]
pub(crate) enum Delivered {
    /// A whole frame.
    Frame(Bytes, Credit),
    /// The asker behind this return address is gone.
    Gone(u32),
}

/// A frame's share of its sender's credit, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Credit {
    inbox: Arc<Inbox>,
    sender: LinkId,
    bytes: usize,
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.inbox.give_back(self.sender, self.bytes);
    }
}

/// How much one sender may have in an inbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CreditMax {
    pub(crate) bytes: usize,
    pub(crate) frames: usize,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// Something arrived, or the inbox is closed.
    arrived: Notify,
    /// Credit was given back, or the inbox is closed.
    room: Notify,
    max: CreditMax,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    used: HashMap<LinkId, Used>,
    /// Frames lost that the receiver has not been told of yet, and who sent the last of them.
    shed: Option<(u32, LinkId)>,
    closed: bool,
}

#[derive(Debug)]
enum Item {
    Frame(Bytes, LinkId),
    Gone(u32),
}

#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    frames: usize,
}

impl Used {
    /// Counts a frame that the node itself made, for which nobody needs credit.
    fn take(&mut self, frame: Vec<u8>) -> Bytes {
        self.frames += 1;
        self.bytes += frame.len();
        frame.into()
    }
}

impl Inbox {
    pub(crate) fn new(max: CreditMax) -> Self {
        Self { state: Mutex::default(), arrived: Notify::new(), room: Notify::new(), max }
    }

    /// Takes whole frames from the start of `run`, as many as `sender` has credit for: how many bytes,
    /// and why not more. A sender with nothing in the inbox may always have one frame. Of broadcasts the
    /// rest is dropped, and the receiver is told how many that were.
    pub(crate) fn push(&self, run: &[u8], sender: LinkId, delivery: Delivery) -> (usize, Pushed) {
        let mut state = lock(&self.state);
        if state.closed {
            return (0, Pushed::Closed);
        }
        let mut at = 0;
        let mut pushed = Pushed::Taken;
        let State { queue, used, shed, .. } = &mut *state;
        let used = used.entry(sender).or_default();
        for length in frame_lengths(run) {
            let Some(frame) = run.get(at..at + length) else { break };
            let full = used.frames >= self.max.frames || used.bytes + length > self.max.bytes;
            if full && used.frames > 0 {
                pushed = Pushed::Full;
                break;
            }
            if let Some((count, _)) = shed.take() {
                queue.push_back(Item::Frame(used.take(overrun(count)), sender));
            }
            used.frames += 1;
            used.bytes += length;
            queue.push_back(Item::Frame(Bytes::copy_from_slice(frame), sender));
            at += length;
        }
        if pushed == Pushed::Full && delivery == Delivery::Shed {
            let before = shed.map_or(0, |(count, _)| count);
            *shed = Some((before.saturating_add(count_frames(&run[at..])), sender));
            pushed = Pushed::Shed;
        }
        drop(state);
        if at > 0 || pushed == Pushed::Shed {
            self.arrived.notify_one();
        }
        (at, pushed)
    }

    /// Says that a return address is gone. At most one for each that there was, so this needs no bound.
    pub(crate) fn push_gone(&self, address: u32) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.queue.push_back(Item::Gone(address));
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// The next item; `None` once the inbox is closed and empty. Cancel-safe; for one receiver.
    pub(crate) async fn next(self: &Arc<Self>) -> Option<Delivered> {
        loop {
            {
                let mut state = lock(&self.state);
                let State { queue, used, shed, .. } = &mut *state;
                if queue.is_empty()
                    && let Some((count, sender)) = shed.take()
                {
                    let told = used.entry(sender).or_default().take(overrun(count));
                    queue.push_back(Item::Frame(told, sender));
                }
                match state.queue.pop_front() {
                    Some(Item::Frame(frame, sender)) => {
                        let credit = Credit { inbox: Arc::clone(self), sender, bytes: frame.len() };
                        return Some(Delivered::Frame(frame, credit));
                    }
                    Some(Item::Gone(address)) => return Some(Delivered::Gone(address)),
                    None if state.closed => return None,
                    None => {}
                }
            }
            self.arrived.notified().await;
        }
    }

    /// Waits until some credit was given back since `notified` was made, or the inbox is closed.
    pub(crate) fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    /// Refuses what comes; what is in it can still be taken.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.room.notify_waiters();
        self.arrived.notify_one();
    }

    fn give_back(&self, sender: LinkId, bytes: usize) {
        let mut state = lock(&self.state);
        if let Some(used) = state.used.get_mut(&sender) {
            used.frames -= 1;
            used.bytes -= bytes;
            if used.frames == 0 {
                state.used.remove(&sender);
            }
        }
        drop(state);
        self.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::broker::{Broker, LinkKind};
    use crate::wire::EnvelopeHead;

    const MAX: CreditMax = CreditMax { bytes: 100, frames: 2 };

    fn senders() -> [LinkId; 3] {
        let mut broker = Broker::new(crate::broker::Limits::default(), std::num::NonZeroU32::MIN);
        [(); 3].map(|()| broker.link_up(LinkKind::LOCAL).unwrap())
    }

    fn frame(payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        EnvelopeHead::default().emit(&vec![7; payload], &mut out).unwrap();
        out
    }

    #[tokio::test]
    async fn a_sender_without_credit_is_held_and_another_is_not() {
        let [one, two, _] = senders();
        let inbox = Arc::new(Inbox::new(MAX));
        let run = [frame(0), frame(0), frame(0)].concat();
        assert_eq!(inbox.push(&run, one, Delivery::Hold), (56, Pushed::Full));
        assert_eq!(inbox.push(&frame(0), two, Delivery::Hold), (28, Pushed::Taken));

        let Some(Delivered::Frame(_, credit)) = inbox.next().await else { panic!("a frame") };
        assert_eq!(
            inbox.push(&frame(0), one, Delivery::Hold),
            (0, Pushed::Full),
            "taken is not yet done"
        );
        drop(credit);
        assert_eq!(inbox.push(&frame(0), one, Delivery::Hold), (28, Pushed::Taken));
    }

    #[tokio::test]
    async fn bytes_are_bounded_too_but_one_frame_always_fits() {
        let [one, two, three] = senders();
        let inbox = Arc::new(Inbox::new(MAX));
        assert_eq!(inbox.push(&frame(400), one, Delivery::Hold), (428, Pushed::Taken));
        assert_eq!(inbox.push(&frame(0), one, Delivery::Hold), (0, Pushed::Full));
        assert_eq!(inbox.push(&frame(40), two, Delivery::Hold), (68, Pushed::Taken));
        assert_eq!(
            inbox.push(&frame(4), two, Delivery::Hold),
            (32, Pushed::Taken),
            "100 bytes, at the bound"
        );
        assert_eq!(inbox.push(&frame(40), three, Delivery::Hold), (68, Pushed::Taken));
        assert_eq!(inbox.push(&frame(8), three, Delivery::Hold), (0, Pushed::Full), "one past it");
    }

    #[tokio::test]
    async fn a_broadcast_without_credit_is_dropped_and_told_of_where_it_was() {
        let [one, ..] = senders();
        let inbox = Arc::new(Inbox::new(MAX));
        let run = [frame(0), frame(0), frame(0), frame(0)].concat();
        assert_eq!(inbox.push(&run, one, Delivery::Shed), (56, Pushed::Shed));
        assert_eq!(inbox.push(&run, one, Delivery::Shed), (0, Pushed::Shed));
        let mut taken = Vec::new();
        for _ in 0..3 {
            let Some(Delivered::Frame(bytes, _)) = inbox.next().await else { panic!("a frame") };
            taken.push(bytes);
        }
        assert_eq!(taken, [frame(0), frame(0), overrun(6)]);
        assert_eq!(inbox.push(&run, one, Delivery::Shed), (56, Pushed::Shed));
        drop(inbox.next().await);
        assert_eq!(inbox.push(&frame(4), one, Delivery::Hold), (32, Pushed::Taken));
        drop(inbox.next().await);
        let Some(Delivered::Frame(bytes, _)) = inbox.next().await else { panic!("a frame") };
        assert_eq!(bytes, overrun(2));
        let Some(Delivered::Frame(bytes, _)) = inbox.next().await else { panic!("a frame") };
        assert_eq!(bytes, frame(4));
        assert!(lock(&inbox.state).used.is_empty(), "all credit is back");
    }

    #[tokio::test]
    async fn a_closed_inbox_hands_out_what_it_holds_and_ends() {
        let [one, ..] = senders();
        let inbox = Arc::new(Inbox::new(MAX));
        inbox.push(&frame(0), one, Delivery::Hold);
        inbox.push_gone(9);
        inbox.close();
        assert_eq!(inbox.push(&frame(0), one, Delivery::Hold), (0, Pushed::Closed));
        assert!(matches!(inbox.next().await, Some(Delivered::Frame(..))));
        assert!(matches!(inbox.next().await, Some(Delivered::Gone(9))));
        assert!(inbox.next().await.is_none());
    }
}
