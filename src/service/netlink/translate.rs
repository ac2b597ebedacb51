//! Sequence numbers and port ids, both ways.
//!
//! An asker numbers its messages as it likes, and not always uniquely; on its socket they get numbers of
//! our own and the socket's port id. What comes back is given the asker's again, in the header and in the
//! one that NLMSG_ERROR embeds. What was not asked for (a notification) stays as it is; what answers a
//! message that is forgotten, as after an overrun, goes to nobody.

use std::collections::VecDeque;

use crate::wire::{Fault, HEADER_LEN, Header, Malformed, Messages, PAYLOAD_MAX, align4, nlm};

/// How many messages are remembered: as many as fit a payload. The oldest is forgotten first. A message
/// that gets no answer at all takes a place until then.
const REMEMBERED_MAX: usize = 4_096;
const _: () = assert!(REMEMBERED_MAX >= PAYLOAD_MAX / HEADER_LEN);

/// Whose a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose<R> {
    /// It answers something.
    Asked {
        /// Where the answer goes.
        respond: R,
        /// Whether it completes the answer to its request.
        last: bool,
    },
    /// It answers what is forgotten.
    Forgotten,
    /// It was not asked for.
    Unasked,
}

/// A message that was sent and may be answered.
#[derive(Debug)]
struct Asked<R> {
    ours: u32,
    /// The first number of those that came in the same request.
    request: u32,
    /// The asker's header.
    theirs: Header,
    /// Where the answer goes.
    respond: R,
}

/// The messages of one socket that may still be answered.
#[derive(Debug)]
pub(super) struct Translator<R> {
    port_id: u32,
    last: u32,
    asked: VecDeque<Asked<R>>,
    /// The message whose dump is coming in.
    dumping: Option<u32>,
}

impl<R: Clone> Translator<R> {
    pub(super) fn new(port_id: u32) -> Self {
        Self { port_id, last: 0, asked: VecDeque::new(), dumping: None }
    }

    /// Whether a dump is under way; the kernel refuses a second one on the same socket.
    pub(super) fn is_dumping(&self) -> bool {
        self.dumping.is_some()
    }

    /// Numbers the messages in `payload` anew, in place.
    ///
    /// # Errors
    /// If `payload` is not made of whole messages, at least one; the kernel would pass the rest over in
    /// silence.
    pub(super) fn outgoing(&mut self, payload: &mut [u8], respond: &R) -> Result<(), Malformed> {
        let mut found = Vec::new();
        let mut messages = Messages::new(payload);
        loop {
            let at = messages.offset();
            match messages.next() {
                Some(message) => found.push((at, message?.header)),
                None => break,
            }
        }
        if found.is_empty() {
            return Err(Malformed::new(Fault::HeaderCut, 0));
        }
        let mut request = None;
        for (at, theirs) in found {
            self.last = self.last.checked_add(1).unwrap_or(1);
            let ours = Header { sequence: self.last, pid: self.port_id, ..theirs };
            payload[at..at + HEADER_LEN].copy_from_slice(&ours.to_bytes());
            if self.asked.len() >= REMEMBERED_MAX {
                self.asked.pop_front();
            }
            let (ours, respond) = (self.last, respond.clone());
            let request = *request.get_or_insert(ours);
            self.asked.push_back(Asked { ours, request, theirs, respond });
        }
        Ok(())
    }

    /// Gives the messages in a datagram their asker's numbers, in place. That a message of a request is one
    /// that gets no answer is not known here.
    pub(super) fn incoming(&mut self, datagram: &mut [u8]) -> Whose<R> {
        let mut answered = None;
        let mut forgotten = false;
        let mut at = 0;
        while let Ok(header) = Header::parse(&datagram[at..]) {
            let length = header.length as usize;
            let Some(message) = datagram.get_mut(at..at + length).filter(|m| m.len() >= HEADER_LEN)
            else {
                break;
            };
            if header.pid == self.port_id {
                let asked = self.restore(&header, message);
                forgotten |= asked.is_none();
                answered = answered.or(asked);
            }
            at = (at + align4(length)).min(datagram.len());
        }
        match answered {
            Some((request, respond)) => {
                let last = self.asked.iter().all(|asked| asked.request != request);
                Whose::Asked { respond, last }
            }
            None if forgotten => Whose::Forgotten,
            None => Whose::Unasked,
        }
    }

