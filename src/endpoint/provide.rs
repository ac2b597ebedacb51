//! A program as a subsystem: requests in, answers out.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Endpoint;
use super::error::RequestError;
use super::link::{Frame, Handle, Link};
use super::request::REQUEST_DEADLINE;
use crate::wire::{
    Command, ControlAttribute, Envelope, EnvelopeHead, ErrorMessage, Header, Malformed,
    PAYLOAD_OFFSET, TooBig, align4, errno, flag,
};

/// How many requests wait to be taken; past that their senders are held back.
const REQUESTS_MAX: usize = 64;

/// What a provider receives.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// A request.
    Request(Request),
    /// The link of this asker has ended: nobody waits for its answers any more. Only a provider inside
    /// the broker's process is told.
    Gone {
        /// The asker, as [`Request::asker`] named it.
        asker: u32,
    },
}

/// The requests for one name.
pub struct Provider {
    handle: Arc<Handle>,
    requests: mpsc::Receiver<Incoming>,
    address: u32,
    port: u32,
    name: String,
}

impl Endpoint {
    /// Makes this program a provider of `name`. If there are several, they share the requests.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`RequestError::Refused`] with `EPERM` if the link has not the
    /// right to provide.
    ///
    /// Not cancel-safe: dropped half-way, the name may stay provided until the link ends.
    pub async fn provide(&self, name: &str) -> Result<Provider, RequestError> {
        let link = &self.handle.0;
        let port = link.new_port();
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        link.add_provider(port, sender);
        let answer = link
            .control(port, Command::Provide, REQUEST_DEADLINE, |control| {
                control.string(ControlAttribute::Host, name)
            })
            .await;
        match answer.map(|answer| answer.addr) {
            Ok(Some(address)) => Ok(Provider {
                handle: Arc::clone(&self.handle),
                requests,
                address,
                port,
                name: name.to_owned(),
            }),
            other => {
                link.remove_provider(port);
                Err(other.err().unwrap_or_else(|| link.lost()))
            }
        }
    }
}

impl Provider {
    /// The address that the broker gave to the name.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next request; `None` when the link has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.requests.recv().await
    }

    /// Broadcasts as this subsystem, apart from taking requests.
    pub fn publisher(&self) -> Publisher {
        Publisher { link: Arc::clone(&self.handle.0), port: self.port }
    }
}

/// Broadcasts as coming from a subsystem. Does not keep the link up.
#[derive(Clone)]
pub struct Publisher {
    link: Arc<Link>,
    port: u32,
}

impl Publisher {
    /// Broadcasts a payload of `length` bytes that stands at offset 28 of `frame`, followed by room for
    /// padding to a multiple of 4. Nothing is copied.
    ///
    /// # Errors
    /// [`RequestError::TooBig`], [`RequestError::Lost`].
    ///
    /// Not cancel-safe: dropped while it waits, the event may be lost.
    pub async fn publish_in_place(
        &self,
        frame: &mut [u8],
        length: usize,
    ) -> Result<(), RequestError> {
        let head = self.link.head(0, 0, 0, self.port);
        send_in_place(&self.link, head, frame, length).await
    }

    /// Waits until the link has ended. Cancel-safe.
    pub async fn ended(&self) {
        self.link.ended().await;
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return self.handle.0.remove_provider(self.port);
        };
        let requests = std::mem::replace(&mut self.requests, mpsc::channel(1).1);
        let (handle, port, name) = (Arc::clone(&self.handle), self.port, self.name.clone());
        runtime.spawn(withdraw(handle, port, name, requests));
    }
}

/// Withdraws a name, and gives back the requests that came before the broker knew.
async fn withdraw(
    handle: Arc<Handle>,
    port: u32,
    name: String,
    mut requests: mpsc::Receiver<Incoming>,
) {
    let remove = async {
        let removed = handle.0.control(port, Command::Remove, REQUEST_DEADLINE, |control| {
            control.string(ControlAttribute::Host, &name)
        });
        if let Err(error) = removed.await {
            tracing::debug!(%error, name, "cannot withdraw the name");
        }
        // nothing comes behind the answer: the queue ends
        handle.0.remove_provider(port);
    };
    let give_back = async {
        while let Some(incoming) = requests.recv().await {
            if let Incoming::Request(request) = incoming {
                request.give_back().await;
            }
        }
    };
    tokio::join!(remove, give_back);
}

