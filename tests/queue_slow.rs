//! Askers of queues that do not read their answers.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

#[path = "support_node/mod.rs"]
mod support_node;
#[path = "support_queue/mod.rs"]
mod support_queue;

use nlbus::node::NodeOptions;
use nlbus::service::queue::ReceiveOptions;
use nlbus::service::queue::machine::{Command, QueueInfo, Send, Subscribe};
use nlbus::service::queue::protocol::{Body, Said, emit_command, read_answers};
use nlbus::wire::{HEADER_LEN, MessageBuilder, errno, nlm};
use support_node::frames::{ask, head_of, payload_of};
use support_node::peer::Peer;
use support_queue::{Broker, HANG, in_time};

/// The port that does not read.
const PORT: u32 = 3;

fn request(address: u32, port: u32, sequence: u32, command: &Command) -> Vec<u8> {
    let mut body = Body::default();
    emit_command(command, 1, &mut body);
    let message = MessageBuilder::new(nlm::DATA, nlm::REQUEST).sequence(sequence);
    ask(address, port, sequence, &message.body(body.as_bytes()).finish())
}

fn subscribe() -> Command {
    let queue = "q".to_owned();
    Command::Subscribe(Subscribe { queue, credit: 65_536, credit_bytes: 16 << 20, lease_ms: None })
}

#[tokio::test]
async fn a_session_that_was_ended_for_not_reading_gets_nothing_more_until_it_has_read() {
    let mut options = NodeOptions::default();
    options.reply_hold_max = HANG;
    let broker = Broker::start_with(None, &"tcp://127.0.0.1:0".parse().unwrap(), options).await;
    let address = broker.served.address();
    let inside = broker.inside();
    inside.create("q", None).await.unwrap();
    inside.create("fence", None).await.unwrap();
    let mut peer = Peer::dial(&broker.url).await;
    peer.hello().await;
    peer.send(&request(address, PORT, 1, &subscribe())).await;
    let info = async || -> QueueInfo { inside.list("q", false).await.unwrap().remove(0) };
    while info().await.consumers == 0 {
        tokio::task::yield_now().await;
    }
    let mut sent = 0;
    while info().await.consumers > 0 {
        assert!(sent < 50_000, "it is never taken to be gone");
        for _ in 0..50 {
            inside.send("q", &[7; 1_200][..]).await.unwrap();
            sent += 1;
        }
    }
    let delivered = info().await.counters.delivered;
    // it tries again, and another port of the link has its requests seen to
    for sequence in 2..10 {
        peer.send(&request(address, PORT, sequence, &subscribe())).await;
    }
    let fence = Command::Send(Send {
        queue: "fence".to_owned(),
        create: false,
        send_id: None,
        ttl_ms: None,
        reply_to: None,
        record: bytes::Bytes::new(),
    });
    peer.send(&request(address, PORT + 1, 1, &fence)).await;
    let waiting = ReceiveOptions::default().wait(HANG);
    assert_eq!(in_time(inside.receive(&["fence"], waiting)).await.unwrap().len(), 1);
    let after = info().await;
    assert_eq!((after.consumers, after.counters.delivered), (0, delivered));
    assert_eq!((after.leased, after.ready), (0, sent));

    // now it reads: what it was sent, and that all of its requests came to nothing
    let mut refused = 0;
    while refused < 9 {
        let frame = peer.receive().await.expect("the link stays");
        if head_of(&frame).dst == PORT {
            refused += refusals(payload_of(&frame));
        }
    }
    // and it begins anew
    peer.send(&request(address, PORT, 10, &subscribe())).await;
    let frame = loop {
        let frame = peer.receive().await.expect("the link stays");
        if head_of(&frame).dst == PORT {
            break frame;
        }
    };
    assert_eq!((head_of(&frame).sequence, refusals(payload_of(&frame))), (10, 0));
    while info().await.consumers == 0 {
        tokio::task::yield_now().await;
    }
}

/// How many ENOBUFS an answer has.
fn refusals(payload: &[u8]) -> usize {
    let mut count = 0;
    let body = bytes::Bytes::copy_from_slice(&payload[HEADER_LEN..]);
    let _ = read_answers(&body, |_, said| {
        if let Said::Refused(refusal) = said {
            assert_eq!(refusal.errno, errno::ENOBUFS);
            count += 1;
        }
    });
    count
}
