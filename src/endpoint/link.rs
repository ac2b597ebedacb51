//! The link under one or more endpoints: one reader that hands each frame to who waits for it.

use std::collections::HashMap;
use std::process;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::answer::nobody;
use super::error::RequestError;
use super::intake::Intake;
use super::subscribe::{Offer, Subscriber};
use crate::node::{FrameReader, FrameWriter, LocalFrame, LocalItem, LocalLink, LocalReceiver};
use crate::node::{ReadError, lock};
use crate::wire::{
    Command, Control, ControlAttribute, ControlBuilder, Envelope, EnvelopeHead, FRAME_MAX,
    LEGACY_FRAME_MAX, TooBig, flag,
};

/// How long the last bytes of a dropped link may take to go out.
const LINGER: Duration = Duration::from_secs(5);

/// How long a peer that takes nothing any more is still read.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// A frame, and what it holds of its sender's credit while it lives.
#[derive(Clone)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) held: Option<Arc<LocalFrame>>,
}

/// How frames go out.
pub(super) enum Sender {
    Socket(FrameWriter),
    Local(LocalLink),
}

/// How frames come in.
pub(super) enum Receiver {
    Socket(FrameReader),
    Local(LocalReceiver),
}

/// Who waits for a frame with a certain sequence number.
enum Waiting {
    /// One control answer.
    Control(oneshot::Sender<Bytes>),
    /// The frames of an answer. The reader waits for room in it, but not past its deadline.
    Replies(mpsc::Sender<Frame>, Option<Instant>),
}

pub(super) struct Link {
    pub(super) sender: Sender,
    state: Mutex<State>,
    sequence: AtomicU32,
    pid: u32,
    /// The longest frame that the broker takes.
    frame_max: AtomicUsize,
    /// How long a command to the broker may take, if that was said.
    command_max: Option<Duration>,
    /// The last handle is gone.
    closing: Notify,
    /// The link has ended.
    over: Notify,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u32, Waiting>,
    subscribers: Vec<Arc<Subscriber>>,
    providers: HashMap<u32, Arc<Intake>>,
    /// Addresses of names that were asked for.
    names: HashMap<String, u32>,
    last_port: u32,
    /// The link has ended, and why if there is more to say.
    ended: Option<Option<Arc<ReadError>>>,
}

/// Keeps the reader going; shared by everything that uses the link.
pub(super) struct Handle(pub(super) Arc<Link>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.closing.notify_one();
    }
}

impl Link {
    /// Starts the reader. Call it within a tokio runtime.
    pub(super) fn start(
        sender: Sender,
        receiver: Receiver,
        command_max: Option<Duration>,
    ) -> Arc<Handle> {
        let link = Arc::new(Link {
            sender,
            state: Mutex::default(),
            sequence: AtomicU32::new(0),
            pid: process::id(),
            frame_max: AtomicUsize::new(FRAME_MAX),
            command_max,
            closing: Notify::new(),
            over: Notify::new(),
        });
        tokio::spawn(read_loop(Arc::clone(&link), receiver));
        Arc::new(Handle(link))
    }

    /// How long a command may take, `usual` unless told otherwise.
    pub(super) fn command_max(&self, usual: Duration) -> Duration {
        self.command_max.unwrap_or(usual)
    }

    /// A port that no other endpoint of this link has. 0 is left to clients that know of no ports.
    pub(super) fn new_port(&self) -> u32 {
        let mut state = lock(&self.state);
        state.last_port += 1;
        state.last_port
    }

    fn next_sequence(&self, state: &State) -> u32 {
        loop {
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if sequence != 0 && !state.waiting.contains_key(&sequence) {
                return sequence;
            }
        }
    }

    pub(super) fn head(&self, flags: u16, sequence: u32, dst: u32, src: u32) -> EnvelopeHead {
        EnvelopeHead { flags, sequence, pid: self.pid, dst, src }
    }

