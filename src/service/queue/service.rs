//! The task that keeps the queues: requests in, answers and deliveries out, changes to the store.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument as _, debug, error, info_span, warn};

use super::engine::{Engine, Local};
use super::hash::Table;
use super::machine::{Answer, Command, Effect, Machine, MachineOptions, Refusal};
use super::protocol::{Asked, Body, SUBSYSTEM, options_from_bytes, parse_request};
use super::rights::{Doors, Right, limit};
use super::session::{BEFORE, Outgoing, Session, WHOLE_MAX, Waiting};
use crate::endpoint::{Endpoint, Incoming, ProvideOptions, Request, RequestError, Responder};
use crate::store::{Loaded, Store, Time};
use crate::wire::{Header, Messages, errno};

/// Frames that are taken in before their answers go out.
const TURN_MAX: usize = 256;

/// Messages that one request may have; what follows is refused.
const MESSAGES_MAX: usize = 4_096;

/// Requests to look, of one asker in one turn; further ones are refused.
const LOOKS_MAX: u32 = 16;

/// The same of all askers.
const ALL_LOOKS_MAX: u32 = 64;

/// How queues are served.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeOptions {
    /// The name of the subsystem. Default `queue`.
    pub name: String,
    /// The bounds.
    pub machine: MachineOptions,
    /// Whether a SHUTDOWN ends [`Served::shutdown_asked`]. Default: no, it is refused with `EPERM`.
    pub allow_shutdown: bool,
    /// Whether only *managers*, the links that may have the subsystem changed, may make persistent queues,
    /// destroy and purge queues of others, acknowledge what others hold, see payloads and events of
    /// others, and shut down; others get `EPERM`. Default: no, everybody may.
    pub managed: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            name: SUBSYSTEM.to_owned(),
            machine: MachineOptions::default(),
            allow_shutdown: false,
            managed: false,
        }
    }
}

impl ServeOptions {
    /// The same with another [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same with other [`machine`](Self::machine) bounds.
    #[must_use]
    pub fn machine(mut self, options: MachineOptions) -> Self {
        self.machine = options;
        self
    }

    /// The same with [`allow_shutdown`](Self::allow_shutdown).
    #[must_use]
    pub fn allow_shutdown(mut self, yes: bool) -> Self {
        self.allow_shutdown = yes;
        self
    }

    /// The same with [`managed`](Self::managed).
    #[must_use]
    pub fn managed(mut self, yes: bool) -> Self {
        self.managed = yes;
        self
    }
}

/// Queues that are served, until the link of their endpoint ends.
pub struct Served {
    address: u32,
    shutdown: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Served {
    /// The address of the subsystem.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Waits until somebody asks for the end of the broker; for ever if nobody may. Cancel-safe.
    pub async fn shutdown_asked(&mut self) {
        if self.shutdown.wait_for(|asked| *asked).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the link has ended and everything that was taken in is stored. Cancel-safe.
    pub async fn ended(&mut self) {
        if let Err(error) = (&mut self.task).await {
            warn!(%error, "the task of the queues failed");
        }
    }
}

/// Provides queues with what `store` had, until the link of `endpoint` ends. The endpoint has to be inside
/// the broker's process: elsewhere nobody says when an asker is gone.
///
/// # Errors
/// As [`Endpoint::provide`]. Not cancel-safe likewise.
pub async fn serve(
    endpoint: &Endpoint,
    store: Store,
    loaded: Loaded,
    options: ServeOptions,
) -> Result<Served, RequestError> {
    for queue in &loaded.queues {
        if let Err(malformed) = options_from_bytes(&queue.options) {
            error!(queue = queue.name, %malformed, "its options are damaged: it has the usual ones");
        }
    }
    let start = |now| {
        let machine = Machine::new(options.machine, store.is_durable(), loaded, now);
        Local::new(machine, store)
    };
    serve_with(endpoint, &options, start).await
}

/// Provides the queues of the engine that `start` makes.
pub(super) async fn serve_with<E: Engine>(
    endpoint: &Endpoint,
    options: &ServeOptions,
    start: impl FnOnce(Time) -> E,
) -> Result<Served, RequestError> {
    let everybody = endpoint.provide_with(&options.name, ProvideOptions::default()).await?;
    let address = everybody.address();
    let doors = match options.managed {
        false => Doors(vec![(everybody, Right::Manage)]),
        true => {
            let managing = ProvideOptions::default().write();
            let managers = endpoint.provide_with(&options.name, managing).await?;
            Doors(vec![(everybody, Right::Use), (managers, Right::Manage)])
        }
    };
    let (shutdown, asked) = watch::channel(false);
    let clock = Clock::start();
    let service = Service {
        engine: start(clock.now()),
        clock,
        frames: Table::default(),
        last_frame: 0,
        touched: Vec::new(),
        sessions: Table::default(),
        waiting: Waiting::default(),
        gone: HashSet::new(),
        has_cut: false,
        effects: Vec::new(),
        looks: Table::default(),
        all_looks: 0,
        shutdown: options.allow_shutdown.then_some(shutdown),
    };
    let span = info_span!(parent: None, "queues", subsystem = options.name);
    let task = tokio::spawn(service.run(doors).instrument(span));
    Ok(Served { address, shutdown: asked, task })
}

/// The time of day at the start, and from then on a clock that is never set.
struct Clock {
    started: u64,
    since: Instant,
}

impl Clock {
    fn start() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: now.as_micros() as u64, since: Instant::now() }
    }

