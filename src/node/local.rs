//! A link inside the process: the bus without a socket.

use std::sync::{Arc, Mutex};

use super::inbox::{Credit, CreditMax, Delivered, Inbox};
use super::route::{Router, Target, link_down};
use super::{Held, Node, Shared, lock};
use crate::broker::{LinkId, LinkKind};
use bytes::Bytes;

impl Node {
    /// Attaches a link that lives in this process and has all rights. `None` if as many links are up
    /// as may be, or the node is shut down.
    pub fn attach(&self) -> Option<(LocalLink, LocalReceiver)> {
        let shared = &self.shared;
        let options = &shared.options;
        let max = CreditMax { bytes: options.credit_bytes_max, frames: options.credit_frames_max };
        let inbox = Arc::new(Inbox::new(max));
        let id = {
            let mut core = lock(&shared.core);
            let id = core.broker.link_up(LinkKind::LOCAL.peer("this process"))?;
            core.set_target(id, Target::Local(Arc::clone(&inbox)));
            id
        };
        if *shared.stop.borrow() != super::Stop::Run {
            inbox.close();
        }
        let attached = Attached {
            shared: Arc::clone(shared),
            id,
            inbox: Arc::clone(&inbox),
            routers: Mutex::default(),
        };
        let attached = Arc::new(attached);
        let busy = Arc::new(shared.locals.hold());
        Some((LocalLink { attached }, LocalReceiver { inbox, busy }))
    }
}

/// The sending side of a link inside the process. Clones share one link; it goes down with the last.
#[derive(Clone)]
pub struct LocalLink {
    attached: Arc<Attached>,
}

struct Attached {
    shared: Arc<Shared>,
    id: LinkId,
    inbox: Arc<Inbox>,
    /// Scratch space of senders, so that sending allocates nothing in the long run.
    routers: Mutex<Vec<Router>>,
}

impl LocalLink {
    /// Sends a run of whole frames, whose addresses are overwritten; waits where a target has no room.
    /// Whether all of it was taken: `false` if the link is closed or the bytes are not frames.
    ///
    /// Not cancel-safe: dropped while it waits, the rest of the run is lost.
    pub async fn send(&self, run: &mut [u8]) -> bool {
        let Attached { shared, id, routers, .. } = &*self.attached;
        let mut router = lock(routers).pop().unwrap_or_default();
        let handled = router.route(shared, *id, run).await;
        lock(routers).push(router);
        handled.fault.is_none() && handled.consumed == run.len()
    }

    /// Has `hook` told whether there are subscriptions: now, before the first one is acknowledged, and
    /// after the last one is gone. It may be told the same twice. It is called under a lock and must not
    /// block.
    pub fn on_events_wanted(&self, hook: impl Fn(bool) + Send + Sync + 'static) {
        let Attached { shared, id, .. } = &*self.attached;
        let mut hooks = lock(&shared.hooks);
        hook(lock(&shared.core).broker.subscriptions_len() > 0);
        hooks.push((*id, Box::new(hook)));
    }

    /// Receives nothing any more; what has arrived can still be taken.
    pub fn close(&self) {
        self.attached.inbox.close();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.inbox.close();
        lock(&self.shared.hooks).retain(|(id, _)| *id != self.id);
        link_down(&self.shared, self.id);
    }
}

/// The receiving side of a link inside the process.
///
/// [`Node::shutdown`] waits until it is dropped, and every frame that it gave out.
pub struct LocalReceiver {
    inbox: Arc<Inbox>,
    busy: Arc<Held>,
}

/// What arrives over a link inside the process.
pub enum LocalItem {
    /// A frame.
    Frame(LocalFrame),
    /// The asker behind this return address is gone.
    Gone(u32),
}

/// A frame that counts against its sender's credit until it is dropped.
pub struct LocalFrame {
    /// The whole frame.
    pub bytes: Bytes,
    _credit: Credit,
    _busy: Arc<Held>,
}

impl LocalReceiver {
    /// The next item; `None` once the link is closed and everything was taken. Cancel-safe.
    pub async fn next(&mut self) -> Option<LocalItem> {
        Some(match self.inbox.next().await? {
            Delivered::Frame(bytes, credit) => LocalItem::Frame(LocalFrame {
                bytes,
                _credit: credit,
                _busy: Arc::clone(&self.busy),
            }),
            Delivered::Gone(address) => LocalItem::Gone(address),
        })
    }
}
