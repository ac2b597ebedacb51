//! What waits to be written to a socket, bounded in bytes.
//!
//! Whoever has bytes for a link pushes them and then flushes: in the common case the socket takes them
//! there and then, without a task switch. What it does not take is left to the link's writer task.
//!
//! ```text
//! push → queue ──swap──▶ pending ──poll_write──▶ socket
//! ```
//!
//! Invariant: `in_flight` is `pending.len()` of the last time both were known, and
//! `queue.len() + in_flight` is what the bound is about. A push is let in below the bound, so that it is
//! passed by at most one run.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::AsyncWrite;
use tokio::sync::Notify;

use super::backlog::{Backlog, SLICES_MAX};
use super::lock;
use super::pressure::Pressure;
use super::spare::Spare;
use crate::broker::{Delivery, LinkId};
use crate::wire::{EnvelopeHead, MessageBuilder, nlm};

/// Runs from this length on are written without a copy where nothing waits before them. Below, it is cheaper
/// to gather what one read has for a socket into one write.
const THROUGH_BYTES_MIN: usize = 16 * 1024;

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The bytes are in.
    Taken,
    /// There is no room; nothing was taken. Flush, then wait for [`Outbox::room`].
    Full,
    /// There is no room, and the frames are counted as lost.
    Shed,
    /// The link is closed.
    Closed,
}

/// The outgoing side of one socket.
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    socket: Mutex<Socket>,
    /// There is room again, or the outbox is closed.
    room: Notify,
    /// The writer task has something to do.
    work: Notify,
    bytes_max: usize,
    spare: Arc<Spare>,
    /// The peer reassembles: writes need not end where frames end.
    greeted: AtomicBool,
    /// Who is told when much waits, and when it does no longer.
    pressure: OnceLock<(Arc<Pressure>, LinkId)>,
}

#[derive(Default)]
struct Queue {
    bytes: Backlog,
    /// Bytes that the socket side has taken over and not yet written.
    in_flight: usize,
    /// Bytes that were ever to be written, not counting runs that were written at once.
    ever: u64,
    /// The writer has taken bytes that it may still hold: TLS keeps records that the socket has no room for.
    unflushed: bool,
    /// Frames lost that the peer has not been told of yet.
    shed: u32,
    /// Half of the bound was waiting, and more than a quarter still is.
    slow: bool,
    closed: bool,
}

impl Queue {
    fn append(&mut self, run: &[u8], whole: bool, spare: &Spare) {
        self.ever += run.len() as u64;
        self.bytes.append(run, whole, spare);
    }
}

struct Socket {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    pending: Backlog,
    /// What is left of the frame that is being written, for a peer that wants whole frames in a write.
    frame_left: usize,
    /// The socket is full, and the writer task waits for it with its own waker.
    blocked: bool,
    /// Nothing more is to be written: goodbye is said, or the socket has failed.
    over: bool,
}

impl Outbox {
    pub(super) fn new(
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        bytes_max: usize,
        greeted: bool,
        spare: Arc<Spare>,
    ) -> Self {
        Self {
            queue: Mutex::default(),
            socket: Mutex::new(Socket {
                writer,
                pending: Backlog::default(),
                frame_left: 0,
                blocked: false,
                over: false,
            }),
            room: Notify::new(),
            work: Notify::new(),
            bytes_max,
            spare,
            greeted: AtomicBool::new(greeted),
            pressure: OnceLock::new(),
        }
    }

    /// Has `pressure` told when half of the bound waits for `link`, and when no more than a quarter does.
    pub(super) fn report_to(&self, pressure: Arc<Pressure>, link: LinkId) {
        let _ = self.pressure.set((pressure, link));
    }

    fn report(&self, slow: bool) {
        if let Some((pressure, link)) = self.pressure.get() {
            pressure.note(*link, slow);
        }
    }

    /// The peer has said HELLO.
    pub(crate) fn greet(&self) {
        self.greeted.store(true, Ordering::Relaxed);
    }

    /// Puts a run of whole frames at the end. Follow with [`flush`](Self::flush).
    pub(crate) fn push(&self, run: &[u8], delivery: Delivery) -> Pushed {
        if run.len() >= THROUGH_BYTES_MIN
            && let Some(pushed) = self.write_through(run)
        {
            return pushed;
        }
        self.queue(run, delivery)
    }

