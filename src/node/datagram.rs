//! Taking datagrams in: pushes and broadcasts from whoever can reach the port.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::UdpSocket;
use tracing::{Instrument, debug, info, info_span, warn};

use super::listen::told;
use super::pool::Desk;
use super::route::link_down;
use super::{Node, Shared, Stop, lock};
use crate::broker::{LinkId, LinkKind};
use crate::transport::{ListenError, ListenOptions, bind_udp, is_transient};
use crate::url::BusUrl;

impl Node {
    /// Takes datagrams in at `url` from then on, as one link with the rights of `anonymous`. Each is made of
    /// whole frames. They reach subscribers and pullers, nobody answers them, and what has no room is
    /// dropped.
    pub(super) async fn listen_udp(
        &self,
        url: &BusUrl,
        options: &ListenOptions,
    ) -> Result<BusUrl, ListenError> {
        let socket = bind_udp(url, options).await?;
        let port = socket.local_addr().map(|address| address.port()).ok();
        let bound = port.map_or_else(|| url.clone(), |port| url.with_port(port));
        let shared = Arc::clone(&self.shared);
        let busy = shared.busy.hold();
        let span = info_span!("listener", url = %bound);
        let ended = self.shared.listening(url, &bound, options);
        let url = bound.clone();
        let work = async move {
            let _busy = busy;
            let access = lock(&shared.access).anonymous.clone();
            let up =
                lock(&shared.core).broker.link_up(LinkKind::datagram(access).peer(url.to_string()));
            let Some(id) = up else {
                shared.not_listening(&url);
                return warn!("as many links are up as may be");
            };
            info!("listening");
            tokio::select! {
                () = receive(&shared, id, &socket) => {}
                () = shared.stopped(Stop::Drain) => info!("closed"),
                () = told(ended.clone()) => info!("closed"),
            }
            shared.not_listening(&url);
            link_down(&shared, id);
            drop(socket);
            // says that the socket is closed
            drop(ended);
        };
        tokio::spawn(work.instrument(span));
        Ok(bound)
    }
}

async fn receive(shared: &Shared, id: LinkId, socket: &UdpSocket) {
    loop {
        if let Err(error) = socket.readable().await {
            return warn!(%error, "cannot receive any more");
        }
        let mut desk = shared.pool.take();
        let Desk { buffer, router } = &mut *desk;
        while let Some(length) = take(socket, buffer) {
            let handled = router.route(shared, id, &mut buffer[..length]).await;
            if handled.consumed < length {
                // anybody may send anything: the next datagram is another's
                shared.counters.datagrams_malformed.fetch_add(1, Ordering::Relaxed);
                debug!(length, consumed = handled.consumed, "a datagram is not whole frames");
            }
        }
        shared.pool.put(desk);
    }
}

/// The next datagram that is there: its length.
fn take(socket: &UdpSocket, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match socket.try_recv(buffer) {
            Ok(length) => return Some(length),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            // of another datagram that somebody refused
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                warn!(%error, "cannot receive");
                return None;
            }
        }
    }
}