    /// Forgets everything that was asked, because an answer was lost: who is to be told, and the header
    /// of what they asked.
    pub(super) fn give_up(&mut self) -> Vec<(Header, R)> {
        self.dumping = None;
        self.asked.drain(..).map(|asked| (asked.theirs, asked.respond)).collect()
    }

    fn restore(&mut self, header: &Header, message: &mut [u8]) -> Option<(u32, R)> {
        let at = self.asked.iter().position(|asked| asked.ours == header.sequence)?;
        let asked = &self.asked[at];
        let theirs = asked.theirs;
        put_numbers(message, 0, &theirs);
        if header.kind == nlm::ERROR {
            put_numbers(message, HEADER_LEN + 4, &theirs);
        }
        let answered = (asked.request, asked.respond.clone());
        self.note(header, at, theirs.flags & nlm::ACK != 0);
        Some(answered)
    }

    /// Remembers what this part of an answer means for those to come.
    fn note(&mut self, header: &Header, at: usize, wants_ack: bool) {
        let ours = header.sequence;
        let multi = header.flags & nlm::MULTI != 0;
        match header.kind {
            nlm::DONE | nlm::ERROR => {
                self.asked.remove(at);
                self.dumping.take_if(|dumping| *dumping == ours);
            }
            _ if multi => self.dumping = Some(ours),
            _ if !wants_ack => drop(self.asked.remove(at)),
            _ => {}
        }
    }
}