/// One request. While it lives, it counts against its sender's credit (inside the process).
pub struct Request {
    link: Arc<Link>,
    head: EnvelopeHead,
    frame: Frame,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Request {
    pub(super) fn new(link: Arc<Link>, head: EnvelopeHead, frame: Frame) -> Self {
        Self { link, head, frame }
    }

    /// Who asks: the return address, one for each endpoint of each link.
    pub fn asker(&self) -> u32 {
        self.head.src
    }

    /// Whether the asker waits for an answer. A client of the original does not say.
    pub fn asks(&self) -> bool {
        self.head.flags & flag::ASK != 0
    }

    /// What was sent.
    ///
    /// # Errors
    /// [`Malformed`] if the frame has no proper payload.
    pub fn payload(&self) -> Result<Bytes, Malformed> {
        let payload = Envelope::parse(&self.frame.bytes)?.payload()?;
        Ok(self.frame.bytes.slice_ref(payload))
    }

    /// Where answers go, apart from the request itself, which may be dropped.
    pub fn responder(&self) -> Responder {
        let flags = if self.asks() { flag::RESPONSE } else { 0 };
        let head = EnvelopeHead { flags, dst: self.head.src, src: self.head.dst, ..self.head };
        Responder { link: Arc::clone(&self.link), head }
    }

    /// Says that nobody is here any more, as the broker would have said.
    async fn give_back(self) {
        if !self.asks() {
            return;
        }
        let request = self.payload().and_then(|payload| Header::parse(&payload));
        let mut responder = self.responder();
        responder.head.flags |= flag::EXCEPTION;
        let text = "the provider is gone";
        // an asker that is gone needs no answer
        let _ = responder.send_error(errno::ENOENT, &request.unwrap_or_default(), text).await;
    }
}

/// Sends the parts of an answer.
#[derive(Clone)]
pub struct Responder {
    link: Arc<Link>,
    head: EnvelopeHead,
}

impl Responder {
    /// Sends `payload` as one frame.
    ///
    /// # Errors
    /// [`RequestError::TooBig`] above 65,531 bytes, [`RequestError::Lost`].
    ///
    /// Not cancel-safe: dropped while it waits for room, the frame may be lost.
    pub async fn send(&self, payload: &[u8]) -> Result<(), RequestError> {
        let mut frame = Vec::new();
        self.head.emit(payload, &mut frame)?;
        self.link.send(&mut frame).await
    }

    /// Answers with NLMSG_ERROR: `errno` is positive, `request` the header of the message that failed.
    ///
    /// # Errors
    /// As [`send`](Self::send). Not cancel-safe likewise.
    pub async fn send_error(
        &self,
        errno: i32,
        request: &Header,
        text: &str,
    ) -> Result<(), RequestError> {
        self.send(&ErrorMessage::emit(-errno, request, text)).await
    }

    /// As [`send`](Self::send), for a payload of `length` bytes that stands at offset 28 of `frame`,
    /// followed by room for padding to a multiple of 4. Nothing is copied.
    ///
    /// # Errors
    /// As [`send`](Self::send). Not cancel-safe likewise.
    pub async fn send_in_place(&self, frame: &mut [u8], length: usize) -> Result<(), RequestError> {
        send_in_place(&self.link, self.head, frame, length).await
    }
}

async fn send_in_place(
    link: &Link,
    head: EnvelopeHead,
    frame: &mut [u8],
    length: usize,
) -> Result<(), RequestError> {
    let before = head.before_payload(length)?;
    let too_big = TooBig { length, max: frame.len().saturating_sub(PAYLOAD_OFFSET) };
    let frame = frame.get_mut(..align4(PAYLOAD_OFFSET + length)).ok_or(too_big)?;
    frame[..PAYLOAD_OFFSET].copy_from_slice(&before);
    frame[PAYLOAD_OFFSET + length..].fill(0);
    link.send(frame).await
}
