//! A scripted peer sends a frame of a valid exchange with exactly one field corrupted, to a real node over a
//! real socket. It gets the documented answer or loses its link; a link beside it works on, and the counters
//! tell what happened.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use nlbus::broker::Counters;
use nlbus::node::NodeOptions;
use nlbus::wire::{
    Command, ControlAttribute, EnvelopeHead, ErrorMessage, FRAME_MAX, Key, LEGACY_FRAME_MAX,
    Message, errno, flag, nlm,
};
use support_node::frames::{
    MESSAGE_TYPE, Said, ask, control, exception, head_of, message, payload_of,
};
use support_node::peer::{Peer, Server, within};

// --- the valid exchanges: each frame is built for the address of a service named "echo" ---

const SEQUENCE: u32 = 0x0102_0304;
const GROUP: &str = "alerts";
const NAME: &str = "echo";

type Frame = fn(u32) -> Vec<u8>;

/// Fixed part to 24, CDATA's header at 24, VERSION at 48, FRAME_MAX at 56.
fn hello(_: u32) -> Vec<u8> {
    control(3, SEQUENCE, Command::Hello, |control| {
        control.u32(ControlAttribute::Version, 1)?.u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
    })
}

/// HOST at 48.
fn discover(_: u32) -> Vec<u8> {
    control(3, SEQUENCE, Command::Discover, |control| control.string(ControlAttribute::Host, NAME))
}

/// KEY at 48, GROUP at 64.
fn subscribe(_: u32) -> Vec<u8> {
    control(3, SEQUENCE, Command::Subscribe, |control| {
        let key = Key { offset: 4, key: MESSAGE_TYPE.into(), mask: 0xffff };
        control.key(key)?.string(ControlAttribute::Group, GROUP)
    })
}

/// One message of 20 bytes at 28.
fn request(echo: u32) -> Vec<u8> {
    ask(echo, 3, SEQUENCE, &message(0, SEQUENCE, b"good"))
}

/// The same for subscribers of a group: GROUP at 48.
fn publish(_: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    let head = EnvelopeHead { sequence: SEQUENCE, src: 3, ..EnvelopeHead::default() };
    head.emit_to_group(GROUP, &message(0, SEQUENCE, b"good"), &mut frame).unwrap();
    frame
}

/// Where what is corrupted stands, proto-spec/envelope.md and control.md, section 1.
mod at {
    pub(crate) const LENGTH: usize = 0;
    pub(crate) const TYPE: usize = 4;
    pub(crate) const FLAGS: usize = 6;
    pub(crate) const SEQUENCE: usize = 8;
    pub(crate) const PID: usize = 12;
    pub(crate) const DST: usize = 16;
    pub(crate) const SRC: usize = 20;
    pub(crate) const CDATA_LENGTH: usize = 24;
    pub(crate) const CDATA_KIND: usize = 26;
    pub(crate) const INNER_LENGTH: usize = 28;
    pub(crate) const INNER_TYPE: usize = 32;
    pub(crate) const INNER_FLAGS: usize = 34;
    pub(crate) const INNER_SEQUENCE: usize = 36;
    pub(crate) const INNER_PID: usize = 40;
    pub(crate) const COMMAND: usize = 44;
    pub(crate) const VERSION: usize = 45;
    pub(crate) const RESERVED: usize = 46;
    /// The first attribute of a control message.
    pub(crate) const FIRST_LENGTH: usize = 48;
    pub(crate) const FIRST_KIND: usize = 50;
    pub(crate) const FIRST_VALUE: usize = 52;
    /// The second one of [`hello`](super::hello).
    pub(crate) const SECOND_LENGTH: usize = 56;
    pub(crate) const SECOND_KIND: usize = 58;
    pub(crate) const SECOND_VALUE: usize = 60;
    /// GROUP of [`subscribe`](super::subscribe).
    pub(crate) const GROUP_LENGTH: usize = 64;
    pub(crate) const GROUP_KIND: usize = 66;
    pub(crate) const GROUP_VALUE: usize = 68;
    /// GROUP of [`publish`](super::publish).
    pub(crate) const ENVELOPE_GROUP_LENGTH: usize = 48;
    pub(crate) const ENVELOPE_GROUP_KIND: usize = 50;
}

