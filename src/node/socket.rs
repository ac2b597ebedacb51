//! The broker's side of a link over a socket.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::outbox::Outbox;
use super::pool::{Desk, DeskPool};
use super::route::{Target, link_down};
use super::{Shared, Stop, lock};
use crate::broker::{Access, Actions, Delivery, LinkId, LinkKind};
use crate::transport::Stream;
use crate::wire::Malformed;

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Why a link ended.
enum End {
    /// The peer closed it, and left this many bytes of a frame behind.
    Closed(usize),
    /// Reading failed.
    Failed(io::Error),
    /// What the peer sent makes no sense.
    Malformed(Malformed),
    /// Half a frame waited too long.
    HalfFrame,
    /// The first frame did not come in time.
    Silent,
    /// Writing failed, or somebody closed the outbox.
    Outbox,
    /// The node shuts down.
    Stopping,
}

/// Who made a connection.
pub(super) enum Made {
    /// The peer.
    There,
    /// This node, to another broker, which may do so much here.
    Here {
        uplink: u32,
        access: Access,
        /// Whether the uplink is given up.
        ended: watch::Receiver<bool>,
    },
}

/// Takes a connection in as a link, and serves it until it ends. It ends early if there is no whole frame by
/// `first_frame_by`.
pub(super) async fn run_link(
    shared: &Arc<Shared>,
    stream: Stream,
    made: Made,
    first_frame_by: Option<Instant>,
) {
    let Some((id, outbox, mut reader)) = link_up(shared, stream, made) else {
        warn!("closed: as many links are up as may be, or it is given up");
        return;
    };
    info!(link = %id, "up");
    let writer = tokio::spawn({
        let outbox = Arc::clone(&outbox);
        async move { outbox.write_loop().await }
    });
    let end = tokio::select! {
        () = shared.stopped(Stop::Drain) => End::Stopping,
        () = outbox.closed() => End::Outbox,
        end = read_loop(shared, id, &mut reader, first_frame_by) => end,
    };
    let end = match end {
        // a shutdown closes the outbox too, and may do so between one look and the next
        End::Outbox if *shared.stop.borrow() > Stop::Run => End::Stopping,
        other => other,
    };
    let stopping = matches!(end, End::Stopping);
    if stopping {
        let discarding = async {
            discard(&mut reader).await;
            // a peer that has said all may still listen
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = shared.stopped(Stop::Close) => {}
            () = outbox.closed() => {}
            () = discarding => {}
        }
    }
    link_down(shared, id);
    outbox.close();
    let written = writer.await.unwrap_or(Ok(()));
    if stopping {
        // now the peer reads the end; one that does not close then has had its time
        let _ = timeout(shared.options.linger_max, discard(&mut reader)).await;
    }
    report(id, &end, written);
}

/// The link, and the two directions of its connection; `None` if it is refused. Apart from
/// [`run_link`], whose future lives as long as the link, so that nothing of this lives with it.
fn link_up(shared: &Shared, stream: Stream, made: Made) -> Option<(LinkId, Arc<Outbox>, Reader)> {
    let peer = stream.peer.to_string();
    let bytes_max = shared.options.outbox_bytes_max;
    let outbox = Outbox::new(stream.writer, bytes_max, false, Arc::clone(&shared.spare));
    let outbox = Arc::new(outbox);
    let mut greeting = Actions::default();
    let id = {
        let mut core = lock(&shared.core);
        let id = match made {
            Made::There => {
                let access = Arc::clone(&lock(&shared.access)).of(&stream.peer).clone();
                core.broker.link_up(LinkKind::stream(access).peer(peer))
            }
            // told before the core forgets the uplink, of which there may be another one by now
            Made::Here { ended, .. } if *ended.borrow() => None,
            Made::Here { uplink, access, .. } => {
                let kind = LinkKind::stream(access).peer(peer);
                core.broker.uplink_up(uplink, kind, &mut greeting)
            }
        };
        if let Some(id) = id {
            core.set_target(id, Target::Socket(Arc::clone(&outbox)));
        }
        id?
    };
    outbox.report_to(Arc::clone(&shared.pressure), id);
    // it is the first that is sent, so there is room
    outbox.push(&greeting.scratch, Delivery::Must);
    outbox.flush();
    Some((id, outbox, stream.reader))
}