/// Overwrites sequence number and port id of the header at `at`, if it is there.
fn put_numbers(message: &mut [u8], at: usize, theirs: &Header) {
    if let Some(header) = message.get_mut(at..at + HEADER_LEN) {
        header[8..12].copy_from_slice(&theirs.sequence.to_le_bytes());
        header[12..16].copy_from_slice(&theirs.pid.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ErrorMessage, Message, MessageBuilder};

    const PORT: u32 = 0x8000_1234;

    fn request(kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        MessageBuilder::new(kind, flags).sequence(sequence).pid(77).body(&[0; 16]).finish()
    }

    fn header(bytes: &[u8]) -> Header {
        Message::parse(bytes).unwrap().header
    }

    fn answer(kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        MessageBuilder::new(kind, flags).sequence(sequence).pid(PORT).body(&[1; 8]).finish()
    }

    fn asked<R>(respond: R, last: bool) -> Whose<R> {
        Whose::Asked { respond, last }
    }

    #[test]
    fn a_request_gets_the_sockets_numbers_and_its_answer_the_askers() {
        let mut translator = Translator::new(PORT);
        let mut sent = request(18, nlm::REQUEST, 5);
        translator.outgoing(&mut sent, &"asker").unwrap();
        assert_eq!((header(&sent).sequence, header(&sent).pid), (1, PORT));

        let mut reply = answer(16, 0, 1);
        assert_eq!(translator.incoming(&mut reply), asked("asker", true));
        assert_eq!((header(&reply).sequence, header(&reply).pid), (5, 77));
        assert_eq!(translator.incoming(&mut answer(16, 0, 1)), Whose::Forgotten, "it is answered");
    }

    #[test]
    fn two_requests_with_the_same_number_are_told_apart() {
        let mut translator = Translator::new(PORT);
        translator.outgoing(&mut request(18, nlm::REQUEST, 9), &"first").unwrap();
        translator.outgoing(&mut request(18, nlm::REQUEST, 9), &"second").unwrap();
        assert_eq!(translator.incoming(&mut answer(16, 0, 2)), asked("second", true));
        assert_eq!(translator.incoming(&mut answer(16, 0, 1)), asked("first", true));
    }

    #[test]
    fn the_header_inside_an_error_is_restored_too() {
        let mut translator = Translator::new(PORT);
        let mut sent = request(19, nlm::REQUEST | nlm::ACK, 5);
        translator.outgoing(&mut sent, &()).unwrap();
        let mut error = ErrorMessage::emit(-19, &header(&sent), "no such device");
        assert_eq!(translator.incoming(&mut error), asked((), true));
        let message = Message::parse(&error).unwrap();
        let inner = ErrorMessage::parse(&message).unwrap();
        assert_eq!((message.header.sequence, message.header.pid), (5, 77));
        assert_eq!((inner.request.sequence, inner.request.pid), (5, 77));
        assert_eq!((inner.code, inner.text), (-19, Some("no such device")));
    }

    #[test]
    fn a_dump_is_under_way_from_its_first_part_to_its_end() {
        let mut translator = Translator::new(PORT);
        translator.outgoing(&mut request(18, nlm::REQUEST | nlm::DUMP, 5), &()).unwrap();
        assert!(!translator.is_dumping());
        let mut parts = [answer(16, nlm::MULTI, 1), answer(16, nlm::MULTI, 1)].concat();
        assert_eq!(translator.incoming(&mut parts), asked((), false));
        assert!(translator.is_dumping());
        assert!(Messages::new(&parts).all(|part| part.unwrap().header.sequence == 5));
        assert_eq!(translator.incoming(&mut answer(nlm::DONE, nlm::MULTI, 1)), asked((), true));
        assert!(!translator.is_dumping());
        assert_eq!(translator.incoming(&mut answer(16, nlm::MULTI, 1)), Whose::Forgotten);
    }

    #[test]
    fn a_request_of_several_messages_is_answered_when_each_of_them_is() {
        let mut translator = Translator::new(PORT);
        let get = nlm::REQUEST;
        let mut sent =
            [request(18, get, 5), request(19, get | nlm::ACK, 6), request(18, get, 7)].concat();
        translator.outgoing(&mut sent, &"batch").unwrap();
        translator.outgoing(&mut request(18, get, 8), &"other").unwrap();
        assert_eq!(translator.incoming(&mut answer(16, 0, 1)), asked("batch", false));
        assert_eq!(translator.incoming(&mut answer(16, 0, 2)), asked("batch", false), "no ack yet");
        assert_eq!(translator.incoming(&mut answer(16, 0, 3)), asked("batch", false));
        assert_eq!(translator.incoming(&mut answer(16, 0, 4)), asked("other", true));
        let mut ack =
            ErrorMessage::emit(0, &Header { sequence: 2, pid: PORT, ..header(&sent) }, "");
        assert_eq!(translator.incoming(&mut ack), asked("batch", true));
    }

    #[test]
    fn what_was_not_asked_for_stays_as_it_is() {
        let mut translator = Translator::<()>::new(PORT);
        let event = MessageBuilder::new(16, 0).sequence(3).pid(500).body(&[1, 2, 3]).finish();
        let mut received = [event.clone(), vec![0xff; 7]].concat();
        let before = received.clone();
        assert_eq!(translator.incoming(&mut received), Whose::Unasked);
        assert_eq!(received, before, "trailing bytes included");
        let mut text = b"add@/devices/virtual".to_vec();
        assert_eq!(translator.incoming(&mut text), Whose::Unasked);
        assert_eq!(text, b"add@/devices/virtual");
    }

    #[test]
    fn answers_to_what_was_given_up_are_nobodys() {
        let mut translator = Translator::new(PORT);
        translator.outgoing(&mut request(18, nlm::REQUEST, 5), &"first").unwrap();
        assert_eq!(translator.give_up().len(), 1);
        translator.outgoing(&mut request(18, nlm::REQUEST, 6), &"second").unwrap();
        assert_eq!(translator.incoming(&mut answer(16, 0, 1)), Whose::Forgotten);
        assert_eq!(translator.incoming(&mut answer(16, 0, 2)), asked("second", true));
    }

    #[test]
    fn a_payload_without_a_message_is_refused() {
        let refused = Translator::new(PORT).outgoing(&mut [], &());
        assert_eq!(refused, Err(Malformed::new(Fault::HeaderCut, 0)));
    }

    #[test]
    fn a_payload_that_is_not_whole_messages_is_refused_and_left_as_it_is() {
        let mut translator = Translator::new(PORT);
        let mut payload = [request(18, 1, 5), vec![3; 9]].concat();
        let before = payload.clone();
        let malformed = translator.outgoing(&mut payload, &()).unwrap_err();
        assert_eq!(malformed, Malformed::new(Fault::HeaderCut, 41));
        assert_eq!(payload, before);
    }

    #[test]
    fn unanswered_requests_are_forgotten_oldest_first_at_the_bound() {
        let mut translator = Translator::new(PORT);
        for number in 0..=REMEMBERED_MAX as u32 {
            translator.outgoing(&mut request(18, 1, number), &number).unwrap();
        }
        assert_eq!(translator.asked.len(), REMEMBERED_MAX);
        assert_eq!(translator.incoming(&mut answer(16, 0, 1)), Whose::Forgotten);
        assert_eq!(translator.incoming(&mut answer(16, 0, 2)), asked(1, true));
    }
}
