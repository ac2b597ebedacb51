//! Links to other brokers that this node makes, and makes again when they are lost.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::listen::told;
use super::route::Target;
use super::socket::{Made, run_link};
use super::{Linking, Node, Shared, Stop, lock};
use crate::broker::{Access, Export, Names, Refusal, Rights, UplinkKind};
use crate::transport::{DialOptions, Stream, dial};
use crate::url::BusUrl;

/// How a link to another broker is made, and what it is for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UplinkOptions {
    /// What the other broker is called here: its subsystem `route` is then `route@NAME`. Default `uplink`.
    pub name: String,
    /// What of this node is provided at the other broker. Default: nothing.
    pub exports: Vec<Export>,
    /// Only links that may have `NAME@uplink` changed reach what is behind this one. To be set where the
    /// other broker lets this node make changes: it cannot know for whom. Default: no.
    pub writes: bool,
    /// What the other broker may do here. Default: use the bus, and read what is exported.
    pub access: Option<Access>,
    /// How its URL is reached.
    pub dial: DialOptions,
    /// How long the other broker may take to answer the greeting before the link is closed. Default 5 s.
    pub greeting_max: Duration,
    /// How long to wait before a lost link is made again, at first. Default 50 ms.
    pub pause_min: Duration,
    /// The same after many attempts; each pause is up to three times the one before, by chance, so that
    /// brokers that have lost the same one do not come back all at once. Default 10 s.
    pub pause_max: Duration,
}

impl Default for UplinkOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            exports: Vec::new(),
            writes: false,
            access: None,
            dial: DialOptions::default(),
            greeting_max: Duration::from_secs(5),
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(10),
        }
    }
}

/// A link that lasted as long is a good one: after it the pauses begin anew.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// What became of the first link of an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstLink {
    /// Nothing yet.
    Awaited,
    /// The other broker has answered the greeting.
    Up,
    /// It was lost before that.
    Lost,
    /// The greeting was not answered in time.
    Silent,
}

impl Node {
    /// Links this node to another broker, now and whenever the link is lost, until
    /// [`unlink`](Self::unlink): the address that stands for the other broker's first subsystem. Names of
    /// the other broker are reached as `name@NAME` as soon as the link is up.
    ///
    /// Returns before it is up. Call it within a tokio runtime.
    ///
    /// # Errors
    /// `EEXIST` if there is an uplink of this name, `EINVAL` if the name cannot be one, `ENOSPC`.
    pub fn uplink(&self, url: &BusUrl, options: UplinkOptions) -> Result<u32, Refusal> {
        self.shared.uplink(url, options, None)
    }

    /// Ends an uplink, by the address that it was given. Whether there was one.
    pub fn unlink(&self, address: u32) -> bool {
        self.shared.unlink(address)
    }
}

impl Shared {
    /// As [`Node::uplink`]; `first` is a connection that is there already.
    pub(super) fn uplink(
        &self,
        url: &BusUrl,
        options: UplinkOptions,
        first: Option<Stream>,
    ) -> Result<u32, Refusal> {
        let kind = UplinkKind {
            name: options.name.clone(),
            url: url.to_string(),
            exports: options.exports.clone(),
            writes: options.writes,
        };
        let address = lock(&self.core).broker.add_uplink(kind)?;
        let (end, ended) = watch::channel(false);
        let tls = options.dial.tls.clone().filter(|_| url.is_tls());
        let first_link = watch::Sender::new(FirstLink::Awaited);
        lock(&self.uplinks).insert(address, Linking { tls, end, first: first_link });
        let Some(shared) = self.this.upgrade() else { return Ok(address) };
        let busy = shared.busy.hold();
        let span =
            info_span!(parent: None, "uplink", address = format_args!("{address:#010x}"), %url);
        let url = url.clone();
        let work = async move {
            let _busy = busy;
            tokio::select! {
                () = keep_up(&shared, address, &url, &options, first, ended.clone()) => {}
                () = shared.stopped(Stop::Close) => {}
            }
        };
        tokio::spawn(work.instrument(span));
        Ok(address)
    }

    /// How the first link of an uplink has come out. Later news is not for it.
    pub(super) fn linked(&self, address: u32, now: FirstLink) {
        if let Some(linking) = lock(&self.uplinks).get(&address) {
            linking.first.send_if_modified(|first| {
                let awaited = *first == FirstLink::Awaited;
                if awaited {
                    *first = now;
                }
                awaited
            });
        }
    }