/// Reads and forgets until the peer closes. A socket that is closed with bytes unread, or gets some
/// later, resets the connection, and what is on its way to the peer is lost.
async fn discard(reader: &mut Reader) {
    // not in the future: that lives as long as the link
    let mut bytes = vec![0; 1_024];
    while reader.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

fn report(id: LinkId, end: &End, written: io::Result<()>) {
    match (end, written) {
        (End::Malformed(malformed), _) => warn!(link = %id, %malformed, "closed: not a frame"),
        (End::HalfFrame, _) => warn!(link = %id, "closed: half a frame waited too long"),
        (End::Silent, _) => info!(link = %id, "closed: the first frame did not come in time"),
        (End::Failed(error), _) => info!(link = %id, %error, "down"),
        (_, Err(error)) => info!(link = %id, %error, "down: cannot write"),
        (End::Closed(0) | End::Stopping | End::Outbox, Ok(())) => info!(link = %id, "down"),
        (End::Closed(cut), Ok(())) => info!(link = %id, cut, "down inside a frame"),
    }
}

async fn read_loop(
    shared: &Shared,
    id: LinkId,
    reader: &mut Reader,
    mut first_frame_by: Option<Instant>,
) -> End {
    let mut input = Input { reader, pool: &shared.pool, desk: None, filled: 0, half: Vec::new() };
    let mut half_since: Option<Instant> = None;
    loop {
        let half_frame_by = half_since.map(|since| since + shared.options.half_frame_max);
        let deadline = half_frame_by.into_iter().chain(first_frame_by).min();
        let read = match deadline {
            None => input.read().await,
            Some(deadline) => match timeout_at(deadline, input.read()).await {
                Ok(read) => read,
                Err(_) if first_frame_by == Some(deadline) => {
                    shared.counters.silent.fetch_add(1, Ordering::Relaxed);
                    return End::Silent;
                }
                Err(_) => {
                    shared.counters.half_frames.fetch_add(1, Ordering::Relaxed);
                    return End::HalfFrame;
                }
            },
        };
        match read {
            Ok(0) => return End::Closed(input.filled),
            Ok(_) => {}
            Err(error) => return End::Failed(error),
        }
        let handled = match &mut input.desk {
            Some(desk) => {
                let Desk { buffer, router } = &mut **desk;
                router.route(shared, id, &mut buffer[..input.filled]).await
            }
            // there was something to read, so there is one
            None => continue,
        };
        if let Some(malformed) = handled.fault {
            return End::Malformed(malformed);
        }
        if let Some(deadline) = first_frame_by
            && handled.consumed > 0
        {
            if lock(&shared.core).broker.is_greeted(id) {
                first_frame_by = None;
            } else if deadline <= Instant::now() {
                // one that sends all the time is never waited for
                shared.counters.silent.fetch_add(1, Ordering::Relaxed);
                return End::Silent;
            }
        }
        input.consume(handled.consumed);
        if input.filled == 0 {
            half_since = None;
        } else if handled.consumed > 0 || half_since.is_none() {
            half_since = Some(Instant::now());
        }
    }
}

/// What a link has sent and nobody has looked at yet. While nothing arrives, the desk goes back to the pool,
/// and only the beginning of a frame is kept.
struct Input<'p> {
    reader: &'p mut Reader,
    pool: &'p DeskPool,
    desk: Option<Box<Desk>>,
    /// How many bytes of its buffer, or of `half` while there is none, are waiting.
    filled: usize,
    half: Vec<u8>,
}

impl Input<'_> {
    /// Reads what there is, and waits if there is nothing: how many bytes came, 0 at the end. There is
    /// always room: a frame is at most half a buffer long. Cancel-safe.
    async fn read(&mut self) -> io::Result<usize> {
        poll_fn(|context| {
            let mut desk = self.take_desk();
            let mut room = ReadBuf::new(&mut desk.buffer[self.filled..]);
            let read = Pin::new(&mut *self.reader).poll_read(context, &mut room);
            let count = room.filled().len();
            if read.is_pending() {
                self.half.extend_from_slice(&desk.buffer[..self.filled]);
                self.pool.put(desk);
                return Poll::Pending;
            }
            self.filled += count;
            self.desk = Some(desk);
            read.map_ok(|()| count)
        })
        .await
    }

    fn take_desk(&mut self) -> Box<Desk> {
        self.desk.take().unwrap_or_else(|| {
            let mut desk = self.pool.take();
            desk.buffer[..self.filled].copy_from_slice(&std::mem::take(&mut self.half));
            desk
        })
    }

    fn consume(&mut self, count: usize) {
        if let Some(desk) = &mut self.desk {
            desk.buffer.copy_within(count..self.filled, 0);
            self.filled -= count;
        }
    }
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if let Some(desk) = self.desk.take() {
            self.pool.put(desk);
        }
    }
}
