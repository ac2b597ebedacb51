//! Taking connections in.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, info, info_span, warn};

use super::{Listening, Node, Shared, Stop, lock, socket};
use crate::transport::{Accepted, ListenError, ListenOptions, Listener, is_transient};
use crate::url::{BusUrl, TransportKind};

/// How long accepting pauses when the system is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Node {
    /// Listens at `url` and takes links in from then on, or datagrams; the URL with the port that was bound.
    ///
    /// # Errors
    /// See [`ListenError`].
    ///
    /// Cancel-safe: dropped before it returns, nothing listens.
    pub async fn listen(
        &self,
        url: &BusUrl,
        options: &ListenOptions,
    ) -> Result<BusUrl, ListenError> {
        if url.transport() == TransportKind::Udp {
            return self.listen_udp(url, options).await;
        }
        let listener = Listener::bind(url, options).await?;
        let bound = listener.local_url().clone();
        let shared = Arc::clone(&self.shared);
        let busy = shared.busy.hold();
        let handshake_max = options.handshake_timeout;
        let first_frame_max = bound.is_tls().then_some(shared.options.first_frame_max);
        let span = info_span!("listener", url = %bound);
        let ended = self.shared.listening(url, &bound, options);
        let work = async move {
            let _busy = busy;
            info!("listening");
            tokio::select! {
                () = accept_loop(&shared, &listener, handshake_max, first_frame_max) => {}
                () = shared.stopped(Stop::Drain) => info!("closed"),
                () = told(ended.clone()) => info!("closed"),
            }
            shared.not_listening(listener.local_url());
            drop(listener);
            // says that the socket is closed
            drop(ended);
        };
        tokio::spawn(work.instrument(span));
        Ok(bound)
    }
}

impl Node {
    /// Listens no more at `url`, as it was asked for or as it was bound; whether it did. Links that came in
    /// there live on. When it returns, the socket is closed.
    ///
    /// Cancel-safe: dropped before it returns, the socket may be closed a little later.
    pub async fn unlisten(&self, url: &BusUrl) -> bool {
        let text = url.to_string();
        let found = {
            let mut listeners = lock(&self.shared.listeners);
            let is_it =
                |one: &Listening| one.bound.to_string() == text || one.asked.to_string() == text;
            listeners.iter().position(is_it).map(|at| listeners.remove(at))
        };
        let Some(Listening { end, .. }) = found else { return false };
        end.send_replace(true);
        end.closed().await;
        true
    }

    /// The URLs that are listened at, with the ports that were bound.
    pub fn listeners(&self) -> Vec<BusUrl> {
        lock(&self.shared.listeners).iter().map(|one| one.bound.clone()).collect()
    }
}

impl Shared {
    /// Notes that `bound` is listened at; what comes says when that has to end.
    pub(super) fn listening(
        &self,
        asked: &BusUrl,
        bound: &BusUrl,
        options: &ListenOptions,
    ) -> watch::Receiver<bool> {
        let (end, ended) = watch::channel(false);
        let tls = options.tls.clone().filter(|_| bound.is_tls());
        let one = Listening { asked: asked.clone(), bound: bound.clone(), tls, end };
        lock(&self.listeners).push(one);
        ended
    }

    pub(super) fn not_listening(&self, bound: &BusUrl) {
        lock(&self.listeners).retain(|one| one.bound != *bound);
    }
}

/// Waits until `true` is sent. Cancel-safe.
pub(super) async fn told(mut ended: watch::Receiver<bool>) {
    if ended.wait_for(|ended| *ended).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn accept_loop(
    shared: &Arc<Shared>,
    listener: &Listener,
    handshake_max: Duration,
    first_frame_max: Option<Duration>,
) {
    loop {
        match listener.accept().await {
            Ok(accepted) => {
                let shared = Arc::clone(shared);
                let busy = shared.busy.hold();
                let span = info_span!(parent: None, "link", peer = %accepted.peer().address);
                let first_frame_by = first_frame_max.map(|max| Instant::now() + max);
                let work = async move {
                    let _busy = busy;
                    welcome(&shared, accepted, handshake_max, first_frame_by).await;
                };
                tokio::spawn(work.instrument(span));
            }
            Err(error) if is_transient(&error) => {
                warn!(%error, "cannot accept for now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => {
                warn!(%error, "cannot accept any more");
                return;
            }
        }
    }
}

async fn welcome(
    shared: &Arc<Shared>,
    accepted: Accepted,
    handshake_max: Duration,
    first_frame_by: Option<Instant>,
) {
    // boxed, for it is long, and over before the link begins
    let handshake = Box::pin(timeout(handshake_max, accepted.handshake()));
    let stream = tokio::select! {
        stream = handshake => stream,
        () = shared.stopped(Stop::Drain) => return,
    };
    match stream {
        Ok(Ok(stream)) => {
            socket::run_link(shared, stream, socket::Made::There, first_frame_by).await;
        }
        Ok(Err(error)) => {
            let source = error.source().map(tracing::field::display);
            info!(%error, source, "refused: the handshake failed");
        }
        Err(_) => info!("refused: no handshake within {handshake_max:?}"),
    }
}