// --- what must happen ---

/// What the peer sees. What is not said to be counted must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Its link is closed, and that is counted as malformed.
    Closed,
    /// The node waits for more. When that comes, the frame that it completes is dropped, what follows makes
    /// no sense, and the link is closed.
    ClosedLater,
    /// ACK.
    Ack,
    /// ERR with this number. EPERM is counted as forbidden.
    Err(i32),
    /// ERR with EINVAL, for a fault at this offset of the control message.
    Fault(usize),
    /// The service's answer.
    Answer,
    /// The service's refusal, EINVAL.
    Refused,
    /// An EXCEPTION with this number, counted; EPERM is counted as forbidden, too.
    Exception(i32),
    /// Nothing.
    Silence,
    /// Nothing: it went to subscribers, of which there are none.
    Broadcast,
    /// Nothing: it was for subscribers and is counted as dropped.
    Dropped,
}
use Then::*;

/// Malformed, exceptions, forbidden, dropped, broadcasts.
fn counted(counters: &Counters) -> [u64; 5] {
    [
        counters.malformed,
        counters.exceptions,
        counters.forbidden,
        counters.dropped,
        counters.broadcasts,
    ]
}

impl Then {
    fn counts(self) -> [u64; 5] {
        match self {
            Closed => [1, 0, 0, 0, 0],
            ClosedLater => [1, 0, 0, 1, 1],
            Exception(errno::EPERM) => [0, 1, 1, 0, 0],
            Exception(_) => [0, 1, 0, 0, 0],
            Err(errno::EPERM) => [0, 0, 1, 0, 0],
            Broadcast => [0, 0, 0, 0, 1],
            Dropped => [0, 0, 0, 1, 1],
            Ack | Err(_) | Fault(_) | Answer | Refused | Silence => [0; 5],
        }
    }
}

/// Sends `frame` with one field corrupted.
async fn corrupted(frame: Frame, corrupt: impl Fn(&mut Vec<u8>), then: Then) {
    let server = Server::start(NodeOptions::default()).await;
    let echo = server.echo(NAME).await;
    let mut beside = Peer::dial(&server.unix).await;
    beside.assert_served(echo).await;
    let mut peer = Peer::dial(&server.tcp).await;
    peer.assert_served(echo).await;
    let before = counted(&server.node.counters().core);

    let mut frame = frame(echo);
    corrupt(&mut frame);
    peer.send(&frame).await;
    match then {
        Closed => peer.assert_closed().await,
        ClosedLater => {
            beside.assert_served(echo).await;
            assert_eq!(counted(&server.node.counters().core), before);
            peer.send_in_vain(&request(echo)).await;
            within(async { while peer.receive().await.is_some() {} }).await;
        }
        Ack | Err(_) | Fault(_) => {
            let answer = peer.receive().await.expect("an answer");
            let (sent, head) = (EnvelopeHead::read(&frame).unwrap().1, head_of(&answer));
            let swapped =
                EnvelopeHead { flags: flag::CONTROL, dst: sent.src, src: sent.dst, ..sent };
            assert_eq!(head, swapped);
            judge(then, &Said::of(&answer));
        }
        Answer | Refused => {
            let answer = peer.receive().await.expect("an answer");
            let (sent, head) = (EnvelopeHead::read(&frame).unwrap().1, head_of(&answer));
            let swapped = EnvelopeHead { flags: head.flags, dst: sent.src, src: sent.dst, ..sent };
            assert_eq!(head, swapped);
            match then {
                Answer => assert_eq!(payload_of(&answer), &frame[28..48]),
                _ => assert_eq!(refusal(&answer), errno::EINVAL),
            }
        }
        Exception(number) => {
            let answer = peer.receive().await.expect("an exception");
            let (got, header, _) = exception(&answer);
            assert_eq!((got, header.sequence), (number, SEQUENCE));
        }
        // the next answer is one to what comes next
        Silence | Broadcast | Dropped => {}
    }
    if !matches!(then, Closed | ClosedLater) {
        peer.assert_served(echo).await;
    }
    beside.assert_served(echo).await;
    let after = counted(&server.node.counters().core);
    let counted: Vec<u64> =
        before.iter().zip(after).map(|(before, after)| after - before).collect();
    assert_eq!(counted, then.counts(), "malformed, exceptions, forbidden, dropped, broadcasts");
}

