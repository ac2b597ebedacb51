//! One asker's socket: requests in, one after another, and everything that comes back.

use std::io;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::confine::Confined;
use super::socket::NetlinkSocket;
use super::translate::{Translator, Whose};
use super::{answer_error, header_of};
use crate::endpoint::{Request, RequestError, Responder};
use crate::wire::{
    CONTROL_TYPE, Header, LEGACY_FRAME_MAX, MessageBuilder, Messages, PAYLOAD_MAX, PAYLOAD_OFFSET,
    align4, errno, nlm,
};

/// What an asker that reads 16,384 bytes at a time can take in one frame.
const LEGACY_PAYLOAD_MAX: usize = LEGACY_FRAME_MAX - PAYLOAD_OFFSET;

/// A netlink socket and the asker that it is for.
pub(super) struct Asker {
    socket: NetlinkSocket,
    translator: Translator<Responder>,
    /// The longest payload that the asker takes. It is also the buffer that the kernel sees, which cuts
    /// dumps accordingly.
    payload_max: usize,
    /// Room for the bytes before a payload, the payload, and padding.
    frame: Vec<u8>,
    /// Where goes what was not asked for.
    last: Option<Responder>,
}

impl Asker {
    /// Opens the socket. `modern`: the asker speaks this protocol and not just the original's, so it
    /// takes long frames and knows the attributes of extended acknowledgements.
    pub(super) async fn open(confined: &Confined, protocol: u16, modern: bool) -> io::Result<Self> {
        let socket = NetlinkSocket::open(confined, protocol).await?;
        if modern {
            // kernels before 4.12 have no extended acknowledgements
            let _ = socket.shared().set_ext_ack(true);
        }
        debug!(port_id = socket.port_id(), modern, "opened a netlink socket");
        let translator = Translator::new(socket.port_id());
        let payload_max = if modern { PAYLOAD_MAX } else { LEGACY_PAYLOAD_MAX };
        Ok(Self { socket, translator, payload_max, frame: Vec::new(), last: None })
    }

    /// Serves the asker until it is gone.
    pub(super) async fn run(mut self, first: Request, mut requests: mpsc::Receiver<Request>) {
        let mut served = self.serve(first).await;
        while served.is_ok() {
            // while a dump comes in, further requests wait: the kernel refuses a second dump
            served = tokio::select! {
                biased;
                request = requests.recv(), if !self.translator.is_dumping() => match request {
                    Some(request) => self.serve(request).await,
                    None => return,
                },
                ready = self.socket.readable() => match ready {
                    Ok(()) => self.forward_all().await,
                    Err(error) => Err(error),
                },
            };
            if requests.is_empty() {
                self.frame = Vec::new();
            }
        }
        if let Err(error) = served {
            debug!(%error, "the asker's socket is closed");
        }
    }

    /// Sends a request to the kernel, and its answer back as far as it is there: for most families that
    /// is all of it when the kernel has taken the request.
    ///
    /// # Errors
    /// Only if the socket is of no use any more.
    async fn serve(&mut self, request: Request) -> io::Result<()> {
        let respond = request.responder();
        let header = header_of(&request);
        let mut message = match request.payload() {
            Ok(payload) => payload.to_vec(),
            Err(malformed) => return refuse(&respond, &header, &malformed.to_string()).await,
        };
        if header.kind == CONTROL_TYPE {
            let text = "socket operations are not offered";
            let _ = respond.last().send_error(errno::EOPNOTSUPP, &header, text).await;
            return Ok(());
        }
        if let Err(malformed) = self.translator.outgoing(&mut message, &respond) {
            return refuse(&respond, &header, &malformed.to_string()).await;
        }
        self.last = Some(respond);
        if let Err(error) = self.socket.send(&message) {
            self.translator.give_up();
            answer_error(&request, &error).await;
        }
        self.forward_all().await
    }