    fn now(&self) -> Time {
        Time(self.started + self.since.elapsed().as_micros() as u64)
    }

    fn instant(&self, time: Time) -> Instant {
        // rounded up: at that instant the time has come
        self.since + Duration::from_micros(time.0.saturating_sub(self.started) + 1)
    }
}

struct Service<E> {
    engine: E,
    clock: Clock,
    /// Requests that are not yet answered, or never will be in full.
    frames: Table<u32, Frame>,
    last_frame: u32,
    /// Frames that have something to say.
    touched: Vec<u32>,
    sessions: Table<u32, Session>,
    waiting: Waiting,
    /// Askers that have gone in this turn.
    gone: HashSet<u32>,
    /// A session was ended since effects were polled.
    has_cut: bool,
    effects: Vec<Effect>,
    /// Requests to look, by asker, in this turn.
    looks: Table<u32, u32>,
    all_looks: u32,
    shutdown: Option<watch::Sender<bool>>,
}

/// A request of one or more messages.
struct Frame {
    asker: u32,
    responder: Responder,
    request: Header,
    held: Option<Request>,
    /// Messages without an answer.
    open: u32,
    body: Body,
    touched: bool,
}

impl<E: Engine> Service<E> {
    async fn run(mut self, mut doors: Doors) {
        loop {
            let deadline = self.engine.poll_time().map(|time| self.clock.instant(time));
            tokio::select! {
                completion = self.engine.completed() => {
                    self.engine.handle_completed(self.clock.now(), completion);
                }
                // while the engine cannot keep up, askers wait
                incoming = doors.next(), if self.engine.has_room() => match incoming {
                    Some((incoming, right)) => self.take(incoming, right),
                    None => break,
                },
                () = until(deadline) => {}
            }
            let mut taken = 0;
            while taken < TURN_MAX
                && self.engine.has_room()
                && let Some((incoming, right)) = doors.ready().await
            {
                self.take(incoming, right);
                taken += 1;
            }
            self.turn();
        }
        self.engine.handle_end(self.clock.now());
        while self.turn() {
            let completion = self.engine.completed().await;
            self.engine.handle_completed(self.clock.now(), completion);
        }
        debug!("no further requests");
    }

    /// Does all that can be done now: whether something is being stored.
    fn turn(&mut self) -> bool {
        loop {
            let busy = self.turn_once();
            // what its consumers held is others' now
            if !std::mem::take(&mut self.has_cut) {
                return busy;
            }
        }
    }