fn judge(then: Then, said: &Said) {
    match then {
        Ack => assert!(said.is_ack(), "{said:?}"),
        Err(number) => assert_eq!((said.command, said.errno), (Some(Command::Err), Some(number))),
        _ => {
            let Fault(offset) = then else { unreachable!() };
            assert_eq!((said.command, said.errno), (Some(Command::Err), Some(errno::EINVAL)));
            let text = said.error.as_deref().unwrap();
            assert!(text.starts_with(&format!("at byte {offset}: ")), "{text}");
        }
    }
}

/// The number in the NLMSG_ERROR of an answer.
fn refusal(answer: &[u8]) -> i32 {
    let message = Message::parse(payload_of(answer)).unwrap();
    assert_eq!(message.header.kind, nlm::ERROR);
    -ErrorMessage::parse(&message).unwrap().code
}

fn put(at: usize, value: &[u8]) -> impl Fn(&mut Vec<u8>) {
    move |frame| frame[at..at + value.len()].copy_from_slice(value)
}

fn word(at: usize, value: u32) -> impl Fn(&mut Vec<u8>) {
    move |frame| put(at, &value.to_le_bytes())(frame)
}

fn half(at: usize, value: u16) -> impl Fn(&mut Vec<u8>) {
    move |frame| put(at, &value.to_le_bytes())(frame)
}

fn add(at: usize, bits: u16) -> impl Fn(&mut Vec<u8>) {
    move |frame| {
        let flags = u16::from_le_bytes([frame[at], frame[at + 1]]);
        half(at, flags | bits)(frame);
    }
}

fn byte(at: usize, value: u8) -> impl Fn(&mut Vec<u8>) {
    move |frame| frame[at] = value
}

fn nothing(_: &mut Vec<u8>) {}

macro_rules! tests {
    ($($name:ident: $frame:ident, $corrupt:expr => $then:expr;)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            corrupted($frame, $corrupt, $then).await;
        }
    )* };
}

// --- as they are ---

tests! {
    a_hello_is_acknowledged: hello, nothing => Ack;
    a_discover_is_acknowledged: discover, nothing => Ack;
    a_subscribe_is_acknowledged: subscribe, nothing => Ack;
    a_request_is_answered: request, nothing => Answer;
    a_broadcast_goes_out: publish, nothing => Broadcast;
}

// --- the frame's header ---