    /// Writes a long run to an idle socket there and then, without a copy but of what the socket does not
    /// take. `None` if there is anything to be written before it, or nothing could be.
    fn write_through(&self, run: &[u8]) -> Option<Pushed> {
        let mut socket = match self.socket.try_lock() {
            Ok(socket) if self.greeted.load(Ordering::Relaxed) => socket,
            _ => return None,
        };
        if socket.blocked || socket.over || !socket.pending.is_empty() {
            return None;
        }
        {
            let mut queue = lock(&self.queue);
            if queue.closed || queue.shed > 0 || !queue.bytes.is_empty() {
                return None;
            }
            queue.unflushed = true;
        }
        let mut context = Context::from_waker(Waker::noop());
        let mut written = 0;
        while written < run.len() {
            match Pin::new(&mut socket.writer).poll_write(&mut context, &run[written..]) {
                Poll::Ready(Ok(count)) if count > 0 => written += count,
                // whatever it is, who writes next meets it again
                _ => break,
            }
        }
        match written {
            0 => return None,
            all if all == run.len() => return Some(Pushed::Taken),
            _ => {}
        }
        // like any run, the rest may pass the bound
        socket.pending.append(&run[written..], false, &self.spare);
        socket.blocked = true;
        {
            let mut queue = lock(&self.queue);
            queue.ever += (run.len() - written) as u64;
            queue.in_flight = socket.pending.len();
            if queue.in_flight >= self.bytes_max / 2 && !queue.slow {
                queue.slow = true;
                self.report(true);
            }
        }
        drop(socket);
        self.work.notify_one();
        Some(Pushed::Taken)
    }

