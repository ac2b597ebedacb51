//! Which links take things more slowly than they come, so that others get what several share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::lock;
use crate::broker::{Broker, LinkId};

/// What has changed since the core was told.
#[derive(Default)]
pub(super) struct Pressure {
    changed: AtomicBool,
    links: Mutex<Vec<(LinkId, bool)>>,
    /// A link has caught up, or has come or gone as a provider.
    relieved: Notify,
}

impl Pressure {
    /// Notes that a link has become slow, or has caught up.
    pub(super) fn note(&self, link: LinkId, slow: bool) {
        lock(&self.links).push((link, slow));
        self.changed.store(true, Ordering::Release);
        if !slow {
            self.relieved.notify_waiters();
        }
    }

    /// Notes that there are other providers than before.
    pub(super) fn providers_changed(&self) {
        self.relieved.notify_waiters();
    }

    /// Waits until a link has caught up, or providers have changed, from the call on. Cancel-safe.
    pub(super) fn relieved(&self) -> Notified<'_> {
        self.relieved.notified()
    }

    /// Tells the core.
    #[inline]
    pub(super) fn tell(&self, broker: &mut Broker) {
        if self.changed.load(Ordering::Acquire) {
            self.tell_all(broker);
        }
    }

    #[cold]
    fn tell_all(&self, broker: &mut Broker) {
        self.changed.store(false, Ordering::Release);
        for (link, slow) in lock(&self.links).drain(..) {
            broker.set_slow(link, slow);
        }
    }
}