tests! {
    a_length_of_0_closes: request, word(at::LENGTH, 0) => Closed;
    a_length_of_24_closes: request, word(at::LENGTH, 24) => Closed;
    a_length_of_27_closes: hello, word(at::LENGTH, 27) => Closed;
    a_length_that_is_no_multiple_of_4_closes: discover, word(at::LENGTH, 58) => Closed;
    a_length_past_the_limit_closes: subscribe, word(at::LENGTH, FRAME_MAX as u32 + 4) => Closed;
    a_length_with_the_highest_bit_closes: request, word(at::LENGTH, 0x8000_0030) => Closed;
    a_length_of_all_ones_closes: hello, word(at::LENGTH, u32::MAX) => Closed;
    a_length_of_4_too_much_waits_and_then_closes: publish, word(at::LENGTH, 64) => ClosedLater;
    a_type_of_0_closes: request, half(at::TYPE, 0) => Closed;
    a_type_of_14_closes: hello, half(at::TYPE, 14) => Closed;
    a_type_in_the_other_byte_order_closes: subscribe, half(at::TYPE, 0x0f00) => Closed;
    a_request_as_control_is_no_control_message: request, add(at::FLAGS, flag::CONTROL) => Fault(4);
    a_hello_that_is_not_control_is_a_broadcast: hello, half(at::FLAGS, 0) => Broadcast;
    a_request_that_says_it_is_a_response_is_passed_over: request, add(at::FLAGS, flag::RESPONSE) => Silence;
    a_request_that_says_it_is_an_exception_is_passed_over: request, add(at::FLAGS, flag::EXCEPTION) => Silence;
    a_request_that_says_it_is_the_last_is_answered: request, add(at::FLAGS, flag::LAST) => Answer;
    a_request_without_ask_is_answered: request, half(at::FLAGS, 0) => Answer;
    flags_without_a_name_are_passed_over: request, add(at::FLAGS, 0x008a) => Answer;
    flags_without_a_name_are_passed_over_in_control: hello, add(at::FLAGS, 0x008a) => Ack;
    hops_that_an_endpoint_made_up_are_passed_over: request, add(at::FLAGS, flag::HOPS_MASK) => Answer;
    any_sequence_number_is_echoed: request, word(at::SEQUENCE, u32::MAX) => Answer;
    any_sequence_number_is_echoed_in_control: hello, word(at::SEQUENCE, 0) => Ack;
    any_pid_is_echoed: request, word(at::PID, u32::MAX) => Answer;
    any_pid_is_echoed_in_control: subscribe, word(at::PID, 0) => Ack;
    a_dst_that_nobody_has_is_told: request, word(at::DST, 0x0001_7777) => Exception(errno::ENOENT);
    a_dst_below_the_subsystems_is_told: request, word(at::DST, 1) => Exception(errno::ENOENT);
    a_return_address_as_dst_is_forbidden: request, word(at::DST, 0x8000_0000) => Exception(errno::EPERM);
    a_return_address_that_nobody_has_is_forbidden: request, word(at::DST, 0xffff_fffe) => Exception(errno::EPERM);
    a_dst_of_0_is_for_subscribers: request, word(at::DST, 0) => Broadcast;
    a_dst_of_all_ones_is_for_subscribers: request, word(at::DST, u32::MAX) => Broadcast;
    any_dst_of_a_control_message_means_the_broker: hello, word(at::DST, 0x0001_7777) => Ack;
    a_return_address_as_dst_of_a_control_message_means_the_broker: discover, word(at::DST, 0x8000_0000) => Ack;
    any_src_is_where_the_answer_goes: request, word(at::SRC, u32::MAX) => Answer;
    a_src_like_a_subsystem_is_where_the_answer_goes: request, word(at::SRC, 0x0001_0003) => Answer;
    a_src_like_a_return_address_is_where_the_answer_goes: request, word(at::SRC, 0x8000_0000) => Answer;
    any_src_of_a_control_message_gets_its_answer: hello, word(at::SRC, 0x8000_0000) => Ack;
}

// --- the envelope's attributes ---