    /// Registers for the answers to one request: their sequence number and the queue they come in.
    pub(super) fn expect_replies(
        &self,
        room: usize,
        deadline: Option<Instant>,
    ) -> Result<(u32, mpsc::Receiver<Frame>), RequestError> {
        let (sender, receiver) = mpsc::channel(room);
        let mut state = lock(&self.state);
        if let Some(why) = &state.ended {
            return Err(RequestError::Lost(why.clone()));
        }
        let sequence = self.next_sequence(&state);
        state.waiting.insert(sequence, Waiting::Replies(sender, deadline));
        Ok((sequence, receiver))
    }

    /// Waits for nothing with this sequence number any more.
    pub(super) fn forget(&self, sequence: u32) {
        lock(&self.state).waiting.remove(&sequence);
    }

    pub(super) fn lost(&self) -> RequestError {
        RequestError::Lost(lock(&self.state).ended.clone().flatten())
    }

    /// The longest frame that may be sent, in bytes.
    pub(super) fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed)
    }

    pub(super) fn set_frame_max(&self, frame_max: usize) {
        self.frame_max.store(frame_max.clamp(LEGACY_FRAME_MAX, FRAME_MAX), Ordering::Relaxed);
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.sender, Sender::Local(_))
    }

    /// A number for frames that nobody answers, so that they can be told apart.
    pub(super) fn new_sequence(&self) -> u32 {
        self.next_sequence(&lock(&self.state))
    }

    /// Sends a run of whole frames behind each other, so that the broker keeps the parts of a body
    /// together; over a socket all of them or none.
    pub(super) async fn send(&self, run: &mut [u8]) -> Result<(), RequestError> {
        let sent = match &self.sender {
            Sender::Socket(writer) => {
                let sent = writer.send(run).await;
                if !sent {
                    // the reader knows why
                    self.ended().await;
                }
                sent
            }
            Sender::Local(link) => link.send(run).await,
        };
        if sent { Ok(()) } else { Err(self.lost()) }
    }

    /// Sends a frame without waiting: over a socket if there is room, else in a task that keeps `held`.
    pub(super) fn offer(&self, mut frame: Vec<u8>, held: Option<Arc<LocalFrame>>) {
        match &self.sender {
            Sender::Socket(writer) => writer.offer(&frame),
            Sender::Local(link) => {
                let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
                let link = link.clone();
                runtime.spawn(async move {
                    link.send(&mut frame).await;
                    drop(held);
                });
            }
        }
    }

    /// Sends a control message and waits for its answer.
    pub(super) async fn control(
        &self,
        port: u32,
        command: Command,
        deadline: Duration,
        fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
    ) -> Result<Answer, RequestError> {
        Answer::read(&self.exchange(port, command, deadline, fill).await?)
    }

    /// Sends a control message and waits for its ACK: the whole frame.
    pub(super) async fn exchange(
        &self,
        port: u32,
        command: Command,
        deadline: Duration,
        fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
    ) -> Result<Bytes, RequestError> {
        let (sender, receiver) = oneshot::channel();
        let sequence = {
            let mut state = lock(&self.state);
            if let Some(why) = &state.ended {
                return Err(RequestError::Lost(why.clone()));
            }
            let sequence = self.next_sequence(&state);
            state.waiting.insert(sequence, Waiting::Control(sender));
            sequence
        };
        let _forget = Forget { link: self, sequence };
        let mut frame = Vec::new();
        let head = self.head(0, sequence, 0, port);
        fill(ControlBuilder::new(&mut frame, head, command))?.finish();
        let exchange = async {
            self.send(&mut frame).await?;
            receiver.await.map_err(|_| self.lost())
        };
        match timeout(deadline, exchange).await {
            Ok(answer) => {
                let answer = answer?;
                Answer::read(&answer)?;
                Ok(answer)
            }
            Err(_) => Err(RequestError::Timeout { after: deadline }),
        }
    }

    /// The address of a subsystem; asked for once.
    pub(super) async fn discover(
        &self,
        port: u32,
        name: &str,
        deadline: Duration,
    ) -> Result<u32, RequestError> {
        if let Some(address) = lock(&self.state).names.get(name) {
            return Ok(*address);
        }
        let answer = self
            .control(port, Command::Discover, deadline, |c| c.string(ControlAttribute::Host, name))
            .await
            .map_err(|error| match error {
                RequestError::Refused { errno, text } => {
                    RequestError::Undeliverable { errno, text }
                }
                other => other,
            })?;
        let address = answer.addr.ok_or_else(|| self.lost())?;
        lock(&self.state).names.insert(name.to_owned(), address);
        Ok(address)
    }

    /// The addresses of names may have changed.
    pub(super) fn forget_names(&self) {
        lock(&self.state).names.clear();
    }

    pub(super) fn add_subscriber(&self, subscriber: Arc<Subscriber>) {
        lock(&self.state).subscribers.push(subscriber);
    }

    pub(super) fn remove_subscriber(&self, subscriber: &Arc<Subscriber>) {
        lock(&self.state).subscribers.retain(|other| !Arc::ptr_eq(other, subscriber));
    }

    pub(super) fn add_provider(&self, port: u32, intake: Arc<Intake>) {
        lock(&self.state).providers.insert(port, intake);
    }

    pub(super) fn remove_provider(&self, port: u32) {
        lock(&self.state).providers.remove(&port);
    }

    /// Wakes everybody who waits: nothing comes any more.
    fn end(&self, why: Option<Arc<ReadError>>) {
        let mut state = lock(&self.state);
        state.ended = Some(why);
        state.waiting.clear();
        state.providers.clear();
        for subscriber in state.subscribers.drain(..) {
            subscriber.end();
        }
        drop(state);
        self.over.notify_waiters();
    }

    /// Waits until the link has ended. Cancel-safe.
    pub(super) async fn ended(&self) {
        loop {
            let notified = self.over.notified();
            if lock(&self.state).ended.is_some() {
                return;
            }
            notified.await;
        }
    }

    /// Hands a frame to who waits for it. Waits for room only where that holds back a sender who is to
    /// be held back.
    async fn dispatch(self: &Arc<Self>, frame: Frame) {
        let Some((_, head)) = EnvelopeHead::read(&frame.bytes) else { return };
        if head.flags & flag::CONTROL != 0 {
            let waiting = lock(&self.state).waiting.remove(&head.sequence);
            if let Some(Waiting::Control(answer)) = waiting {
                let _ = answer.send(frame.bytes);
            }
        } else if head.dst == 0 {
            self.dispatch_event(&head, frame);
        } else {
            let intake = lock(&self.state).providers.get(&head.dst).cloned();
            match intake {
                Some(intake) => intake.take(self, head, frame).await,
                None if head.flags & (flag::ASK | flag::RESPONSE) == flag::ASK => {
                    self.offer(nobody(&head), frame.held);
                }
                None => self.dispatch_reply(&head, frame).await,
            }
        }
    }

    async fn dispatch_reply(&self, head: &EnvelopeHead, frame: Frame) {
        let (replies, deadline) = {
            let mut state = lock(&self.state);
            let waiting = match state.waiting.get(&head.sequence) {
                Some(Waiting::Replies(replies, deadline)) => (replies.clone(), *deadline),
                _ => return debug!(sequence = head.sequence, "an answer that nobody waits for"),
            };
            if head.flags & (flag::LAST | flag::EXCEPTION) != 0 {
                state.waiting.remove(&head.sequence);
            }
            waiting
        };
        if let Err(mpsc::error::TrySendError::Full(frame)) = replies.try_send(frame) {
            let send = replies.send(frame);
            match deadline {
                Some(deadline) => drop(timeout_at(deadline, send).await),
                None => drop(send.await),
            }
        }
    }

    fn dispatch_event(&self, head: &EnvelopeHead, frame: Frame) {
        let subscribers = lock(&self.state).subscribers.clone();
        match Envelope::parse(&frame.bytes).and_then(|envelope| envelope.broadcast()) {
            Ok(broadcast) => {
                let payload = frame.bytes.slice_ref(broadcast.payload);
                let alone = frame.held.is_some();
                let offer = Offer { from: head.src, group: broadcast.group, payload, alone };
                for subscriber in subscribers {
                    subscriber.offer(&offer);
                }
            }
            Err(malformed) => warn!(%malformed, "a broadcast that makes no sense"),
        }
    }

    async fn dispatch_gone(&self, asker: u32) {
        let providers: Vec<_> = lock(&self.state).providers.values().cloned().collect();
        for intake in providers {
            intake.gone(asker).await;
        }
    }
}