    fn turn_once(&mut self) -> bool {
        let now = self.clock.now();
        self.looks.clear();
        self.all_looks = 0;
        self.forget_gone();
        let mut effects = std::mem::take(&mut self.effects);
        self.engine.poll_effects(now, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
        for number in std::mem::take(&mut self.touched) {
            self.flush(number);
        }
        self.engine.begin(now);
        self.engine.is_busy()
    }

    fn take(&mut self, incoming: Incoming, right: Right) {
        match incoming {
            Incoming::Request(request) => self.take_request(request, right),
            Incoming::Gone { asker } => {
                self.sessions.remove(&asker);
                self.gone.insert(asker);
                self.engine.handle_gone(self.clock.now(), asker);
            }
        }
    }

    /// The request, unless its session was ended and has not taken what it was sent before: what came of that
    /// is the answer to this too, and counts against its credit until then.
    fn refuse_ended(&mut self, request: Request) -> Option<Request> {
        let asker = request.asker();
        let session = self.sessions.get(&asker).filter(|session| session.is_ended());
        let Some(session) = session else { return Some(request) };
        let asks = request.asks();
        let (responder, header) = (request.responder().last(), request.header());
        let refusal =
            Outgoing { responder, request: header, bytes: not_read(), held: Some(request) };
        let request = session.refuse(refusal, asks).and_then(|refusal| refusal.held)?;
        // it has taken all of it, and begins anew
        self.sessions.remove(&asker);
        Some(request)
    }

    /// Once for all that have gone: looking for each of them by itself takes its time.
    fn forget_gone(&mut self) {
        if !self.gone.is_empty() {
            self.frames.retain(|_, frame| !self.gone.contains(&frame.asker));
            self.gone.clear();
        }
    }

    fn take_request(&mut self, request: Request, right: Right) {
        let now = self.clock.now();
        let asker = request.asker();
        let asks = request.asks();
        let Some(request) = self.refuse_ended(request) else { return };
        let body = request.body();
        let number = self.new_frame();
        let mut frame = Frame {
            asker,
            responder: request.responder(),
            request: request.header(),
            held: Some(request),
            open: 0,
            body: Body::after(BEFORE),
            touched: true,
        };
        let mut waits = false;
        for (count, message) in Messages::new(&body).enumerate() {
            if count == MESSAGES_MAX {
                let text = format!("a request has at most {MESSAGES_MAX} messages");
                let refusal = Refusal { errno: errno::E2BIG, text };
                frame.body.answer(0, &Answer::Refused(refusal));
                break;
            }
            let (sequence, asked) = match message {
                Ok(message) => (message.header.sequence, parse_request(&message)),
                Err(malformed) => {
                    let text = malformed.to_string();
                    (0, Err(Refusal { errno: errno::EINVAL, text }))
                }
            };
            let token = u64::from(number) << 32 | u64::from(sequence);
            let asked = asked.and_then(|asked| limit(&self.engine, asked, asker, right));
            match asked.and_then(|asked| self.permit(asked, asker, asks)) {
                Ok(Some(command)) => {
                    waits |= waits_long(&command);
                    frame.open += 1;
                    self.engine.handle(now, asker, token, command);
                }
                Ok(None) => frame.body.answer(sequence, &Answer::Done),
                Err(refusal) => frame.body.answer(sequence, &Answer::Refused(refusal)),
            }
        }
        if !asks {
            return;
        }
        if waits {
            frame.held = None;
        }
        self.touched.push(number);
        self.frames.insert(number, frame);
    }

    /// The command, if it is one and may be carried out.
    fn permit(&mut self, asked: Asked, asker: u32, asks: bool) -> Result<Option<Command>, Refusal> {
        let refuse = |errno, text: &str| Err(Refusal { errno, text: text.to_owned() });
        match asked {
            Asked::Command(command) if waits_long(&command) && !asks => {
                refuse(errno::EINVAL, "whoever takes messages has to ask")
            }
            Asked::Command(command) if looks(&command) => {
                let looks = self.looks.entry(asker).or_default();
                *looks += 1;
                self.all_looks += 1;
                let unread = self.sessions.get(&asker).is_some_and(Session::is_behind)
                    || self.waiting.is_full();
                if *looks > LOOKS_MAX || self.all_looks > ALL_LOOKS_MAX || unread {
                    return refuse(errno::EBUSY, "earlier answers are to be read first");
                }
                Ok(Some(command))
            }
            Asked::Command(command) => Ok(Some(command)),
            Asked::Shutdown => match &self.shutdown {
                None => refuse(errno::EPERM, "this broker is not to be shut down from here"),
                Some(shutdown) => {
                    shutdown.send_replace(true);
                    Ok(None)
                }
            },
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let (Effect::Answer { token, .. }
        | Effect::Deliver { token, .. }
        | Effect::Parked { token }
        | Effect::End { token, .. }) = effect;
        let (number, sequence) = ((token >> 32) as u32, token as u32);
        let Some(frame) = self.frames.get_mut(&number) else { return };
        match effect {
            Effect::Answer { answer, .. } => {
                frame.open -= u32::from(!matches!(answer, Answer::Subscribed { .. }));
                frame.body.answer(sequence, &answer);
            }
            Effect::Deliver { message, .. } => {
                let length = message.record.len() + Body::message_overhead();
                if frame.body.len() > BEFORE && frame.body.len() + length > BEFORE + WHOLE_MAX {
                    self.flush(number);
                }
                let Some(frame) = self.frames.get_mut(&number) else { return };
                frame.body.message(sequence, &message);
            }
            Effect::Parked { .. } => return frame.held = None,
            Effect::End { refusal, .. } => {
                frame.open -= 1;
                frame.body.answer(sequence, &refusal.map_or(Answer::Done, Answer::Refused));
            }
        }
        let Some(frame) = self.frames.get_mut(&number) else { return };
        if !std::mem::replace(&mut frame.touched, true) {
            self.touched.push(number);
        }
    }

    /// Sends what a frame has to say.
    fn flush(&mut self, number: u32) {
        let Some(frame) = self.frames.get_mut(&number) else { return };
        frame.touched = false;
        let over = frame.open == 0;
        if !over && frame.body.len() == BEFORE {
            return;
        }
        let body = std::mem::replace(&mut frame.body, Body::after(BEFORE));
        let responder = if over { frame.responder.last() } else { frame.responder.clone() };
        let held = if over { frame.held.take() } else { None };
        let request = frame.request;
        let asker = frame.asker;
        if over {
            self.frames.remove(&number);
        }
        let session = self.sessions.entry(asker).or_insert_with(|| Session::start(&self.waiting));
        let outgoing = Outgoing { responder, request, bytes: body.into_bytes(), held };
        if let Some(outgoing) = session.offer(outgoing) {
            warn!(asker = format_args!("{asker:#010x}"), "it does not read its answers");
            self.cut(asker, outgoing, over);
        }
    }

    /// Ends a session whose asker does not read, as if it had gone; when it reads again, it finds that out.
    /// `over`: what could not be sent was the end of its frame.
    fn cut(&mut self, asker: u32, unsent: Outgoing, over: bool) {
        let bytes = not_read();
        let mut last = Vec::new();
        if over {
            let Outgoing { responder, request, held, .. } = unsent;
            last.push(Outgoing { responder, request, bytes: bytes.clone(), held });
        }
        for (_, frame) in self.frames.extract_if(|_, frame| frame.asker == asker) {
            let Frame { responder, request, held, .. } = frame;
            let responder = responder.last();
            last.push(Outgoing { responder, request, bytes: bytes.clone(), held });
        }
        // it stays as long as something waits for it: nothing more does until that has gone out
        if let Some(session) = self.sessions.get_mut(&asker) {
            session.end(last);
        }
        self.engine.handle_gone(self.clock.now(), asker);
        self.has_cut = true;
    }

    fn new_frame(&mut self) -> u32 {
        loop {
            self.last_frame = self.last_frame.wrapping_add(1);
            if !self.frames.contains_key(&self.last_frame) {
                return self.last_frame;
            }
        }
    }
}

/// Said to a session that was ended.
fn not_read() -> Vec<u8> {
    let text = "answers were not read: what was held is given to others";
    let refusal = Answer::Refused(Refusal { errno: errno::ENOBUFS, text: text.to_owned() });
    let mut body = Body::after(BEFORE);
    body.answer(0, &refusal);
    body.into_bytes()
}

/// Whether its answer is as long in coming as its asker likes.
fn waits_long(command: &Command) -> bool {
    matches!(command, Command::Receive(_) | Command::Subscribe(_) | Command::Trace { .. })
}

/// Whether its answer, or the way to it, may be long.
fn looks(command: &Command) -> bool {
    matches!(command, Command::List { .. } | Command::Diagnostics { .. } | Command::Trace { .. })
        || matches!(command, Command::Purge { .. })
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