tests! {
    a_cdata_length_of_0_is_refused: request, half(at::CDATA_LENGTH, 0) => Refused;
    a_cdata_length_of_3_is_refused: request, half(at::CDATA_LENGTH, 3) => Refused;
    a_cdata_length_past_the_end_is_refused: request, half(at::CDATA_LENGTH, 25) => Refused;
    a_cdata_length_of_all_ones_is_refused: request, half(at::CDATA_LENGTH, u16::MAX) => Refused;
    a_cdata_length_too_short_leaves_bytes_behind_and_is_refused: request, half(at::CDATA_LENGTH, 20) => Refused;
    a_group_in_the_place_of_cdata_is_no_payload: request, half(at::CDATA_KIND, 1) => Refused;
    an_unknown_kind_in_the_place_of_cdata_is_no_payload: request, half(at::CDATA_KIND, 2) => Refused;
    a_nested_cdata_is_another_kind: request, half(at::CDATA_KIND, 0x8000) => Refused;
    a_cdata_in_network_byte_order_is_another_kind: request, half(at::CDATA_KIND, 0x4000) => Refused;
    a_cdata_length_of_0_is_einval_in_control: hello, half(at::CDATA_LENGTH, 0) => Err(errno::EINVAL);
    a_cdata_length_past_the_end_is_einval_in_control: hello, half(at::CDATA_LENGTH, 41) => Err(errno::EINVAL);
    a_cdata_length_too_short_is_einval_in_control: discover, half(at::CDATA_LENGTH, 32) => Err(errno::EINVAL);
    another_kind_than_cdata_is_einval_in_control: subscribe, half(at::CDATA_KIND, 1) => Err(errno::EINVAL);
    a_nested_cdata_is_einval_in_control: hello, half(at::CDATA_KIND, 0x8000) => Err(errno::EINVAL);
    a_cdata_length_of_0_makes_no_broadcast: publish, half(at::CDATA_LENGTH, 0) => Dropped;
    another_kind_than_cdata_makes_no_broadcast: publish, half(at::CDATA_KIND, 2) => Dropped;
    a_group_length_of_0_makes_no_broadcast: publish, half(at::ENVELOPE_GROUP_LENGTH, 0) => Dropped;
    a_group_length_past_the_end_makes_no_broadcast: publish, half(at::ENVELOPE_GROUP_LENGTH, 13) => Dropped;
    a_group_of_an_unknown_kind_is_a_broadcast_without_one: publish, half(at::ENVELOPE_GROUP_KIND, 7) => Broadcast;
}

// --- the control message's header ---

tests! {
    an_inner_length_too_short_is_a_fault: hello, word(at::INNER_LENGTH, 32) => Fault(0);
    an_inner_length_too_long_is_a_fault: hello, word(at::INNER_LENGTH, 40) => Fault(0);
    an_inner_length_of_0_is_a_fault: discover, word(at::INNER_LENGTH, 0) => Fault(0);
    an_inner_length_of_all_ones_is_a_fault: subscribe, word(at::INNER_LENGTH, u32::MAX) => Fault(0);
    an_inner_type_of_0_is_a_fault: hello, half(at::INNER_TYPE, 0) => Fault(4);
    an_inner_type_of_15_is_a_fault: hello, half(at::INNER_TYPE, 15) => Fault(4);
    inner_flags_are_not_looked_at: hello, half(at::INNER_FLAGS, u16::MAX) => Ack;
    an_inner_sequence_number_is_not_looked_at: discover, word(at::INNER_SEQUENCE, 0xdead_beef) => Ack;
    an_inner_pid_is_not_looked_at: subscribe, word(at::INNER_PID, 0xdead_beef) => Ack;
    a_command_that_nobody_knows_is_not_supported: hello, byte(at::COMMAND, 200) => Err(errno::EOPNOTSUPP);
    a_command_that_is_retired_is_not_supported: hello, byte(at::COMMAND, 6) => Err(errno::EOPNOTSUPP);
    a_command_for_controllers_is_forbidden: hello, byte(at::COMMAND, 1) => Err(errno::EPERM);
    a_command_for_providers_is_forbidden: discover, byte(at::COMMAND, 13) => Err(errno::EPERM);
    noop_is_never_answered: hello, byte(at::COMMAND, 0) => Silence;
    ack_is_never_answered: hello, byte(at::COMMAND, 2) => Silence;
    err_is_never_answered: discover, byte(at::COMMAND, 3) => Silence;
    a_control_version_of_1_is_a_fault: hello, byte(at::VERSION, 1) => Fault(17);
    a_reserved_field_that_is_not_0_is_a_fault: discover, half(at::RESERVED, 0x0100) => Fault(18);
}

// --- the control message's attributes ---