async fn read_loop(link: Arc<Link>, mut receiver: Receiver) {
    let closed = async {
        match &link.sender {
            Sender::Socket(writer) => writer.closed().await,
            Sender::Local(_) => std::future::pending().await,
        }
    };
    let why = {
        let mut read = std::pin::pin!(read_all(&link, &mut receiver));
        tokio::select! {
            why = &mut read => why,
            // it cannot be written any more, but it may still say why
            () = closed => timeout(LAST_WORDS_MAX, read).await.unwrap_or(None),
            () = link.closing.notified() => None,
        }
    };
    if let Some(error) = &why {
        debug!(%error, "the link ended");
    }
    link.end(why);
    match (&link.sender, receiver) {
        (Sender::Socket(writer), Receiver::Socket(mut reader)) => {
            let send = async {
                writer.drained().await;
                writer.close();
            };
            // a socket that is closed with bytes unread takes back what it has not yet sent
            let discard = async { while let Ok(Some(_)) = reader.next().await {} };
            let _ = timeout(LINGER, async { tokio::join!(send, discard) }).await;
            writer.close();
        }
        (Sender::Local(local), _) => local.close(),
        (Sender::Socket(writer), _) => writer.close(),
    }
}

/// Hands out what comes in until nothing comes any more: why, if there is more to say.
async fn read_all(link: &Arc<Link>, receiver: &mut Receiver) -> Option<Arc<ReadError>> {
    loop {
        match receiver {
            Receiver::Socket(reader) => match reader.next().await {
                Ok(Some(bytes)) => link.dispatch(Frame { bytes, held: None }).await,
                Ok(None) => return None,
                Err(error) => return Some(Arc::new(error)),
            },
            Receiver::Local(receiver) => match receiver.next().await {
                Some(LocalItem::Frame(frame)) => {
                    let bytes = frame.bytes.clone();
                    link.dispatch(Frame { bytes, held: Some(Arc::new(frame)) }).await;
                }
                Some(LocalItem::Gone(asker)) => link.dispatch_gone(asker).await,
                None => return None,
            },
        }
    }
}

/// What an ACK says.
pub(super) struct Answer {
    pub(super) addr: Option<u32>,
    pub(super) cid: Option<u32>,
    pub(super) frame_max: Option<u32>,
}

impl Answer {
    fn read(frame: &[u8]) -> Result<Self, RequestError> {
        let control = Control::parse(Envelope::parse(frame)?.payload()?)?;
        match control.command() {
            Some(Command::Ack) => {
                Ok(Self { addr: control.addr, cid: control.cid, frame_max: control.frame_max })
            }
            _ => Err(RequestError::Refused {
                errno: control.errno.map_or(crate::wire::errno::EOPNOTSUPP, |errno| errno as i32),
                text: control.error.map(str::to_owned),
            }),
        }
    }
}

/// Unregisters who waited, however the waiting ends.
struct Forget<'l> {
    link: &'l Link,
    sequence: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.link.forget(self.sequence);
    }
}