    fn queue(&self, run: &[u8], delivery: Delivery) -> Pushed {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Pushed::Closed;
        }
        let waiting = queue.bytes.len() + queue.in_flight;
        if waiting >= self.bytes_max {
            match delivery {
                Delivery::Hold | Delivery::Share(_) | Delivery::Reply => {
                    return Pushed::Full;
                }
                Delivery::Shed => {
                    queue.shed = queue.shed.saturating_add(count_frames(run));
                    return Pushed::Shed;
                }
                Delivery::Must if waiting < 2 * self.bytes_max => {}
                Delivery::Must => {
                    drop(queue);
                    self.close();
                    return Pushed::Closed;
                }
            }
        }
        if queue.shed > 0 {
            let shed = std::mem::take(&mut queue.shed);
            queue.append(&overrun(shed), true, &self.spare);
        }
        let whole = !self.greeted.load(Ordering::Relaxed);
        queue.append(run, whole, &self.spare);
        if waiting + run.len() >= self.bytes_max / 2 && !queue.slow {
            queue.slow = true;
            self.report(true);
        }
        Pushed::Taken
    }

    /// Writes what the socket takes now, unless somebody else is at it, who then sees to these bytes too.
    pub(crate) fn flush(&self) {
        loop {
            let mut socket = match self.socket.try_lock() {
                Ok(socket) => socket,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if socket.blocked {
                return;
            }
            let written = self.write_some(&mut socket, &mut Context::from_waker(Waker::noop()));
            socket.blocked = written.is_pending();
            drop(socket);
            match written {
                Poll::Pending => return self.work.notify_one(),
                Poll::Ready(Err(_)) => return self.close(),
                Poll::Ready(Ok(())) if lock(&self.queue).bytes.is_empty() => return,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    /// How many bytes of those that had to wait were written, ever.
    pub(super) fn written(&self) -> u64 {
        let queue = lock(&self.queue);
        queue.ever - (queue.bytes.len() + queue.in_flight) as u64
    }

    /// Waits until there is room or the outbox is closed; it may be gone again when this returns.
    ///
    /// Cancel-safe.
    pub(crate) async fn room(&self) {
        loop {
            let notified = self.room.notified();
            {
                let queue = lock(&self.queue);
                if queue.closed || queue.bytes.len() + queue.in_flight < self.bytes_max {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Waits until the socket has everything or the outbox is closed. Cancel-safe.
    pub(crate) async fn drained(&self) {
        loop {
            let notified = self.room.notified();
            {
                let queue = lock(&self.queue);
                let written = queue.bytes.len() + queue.in_flight == 0 && !queue.unflushed;
                if queue.closed || written {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Waits until the outbox is closed. Cancel-safe.
    pub(crate) async fn closed(&self) {
        loop {
            let notified = self.room.notified();
            if lock(&self.queue).closed {
                return;
            }
            notified.await;
        }
    }

    /// Drops what waits, and refuses what comes.
    pub(crate) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        queue.bytes.clear(&self.spare);
        drop(queue);
        self.room.notify_waiters();
        self.work.notify_one();
    }

    /// The writer task: takes over whenever the socket is full. Ends when the outbox is closed, and
    /// closes it when the socket fails; then the peer reads the end. Cancel-safe.
    ///
    /// # Errors
    /// What the socket said.
    pub(crate) async fn write_loop(&self) -> io::Result<()> {
        let result = loop {
            self.work.notified().await;
            if lock(&self.queue).closed {
                break Ok(());
            }
            let written = poll_fn(|context| {
                let mut socket = lock(&self.socket);
                let written = self.write_some(&mut socket, context);
                socket.blocked = written.is_pending();
                written
            });
            tokio::select! {
                result = written => match result {
                    // who pushed while this task was at the socket has left its bytes to it
                    Ok(()) => self.flush(),
                    Err(_) => break result,
                },
                () = self.closed() => break Ok(()),
            }
        };
        self.close();
        // at once, also while somebody still holds this
        self.say_goodbye();
        result
    }

    /// Tells the peer that nothing more comes: under TLS that is how it tells an end from a cut. Does not
    /// wait; a frame that is cut short by it is seen by its length.
    fn say_goodbye(&self) {
        let mut socket = lock(&self.socket);
        if socket.over {
            return;
        }
        socket.over = true;
        let mut context = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut socket.writer).poll_shutdown(&mut context);
    }

    /// Writes until nothing is left or the socket is full.
    fn write_some(&self, socket: &mut Socket, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if socket.pending.is_empty() && !self.refill(socket) {
                ready!(Pin::new(&mut socket.writer).poll_flush(context))?;
                self.flushed();
                return Poll::Ready(Ok(()));
            }
            let Socket { writer, pending, frame_left, .. } = &mut *socket;
            // one that has not said HELLO takes what it reads for whole frames, and under TLS a record is what
            // it reads
            if *frame_left == 0 && !self.greeted.load(Ordering::Relaxed) {
                *frame_left = frame_lengths(pending.front()).next().unwrap_or(0);
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let wrote = match pending.front() {
                front if *frame_left > 0 => {
                    let end = front.len().min(*frame_left);
                    Pin::new(writer).poll_write(context, &front[..end])
                }
                _ => {
                    let count = pending.slices(&mut slices);
                    Pin::new(writer).poll_write_vectored(context, &slices[..count])
                }
            };
            match wrote {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    socket.over = true;
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                Poll::Ready(Err(error)) => {
                    socket.over = true;
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(written)) => {
                    socket.frame_left = socket.frame_left.saturating_sub(written);
                    socket.pending.consume(written, &self.spare);
                    self.account(socket.pending.len());
                }
            }
        }
    }

    /// Takes over what is queued; whether there was anything.
    fn refill(&self, socket: &mut Socket) -> bool {
        let mut queue = lock(&self.queue);
        if queue.bytes.is_empty() && queue.shed > 0 && !queue.closed {
            let shed = std::mem::take(&mut queue.shed);
            queue.append(&overrun(shed), true, &self.spare);
        }
        if queue.bytes.is_empty() {
            return false;
        }
        std::mem::swap(&mut socket.pending, &mut queue.bytes);
        queue.in_flight = socket.pending.len();
        queue.unflushed = true;
        true
    }

    /// Notes that the socket has all that the writer took, and wakes who waits for that.
    fn flushed(&self) {
        let mut queue = lock(&self.queue);
        if std::mem::take(&mut queue.unflushed) && queue.bytes.is_empty() {
            drop(queue);
            self.room.notify_waiters();
        }
    }

    /// Notes how much of what was taken over is still to be written, and wakes who waits for room.
    fn account(&self, in_flight: usize) {
        let mut queue = lock(&self.queue);
        queue.in_flight = in_flight;
        let left = queue.bytes.len() + in_flight;
        let caught_up = queue.slow && left <= self.bytes_max / 4;
        queue.slow &= !caught_up;
        if caught_up {
            self.report(false);
        }
        drop(queue);
        if left == 0 || left <= self.bytes_max / 2 {
            self.room.notify_waiters();
        }
    }
}

impl Drop for Outbox {
    // also for a writer task that ended with its runtime
    fn drop(&mut self) {
        self.say_goodbye();
    }
}

/// The lengths of the frames in `run`, which holds whole ones.
pub(super) fn frame_lengths(run: &[u8]) -> impl Iterator<Item = usize> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let length = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        rest = rest.get(length.max(4)..)?;
        Some(length)
    })
}

pub(super) fn count_frames(run: &[u8]) -> u32 {
    frame_lengths(run).count() as u32
}

/// The frame that tells a subscriber how many frames it lost.
pub(super) fn overrun(count: u32) -> Vec<u8> {
    let message = MessageBuilder::new(nlm::OVERRUN, 0).body(&count.to_le_bytes()).finish();
    let mut frame = Vec::new();
    EnvelopeHead::default().emit(&message, &mut frame).unwrap_or_else(|too_big| {
        unreachable!("20 bytes are below {}", too_big.max);
    });
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    /// A socket that is full once. When it is flushed for the first time after that, somebody else pushes.
    struct Scripted {
        full: bool,
        outbox: Arc<OnceLock<Arc<Outbox>>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl AsyncWrite for Scripted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if std::mem::take(&mut self.full) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            lock(&self.written).extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if lock(&self.written).len() == 28
                && let Some(outbox) = self.outbox.get()
            {
                // the socket is taken: the flush leaves it to whoever has it
                outbox.push(&frame(2), Delivery::Hold);
                outbox.flush();
            }
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frame(sequence: u32) -> Vec<u8> {
        let mut out = Vec::new();
        EnvelopeHead { sequence, ..EnvelopeHead::default() }.emit(b"", &mut out).unwrap();
        out
    }

    /// Takes a frame at a time, whenever it is allowed one.
    struct Meted(Arc<Mutex<usize>>);

    impl AsyncWrite for Meted {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let mut allowed = lock(&self.0);
            if *allowed == 0 {
                return Poll::Pending;
            }
            *allowed -= 1;
            Poll::Ready(Ok(bytes.len().min(28)))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_was_written_is_told_from_what_waits_though_others_push_as_fast() {
        let allowed = Arc::new(Mutex::new(1));
        let socket = Box::new(Meted(Arc::clone(&allowed)));
        let outbox = Outbox::new(socket, 1_000, false, Arc::new(Spare::new(2)));
        for sequence in 0..4 {
            outbox.push(&frame(sequence), Delivery::Hold);
        }
        outbox.flush();
        assert_eq!(outbox.written(), 28);
        outbox.push(&frame(4), Delivery::Hold);
        assert_eq!(outbox.written(), 28);
        *lock(&allowed) = 2;
        lock(&outbox.socket).blocked = false;
        outbox.flush();
        assert_eq!(outbox.written(), 3 * 28);
    }

    #[tokio::test]
    async fn what_is_pushed_while_another_has_the_socket_is_written_without_a_further_push() {
        for full in [false, true] {
            let (place, written) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(Vec::new())));
            let socket =
                Scripted { full, outbox: Arc::clone(&place), written: Arc::clone(&written) };
            let outbox =
                Arc::new(Outbox::new(Box::new(socket), 1_000, true, Arc::new(Spare::new(2))));
            place.set(Arc::clone(&outbox)).map_err(|_| "set once").unwrap();
            let writer = tokio::spawn({
                let outbox = Arc::clone(&outbox);
                async move { outbox.write_loop().await }
            });
            outbox.push(&frame(1), Delivery::Hold);
            outbox.flush();
            let drained = tokio::time::timeout(Duration::from_secs(60), async {
                while lock(&written).len() < 56 {
                    tokio::task::yield_now().await;
                }
            });
            drained.await.expect("the second frame is stuck");
            assert_eq!(*lock(&written), [frame(1), frame(2)].concat());
            outbox.close();
            writer.await.unwrap().unwrap();
        }
    }
}