    /// Waits until the first link of an uplink has come out. Cancel-safe.
    pub(super) async fn first_link(&self, address: u32) -> FirstLink {
        let first = lock(&self.uplinks).get(&address).map(|linking| linking.first.subscribe());
        let Some(mut first) = first else { return FirstLink::Lost };
        let out = first.wait_for(|first| *first != FirstLink::Awaited).await;
        out.map_or(FirstLink::Lost, |first| *first)
    }

    pub(super) fn unlink(&self, address: u32) -> bool {
        let Some(linking) = lock(&self.uplinks).remove(&address) else { return false };
        linking.end.send_replace(true);
        let target = {
            let mut core = lock(&self.core);
            let link = core.broker.remove_uplink(address).flatten();
            link.and_then(|link| core.targets.get(link.index()).cloned().flatten())
        };
        if let Some(Target::Socket(outbox)) = target {
            outbox.close();
        }
        true
    }
}

async fn keep_up(
    shared: &Arc<Shared>,
    address: u32,
    url: &BusUrl,
    options: &UplinkOptions,
    mut first: Option<Stream>,
    ended: watch::Receiver<bool>,
) {
    let access = options.access.clone().unwrap_or_else(|| access_of(&options.exports));
    let mut pauses = Pauses::new(options);
    let mut said = false;
    while !*ended.borrow() && *shared.stop.borrow() == Stop::Run {
        let stream = match first.take() {
            Some(stream) => Ok(stream),
            None => tokio::select! {
                stream = dial(url, &options.dial) => stream,
                () = told(ended.clone()) => return,
                () = shared.stopped(Stop::Drain) => return,
            },
        };
        match stream {
            Ok(stream) => {
                info!("linked");
                said = false;
                let since = Instant::now();
                let made =
                    Made::Here { uplink: address, access: access.clone(), ended: ended.clone() };
                run_link(shared, stream, made, Some(since + options.greeting_max)).await;
                let silent = since.elapsed() >= options.greeting_max;
                let lost = if silent { FirstLink::Silent } else { FirstLink::Lost };
                shared.linked(address, lost);
                if since.elapsed() >= GOOD_AFTER {
                    pauses = Pauses::new(options);
                }
            }
            // once, not for each of many attempts
            Err(error) if said => debug!(%error, "cannot link"),
            Err(error) => {
                said = true;
                warn!(error = %with_source(&error), "cannot link; trying on");
            }
        }
        tokio::select! {
            () = sleep(pauses.next()) => {}
            () = told(ended.clone()) => return,
            () = shared.stopped(Stop::Drain) => return,
        }
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What a broker may do here that is only asked: hear what is broadcast, and read what it is offered.
fn access_of(exports: &[Export]) -> Access {
    let read = exports.iter().map(|export| export.name.clone()).collect();
    Access { rights: Rights::USE, read: Names::Only(read), write: Names::None }
}

/// Pauses that grow by chance.
struct Pauses {
    random: RandomState,
    count: u64,
    last: Duration,
    min: Duration,
    max: Duration,
}

impl Pauses {
    fn new(options: &UplinkOptions) -> Self {
        let (min, max) = (options.pause_min, options.pause_max);
        Self { random: RandomState::new(), count: 0, last: min, min, max }
    }

    /// Between the least and three times the last one, at most the most.
    fn next(&mut self) -> Duration {
        self.count += 1;
        let chance = self.random.hash_one(self.count) as f64 / u64::MAX as f64;
        let upper = (self.last * 3).clamp(self.min, self.max);
        self.last = self.min + (upper - self.min).mul_f64(chance);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_within_their_bounds_grow_and_differ() {
        let options = UplinkOptions::default();
        let run = || {
            let mut pauses = Pauses::new(&options);
            (0..200).map(|_| pauses.next()).collect::<Vec<_>>()
        };
        let (one, other) = (run(), run());
        assert_ne!(one, other);
        for pauses in [&one, &other] {
            assert!(pauses.iter().all(|p| (options.pause_min..=options.pause_max).contains(p)));
            assert!(pauses[0] <= options.pause_min * 3);
            assert!(pauses.iter().any(|pause| *pause > Duration::from_secs(2)));
        }
    }
}