tests! {
    an_attribute_length_of_0_is_a_fault: hello, half(at::FIRST_LENGTH, 0) => Fault(20);
    an_attribute_length_of_3_is_a_fault: hello, half(at::FIRST_LENGTH, 3) => Fault(20);
    an_attribute_length_past_the_end_is_a_fault: hello, half(at::FIRST_LENGTH, 17) => Fault(20);
    a_number_of_3_bytes_is_a_fault: hello, half(at::FIRST_LENGTH, 7) => Fault(24);
    a_number_of_5_bytes_is_a_fault: hello, half(at::FIRST_LENGTH, 9) => Fault(24);
    a_number_without_bytes_is_a_fault: hello, half(at::FIRST_LENGTH, 4) => Fault(24);
    a_second_length_past_the_end_is_a_fault: hello, half(at::SECOND_LENGTH, 9) => Fault(28);
    an_unknown_kind_is_a_fault: hello, half(at::FIRST_KIND, 99) => Fault(20);
    a_kind_of_generic_netlinks_own_is_a_fault: hello, half(at::FIRST_KIND, 2) => Fault(20);
    a_nested_number_is_a_fault: hello, half(at::FIRST_KIND, 0x8041) => Fault(20);
    a_number_in_network_byte_order_is_a_fault: hello, half(at::FIRST_KIND, 0x4041) => Fault(20);
    an_attribute_twice_is_a_fault: hello, half(at::SECOND_KIND, 65) => Fault(28);
    a_hello_without_a_version_is_einval: hello, half(at::FIRST_KIND, 67) => Err(errno::EINVAL);
    a_hello_without_a_frame_max_is_einval: hello, half(at::SECOND_KIND, 67) => Err(errno::EINVAL);
    a_hello_of_version_0_is_einval: hello, word(at::FIRST_VALUE, 0) => Err(errno::EINVAL);
    a_hello_of_a_later_version_is_spoken_to: hello, word(at::FIRST_VALUE, u32::MAX) => Ack;
    a_frame_max_below_the_least_is_einval: hello, word(at::SECOND_VALUE, LEGACY_FRAME_MAX as u32 - 1) => Err(errno::EINVAL);
    a_frame_max_past_the_most_is_taken_as_that: hello, word(at::SECOND_VALUE, u32::MAX) => Ack;
    a_name_cut_short_leaves_bytes_behind: discover, half(at::FIRST_LENGTH, 8) => Fault(28);
    a_name_past_the_end_is_a_fault: discover, half(at::FIRST_LENGTH, 13) => Fault(20);
    a_name_that_takes_the_padding_along_is_a_fault: discover, half(at::FIRST_LENGTH, 10) => Fault(24);
    a_name_as_a_number_is_a_fault: discover, half(at::FIRST_KIND, 13) => Fault(24);
    a_name_as_another_string_is_a_missing_name: discover, half(at::FIRST_KIND, 69) => Err(errno::EINVAL);
    a_name_with_a_nul_inside_is_a_fault: discover, byte(at::FIRST_VALUE + 2, 0) => Fault(24);
    a_name_that_is_not_utf_8_is_a_fault: discover, byte(at::FIRST_VALUE, 0xff) => Fault(24);
    a_name_that_nobody_has_is_enoent: discover, byte(at::FIRST_VALUE, b'E') => Err(errno::ENOENT);
    a_key_of_8_bytes_leaves_bytes_behind: subscribe, half(at::FIRST_LENGTH, 12) => Fault(24);
    a_key_of_13_bytes_is_a_fault: subscribe, half(at::FIRST_LENGTH, 17) => Fault(24);
    a_key_as_a_number_is_a_fault: subscribe, half(at::FIRST_KIND, 13) => Fault(24);
    a_key_with_any_offset_is_taken: subscribe, word(at::FIRST_VALUE, u32::MAX) => Ack;
    a_key_that_compares_nothing_is_taken: subscribe, word(at::FIRST_VALUE + 8, 0) => Ack;
    a_group_past_the_end_is_a_fault: subscribe, half(at::GROUP_LENGTH, 13) => Fault(36);
    a_group_as_a_name_is_enoent: subscribe, half(at::GROUP_KIND, 9) => Err(errno::ENOENT);
    a_group_with_a_nul_inside_is_a_fault: subscribe, byte(at::GROUP_VALUE, 0) => Fault(40);
    a_group_that_is_not_utf_8_is_a_fault: subscribe, byte(at::GROUP_VALUE, 0xff) => Fault(40);
}