    /// Passes on every datagram that is there.
    async fn forward_all(&mut self) -> io::Result<()> {
        loop {
            match self.receive() {
                Ok(Some(length)) => self.forward(length).await,
                Ok(None) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(errno::ENOBUFS) => self.overrun().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a datagram into `frame`, behind the room for an envelope: its length.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        let room = match self.payload_max {
            // may be longer than the asker takes: a dump of large messages is cut later
            LEGACY_PAYLOAD_MAX => match self.socket.peek()? {
                Some(length) => length.max(LEGACY_PAYLOAD_MAX),
                None => return Ok(None),
            },
            max => max,
        };
        if self.frame.len() < align4(PAYLOAD_OFFSET + room) {
            self.frame.resize(align4(PAYLOAD_OFFSET + room), 0);
        }
        let buffer = &mut self.frame[PAYLOAD_OFFSET..PAYLOAD_OFFSET + room];
        self.socket.receive(buffer)
    }

    /// Sends the datagram in `frame` to whom it answers: whole if the asker takes it, else cut where
    /// messages end.
    async fn forward(&mut self, length: usize) {
        let Some(datagram) = self.frame.get_mut(PAYLOAD_OFFSET..PAYLOAD_OFFSET + length) else {
            warn!(length, "a datagram is longer than any frame");
            return self.too_long().await;
        };
        let (respond, last) = match (self.translator.incoming(datagram), &self.last) {
            (Whose::Asked { respond, last }, _) => (respond, last),
            (Whose::Unasked, Some(respond)) => (respond.clone(), false),
            (Whose::Unasked, None) | (Whose::Forgotten, _) => return,
        };
        let ending = if last { respond.last() } else { respond.clone() };
        let cuts = match length {
            short if short <= self.payload_max => Some(vec![short]),
            _ => cuts(datagram, self.payload_max),
        };
        let Some(cuts) = cuts else {
            let _ = ending
                .send_error(
                    errno::EMSGSIZE,
                    &Header::default(),
                    "a message is longer than you take",
                )
                .await;
            return;
        };
        let mut start = 0;
        for end in cuts {
            let respond = if end == length { &ending } else { &respond };
            // the envelope overwrites the end of the piece before, which is sent already
            let piece = &mut self.frame[start..];
            if let Err(error) = respond.send_in_place(piece, end - start).await {
                return debug!(%error, "the asker is gone");
            }
            start = end;
        }
    }

    /// The kernel has dropped something: whoever waits for an answer is told.
    async fn overrun(&mut self) {
        debug!("the kernel ran out of room");
        for (theirs, respond) in self.translator.give_up() {
            let message = MessageBuilder::new(nlm::OVERRUN, 0)
                .sequence(theirs.sequence)
                .pid(theirs.pid)
                .body(&0u32.to_le_bytes())
                .finish();
            let _ = respond.last().send(&message).await;
        }
    }

    async fn too_long(&mut self) {
        for (theirs, respond) in self.translator.give_up() {
            let text = "the answer is longer than any frame";
            let _ = respond.last().send_error(errno::EMSGSIZE, &theirs, text).await;
        }
    }
}

async fn refuse(respond: &Responder, header: &Header, text: &str) -> io::Result<()> {
    // an asker that is gone needs no answer
    let _: Result<(), RequestError> = respond.last().send_error(errno::EINVAL, header, text).await;
    Ok(())
}

/// Where to cut a datagram so that no piece is longer than `max` and every piece ends with a message;
/// `None` if one message alone is longer.
fn cuts(datagram: &[u8], max: usize) -> Option<Vec<usize>> {
    let mut cuts = Vec::new();
    let mut start = 0;
    let mut messages = Messages::new(datagram);
    loop {
        let before = messages.offset();
        let more = messages.next().is_some_and(|message| message.is_ok());
        let end = if more { messages.offset().min(datagram.len()) } else { datagram.len() };
        if end - start > max {
            if before == start || end - before > max {
                return None;
            }
            cuts.push(before);
            start = before;
        }
        if !more || end == datagram.len() {
            cuts.push(end);
            return Some(cuts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: usize) -> Vec<u8> {
        MessageBuilder::new(16, nlm::MULTI).body(&vec![1; body]).finish()
    }

    #[test]
    fn a_long_datagram_is_cut_where_messages_end() {
        let datagram = [message(84), message(84), message(84)].concat();
        assert_eq!(cuts(&datagram, 300), Some(vec![300]));
        assert_eq!(cuts(&datagram, 299), Some(vec![200, 300]));
        assert_eq!(cuts(&datagram, 100), Some(vec![100, 200, 300]));
        assert_eq!(cuts(&datagram, 99), None);
    }

    #[test]
    fn trailing_bytes_stay_with_the_last_piece() {
        let datagram = [message(84), message(84), vec![9; 10]].concat();
        assert_eq!(cuts(&datagram, 150), Some(vec![100, 210]));
    }
}
